//! A seccomp profile as it is written: the JSON of the OCI runtime specification (`linux.seccomp`) with
//! what Docker adds to it (`archMap`, `includes`, `excludes`).
//!
//! Nothing is passed over: a key or an action that is not known here may be one that forbids something.

use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
    pub(crate) default_action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) default_errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) default_errno: Option<ErrorName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) flags: Vec<Flag>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) architectures: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) arch_map: Vec<Architecture>,
    #[serde(default)]
    pub(crate) syscalls: Vec<Entry>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Architecture {
    pub(crate) architecture: String,
    /// 32-bit calls on a 64-bit kernel; there is no filter for them, so they end the program.
    #[serde(default)]
    pub(crate) sub_architectures: Option<Vec<String>>,
}

/// What happens to some system calls.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<String>,
    pub(crate) action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) errno: Option<ErrorName>,
    /// All of them must hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) args: Option<Vec<Argument>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) includes: Option<Conditions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) excludes: Option<Conditions>,
}

/// Where an entry counts.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Conditions {
    #[serde(default)]
    pub(crate) caps: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) arches: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) min_kernel: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Argument {
    pub(crate) index: u8,
    pub(crate) value: u64,
    #[serde(default)]
    pub(crate) value_two: u64,
    pub(crate) op: Operator,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub(crate) enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// `SCMP_ACT_NOTIFY` is left out: it needs a supervisor that answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum Action {
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_KILL_THREAD", alias = "SCMP_ACT_KILL")]
    KillThread,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[default]
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
}

/// Errors that profiles name instead of numbering them.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub(crate) enum ErrorName {
    #[serde(rename = "EPERM")]
    NotPermitted,
    #[serde(rename = "EACCES")]
    Access,
    #[serde(rename = "EINVAL")]
    Invalid,
    #[serde(rename = "ENOSYS")]
    NoSuchCall,
}

impl ErrorName {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Access => 13,
            Self::Invalid => 22,
            Self::NoSuchCall => NO_SUCH_CALL,
        }
    }
}

/// Filters always bind all threads; the other flags of the kernel change no verdict.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub(crate) enum Flag {
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    AllThreads,
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    AllowSpeculation,
}

/// `ENOSYS`: C libraries take another road when they hear it.
pub(crate) const NO_SUCH_CALL: u32 = 38;

/// `EPERM`, where a profile names no error.
pub(crate) const NOT_PERMITTED: u32 = 1;
