//! From a profile to the kernel's program. Pure but for the kernel's version.
//!
//! `seccompiler` makes programs of one action each. One program for each action is made, strictest first,
//! and the last one holds what the profile allows; then they are put behind each other, so that the kernel
//! runs one filter: what one program does not refuse goes on to the next.

use std::collections::BTreeMap;

use caps::{Capability, CapsHashSet};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};
use syscalls::Sysno;

use super::{
    Filter, MAX_ERRNO, ProfileMistake,
    document::{
        Action, Argument, Conditions, Document, Entry, ErrorName, NO_SUCH_CALL, NOT_PERMITTED,
        Operator,
    },
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// An action with its number, in the order of the kernel's own precedence: the strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    KillProcess,
    KillThread,
    Trap,
    Errno(u32),
    Trace(u32),
    Log,
    Allow,
}

impl Verdict {
    fn of(action: Action, number: Option<u32>) -> Self {
        match action {
            Action::KillProcess => Self::KillProcess,
            Action::KillThread => Self::KillThread,
            Action::Trap => Self::Trap,
            Action::Errno => Self::Errno(number.unwrap_or(NOT_PERMITTED)),
            Action::Trace => Self::Trace(number.unwrap_or(NOT_PERMITTED)),
            Action::Log => Self::Log,
            Action::Allow => Self::Allow,
        }
    }

    fn action(self) -> SeccompAction {
        match self {
            Self::KillProcess => SeccompAction::KillProcess,
            Self::KillThread => SeccompAction::KillThread,
            Self::Trap => SeccompAction::Trap,
            Self::Errno(number) => SeccompAction::Errno(number),
            Self::Trace(number) => SeccompAction::Trace(number),
            Self::Log => SeccompAction::Log,
            Self::Allow => SeccompAction::Allow,
        }
    }
}

/// Compiles a profile for this kernel and processor.
pub(super) fn filter(
    document: &Document,
    capabilities: &CapsHashSet,
) -> Result<Filter, ProfileMistake> {
    for_this_machine(document)?;
    let number = numbered(
        "defaultErrnoRet",
        document.default_errno_ret,
        document.default_errno,
    )?;
    let default = Verdict::of(document.default_action, number);
    let mut rules: BTreeMap<Verdict, Rules> = BTreeMap::new();
    let mut named = Rules::new();
    let mut skipped = Vec::new();
    for (place, entry) in document.syscalls.iter().enumerate() {
        let (verdict, rule) = read(place, entry)?;
        if !counts(place, entry, capabilities)? {
            continue;
        }
        for name in entry.name.iter().chain(&entry.names) {
            let Ok(call) = name.parse::<Sysno>() else {
                skipped.push(name.clone());
                continue;
            };
            for group in [rules.entry(verdict).or_default(), &mut named] {
                add(group, i64::from(call.id()), rule.as_ref());
            }
        }
    }
    skipped.sort();
    skipped.dedup();
    let newest = named.keys().next_back().copied();
    let mut programs = vec![no_foreign_numbers()];
    if let (Verdict::Errno(_), Some(newest)) = (default, newest) {
        programs.push(unknown_to_the_author(newest));
    }
    for (verdict, rules) in rules {
        if verdict != Verdict::Allow {
            programs.push(program(rules, SeccompAction::Allow, verdict.action())?);
        }
    }
    if default == Verdict::Allow {
        programs.push(vec![statement(RETURN, ALLOW)]);
    } else {
        programs.push(program(named, default.action(), SeccompAction::Allow)?);
    }
    Ok(Filter {
        program: one_behind_the_other(programs),
        skipped,
    })
}

/// What a call is named here.
pub(super) fn name_of(number: u64) -> Option<String> {
    let number = usize::try_from(number).ok()?;
    Sysno::new(number).map(|call| call.name().to_owned())
}

/// What number a call has here.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let call = name.parse::<Sysno>().ok()?;
    u64::try_from(call.id()).ok()
}

fn for_this_machine(document: &Document) -> Result<(), ProfileMistake> {
    let mapped = document.arch_map.iter().map(|one| &one.architecture);
    let listed: Vec<&String> = document.architectures.iter().chain(mapped).collect();
    if !document.architectures.is_empty() && !document.arch_map.is_empty() {
        return Err(ProfileMistake::TwoArchitectures);
    }
    if !listed.is_empty() && !listed.iter().any(|name| *name == OWN_ARCHITECTURE) {
        let listed: Vec<String> = listed.iter().map(|name| format!("`{name}`")).collect();
        return Err(ProfileMistake::OtherArchitecture {
            listed: listed.join(", "),
            own: OWN_ARCHITECTURE,
        });
    }
    Ok(())
}

/// What an entry says, whether it counts or not: mistakes are told on every machine.
fn read(place: usize, entry: &Entry) -> Result<(Verdict, Option<SeccompRule>), ProfileMistake> {
    if entry.name.is_some() != entry.names.is_empty() {
        return Err(ProfileMistake::Names(place));
    }
    let at = format!("syscalls[{place}]");
    let number = numbered(&at, entry.errno_ret, entry.errno)?;
    if number.is_some() && !matches!(entry.action, Action::Errno | Action::Trace) {
        return Err(ProfileMistake::ErrnoWithoutUse(place));
    }
    let mut conditions = Vec::new();
    let mut seen = Vec::new();
    for argument in entry.args.iter().flatten() {
        if seen.contains(&argument.index) {
            return Err(ProfileMistake::ArgumentTwice {
                entry: place,
                index: argument.index,
            });
        }
        seen.push(argument.index);
        conditions.push(condition(place, argument)?);
    }
    let rule = match conditions.is_empty() {
        true => None,
        false => Some(SeccompRule::new(conditions).map_err(ProfileMistake::Compile)?),
    };
    Ok((Verdict::of(entry.action, number), rule))
}

fn numbered(
    place: &str,
    number: Option<u32>,
    name: Option<ErrorName>,
) -> Result<Option<u32>, ProfileMistake> {
    let number = number.or(name.map(ErrorName::number));
    match number {
        Some(number) if number > MAX_ERRNO => Err(ProfileMistake::Errno {
            place: place.to_owned(),
            number,
        }),
        number => Ok(number),
    }
}

fn condition(place: usize, argument: &Argument) -> Result<SeccompCondition, ProfileMistake> {
    if argument.index > 5 {
        return Err(ProfileMistake::Argument {
            entry: place,
            index: argument.index,
        });
    }
    // Of a masked comparison the first value is the mask.
    let (operator, value) = match argument.op {
        Operator::NotEqual => (SeccompCmpOp::Ne, argument.value),
        Operator::Less => (SeccompCmpOp::Lt, argument.value),
        Operator::LessOrEqual => (SeccompCmpOp::Le, argument.value),
        Operator::Equal => (SeccompCmpOp::Eq, argument.value),
        Operator::GreaterOrEqual => (SeccompCmpOp::Ge, argument.value),
        Operator::Greater => (SeccompCmpOp::Gt, argument.value),
        Operator::MaskedEqual => (SeccompCmpOp::MaskedEq(argument.value), argument.value_two),
    };
    SeccompCondition::new(argument.index, SeccompCmpArgLen::Qword, operator, value)
        .map_err(ProfileMistake::Compile)
}

fn counts(place: usize, entry: &Entry, capabilities: &CapsHashSet) -> Result<bool, ProfileMistake> {
    let nothing = Conditions::default();
    let includes = entry.includes.as_ref().unwrap_or(&nothing);
    let excludes = entry.excludes.as_ref().unwrap_or(&nothing);
    let has = |name: &String| {
        name.parse::<Capability>()
            .is_ok_and(|capability| capabilities.contains(&capability))
    };
    let is_own = |name: &String| name == OWN_NAME;
    let includes_kernel = new_enough(place, includes)?;
    let excludes_kernel = new_enough(place, excludes)?;
    let included = includes.caps.iter().flatten().all(has)
        && includes
            .arches
            .as_ref()
            .is_none_or(|all| all.is_empty() || all.iter().any(is_own))
        && includes_kernel != Some(false);
    let excluded = excludes.caps.iter().flatten().any(has)
        || excludes.arches.iter().flatten().any(is_own)
        || excludes_kernel == Some(true);
    Ok(included && !excluded)
}

/// Is this kernel as new as is asked for? Nothing where nothing is asked.
fn new_enough(place: usize, conditions: &Conditions) -> Result<Option<bool>, ProfileMistake> {
    let Some(text) = &conditions.min_kernel else {
        return Ok(None);
    };
    let wanted = version(text).ok_or_else(|| ProfileMistake::Kernel {
        entry: place,
        text: text.clone(),
    })?;
    let own = rustix::system::uname();
    let own = version(&own.release().to_string_lossy()).unwrap_or((0, 0));
    Ok(Some(own >= wanted))
}

/// `5.10.0-something` is 5 and 10.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-', '+']);
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some((major, minor))
}

/// One unconditional rule for a call makes all conditions of that call moot; none at all is how
/// `seccompiler` writes it.
fn add(rules: &mut Rules, call: i64, rule: Option<&SeccompRule>) {
    use std::collections::btree_map::Entry;
    match (rules.entry(call), rule) {
        (Entry::Vacant(place), rule) => {
            place.insert(rule.into_iter().cloned().collect());
        }
        (Entry::Occupied(mut place), None) => place.get_mut().clear(),
        (Entry::Occupied(mut place), Some(rule)) => {
            if !place.get().is_empty() {
                place.get_mut().push(rule.clone());
            }
        }
    }
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, ProfileMistake> {
    let architecture = std::env::consts::ARCH
        .try_into()
        .map_err(ProfileMistake::Compile)?;
    SeccompFilter::new(rules, otherwise, matched, architecture)
        .and_then(TryInto::try_into)
        .map_err(ProfileMistake::Compile)
}

/// Every program but the last one says *allow* by going on to the next.
fn one_behind_the_other(programs: Vec<BpfProgram>) -> BpfProgram {
    let last = programs.len().saturating_sub(1);
    let mut whole = BpfProgram::new();
    for (index, mut program) in programs.into_iter().enumerate() {
        let length = program.len();
        for (place, instruction) in program.iter_mut().enumerate() {
            if index != last && instruction.code == RETURN && instruction.k == ALLOW {
                let behind = length - place - 1;
                *instruction = statement(JUMP, u32::try_from(behind).unwrap_or(u32::MAX));
            }
        }
        whole.extend(program);
    }
    whole
}

/// Calls of the x32 ABI have the architecture of others and numbers of their own, which no profile names.
/// They do not exist here, as in most kernels.
fn no_foreign_numbers() -> BpfProgram {
    vec![
        statement(LOAD, NUMBER),
        jump(JUMP_IF_GREATER_OR_EQUAL, X32, 0, 1),
        statement(RETURN, ERRNO | NO_SUCH_CALL),
        statement(RETURN, ALLOW),
    ]
}

fn unknown_to_the_author(newest: i64) -> BpfProgram {
    vec![
        statement(LOAD, NUMBER),
        jump(
            JUMP_IF_GREATER,
            u32::try_from(newest).unwrap_or(u32::MAX),
            0,
            1,
        ),
        statement(RETURN, ERRNO | NO_SUCH_CALL),
        statement(RETURN, ALLOW),
    ]
}

fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(target_arch = "x86_64")]
pub(super) const OWN_ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "x86_64")]
const OWN_NAME: &str = "amd64";

#[cfg(target_arch = "aarch64")]
pub(super) const OWN_ARCHITECTURE: &str = "SCMP_ARCH_AARCH64";
#[cfg(target_arch = "aarch64")]
const OWN_NAME: &str = "arm64";

#[cfg(target_arch = "riscv64")]
pub(super) const OWN_ARCHITECTURE: &str = "SCMP_ARCH_RISCV64";
#[cfg(target_arch = "riscv64")]
const OWN_NAME: &str = "riscv64";

/// From `linux/bpf_common.h` and `linux/seccomp.h`.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
/// Where the number of the call lies.
const NUMBER: u32 = 0;
/// The bit of the x32 ABI, and above all numbers of the others.
const X32: u32 = 0x4000_0000;

#[cfg(test)]
mod tests;
