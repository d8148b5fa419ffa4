//! What smcctl asks of smcd, command by command, and what it refuses to ask.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod fake;

use api::{CreateJob, DiskList, JobView, ListedDisk, Status};
use fake::views::{GIB, MIB, running, target, time, waiting};
use fake::{FakeSmcd, SMCCTL, words};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::process::Command;
use testkit::program::run;

/// What a command is to ask: arguments, request, body.
type Question<'a> = (&'a str, &'a str, Value);

/// Asks each, and checks the requests and that `--json` prints what came.
fn asks(questions: &[Question<'_>]) {
    for (args, request, body) in questions {
        let smcd = FakeSmcd::new();
        // In an order of its own, with a field that smcctl does not know and blanks that it does not need.
        let sent = r#"{"zeta": [1, 2.50], "name" :"x", "later": {"b":1,"a":2}}"#;
        smcd.on_text(request, 200, sent);
        let ended = smcd.say(&format!("--json {args}"));
        let asked = smcd.asked();
        assert_eq!(asked.len(), 1, "{args}: {asked:?} {ended:?}");
        assert_eq!(
            (asked[0].line.as_str(), &asked[0].json()),
            (*request, body),
            "{args}"
        );
        assert_eq!(ended.stdout, format!("{sent}\n"), "{args}: {ended:?}");
        let typed = asked[0].headers.get("content-type").map(String::as_str);
        assert_eq!(typed, (!body.is_null()).then_some("application/json"), "{args}");
        assert!(asked[0].headers.contains_key("host"), "{asked:?}");
    }
}

#[test]
fn questions_about_the_machine_are_as_the_api_has_them() {
    asks(&[
        ("status", "GET /v1/status", Value::Null),
        ("disks", "GET /v1/disks", Value::Null),
        ("disks --store /a&b", "GET /v1/disks?store=%2Fa%26b", Value::Null),
        ("exports", "GET /v1/exports", Value::Null),
        (
            "estimate --disk vda=/dev/vda --disk /dev/vdb --store /s --seconds 5",
            "POST /v1/estimate",
            json!({
                "disks": [{"path": "/dev/vda", "name": "vda"}, {"path": "/dev/vdb"}],
                "all_disks": false, "store": "/s", "seconds": 5
            }),
        ),
        (
            "estimate --all --compress-level 0",
            "POST /v1/estimate",
            json!({ "disks": [], "all_disks": true, "compress_level": 0 }),
        ),
    ]);
}

#[test]
fn questions_about_jobs_are_as_the_api_has_them() {
    asks(&[
        ("job ls", "GET /v1/jobs", Value::Null),
        ("job show web01", "GET /v1/jobs/web01", Value::Null),
        ("job show a/b?d%", "GET /v1/jobs/a%2Fb%3Fd%25", Value::Null),
        ("job start web01", "POST /v1/jobs/web01/start", Value::Null),
        ("job sync web01", "POST /v1/jobs/web01/sync", Value::Null),
        ("job stop web01", "POST /v1/jobs/web01/stop", Value::Null),
        ("job cancel web01", "POST /v1/jobs/web01/cancel", Value::Null),
        (
            "job complete web01",
            "POST /v1/jobs/web01/complete",
            json!({"last_sync": false}),
        ),
        (
            "job complete web01 --last-sync",
            "POST /v1/jobs/web01/complete",
            json!({"last_sync": true}),
        ),
        ("job history web01", "GET /v1/jobs/web01/runs", Value::Null),
        (
            "job history web01 --limit 3",
            "GET /v1/jobs/web01/runs?limit=3",
            Value::Null,
        ),
        ("job delete web01", "DELETE /v1/jobs/web01", Value::Null),
        (
            "job delete web01 --purge --yes",
            "DELETE /v1/jobs/web01?purge=true",
            Value::Null,
        ),
    ]);
}

#[test]
fn every_parameter_of_a_modification_has_an_option() {
    asks(&[
        (
            "job modify web01 --description x --bandwidth-limit 50MiB/s --io-priority idle --interval 12h --max-images 5 \
             --compress-level 0 --pre-hook= --post-hook /h --hook-timeout 90s \
             --start-at 2026-11-24T03:00:00+01:00 --valid 60d --accept-changed-disk --take-over",
            "PATCH /v1/jobs/web01",
            json!({
                "description": "x", "bandwidth_limit_bytes": 50 * MIB, "io_priority": "idle", "interval_seconds": 43_200,
                "max_images": 5, "compress_level": 0, "pre_hook": "", "post_hook": "/h",
                "hook_timeout_seconds": 90, "start_at": "2026-11-24T02:00:00Z", "valid_seconds": 60 * 86_400,
                "accept_changed_disk": true, "take_over": true
            }),
        ),
        (
            "job modify web01 --accept-changed-disk=false --take-over=false --bandwidth-limit 0",
            "PATCH /v1/jobs/web01",
            json!({ "accept_changed_disk": false, "take_over": false, "bandwidth_limit_bytes": 0 }),
        ),
    ]);
}

#[test]
fn every_parameter_of_a_job_has_an_option() {
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/jobs", 201, &waiting("web01"));
    let said = smcd.say(
        "job create web01 --disk vda=/dev/vda --disk /dev/vdb --store /s --interval 6h --max-images 3 \
         --description x --start-at 2026-11-24T03:00:00Z --valid 30d --compress-level 7 --bandwidth-limit 50MiB --io-priority best-effort:7 \
         --cluster-size 16KiB --pre-hook /a --post-hook /b --hook-timeout 2m --take-up old01 --client-token t1 \
         --accept-changed-disk --take-over --allow-network-fs",
    );
    assert!(said.ok().starts_with("web01: Waiting\n"));
    let expected = json!({
        "name": "web01", "description": "x", "client_token": "t1", "store": "/s",
        "disks": [{"path": "/dev/vda", "name": "vda"}, {"path": "/dev/vdb"}], "all_disks": false,
        "automatic_incremental": true, "interval_seconds": 21_600, "max_images": 3,
        "start_at": "2026-11-24T03:00:00Z", "valid_seconds": 30 * 86_400, "compress_level": 7,
        "bandwidth_limit_bytes": 50 * MIB, "io_priority": "best-effort:7", "cluster_size_bytes": 16_384, "pre_hook": "/a", "post_hook": "/b",
        "hook_timeout_seconds": 120, "take_up": "old01", "accept_changed_disk": true, "take_over": true, "allow_network_fs": true
    });
    assert_eq!(smcd.asked()[0].json(), expected);
    let read: CreateJob = serde_json::from_value(expected).unwrap();
    assert!(read.client_token.is_some());
}

#[test]
fn a_job_has_a_store_or_a_target() {
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/jobs", 201, &waiting("web01"));
    // How many images are kept is the target's affair.
    smcd.say("job create web01 --disk /dev/vda --target backup --interval 6h")
        .ok();
    let asked = smcd.asked()[0].json();
    assert_eq!(
        (&asked["target"], &asked["store"], &asked["max_images"]),
        (&json!("backup"), &json!(null), &json!(null))
    );
    assert_eq!(asked["automatic_incremental"], true);
    let both = smcd.say("job create web01 --disk /dev/vda --store /s --target backup --once");
    assert!(both.fails(2).contains("cannot be used with"), "both");
    let none = smcd.say("job create web01 --disk /dev/vda --target backup");
    assert!(
        none.fails(2)
            .contains("say --interval TIME for a sync again and again"),
        "none"
    );
    smcd.on("GET /v1/disks?target=backup", 200, &disks());
    smcd.say("disks --target backup").ok();
}

#[test]
fn targets_are_added_renewed_and_forgotten() {
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/targets", 201, &target("backup"));
    let said = smcd.say("target add backup smc-store:x:7310:src:00:11").ok();
    assert_eq!(
        said,
        "this machine is source src of target backup at x:7310: smcctl job create NAME --target backup ...\n"
    );
    let expected = json!({ "name": "backup", "line": "smc-store:x:7310:src:00:11" });
    assert_eq!(smcd.asked()[0].json(), expected);
    smcd.on("POST /v1/targets/backup/renew", 200, &target("backup"));
    let said = smcd.say("target renew backup").ok();
    assert_eq!(
        said,
        "the certificate for target backup is valid until 2027-02-20\n"
    );
    smcd.on("DELETE /v1/targets/backup", 204, &json!(null));
    let said = smcd.say("target rm backup").ok();
    assert!(said.starts_with("target backup is forgotten here"), "{said}");
    let refusal = json!({ "error": "conflict", "message": "job web01 sends its images to target backup" });
    smcd.on("DELETE /v1/targets/other", 409, &refusal);
    assert!(
        smcd.say("target rm other")
            .fails(1)
            .contains("job web01 sends its images"),
        "rm"
    );
}

#[test]
fn what_is_not_said_is_left_to_the_daemon() {
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/jobs", 201, &waiting("web01"));
    let mut command = smcd.command(&words("job create web01 --disk disk.img --store st --once"));
    run(command.current_dir(smcd.dir())).ok();
    let here = smcd.dir().to_str().unwrap().to_owned();
    let expected = json!({
        "name": "web01", "description": "", "store": format!("{here}/st"),
        "disks": [{ "path": format!("{here}/disk.img") }], "all_disks": false, "automatic_incremental": false,
        "accept_changed_disk": false, "allow_network_fs": false
    });
    assert_eq!(smcd.asked()[0].json(), expected);
}

#[test]
fn a_start_ahead_is_counted_from_now() {
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/jobs", 201, &waiting("web01"));
    let before = Timestamp::now();
    smcd.say("job create web01 --disk /dev/vda --once --start-at +2h")
        .ok();
    let after = Timestamp::now();
    let start = time(smcd.asked()[0].json()["start_at"].as_str().unwrap());
    let ahead = SignedDuration::from_hours(2);
    assert!(start >= before + ahead && start <= after + ahead, "{start}");
}

fn disks() -> DiskList {
    let disk = |name: &str, holds: &str, left_out: Option<&str>| ListedDisk {
        name: name.to_owned(),
        path: format!("/dev/{name}"),
        size_bytes: 40 * GIB,
        model: (name == "vda").then(|| "QEMU HARDDISK".to_owned()),
        serial: None,
        holds: holds.to_owned(),
        left_out: left_out.map(str::to_owned),
    };
    DiskList {
        disks: vec![
            disk("vda", "gpt, 2 partitions: vfat /boot/efi, ext4 /", None),
            disk("vdb", "ext4 /backup", Some("the store lies on it")),
        ],
    }
}

#[test]
fn a_job_of_all_disks_says_first_which_these_are() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/disks?store=%2Fs", 200, &disks());
    smcd.on("POST /v1/jobs", 201, &waiting("web01"));
    let create = "job create web01 --all --store /s --interval 6h --max-images 3";
    let listed = "\
NAME    SIZE  TAKEN  PATH      MODEL          SERIAL  HOLDS
vda   40 GiB  yes    /dev/vda  QEMU HARDDISK  -       gpt, 2 partitions: vfat /boot/efi, ext4 /
vdb   40 GiB  no     /dev/vdb  -              -       ext4 /backup
  left out: the store lies on it
";
    let created = "\
a job of all disks takes 1 of 2 disks
web01: Waiting
  next         incremental sync: 2026-11-24 16:00:00 (in 5 h 59 min)
";
    assert_eq!(smcd.say(create).ok(), format!("{listed}{created}"));
    assert_eq!(smcd.lines(), ["GET /v1/disks?store=%2Fs", "POST /v1/jobs"]);
    assert_eq!(smcd.asked()[1].json()["all_disks"], true);

    let ended = smcd.say(&format!("--json {create}"));
    assert!(
        ended.stderr.contains("left out: the store lies on it"),
        "{ended:?}"
    );
    assert_eq!(ended.objects(), [serde_json::to_value(waiting("web01")).unwrap()]);

    assert_eq!(smcd.say("disks --store /s").ok(), listed);
}

#[test]
fn nothing_is_created_where_the_disks_cannot_be_listed() {
    let smcd = FakeSmcd::new();
    smcd.on(
        "GET /v1/disks",
        500,
        &json!({"error": "failed", "message": "read /sys/block: gone"}),
    );
    let said = smcd.say("job create web01 --all --once").fails(1);
    assert_eq!(said, "smcctl: read /sys/block: gone\n");
    assert_eq!(smcd.lines(), ["GET /v1/disks"]);
}

#[test]
fn a_job_is_started_with_its_creation() {
    let ready = JobView {
        status: Status::Ready,
        ..waiting("web01")
    };
    let create = "job create web01 --disk /dev/vda --once --start";
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/jobs", 201, &ready);
    smcd.on("POST /v1/jobs/web01/start", 200, &running("web01"));
    assert!(
        smcd.say(create)
            .ok()
            .starts_with("web01: Running, Comparing 50%\n")
    );
    assert_eq!(smcd.lines(), ["POST /v1/jobs", "POST /v1/jobs/web01/start"]);
    let objects = smcd.say(&format!("--json {create}")).objects();
    let statuses: Vec<&Value> = objects.iter().map(|job| &job["status"]).collect();
    assert_eq!(statuses, ["Ready", "Running"]);

    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/jobs", 201, &ready);
    smcd.on(
        "POST /v1/jobs/web01/start",
        409,
        &json!({"error": "conflict", "message": "vda is busy"}),
    );
    let said = smcd.say(create).fails(1);
    assert!(
        said.contains("web01 was created but could not be started: vda is busy\n"),
        "{said}"
    );
}

#[test]
fn a_repeated_creation_is_told_and_starts_nothing_twice() {
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/jobs", 200, &running("web01"));
    let ended = smcd.say("job create web01 --disk /dev/vda --once --client-token t --start");
    assert!(ended.stderr.contains("was already created"), "{ended:?}");
    assert!(ended.ok().starts_with("web01: Running"));
    assert_eq!(smcd.lines(), ["POST /v1/jobs"]);
}

#[test]
fn what_cannot_be_asked_is_wrong_use_and_asks_nothing() {
    let smcd = FakeSmcd::new();
    let creations = [
        ("--disk /dev/vda", "--once for a single full one"),
        ("--disk /dev/vda --interval 6h", "--max-images"),
        ("--disk /dev/vda --max-images 3", "--interval"),
        ("--disk /dev/vda --once --interval 6h", "cannot be used with"),
        ("--once", "--disk"),
        ("--once --all --disk /dev/vda", "cannot be used with"),
        ("--once --disk vda=", "--disk"),
        ("--once --all --interval 6", "time unit"),
        ("--once --all --valid 1500ms", "whole seconds"),
        ("--once --all --bandwidth-limit fast", "50MiB"),
        ("--once --all --io-priority best-effort:8", "best-effort:7 (last)"),
        ("--once --all --start-at tomorrow", "+2h"),
        ("--once --all --cluster-size 8GiB", "larger than any cluster size"),
    ];
    for (args, complaint) in creations {
        let said = smcd.say(&format!("job create web01 {args}")).fails(2);
        assert!(said.contains(complaint), "{args}: {said}");
    }
    let others = [
        ("job modify web01", "nothing to change"),
        ("job delete web01 --purge", "--yes"),
        ("estimate", "--all"),
        ("--color sometimes status", "always"),
        ("job", "create"),
        ("nonsense", "nonsense"),
    ];
    for (args, complaint) in others {
        let said = smcd.say(args).fails(2);
        assert!(said.contains(complaint), "{args}: {said}");
    }
    smcd.run(&["job", "show", ""]).fails(2);
    smcd.run(&[]).fails(2);
    assert_eq!(smcd.lines(), [""; 0]);
}

#[test]
fn the_socket_is_taken_from_the_environment() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/jobs", 200, &json!([]));
    let mut command = Command::new(SMCCTL);
    let said = run(command.env("SMC_SOCKET", smcd.socket()).args(["job", "ls"])).ok();
    assert_eq!(said, "no jobs: `smcctl job create` creates one\n");
}

#[test]
fn lists_become_lines_of_json() {
    let smcd = FakeSmcd::new();
    smcd.on_text(
        "GET /v1/jobs",
        200,
        "[\n  {\"b\": 1,\n   \"a\": \"x, [y]\"},\n  {}\n]\n",
    );
    smcd.on_text("GET /v1/exports", 200, "[]");
    assert_eq!(
        smcd.say("job ls --json").ok(),
        "{\"b\": 1,    \"a\": \"x, [y]\"}\n{}\n"
    );
    assert_eq!(smcd.say("exports --json").ok(), "");
}
