//! Seccomp filters from profiles in the form of Docker and the OCI runtime specification.
//!
//! Three steps: a [`Profile`] is what was written, a [`Filter`] is what it means on this machine, and
//! [`Filter::install`] binds the process to it for good.
//!
//! Where entries of a profile contradict each other for one call, the stricter action wins. A call that is
//! newer than the newest one that the profile names gets `ENOSYS` where the profile would say `EPERM`: its
//! author did not know of it, and C libraries then take the older call.

mod compile;
mod document;

use caps::CapsHashSet;
use seccompiler::BpfProgram;

use self::document::{Action, Architecture, Document, Entry};

/// A profile as it was written.
#[derive(Debug, Clone)]
pub struct Profile {
    name: String,
    document: Document,
}

impl Profile {
    /// Reads a profile; `name` is how errors call it, mostly its file.
    ///
    /// # Errors
    /// A key, an action or an operator that is not known, and what is no JSON; with line and column.
    pub fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        let document = serde_json::from_str(text)
            .map_err(|error| ProfileError::new(name, ProfileMistake::Form(error)))?;
        Ok(Self {
            name: name.to_owned(),
            document,
        })
    }

    /// The least profile that allows these calls, and refuses all others.
    ///
    /// Numbers that have no name here are left out.
    pub fn allowing(calls: impl IntoIterator<Item = u64>, comment: &str) -> Self {
        let mut names: Vec<String> = calls.into_iter().filter_map(compile::name_of).collect();
        names.extend(ALWAYS.map(str::to_owned));
        names.sort();
        names.dedup();
        let entry = Entry {
            names,
            action: Action::Allow,
            comment: Some("What was called.".to_owned()),
            ..Entry::default()
        };
        let architecture = Architecture {
            architecture: compile::OWN_ARCHITECTURE.to_owned(),
            sub_architectures: Some(Vec::new()),
        };
        Self {
            name: "learnt".to_owned(),
            document: Document {
                comment: Some(comment.to_owned()),
                default_action: Action::Errno,
                arch_map: vec![architecture],
                syscalls: vec![entry],
                ..Document::default()
            },
        }
    }

    /// The number of a call on this processor.
    pub fn number(name: &str) -> Option<u64> {
        compile::number_of(name)
    }

    /// The profile as a file.
    ///
    /// # Errors
    /// None that is known.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(&self.document).map(|text| text + "\n")
    }

    /// How many calls the profile names, each as often as it stands there.
    pub fn names(&self) -> usize {
        let entries = self.document.syscalls.iter();
        entries
            .map(|entry| entry.names.len() + usize::from(entry.name.is_some()))
            .sum()
    }

    /// Binds all threads of this process, as one that needs no capability.
    ///
    /// # Errors
    /// The profile's and the kernel's; callers do not go on.
    pub fn enforce(&self) -> Result<(), NotEnforced> {
        Ok(self.filter(&CapsHashSet::new())?.install()?)
    }

    /// Makes the filter for this kernel, for a process that keeps `capabilities`.
    ///
    /// # Errors
    /// What the profile says and the kernel cannot do.
    pub fn filter(&self, capabilities: &CapsHashSet) -> Result<Filter, ProfileError> {
        compile::filter(&self.document, capabilities)
            .map_err(|mistake| ProfileError::new(&self.name, mistake))
    }
}

/// A filter that does not stand.
#[derive(Debug, thiserror::Error)]
pub enum NotEnforced {
    /// What is written cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] crate::HardenError),
}

/// A filter that is ready for the kernel.
#[derive(Debug, Clone)]
pub struct Filter {
    program: BpfProgram,
    skipped: Vec<String>,
}

impl Filter {
    /// Names of calls that this kernel or processor does not have. An allowance for them allows nothing,
    /// and a refusal of them refuses nothing.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Binds all threads of the process, and whatever they start. It cannot be undone; `no_new_privs` comes
    /// with it.
    ///
    /// # Errors
    /// The kernel's own; callers do not go on.
    pub fn install(&self) -> Result<(), crate::HardenError> {
        seccompiler::apply_filter_all_threads(&self.program)
            .map_err(|error| crate::HardenError::new("install the seccomp filter", &error))
    }
}

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("seccomp profile `{name}`: {mistake}")]
pub struct ProfileError {
    name: String,
    mistake: ProfileMistake,
}

impl ProfileError {
    fn new(name: &str, mistake: ProfileMistake) -> Self {
        Self {
            name: name.to_owned(),
            mistake,
        }
    }
}

/// What is wrong with a profile.
#[derive(Debug, thiserror::Error)]
enum ProfileMistake {
    #[error("{0}")]
    Form(serde_json::Error),
    #[error("`architectures` and `archMap` are two ways to say the same; keep one")]
    TwoArchitectures,
    #[error("it is for {listed} and this machine is `{own}`; add it to `archMap`")]
    OtherArchitecture { listed: String, own: &'static str },
    #[error("syscalls[{0}]: write `name` or `names`, one of them")]
    Names(usize),
    #[error("syscalls[{entry}]: argument {index} does not exist; system calls have 0 to 5")]
    Argument { entry: usize, index: u8 },
    // runc takes two comparisons of one argument for alternatives, the specification for both.
    #[error("syscalls[{entry}]: argument {index} is compared twice; write two entries")]
    ArgumentTwice { entry: usize, index: u8 },
    #[error("syscalls[{entry}]: `{text}` is no kernel version; write `5.10`")]
    Kernel { entry: usize, text: String },
    #[error("{place}: {number} is no error number; they end at {MAX_ERRNO}")]
    Errno { place: String, number: u32 },
    #[error("syscalls[{0}]: an error number goes with SCMP_ACT_ERRNO and SCMP_ACT_TRACE alone")]
    ErrnoWithoutUse(usize),
    #[error("it cannot be compiled: {0}")]
    Compile(seccompiler::BackendError),
}

/// What every program needs to end, and to return from a signal, seen or not while it was watched.
const ALWAYS: [&str; 4] = ["exit", "exit_group", "restart_syscall", "rt_sigreturn"];

/// The kernel cuts larger ones.
const MAX_ERRNO: u32 = 4095;
