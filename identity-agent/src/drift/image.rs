//! Is a program of the image that a container was made from?
//!
//! What was written in a container lies in the upper layer of its overlay, under the same path. A file of
//! the image that was only renamed or given other permissions lies there too, and counts as written.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::fs::statfs;

use crate::{attest::read_text, caller::ProcFolder};

/// Was the program of a process, at this path seen from its root, written since its container was made?
/// Not where nobody can tell: its root is no overlay, or its layers are out of the agent's reach.
pub(super) fn is_changed(folder: &ProcFolder, path: &str) -> bool {
    // Most programs of plain processes are told from those of containers by this one call.
    if !statfs(folder.join("exe")).is_ok_and(|found| found.f_type == OVERLAY) {
        return false;
    }
    let Ok(mounts) = read_text(&folder.join("mountinfo")) else {
        return false;
    };
    let Some(upper) = upper_layer(&mounts) else {
        return false;
    };
    let file = upper.join(path.trim_start_matches('/'));
    // The path is one of the engine's, and an agent in a container has another view.
    let of_engine = Path::new("/proc/1/root").join(file.strip_prefix("/").unwrap_or(&file));
    [file, of_engine]
        .iter()
        .any(|file| fs::symlink_metadata(file).is_ok())
}

/// The folder of an overlay in which what was written lies, from `mountinfo`; of the mount that is `/`.
pub(super) fn upper_layer(mounts: &str) -> Option<PathBuf> {
    let mut all = mounts.lines().rev();
    let root = all.find(|line| line.split(' ').nth(4) == Some("/"))?;
    let (_, rest) = root.split_once(" - ")?;
    let mut rest = rest.split(' ');
    if rest.next() != Some("overlay") {
        return None;
    }
    let options = rest.nth(1)?;
    let mut options = options.split(',');
    options
        .find_map(|one| one.strip_prefix("upperdir="))
        .map(PathBuf::from)
}

/// Spec: the kernel's `linux/magic.h`.
const OVERLAY: rustix::fs::FsWord = 0x794c_7630;

#[cfg(test)]
mod tests {
    use super::{ProcFolder, is_changed, upper_layer};

    #[test]
    fn the_upper_layer_of_a_root_is_found() {
        let overlay = "1 2 0:5 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/u/d,workdir=/w\n";
        assert_eq!(upper_layer(overlay).unwrap().to_str(), Some("/u/d"));
        assert!(upper_layer("1 2 0:5 / / rw - ext4 /dev/vda rw,upperdir=/u\n").is_none());
        assert!(upper_layer("1 2 0:5 / /a rw - overlay overlay rw,upperdir=/u\n").is_none());
        assert!(!is_changed(&ProcFolder::own(), "/nowhere"));
    }
}
