//! What the program sees of the file system: a root of its own, read-only, that holds the system's
//! folders, what was asked for, and nothing else.
//!
//! The root is a small file system in memory, into which folders of the caller are bound. So the caller's
//! root is nowhere inside, nor are homes, `/run` with its sockets, `/var` and other processes' `/proc`.

use std::{
    ffi::{CStr, CString},
    fs,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
        mount_change, mount_remount, unmount,
    },
};

use crate::plan::Plan;

/// Builds the view and moves into it. The caller is in a mount namespace of his own.
///
/// # Errors
/// The mount that failed.
pub(crate) fn build(plan: &Plan) -> anyhow::Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("cannot part from the caller's mounts")?;
    new_root()?;
    for name in SYSTEM {
        system(Path::new(name))?;
    }
    let file = plan.file.iter().cloned();
    for path in plan.readable.iter().cloned().chain(file).chain(resolver()) {
        show(&path, Access::Read)?;
    }
    devices()?;
    processes()?;
    if plan.has_own_net {
        kernel_objects()?;
    }
    memory("/tmp", "1777", plan.tmp_size)?;
    for path in &plan.writable {
        show(path, Access::Write)?;
    }
    leave(plan)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    /// The node is read-only, so nobody changes its mode or owner. What is behind it is written all the same.
    Device,
}

impl Access {
    fn flags(self) -> MountFlags {
        let kept_out = MountFlags::NOSUID | MountFlags::NODEV;
        match self {
            Self::Read => kept_out | MountFlags::RDONLY,
            Self::Write => kept_out,
            Self::Device => MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC,
        }
    }
}

/// Moves the caller's root to [`OLD`].
fn new_root() -> anyhow::Result<()> {
    // A folder that is always there; it comes to light again when the new root has moved.
    memory("/tmp", "755", ROOT_SIZE)?;
    let old = format!("/tmp{OLD}");
    fs::create_dir(&old).with_context(|| format!("cannot make `{old}`"))?;
    rustix::process::pivot_root("/tmp", &old).context("cannot change the root")?;
    std::env::set_current_dir("/").context("cannot enter the new root")
}

/// A folder of the system: bound, or the link that it is where `/bin` lies in `/usr`.
fn system(path: &Path) -> anyhow::Result<()> {
    let old = in_old(path);
    let Ok(found) = fs::symlink_metadata(&old) else {
        return Ok(());
    };
    if found.is_symlink() {
        let target = fs::read_link(&old)?;
        return symlink(target, path).with_context(|| format!("cannot link `{}`", path.display()));
    }
    show(path, Access::Read)
}

/// The resolver's file is often a link to where nothing is seen.
fn resolver() -> Option<PathBuf> {
    let link = fs::read_link(in_old(Path::new("/etc/resolv.conf"))).ok()?;
    let target = Path::new("/etc").join(link);
    let mut plain = PathBuf::new();
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    let is_shown = in_old(&plain).is_file() && open_plain(Path::new(OLD), &plain).is_ok();
    is_shown.then_some(plain)
}

/// Binds a path of the caller to where it is with him.
fn show(path: &Path, access: Access) -> anyhow::Result<()> {
    if path == Path::new("/") {
        return everything(access);
    }
    let failed = || format!("cannot show `{}`", path.display());
    // Opened once, without links: nobody puts another place there between the look and the mount.
    let opened = open_plain(Path::new(OLD), path).with_context(failed)?;
    let source = format!("{OLD}/proc/self/fd/{}", opened.as_raw_fd());
    let is_folder = fs::metadata(&source).with_context(failed)?.is_dir();
    let is_seen = access == Access::Read && SYSTEM.iter().any(|seen| path.starts_with(seen));
    if is_seen && path.exists() && !SYSTEM.iter().any(|seen| path == Path::new(seen)) {
        return Ok(());
    }
    place(path, is_folder).with_context(failed)?;
    mount_bind_recursive(&source, path).with_context(failed)?;
    set_flags(path, access).with_context(failed)?;
    let sockets = Path::new(OLD_SOCKETS);
    let holds_sockets = sockets.starts_with(path) && sockets != path;
    // Mostly a link to `/run`, which is another one inside.
    if holds_sockets && fs::symlink_metadata(sockets).is_ok_and(|found| found.is_dir()) {
        memory(OLD_SOCKETS, "755", ROOT_SIZE)?;
    }
    Ok(())
}

/// Opens what stands at a path below a root, where no part of the path is a link.
fn open_plain(root: &Path, path: &Path) -> std::io::Result<OwnedFd> {
    let root = fs::File::open(root)?;
    let beneath = path.strip_prefix("/").unwrap_or(path);
    let opened = openat2(
        &root,
        beneath,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    );
    Ok(opened?)
}

/// All that lies in the root, but for what is made anew.
fn everything(access: Access) -> anyhow::Result<()> {
    let listed = fs::read_dir(OLD).context("cannot list the caller's root")?;
    for entry in listed {
        let path = Path::new("/").join(entry?.file_name());
        let is_made = MADE.iter().any(|made| path == Path::new(made));
        if is_made
            || path
                .symlink_metadata()
                .is_ok_and(|found| found.is_symlink())
        {
            continue;
        }
        match fs::symlink_metadata(in_old(&path)) {
            Ok(found) if found.is_symlink() => symlink(fs::read_link(in_old(&path))?, &path)?,
            Ok(found) if found.is_dir() || found.is_file() => show(&path, access)?,
            _ => {}
        }
    }
    Ok(())
}

/// Something to bind on.
fn place(path: &Path, is_folder: bool) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if is_folder {
        return fs::create_dir_all(path);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(path).map(drop)
}

/// Sets the flags of a bound tree, mount by mount: what was forbidden before stays so.
fn set_flags(path: &Path, access: Access) -> anyhow::Result<()> {
    let mounts = fs::read_to_string(in_old(Path::new("/proc/self/mountinfo")))?;
    let mounts = beneath(path, &mounts);
    ensure!(
        mounts.iter().any(|(point, _)| point == path),
        "no mount stands there, so its flags cannot be set"
    );
    for (point, present) in mounts {
        let flags = present | MountFlags::BIND | access.flags();
        match mount_remount(&point, flags, NOTHING) {
            // A mount that an ordinary caller cannot reach is as far from his program.
            Err(Errno::ACCESS) if point != path => {}
            outcome => {
                outcome.with_context(|| format!("cannot set the flags of `{}`", point.display()))?
            }
        }
    }
    Ok(())
}

/// The mounts at and beneath a path with their flags.
fn beneath(path: &Path, mounts: &str) -> Vec<(PathBuf, MountFlags)> {
    let of_line = |line: &str| {
        let mut parts = line.split(' ');
        let point = PathBuf::from(unescaped(parts.nth(4)?));
        let flags = parts.next()?.split(',').map(flag).collect();
        Some((point, flags))
    };
    let all = mounts.lines().filter_map(of_line);
    all.filter(|(point, _)| point.starts_with(path)).collect()
}

/// A mount point as it is: blanks and the like are written as octal numbers.
fn unescaped(text: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    escapes
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn flag(name: &str) -> MountFlags {
    match name {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        _ => MountFlags::empty(),
    }
}

fn devices() -> anyhow::Result<()> {
    memory("/dev", "755", ROOT_SIZE)?;
    for name in DEVICES {
        let path = Path::new("/dev").join(name);
        let old = in_old(&path);
        if old.exists() {
            place(&path, false)?;
            let failed = || format!("cannot show `{}`", path.display());
            mount_bind(&old, &path).with_context(failed)?;
            set_flags(&path, Access::Device).with_context(failed)?;
        }
    }
    for (name, target) in DEVICE_LINKS {
        symlink(target, Path::new("/dev").join(name))?;
    }
    fs::create_dir("/dev/pts")?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let options = c"newinstance,ptmxmode=0666,mode=0620";
    mount("devpts", "/dev/pts", "devpts", flags, options).context("cannot mount `/dev/pts`")?;
    memory("/dev/shm", "1777", SHARED_SIZE)
}

/// A `/proc` of the new PID namespace, without what tells of the machine or changes it.
fn processes() -> anyhow::Result<()> {
    fs::create_dir_all("/proc")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).context(
        "cannot mount a new `/proc`; where the caller's own is masked, as in a container, only root may",
    )?;
    for path in MASKED.iter().map(Path::new).filter(|path| path.exists()) {
        let failed = || format!("cannot mask `{}`", path.display());
        match path.is_dir() {
            true => mount(
                "tmpfs",
                path,
                "tmpfs",
                flags | MountFlags::RDONLY,
                c"size=4k,mode=555",
            ),
            false => mount_bind("/dev/null", path),
        }
        .with_context(failed)?;
    }
    for path in FROZEN.iter().map(Path::new).filter(|path| path.exists()) {
        let failed = || format!("cannot make `{}` read-only", path.display());
        mount_bind(path, path).with_context(failed)?;
        let flags = flags | MountFlags::BIND | MountFlags::RDONLY;
        mount_remount(path, flags, NOTHING).with_context(failed)?;
    }
    Ok(())
}

/// The `/sys` of a network namespace of one's own. Without it there is none: it would be the machine's. An
/// ordinary user may not have it everywhere, and few programs miss it.
fn kernel_objects() -> anyhow::Result<()> {
    fs::create_dir_all("/sys")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    if mount("sysfs", "/sys", "sysfs", flags, None).is_err() {
        return Ok(());
    }
    for path in [
        "/sys/firmware",
        "/sys/kernel",
        "/sys/fs",
        "/sys/power",
        "/sys/module",
    ] {
        if Path::new(path).exists() {
            mount("tmpfs", path, "tmpfs", flags, c"size=4k,mode=555")
                .with_context(|| format!("cannot mask `{path}`"))?;
        }
    }
    Ok(())
}

/// A folder in memory. Nothing in it can be executed. Empty files take memory too, which its size does not
/// count, so their number is bounded.
fn memory(path: &str, mode: &str, size: u64) -> anyhow::Result<()> {
    if !Path::new(path).exists() {
        fs::create_dir_all(path)?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let files = (size / BYTES_PER_FILE).max(FEWEST_FILES);
    let options = CString::new(format!("mode={mode},size={size},nr_inodes={files}"))?;
    mount("tmpfs", path, "tmpfs", flags, options.as_c_str())
        .with_context(|| format!("cannot mount `{path}`"))
}

/// Lets the caller's root go, and closes the new one.
fn leave(plan: &Plan) -> anyhow::Result<()> {
    for name in ["/run", "/var/tmp", "/root", "/home", "/sys", "/mnt"] {
        fs::create_dir_all(name)?;
    }
    if !Path::new("/var/run").exists() {
        symlink("/run", "/var/run")?;
    }
    if let Some(folder) = plan.workdir.as_deref().filter(|folder| !folder.exists()) {
        anyhow::bail!(
            "--workdir `{}` is out of sight, see --readable",
            folder.display()
        );
    }
    unmount(OLD, UnmountFlags::DETACH).context("cannot let the caller's root go")?;
    fs::remove_dir(OLD)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::BIND;
    mount_remount("/", flags | MountFlags::NOEXEC, NOTHING)
        .context("cannot make the root read-only")?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::BIND;
    mount_remount("/dev", flags, NOTHING).context("cannot make `/dev` read-only")
}

fn in_old(path: &Path) -> PathBuf {
    Path::new(OLD).join(path.strip_prefix("/").unwrap_or(path))
}

const OLD: &str = "/.caller";
const NOTHING: &CStr = c"";
const ROOT_SIZE: u64 = 16 << 20;
const SHARED_SIZE: u64 = 64 << 20;
const BYTES_PER_FILE: u64 = 4096;
const FEWEST_FILES: u64 = 64;

/// What every program needs to run at all, and nothing of anybody's own.
const SYSTEM: [&str; 10] = [
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix",
];

/// What the view has of its own.
const MADE: [&str; 6] = ["/proc", "/sys", "/dev", "/tmp", SOCKETS, OLD];

/// Here lie the sockets of those who rule the machine. They are seen only where they are named.
const SOCKETS: &str = "/run";
const OLD_SOCKETS: &str = "/var/run";

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const DEVICE_LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// As container engines mask them.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
];

const FROZEN: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_mounts_beneath_a_path_are_kept() {
        let mounts = "\
1 0 254:0 / / rw,relatime - ext4 /dev/vda rw
2 1 254:0 /usr /usr rw,nosuid,noatime shared:1 - ext4 /dev/vda rw
3 2 0:9 / /usr/a\\040b ro,noexec - tmpfs x rw
4 1 0:9 / /usrlocal rw - tmpfs x rw
";
        let found = beneath(Path::new("/usr"), mounts);
        let nosuid = MountFlags::NOSUID | MountFlags::NOATIME;
        let noexec = MountFlags::RDONLY | MountFlags::NOEXEC;
        let expected = [("/usr".into(), nosuid), ("/usr/a b".into(), noexec)];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_link_that_was_put_in_the_way_is_not_followed() {
        let root = std::env::temp_dir().join(format!("postern-run-{}", std::process::id()));
        fs::create_dir_all(root.join("real/inner")).unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("inner", root.join("real/last")).unwrap();
        let opened = |path: &str| {
            open_plain(&root, Path::new(path)).map_err(|error| Errno::from_io_error(&error))
        };
        assert!(opened("/real/inner").is_ok());
        for path in ["/link/inner", "/link", "/real/last"] {
            assert_eq!(opened(path).unwrap_err(), Some(Errno::LOOP), "{path}");
        }
        fs::remove_dir_all(root).unwrap();
    }
}
