//! Pure reader of `/proc/PID/mountinfo`. Spec: proc_pid_mountinfo(5).
//!
//! Whoever mounts chooses names and sources, so what counts is read by position: the number of the file
//! system's device, the folder of it that is mounted, and the options of the mount itself. The source is
//! never looked at.

use std::{borrow::Cow, fmt, path::PathBuf};

/// Major and minor number of a file system's device.
pub(super) type Device = (u32, u32);

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount<'a> {
    pub(crate) id: u32,
    pub(super) parent: u32,
    pub(super) device: Device,
    /// What of the file system is mounted.
    pub(super) root: Cow<'a, str>,
    /// Where, seen from the root of the process.
    pub(crate) point: Cow<'a, str>,
    pub(super) is_read_only: bool,
    pub(super) is_no_exec: bool,
    /// Do mounts that are made here appear elsewhere?
    pub(super) is_shared: bool,
    pub(super) file_system: &'a str,
    /// The options of the file system, behind its source.
    pub(super) options: &'a str,
}

impl fmt::Display for Mount<'_> {
    /// What is mounted where, and what may be done there; without the number, which is another each time.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.device;
        write!(
            f,
            "{} {major}:{minor}{} on {}",
            self.file_system, self.root, self.point
        )?;
        if self.is_read_only {
            f.write_str(", read-only")?;
        }
        if self.is_no_exec {
            f.write_str(", no programs")?;
        }
        Ok(())
    }
}

/// Reads all mounts. `None` when a line is not what the kernel writes.
pub(crate) fn parse(text: &str) -> Option<Vec<Mount<'_>>> {
    text.lines().map(mount).collect()
}

fn mount(line: &str) -> Option<Mount<'_>> {
    // A source may be empty, and then two spaces follow each other.
    let mut fields = line.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = unescaped(fields.next()?)?;
    let point = unescaped(fields.next()?)?;
    let own_options = fields.next()?;
    let mut is_shared = false;
    loop {
        match fields.next()? {
            "-" => break,
            optional => is_shared |= optional.starts_with("shared:"),
        }
    }
    let file_system = fields.next()?;
    fields.next()?;
    let has = |wanted: &str| own_options.split(',').any(|option| option == wanted);
    Some(Mount {
        id,
        parent,
        device,
        root,
        point,
        is_read_only: has("ro"),
        is_no_exec: has("noexec"),
        is_shared,
        file_system,
        options: fields.next()?,
    })
}

impl Mount<'_> {
    /// Where what is written in an overlay lies; none for another file system, or one that nobody writes to.
    pub(crate) fn upper_layer(&self) -> Option<PathBuf> {
        let mut options = self.options.split(',');
        let upper = options.find_map(|one| one.strip_prefix("upperdir="))?;
        let upper = (self.file_system == "overlay").then(|| unescaped(upper))??;
        Some(PathBuf::from(upper.into_owned()))
    }
}

/// Undoes `\040` and the like.
fn unescaped(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('\\') {
        return Some(text.into());
    }
    let mut parts = text.split('\\');
    let mut whole = parts.next()?.to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(3)?;
        let byte = u8::from_str_radix(digits, 8).ok()?;
        whole.push(char::from(byte));
        whole.push_str(rest);
    }
    Some(whole.into())
}

/// What is left of a path below a folder, without a slash in front; `None` where it is not below.
pub(super) fn below<'p>(path: &'p str, folder: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(folder.trim_end_matches('/'))?;
    match rest.strip_prefix('/') {
        Some(rest) => Some(rest),
        None => rest.is_empty().then_some(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::{below, parse};

    #[test]
    fn fields_are_found_by_position_whatever_names_are_chosen() {
        let text = "\
            69 45 0:39 / / rw,nodev,noatime master:2 - fuse.fuse-overlayfs fuse-overlayfs rw,user_id=0\n\
            70 69 254:0 /a\\040b\\134 /x\\040-\\040y ro,noexec shared:1 master:7 - ext4 overlay\\040-\\040proc rw\n\
            71 69 0:41 / /empty rw - tmpfs  rw,size=1k\n";
        let mounts = parse(text).unwrap();
        let [root, bound, empty] = &mounts[..] else {
            panic!("{mounts:?}");
        };
        assert_eq!((root.id, root.parent, root.device), (69, 45, (0, 39)));
        assert!(!root.is_shared && !root.is_read_only && !root.is_no_exec);
        assert_eq!((&*bound.root, &*bound.point), ("/a b\\", "/x - y"));
        assert_eq!((bound.file_system, bound.options), ("ext4", "rw"));
        assert!(bound.is_shared && bound.is_read_only && bound.is_no_exec);
        assert_eq!((empty.file_system, empty.options), ("tmpfs", "rw,size=1k"));
    }

    #[test]
    fn what_no_kernel_writes_is_refused() {
        for line in [
            "x",
            "69 45 0:39 / / rw master:2 fuse fuse rw",
            "69 45 039 / / rw - tmpfs tmpfs rw",
            "69 45 0:39 / / rw - tmpfs tmpfs",
            "69 x 0:39 / / rw - tmpfs tmpfs rw",
            "69 45 0:39 /\\04 / rw - tmpfs tmpfs rw",
            "69 45 0:39 /\\0é9 / rw - tmpfs tmpfs rw",
            "69 45 0:39 /\\999 / rw - tmpfs tmpfs rw",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
        assert_eq!(parse(""), Some(Vec::new()));
    }

    #[test]
    fn the_upper_layer_of_an_overlay_is_told() {
        let upper = |rest: &str| {
            let text = format!("1 2 0:5 / / rw - {rest}\n");
            let mounts = parse(&text).unwrap();
            let upper = mounts.first().unwrap().upper_layer();
            upper.map(|path| path.display().to_string())
        };
        let overlay = "overlay overlay rw,lowerdir=/l,upperdir=/u\\040d,workdir=/w";
        assert_eq!(upper(overlay).as_deref(), Some("/u d"));
        assert_eq!(upper("ext4 /dev/vda rw,upperdir=/u"), None);
        assert_eq!(upper("overlay overlay ro,lowerdir=/l"), None);
    }

    #[test]
    fn a_path_is_below_a_folder_by_whole_names() {
        for (path, folder, expected) in [
            ("/a/b", "/a", Some("b")),
            ("/a/b", "/a/", Some("b")),
            ("/a", "/a", Some("")),
            ("/a/b", "/", Some("a/b")),
            ("/", "/", Some("")),
            ("/ab", "/a", None),
            ("/a", "/a/b", None),
        ] {
            assert_eq!(below(path, folder), expected, "{path} {folder}");
        }
    }
}
