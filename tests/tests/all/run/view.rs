//! What a program changes outside by what it sees inside.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{PermissionsExt as _, symlink},
            net::{SocketAddr, UnixListener},
        },
    },
    path::Path,
    process::Command,
};

use postern_tests::run;

use super::{folder, postern_run, refused, shell, walled, works};

#[test]
fn the_programs_own_file_is_read_only_by_whatever_name_it_is_called() {
    let (_kept, path) = folder();
    let sub = format!("{path}/sub");
    fs::create_dir(&sub).unwrap();
    symlink(&path, format!("{path}/folder-link")).unwrap();
    symlink("prog", format!("{path}/file-link")).unwrap();
    let file = format!("{path}/prog");
    fs::write(&file, "#!/bin/sh\nchmod 700 \"$0\" && chmod 755 \"$0\"\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let call = |program: &str, walls: bool| {
        let mut command = match walls {
            true => Command::new(postern_run()),
            false => Command::new("env"),
        };
        if walls {
            command.arg("--");
        }
        command.arg(program).current_dir(&sub);
        let searched = format!("{path}/folder-link:/usr/bin:/bin");
        command.env("PATH", searched).output().unwrap()
    };
    let names = [
        &file,
        "../prog",
        "../folder-link/prog",
        "../file-link",
        "prog",
        "file-link",
    ];
    for name in names {
        works(&call(name, false));
        refused(&call(name, true), "Read-only file system");
        let mode = Path::new(&file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "{name}");
    }
}

#[test]
#[ignore = "needs root, which owns the devices"]
fn root_devices_are_used_and_not_changed() {
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        // The mode that it has: a wall that is missing harms nobody.
        let mode = Path::new("/dev").join(name).metadata().unwrap();
        let change = format!("chmod {:o} /dev/{name}", mode.permissions().mode() & 0o7777);
        works(&run("sh", &["-c", &change]).unwrap());
        refused(&shell(&[], &change), "Read-only file system");
    }
    works(&shell(
        &[],
        "echo text > /dev/null && head -c 1 /dev/urandom > /dev/null",
    ));
    refused(&shell(&[], "echo text > /dev/full"), "I/O error");
}

#[test]
fn abstract_sockets_are_reached_by_an_explicit_wish_alone() {
    let name = format!("postern-run-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listens = UnixListener::bind_addr(&address).unwrap();
    let script = format!("import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}')");
    let connects = |flags: &[&str]| walled(flags, &["/usr/bin/python3", "-c", &script]);
    works(&connects(&["--net", "host"]));
    works(&connects(&["--landlock", "off"]));
    refused(&connects(&[]), "Operation not permitted");
    refused(&connects(&["--net", "none"]), "Connection refused");
}

#[test]
#[ignore = "needs root, to listen in /run"]
fn root_sockets_in_run_are_reached_where_they_are_named() {
    let folder = tempfile::TempDir::new_in("/run").unwrap();
    let socket = folder.path().join("socket").display().to_string();
    let _listens = UnixListener::bind(&socket).unwrap();
    let script = format!("import socket; socket.socket(socket.AF_UNIX).connect('{socket}')");
    let connects = |flags: &[&str]| walled(flags, &["/usr/bin/python3", "-c", &script]);
    for named in [&socket, "/run"] {
        works(&connects(&["--readable", named]));
        works(&connects(&["--readable", named, "--readable", "/"]));
    }
    for flags in [&[][..], &["--readable", "/"], &["--writable", "/"]] {
        refused(&connects(flags), "No such file");
    }
    let listed = shell(&["--readable", "/"], "ls -A /run /var/run/ | grep -v :");
    assert_eq!(works(&listed), "");
}

#[test]
fn empty_files_are_counted() {
    let make = |number: u32| {
        let script = format!("cd /tmp && seq {number} | xargs touch");
        shell(&["--tmp-size", "1m"], &script)
    };
    works(&make(200));
    refused(&make(300), "No space left");
    let shared = "stat -f -c %c /dev/shm";
    assert_eq!(works(&shell(&[], shared)), "16384");
}
