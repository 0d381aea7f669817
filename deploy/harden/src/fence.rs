//! Landlock: what a process may do with files, by paths, whoever owns them and whatever rights it has.
//!
//! The kernel knows more of it with every ABI. What it does not know is left out and told by
//! [`Reached`]; a caller who needs a certain ABI says so and gets an error where it is not there.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, Scope,
};

use crate::HardenError;

/// What stays possible. Descriptors that are open already are not bound by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fence {
    /// Where files may be read and folders listed; everywhere, if nothing is said.
    pub read: Option<Vec<PathBuf>>,
    /// Where programs may be executed.
    pub execute: Vec<PathBuf>,
    /// Where files may be written, made, moved and removed.
    pub write: Vec<PathBuf>,
    /// May processes outside of the fence be sent signals? They always may where the kernel's ABI is below 6.
    pub may_signal_others: bool,
    /// Are abstract Unix sockets of processes outside out of reach? They are not where the kernel's ABI is below 6.
    pub scopes_abstract_sockets: bool,
    /// The lowest ABI that will do; zero if the fence may be missing.
    pub at_least: u32,
}

/// How much of a fence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// The kernel has no Landlock, or does not use it.
    Nothing,
    /// All that is known of this ABI.
    Abi(u32),
}

impl std::fmt::Display for Reached {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => formatter.write_str("none, the kernel has no Landlock"),
            Self::Abi(abi) => write!(formatter, "ABI {abi}"),
        }
    }
}

impl Fence {
    /// Puts the fence around the calling thread and all that it starts. It cannot be undone;
    /// `no_new_privs` comes with it.
    ///
    /// From then on the thread also looks into no process outside of it: not at its memory, nor at its
    /// namespaces, nor at the program it runs.
    ///
    /// # Errors
    /// A path that cannot be opened, an ABI that is too low, and the kernel's own; callers do not go on.
    pub fn put_up(&self) -> Result<Reached, HardenError> {
        let reached = match self.restrict()? {
            LandlockStatus::Available { effective_abi, .. } => Reached::Abi(effective_abi as u32),
            _ => Reached::Nothing,
        };
        let has_enough = match reached {
            Reached::Nothing => self.at_least == 0,
            Reached::Abi(abi) => abi >= self.at_least,
        };
        if !has_enough {
            let missing = format!(
                "ABI {} is asked for and the kernel has {reached}",
                self.at_least
            );
            return Err(failed(missing));
        }
        Ok(reached)
    }

    fn restrict(&self) -> Result<LandlockStatus, HardenError> {
        let changes = AccessFs::from_write(KNOWN);
        let reads = AccessFs::ReadFile | AccessFs::ReadDir;
        let mut handled = changes | AccessFs::Execute;
        if self.read.is_some() {
            handled |= reads;
        }
        let mut rules = Ruleset::default().handle_access(handled).map_err(failed)?;
        if !self.may_signal_others {
            rules = rules.scope(Scope::Signal).map_err(failed)?;
        }
        if self.scopes_abstract_sockets {
            rules = rules.scope(Scope::AbstractUnixSocket).map_err(failed)?;
        }
        let mut rules = rules.create().map_err(failed)?;
        for path in self.read.iter().flatten() {
            rules = allow(rules, path, reads)?;
        }
        for path in &self.execute {
            rules = allow(rules, path, AccessFs::Execute.into())?;
        }
        for path in &self.write {
            rules = allow(rules, path, changes)?;
        }
        Ok(rules.restrict_self().map_err(failed)?.landlock)
    }
}

/// Folders take all rights, files only those that a file has.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, HardenError> {
    let of_path = |error: &dyn std::fmt::Display| failed(format!("`{}`: {error}", path.display()));
    let access = match path.is_dir() {
        true => access,
        false => access & AccessFs::from_file(KNOWN),
    };
    let beneath = PathFd::new(path).map_err(|error| of_path(&error))?;
    rules
        .add_rule(PathBeneath::new(beneath, access))
        .map_err(|error| of_path(&error))
}

fn failed(cause: impl std::fmt::Display) -> HardenError {
    HardenError::new("put up the Landlock fence", &cause)
}

/// The newest ABI whose rights are told apart here. Later ones add nothing that is used.
const KNOWN: ABI = ABI::V7;
