//! Is a program of the image that a container was made from?
//!
//! What was written in a container lies in the upper layer of its overlay, under the same path. A file of
//! the image that was only renamed or given other permissions lies there too, and counts as written.

use std::path::{Path, PathBuf};

use super::standing;
use crate::{
    attest::{
        read_text,
        reading::{Lack, ReadError, known},
        unix,
    },
    caller::ProcFolder,
};

/// Was the program of a process, at this path seen from its root, written since its container was made?
/// Not where nobody can tell: its root is no overlay, or its layers are out of the agent's reach.
///
/// # Errors
/// The agent lacks something to look.
pub(super) fn is_changed(folder: &ProcFolder, path: &Path) -> Result<bool, Lack> {
    if standing::namespace_of_container(folder)?.is_none() {
        return Ok(false);
    }
    let mounts = known(read_text(&folder.join("mountinfo")).map_err(ReadError::from))?;
    let Some(upper) = mounts.as_deref().and_then(upper_layer) else {
        return Ok(false);
    };
    let file = upper.join(path.strip_prefix("/").unwrap_or(path));
    // The path is one of the engine's, and an agent in a container has another view.
    let of_engine = Path::new("/proc/1/root").join(file.strip_prefix("/").unwrap_or(&file));
    Ok(unix::is_there(folder, file)? || unix::is_there(folder, of_engine)?)
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

#[cfg(test)]
mod tests {
    use super::{Path, ProcFolder, is_changed, upper_layer};

    #[test]
    fn the_upper_layer_of_a_root_is_found() {
        let overlay = "1 2 0:5 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/u/d,workdir=/w\n";
        assert_eq!(upper_layer(overlay).unwrap().to_str(), Some("/u/d"));
        assert!(upper_layer("1 2 0:5 / / rw - ext4 /dev/vda rw,upperdir=/u\n").is_none());
        assert!(upper_layer("1 2 0:5 / /a rw - overlay overlay rw,upperdir=/u\n").is_none());
        assert_eq!(
            is_changed(&ProcFolder::own(), Path::new("/nowhere")),
            Ok(false)
        );
    }
}
