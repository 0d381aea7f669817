//! Rules of the shapes that Falco's own have, in other words: each runs whole, hits what it means, and
//! does not hit twins that differ in one point.

use std::collections::HashMap;

use super::{
    super::field::{self, Kind, Source},
    Argument, Class, Event, Field, Runs, Value, load,
};

/// An event by the names of its fields; of ancestors with their generation.
#[derive(Clone)]
pub(super) struct Seen {
    class: Class,
    values: HashMap<&'static str, &'static str>,
}

impl Seen {
    /// A shell, the first process of a container of an ordinary kind.
    fn shell() -> Self {
        let values = HashMap::from([
            ("proc.name", "sh"),
            ("proc.exe", "sh"),
            ("proc.exepath", "/bin/sh"),
            ("proc.cmdline", "sh -c work"),
            ("proc.args", "-c work"),
            ("proc.cwd", "/app/"),
            ("proc.pid", "4711"),
            ("proc.pgid", "4700"),
            ("proc.vpid", "1"),
            ("proc.tty", "0"),
            ("proc.pname", "containerd-shim"),
            ("proc.aname[1]", "containerd-shim"),
            ("proc.aname[2]", "systemd"),
            ("proc.env", "PATH=/bin"),
            ("proc.is_exe_upper_layer", "false"),
            ("proc.is_exe_from_memfd", "false"),
            ("user.uid", "0"),
            ("user.name", "root"),
            ("container.id", "3ad7b26ded6d"),
            ("container.privileged", "false"),
            ("container.image.repository", "example.org/shop"),
            ("k8s.ns.name", "shop"),
            ("thread.cap_permitted", "CAP_CHOWN CAP_KILL"),
        ]);
        Self {
            class: Class::Exec,
            values,
        }
    }

    /// The same but for these fields; `ABSENT` takes one away.
    fn but(&self, changes: &[(&'static str, &'static str)]) -> Self {
        let mut changed = self.clone();
        for (name, value) in changes {
            match *value {
                ABSENT => changed.values.remove(name),
                value => changed.values.insert(name, value),
            };
        }
        changed
    }
}

impl Event for Seen {
    fn class(&self) -> Class {
        self.class
    }

    fn value(&self, field: Field, argument: Argument<'_>) -> Option<Value<'_>> {
        let (name, text) = self.values.iter().find(|(name, _)| {
            let (plain, generation) = match name.split_once('[') {
                Some((plain, rest)) => (plain, rest.trim_end_matches(']').parse().ok()),
                None => (**name, None),
            };
            let is_field = matches!(
                field::known(plain).unwrap().source,
                Source::Every(one) | Source::Socket(one) if one == field
            );
            let asked = match argument {
                Argument::Generation(number) => Some(number),
                _ => None,
            };
            is_field && (generation == asked)
        })?;
        let plain = name.split('[').next().unwrap();
        Some(match field::known(plain).unwrap().kind {
            Kind::Text => Value::Text(text.as_bytes()),
            Kind::Number => Value::Number(text.parse().unwrap()),
            Kind::Flag => Value::Flag(text.parse().unwrap()),
            Kind::Address => Value::Address(text.parse().unwrap()),
        })
    }
}

type Changes = &'static [(&'static str, &'static str)];

struct Shape {
    what: &'static str,
    /// Lists and macros.
    items: &'static str,
    condition: &'static str,
    hit: Changes,
    /// Each differs from the hit in this.
    twins: &'static [Changes],
}

const ABSENT: &str = "<absent>";

const SHAPES: &[Shape] = &[
    Shape {
        what: "a shell below a server, with lists in lists and lines in quotes in quotes",
        items: r#"
- list: web
  items: [nginx, httpd]
- list: servers
  items: [web, postgres, '"my server"']
- list: shells
  items: [sh, bash]
- list: harmless
  items: ['"sh -c uname -a 2>&1"', '"sh -c node -e \"require(''x'')\""']
- macro: below_server
  condition: (proc.aname in (servers))
"#,
        condition: "spawned_process and proc.name in (shells) and proc.pname exists and below_server \
                    and not proc.pname in (shells, cron, \"puma reactor\") and not proc.cmdline in (harmless)",
        hit: &[("proc.pname", "nginx"), ("proc.aname[2]", "nginx")],
        twins: &[
            &[("proc.cmdline", "sh -c uname -a 2>&1")],
            &[("proc.cmdline", "sh -c node -e \"require('x')\"")],
            &[("proc.pname", "puma reactor")],
            &[("proc.pname", ABSENT)],
            &[("proc.aname[2]", "nginx-helper")],
            &[("proc.name", "dash")],
        ],
    },
    Shape {
        what: "a user of the system who works by hand",
        items: "- macro: by_hand\n  condition: >\n    ((proc.aname=sshd and proc.name != sshd) or\n    proc.name=login)\n",
        condition: "spawned_process and user.name in (daemon, www-data) and by_hand",
        hit: &[("user.name", "www-data"), ("proc.aname[2]", "sshd")],
        twins: &[
            &[("user.name", "root")],
            &[("proc.aname[2]", "init")],
            &[("proc.name", "sshd")],
        ],
    },
    Shape {
        what: "a shell at a terminal, begun by the runtime or by nobody",
        items: "- macro: entry\n  condition: (not proc.pname exists or proc.pname in (runc:[0:PARENT], runc, containerd-shim))\n",
        condition: "spawned_process and container and proc.name = sh and proc.tty != 0 and entry",
        hit: &[("proc.tty", "34816"), ("proc.pname", "runc:[0:PARENT]")],
        twins: &[
            &[("proc.tty", "0")],
            &[("proc.pname", "bash")],
            &[("container.id", "host")],
        ],
    },
    Shape {
        what: "a tool that runs commands for others, in brackets over several lines",
        items: "",
        condition: "spawned_process and container\n    and ((proc.name = \"nc\" and (proc.cmdline contains \" -e\" or\n      proc.cmdline contains \" -c\")) or\n     (proc.name = 'ncat' and (proc.args contains \"--exec\" or proc.args contains \"-e \"))\n     )",
        hit: &[
            ("proc.name", "nc"),
            ("proc.cmdline", "nc -e /bin/sh 10.0.0.9"),
        ],
        twins: &[
            &[("proc.cmdline", "nc 10.0.0.9")],
            &[("proc.name", "ncat")],
            &[("container.id", "host")],
        ],
    },
    Shape {
        what: "a search for keys, in any case of letters",
        items: "- macro: never_more\n  condition: (never_true)\n",
        condition: "spawned_process and ((proc.name in (grep, egrep) and (proc.args icontains \"begin rsa\" or \
                    (never_more and proc.args contains sh))) or (proc.name = find and proc.args endswith \"id_rsa\"))",
        hit: &[("proc.name", "grep"), ("proc.args", "-r Begin RSA /")],
        twins: &[&[("proc.args", "-r begin dsa /")], &[("proc.name", "find")]],
    },
    Shape {
        what: "a debugger of file systems in a privileged container",
        items: "",
        condition: "spawned_process and container and container.privileged=true and proc.name=debugfs",
        hit: &[("container.privileged", "true"), ("proc.name", "debugfs")],
        twins: &[
            &[("container.privileged", "false")],
            &[("proc.name", "mount")],
        ],
    },
    Shape {
        what: "a program in shared memory, by its name or by where it stands",
        items: "- list: ours\n  items: [example.org/tool]\n- list: more\n  items: []\n",
        condition: "spawned_process and (proc.exe startswith \"/dev/shm/\" or \
                    (proc.cwd startswith \"/dev/shm/\" and proc.exe startswith \"./\" ) or \
                    (proc.name = sh and proc.args startswith \"-c /dev/shm\")) \
                    and not container.image.repository in (ours, more)",
        hit: &[("proc.exe", "./x"), ("proc.cwd", "/dev/shm/a/")],
        twins: &[
            &[("proc.cwd", "/dev/")],
            &[("proc.exe", "x")],
            &[("container.image.repository", "example.org/tool")],
        ],
    },
    Shape {
        what: "a program that the image does not have",
        items: "- list: allowed\n  items: []\n",
        condition: "spawned_process and container and proc.is_exe_upper_layer=true \
                    and not container.image.repository in (allowed)",
        hit: &[
            ("proc.is_exe_upper_layer", "true"),
            ("container.image.repository", ABSENT),
        ],
        twins: &[
            &[("proc.is_exe_upper_layer", "false")],
            &[("container.id", "host")],
        ],
    },
    Shape {
        what: "a program that lies in memory, but for the runtime's own; a macro without outer brackets",
        items: "- macro: own\n  condition: >\n    (proc.name in (runc))\n    or (proc.exepath = \"memfd:own:/proc/self/exe\")\n",
        condition: "spawned_process and proc.is_exe_from_memfd=true and not own",
        hit: &[
            ("proc.is_exe_from_memfd", "true"),
            ("proc.exepath", "memfd:other"),
        ],
        twins: &[
            &[("proc.exepath", "memfd:own:/proc/self/exe")],
            &[("proc.name", "runc")],
            &[("proc.is_exe_from_memfd", "false")],
        ],
    },
    Shape {
        what: "a child of a database that is none of its own, but for a backup with quotes in its line",
        items: "- macro: backup\n  condition: (proc.pname=postgres and (proc.cmdline startswith \"sh -c envdir \\\"/run/env\\\" push\"))\n",
        condition: "spawned_process and proc.pname in (mysqld, postgres) and not proc.name in (mysqld, postgres) and not backup",
        hit: &[("proc.pname", "postgres")],
        twins: &[
            &[("proc.cmdline", "sh -c envdir \"/run/env\" push 1")],
            &[("proc.name", "postgres")],
            &[("proc.pname", "psql")],
        ],
    },
    Shape {
        what: "the first process of a privileged container of a strange image",
        items: "- macro: begun\n  condition: >\n    (spawned_process and proc.vpid=1 and container)\n- macro: trusted\n  condition: (container.image.repository startswith \"12345.reg\" and container.image.repository endswith \"/proxy\")\n",
        condition: "begun and container.privileged=true and not trusted",
        hit: &[
            ("container.privileged", "true"),
            ("container.image.repository", "12345.reg/other"),
        ],
        twins: &[
            &[("container.image.repository", "12345.reg/proxy")],
            &[("proc.vpid", "2")],
            &[("container.privileged", "false")],
        ],
    },
    Shape {
        what: "a container that may do too much",
        items: "",
        condition: "spawned_process and container and proc.vpid=1 and (thread.cap_permitted contains CAP_BPF \
                    or thread.cap_permitted contains CAP_SYS_ADMIN)",
        hit: &[("thread.cap_permitted", "CAP_KILL CAP_SYS_ADMIN")],
        twins: &[&[("thread.cap_permitted", "CAP_KILL")]],
    },
    Shape {
        what: "a client whose requests go elsewhere, by its environment",
        items: "",
        condition: "spawned_process and proc.name in (curl, wget) and proc.env icontains HTTP_PROXY",
        hit: &[
            ("proc.name", "curl"),
            ("proc.env", "A=1 http_proxy=http://x B=2"),
        ],
        twins: &[&[("proc.env", "A=1 https_proxy=x")], &[("proc.name", "sh")]],
    },
    Shape {
        what: "users are changed outside of containers",
        items: "- list: passwords\n  items: [passwd, '\"(systemd)\"']\n- list: managing\n  items: [passwords, useradd]\n",
        condition: "spawned_process and not container and proc.name in (managing) and not proc.pname in (cron) \
                    and not proc.cmdline startswith \"passwd -S\" and not (proc.pname=sh and proc.aname[2]=yum)",
        hit: &[
            ("container.id", "host"),
            ("proc.name", "(systemd)"),
            ("proc.pname", "sh"),
        ],
        twins: &[
            &[("container.id", "3ad7b26ded6d")],
            &[("proc.cmdline", "passwd -S a")],
            &[("proc.aname[2]", "yum")],
        ],
    },
    Shape {
        what: "a package manager in a container, by a user without a name too",
        items: "- list: managers\n  items: [apt, apk]\n- macro: below\n  condition: (proc.pname in (managers) or\n             proc.aname[4] in (managers))\n",
        condition: "spawned_process and container and user.name != \"_apt\" and proc.name in (managers) and not below",
        hit: &[
            ("proc.name", "apk"),
            ("user.name", ABSENT),
            ("user.uid", "4242"),
        ],
        twins: &[
            &[("user.name", "_apt")],
            &[("proc.aname[4]", "apt")],
            &[("proc.pname", "apk")],
        ],
    },
    Shape {
        what: "a mount in a privileged container that is no question",
        items: "- macro: asks\n  condition: (proc.args=\"\" or proc.args intersects (\"-V\", \"-l\"))\n- macro: driver\n  condition:\n    (k8s.ns.name = kube-system\n    and container.image.repository = example.org/driver)\n",
        condition: "spawned_process and container.privileged=true and proc.name=mount and not asks and not driver",
        hit: &[
            ("container.privileged", "true"),
            ("proc.name", "mount"),
            ("proc.args", "/dev/vda /mnt"),
            ("container.image.repository", "example.org/driver"),
        ],
        twins: &[
            &[("proc.args", "")],
            &[("proc.args", "-l")],
            &[("k8s.ns.name", "kube-system")],
        ],
    },
    Shape {
        what: "a file that is fetched",
        items: "- macro: fetches\n  condition: (proc.name = curl and\n              (proc.cmdline contains \" -o \" or\n              proc.cmdline contains \" --output \"))\n",
        condition: "spawned_process and container and (proc.name = wget or fetches)",
        hit: &[("proc.name", "curl"), ("proc.cmdline", "curl -o x y")],
        twins: &[&[("proc.cmdline", "curl y")], &[("proc.name", "curly")]],
    },
    Shape {
        what: "a miner, by its protocol",
        items: "",
        condition: "spawned_process and (proc.cmdline contains \"stratum+tcp\" or proc.cmdline contains \"stratum2+ssl\")",
        hit: &[("proc.cmdline", "x -o stratum+tcp://pool")],
        twins: &[&[("proc.cmdline", "x -o stratum+ssl://pool")]],
    },
    Shape {
        what: "a client of the cluster; `not` holds for the whole of a macro without outer brackets",
        items: "- macro: known\n  condition: >\n    (k8s.ns.name=\"kube-system\" and container.image.repository in (example.org/scaler)) or container.image.repository in (example.org/tunnel)\n- macro: also_known\n  condition: (known)\n",
        condition: "spawned_process and container and not also_known and proc.name in (kubectl, crictl)",
        hit: &[
            ("proc.name", "kubectl"),
            ("container.image.repository", "example.org/scaler"),
        ],
        twins: &[
            &[("k8s.ns.name", "kube-system")],
            &[("container.image.repository", "example.org/tunnel")],
        ],
    },
    Shape {
        what: "a container that begins as root",
        items: "- list: images\n  items: []\n",
        condition: "spawned_process and container and proc.vpid=1 and user.uid=0 and not container.image.repository in (images)",
        hit: &[],
        twins: &[&[("user.uid", "1000")], &[("proc.vpid", "7")]],
    },
    Shape {
        what: "a backslash before a blank, or at the end",
        items: "",
        condition: "spawned_process and user.uid != 0 and (proc.name=sudoedit or proc.name = sudo) \
                    and (proc.args contains -s or proc.args contains --login) \
                    and (proc.args contains \"\\ \" or proc.args endswith \\)",
        hit: &[
            ("user.uid", "1000"),
            ("proc.name", "sudoedit"),
            ("proc.args", "-s \\"),
        ],
        twins: &[
            &[("proc.args", "-s /etc/x")],
            &[("proc.args", "\\")],
            &[("user.uid", "0")],
        ],
    },
    Shape {
        what: "no argument at all",
        items: "",
        condition: "spawned_process and user.uid != 0 and proc.name=pkexec and proc.args = ''",
        hit: &[
            ("user.uid", "1000"),
            ("proc.name", "pkexec"),
            ("proc.args", ""),
        ],
        twins: &[&[("proc.args", "id")], &[("proc.args", ABSENT)]],
    },
    Shape {
        what: "the first words of somebody at a terminal; a macro whose name comes second",
        items: "- list: questions\n  items: [w, id, whoami]\n- condition: (proc.name in (questions))\n  macro: asks\n",
        condition: "spawned_process and asks and proc.tty != 0 and proc.is_vpgid_leader=true",
        hit: &[
            ("proc.name", "id"),
            ("proc.tty", "34816"),
            ("proc.pgid", "4711"),
        ],
        twins: &[&[("proc.pgid", "4700")], &[("proc.tty", "0")]],
    },
    Shape {
        what: "a tool below an installation, five generations up",
        items: "- list: installers\n  items: [npm, yarn]\n",
        condition: "spawned_process and container and proc.name in (nc, curl) and (proc.pname in (installers) or proc.aname[5] in (installers))",
        hit: &[("proc.name", "curl"), ("proc.aname[5]", "yarn")],
        twins: &[&[("proc.aname[5]", "node")], &[("proc.aname[5]", ABSENT)]],
    },
    Shape {
        what: "a way back out of a web server, with quotes of one kind in those of the other",
        items: "- macro: below_web\n  condition: >\n    (proc.pname in (nginx, php-fpm) or\n     proc.aname[2] in (nginx, php-fpm))\n",
        condition: "spawned_process and below_web and (proc.cmdline contains \"/dev/tcp/\" or \
                    proc.cmdline contains \"python -c 'import socket\" or \
                    (proc.cmdline contains \"mkfifo\" and proc.cmdline contains \"/tmp\"))",
        hit: &[
            ("proc.aname[2]", "php-fpm"),
            ("proc.cmdline", "sh -c python -c 'import socket'"),
        ],
        twins: &[
            &[("proc.cmdline", "sh -c python -c \"import socket\"")],
            &[("proc.cmdline", "sh -c mkfifo /run/a")],
            &[("proc.aname[2]", "php")],
        ],
    },
    Shape {
        what: "exceptions of several fields, with their own comparisons",
        items: "",
        condition: "spawned_process and container and proc.name = sh\n  exceptions:\n    - name: known\n      fields: [proc.pname, proc.cmdline]\n      comps: [in, startswith]\n      values:\n        - [[cron, at], \"sh -c back\"]\n#",
        hit: &[("proc.pname", "cron")],
        twins: &[
            &[("proc.cmdline", "sh -c backup")],
            &[("proc.name", "bash")],
        ],
    },
];

#[test]
fn rules_of_the_shapes_that_are_in_use_hit_what_they_mean_and_no_twin() {
    for shape in SHAPES {
        let text = format!(
            "{}- rule: R\n  desc: d\n  condition: >\n    {}\n  output: o\n  priority:\n    NOTICE\n",
            shape.items.trim_start(),
            shape.condition
        );
        let text = match shape.condition.split_once("\n  exceptions:") {
            // What belongs to the rule stands behind its condition.
            Some(_) => text.replace("#\n", "\n"),
            None => text,
        };
        let set = load(&text).unwrap_or_else(|found| panic!("{}: {found:?}", shape.what));
        let checked = set.checked.first().unwrap();
        assert_eq!(checked.runs, Runs::Whole, "{}: {checked:?}", shape.what);
        assert!(
            set.warnings.is_empty(),
            "{}: {:?}",
            shape.what,
            set.warnings
        );
        let hit = Seen::shell().but(shape.hit);
        assert_eq!(set.hits(&hit).count(), 1, "{}", shape.what);
        for twin in shape.twins {
            let twinned = hit.but(twin);
            assert_eq!(set.hits(&twinned).count(), 0, "{}: {twin:?}", shape.what);
        }
        let mut other = hit.clone();
        other.class = Class::Credentials;
        assert_eq!(set.hits(&other).count(), 0, "{}: another event", shape.what);
    }
}

/// A connection that a pod has made.
fn connected() -> Seen {
    let mut seen = Seen::shell().but(&[
        ("fd.typechar", "4"),
        ("fd.type", "ipv4"),
        ("fd.l4proto", "tcp"),
        ("fd.lip", "10.0.0.9"),
        ("fd.lport", "40000"),
        ("fd.rip", "203.0.113.7"),
        ("fd.rport", "443"),
        ("fd.sip", "203.0.113.7"),
        ("fd.sport", "443"),
    ]);
    seen.class = Class::Connect;
    seen
}

#[track_caller]
fn hits(condition: &str, event: &Seen) -> bool {
    let text = super::rule(condition);
    let set = load(&text).unwrap();
    set.hits(event).count() == 1
}

#[test]
fn the_address_network_and_port_of_a_socket_are_those_of_either_end() {
    for (condition, expected) in [
        ("fd.ip = 10.0.0.9", true),
        ("fd.ip = 203.0.113.7", true),
        ("fd.ip = 203.0.113.8", false),
        // Neither end may be what must not be.
        ("fd.ip != 10.0.0.9", false),
        ("fd.ip != 203.0.113.7", false),
        ("fd.ip != 0.0.0.0", true),
        ("fd.net != \"127.0.0.0/8\"", true),
        ("fd.net in (\"192.168.0.0/16\", \"10.0.0.0/8\")", true),
        ("not fd.net in (\"192.168.0.0/16\")", true),
        ("fd.rnet in (\"10.0.0.0/8\")", false),
        ("fd.port in (53, 443)", true),
        ("fd.port in (53, 40000)", true),
        ("fd.port in (53)", false),
        ("fd.port >= 40000", true),
        ("fd.sport=\"443\"", true),
        ("fd.sockfamily = ip", true),
        ("fd.sockfamily = unix", false),
    ] {
        let condition = format!("evt.type = connect and {condition}");
        assert_eq!(hits(&condition, &connected()), expected, "{condition}");
    }
}

#[test]
fn nobody_is_at_the_other_end_of_a_socket_that_waits() {
    let mut waits = connected().but(&[("fd.rip", "0.0.0.0"), ("fd.rport", "0")]);
    waits.class = Class::Listen;
    let inbound = "evt.type in (accept, listen) and (fd.typechar = 4 or fd.typechar = 6) \
                   and (fd.ip != \"0.0.0.0\" and fd.net != \"127.0.0.0/8\") \
                   and (evt.rawres >= 0 or evt.res = EINPROGRESS)";
    assert!(hits(inbound, &waits));
    assert!(!hits(inbound, &waits.but(&[("fd.lip", "0.0.0.0")])));
    assert!(!hits(inbound, &waits.but(&[("fd.lip", "127.0.0.1")])));
    assert!(!hits("evt.type = listen and fd.rport = 0", &waits));
}

const UNSEEN_DRIFT: &str = "
- macro: own_pipe
  condition: (proc.cmdline=\"runc:[1:CHILD] init\" and fd.name=/exec.fifo)
- rule: A new program is written
  desc: d
  condition: >
    evt.type in (open,openat,creat)
    and evt.is_open_exec=true
    and container and not own_pipe and evt.rawres>=0
  output: o
  priority: ERROR
- rule: A program is made of a file
  desc: d
  condition: >
    evt.type in (chmod, fchmod) and evt.dir=<
    and container and ((evt.arg.mode contains \"S_IXUSR\") or
         (evt.arg.mode contains \"S_IXGRP\")) and not own_pipe
  output: o
  priority: ERROR
- rule: A process changes its user
  desc: d
  condition: >
    evt.type=setuid
    and evt.dir=> and not user.name=root
  output: o
  priority: ERROR
";

#[test]
fn rules_that_need_other_events_are_refused_by_the_place_of_their_types() {
    let set = load(UNSEEN_DRIFT).unwrap();
    let told: Vec<(Runs, u32, u32, &str)> = set
        .checked
        .iter()
        .map(|one| {
            let [reason] = &*one.reasons else {
                panic!("{one:?}")
            };
            let place = reason.place;
            (one.runs, place.line, place.column, reason.why.as_str())
        })
        .collect();
    let unseen = "such events are not seen";
    let opens = format!("`creat`, `open`, `openat`: {unseen}");
    let modes = format!("`chmod`, `fchmod`: {unseen}");
    let enters = "`evt.dir` is never as this asks: all that is seen has happened (`evt.dir = <`) and succeeded";
    assert_eq!(
        told,
        [
            (Runs::Not, 7, 5, opens.as_str()),
            (Runs::Not, 15, 5, modes.as_str()),
            (Runs::Not, 24, 9, enters),
        ]
    );
    let event = Seen::shell();
    assert_eq!(set.hits(&event).count(), 0);
}

#[test]
fn the_container_of_an_output_is_told_as_falco_tells_it() {
    let text = super::rule("spawned_process").replace("output: o", "output: in %container.info.");
    let set = load(&text).unwrap();
    assert!(set.checked[0].empty_outputs.is_empty());
    let event = Seen::shell().but(&[("container.name", "shop")]);
    let rule = set.hits(&event).next().unwrap();
    let line = "in container_id=3ad7b26ded6d container_name=shop.";
    assert_eq!(rule.line(&event), line);
}
