//! Tables of mounts, as runtimes make them, and what they come to.

use super::{Mounted, Mounts, Namespaces, Verdict, is_engines};
use crate::attest::posture::mountinfo;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A host with Docker, and a disk of data.
const HOST: &str = "\
    22 27 0:21 / /proc rw - proc proc rw\n\
    23 27 0:22 / /sys rw - sysfs sysfs rw\n\
    24 27 0:6 / /dev rw - devtmpfs devtmpfs rw\n\
    25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw\n\
    26 24 0:20 / /dev/mqueue rw - mqueue mqueue rw\n\
    27 1 254:0 / / rw - ext4 /dev/vda rw\n\
    28 27 0:24 / /run rw - tmpfs tmpfs rw\n\
    29 27 254:1 / /data rw - ext4 /dev/vdb rw\n\
    30 27 254:1 / /var/lib/docker/volumes/fake/_data rw - ext4 /dev/vdb rw\n\
    31 27 254:2 / /var/lib/docker/volumes/disk/_data rw - ext4 /dev/vdc rw\n\
    32 23 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
    33 27 0:39 / /srv/docker/overlay2/l/merged rw - overlay overlay rw\n\
    34 27 0:40 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/token rw - tmpfs tmpfs rw\n\
    35 27 0:50 / /var/lib/docker/overlay2/other/merged rw - overlay overlay rw\n";

/// A container of its own.
const CONTAINER: &str = "\
    69 45 0:39 / / ro - overlay overlay rw\n\
    70 69 0:41 / /proc rw,noexec - proc proc rw\n\
    71 69 0:42 / /dev rw - tmpfs tmpfs rw\n\
    73 69 0:44 / /sys ro,noexec - sysfs sysfs ro\n\
    75 73 0:31 /docker/x /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n\
    84 71 0:45 / /dev/mqueue rw,noexec - mqueue mqueue rw\n\
    85 71 0:46 / /dev/shm rw,noexec - tmpfs shm rw\n\
    86 69 254:0 /var/lib/docker/containers/ID/hosts /etc/hosts ro - ext4 /dev/vda rw\n";

fn judge(host_namespaces: &[&str], more: &str, of: impl Fn(&Mounted<'_>) -> Verdict) -> Verdict {
    let text = format!("{CONTAINER}{more}").replace("ID", ID);
    let mounts = mountinfo::parse(&text).unwrap();
    of(&Mounted {
        mounts: &mounts,
        host: &Mounts::parse(HOST).unwrap(),
        namespaces: &Namespaces::of_test(host_namespaces),
        sockets: &["/run/docker.sock".to_owned()],
        given: &["/run/postern".to_owned()],
    })
}

#[track_caller]
fn check_host(host_namespaces: &[&str], more: &str, expected: Option<&str>) {
    let verdict = judge(host_namespaces, more, |all| all.host_mounts());
    match expected {
        None => assert!(verdict.is_pass(), "{more}: {verdict:?}"),
        Some(why) => assert_eq!((verdict.is_pass(), &*verdict.why), (false, why), "{more}"),
    }
}

#[test]
fn what_engines_make_for_a_container_is_not_the_hosts() {
    check_host(&[], "", None);
    for more in [
        "90 69 254:0 /var/lib/docker/volumes/v/_data /data rw - ext4 /dev/vda rw\n",
        "90 69 254:0 /srv/docker/volumes/v/_data/sub /data rw - ext4 /dev/vda rw\n",
        "90 69 254:2 / /data rw - ext4 /dev/vdc rw\n",
        "90 69 0:99 / /tmp rw - tmpfs tmpfs rw\n",
        "90 69 0:24 /postern /run/postern rw - tmpfs tmpfs rw\n",
        "90 69 254:0 /usr/bin/tini-static /sbin/docker-init ro - ext4 /dev/vda rw\n",
        "90 69 0:40 / /token rw - tmpfs tmpfs rw\n",
        "90 69 0:39 /part /again rw - overlay overlay rw\n",
        "90 69 254:0 /var/lib/kubelet/pods/u/etc-hosts /etc/hosts rw - ext4 /dev/vda rw\n",
        "90 69 254:0 /var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/e /e rw - ext4 /dev/vda rw\n",
    ] {
        check_host(&[], more, None);
    }
}

#[test]
fn whatever_else_the_host_has_is_found() {
    for (more, why) in [
        ("254:0 / /host rw - ext4 x rw", "`/host` is `/` of the host"),
        ("254:0 /etc /e ro - ext4 x rw", "`/e` is `/etc` of the host"),
        ("0:21 / /p ro - proc proc rw", "`/p` is `/proc` of the host"),
        (
            "0:22 / /sys ro - sysfs sysfs rw",
            "`/sys` is `/sys` of the host",
        ),
        (
            "0:6 / /d rw - devtmpfs devtmpfs rw",
            "`/d` is `/dev` of the host",
        ),
        (
            "0:23 / /dev/shm rw - tmpfs tmpfs rw",
            "`/dev/shm` is `/dev/shm` of the host",
        ),
        (
            "0:20 / /q rw - mqueue mqueue rw",
            "`/q` is `/dev/mqueue` of the host",
        ),
        (
            "0:24 /app /a rw - tmpfs tmpfs rw",
            "`/a` is `/run/app` of the host",
        ),
        (
            "0:24 /postern/admin /a rw - tmpfs tmpfs rw",
            "`/a` is `/run/postern/admin` of the host",
        ),
        (
            "254:0 /usr/bin/tini /sbin/docker-init rw - ext4 x rw",
            "`/sbin/docker-init` is `/usr/bin/tini` of the host",
        ),
        (
            "254:0 / /sbin/docker-init ro - ext4 x rw",
            "`/sbin/docker-init` is `/` of the host",
        ),
        (
            "0:31 / /c ro - cgroup cgroup rw,cpu",
            "`/c` is all control groups of the host",
        ),
        (
            "0:31 /../.. /c ro - cgroup cgroup rw,cpu",
            "`/c` is all control groups of the host",
        ),
        (
            "8:1 / /d rw - ext4 x rw",
            "`/d` is a disk that the host does not mount, 8:1",
        ),
        // A folder of the host that was mounted into a volume, and what only lies beside volumes.
        (
            "254:1 / /data rw - ext4 x rw",
            "`/data` is `/data` of the host",
        ),
        (
            "254:0 /var/lib/docker/volumes /v rw - ext4 x rw",
            "`/v` is `/var/lib/docker/volumes` of the host",
        ),
        (
            "254:0 /var/lib/docker/containers/ID/hosts /x rw - ext4 x rw",
            "`/x` is `/var/lib/docker/containers/ID/hosts` of the host",
        ),
        (
            "0:50 / /x rw - overlay x rw",
            "`/x` is `/var/lib/docker/overlay2/other/merged` of the host",
        ),
    ] {
        check_host(
            &[],
            &format!("90 69 {more}\n"),
            Some(&why.replace("ID", ID)),
        );
        // Below another mount it is still there.
        let covered = format!("90 69 {more}\n91 90 0:98 / /host rw - tmpfs tmpfs rw\n");
        check_host(&[], &covered, Some(&why.replace("ID", ID)));
    }
}

#[test]
fn what_comes_with_a_shared_namespace_is_found_by_the_namespace() {
    for (namespace, more) in [
        ("net", "90 69 0:22 / /sys ro - sysfs sysfs rw\n"),
        ("ipc", "90 69 0:23 / /dev/shm rw - tmpfs tmpfs rw\n"),
        ("ipc", "90 69 0:20 / /dev/mqueue rw - mqueue mqueue rw\n"),
        ("pid", "90 69 0:21 / /proc rw - proc proc rw\n"),
    ] {
        check_host(&[namespace], more, None);
        let elsewhere = more
            .replace("/ /dev/shm", "/ /x")
            .replace("/ /proc", "/ /x");
        let elsewhere = elsewhere.replace("/ /sys", "/ /x");
        if !more.contains("mqueue") {
            let verdict = judge(&[namespace], &elsewhere, |all| all.host_mounts());
            assert!(!verdict.is_pass(), "{elsewhere}");
        }
    }
}

#[test]
fn a_process_with_the_hosts_files_in_a_mount_namespace_of_its_own_has_the_hosts() {
    let text = "69 45 254:0 / / rw - ext4 /dev/vda rw\n";
    let mounts = mountinfo::parse(text).unwrap();
    let mounted = Mounted {
        mounts: &mounts,
        host: &Mounts::parse(HOST).unwrap(),
        namespaces: &Namespaces::of_test(&[]),
        sockets: &["/run/docker.sock".to_owned(), "/srv/engine.sock".to_owned()],
        given: &[],
    };
    assert_eq!(mounted.host_mounts().why, "`/` is `/` of the host");
    assert_eq!(mounted.runtime_socket().why, "`/` shows `/srv/engine.sock`");
}

#[test]
fn an_engines_socket_is_found_under_any_name_and_in_folders() {
    let socket = |more: &str| judge(&[], more, |all| all.runtime_socket());
    assert!(socket("").is_pass());
    for (more, is_there) in [
        ("0:24 /docker.sock /x.sock rw", true),
        ("0:24 / /r ro", true),
        ("0:24 /other.sock /docker.sock rw", false),
        ("0:24 /docker.sock.d /r rw", false),
        ("254:0 / /host rw", false),
        ("0:99 / /run rw", false),
    ] {
        let verdict = socket(&format!("90 69 {more} - tmpfs tmpfs rw\n"));
        assert_eq!(verdict.is_pass(), !is_there, "{more}: {verdict:?}");
    }
}

#[test]
fn the_topmost_root_counts() {
    let root = |more: &str| judge(&[], more, |all| all.root_file_system()).is_pass();
    assert!(root(""));
    assert!(!root("90 69 0:99 / / rw - tmpfs tmpfs rw\n"));
    assert!(root("90 69 0:99 / / ro - tmpfs tmpfs rw\n"));
    let chrooted = Mounted {
        mounts: &[],
        host: &Mounts::default(),
        namespaces: &Namespaces::of_test(&[]),
        sockets: &[],
        given: &[],
    };
    assert!(!chrooted.root_file_system().is_pass());
}

#[test]
fn shared_mounts_and_places_to_write_and_execute_are_found() {
    let private = |more: &str| judge(&[], more, |all| all.propagation()).is_pass();
    assert!(private("90 69 0:99 / /x rw master:3 - tmpfs tmpfs rw\n"));
    assert!(!private("90 69 0:99 / /x rw shared:3 - tmpfs tmpfs rw\n"));
    let noexec =
        |more: &str, is_root| judge(&[], more, |all| all.writable_executable(is_root)).is_pass();
    assert!(noexec("", false));
    assert!(!noexec("", true), "root may write to `/dev`");
    assert!(!noexec("90 69 0:99 / /tmp rw - tmpfs tmpfs rw\n", false));
    assert!(noexec(
        "90 69 0:99 / /tmp rw,noexec - tmpfs tmpfs rw\n",
        false
    ));
    assert!(noexec("90 69 0:99 / /tmp ro - tmpfs tmpfs rw\n", false));
}

#[test]
fn engines_things_are_told_by_whole_names_and_by_where_they_are_mounted() {
    let docker = "/var/lib/docker";
    for (path, point, expected) in [
        ("/var/lib/docker/containers/x/hosts", "/etc/hosts", true),
        ("/var/lib/docker/containers/x/hosts", "/etc/hostname", false),
        (
            "/var/lib/docker/containers/x/config.json",
            "/etc/config.json",
            false,
        ),
        ("/var/lib/docker/containers/x", "/etc/hosts", false),
        ("/var/lib/docker/volumes/v/_data", "/x", true),
        ("/var/lib/docker/volumes/v", "/x", false),
        ("/var/lib/docker/volumes/v/_data2", "/x", false),
        ("/var/lib/docker-old/volumes/v/_data", "/x", false),
        ("/var/lib/docker/vfs/dir/x", "/", true),
        ("/var/lib/docker/vfs/dir/x", "/x", false),
        (
            "/var/lib/docker/pods/u/volumes/kubernetes.io~csi/v/mount",
            "/x",
            true,
        ),
        ("/var/lib/docker/pods/u/volume-subpaths/v/c/0", "/x", false),
    ] {
        assert_eq!(is_engines(path, docker, point), expected, "{path} {point}");
    }
}
