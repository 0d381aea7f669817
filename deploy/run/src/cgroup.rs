//! Limits by control groups: where one can be made (pure), and the making, filling and removing.
//!
//! Each controller is looked for where the kernel mounted it: in a hierarchy of its own (version 1), in
//! the unified one (version 2), or some here and some there (hybrid). In version 2 a group that holds
//! processes cannot give controllers to its children, so the nearest ancestor that can is taken.

use std::{
    fs,
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rustix::fs::FlockOperation;

use crate::size::PERIOD;

/// What a program may use at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes, swap included.
    pub(crate) memory: Option<u64>,
    /// Microseconds of each [`PERIOD`].
    pub(crate) quota: Option<u64>,
    /// Processes and threads.
    pub(crate) pids: Option<u64>,
}

impl Limits {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn controllers(&self) -> impl Iterator<Item = &'static str> {
        let wanted = [
            ("memory", self.memory.is_some()),
            ("cpu", self.quota.is_some()),
            ("pids", self.pids.is_some()),
        ];
        wanted
            .into_iter()
            .filter(|(_, is)| *is)
            .map(|(name, _)| name)
    }

    /// What is written for a controller: name, value, and whether a kernel may lack it.
    fn files(&self, controller: &str, version: Version) -> Vec<(&'static str, String, Need)> {
        use {
            Need::Always,
            Need::IfThere,
            Version::{One, Two},
        };
        let number = |value: Option<u64>| value.unwrap_or_default().to_string();
        match (controller, version) {
            ("memory", One) => vec![
                ("memory.limit_in_bytes", number(self.memory), Always),
                ("memory.memsw.limit_in_bytes", number(self.memory), IfThere),
            ],
            ("memory", Two) => vec![
                ("memory.max", number(self.memory), Always),
                ("memory.swap.max", "0".to_owned(), IfThere),
            ],
            ("cpu", One) => vec![
                ("cpu.cfs_period_us", PERIOD.to_string(), Always),
                ("cpu.cfs_quota_us", number(self.quota), Always),
            ],
            ("cpu", Two) => vec![(
                "cpu.max",
                format!("{} {PERIOD}", number(self.quota)),
                Always,
            )],
            _ => vec![("pids.max", number(self.pids), Always)],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    IfThere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where a controller is, and which of its groups is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
    own: PathBuf,
}

/// The groups of one run; removed when dropped.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    folders: Vec<PathBuf>,
    doors: Vec<fs::File>,
    claims: Vec<fs::File>,
}

impl Groups {
    /// Makes groups with these limits under our own ones.
    ///
    /// # Errors
    /// The controller and the folder that cannot be had.
    pub(crate) fn make(limits: &Limits) -> anyhow::Result<Self> {
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("`/proc/self/mountinfo`")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("`/proc/self/cgroup`")?;
        let name = format!("{PREFIX}{}", std::process::id());
        let mut groups = Self::default();
        let mut unified: Option<PathBuf> = None;
        let wanted: Vec<&str> = limits.controllers().collect();
        for controller in &wanted {
            let hierarchy = hierarchy(controller, &mounts, &own, |mount| {
                let told = fs::read_to_string(mount.join("cgroup.controllers"));
                told.unwrap_or_default()
            })
            .with_context(|| {
                format!("no control groups with the controller `{controller}` are mounted")
            })?;
            let folder = match hierarchy.version {
                Version::One => groups.add(&hierarchy.own, &name)?,
                Version::Two => match &unified {
                    Some(folder) => folder.clone(),
                    None => {
                        let made = groups.add_unified(&hierarchy, &wanted, &name)?;
                        unified.insert(made).clone()
                    }
                },
            };
            for (file, value, need) in limits.files(controller, hierarchy.version) {
                let path = folder.join(file);
                match fs::write(&path, &value) {
                    Err(_) if need == Need::IfThere && !path.exists() => {}
                    outcome => outcome
                        .with_context(|| format!("cannot write {value} to `{}`", path.display()))?,
                }
            }
        }
        Ok(groups)
    }

    /// Moves a process into all groups.
    ///
    /// # Errors
    /// The kernel's own.
    pub(crate) fn take(&mut self, process: u32) -> anyhow::Result<()> {
        for door in &mut self.doors {
            door.write_all(process.to_string().as_bytes())
                .context("cannot move the program into its control group")?;
        }
        Ok(())
    }

    /// How many processes the kernel ended for want of memory.
    pub(crate) fn killed_for_memory(&self) -> u64 {
        let files = ["memory.events", "memory.oom_control"];
        let paths = self
            .folders
            .iter()
            .flat_map(|folder| files.map(|file| folder.join(file)));
        let texts = paths.filter_map(|path| fs::read_to_string(path).ok());
        let counted = |text: String| {
            let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            line.and_then(|number| number.trim().parse::<u64>().ok())
        };
        texts.filter_map(counted).sum()
    }

    fn add(&mut self, parent: &Path, name: &str) -> anyhow::Result<PathBuf> {
        sweep(parent);
        let folder = parent.join(name);
        fs::create_dir(&folder)
            .with_context(|| format!("cannot make the control group `{}`", folder.display()))?;
        self.folders.push(folder.clone());
        let open = |path: &Path, options: &fs::OpenOptions| {
            let opened = options.open(path);
            opened.with_context(|| format!("cannot open `{}`", path.display()))
        };
        // As long as this process lives, nobody takes the group for one that was left behind.
        let claim = open(&folder, fs::OpenOptions::new().read(true))?;
        rustix::fs::flock(&claim, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("cannot claim `{}`", folder.display()))?;
        self.claims.push(claim);
        let door = folder.join("cgroup.procs");
        self.doors
            .push(open(&door, fs::OpenOptions::new().write(true))?);
        Ok(folder)
    }

    fn add_unified(
        &mut self,
        hierarchy: &Hierarchy,
        wanted: &[&str],
        name: &str,
    ) -> anyhow::Result<PathBuf> {
        let mut failed = None;
        for parent in hierarchy.own.ancestors() {
            if !parent.starts_with(&hierarchy.mount) {
                break;
            }
            let outcome = give(parent, wanted).and_then(|()| self.add(parent, name));
            match outcome {
                Ok(folder) => return Ok(folder),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => bail!("`{}` is no control group", hierarchy.own.display()),
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for folder in &self.folders {
            // What cannot go yet is swept up by a later run.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Takes away groups of runs that were killed: nobody claims them, and nobody is in them.
fn sweep(parent: &Path) {
    let listed = fs::read_dir(parent).into_iter().flatten().flatten();
    let named = |entry: &fs::DirEntry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
    for entry in listed.filter(named) {
        let claim = fs::File::open(entry.path());
        if claim.is_ok_and(|claim| {
            rustix::fs::flock(&claim, FlockOperation::NonBlockingLockExclusive).is_ok()
        }) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Lets the children of a group have controllers.
fn give(parent: &Path, wanted: &[&str]) -> anyhow::Result<()> {
    let path = parent.join("cgroup.subtree_control");
    let given = fs::read_to_string(&path).unwrap_or_default();
    let here = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    let has = |text: &str, name: &str| text.split_whitespace().any(|one| one == name);
    for controller in wanted
        .iter()
        .filter(|name| has(&here, name) && !has(&given, name))
    {
        fs::write(&path, format!("+{controller}"))
            .with_context(|| format!("cannot write +{controller} to `{}`", path.display()))?;
    }
    Ok(())
}

/// Finds a controller. Pure, but for `controllers`, which tells what a unified mount has.
fn hierarchy(
    controller: &str,
    mounts: &str,
    own: &str,
    controllers: impl Fn(&Path) -> String,
) -> Option<Hierarchy> {
    let group = |version: Version| {
        own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            let is_it = match version {
                Version::One => names.split(',').any(|name| name == controller),
                Version::Two => names.is_empty(),
            };
            is_it.then_some(path)
        })
    };
    mounts.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, mount) = (front.next()?, Path::new(front.next()?));
        let mut back = back.split(' ');
        let kind = back.next()?;
        let options = back.nth(1)?;
        let version = match kind {
            "cgroup" if options.split(',').any(|name| name == controller) => Version::One,
            "cgroup2"
                if controllers(mount)
                    .split_whitespace()
                    .any(|name| name == controller) =>
            {
                Version::Two
            }
            _ => return None,
        };
        // What is mounted may be a part of the hierarchy, and then ours lies in it or is not seen.
        let own = Path::new(group(version)?).strip_prefix(root).ok()?;
        Some(Hierarchy {
            version,
            mount: mount.to_owned(),
            own: mount.join(own),
        })
    })
}

/// What our groups' names begin with.
const PREFIX: &str = "postern-run-";

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "4:memory:/a/b\n5:cpu,cpuacct:/\n0::/user.slice/x.scope\n";

    fn found(controller: &str, mounts: &str) -> Option<(Version, PathBuf)> {
        hierarchy(controller, mounts, OWN, |_| "io pids".to_owned())
            .map(|found| (found.version, found.own))
    }

    #[test]
    fn controllers_are_found_in_either_version() {
        let memory = "/sys/fs/cgroup/memory/a/b".into();
        assert_eq!(found("memory", MOUNTS), Some((Version::One, memory)));
        let cpu = "/sys/fs/cgroup/cpu,cpuacct/".into();
        assert_eq!(found("cpu", MOUNTS), Some((Version::One, cpu)));
        let pids = "/sys/fs/cgroup/unified/user.slice/x.scope".into();
        assert_eq!(found("pids", MOUNTS), Some((Version::Two, pids)));
        assert_eq!(found("hugetlb", MOUNTS), None);
    }

    #[test]
    fn a_part_of_a_hierarchy_shows_what_lies_in_it() {
        let inside = MOUNTS.replace("0:32 / /sys", "0:32 /a /sys");
        let memory = "/sys/fs/cgroup/memory/b".into();
        assert_eq!(found("memory", &inside), Some((Version::One, memory)));
        let elsewhere = MOUNTS.replace("0:32 / /sys", "0:32 /other /sys");
        assert_eq!(found("memory", &elsewhere), None);
    }
}
