//! What compiled profiles say, found out by a machine for the kernel's programs, in a few lines.

use super::*;
use crate::Profile;

/// Runs a program on a call of this machine's architecture.
fn verdict(filter: &Filter, call: u64, args: [u64; 6]) -> u32 {
    let mut data = Vec::from(u32::try_from(call).unwrap().to_le_bytes());
    data.extend(OWN_AUDIT.to_le_bytes());
    data.extend([0; 8]);
    data.extend(args.iter().flat_map(|arg| arg.to_le_bytes()));
    let word = |at: u32| {
        let at = at as usize;
        u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
    };
    let (mut place, mut held) = (0, 0);
    loop {
        let one = &filter.program[place];
        place += 1;
        let jump = match one.code {
            LOAD => {
                held = word(one.k);
                continue;
            }
            0x54 => {
                held &= one.k;
                continue;
            }
            RETURN => return one.k,
            JUMP => {
                place += one.k as usize;
                continue;
            }
            0x15 => held == one.k,
            JUMP_IF_GREATER => held > one.k,
            JUMP_IF_GREATER_OR_EQUAL => held >= one.k,
            other => panic!("instruction {other:#x}"),
        };
        place += usize::from(if jump { one.jt } else { one.jf });
    }
}

fn compiled(text: &str) -> Filter {
    let profile = Profile::parse("test", text).unwrap();
    profile.filter(&CapsHashSet::new()).unwrap()
}

fn of(filter: &Filter, name: &str) -> u32 {
    verdict(filter, number(name), [0; 6])
}

fn number(name: &str) -> u64 {
    u64::try_from(name.parse::<Sysno>().unwrap().id()).unwrap()
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    let told = Profile::parse("x.json", text)
        .and_then(|profile| profile.filter(&CapsHashSet::new()))
        .unwrap_err()
        .to_string();
    assert!(told.contains(expected), "{told}");
}

#[test]
fn what_is_listed_is_allowed_and_the_rest_is_not() {
    let filter = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read", "uname", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"name": "clone3", "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["ptrace"], "action": "SCMP_ACT_KILL"}]}"#,
    );
    assert_eq!(of(&filter, "read"), ALLOW);
    assert_eq!(of(&filter, "write"), ERRNO | 1);
    assert_eq!(of(&filter, "clone3"), ERRNO | 38);
    assert_eq!(of(&filter, "ptrace"), 0, "the thread ends");
    assert_eq!(filter.skipped(), ["no_such_call"]);
}

#[test]
fn calls_that_its_author_did_not_know_do_not_exist() {
    let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read", "clone3"], "action": "SCMP_ACT_ALLOW"}]}"#;
    let filter = compiled(text);
    assert_eq!(of(&filter, "faccessat2"), ERRNO | 38);
    assert_eq!(of(&filter, "write"), ERRNO | 1);
    let killed = compiled(&text.replace("SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"));
    assert_eq!(of(&killed, "faccessat2"), 0x8000_0000);
}

#[test]
fn a_list_of_what_is_forbidden_is_not_gone_round_by_other_numbers() {
    let filter = compiled(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1, "syscalls": [
            {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errno": "EACCES"}]}"#,
    );
    assert_eq!(of(&filter, "ptrace"), ERRNO | 13);
    assert_eq!(of(&filter, "read"), ALLOW);
    let x32 = u64::from(X32) | number("ptrace");
    assert_eq!(verdict(&filter, x32, [0; 6]), ERRNO | 38);
}

#[test]
fn arguments_tell_calls_apart() {
    let filter = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args":
                [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args":
                [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args":
                [{"index": 0, "value": 4294967295, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args":
                [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"},
                 {"index": 1, "value": 3, "op": "SCMP_CMP_LT"}]}]}"#,
    );
    let ask = |name: &str, first: u64, second: u64| {
        verdict(&filter, number(name), [first, second, 0, 0, 0, 0]) == ALLOW
    };
    assert!(ask("clone", 0x11, 0), "a child");
    assert!(
        !ask("clone", 0x1000_0011, 0),
        "a child with a user namespace"
    );
    for (persona, allowed) in [
        (8, true),
        (0xffff_ffff, true),
        (0, false),
        (1 << 32 | 8, false),
    ] {
        assert_eq!(ask("personality", persona, 0), allowed, "{persona}");
    }
    assert!(ask("socket", 2, 1));
    assert!(!ask("socket", 40, 1), "the first condition does not hold");
    assert!(!ask("socket", 2, 3), "the second condition does not hold");
}

#[test]
fn of_contradictions_the_stricter_one_counts() {
    let filter = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["write"], "action": "SCMP_ACT_ERRNO", "args":
                [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    assert_eq!(verdict(&filter, number("write"), [1, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(
        verdict(&filter, number("write"), [2, 0, 0, 0, 0, 0]),
        ERRNO | 1
    );
}

#[test]
fn entries_count_where_their_conditions_hold() {
    let entry = |conditions: &str| {
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                {{"names": ["read"], "action": "SCMP_ACT_ALLOW"}},
                {{"names": ["mount"], "action": "SCMP_ACT_ALLOW", {conditions}}}]}}"#
        );
        let profile = Profile::parse("test", &text).unwrap();
        let allows = |capabilities: &[Capability]| {
            let capabilities = capabilities.iter().copied().collect();
            let filter = profile.filter(&capabilities).unwrap();
            verdict(&filter, number("mount"), [0; 6]) == ALLOW
        };
        (allows(&[]), allows(&[Capability::CAP_SYS_ADMIN]))
    };
    assert_eq!(
        entry(r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#),
        (false, true)
    );
    assert_eq!(
        entry(r#""excludes": {"caps": ["CAP_SYS_ADMIN"]}"#),
        (true, false)
    );
    assert_eq!(entry(r#""includes": {"minKernel": "4.8"}"#), (true, true));
    assert_eq!(
        entry(r#""includes": {"minKernel": "400.8"}"#),
        (false, false)
    );
    assert_eq!(
        entry(r#""includes": {"arches": ["s390x"]}"#),
        (false, false)
    );
    let own = format!(r#""excludes": {{"arches": ["{OWN_NAME}"]}}"#);
    assert_eq!(entry(&own), (false, false));
}

#[test]
fn mistakes_are_told_with_their_place() {
    let with = |entry: &str| {
        format!("{{\"defaultAction\": \"SCMP_ACT_ERRNO\",\n\"syscalls\": [\n{entry}]}}")
    };
    let read = r#""names": ["read"]"#;
    refused("{", "x.json");
    refused(r#"{"syscalls": []}"#, "missing field `defaultAction`");
    refused(
        &with(r#"{"names": ["read"], "acton": "x"}"#),
        "unknown field `acton`",
    );
    refused(&with(r#"{"names": ["read"], "acton": "x"}"#), "line 3");
    refused(
        &with(&format!(r#"{{{read}, "action": "SCMP_ACT_NOTIFY"}}"#)),
        "unknown variant `SCMP_ACT_NOTIFY`",
    );
    refused(
        &with(&format!(
            r#"{{{read}, "action": "SCMP_ACT_ALLOW", "args": [{{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}}]}}"#
        )),
        "syscalls[0]: argument 6",
    );
    let twice = r#"{"index": 0, "value": 4, "op": "SCMP_CMP_NE"}"#;
    refused(
        &with(&format!(
            r#"{{{read}, "action": "SCMP_ACT_ALLOW", "args": [{twice}, {twice}]}}"#
        )),
        "syscalls[0]: argument 0 is compared twice",
    );
    refused(
        &with(&format!(
            r#"{{{read}, "action": "SCMP_ACT_ALLOW", "errnoRet": 5}}"#
        )),
        "syscalls[0]: an error number",
    );
    refused(
        &with(&format!(
            r#"{{{read}, "action": "SCMP_ACT_ERRNO", "errnoRet": 5000}}"#
        )),
        "5000 is no error number",
    );
    refused(
        &with(r#"{"action": "SCMP_ACT_ALLOW"}"#),
        "syscalls[0]: write `name`",
    );
    refused(
        &with(&format!(
            r#"{{{read}, "action": "SCMP_ACT_ALLOW", "includes": {{"minKernel": "new"}}}}"#
        )),
        "`new` is no kernel version",
    );
    refused(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}"#,
        "this machine is",
    );
    refused(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x.sock"}"#,
        "unknown field `listenerPath`",
    );
}

#[test]
fn a_learnt_profile_reads_as_what_it_says() {
    let text = Profile::allowing([number("read"), 99_999], "of a test")
        .to_json()
        .unwrap();
    let filter = compiled(&text);
    assert_eq!(of(&filter, "read"), ALLOW);
    assert_eq!(of(&filter, "exit_group"), ALLOW);
    assert_eq!(of(&filter, "mount"), ERRNO | 1);
    assert!(filter.skipped().is_empty());
}

#[test]
fn every_shipped_profile_compiles_and_says_why() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../seccomp");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let filter = compiled(&text);
        let document: Document = serde_json::from_str(&text).unwrap();
        for entry in &document.syscalls {
            assert!(entry.comment.is_some(), "{path:?}: {:?}", entry.names);
        }
        assert_eq!(of(&filter, "read"), ALLOW, "{path:?}");
        // The one that goes around others refuses one thing and allows the rest.
        let types = verdict(&filter, number("ioctl"), [0, 0x5412, 0, 0, 0, 0]);
        let refused = match document.default_action {
            Action::Allow => types,
            _ => of(&filter, "mount"),
        };
        assert_eq!(refused, ERRNO | 1, "{path:?}");
    }
}

#[cfg(target_arch = "x86_64")]
const OWN_AUDIT: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OWN_AUDIT: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const OWN_AUDIT: u32 = 0xc000_00f3;
