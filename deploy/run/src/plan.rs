//! What the wishes mean here, for this caller: everything that the later stages need to know.
//!
//! It travels from stage to stage in a file without a name, as JSON.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use anyhow::{Context as _, bail, ensure};
use caps::{CapSet, Capability, CapsHashSet};
use postern_harden::Profile;
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::Limits,
    size::ResourceLimit,
    wishes::{Landlock, NOBODY, Net, User, Wishes},
};

/// Everything but the limits, which the first stage sees to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) program: Vec<OsString>,
    /// Where the program's file is in the caller's view, if it was found.
    pub(crate) file: Option<PathBuf>,
    pub(crate) readable: Vec<PathBuf>,
    pub(crate) writable: Vec<PathBuf>,
    pub(crate) tmp_size: u64,
    pub(crate) has_own_net: bool,
    /// The caller's network by an explicit wish, with the abstract Unix sockets in it.
    pub(crate) wants_host_net: bool,
    pub(crate) hostname: String,
    pub(crate) workdir: Option<PathBuf>,
    pub(crate) present: PathBuf,
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Who to become; nobody else where a user namespace holds the caller alone.
    pub(crate) become_user: Option<(u32, u32)>,
    pub(crate) capabilities: Vec<String>,
    /// The name of the profile, and its text.
    pub(crate) seccomp: Option<(String, String)>,
    /// The lowest ABI that will do, if there shall be a fence.
    pub(crate) landlock: Option<u32>,
    pub(crate) ulimits: Vec<ResourceLimit>,
    pub(crate) descriptors: Vec<i32>,
    pub(crate) is_learning: bool,
}

/// Who calls, and what that allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// May it make namespaces and mounts as it is?
    pub(crate) is_privileged: bool,
}

impl Caller {
    pub(crate) fn present() -> anyhow::Result<Self> {
        let has = |capability| caps::has_cap(None, CapSet::Effective, capability);
        Ok(Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            is_privileged: has(Capability::CAP_SYS_ADMIN)? && has(Capability::CAP_SETUID)?,
        })
    }
}

impl Plan {
    /// Finds out what wishes mean.
    ///
    /// # Errors
    /// What cannot be had by this caller, with the name of the wish.
    pub(crate) fn of(
        wishes: &Wishes,
        program: Vec<OsString>,
        caller: Caller,
        is_learning: bool,
    ) -> anyhow::Result<Self> {
        let become_user = user(wishes.user, caller)?;
        let keep: CapsHashSet = wishes.keep_cap.iter().copied().collect();
        ensure!(
            caller.is_privileged || keep.is_empty() || wishes.net == Some(Net::None),
            "--keep-cap without root counts within a user namespace alone, so it needs `--net none`"
        );
        let seccomp = match is_learning {
            true => None,
            false => seccomp(wishes.seccomp.as_deref(), &keep)?,
        };
        let environment = environment(wishes);
        let first = program.first().context("no program")?;
        let mut ulimits = vec![ResourceLimit::no_core()];
        ulimits.extend(wishes.ulimit.iter().cloned());
        let hostname = wishes
            .hostname
            .clone()
            .unwrap_or_else(|| "postern-run".to_owned());
        ensure!(
            !hostname.is_empty() && hostname.len() <= 64,
            "--hostname `{hostname}`: a name has 1 to 64 bytes"
        );
        Ok(Self {
            file: find(first, &environment),
            readable: existing(&wishes.readable, "--readable")?,
            writable: existing(&wishes.writable, "--writable")?,
            tmp_size: wishes.tmp_size.unwrap_or(TMP_SIZE),
            has_own_net: wishes.net == Some(Net::None),
            wants_host_net: wishes.net == Some(Net::Host),
            hostname,
            workdir: wishes.workdir.clone(),
            present: env::current_dir().unwrap_or_else(|_| "/".into()),
            environment,
            become_user,
            capabilities: keep.iter().map(ToString::to_string).collect(),
            seccomp,
            landlock: match wishes.landlock.unwrap_or(Landlock::On) {
                Landlock::Off => None,
                Landlock::On => Some(0),
                Landlock::Required => Some(1),
            },
            ulimits,
            descriptors: wishes.keep_fd.clone(),
            is_learning,
            program,
        })
    }

    pub(crate) fn kept(&self) -> anyhow::Result<CapsHashSet> {
        let parsed = self.capabilities.iter().map(|name| name.parse());
        Ok(parsed.collect::<Result<_, _>>()?)
    }

    /// Compiles the filter, if there is one.
    pub(crate) fn filter(&self) -> anyhow::Result<Option<postern_harden::Filter>> {
        let Some((name, text)) = &self.seccomp else {
            return Ok(None);
        };
        Ok(Some(Profile::parse(name, text)?.filter(&self.kept()?)?))
    }
}

/// The limits among the wishes.
pub(crate) fn limits(wishes: &Wishes) -> Limits {
    Limits {
        memory: wishes.memory,
        quota: wishes.cpus,
        pids: wishes.pids,
    }
}

fn user(wished: Option<User>, caller: Caller) -> anyhow::Result<Option<(u32, u32)>> {
    match (wished, caller.is_privileged) {
        (None, _) => Ok(None),
        (Some(User::NonRoot), _) if caller.uid != 0 => Ok(None),
        (Some(User::NonRoot), true) => Ok(Some((NOBODY, NOBODY))),
        (Some(User::Ids(uid, gid)), true) => Ok(Some((uid, gid))),
        (Some(User::Ids(uid, gid)), false) if (uid, gid) == (caller.uid, caller.gid) => Ok(None),
        (Some(_), false) => bail!(
            "--user: only root can become another user; without root the program stays {}:{}",
            caller.uid,
            caller.gid
        ),
    }
}

fn seccomp(wished: Option<&str>, keep: &CapsHashSet) -> anyhow::Result<Option<(String, String)>> {
    let (name, text) = match wished.unwrap_or("default") {
        "unconfined" => return Ok(None),
        "default" => ("default".to_owned(), DEFAULT_PROFILE.to_owned()),
        file => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read the seccomp profile `{file}`"))?;
            (file.to_owned(), text)
        }
    };
    let filter = Profile::parse(&name, &text)?.filter(keep)?;
    if name != "default" && !filter.skipped().is_empty() {
        let skipped = filter.skipped().join(", ");
        crate::notice(&format!(
            "seccomp profile `{name}`: not known here and left out: {skipped}"
        ));
    }
    Ok(Some((name, text)))
}

fn environment(wishes: &Wishes) -> Vec<(OsString, OsString)> {
    let is_kept =
        |name: &OsStr| !wishes.clean_env || KEPT_VARIABLES.iter().any(|kept| name == *kept);
    let mut environment: Vec<_> = env::vars_os().filter(|(name, _)| is_kept(name)).collect();
    for given in &wishes.env {
        let bytes = given.as_bytes();
        let split = bytes.iter().position(|&byte| byte == b'=');
        let (name, value) = match split.and_then(|at| bytes.split_at_checked(at)) {
            Some((name, value)) => {
                let value = value.strip_prefix(b"=").unwrap_or(value);
                (
                    OsStr::from_bytes(name),
                    Some(OsStr::from_bytes(value).to_owned()),
                )
            }
            None => (given.as_os_str(), env::var_os(given)),
        };
        environment.retain(|(known, _)| known != name);
        environment.extend(value.map(|value| (name.to_owned(), value)));
    }
    environment
}

/// Looks for a program as a shell does, in the caller's view. The path has no link and no `..` in it: it is
/// where the file stands, and so where a mount of it stands.
fn find(name: &OsStr, environment: &[(OsString, OsString)]) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return fs::canonicalize(name).ok().filter(|path| path.is_file());
    }
    let path = environment.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value);
    let folders = env::split_paths(path).collect::<Vec<_>>();
    folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .and_then(|path| fs::canonicalize(path).ok())
}

/// Folders before what lies in them, so that none hides another.
fn existing(paths: &[PathBuf], flag: &str) -> anyhow::Result<Vec<PathBuf>> {
    let real = paths
        .iter()
        .map(|path| fs::canonicalize(path).with_context(|| format!("{flag} `{}`", path.display())));
    let mut real = real.collect::<Result<Vec<_>, _>>()?;
    real.sort();
    Ok(real)
}

/// Where programs are looked for if nobody says.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const KEPT_VARIABLES: [&str; 4] = ["PATH", "HOME", "TERM", "LANG"];
const TMP_SIZE: u64 = 64 << 20;
const DEFAULT_PROFILE: &str = include_str!("../../seccomp/run.json");
