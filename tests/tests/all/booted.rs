//! The Debian package on a machine that systemd has booted: units are enabled, told ready, watched,
//! activated by their sockets, upgraded, removed and purged by the service manager itself.
//!
//! The machine is a copy of this Debian in namespaces of its own, with systemd as process 1 and a
//! control group of version 2 of its own, whatever version the rest of this machine has. Of the
//! kernel's settings it can change none.

use std::{fs, path::Path, process::Command};

use postern_tests::{eventually, root, run, world::World};

use crate::package::built;

struct Machine {
    world: World,
    /// Below the root of control groups.
    group: String,
}

/// Groups can be named only below the root of their namespace, so that is made first.
const GROUP: &str = "mkdir groups && mount -t cgroup2 none groups && mkdir groups/$GROUP && \
    echo $$ >groups/$GROUP/cgroup.procs && umount groups && \
    exec unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child sh -ec \"$BOOT\"";

/// What systemd finds when it starts. Its own root is a mount that it was moved to: in a `chroot` no
/// user namespace can be made, and the proxy's unit has one.
const BOOT: &str = "mkdir disk && mount -t tmpfs none disk && mkdir disk/upper disk/work disk/root && \
    mount -t overlay none -o lowerdir=/,upperdir=disk/upper,workdir=disk/work disk/root && \
    here=$PWD && cd disk/root && \
    mount -t proc none proc && mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys && \
    mount -t sysfs -o ro none sys && mount -t cgroup2 none sys/fs/cgroup && \
    mount -t tmpfs -o mode=755 none dev && mkdir dev/pts dev/shm && \
    for node in null zero full random urandom tty; do cp -a /dev/$node dev/$node; done && \
    mount -t devpts -o newinstance,ptmxmode=0666 none dev/pts && ln -s pts/ptmx dev/ptmx && \
    mount -t tmpfs none run && mount -t tmpfs none tmp && \
    mkdir run/packages run/old && mount --bind $here run/packages && \
    rm -rf var/lib/postern etc/postern etc/systemd/system var/log/journal && mkdir etc/systemd/system && \
    ip link set lo up && pivot_root . run/old && umount -l run/old && \
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --unit=basic.target";

impl Machine {
    fn boot() -> Self {
        let mut world = World::new().unwrap();
        let name = world.path().file_name().unwrap().to_str().unwrap();
        let group = format!("postern-test{name}");
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "sh", "-ec", GROUP]);
        holder.env("GROUP", &group).env("BOOT", BOOT);
        world.spawn("machine", &mut holder).unwrap();
        let machine = Self { world, group };
        let state = || machine.tries("systemctl is-system-running").ok();
        eventually("a machine", || state().filter(|state| state == "running\n")).unwrap_or_else(
            |error| {
                let log = fs::read_to_string(machine.world.log("machine")).unwrap();
                unreachable!("{error}: {:?} {log}", machine.tries("systemctl --failed"))
            },
        );
        machine
    }

    /// Process 1, as it is known here.
    fn systemd(&self) -> Result<String, String> {
        let holder = self.world.pid("machine").unwrap();
        let children = fs::read_to_string(format!("/proc/{holder}/task/{holder}/children"));
        let children = children.map_err(|error| error.to_string())?;
        let first = children.split_whitespace().next();
        first.map(str::to_owned).ok_or_else(|| "not yet".to_owned())
    }

    /// Does something there, and tells what it printed.
    fn tries(&self, line: &str) -> Result<String, String> {
        let pid = self.systemd()?;
        let entered = ["--all", "--root", "--wd", "--target", &pid];
        let shell = [
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "SYSTEMD_PAGER=",
            "sh",
            "-ec",
            line,
        ];
        let output = run("nsenter", &[&entered[..], &shell].concat()).unwrap();
        let [told, error] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        match output.status.success() {
            true => Ok(told),
            false => Err(told + &error),
        }
    }

    #[track_caller]
    fn does(&self, line: &str) -> String {
        self.tries(line)
            .unwrap_or_else(|said| unreachable!("`{line}`: {said}{}", self.journal()))
    }

    fn journal(&self) -> String {
        self.tries("journalctl -b --no-pager -o short-precise | tail -n 60")
            .unwrap_or_default()
    }

    fn show(&self, unit: &str, property: &str) -> String {
        let line = format!("systemctl show --property {property} --value {unit}");
        self.does(&line).trim().to_owned()
    }

    /// Waits until a property of a unit is what it should be.
    #[track_caller]
    fn waits(&self, unit: &str, property: &str, is_so: impl Fn(&str) -> bool) -> String {
        let what = format!("{property} of {unit}");
        let shown = || Some(self.show(unit, property)).filter(|value| is_so(value));
        eventually(&what, shown).unwrap_or_else(|error| {
            let value = self.show(unit, property);
            unreachable!("{error}: it is `{value}`\n{}", self.journal())
        })
    }

    fn is_active(&self, unit: &str) -> String {
        self.does(&format!("systemctl is-active {unit} || true"))
            .trim()
            .to_owned()
    }

    fn write(&self, path: &str, text: &str) {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        self.world.write(name, text).unwrap();
        self.does(&format!("install -D -m 0644 /run/packages/{name} {path}"));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With process 1 all others end; then nobody is in its control groups.
        let _ = self.systemd().map(|pid| run("kill", &["-KILL", &pid]));
        let _ = self.world.ended("machine");
        let line = "mount -t cgroup2 none \"$1\" && for try in $(seq 100); do \
                    find \"$1/$2\" -depth -type d -exec rmdir {} + 2>/dev/null && exit; sleep 0.1; done";
        let here = self.world.path().join("groups");
        let arguments = [
            "--mount",
            "sh",
            "-c",
            line,
            "sh",
            here.to_str().unwrap_or_default(),
        ];
        let _ = run("unshare", &[&arguments[..], &[&self.group]].concat());
    }
}

/// A proxy of the unit `postern-proxy@NAME`, whose ports are not those of others.
fn proxy(number: u16) -> String {
    format!(
        "identity: {{workloadApi: unix:///run/postern/agent.sock}}\n\
         inbound: {{listen: 127.0.0.1:{number}6, forward: 127.0.0.1:8080}}\n\
         admin: {{listen: 127.0.0.1:{number}0}}\nmetrics: {{listen: 127.0.0.1:{number}2}}\n"
    )
}

const WORKLOAD: &str = "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {name: web, namespace: production}\n\
    spec: {serviceAccount: web, selectors: ['systemd:id:postern-proxy@web.service']}\n";

const AGENT: &str = "postern-agent.service";
const WEB: &str = "postern-proxy@web.service";

#[test]
#[ignore = "needs root: it boots a copy of this Debian"]
fn root_a_booted_machine_runs_the_package_from_its_installation_to_its_end() {
    let machine = Machine::boot();
    let package = built(machine.world.path(), &[]);
    let package = package.file_name().unwrap().to_str().unwrap();
    machine.does(&format!("dpkg -i /run/packages/{package}"));
    let dormant =
        machine.does("systemctl is-enabled postern-agent.service postern-agent.socket || true");
    assert_eq!(dormant, "disabled\ndisabled\n", "nothing was started");
    assert_eq!(machine.is_active(AGENT), "inactive");

    begins(&machine);
    is_ready_when_it_says_so(&machine);
    is_watched(&machine);
    is_started_by_its_sockets(&machine);
    is_walled(&machine);
    is_upgraded(&machine, package);

    machine.does("systemctl enable postern-proxy@web");
    machine.does("dpkg -r postern");
    for unit in [
        AGENT,
        "postern-agent.socket",
        "postern-agent-admin.socket",
        WEB,
    ] {
        assert_eq!(machine.is_active(unit), "inactive", "{unit}");
    }
    machine.does(
        "! pgrep postern-agent && ! pgrep postern-proxy && test -s /var/lib/postern/authority.json",
    );
    machine.does("dpkg -P postern");
    machine.does("test ! -e /var/lib/postern && test ! -e /run/postern");
    let left = machine
        .does("find /etc/systemd/system -name 'postern*.service' -o -name 'postern-agent*.socket'");
    assert_eq!(left, "", "links of `systemctl enable`");
    assert_eq!(machine.does("systemctl is-system-running"), "running\n");
}

/// A bad configuration is told once and not tried again; the good one runs.
fn begins(machine: &Machine) {
    machine.does("cp /etc/postern/agent.yaml /tmp && echo 'healht: {}' >>/etc/postern/agent.yaml");
    let said = machine.tries("systemctl start postern-agent").unwrap_err();
    assert!(said.contains("failed"), "{said}");
    assert_eq!(machine.show(AGENT, "ExecMainStatus"), "64");
    assert_eq!(machine.show(AGENT, "NRestarts"), "0");
    machine.does("cp /tmp/agent.yaml /etc/postern/agent.yaml && systemctl reset-failed");
    machine.does("systemctl stop postern-agent.socket postern-agent-admin.socket");

    machine.does("systemctl enable --now postern-agent");
    assert_eq!(machine.is_active(AGENT), "active");
    for socket in ["postern-agent.socket", "postern-agent-admin.socket"] {
        assert_eq!(machine.is_active(socket), "active", "{socket}");
    }
    let status = machine.show(AGENT, "StatusText");
    assert_eq!(status, "serves example.org, 0 Workloads");
    machine.does("postern-agent healthcheck --shallow");
}

/// `READY=1` of the proxy comes with its identity, which the agent knows by the unit.
fn is_ready_when_it_says_so(machine: &Machine) {
    machine.write("/etc/postern/proxy/web.yaml", &proxy(1500));
    machine.write("/etc/postern/proxy/other.yaml", &proxy(1600));
    machine.does("systemctl start --no-block postern-proxy@web postern-proxy@other");
    machine.waits(WEB, "StatusText", |text| text.contains("identity"));
    assert_eq!(
        machine.is_active(WEB),
        "activating",
        "it has no identity yet"
    );
    machine.write("/etc/postern/workloads/web.yaml", WORKLOAD);
    machine.does("systemctl reload postern-agent");
    machine.waits(WEB, "ActiveState", |state| state == "active");
    let status = machine.show(WEB, "StatusText");
    assert_eq!(
        status,
        "serves production/web as spiffe://example.org/ns/production/sa/web"
    );
    // The twin, of another name, is nobody.
    assert_eq!(
        machine.is_active("postern-proxy@other.service"),
        "activating"
    );
}

/// A daemon that takes no more turns is ended and started again.
fn is_watched(machine: &Machine) {
    for (unit, name) in [(AGENT, "postern-agent"), (WEB, "postern-proxy@web")] {
        let drop_in = format!("/etc/systemd/system/{unit}.d/watchdog.conf");
        machine.write(&drop_in, "[Service]\nWatchdogSec=2s\n");
        machine.does(&format!(
            "systemctl daemon-reload && systemctl restart {name}"
        ));
        let before = machine.show(unit, "MainPID");
        machine.does(&format!("kill -STOP {before}"));
        machine.waits(unit, "NRestarts", |times| times == "1");
        machine.waits(unit, "ActiveState", |state| state == "active");
        assert_ne!(machine.show(unit, "MainPID"), before, "{unit}");
        let told = machine.does(&format!("journalctl --no-pager -o cat _PID=1 UNIT={unit}"));
        assert!(told.contains("Watchdog timeout"), "{told}");
        machine.does(&format!(
            "rm {drop_in} && systemctl daemon-reload && systemctl restart {name}"
        ));
    }
}

/// A connection starts the daemon that is not there.
fn is_started_by_its_sockets(machine: &Machine) {
    machine.does("systemctl stop postern-agent.service");
    assert_eq!(machine.is_active(AGENT), "inactive");
    assert_eq!(machine.is_active("postern-agent.socket"), "active");
    // The first connection is closed by the agent, which began after it; clients ask again.
    machine.does("for try in $(seq 100); do postern-agent healthcheck --shallow && exit; sleep 0.1; done; exit 1");
    machine.waits(AGENT, "ActiveState", |state| state == "active");

    let socket = "[Socket]\nListenStream=127.0.0.1:15006\nFileDescriptorName=inbound\n";
    machine.does("systemctl stop postern-proxy@web");
    machine.write("/etc/systemd/system/postern-proxy@web.socket", socket);
    machine.does("systemctl daemon-reload && systemctl start postern-proxy@web.socket");
    assert_eq!(machine.is_active(WEB), "inactive");
    let refused = "curl -sS -m 20 -o /dev/null http://127.0.0.1:15006/";
    let said = machine.tries(refused).unwrap_err();
    assert!(
        !said.contains("Failed to connect"),
        "plaintext is closed, not unanswered: {said}"
    );
    machine.waits(WEB, "ActiveState", |state| state == "active");
    machine.does("systemctl stop postern-proxy@web.socket postern-proxy@web.service");
    machine.does("rm /etc/systemd/system/postern-proxy@web.socket && systemctl daemon-reload");
    machine.does("systemctl start postern-proxy@web");
}

/// The exposure that docs/systemd.md tells, of the version that it names.
fn is_walled(machine: &Machine) {
    let docs = fs::read_to_string(root().join("docs/systemd.md")).unwrap();
    let version = machine.does("systemctl --version");
    let version = version.split_whitespace().nth(1).unwrap().to_owned();
    let exposure = |unit: &str| {
        let told = machine.does(&format!("systemd-analyze security --no-pager {unit}"));
        let (_, last) = told.rsplit_once("exposure level for ").unwrap();
        last.split_whitespace().nth(1).unwrap().to_owned()
    };
    let (agent, web) = (exposure(AGENT), exposure(WEB));
    if docs.contains(&format!("of version {version} ")) {
        let told = format!("gives the agent {agent} and the proxy {web}");
        assert!(docs.contains(&told), "`{told}`");
    }
    for value in [agent, web] {
        assert!(value.parse::<f64>().unwrap() < 3.0, "{value}");
    }
}

/// What runs is restarted with the same authority, what does not run stays so, and a proxy that waits for
/// its identity keeps nobody waiting.
fn is_upgraded(machine: &Machine, package: &str) {
    let other = "postern-proxy@other.service";
    assert_eq!(machine.is_active(other), "activating");
    let show =
        "for try in $(seq 100); do postern-agent bundle show && exit; sleep 0.1; done; exit 1";
    let roots = machine.does(show);
    let before = [AGENT, WEB].map(|unit| machine.show(unit, "MainPID"));
    machine.does(&format!(
        "cd /tmp && dpkg-deb -R /run/packages/{package} next && sed -i 's/^Version: .*/Version: 99.0/' next/DEBIAN/control && \
         dpkg-deb -Znone -b next next.deb && dpkg -i next.deb"
    ));
    for (unit, before) in [AGENT, WEB].iter().zip(before) {
        machine.waits(unit, "MainPID", |pid| pid != before && pid != "0");
        machine.waits(unit, "ActiveState", |state| state == "active");
    }
    assert_eq!(machine.is_active(other), "activating");
    assert_eq!(machine.is_active("postern-proxy@none.service"), "inactive");
    assert_eq!(machine.does(show), roots, "the same authority");
}
