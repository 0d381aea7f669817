//! What rules in Falco's language cost: `cargo bench --workspace --bench rules [-- FILE…]`.
//!
//! Files are loaded again and again, and events are put to all of their rules. Without files it takes
//! rules of its own: ninety, which look at programs, sockets and files as Falco's do. The events are made
//! beforehand, so that what reading them from the kernel costs does not count. Figures are of this thread's processor time.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking, and prints its figures"
)]

use std::{fs, hint::black_box};

use postern_agent::rules::{Argument, Class, Event, Field, RuleSet, Runs, Value};
use postern_policies::SourceFile;

fn main() {
    let files = std::env::args().skip(1).filter(|one| one != "--bench");
    let mut sources: Vec<SourceFile> = files
        .map(|path| SourceFile {
            text: fs::read(&path).unwrap(),
            path: path.into(),
        })
        .collect();
    if sources.is_empty() {
        sources.push(own());
    }
    let began = processor_time();
    for _ in 0..LOADS {
        black_box(RuleSet::load(black_box(&sources)).unwrap());
    }
    let millis = (processor_time() - began) / 1e6 / f64::from(LOADS);
    let set = RuleSet::load(&sources).unwrap();
    let runs = set.checked.iter().filter(|one| {
        let runs = matches!(one.runs, Runs::Whole | Runs::Partly);
        runs && one.is_enabled
    });
    let (all, running) = (set.checked.len(), runs.count());
    println!("load: {all} rules, of which {running} run: {millis:.1} ms");
    for (what, event) in EVENTS {
        let began = processor_time();
        let mut hits = 0;
        for _ in 0..ROUNDS {
            hits += set.hits(black_box(&event)).count();
        }
        let nanos = (processor_time() - began) / f64::from(ROUNDS);
        let hits = hits / usize::try_from(ROUNDS).unwrap();
        println!("{what}: {nanos:.0} ns, {hits} hits");
    }
}

/// What this thread has had of a processor, in nanoseconds. Spec: proc(5), `schedstat`.
fn processor_time() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_ascii_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// Ninety rules of three kinds.
fn own() -> SourceFile {
    let mut text = "\
- list: shells
  items: [sh, bash, dash, zsh, ash, ksh]
- list: servers
  items: [nginx, httpd, lighttpd, postgres, mysqld, redis-server, mongod, memcached]
- macro: harmless
  condition: (proc.pname = cron or proc.aname[2] = cron or proc.cmdline startswith \"sh -c true\")
"
    .to_owned();
    for number in 0..90 {
        let condition = match number % 3 {
            0 => format!(
                "spawned_process and container and (proc.name in (shells, tool{number}) and \
                 proc.aname in (servers) or proc.args contains \"--run{number}\") and not harmless"
            ),
            1 => format!("evt.type = connect and fd.sport in ({number}, 22) and not harmless"),
            _ => format!("evt.type in (open, openat) and fd.name startswith /etc/{number}"),
        };
        text += &format!(
            "- rule: R{number}\n  desc: d\n  condition: >\n    {condition}\n  output: o\n  priority: INFO\n"
        );
    }
    SourceFile {
        path: "own.yaml".into(),
        text: text.into_bytes(),
    }
}

/// An event in the memory.
struct Made {
    class: Class,
    name: &'static str,
}

impl Event for Made {
    fn class(&self) -> Class {
        self.class
    }

    fn value(&self, field: Field, argument: Argument<'_>) -> Option<Value<'_>> {
        let text = |text: &'static str| Some(Value::Text(text.as_bytes()));
        match field {
            Field::ProcName | Field::ProcExe => text(self.name),
            Field::ProcExepath => text("/usr/bin/worker"),
            Field::ProcCmdline => text("worker --listen 8080 --data /var/lib/worker"),
            Field::ProcArgs => text("--listen 8080 --data /var/lib/worker"),
            Field::ProcPname => text("containerd-shim"),
            Field::ProcAname => match argument {
                Argument::Generation(1) => text("containerd-shim"),
                Argument::Generation(2) => text("systemd"),
                _ => None,
            },
            Field::ContainerId => text("3ad7b26ded6d"),
            Field::ContainerImageRepository => text("registry.example.org/shop/worker"),
            Field::UserName => text("www-data"),
            Field::UserUid => Some(Value::Number(33)),
            Field::ProcTty => Some(Value::Number(0)),
            Field::ProcVpid => Some(Value::Number(7)),
            Field::FdSport | Field::FdRport if self.class == Class::Connect => {
                Some(Value::Number(5432))
            }
            _ => None,
        }
    }
}

const EVENTS: [(&str, Made); 4] = [
    (
        "a program that no rule means",
        Made {
            class: Class::Exec,
            name: "worker",
        },
    ),
    (
        "a shell",
        Made {
            class: Class::Exec,
            name: "sh",
        },
    ),
    (
        "a connection",
        Made {
            class: Class::Connect,
            name: "worker",
        },
    ),
    (
        "another user",
        Made {
            class: Class::Credentials,
            name: "worker",
        },
    ),
];

const LOADS: u32 = 20;
const ROUNDS: u32 = 100_000;
