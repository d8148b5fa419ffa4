//! `smc-image serve` for months: memory, clients that come back, what `latest` means meanwhile, signals.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::{CLUSTER, Fixture, MIB, disk, script, uri};
use std::process::Command;
use testkit::program::{Running, nbdsh, run, tool, wait_for};
use testkit::{noise, process};

/// A server on a Unix socket and, in the clear, on a TCP port. Returns how its URI on TCP begins.
fn serving_on_tcp(fixture: &Fixture, args: &[&str]) -> (Running, String) {
    let mut command = Command::new("setsid");
    let server = fixture.command();
    command.arg(server.get_program()).args(server.get_args());
    command
        .arg("serve")
        .args(args)
        .arg("--socket")
        .arg(fixture.socket());
    command.args(["--listen", "127.0.0.1:0", "--no-tls", "--json"]);
    let mut running = Running::start(&mut command);
    let is_tcp = |line: &String| line.contains("nbd://127.0.0.1");
    let mut first = String::new();
    while !is_tcp(&first) {
        first = running.lines(1).pop().unwrap();
    }
    let line: serde_json::Value = serde_json::from_str(&first).unwrap();
    let (uri, export) = (line["uri"].as_str().unwrap(), line["export"].as_str().unwrap());
    let start = uri.strip_suffix(export).unwrap().to_owned();
    (running, start)
}

/// Bytes that compress.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = noise(len, seed);
    bytes.iter_mut().for_each(|byte| *byte = b'a' + *byte % 8);
    bytes
}

#[test]
fn one_cache_bounds_the_memory_of_the_server() {
    let fixture = Fixture::new();
    let jobs = ["a", "b", "c", "d", "e"];
    for (seed, job) in (1..).zip(jobs) {
        fixture.sync(job, &[("vda", &text(24 * MIB, seed))]);
    }
    let (running, _) = serving_on_tcp(&fixture, &["--cache", "16MiB"]);
    // Parts of clusters: these are what is kept.
    let read = format!(
        "for at in range(0, h.get_size(), {CLUSTER}):
    h.pread(512, at)
h.shutdown()"
    );
    let used = |job: &&str| {
        script(&uri(&fixture, &format!("{job}/1")), &read);
        process::resident_bytes(running.0.id()).unwrap()
    };
    let used: Vec<u64> = jobs.iter().map(used).collect();
    let grown = used[4].saturating_sub(used[0]);
    // Kept for each job, it would be four times 16 MiB.
    assert!(grown < 16 * MIB as u64, "{used:?}");
}

#[test]
fn connections_in_turn_leave_nothing_in_memory() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let (running, _) = serving_on_tcp(&fixture, &[]);
    let uri = uri(&fixture, "web/latest");
    let come_and_go = |times: u32| {
        let lines = format!(
            "for _ in range({times}):
    h = nbd.NBD()
    h.connect_uri('{uri}')
    h.pread(512, 70000)
    h.pread(70000, 0)
    h.shutdown()"
        );
        run(nbdsh().args(["-c", &lines])).ok();
        process::resident_bytes(running.0.id()).unwrap()
    };
    let before = come_and_go(300);
    let after = come_and_go(3000);
    // 15 KB left by each would be 45 MB.
    assert!(after < before + 8 * MIB as u64, "{before} to {after}");
}

#[test]
fn signals_that_mean_nothing_change_nothing_and_others_end_the_server_in_order() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    for end in ["TERM", "INT", "QUIT"] {
        let (running, _) = serving_on_tcp(&fixture, &[]);
        let pid = running.0.id().to_string();
        // The server has no terminal, so that nobody has hung up.
        for signal in [
            "USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "PWR", "STKFLT", "XFSZ", "HUP", "RTMIN",
        ] {
            tool("kill", &["-s", signal, &pid]);
            assert_eq!(
                tool("nbdcopy", &[&uri(&fixture, ""), "-"]),
                disk(1),
                "after SIG{signal}"
            );
        }
        assert_eq!(running.signal(end).0, Some(0), "SIG{end}");
        assert!(!fixture.socket().exists(), "SIG{end} left the socket's file");
    }
}

#[test]
fn the_default_export_keeps_its_meaning() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let (running, _) = serving_on_tcp(&fixture, &[]);
    let default = uri(&fixture, "");
    assert_eq!(tool("nbdcopy", &[&default, "-"]), disk(1));
    fixture.sync("web", &[("vda", &disk(2))]);
    assert_eq!(tool("nbdcopy", &[&default, "-"]), disk(2));
    fixture.sync("db", &[("vda", &disk(3))]);
    assert_eq!(tool("nbdcopy", &[&default, "-"]), disk(2));
    assert_eq!(running.signal("TERM").0, Some(0));
    // Among several jobs there is none.
    let (_running, _) = serving_on_tcp(&fixture, &[]);
    assert!(run(Command::new("nbdinfo").arg(&default)).code != Some(0));
}

#[test]
fn a_server_of_an_empty_store_has_a_default_export_once_there_is_an_image() {
    let fixture = Fixture::new();
    // A store without an image.
    fixture.sync("web", &[("vda", &disk(1))]);
    fixture.run(&["rm", "web/1"]).ok();
    let mut command = fixture.command();
    let _running = Running::start(command.args(["serve", "--socket"]).arg(fixture.socket()));
    wait_for("the server listens", || fixture.socket().exists());
    let default = uri(&fixture, "");
    assert!(run(Command::new("nbdinfo").arg(&default)).code != Some(0));
    fixture.sync("web", &[("vda", &disk(2))]);
    assert_eq!(tool("nbdcopy", &[&default, "-"]), disk(2));
}

#[test]
fn a_named_overlay_stays_on_the_image_on_which_it_began() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1)), ("vdb", &disk(2))]);
    let (_running, tcp) = serving_on_tcp(&fixture, &["--overlay"]);
    let guest = |disk: &str| uri(&fixture, &format!("web/latest:{disk}@guest"));
    script(&guest("vda"), "h.pwrite(b'kept', 70000, flags=nbd.CMD_FLAG_FUA)");
    fixture.sync("web", &[("vda", &disk(3)), ("vdb", &disk(4))]);
    let mut expected = disk(1);
    expected[70000..70004].copy_from_slice(b"kept");
    assert_eq!(tool("nbdcopy", &[&guest("vda"), "-"]), expected);
    let other_client = format!("{tcp}web/latest:vda@guest");
    assert_eq!(tool("nbdcopy", &[&other_client, "-"]), expected);
    // A guest's disks are of one image.
    assert_eq!(tool("nbdcopy", &[&guest("vdb"), "-"]), disk(2));
    // Another overlay begins on what is the latest now.
    let fresh = uri(&fixture, "web/latest:vda@fresh");
    assert_eq!(tool("nbdcopy", &[&fresh, "-"]), disk(3));
}

#[test]
fn an_overlay_waits_for_a_client_whose_connection_broke() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let (running, tcp) = serving_on_tcp(&fixture, &["--overlay"]);
    let latest = format!("{tcp}web/latest");
    // libnbd closes the socket without a word when its handle goes.
    script(&latest, "h.pwrite(b'kept', 70000, flags=nbd.CMD_FLAG_FUA)");
    fixture.sync("web", &[("vda", &disk(2))]);
    // It is back, leaves in order, and needs nothing any more.
    let back = script(&latest, "print(bytes(h.pread(4, 70000)))\nh.shutdown()");
    assert_eq!(back, "b'kept'\n");
    assert_eq!(tool("nbdcopy", &[&latest, "-"]), disk(2));
    assert_eq!(running.signal("TERM").0, Some(0));

    let (_running, tcp) = serving_on_tcp(&fixture, &["--overlay", "--reconnect-time", "0s"]);
    let latest = format!("{tcp}web/latest");
    script(&latest, "h.pwrite(b'lost', 70000, flags=nbd.CMD_FLAG_FUA)");
    assert_eq!(tool("nbdcopy", &[&latest, "-"]), disk(2));
}

#[test]
fn what_is_kept_for_a_client_goes_when_its_time_is_over() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    fixture.sync("web", &[("vda", &disk(2))]);
    let (_running, _) = serving_on_tcp(&fixture, &["--reconnect-time", "100ms"]);
    script(&uri(&fixture, "web/latest"), "assert h.pread(1, 0)");
    // Without another client.
    let manifest = fixture.manifest("web", 2);
    wait_for("the image is free", || !common::is_locked(&manifest));
    fixture.run(&["rm", "web/2"]).ok();
    assert_eq!(tool("nbdcopy", &[&uri(&fixture, "web/latest"), "-"]), disk(1));
    for wrong in ["2d", "soon"] {
        let refused = fixture.run(&["serve", "--stdio", "--reconnect-time", wrong]);
        assert!(refused.fails(2).contains("--reconnect-time"), "{wrong}");
    }
}

#[test]
fn all_connections_of_a_client_mean_one_image_by_latest() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let (_running, _) = serving_on_tcp(&fixture, &[]);
    let latest = uri(&fixture, "web/latest");
    let synced = fixture.join("synced");
    let lines = format!(
        "import os, time
assert h.can_multi_conn()
first = h.pread({CLUSTER}, 0)
print('connected', flush=True)
while not os.path.exists('{synced}'):
    time.sleep(0.01)
second = nbd.NBD()
second.connect_uri('{latest}')
assert second.pread({CLUSTER}, 0) == first and second.get_size() == h.get_size()
h.shutdown()
third = nbd.NBD()
third.connect_uri('{latest}')
assert third.pread({CLUSTER}, 0) == first, 'the second is still connected'
second.shutdown()
third.shutdown()
later = nbd.NBD()
later.connect_uri('{latest}')
assert later.pread({CLUSTER}, 0) != first
later.shutdown()
print('good', flush=True)",
        synced = synced.display()
    );
    let mut client = Running::start(nbdsh().args(["--uri", &latest, "-c", &lines]));
    assert_eq!(client.lines(1), ["connected"]);
    fixture.sync("web", &[("vda", &disk(2))]);
    // Another client finds the new one.
    assert_eq!(tool("nbdcopy", &[&latest, "-"]), disk(2));
    std::fs::write(&synced, "").unwrap();
    assert_eq!(client.lines(1), ["good"]);
}
