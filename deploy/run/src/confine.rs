//! The third stage: it closes the last walls around itself, strictest last, and becomes the program.

use std::{
    ffi::CString,
    io::ErrorKind,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use caps::{CapSet, CapsHashSet};
use nix::{errno::Errno, unistd};
use postern_harden::{Capability, Fence, Profile};

use crate::{
    Failed, complain, notice,
    plan::{DEFAULT_PATH, Plan},
    signals, stage, start,
};

/// Runs the stage; `number` is the descriptor of the plan.
pub(crate) fn run(number: i32) -> ExitCode {
    match confined(number) {
        Ok(failed) => failed.into(),
        Err(error) => complain(&error),
    }
}

/// Comes back only if there is no program to become.
fn confined(number: i32) -> anyhow::Result<Failed> {
    let plan = stage::read(number)?;
    start::close_all_but(&plan.descriptors)?;
    for limit in &plan.ulimits {
        limit.set()?;
    }
    let filter = plan.filter()?;
    let keep = plan.kept()?;
    let terminal = Profile::parse("terminal", TERMINAL_PROFILE)?.filter(&keep)?;
    drop_bounds(&keep)?;
    rustix::thread::set_keep_capabilities(!keep.is_empty())?;
    become_user(&plan)?;
    hold(&keep)?;
    postern_harden::no_new_privileges()?;
    enter(&plan)?;
    let Some((file, arguments, environment)) = prepared(&plan)? else {
        return Ok(Failed::NotFound);
    };
    if let Some(at_least) = plan.landlock {
        fence(&plan, at_least).put_up()?;
    }
    signals::unblock_all()?;
    if plan.is_learning {
        nix::sys::ptrace::traceme().context("cannot be watched")?;
    }
    // Nothing but the execution is left to be done under the filters.
    terminal.install()?;
    if let Some(filter) = filter {
        filter.install()?;
    }
    let error = match unistd::execve(&file, &arguments, &environment) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    notice(&format!(
        "cannot execute `{}`: {}",
        file.to_string_lossy(),
        error.desc()
    ));
    Ok(match error {
        Errno::ENOENT => Failed::NotFound,
        _ => Failed::NotExecutable,
    })
}

/// Gives up what no execution shall give back.
///
/// # Errors
/// The kernel's own.
pub(crate) fn drop_bounds(keep: &CapsHashSet) -> anyhow::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    for capability in caps::read(None, CapSet::Bounding)?.difference(keep) {
        if permitted.contains(&Capability::CAP_SETPCAP) {
            caps::drop(None, CapSet::Bounding, *capability)
                .with_context(|| format!("cannot give up {capability}"))?;
        }
    }
    Ok(())
}

/// Becomes another user, if the plan names one; with him go all groups.
///
/// # Errors
/// The kernel's own.
pub(crate) fn become_user(plan: &Plan) -> anyhow::Result<()> {
    let Some((uid, gid)) = plan.become_user else {
        return Ok(());
    };
    let failed = || format!("cannot become {uid}:{gid}");
    let (uid_, gid_) = (unistd::Uid::from_raw(uid), unistd::Gid::from_raw(gid));
    unistd::setgroups(&[]).with_context(failed)?;
    unistd::setresgid(gid_, gid_, gid_).with_context(failed)?;
    unistd::setresuid(uid_, uid_, uid_).with_context(failed)
}

/// Capabilities outlive the execution for root by his id, for others only as ambient ones.
fn hold(keep: &CapsHashSet) -> anyhow::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    if let Some(missing) = keep.difference(&permitted).next() {
        anyhow::bail!("--keep-cap {missing}: the caller does not have it himself");
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Effective, keep)?;
    caps::set(None, CapSet::Permitted, keep)?;
    caps::set(None, CapSet::Inheritable, keep)?;
    if !keep.is_empty() {
        caps::set(None, CapSet::Ambient, keep)?;
    }
    Ok(())
}

fn enter(plan: &Plan) -> anyhow::Result<()> {
    match &plan.workdir {
        Some(folder) => std::env::set_current_dir(folder)
            .with_context(|| format!("--workdir `{}`", folder.display())),
        None => std::env::set_current_dir(&plan.present)
            .or_else(|_| std::env::set_current_dir("/"))
            .context("cannot enter `/`"),
    }
}

type Prepared = (CString, Vec<CString>, Vec<CString>);

/// Finds the program in the new view. `None` if there is none, which was told.
fn prepared(plan: &Plan) -> anyhow::Result<Option<Prepared>> {
    let name = plan.program.first().context("no program")?;
    let has_slash = name.as_bytes().contains(&b'/');
    let path = plan.environment.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or(DEFAULT_PATH.as_ref(), |(_, value)| value.as_os_str());
    let candidates: Vec<PathBuf> = match has_slash {
        true => vec![plan.file.clone().unwrap_or_else(|| name.into())],
        false => std::env::split_paths(path)
            .map(|folder| folder.join(name))
            // A link in a folder out of sight: what it leads to is in sight.
            .chain(plan.file.clone())
            .collect(),
    };
    // As a shell does it: a folder that cannot be entered hides nothing behind it.
    let executable = candidates.iter().find(|path| {
        path.is_file() && rustix::fs::access(path.as_path(), rustix::fs::Access::EXEC_OK).is_ok()
    });
    let found = executable.or_else(|| candidates.iter().find(|path| is_there(path)));
    let Some(file) = found else {
        let hint = match &plan.file {
            Some(file) => format!("; `{}` is out of sight, see --readable", file.display()),
            None => String::new(),
        };
        notice(&format!("there is no program `{}`{hint}", name.display()));
        return Ok(None);
    };
    let text = |bytes: Vec<u8>| CString::new(bytes).context("a zero byte in an argument");
    let arguments = plan.program.iter().map(|one| text(one.as_bytes().to_vec()));
    let variables = plan.environment.iter().map(|(name, value)| {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(b'=');
        bytes.extend(value.as_bytes());
        text(bytes)
    });
    Ok(Some((
        text(file.clone().into_os_string().into_vec())?,
        arguments.collect::<Result<_, _>>()?,
        variables.collect::<Result<_, _>>()?,
    )))
}

fn is_there(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(found) => found.is_file(),
        // It may be there, and the kernel says why it cannot be executed.
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

/// The view holds what may be seen; the fence says once more what may be changed.
fn fence(plan: &Plan, at_least: u32) -> Fence {
    let mut write: Vec<PathBuf> = ["/dev", "/tmp", "/proc"].map(PathBuf::from).to_vec();
    write.extend(plan.writable.iter().cloned());
    Fence {
        read: None,
        execute: vec!["/".into()],
        write,
        may_signal_others: false,
        scopes_abstract_sockets: !plan.wants_host_net,
        at_least,
    }
}

/// What is refused whatever the caller's profile says, and where a profile is learnt.
const TERMINAL_PROFILE: &str = include_str!("../../seccomp/terminal.json");
