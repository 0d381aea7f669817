//! Limits of control groups, of v1, v2 and hybrid machines.
//!
//! What counts is the way from the process' group to the top: a limit of any group on it holds. Each
//! controller is in one hierarchy, an old one of its own or the unified one. Spec: the kernel's
//! admin-guide/cgroup-v1 and cgroup-v2.

use std::path::{Path, PathBuf};

use super::{finding::Verdict, host::Hierarchy};
use crate::attest::{
    AttestFailed,
    cgroup::Groups,
    reading::{ReadError, read_text},
};

/// Where the limits of a process are to be read.
#[derive(Debug)]
pub(super) struct Limits<'a> {
    pub(super) groups: &'a Groups,
    /// As the agent has them mounted.
    pub(super) hierarchies: &'a [Hierarchy],
}

/// One kind of limit.
#[derive(Debug)]
pub(super) struct Kind {
    what: &'static str,
    controller: &'static str,
    /// The files of v1 and of v2 that hold it, and what their texts say.
    old: (&'static [&'static str], Reader),
    unified: (&'static str, Reader),
}

/// The limit that a text tells; none where it tells that there is none.
type Reader = fn(&str) -> Option<String>;

/// The group of a process, for one controller.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) is_unified: bool,
    /// The topmost group that the agent sees.
    top: PathBuf,
    /// The names from there to the group.
    below: String,
}

impl Place {
    /// The folders from the group to the top.
    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let own = match self.below.as_str() {
            "" => self.top.clone(),
            below => self.top.join(below),
        };
        let depth = Path::new(&self.below).components().count();
        let folders =
            std::iter::successors(Some(own), |folder| folder.parent().map(Path::to_owned));
        folders.take(depth + 1)
    }

    /// The path of a file of the group itself.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.top.join(&self.below).join(name)
    }
}

impl Limits<'_> {
    /// Where the groups of a controller are; none where the agent does not see them.
    pub(super) fn place(&self, controller: &str) -> Option<Place> {
        let old = self.groups.path_of(controller);
        let path = old.or_else(|| self.groups.unified_path())?;
        let is_it = |hierarchy: &&Hierarchy| match (&hierarchy.controllers, old) {
            (Some(controllers), Some(_)) => controllers.iter().any(|name| name == controller),
            (None, None) => true,
            _ => false,
        };
        let mut hierarchies = self.hierarchies.iter().filter(is_it);
        hierarchies.find_map(|hierarchy| {
            let root = hierarchy.root.trim_end_matches('/');
            let below = path.strip_prefix(root)?;
            let below = match below.strip_prefix('/') {
                Some(below) => below,
                None => below.is_empty().then_some(below)?,
            };
            let is_outside = below.split('/').any(|name| name == "..");
            (!is_outside).then(|| Place {
                is_unified: old.is_none(),
                top: hierarchy.point.clone(),
                below: below.to_owned(),
            })
        })
    }

    /// # Errors
    /// The agent lacks what it needs to look.
    pub(super) fn judge(&self, kind: &Kind) -> Result<Verdict, AttestFailed> {
        let Some(place) = self.place(kind.controller) else {
            return Ok(self.not_seen(kind));
        };
        let (files, read) = match place.is_unified {
            true => (std::slice::from_ref(&kind.unified.0), kind.unified.1),
            false => kind.old,
        };
        let mut is_there = false;
        for folder in place.folders() {
            for file in files {
                let path = folder.join(file);
                match read_text(&path).map_err(ReadError::from) {
                    Ok(text) => {
                        is_there = true;
                        if let Some(limit) = read(text.trim()) {
                            return Ok(Verdict::pass(format!("at most {limit}")));
                        }
                    }
                    // The top has most files on no kernel.
                    Err(ReadError::Absent) => {}
                    Err(ReadError::Refused) => {
                        let why = format!("`{}` may not be read", path.display());
                        return Ok(Verdict::unknown(why));
                    }
                    Err(ReadError::Lack(lack)) => return Err(lack.into()),
                }
            }
        }
        let is_counted = is_there || place.is_unified || place.below.is_empty();
        Ok(match is_counted {
            true => Verdict::fail(format!("no limit of {}", kind.what)),
            false => Verdict::unknown(format!("the kernel does not count {}", kind.what)),
        })
    }

    /// Does the process' set of CPUs lack one that the machine has?
    ///
    /// # Errors
    /// The agent lacks what it needs to look.
    pub(super) fn cpus(&self) -> Result<Verdict, AttestFailed> {
        let Some(place) = self.place("cpuset") else {
            return Ok(Verdict::unknown("the agent sees no control group for CPUs"));
        };
        let file = match place.is_unified {
            true => "cpuset.cpus.effective",
            false => "cpuset.effective_cpus",
        };
        let read = |folder: &Path| match read_text(&folder.join(file)).map_err(ReadError::from) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(ReadError::Lack(lack)) => Err(AttestFailed::from(lack)),
            Err(_) => Ok(None),
        };
        let mut own = None;
        for folder in place.folders() {
            own = read(&folder)?;
            if own.is_some() {
                break;
            }
        }
        let (Some(own), Some(all)) = (own, read(&place.top)?) else {
            return Ok(Verdict::unknown(
                "the CPUs of its control group cannot be read",
            ));
        };
        Ok(match own == all {
            true => Verdict::fail("it may use every CPU"),
            false => Verdict::pass(format!("CPUs {own} of {all}")),
        })
    }

    fn not_seen(&self, kind: &Kind) -> Verdict {
        let paths = self.groups.path_of(kind.controller);
        match paths.or_else(|| self.groups.unified_path()) {
            Some(_) => Verdict::unknown(format!(
                "the agent does not see the control group for {}; run it with the host's control groups",
                kind.what
            )),
            None => Verdict::unknown(format!(
                "the kernel has no control groups for {}",
                kind.what
            )),
        }
    }
}

/// Bytes, as v1 writes them: none is a number that no machine has.
fn bytes(text: &str) -> Option<String> {
    let limit: u64 = text.parse().ok()?;
    (limit < NO_LIMIT_BYTES).then(|| format!("{limit} bytes"))
}

fn bytes_or_max(text: &str) -> Option<String> {
    let limit: u64 = text.parse().ok()?;
    Some(format!("{limit} bytes"))
}

fn number_or_max(text: &str) -> Option<String> {
    let limit: u64 = text.parse().ok()?;
    Some(format!("{limit} processes"))
}

/// Microseconds of each period, -1 for none.
fn quota(text: &str) -> Option<String> {
    let quota: u64 = text.parse().ok()?;
    Some(format!("{quota} microseconds of each period"))
}

fn quota_and_period(text: &str) -> Option<String> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    Some(format!("{quota} of each {period} microseconds"))
}

/// `major:minor` and a rate on each line; no line for what is not limited.
fn rates(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.replace('\n', ", "))
}

pub(super) const MEMORY: Kind = Kind {
    what: "memory",
    controller: "memory",
    old: (&["memory.limit_in_bytes"], bytes),
    unified: ("memory.max", bytes_or_max),
};
pub(super) const PIDS: Kind = Kind {
    what: "processes",
    controller: "pids",
    old: (&["pids.max"], number_or_max),
    unified: ("pids.max", number_or_max),
};
pub(super) const CPU: Kind = Kind {
    what: "CPU time",
    controller: "cpu",
    old: (&["cpu.cfs_quota_us"], quota),
    unified: ("cpu.max", quota_and_period),
};
/// v1 counts memory and swap together, v2 swap alone.
pub(super) const SWAP: Kind = Kind {
    what: "swap",
    controller: "memory",
    old: (&["memory.memsw.limit_in_bytes"], bytes),
    unified: ("memory.swap.max", bytes_or_max),
};
pub(super) const IO: Kind = Kind {
    what: "reads and writes",
    controller: "blkio",
    old: (
        &[
            "blkio.throttle.read_bps_device",
            "blkio.throttle.write_bps_device",
            "blkio.throttle.read_iops_device",
            "blkio.throttle.write_iops_device",
        ],
        rates,
    ),
    unified: ("io.max", rates),
};

/// v1 writes 9223372036854771712 where there is no limit; no machine has so much.
const NO_LIMIT_BYTES: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::{
        super::finding::Outcome, CPU, Groups, Hierarchy, IO, Kind, Limits, MEMORY, PIDS, SWAP,
    };

    /// Machines of files.
    struct Machine {
        folder: tempfile::TempDir,
        groups: Groups,
        hierarchies: Vec<Hierarchy>,
    }

    impl Machine {
        fn new(groups: &str, mounts: &[(&str, &str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let hierarchies = mounts.iter().map(|(controllers, root, point)| Hierarchy {
                controllers: (!controllers.is_empty())
                    .then(|| controllers.split(',').map(str::to_owned).collect()),
                root: (*root).to_owned(),
                point: folder.path().join(point),
            });
            Self {
                hierarchies: hierarchies.collect(),
                groups: Groups::parse(groups).unwrap(),
                folder,
            }
        }

        fn write(&self, path: &str, text: &str) -> PathBuf {
            let path = self.folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        }

        fn limits(&self) -> Limits<'_> {
            Limits {
                groups: &self.groups,
                hierarchies: &self.hierarchies,
            }
        }

        #[track_caller]
        fn check(&self, kind: &Kind, outcome: Outcome, why: &str) {
            let verdict = self.limits().judge(kind).unwrap();
            assert_eq!((verdict.outcome, &*verdict.why), (outcome, why));
        }
    }

    const V2: (&str, &str, &str) = ("", "/", "unified");

    #[test]
    fn limits_of_v2_hold_wherever_they_are_on_the_way_up() {
        let machine = Machine::new("0::/pods/one/app\n", &[V2]);
        machine.write("unified/pods/one/app/memory.max", "max\n");
        machine.write("unified/pods/one/app/pids.max", "64\n");
        machine.write("unified/pods/one/app/cpu.max", "max 100000\n");
        machine.check(&MEMORY, Outcome::Fail, "no limit of memory");
        machine.check(&PIDS, Outcome::Pass, "at most 64 processes");
        machine.check(&CPU, Outcome::Fail, "no limit of CPU time");
        machine.check(&SWAP, Outcome::Fail, "no limit of swap");
        machine.write("unified/pods/one/memory.max", "67108864\n");
        machine.write("unified/pods/one/memory.swap.max", "0\n");
        machine.write("unified/pods/cpu.max", "50000 100000\n");
        machine.write("unified/io.max", "254:0 rbps=1048576 wbps=max\n");
        machine.check(&MEMORY, Outcome::Pass, "at most 67108864 bytes");
        machine.check(&SWAP, Outcome::Pass, "at most 0 bytes");
        machine.check(
            &CPU,
            Outcome::Pass,
            "at most 50000 of each 100000 microseconds",
        );
        machine.check(&IO, Outcome::Pass, "at most 254:0 rbps=1048576 wbps=max");
        // A neighbour's limit is none of ours.
        let other = Machine::new("0::/pods/other\n", &[V2]);
        other.write("unified/pods/one/memory.max", "1\n");
        other.check(&MEMORY, Outcome::Fail, "no limit of memory");
    }

    #[test]
    fn limits_of_v1_are_in_the_hierarchy_of_their_controller() {
        let groups =
            "4:memory:/docker/a\n8:pids:/docker/a\n2:cpu,cpuacct:/docker/a\n7:blkio:/docker/a\n";
        let mounts = [
            ("rw,memory", "/", "memory"),
            ("rw,pids", "/", "pids"),
            ("rw,cpu,cpuacct", "/", "cpu"),
            ("rw,blkio", "/", "blkio"),
        ];
        let machine = Machine::new(groups, &mounts);
        let limit = "memory/docker/a/memory.limit_in_bytes";
        machine.write(limit, "9223372036854771712\n");
        machine.write("pids/docker/a/pids.max", "max\n");
        machine.write("cpu/docker/a/cpu.cfs_quota_us", "-1\n");
        machine.write("blkio/docker/a/blkio.throttle.read_bps_device", "");
        machine.check(&SWAP, Outcome::Unknown, "the kernel does not count swap");
        for kind in [&MEMORY, &PIDS, &CPU, &IO] {
            let why = format!("no limit of {}", kind.what);
            machine.check(kind, Outcome::Fail, &why);
        }
        machine.write(limit, "67108864\n");
        machine.write("memory/docker/a/memory.memsw.limit_in_bytes", "134217728\n");
        machine.write("pids/docker/a/pids.max", "64\n");
        machine.write("cpu/docker/cpu.cfs_quota_us", "50000\n");
        let rates = "blkio/docker/a/blkio.throttle.write_iops_device";
        machine.write(rates, "254:0 10\n8:0 20\n");
        machine.check(&MEMORY, Outcome::Pass, "at most 67108864 bytes");
        machine.check(&SWAP, Outcome::Pass, "at most 134217728 bytes");
        machine.check(&PIDS, Outcome::Pass, "at most 64 processes");
        machine.check(
            &CPU,
            Outcome::Pass,
            "at most 50000 microseconds of each period",
        );
        machine.check(&IO, Outcome::Pass, "at most 254:0 10, 8:0 20");
    }

    #[test]
    fn on_a_hybrid_machine_each_controller_is_where_it_is() {
        let groups = "4:memory:/docker/a\n0::/docker/a\n";
        let mounts = [("rw,memory", "/", "memory"), V2];
        let machine = Machine::new(groups, &mounts);
        // The unified hierarchy does not have this one, whatever stands there.
        machine.write("unified/docker/a/memory.max", "1\n");
        machine.write("unified/docker/a/pids.max", "7\n");
        machine.write(
            "memory/docker/a/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        machine.check(&MEMORY, Outcome::Fail, "no limit of memory");
        machine.check(&PIDS, Outcome::Pass, "at most 7 processes");
    }

    #[test]
    fn a_group_that_the_agent_does_not_see_is_unknown() {
        let unseen = "the agent does not see the control group for memory; run it with the host's control groups";
        for (groups, root) in [
            ("0::/../other\n", "/"),
            ("0::/docker/a\n", "/docker/b"),
            ("0::/docker/ab\n", "/docker/a"),
            ("4:memory:/docker/a\n0::/docker/a\n", "/"),
        ] {
            let machine = Machine::new(groups, &[("", root, "unified")]);
            machine.write("unified/memory.max", "1\n");
            machine.check(&MEMORY, Outcome::Unknown, unseen);
        }
        // A part of the tree is mounted, and the group is in it.
        let machine = Machine::new("0::/docker/a\n", &[("", "/docker", "unified")]);
        machine.write("unified/a/memory.max", "1\n");
        machine.check(&MEMORY, Outcome::Pass, "at most 1 bytes");
        let none = Machine::new("1:name=systemd:/\n", &[V2]);
        let why = "the kernel has no control groups for memory";
        none.check(&MEMORY, Outcome::Unknown, why);
    }

    #[test]
    fn cpus_are_compared_with_those_of_the_machine() {
        let machine = Machine::new("0::/app\n", &[V2]);
        let outcome = || machine.limits().cpus().unwrap().outcome;
        assert_eq!(outcome(), Outcome::Unknown);
        machine.write("unified/cpuset.cpus.effective", "0-1\n");
        assert_eq!(outcome(), Outcome::Fail, "the controller is off below");
        machine.write("unified/app/cpuset.cpus.effective", "0-1\n");
        assert_eq!(outcome(), Outcome::Fail);
        machine.write("unified/app/cpuset.cpus.effective", "0\n");
        assert_eq!(outcome(), Outcome::Pass);
    }
}
