//! The mounts of the host, which tell what of a container's mounts is the host's, and those of control
//! groups.
//!
//! They are read again when the kernel says that they have changed, and not before: a descriptor of
//! `mountinfo` becomes ready then. Spec: proc_pid_mounts(5).

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Seek as _},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::mountinfo::{self, Device, Mount, below};
use crate::{attest::reading::ReadError, caller::ProcFolder};

/// A table of mounts that is kept up to date.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    read: Mutex<Option<(File, Arc<Mounts>)>>,
}

impl Table {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read: Mutex::default(),
        }
    }

    /// The mounts as they are now.
    pub(super) fn now(&self) -> Result<Arc<Mounts>, ReadError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((file, mounts)) = &*read
            && !has_changed(file)?
        {
            return Ok(mounts.clone());
        }
        // A change between the question and the reading is told the next time.
        let mut file = match read.take() {
            Some((file, _)) => file,
            None => File::open(&self.path)?,
        };
        let mounts = Arc::new(Mounts::parse(&text(&mut file)?).ok_or(ReadError::Refused)?);
        *read = Some((file, mounts.clone()));
        Ok(mounts)
    }
}

fn has_changed(file: &File) -> Result<bool, ReadError> {
    let mut waiting = [PollFd::new(file, PollFlags::PRI)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ready = poll(&mut waiting, Some(&now)).map_err(io::Error::from)?;
    Ok(ready > 0)
}

/// The table of a process.
///
/// # Errors
/// [`ReadError`].
pub(crate) fn table(folder: &ProcFolder) -> Result<String, ReadError> {
    Ok(text(&mut File::open(folder.join("mountinfo"))?)?)
}

/// The text of a table, from its beginning.
fn text(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_BYTES {
        let kind = io::ErrorKind::FileTooLarge;
        return Err(io::Error::new(kind, "there are too many mounts"));
    }
    // A name that is no text is somebody's, and must not hide the others.
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// The mounts of one mount namespace, by what is mounted.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    by_device: HashMap<Device, Vec<Place>>,
    control_groups: Vec<Hierarchy>,
    /// By where it is mounted, the last one of each place.
    points: Vec<(String, Device, String)>,
}

/// Where a part of a file system is mounted.
#[derive(Debug, Clone)]
struct Place {
    root: String,
    point: String,
}

/// A mounted hierarchy of control groups.
#[derive(Debug, Clone)]
pub(super) struct Hierarchy {
    /// Its controllers; none is the unified hierarchy.
    pub(super) controllers: Option<Vec<String>>,
    /// Which group is mounted, as `/proc/PID/cgroup` names it.
    pub(super) root: String,
    pub(super) point: PathBuf,
}

impl Mounts {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut all = Self::default();
        for mount in mountinfo::parse(text)? {
            let controllers = match mount.file_system {
                "cgroup" => Some(mount.options.split(',').map(str::to_owned).collect()),
                _ => None,
            };
            if matches!(mount.file_system, "cgroup" | "cgroup2") {
                all.control_groups.push(Hierarchy {
                    controllers,
                    root: mount.root.to_string(),
                    point: PathBuf::from(&*mount.point),
                });
            }
            let place = Place {
                root: mount.root.to_string(),
                point: mount.point.to_string(),
            };
            all.points
                .push((place.point.clone(), mount.device, place.root.clone()));
            all.by_device.entry(mount.device).or_default().push(place);
        }
        Some(all)
    }

    /// The hierarchies of control groups.
    pub(super) fn control_groups(&self) -> &[Hierarchy] {
        &self.control_groups
    }

    /// Is this file system mounted here at all?
    pub(super) fn knows(&self, device: Device) -> bool {
        self.by_device.contains_key(&device)
    }

    /// The paths under which the host has what a mount shows.
    ///
    /// By its most general mounts: a folder of the host that was mounted into an engine's volume is the
    /// host's still. None where the host does not show it.
    pub(super) fn paths(&self, mount: &Mount<'_>) -> Vec<String> {
        let places = self.by_device.get(&mount.device).into_iter().flatten();
        let shown = places.filter_map(|place| Some((place, below(&mount.root, &place.root)?)));
        let shown: Vec<(&Place, &str)> = shown.collect();
        let general = shown.iter().map(|(place, _)| place.root.len()).min();
        let most = |(place, _): &&(&Place, &str)| Some(place.root.len()) == general;
        let path = |(place, rest): &(&Place, &str)| match (place.point.as_str(), *rest) {
            (point, "") => point.to_owned(),
            (point, rest) => format!("{}/{rest}", point.trim_end_matches('/')),
        };
        shown.iter().filter(most).map(path).collect()
    }

    /// On which file system a path of the host lies, and where there.
    pub(super) fn place_of(&self, path: &str) -> Option<(Device, String)> {
        // The last one of the longest is on top.
        let holding = self
            .points
            .iter()
            .filter(|(point, ..)| below(path, point).is_some());
        let (point, device, root) = holding.max_by_key(|(point, ..)| point.len())?;
        let inside = match below(path, point)? {
            "" => root.clone(),
            rest => format!("{}/{rest}", root.trim_end_matches('/')),
        };
        Some((*device, inside))
    }
}

/// A node with thousands of containers has less.
const MAX_BYTES: u64 = 16 << 20;
const USUAL_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::{Mounts, Table, mountinfo};

    const HOST: &str = "\
        27 1 254:0 / / rw - ext4 /dev/vda rw\n\
        28 27 0:25 / /run rw - tmpfs tmpfs rw\n\
        29 27 254:0 /var/lib/docker /var/lib/docker rw - ext4 /dev/vda rw\n\
        30 27 254:1 / /data rw - ext4 /dev/vdb rw\n\
        31 27 254:1 / /var/lib/docker/volumes/fake/_data rw - ext4 /dev/vdb rw\n\
        32 27 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 27 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[track_caller]
    fn check(mounted: &str, expected: &[&str]) {
        let host = Mounts::parse(HOST).unwrap();
        let line = format!("9 8 {mounted} /x rw - any any rw");
        let mounts = mountinfo::parse(&line).unwrap();
        assert_eq!(host.paths(&mounts[0]), expected, "{mounted}");
    }

    #[test]
    fn what_a_mount_shows_is_found_on_the_host() {
        check("254:0 /", &["/"]);
        check("254:0 /etc", &["/etc"]);
        let volume = "/var/lib/docker/volumes/v/_data";
        check(&format!("254:0 {volume}"), &[volume]);
        check("0:25 /docker.sock", &["/run/docker.sock"]);
        check("0:26 /", &[]);
        // A disk of the host's that was mounted into a volume.
        let both = ["/data/x", "/var/lib/docker/volumes/fake/_data/x"];
        check("254:1 /x", &both);
    }

    #[test]
    fn the_file_system_of_a_path_is_that_of_the_nearest_mount() {
        let host = Mounts::parse(HOST).unwrap();
        for (path, device, inside) in [
            ("/run/docker.sock", (0, 25), "/docker.sock"),
            ("/running", (254, 0), "/running"),
            ("/var/lib/docker/x", (254, 0), "/var/lib/docker/x"),
            ("/data", (254, 1), "/"),
        ] {
            let place = host.place_of(path);
            assert_eq!(place, Some((device, inside.to_owned())), "{path}");
        }
    }

    #[test]
    fn hierarchies_are_told_by_their_controllers() {
        let host = Mounts::parse(HOST).unwrap();
        let [old, unified] = host.control_groups() else {
            panic!("{host:?}");
        };
        let controllers = old.controllers.as_ref().unwrap();
        assert!(controllers.iter().any(|name| name == "cpuacct"));
        assert_eq!(unified.controllers, None);
    }

    #[test]
    fn a_table_is_read_once_while_nothing_is_mounted() {
        let table = Table::new("/proc/self/mountinfo");
        let first = table.now().unwrap();
        assert!(first.place_of("/").is_some());
        // Somebody else may mount something at this moment.
        let is_same = (0..100).any(|_| {
            let one = table.now().unwrap();
            std::sync::Arc::ptr_eq(&one, &table.now().unwrap())
        });
        assert!(is_same);
        assert!(Table::new("/nonexistent").now().is_err());
    }
}
