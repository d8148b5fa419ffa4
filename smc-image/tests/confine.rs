//! `smc-image serve`: what is left to it while it serves.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::{Fixture, disk};
use std::fs;
use std::path::PathBuf;
use testkit::program::{Running, tool};

/// Serves an image on a socket in a directory of its own, and reads it once.
fn serving_one(fixture: &Fixture, args: &[&str]) -> (Running, PathBuf) {
    fixture.sync("web", &[("vda", &disk(1))]);
    let socket = fixture.join("run/nbd.sock");
    fs::create_dir(fixture.join("run")).unwrap();
    let mut command = fixture.command();
    command
        .env("SMC_LOG", "debug")
        .args(["serve", "web/1"])
        .args(args);
    let mut running = Running::start(command.arg("--socket").arg(&socket));
    running.lines(3);
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    assert_eq!(tool("nbdcopy", &[&uri, "-"]), disk(1));
    (running, socket)
}

/// The values of a line of the process's status, which every one of its threads must have.
fn status(running: &Running, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", running.0.id())).unwrap();
    let mut found: Vec<Vec<String>> = tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .map(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap().split_whitespace().map(str::to_owned).collect()
        })
        .collect();
    assert!(found.len() > 2, "a server has threads");
    found.dedup();
    assert_eq!(found.len(), 1, "{name} is not that of every thread: {found:?}");
    found.remove(0)
}

#[test]
fn a_server_gives_up_what_it_does_not_need() {
    let fixture = Fixture::new();
    let (running, socket) = serving_one(&fixture, &[]);
    assert_eq!(status(&running, "NoNewPrivs"), ["1"]);
    assert_eq!(status(&running, "Seccomp"), ["2"]);
    assert_eq!(status(&running, "Uid"), ["0"; 4]);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(
            status(&running, set),
            ["0000000000000004"],
            "{set}: CAP_DAC_READ_SEARCH alone"
        );
    }
    let (code, log) = running.signal("TERM");
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("system calls are restricted"), "{log}");
    assert!(!socket.exists(), "{log}");
}

#[test]
fn a_server_becomes_another_user() {
    let fixture = Fixture::new();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let (running, socket) = serving_one(&fixture, &["--user", "nobody"]);
    assert_eq!(status(&running, "Uid"), vec![nobody.uid.to_string(); 4]);
    assert_eq!(status(&running, "Gid"), vec![nobody.gid.to_string(); 4]);
    assert!(status(&running, "Groups").is_empty());
    assert_eq!(
        status(&running, "CapEff"),
        ["0000000000000004"],
        "CAP_DAC_READ_SEARCH alone"
    );
    assert_eq!(running.signal("TERM").0, Some(0));
    // It lies in a directory of root's.
    assert!(socket.exists());
}

#[test]
fn a_socket_in_a_directory_of_another_user_is_removed() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    std::os::unix::fs::chown(fixture.join(""), Some(nobody.uid.as_raw()), None).unwrap();
    let socket = fixture.join("nbd.sock");
    for user in [&[][..], &["--user", "nobody"]] {
        let mut command = fixture.command();
        command.args(["serve", "web/1", "--socket"]).arg(&socket);
        let mut running = Running::start(command.args(user));
        running.lines(3);
        assert!(socket.exists());
        assert_eq!(running.signal("TERM"), (Some(0), String::new()), "{user:?}");
        assert!(!socket.exists(), "{user:?}");
    }
}

#[test]
fn confinement_can_be_left_out() {
    let fixture = Fixture::new();
    let (running, _) = serving_one(&fixture, &["--no-confine"]);
    assert_eq!(status(&running, "NoNewPrivs"), ["0"]);
    assert_eq!(status(&running, "Seccomp"), ["0"]);
    assert_eq!(running.signal("TERM").0, Some(0));
}

#[test]
fn an_unknown_user_is_told_before_anything_is_opened() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let socket = fixture.join("nbd.sock");
    let path = socket.to_str().unwrap();
    let complaint = fixture
        .run(&["serve", "--user", "no-such-user", "--socket", path])
        .fails(1);
    assert!(complaint.contains("no-such-user"), "{complaint}");
    assert!(!socket.exists());
}
