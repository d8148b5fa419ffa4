//! `smc-image serve`: what other people's NBD clients see.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::{CLUSTER, Fixture, disk, is_locked, serving, uri};
use std::fs;
use std::process::{Child, Command, Stdio};
use testkit::program::{Running, nbdsh, run, tool, wait_for};

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

fn first_word(line: &str) -> String {
    line.split_whitespace().next().unwrap().to_owned()
}

fn exports(fixture: &Fixture) -> Vec<String> {
    let listed = tool("nbdinfo", &["--list", "--json", &uri(fixture, "")]);
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    let exports = listed["exports"].as_array().unwrap();
    exports
        .iter()
        .map(|export| export["export-name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn wrong_use_is_told() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let complaint = fixture.run(&["serve"]).fails(2);
    assert!(
        complaint.contains("--socket") && complaint.contains("--listen"),
        "{complaint}"
    );
    fixture
        .run(&["serve", "web", "--socket", "/nonexistent/s"])
        .fails(2);
    let complaint = fixture
        .run(&["serve", "web/1:vdx", "--socket", "/nonexistent/s"])
        .fails(1);
    assert!(complaint.contains("vda"), "{complaint}");
}

#[test]
fn every_image_has_its_names() {
    let fixture = Fixture::new();
    fixture.sync("db", &[("sda", &disk(1)), ("sdb", &disk(2))]);
    fixture.sync("web", &[("vda", &disk(3))]);
    fixture.sync("web", &[("vda", &disk(4))]);
    let expected = [
        "db/1:sda",
        "db/1:sdb",
        "db/latest:sda",
        "db/latest:sdb",
        "web/1",
        "web/1:vda",
        "web/2",
        "web/2:vda",
        "web/latest",
        "web/latest:vda",
    ];
    let (running, lines) = serving(&fixture, &[], expected.len());
    let mut announced: Vec<&str> = lines
        .iter()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    announced.sort_unstable();
    let mut uris: Vec<String> = expected.iter().map(|name| uri(&fixture, name)).collect();
    uris.sort_unstable();
    assert_eq!(announced, uris);
    let mut listed = exports(&fixture);
    listed.sort_unstable();
    assert_eq!(listed, expected);
    assert_eq!(tool("nbdcopy", &[&uri(&fixture, "web/1"), "-"]), disk(3));
    assert_eq!(tool("nbdcopy", &[&uri(&fixture, "web/latest:vda"), "-"]), disk(4));
    assert_eq!(tool("nbdcopy", &[&uri(&fixture, "db/1:sdb"), "-"]), disk(2));
    let none = run(Command::new("nbdinfo").arg(uri(&fixture, "")));
    assert!(none.code != Some(0), "a default export among several disks");
    assert_eq!(running.signal("TERM").0, Some(0));
    assert!(!fixture.join("nbd.sock").exists());
}

#[test]
fn a_new_image_appears_without_a_restart() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let (_running, _) = serving(&fixture, &[], 1);
    fixture.sync("web", &[("vda", &disk(2))]);
    assert_eq!(tool("nbdcopy", &[&uri(&fixture, "web/latest"), "-"]), disk(2));
    assert!(exports(&fixture).contains(&"web/2:vda".to_owned()));
}

#[test]
fn one_disk_is_the_default_export_and_others_stay_hidden() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1)), ("vdb", &disk(2))]);
    let (running, lines) = serving(&fixture, &["web/1:vdb", "--json"], 2);
    let lines: Vec<serde_json::Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["export"], "web/1:vdb");
    assert_eq!(lines[0]["size_bytes"], disk(2).len());
    assert_eq!(lines[1]["export"], "");
    assert_eq!(lines[1]["uri"], uri(&fixture, ""));
    assert_eq!(tool("nbdcopy", &[&uri(&fixture, ""), "-"]), disk(2));
    for hidden in ["web/1:vda", "web/latest:vdb", "../web", "web/2"] {
        let asked = run(Command::new("nbdinfo").arg(uri(&fixture, hidden)));
        assert!(asked.code != Some(0), "{hidden} is served");
    }
    assert_eq!(running.signal("INT").0, Some(0));
}

#[test]
fn allocation_and_flags_are_those_of_the_image() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let (_running, _) = serving(&fixture, &["web/1"], 3);
    let map = tool("nbdinfo", &["--map", "--json", &uri(&fixture, "")]);
    let map: serde_json::Value = serde_json::from_slice(&map).unwrap();
    let extents: Vec<(u64, u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|extent| {
            let field = |name: &str| extent[name].as_u64().unwrap();
            (field("offset"), field("length"), field("type"))
        })
        .collect();
    let c = CLUSTER as u64;
    let expected = [
        (0, 2 * c, 0),
        (2 * c, 18 * c, 3),
        (20 * c, 3 * c, 0),
        (23 * c, 17 * c, 3),
        (40 * c, 512, 0),
    ];
    assert_eq!(extents, expected);
    let info = tool("nbdinfo", &["--json", &uri(&fixture, "web/1")]);
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["can_multi_conn"], true);
    assert_eq!(export["block_size_preferred"], CLUSTER);
    assert!(export["description"].as_str().unwrap().contains("web/1"));
}

#[test]
fn damage_is_an_error_that_names_it_and_the_rest_stays_readable() {
    let fixture = Fixture::new();
    let bytes = disk(1);
    fixture.sync("web", &[("vda", &bytes)]);
    fixture.damage_cluster("web", &bytes[21 * CLUSTER..22 * CLUSTER]);
    let (running, _) = serving(&fixture, &[], 5);
    let script = format!(
        "try:\n    h.pread({}, {})\n    raise SystemExit('damage was served')\nexcept nbd.Error as error:\n    \
         print('refused', error.errno)\nprint(len(h.pread({CLUSTER}, {})))",
        4 * CLUSTER,
        19 * CLUSTER,
        22 * CLUSTER,
    );
    let shell = run(nbdsh().args(["--uri", &uri(&fixture, "web/1"), "-c", &script]));
    assert_eq!(shell.stdout, format!("refused EIO\n{CLUSTER}\n"), "{shell:?}");
    let (code, log) = running.signal("TERM");
    assert_eq!(code, Some(0));
    let at = (21 * CLUSTER).to_string();
    assert!(
        log.contains("web/1:vda") && log.contains("cluster 21") && log.contains(&at),
        "{log}"
    );
}

#[test]
fn a_damaged_manifest_hides_one_image_only() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    fixture.sync("web", &[("vda", &disk(2))]);
    let manifest = fixture.manifest("web", 2);
    let mut text = fs::read(&manifest).unwrap();
    text[40] ^= 1;
    fs::write(&manifest, text).unwrap();
    let complaint = fixture
        .run(&["serve", "web/2", "--socket", "/nonexistent/s"])
        .fails(3);
    assert!(complaint.contains("web/2"), "{complaint}");
    let (running, _) = serving(&fixture, &[], 2);
    assert_eq!(tool("nbdcopy", &[&uri(&fixture, "web/1"), "-"]), disk(1));
    let (_, log) = running.signal("TERM");
    assert!(log.contains("not served") && log.contains("web/2"), "{log}");
}

#[test]
fn tcp_is_encrypted_unless_said_otherwise() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let tls = fixture.join("tls");
    let serve = ["serve", "web/1:vda", "--listen", "127.0.0.1:0"];
    let complaint = fixture
        .run(&[&serve[..], &["--tls", path(&tls)]].concat())
        .fails(1);
    assert!(
        complaint.contains("tls-init") && complaint.contains("--no-tls") && complaint.contains("ca-cert.pem"),
        "{complaint}"
    );
    let mut plain = Running::start(fixture.command().args(serve).arg("--no-tls"));
    let uri = first_word(&plain.lines(1)[0]);
    assert!(
        uri.starts_with("nbd://127.0.0.1:") && uri.ends_with("/web/1:vda"),
        "{uri}"
    );
    assert_eq!(tool("nbdcopy", &[&uri, "-"]), disk(1));
    assert_eq!(plain.signal("TERM").0, Some(0));

    fixture.run(&["tls-init", path(&tls)]).ok();
    let server = tls.join("server");
    let mut encrypted = Running::start(fixture.command().args(serve).args(["--tls", path(&server)]));
    let uri = first_word(&encrypted.lines(1)[0]);
    assert!(uri.starts_with("nbds://127.0.0.1:"), "{uri}");
    let known = format!("{uri}?tls-certificates={}", path(&tls.join("client")));
    assert_eq!(tool("nbdcopy", &[&known, "-"]), disk(1));
    let in_the_clear = uri.replace("nbds://", "nbd://");
    for refused in [uri, in_the_clear] {
        let asked = run(Command::new("nbdinfo").arg(&refused));
        assert!(asked.code != Some(0), "{refused} is served to anybody");
    }
    let (code, log) = encrypted.signal("TERM");
    assert_eq!(code, Some(0));
    let refused: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("TLS handshake failed"))
        .collect();
    assert!(refused.len() == 1 && refused[0].contains("127.0.0.1"), "{log}");
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_outlives_whoever_read_its_log_or_its_uris() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = fixture.command();
    command
        .args(["serve", "web/1", "--stdio"])
        .env("SMC_LOG", "debug");
    let ended = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(full())
        .status();
    assert_eq!(ended.unwrap().code(), Some(0));

    let mut command = fixture.command();
    command
        .args(["serve", "web/1", "--socket"])
        .arg(fixture.join("nbd.sock"));
    let mut server = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    drop(server.0.stdout.take());
    let reachable = || run(Command::new("nbdinfo").arg(uri(&fixture, ""))).code == Some(0);
    wait_for("the server to be reached", reachable);
    assert!(reachable(), "it ended after all");
}

#[test]
fn what_is_at_the_socket_path_is_kept() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let path = fixture.join("file");
    fs::write(&path, "precious").unwrap();
    fixture
        .run(&["serve", "--socket", path.to_str().unwrap()])
        .fails(1);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn an_image_in_use_by_a_client_cannot_vanish() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let (_running, _) = serving(&fixture, &[], 5);
    let mut shell = nbdsh();
    let mut shell = Running::start(shell.args([
        "--uri",
        &uri(&fixture, "web/1"),
        "-c",
        "print('open', flush=True)\nimport time\ntime.sleep(60)",
    ]));
    assert_eq!(shell.lines(1), ["open"]);
    let manifest = fixture.manifest("web", 1);
    assert!(
        is_locked(&manifest),
        "a client reads the image, and nothing keeps it from being deleted"
    );
    drop(shell);
    wait_for("the image to be free", || !is_locked(&manifest));
}

/// Too few descriptors stand for whatever the kernel may refuse. A line with an address is a promise.
#[test]
fn an_address_is_printed_only_by_a_server_that_has_all_it_needs() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let socket = fixture.join("few.sock");
    let mut seen = [false; 2];
    for descriptors in 6..64 {
        let server = fixture.command();
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nofile={descriptors}"))
            .arg(server.get_program());
        command
            .args(server.get_args())
            .args(["serve", "web/1", "--socket"])
            .arg(&socket);
        let mut running = Running::start(&mut command);
        let printed = !running.lines(1).is_empty();
        let (code, complaint) = match printed {
            true => running.signal("TERM"),
            false => (running.0.wait().unwrap().code(), String::new()),
        };
        assert_eq!(code == Some(0), printed, "{descriptors} descriptors: {complaint}");
        seen[usize::from(printed)] = true;
    }
    assert_eq!(seen, [true; 2]);
}
