//! Conditions, files and outputs, each by tables with twins.

mod hostile;
mod shapes;

use std::{collections::HashMap, net::IpAddr};

use super::{Argument, Class, Event, Field, RuleSet, Runs, Value};
use postern_policies::{Diagnostic, SourceFile};

/// An event whose fields a test has chosen.
struct Made {
    class: Class,
    texts: HashMap<Field, &'static str>,
    numbers: HashMap<Field, i64>,
    /// From the parent on.
    ancestors: Vec<&'static str>,
}

impl Event for Made {
    fn class(&self) -> Class {
        self.class
    }

    fn value(&self, field: Field, argument: Argument<'_>) -> Option<Value<'_>> {
        let ancestor = |generation: u8| {
            let at = usize::from(generation).checked_sub(1)?;
            Some(Value::Text(self.ancestors.get(at)?.as_bytes()))
        };
        match (field, argument) {
            (Field::ProcPname, _) => ancestor(1),
            (Field::ProcAname, Argument::Generation(generation)) => ancestor(generation),
            (Field::ProcEnv, Argument::Variable("HOME")) => Some(Value::Text(b"/root")),
            (Field::ProcEnv, Argument::None) => Some(Value::Text(b"HOME=/root")),
            (Field::ProcIsExeUpperLayer, _) => Some(Value::Flag(true)),
            (Field::FdSip, _) => Some(Value::Address(IpAddr::from([10, 1, 2, 3]))),
            _ => {
                let text = self
                    .texts
                    .get(&field)
                    .map(|text| Value::Text(text.as_bytes()));
                text.or(self
                    .numbers
                    .get(&field)
                    .map(|number| Value::Number(*number)))
            }
        }
    }
}

/// A shell in a container, started by `runc` under `containerd`.
fn shell() -> Made {
    Made {
        class: Class::Exec,
        texts: HashMap::from([
            (Field::ProcName, "bash"),
            (Field::ProcExepath, "/usr/bin/bash"),
            (Field::ProcCmdline, "bash -c Whoami"),
            (Field::ContainerId, "3ad7b26ded6d"),
            (Field::FdName, "10.0.0.9:1->10.1.2.3:443"),
        ]),
        numbers: HashMap::from([(Field::UserUid, 1000), (Field::FdSport, 443)]),
        ancestors: vec!["runc", "containerd"],
    }
}

fn load(text: &str) -> Result<RuleSet, Vec<Diagnostic>> {
    let file = SourceFile {
        path: "rules.yaml".into(),
        text: text.as_bytes().to_vec(),
    };
    RuleSet::load(&[file])
}

fn rule(condition: &str) -> String {
    let condition = condition.replace('\'', "''");
    format!("- rule: R\n  desc: d\n  condition: '{condition}'\n  output: o\n  priority: NOTICE\n")
}

#[track_caller]
fn holds(condition: &str, event: &Made) -> bool {
    let set = load(&rule(condition)).unwrap();
    let checked = set.checked.first().unwrap();
    assert!(
        matches!(checked.runs, Runs::Whole | Runs::Partly),
        "{condition}: {checked:?}"
    );
    set.hits(event).count() == 1
}

const SEED: &str = "
- rule: Container Drift Detection
  desc: Detect unexpected processes in containers
  condition: spawned_process and container and proc.name != proc.args and proc.pname exists
  output: Unexpected process (command=%proc.cmdline parent=%proc.pname uid=%user.uid tty=%proc.tty)
  priority: WARNING
";

#[test]
fn the_rule_against_drift_in_containers_loads_as_it_is_written() {
    let set = load(SEED).unwrap();
    let checked = set.checked.first().unwrap();
    assert_eq!((checked.runs, &*checked.reasons), (Runs::Whole, &[][..]));
    let [warning] = &*set.warnings else {
        panic!("{:?}", set.warnings)
    };
    assert_eq!((warning.line, warning.column), (4, 61));
    assert!(warning.message.contains("looks like a field"), "{warning}");
    assert_eq!(
        warning.hint.as_deref().unwrap().split('`').nth(1),
        Some("val(proc.args)")
    );
    let event = shell();
    let hit = set.hits(&event).next().unwrap();
    let line = "Unexpected process (command=bash -c Whoami parent=runc uid=1000 tty=<NA>)";
    assert_eq!(hit.line(&event), line);
    let mut twin = shell();
    twin.texts.insert(Field::ContainerId, "host");
    assert_eq!(set.hits(&twin).count(), 0, "on the host");
    twin = shell();
    twin.ancestors.clear();
    assert_eq!(set.hits(&twin).count(), 0, "without a parent");
    twin = shell();
    twin.class = Class::Credentials;
    assert_eq!(set.hits(&twin).count(), 0, "no program was started");
}

#[test]
fn each_operator_has_a_case_that_holds_and_a_twin_that_does_not() {
    for (yes, no) in [
        ("proc.name = bash", "proc.name = Bash"),
        ("proc.name=\"bash\"", "proc.name='bash '"),
        ("proc.name != sh", "proc.name != bash"),
        ("proc.name in (sh, bash)", "proc.name in (sh, ash)"),
        ("not proc.name in ()", "proc.name in ()"),
        ("proc.cmdline contains Who", "proc.cmdline contains who"),
        ("proc.cmdline icontains who", "proc.cmdline icontains whom"),
        (
            "proc.exepath startswith /usr",
            "proc.exepath startswith /bin",
        ),
        ("proc.exepath endswith /bash", "proc.exepath endswith /ash"),
        (
            "proc.exepath glob /usr/*/b?sh",
            "proc.exepath glob /usr/*/b?",
        ),
        ("proc.cmdline iglob *WHOAMI", "proc.cmdline glob *WHOAMI"),
        ("proc.name regex b.s[h]", "proc.name regex b.s"),
        (
            "proc.exepath pmatch (/etc, /usr/bin)",
            "proc.exepath pmatch (/usr/bi)",
        ),
        ("proc.name intersects (bash)", "proc.name intersects (sh)"),
        ("proc.pname exists", "proc.tty exists"),
        ("user.uid = 1000", "user.uid = 100"),
        ("user.uid > 999", "user.uid > 1000"),
        ("user.uid >= 1000", "user.uid >= 1001"),
        ("user.uid < 1001", "user.uid < 1000"),
        ("user.uid <= 1000", "user.uid <= 999"),
        ("user.uid in (1, 1000)", "user.uid in (1)"),
        (
            "proc.is_exe_upper_layer = true",
            "proc.is_exe_upper_layer = false",
        ),
        ("proc.aname[2] = containerd", "proc.aname[3] = containerd"),
        (
            "proc.aname in (x, containerd)",
            "proc.aname in (x, dockerd)",
        ),
        ("proc.env[HOME] = /root", "proc.env[PATH] = /root"),
        ("proc.env contains HOME=", "proc.env contains PATH="),
        (
            "tolower(proc.cmdline) contains whoami",
            "tolower(proc.cmdline) contains Who",
        ),
        ("toupper(proc.name) = BASH", "toupper(proc.name) = bash"),
        (
            "basename(proc.exepath) = bash",
            "basename(proc.exepath) = bin",
        ),
        (
            "basename(proc.exepath) = val(proc.name)",
            "proc.exepath = val(proc.name)",
        ),
        ("len(proc.name) = 4", "len(proc.name) > 4"),
        // What is not there is neither.
        ("not proc.tty = 0", "proc.tty != 0"),
        // `and` binds stronger than `or`.
        (
            "proc.name=bash or proc.name=a and proc.name=b",
            "(proc.name=bash or proc.name=a) and proc.name=b",
        ),
        ("not not proc.name = bash", "not(proc.name = bash)"),
        ("evt.type = execveat", "not evt.type in (execve)"),
        ("always_true", "proc.name = bash and never_true"),
    ] {
        let with = |condition: &str| format!("spawned_process and ({condition})");
        assert!(holds(&with(yes), &shell()), "{yes}");
        // A condition that never holds is not run at all.
        let set = load(&rule(&with(no))).unwrap();
        assert_eq!(set.hits(&shell()).count(), 0, "{no}");
    }
}

#[test]
fn addresses_and_ports_of_sockets_are_compared() {
    let connected = || Made {
        class: Class::Connect,
        ..shell()
    };
    for (yes, no) in [
        ("fd.sip = 10.1.2.3", "fd.sip = 10.1.2.4"),
        (
            "fd.snet in (\"10.0.0.0/8\")",
            "fd.snet in (\"10.0.0.0/16\")",
        ),
        ("fd.sip != 10.1.2.4", "fd.sip != 10.1.2.3"),
        ("fd.sport in (80, 443)", "fd.sport in (80)"),
        ("fd.name endswith :443", "fd.name endswith :80"),
    ] {
        assert!(
            holds(&format!("evt.type = connect and {yes}"), &connected()),
            "{yes}"
        );
        assert!(
            !holds(&format!("evt.type = connect and {no}"), &connected()),
            "{no}"
        );
        let set = load(&rule(&format!("spawned_process and {yes}"))).unwrap();
        assert_eq!(
            set.hits(&shell()).count(),
            0,
            "programs have no sockets: {yes}"
        );
    }
}

/// Checks how far a rule runs, and the fields or types that it names.
#[track_caller]
fn runs(condition: &str, expected: Runs, named: &[&str]) {
    let set = load(&rule(condition)).unwrap();
    let checked = set.checked.first().unwrap();
    let reasons = checked.reasons.iter();
    let names: Vec<&str> = reasons
        .flat_map(|reason| reason.field.iter().chain(&reason.events))
        .map(String::as_str)
        .collect();
    assert_eq!(
        (checked.runs, names.as_slice()),
        (expected, named),
        "{condition}: {checked:?}"
    );
}

#[test]
fn a_rule_runs_as_far_as_its_fields_are_filled_and_says_which_are_not() {
    let exec = |more: &str| format!("spawned_process and {more}");
    runs(&exec("proc.name = a"), Runs::Whole, &[]);
    runs(
        &exec("(proc.name = a or proc.nthreads > 2)"),
        Runs::Partly,
        &["proc.nthreads"],
    );
    runs(&exec("proc.nthreads > 2"), Runs::Not, &["proc.nthreads"]);
    // Without it, it would hit what is excepted.
    runs(
        &exec("not proc.nthreads > 2"),
        Runs::Not,
        &["proc.nthreads"],
    );
    runs(
        &exec("(proc.name = a or not proc.nthreads > 2)"),
        Runs::Partly,
        &["proc.nthreads"],
    );
    // It does not count.
    runs(
        &exec("proc.name = a and (never_true and proc.nthreads > 2 or proc.pid > 1)"),
        Runs::Whole,
        &[],
    );
    runs("evt.type = openat and fd.num > 0", Runs::Not, &["openat"]);
    runs(
        "evt.type in (openat, execve) and proc.name = a",
        Runs::Partly,
        &["openat"],
    );
    runs(
        "evt.type = connect and fd.sport = 22",
        Runs::Partly,
        &["connect"],
    );
    runs(
        "evt.type = setuid and user.uid = 0",
        Runs::Not,
        &["user.uid"],
    );
    runs(
        "proc.name = a",
        Runs::Partly,
        &["setuid", "listen", "connect", "accept"],
    );
    runs(
        &exec("evt.arg.flags contains X"),
        Runs::Not,
        &["evt.arg.flags"],
    );
    runs(&exec("proc.nmae = a"), Runs::Not, &["proc.nmae"]);
    runs(&exec("never_true"), Runs::Not, &[]);
    // What is not seen may have failed, or be told before it happens.
    runs(
        "evt.type = openat and evt.res startswith E",
        Runs::Not,
        &["openat"],
    );
    runs(
        "evt.type = ptrace and evt.dir = > and proc.name = a",
        Runs::Not,
        &["ptrace"],
    );
    runs(
        "evt.type = connect and evt.res = ECONNREFUSED",
        Runs::Not,
        &["evt.res"],
    );
}

#[test]
fn a_reason_names_file_line_column_and_the_mend() {
    let text = "- rule: R\n  desc: d\n  condition: >\n    spawned_process and\n      proc.nmae = a\n  output: o\n  priority: notice\n";
    let set = load(text).unwrap();
    let reason = &set.checked[0].reasons[0];
    assert_eq!(
        (reason.place.line, reason.place.column),
        (5, 7),
        "{reason:?}"
    );
    assert_eq!(reason.hint.as_deref(), Some("did you mean `proc.name`?"));
    assert_eq!(reason.file, std::path::PathBuf::from("rules.yaml"));
}

#[test]
fn a_rule_whose_field_is_unknown_is_skipped_where_it_says_so() {
    let text = rule("spawned_process and foo.bar = a") + "  skip-if-unknown-filter: true\n";
    assert_eq!(load(&text).unwrap().checked[0].runs, Runs::Skipped);
    let text = rule("spawned_process and proc.nthreads = 1") + "  skip-if-unknown-filter: true\n";
    assert_eq!(
        load(&text).unwrap().checked[0].runs,
        Runs::Not,
        "the field is known"
    );
}

/// What is wrong, by place and words.
#[track_caller]
fn refused(text: &str, line: u32, column: u32, message: &str, hint: &str) {
    let found = load(text).unwrap_err();
    let first = found.first().unwrap();
    assert!(first.message.contains(message), "`{message}` in {first}");
    assert!(
        first.hint.as_deref().unwrap_or_default().contains(hint),
        "`{hint}` in {first}"
    );
    assert_eq!((first.line, first.column), (line, column), "{first}");
}

#[test]
fn mistakes_are_told_with_their_place_and_mend() {
    let condition = |text: &str| {
        format!("- rule: R\n  desc: d\n  condition: {text}\n  output: o\n  priority: NOTICE\n")
    };
    for (text, column, message, hint) in [
        ("proc.name = a b", 28, "`b` was not expected", "quotes"),
        ("(proc.name = a", 14, "`(` without its `)`", ""),
        ("proc.name = a)", 27, "`)` without its `(`", ""),
        ("proc.name", 14, "`proc.name` needs an operator", "= value"),
        (
            "proc.name contians a",
            24,
            "is no operator",
            "did you mean `contains`?",
        ),
        ("proc.name in (a, b", 31, "no `)`", "commas"),
        ("proc.name = ", 24, "no value", ""),
        ("proc.name = a and", 30, "ends where a test", ""),
        ("lower(proc.name) = a", 14, "no transformer", ""),
        ("proc.aname[2 = a", 14, "no `]`", ""),
    ] {
        refused(&condition(text), 3, column, message, hint);
    }
    refused(
        "- rul: R\n",
        1,
        3,
        "no kind of item",
        "did you mean `rule`?",
    );
    refused(
        "- rule: R\n  conditoin: x\n",
        2,
        3,
        "unknown field `conditoin`",
        "did you mean `condition`?",
    );
    refused(
        "- rule: R\n  desc: d\n  condition: proc.name = a\n  output: o\n",
        1,
        3,
        "needs `priority`",
        "",
    );
    let text = rule("proc.name = a").replace("NOTICE", "NOTCIE");
    refused(&text, 5, 13, "`NOTCIE`", "did you mean `Notice`?");
    refused(
        "- macro: m\n  append: true\n  condition: or x\n",
        1,
        3,
        "no macro `m` yet",
        "before",
    );
    refused(
        "- required_engine_version: x\n",
        1,
        3,
        "`x` is no version",
        "0.57.0",
    );
    refused("a: b\n", 1, 1, "must be a list", "");
    let fields = "  exceptions: [{name: e, fields: [proc.name, proc.pname], comps: [=, =], values: [[a]]}]\n";
    refused(
        &(rule("proc.name = a") + fields),
        6,
        83,
        "1 values for 2 fields",
        "each of `fields`",
    );
}

#[test]
fn what_cannot_be_put_together_refuses_its_rule_alone() {
    for (condition, message) in [
        ("spawned_proces", "no macro `spawned_proces`"),
        ("spawned_process and user.uid = root", "`root` is none"),
        (
            "spawned_process and user.uid startswith 1",
            "compares texts",
        ),
        ("spawned_process and proc.name < a", "no order"),
        (
            "spawned_process and proc.name regex \"(a\"",
            "regular expression",
        ),
        (
            "spawned_process and proc.is_exe_upper_layer = yes",
            "true or false",
        ),
        ("evt.type = connect and fd.sip = localhost", "is an address"),
        ("spawned_process and proc.aname[x] = a", "no generation"),
        ("spawned_process and proc.name[1] = a", "square brackets"),
        ("spawned_process and len(user.uid) = 1", "made of texts"),
        ("spawned_process and tolower(proc.name) regex a", "(?i)"),
        ("spawned_process and proc.name bcontains 6f", "`bcontains`"),
        (
            "spawned_process and b64(proc.name) = a",
            "`b64` is not supported",
        ),
    ] {
        let text = rule(condition)
            + &rule("spawned_process and proc.name = a").replace("rule: R", "rule: S");
        let set = load(&text).unwrap();
        let reason = &set.checked[0].reasons[0];
        let said = format!(
            "{} {}",
            reason.why,
            reason.hint.as_deref().unwrap_or_default()
        );
        assert!(said.contains(message), "{condition}: {said}");
        assert_eq!(
            (set.checked[0].runs, set.checked[1].runs),
            (Runs::Not, Runs::Whole)
        );
    }
}

#[test]
fn lists_and_macros_may_be_changed_by_later_items() {
    let base = "
- list: shells
  items: [sh, 1234, yes, \"b c\"]
- list: all
  items: [shells, zsh]
- macro: is_shell
  condition: proc.name in (all)
- rule: R
  desc: d
  condition: spawned_process and is_shell
  output: first
  priority: INFO
";
    let hits = |more: &str| {
        load(&format!("{base}{more}"))
            .unwrap()
            .hits(&shell())
            .count()
    };
    assert_eq!(hits(""), 0);
    assert_eq!(hits("- list: shells\n  items: [bash]\n  append: true\n"), 1);
    assert_eq!(
        hits("- list: shells\n  items: [bash]\n  override: {items: append}\n"),
        1
    );
    assert_eq!(hits("- list: shells\n  items: [bash]\n"), 1);
    assert_eq!(
        hits("- macro: is_shell\n  condition: or proc.name = bash\n  append: true\n"),
        1
    );
    assert_eq!(
        hits("- macro: is_shell\n  condition: proc.name = bash\n"),
        1
    );
    let on = "- list: shells\n  items: [bash]\n";
    assert_eq!(hits(&format!("{on}- rule: R\n  enabled: false\n")), 0);
    let replaced = "- rule: R\n  condition: spawned_process\n  override: {condition: replace}\n";
    assert_eq!(hits(replaced), 1);
    let narrowed = "- rule: R\n  condition: and proc.name = sh\n  override: {condition: append}\n";
    assert_eq!(hits(&format!("{on}{narrowed}")), 0);
    for (item, expected) in [("1234", 1), ("yes", 1), ("'b c'", 1), ("zsh", 1), ("no", 0)] {
        let name = item.trim_matches('\'').to_owned();
        let mut event = shell();
        event
            .texts
            .insert(Field::ProcName, Box::leak(name.into_boxed_str()));
        assert_eq!(load(base).unwrap().hits(&event).count(), expected, "{item}");
    }
}

#[test]
fn exceptions_take_away_what_they_name_and_no_more() {
    let base = rule("spawned_process");
    let hits = |more: &str| {
        load(&format!("{base}{more}"))
            .unwrap()
            .hits(&shell())
            .count()
    };
    for (exceptions, expected) in [
        ("{name: e, fields: proc.name, values: [sh, bash]}", 0),
        ("{name: e, fields: proc.name, values: [sh, ash]}", 1),
        (
            "{name: e, fields: [proc.name, proc.pname], values: [[bash, runc]]}",
            0,
        ),
        (
            "{name: e, fields: [proc.name, proc.pname], values: [[bash, init]]}",
            1,
        ),
        (
            "{name: e, fields: [proc.name, proc.exepath], comps: [in, startswith], values: [[[a, bash], /usr]]}",
            0,
        ),
        (
            "{name: e, fields: [proc.name, proc.exepath], comps: [in, startswith], values: [[[a, bash], /bin]]}",
            1,
        ),
        ("{name: e, fields: [proc.name]}", 1),
    ] {
        assert_eq!(
            hits(&format!("  exceptions: [{exceptions}]\n")),
            expected,
            "{exceptions}"
        );
    }
    let described = "  exceptions: [{name: e, fields: proc.name}]\n";
    let append = |name: &str| {
        format!(
            "{described}- rule: R\n  exceptions: [{{name: e, values: [{name}]}}]\n  override: {{exceptions: append}}\n"
        )
    };
    assert_eq!(hits(&append("bash")), 0);
    assert_eq!(hits(&append("sh")), 1);
}

#[test]
fn an_output_shows_what_is_there_and_no_line_of_somebody_elses() {
    let line = |output: &str| {
        let text = rule("spawned_process").replace("output: o", &format!("output: \"{output}\""));
        let set = load(&text).unwrap();
        let mut event = shell();
        event.texts.insert(Field::ProcCwd, "a\nb");
        set.hits(&event).next().unwrap().line(&event)
    };
    assert_eq!(line("*%proc.name[0]."), "bash.");
    assert_eq!(
        line("%proc.aname[2] 5% %proc.tty|%evt.arg.flags"),
        "containerd 5% <NA>|<NA>"
    );
    assert_eq!(line("cwd=%proc.cwd."), "cwd=a\\nb.");
    let text = rule("spawned_process").replace("output: o", "output: x %proc.nmae");
    let set = load(&text).unwrap();
    let reason = &set.checked[0].reasons[0];
    assert_eq!(
        (set.checked[0].runs, reason.place.line, reason.place.column),
        (Runs::Not, 4, 13)
    );
    assert_eq!(reason.hint.as_deref(), Some("did you mean `%proc.name`?"));
}
