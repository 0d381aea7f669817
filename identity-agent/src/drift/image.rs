//! Is a program of the image that a container was made from?
//!
//! What was written in a container lies in the upper layer of its overlay, under the same path. A file of
//! the image that was only renamed or given other permissions lies there too, and counts as written.

use std::path::Path;

use super::standing;
use crate::{
    attest::{
        posture::{host, mountinfo},
        reading::{Lack, ReadError},
        unix,
    },
    caller::ProcFolder,
};

/// Was the program of a process, at this path seen from its root, written since its container was made? So it
/// counts where the mounts cannot be read. Not where nobody can tell: its root is no overlay, or its layers are
/// out of the agent's reach.
///
/// # Errors
/// The agent lacks something to look.
pub(super) fn is_changed(folder: &ProcFolder, path: &Path) -> Result<bool, Lack> {
    if standing::namespace_of_container(folder)?.is_none() {
        return Ok(false);
    }
    let text = match host::table(folder) {
        Ok(text) => text,
        Err(ReadError::Absent) => return Ok(false),
        Err(ReadError::Refused) => return Ok(true),
        Err(ReadError::Lack(lack)) => return Err(lack),
    };
    let Some(mounts) = mountinfo::parse(&text) else {
        return Ok(true);
    };
    // What was mounted last is what is seen.
    let root = mounts.iter().rfind(|mount| mount.point == "/");
    let Some(upper) = root.and_then(mountinfo::Mount::upper_layer) else {
        return Ok(false);
    };
    let file = upper.join(path.strip_prefix("/").unwrap_or(path));
    // The path is one of the engine's, and an agent in a container has another view.
    let of_engine = Path::new("/proc/1/root").join(file.strip_prefix("/").unwrap_or(&file));
    Ok(unix::is_there(folder, file)? || unix::is_there(folder, of_engine)?)
}

#[cfg(test)]
mod tests {
    use super::{Path, ProcFolder, is_changed};

    #[test]
    fn nothing_is_written_in_the_container_of_who_is_in_none() {
        assert_eq!(
            is_changed(&ProcFolder::own(), Path::new("/nowhere")),
            Ok(false)
        );
    }
}
