//! smcctl when smcd refuses, is not there, is somebody else, or tells what a terminal must not see.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod fake;

use api::{Check, ErrorBody, ErrorKind, Level, Precheck, TargetView};
use fake::views::{in_error, running, sending, target, waiting, with_everything};
use fake::{FakeSmcd, SMCCTL, words};
use serde::Serialize;
use serde_json::{Value, json};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use testkit::guard::ScratchDir;
use testkit::program::{Run, run, run_unheard};

#[test]
fn refusals_are_told_in_the_daemons_words() {
    let kinds = [
        (ErrorKind::Invalid, 2),
        (ErrorKind::NotFound, 1),
        (ErrorKind::Conflict, 1),
        (ErrorKind::Failed, 1),
        (ErrorKind::Unavailable, 1),
    ];
    for (error, code) in kinds {
        let smcd = FakeSmcd::new();
        let message = "web01 is Waiting: start is for Ready, Stopped and InError".to_owned();
        smcd.on(
            "POST /v1/jobs/web01/start",
            error.http_status(),
            &ErrorBody { error, message },
        );
        for args in [
            "job start web01",
            "job start web01 --json",
            "job start web01 --wait",
        ] {
            let ended = smcd.say(args);
            assert_eq!(ended.stdout, "", "{ended:?}");
            let said = ended.fails(code);
            assert_eq!(
                said,
                "smcctl: web01 is Waiting: start is for Ready, Stopped and InError\n"
            );
        }
    }
}

#[test]
fn a_daemon_that_is_not_there_is_told_with_the_way_on() {
    let scratch = ScratchDir::new("smcctl").unwrap();
    let stale = scratch.join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [scratch.join("missing"), stale] {
        let said = run(Command::new(SMCCTL).arg("--socket").arg(&socket).arg("status")).fails(1);
        let expected = format!("smcctl: connect to smcd on {}: ", socket.display());
        assert!(said.starts_with(&expected), "{said}");
        assert!(
            said.contains("systemctl status smcd") && said.contains("SMC_SOCKET"),
            "{said}"
        );
    }
}

/// What `job show` makes of these bytes, as text and as JSON.
fn answered(bytes: &[u8]) -> [Run; 2] {
    let smcd = FakeSmcd::new();
    smcd.on_bytes("GET /v1/jobs/web01", bytes.to_vec());
    [smcd.say("job show web01"), smcd.say("job show web01 --json")]
}

fn with_body(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[test]
fn connections_that_end_too_early_are_told() {
    let whole = with_body(
        "200 OK",
        serde_json::to_string(&waiting("web01")).unwrap().as_bytes(),
    );
    for length in [0, 1, 10, 30, 60, whole.len() - 1] {
        for ended in answered(&whole[..length]) {
            assert_eq!(ended.stdout, "", "{ended:?}");
            let said = ended.fails(1);
            assert!(
                said.starts_with("smcctl: GET /v1/jobs/web01: smcd on "),
                "{length}: {said}"
            );
            assert!(
                said.contains("ended the connection before it had answered"),
                "{length}: {said}"
            );
        }
    }
}

#[test]
fn what_is_no_answer_of_smcds_is_told() {
    let cases: &[(&[u8], &str)] = &[
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "does not speak HTTP"),
        (b"\0\xff\xfe\x00 rubbish \r\n\r\n", "does not speak HTTP"),
        (&with_body("200 OK", b"hello"), "is not understood"),
        (&with_body("200 OK", b"\xff\xfe"), "is not understood"),
        (&with_body("200 OK", b"{} {}"), "is not understood"),
        (
            &with_body("502 Bad Gateway", b"<html>no</html>"),
            "answered 502 Bad Gateway: <html>no</html>",
        ),
        (&with_body("302 Found", b""), "answered 302 Found"),
        (
            &with_body("400 Bad Request", b"{\"error\":\"new_kind\",\"message\":\"m\"}"),
            "answered 400",
        ),
    ];
    for (bytes, complaint) in cases {
        for ended in answered(bytes) {
            let said = ended.fails(1);
            assert!(
                said.contains(complaint) && said.contains("/v1/jobs/web01"),
                "{said}"
            );
            assert!(said.lines().count() == 2, "no advice: {said}");
        }
    }
    // Other JSON than a job is passed on to programs, which know better, but is no job for people.
    let [text, json] = answered(&with_body("200 OK", b"{\"name\":1}"));
    assert!(text.fails(1).contains("is smcd of the same version?"));
    assert_eq!(json.ok(), "{\"name\":1}\n");
    let [text, json] = answered(&with_body("200 OK", b""));
    assert!(text.fails(1).contains("is not understood"));
    assert_eq!(json.ok(), "");
}

#[test]
fn answers_have_an_end() {
    let huge = vec![b' '; 65 << 20];
    for ended in answered(&with_body("200 OK", &huge)) {
        let said = ended.fails(1);
        assert!(said.contains("is larger than 64 MiB"), "{said}");
    }
    let deep = "[".repeat(200_000);
    for ended in answered(&with_body("200 OK", deep.as_bytes())) {
        ended.fails(1);
    }
    let head = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(4 << 20));
    for ended in answered(head.as_bytes()) {
        ended.fails(1);
    }
}

const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}1mx\r\nFAKE line\tx\u{202e}\u{7f}";

/// The same with what a terminal must not see in every text that smcd is free to choose.
fn hostile(view: &Value, name: &str) -> Value {
    let fixed = [
        "status",
        "event",
        "phase",
        "run_type",
        "tracking",
        "io_priority",
        "on_read_error",
        "outcome",
        "level",
        "error_kind",
        "at",
        "started",
        "finished",
        "since",
        "created",
        "start_at",
        "expires",
        "valid_until",
        "next_try",
    ];
    match view {
        Value::String(_) if fixed.contains(&name) => view.clone(),
        // A run's class is text, the one that is wanted is a word.
        Value::String(word) if name == "consistency" && ["any", "crash", "filesystem"].contains(&&**word) => {
            view.clone()
        }
        Value::String(text) => Value::String(format!("{HOSTILE}{text}{HOSTILE}")),
        Value::Array(items) => items.iter().map(|item| hostile(item, name)).collect(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.clone(), hostile(value, name)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

/// A view like that.
fn bad(view: &impl Serialize) -> Value {
    hostile(&serde_json::to_value(view).unwrap(), "")
}

/// A tracker that cannot be used, has problems, and watches a disk that nobody can believe.
fn tracker() -> Value {
    let disk = json!({
        "name": "n", "jobs": ["j"], "since": "2026-11-24T09:58:30Z", "cluster_bytes": 0, "dirty_clusters": u64::MAX,
        "dirty_bytes": u64::MAX, "under_way": true, "trusted": false, "doubt": "d", "missed": true,
        "events": u64::MAX, "memory_bytes": u64::MAX
    });
    json!({
        "available": false, "unavailable_reason": "u", "attached": true, "problem": "p", "directory": "d",
        "events": u64::MAX, "memory_bytes": u64::MAX, "disks": [disk]
    })
}

/// Every question, and an answer as bad as it can be.
fn hostile_answers() -> Vec<(&'static str, &'static str, Value)> {
    let precheck = Precheck {
        checks: vec![Check {
            id: "x".to_owned(),
            level: Level::Warning,
            found: "x".to_owned(),
            advice: Some("x".to_owned()),
        }],
    };
    let status = json!({
        "version": "1", "pid": 1, "started": "2026-11-24T09:58:30Z", "config": "c", "store": "s",
        "jobs": { HOSTILE: 1 }, "next_sync": "n", "warnings": ["w"]
    });
    let disk = json!({
        "name": "n", "path": "p", "size_bytes": 1, "model": "m", "serial": "s", "holds": "h", "left_out": "l"
    });
    let export = json!({ "image": "i", "store": "s", "held_by": ["h"], "pins": ["p"] });
    let estimate = json!({
        "disks": [{
            "name": "n", "path": "p", "size_bytes": 1, "read_rate_bytes": 1, "sampled_bytes": 1, "zero_share": 1e300,
            "compressed_share": -1.0
        }],
        "store": { "path": "p", "write_rate_bytes": 0, "free_bytes": 0 },
        "total_bytes": u64::MAX, "stored_bytes": u64::MAX, "full_seconds": 1e300, "incremental_seconds": -1e300,
        "written_per_hour_bytes": u64::MAX, "fits": true, "notes": ["n"]
    });
    vec![
        ("status", "GET /v1/status", bad(&status)),
        ("disks", "GET /v1/disks", bad(&json!({ "disks": [disk] }))),
        ("exports", "GET /v1/exports", bad(&json!([export]))),
        ("precheck", "GET /v1/precheck", bad(&precheck)),
        ("tracker", "GET /v1/tracker", bad(&tracker())),
        ("tracker remove", "DELETE /v1/tracker", bad(&tracker())),
        ("estimate --all", "POST /v1/estimate", bad(&estimate)),
        (
            "job ls",
            "GET /v1/jobs",
            bad(&[with_everything("a"), in_error("b")]),
        ),
        ("job show a", "GET /v1/jobs/a", bad(&with_everything("a"))),
        (
            "target ls",
            "GET /v1/targets",
            bad(
                &json!({ "targets": [target("a"), TargetView { problem: Some("p".to_owned()), ..target("b") }] }),
            ),
        ),
        ("target add a line", "POST /v1/targets", bad(&target("a"))),
        ("target renew a", "POST /v1/targets/a/renew", bad(&target("a"))),
        ("job show t", "GET /v1/jobs/t", bad(&sending("t"))),
        (
            "job history t",
            "GET /v1/jobs/t/runs",
            bad(&[sending("t").last_run]),
        ),
        ("job show b", "GET /v1/jobs/b", bad(&in_error("b"))),
        ("job start a", "POST /v1/jobs/a/start", bad(&running("a"))),
        ("job sync b --wait", "POST /v1/jobs/b/sync", bad(&in_error("b"))),
        ("job stop c --wait", "POST /v1/jobs/c/stop", bad(&waiting("c"))),
        (
            "job modify a --interval 6h",
            "PATCH /v1/jobs/a",
            bad(&with_everything("a")),
        ),
        (
            "job create a --disk /dev/vda --once",
            "POST /v1/jobs",
            bad(&in_error("a")),
        ),
        ("job delete a", "DELETE /v1/jobs/a", bad(&in_error("a"))),
        ("job watch b --until-idle", "GET /v1/jobs/b", bad(&in_error("b"))),
        (
            "job history b",
            "GET /v1/jobs/b/runs",
            bad(&[in_error("b").last_run]),
        ),
    ]
}

/// Fails if there is anything that a terminal would obey, but line ends.
fn assert_harmless(args: &str, text: &str) {
    for line in text.lines() {
        assert!(
            !line.trim_start().starts_with("FAKE"),
            "{args}: a line of its own: {text}"
        );
    }
    let obeyed = |letter: char| letter != '\n' && (letter.is_control() || letter == '\u{202e}');
    assert!(!text.contains(obeyed), "{args}: {text:?}");
}

#[test]
fn nothing_that_a_terminal_would_obey_comes_through() {
    for (args, request, answer) in hostile_answers() {
        let smcd = FakeSmcd::new();
        smcd.on(request, 200, &answer);
        let ended = smcd.say(args);
        assert!(
            !ended.stdout.is_empty() && ended.stdout.contains("FAKE line x"),
            "{args}: {ended:?}"
        );
        assert_harmless(args, &ended.stdout);
        assert_harmless(args, &ended.stderr);
        let coloured = smcd.say(&format!("--color always {args}"));
        let without = coloured.stdout.replace("\u{1b}[0m", "");
        let colours = ["1", "2", "31", "32", "33", "36"].map(|colour| format!("\u{1b}[{colour}m"));
        let without = colours
            .iter()
            .fold(without, |text, colour| text.replace(colour, ""));
        assert_harmless(args, &without);
    }
}

#[test]
fn programs_get_the_same_text_that_was_sent() {
    for (args, request, answer) in hostile_answers() {
        let smcd = FakeSmcd::new();
        smcd.on(request, 200, &answer);
        let ended = smcd.say(&format!("--json {args}"));
        let expected = match &answer {
            Value::Array(items) => items.clone(),
            object => vec![object.clone()],
        };
        assert_eq!(ended.objects(), expected, "{args}");
        assert_harmless(args, &ended.stdout);
    }
}

#[test]
fn refusals_are_made_printable_too() {
    let smcd = FakeSmcd::new();
    let refused = ErrorBody {
        error: ErrorKind::Conflict,
        message: format!("{HOSTILE}x"),
    };
    smcd.on("GET /v1/jobs/a", 409, &refused);
    smcd.on_bytes("GET /v1/jobs/b", with_body("500 No", HOSTILE.as_bytes()));
    for args in ["job show a", "job show b"] {
        assert_harmless(args, &smcd.say(args).fails(1));
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let smcd = FakeSmcd::new();
    let jobs: Vec<_> = (0..3000).map(|number| waiting(&format!("web{number}"))).collect();
    smcd.on("GET /v1/jobs", 200, &jobs);
    for args in ["job ls", "job ls --json", "completions bash"] {
        let mut child = smcd
            .command(&words(args))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert!(
            ended.status.success() && ended.stderr.is_empty(),
            "{args}: {ended:?}"
        );
    }
}

/// Nobody reads what it says: stderr on a full disk, cron's pipe closed.
#[test]
fn nothing_panics_where_nothing_can_be_printed() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/jobs", 200, &json!([waiting("web01"), in_error("web02")]));
    smcd.on("GET /v1/jobs/web01", 200, &with_everything("web01"));
    smcd.on("POST /v1/jobs/web01/stop", 200, &waiting("web01"));
    smcd.on_text("DELETE /v1/jobs/web01", 204, "");
    for args in [
        "--help",
        "--version",
        "no-such-command",
        "completions bash",
        "job ls",
        "job show web01",
        "job show missing",
        "job stop web01",
        "job start web01",
        "job watch --until-idle",
        "job modify web01",
        "job delete web01",
        "job delete web01 --purge",
        "status",
    ] {
        for json in ["", " --json"] {
            let args = format!("{args}{json}");
            run_unheard(|| smcd.command(&words(&args)));
        }
    }
}
