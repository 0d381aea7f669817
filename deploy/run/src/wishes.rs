//! What is wished for, on the command line and in profiles: one set of names for both.
//!
//! A profile is YAML with the same names as the flags, in camel case. What stands on the command line
//! counts instead of the profile's word, and is added where there may be several.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use postern_policies::{
    Diagnostic,
    diagnostic::Problems,
    yaml::{Fields, Node, Value, fields, read_one},
};

use crate::size;

/// The flags.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Walls")]
pub(crate) struct Wishes {
    /// `restricted`, or a YAML file with these flags as keys
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) profile: Option<String>,

    /// A seccomp profile as Docker reads it; or `default`, or `unconfined`
    #[arg(long, value_name = "FILE")]
    pub(crate) seccomp: Option<String>,

    /// The most memory, swap included: `64m`, `1g`
    #[arg(long, short = 'm', value_name = "SIZE", value_parser = size::bytes)]
    pub(crate) memory: Option<u64>,

    /// The most processor time: `0.5` is half of one
    #[arg(long, value_name = "NUMBER", value_parser = size::processors)]
    pub(crate) cpus: Option<u64>,

    /// The most processes and threads
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) pids: Option<u64>,

    /// Goes on without control groups: `memory`, `cpus` and `pids` bind nobody
    #[arg(long)]
    pub(crate) no_limits: bool,

    /// As `ulimit` has it: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT", value_parser = size::limit)]
    pub(crate) ulimit: Vec<size::ResourceLimit>,

    /// Who the program is: UID[:GID], or `nonroot`
    #[arg(long, short = 'u', value_name = "UID[:GID]", value_parser = User::parse)]
    pub(crate) user: Option<User>,

    /// A capability that it keeps, such as `NET_BIND_SERVICE`
    #[arg(long, value_name = "NAME", value_parser = capability)]
    pub(crate) keep_cap: Vec<caps::Capability>,

    /// A file or folder that it may write to
    #[arg(long, short = 'w', value_name = "PATH")]
    pub(crate) writable: Vec<PathBuf>,

    /// A file or folder that it may read, beside the system's; `/` for all
    #[arg(long, short = 'r', value_name = "PATH")]
    pub(crate) readable: Vec<PathBuf>,

    /// The size of /tmp, which is memory
    #[arg(long, value_name = "SIZE", value_parser = size::bytes)]
    pub(crate) tmp_size: Option<u64>,

    /// The network: the caller's, or a loopback of its own
    #[arg(long, value_name = "WHICH")]
    pub(crate) net: Option<Net>,

    /// What the machine is called inside
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,

    /// Where it starts; the present folder, where that can be seen
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,

    /// A variable: NAME=VALUE, or NAME for the caller's
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,

    /// Only the variables given by `--env`, PATH, HOME, TERM and LANG
    #[arg(long)]
    pub(crate) clean_env: bool,

    /// A descriptor above 2 that stays open
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(3..))]
    pub(crate) keep_fd: Vec<i32>,

    /// Whether Landlock must be there
    #[arg(long, value_name = "HOW")]
    pub(crate) landlock: Option<Landlock>,
}

/// Who a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// Anybody but root: the caller, or [`NOBODY`] if root calls.
    NonRoot,
    /// These ids.
    Ids(u32, u32),
}

impl User {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "nonroot" {
            return Ok(Self::NonRoot);
        }
        let (user, group) = text.split_once(':').unwrap_or((text, text));
        match (user.parse(), group.parse()) {
            // The highest one means *no change* to the kernel.
            (Ok(user), Ok(group)) if user != u32::MAX && group != u32::MAX => {
                Ok(Self::Ids(user, group))
            }
            _ => Err(format!(
                "`{text}` is no user; write numbers, `1000:1000`, or `nonroot`"
            )),
        }
    }
}

/// Whose network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Net {
    /// The caller's
    Host,
    /// A namespace with nothing but a loopback
    None,
}

/// How much Landlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Landlock {
    /// No fence
    Off,
    /// As much as the kernel has
    On,
    /// An error where the kernel has none
    Required,
}

impl Wishes {
    /// Adds the profile's wishes to those of the command line.
    ///
    /// # Errors
    /// A profile that cannot be read, and every mistake in it.
    pub(crate) fn with_profile(self) -> Result<Self, Vec<String>> {
        let profile = match self.profile.as_deref() {
            None => Self::default(),
            Some("restricted") => Self::read(Path::new("restricted"), RESTRICTED.as_bytes())?,
            Some(file) => {
                let text = std::fs::read(file)
                    .map_err(|error| vec![format!("cannot read the profile `{file}`: {error}")])?;
                Self::read(Path::new(file), &text)?
            }
        };
        Ok(self.or(profile))
    }

    fn read(path: &Path, text: &[u8]) -> Result<Self, Vec<String>> {
        let told = |found: Vec<Diagnostic>| found.iter().map(ToString::to_string).collect();
        read_one(path, text, wishes).map_err(told)
    }

    fn or(self, profile: Self) -> Self {
        fn both<T>(mut first: Vec<T>, second: Vec<T>) -> Vec<T> {
            first.extend(second);
            first
        }
        Self {
            profile: self.profile,
            seccomp: self.seccomp.or(profile.seccomp),
            memory: self.memory.or(profile.memory),
            cpus: self.cpus.or(profile.cpus),
            pids: self.pids.or(profile.pids),
            no_limits: self.no_limits || profile.no_limits,
            // The last one counts, so the command line's come last.
            ulimit: both(profile.ulimit, self.ulimit),
            user: self.user.or(profile.user),
            keep_cap: both(self.keep_cap, profile.keep_cap),
            writable: both(self.writable, profile.writable),
            readable: both(self.readable, profile.readable),
            tmp_size: self.tmp_size.or(profile.tmp_size),
            net: self.net.or(profile.net),
            hostname: self.hostname.or(profile.hostname),
            workdir: self.workdir.or(profile.workdir),
            env: both(profile.env, self.env),
            clean_env: self.clean_env || profile.clean_env,
            keep_fd: both(self.keep_fd, profile.keep_fd),
            landlock: self.landlock.or(profile.landlock),
        }
    }
}

fn wishes(node: &Node, problems: &mut Problems<'_>) -> Option<Wishes> {
    let all = Fields::of(node, "the profile", &KEYS, problems)?;
    let mut read = Reader { all, problems };
    Some(Wishes {
        profile: None,
        seccomp: read.one("seccomp", |text| Ok(text.to_owned())),
        memory: read.one("memory", size::bytes),
        cpus: read.one("cpus", size::processors),
        pids: read.one("pids", |text| match text.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("`{text}` is no number of processes")),
        }),
        no_limits: read.flag("noLimits"),
        ulimit: read.many("ulimit", size::limit),
        user: read.one("user", User::parse),
        keep_cap: read.many("keepCap", capability),
        writable: read.many("writable", path),
        readable: read.many("readable", path),
        tmp_size: read.one("tmpSize", size::bytes),
        net: read.one("net", |text| Net::from_str(text, false)),
        hostname: read.one("hostname", |text| Ok(text.to_owned())),
        workdir: read.one("workdir", path),
        env: read.many("env", |text| Ok(text.into())),
        clean_env: read.flag("cleanEnv"),
        keep_fd: read.many("keepFd", |text| match text.parse() {
            Ok(number) if number > 2 => Ok(number),
            _ => Err(format!("`{text}` is no descriptor above 2")),
        }),
        landlock: read.one("landlock", |text| Landlock::from_str(text, false)),
    })
}

/// Reads keys by the parsers of the flags.
struct Reader<'n, 'p, 'f> {
    all: Fields<'n>,
    problems: &'p mut Problems<'f>,
}

impl Reader<'_, '_, '_> {
    fn one<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let node = self.all.get(name)?;
        self.parsed(node, name, &parse)
    }

    fn many<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let items = self.all.list(name, self.problems);
        let parsed = items.iter().map(|node| self.parsed(node, name, &parse));
        parsed.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    fn flag(&mut self, name: &str) -> bool {
        let node = self.all.get(name);
        node.and_then(|node| fields::boolean(node, name, self.problems))
            .unwrap_or_default()
    }

    /// Whole numbers are as good as text here.
    fn parsed<T>(
        &mut self,
        node: &Node,
        name: &str,
        parse: &impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let number;
        let text = match &node.value {
            Value::Integer(value) => {
                number = value.to_string();
                &number
            }
            _ => fields::filled(node, name, self.problems)?,
        };
        parse(text)
            .map_err(|error| self.problems.error(node.at, format!("`{name}`: {error}")))
            .ok()
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

fn capability(text: &str) -> Result<caps::Capability, String> {
    let name = caps::to_canonical(text);
    name.parse()
        .map_err(|_| format!("`{text}` is no capability; write one as `NET_BIND_SERVICE`"))
}

const KEYS: [&str; 18] = [
    "seccomp", "memory", "cpus", "pids", "noLimits", "ulimit", "user", "keepCap", "writable",
    "readable", "tmpSize", "net", "hostname", "workdir", "env", "cleanEnv", "keepFd", "landlock",
];

/// Who a program is that shall not be root.
pub(crate) const NOBODY: u32 = 65532;

const RESTRICTED: &str = include_str!("../profiles/restricted.yaml");

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Wishes, String> {
        Wishes::read(Path::new("p.yaml"), text.as_bytes()).map_err(|lines| lines.join("\n"))
    }

    #[test]
    fn restricted_reads_as_it_says() {
        let wishes = read(RESTRICTED).unwrap();
        assert_eq!(wishes.user, Some(User::NonRoot));
        assert_eq!(wishes.memory, Some(512 << 20));
        assert_eq!(wishes.cpus, Some(size::PERIOD));
        assert_eq!(wishes.net, Some(Net::None));
    }

    #[test]
    fn every_mistake_is_told_with_its_place_and_a_mend() {
        let told = read("memry: 64m\ncpus: half\nuser: root\nkeepCap: [FLY]\n").unwrap_err();
        for part in [
            "p.yaml:1:1: error: unknown field `memry` in the profile (did you mean `memory`?)",
            "p.yaml:2:7: error: `cpus`: `half` is no number of processors",
            "p.yaml:3:7: error: `user`: `root` is no user",
            "p.yaml:4:11: error: `keepCap`: `FLY` is no capability",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn the_command_line_counts_before_the_profile() {
        let flags = Wishes {
            memory: Some(1),
            writable: vec!["/a".into()],
            ..Wishes::default()
        };
        let profile = read("memory: 64m\npids: 3\nwritable: [/b]\n").unwrap();
        let both = flags.or(profile);
        assert_eq!((both.memory, both.pids), (Some(1), Some(3)));
        assert_eq!(both.writable, [PathBuf::from("/a"), "/b".into()]);
    }
}
