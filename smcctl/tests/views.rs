//! What smcctl makes of answers for people: each view whole, as it is printed.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod fake;

use api::{
    Check, DiskEstimate, Estimate, ExportView, JobView, Level, Precheck, ServiceStatus, Status,
    StoreEstimate, TargetEstimate, TargetList, TargetView,
};
use fake::FakeSmcd;
use fake::views::{GIB, MIB, in_error, sending, succeeded, target, waiting, with_everything};
use serde_json::json;

#[test]
fn a_job_is_shown_with_all_that_is_known() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/jobs/web01", 200, &with_everything("web01"));
    let expected = "\
web01: Running, Comparing 50%
  about        Web server of the shop
  warning      all 3 images are in use: none was deleted
  requested    stop, in progress
  completing   the job is Finished after this sync, if the comparison after it finds everything the same
  next         the sync ends: 2026-11-24 10:01:00 (in 24 s)
  progress     web01/8, since 2026-11-24 10:00:00 (42 s), reading data
               compared 70 GiB of 140 GiB at 2 GiB/s, 35 s left
               changed 3 GiB, stored 1 GiB at 32 MiB/s
  last sync    if you stopped services now, the last sync would take about 1 min 21 s:
               comparing 140 GiB at 2 GiB/s: 1 min 10 s
               storing 800 MiB of changes at 33 MiB/s: 24 s, meanwhile
               hooks, making the image durable, deleting old ones: 11 s
               writers would be held for 41 ms: the longest time of the last syncs
               basis: the last 3 syncs (300 KiB/s changes)
  disks        vda   /dev/vda  40 GiB
               data  /dev/vdb  100 GiB
  store        /var/lib/smc/store
  images       web01/5, web01/6, web01/7
  continues    old01: its newest image is what the first sync builds on
  interval     6h, 12h after the next sync
  keeps        3 images, 5 images after the next sync
  syncs        reads at most 50 MiB/s with I/O priority idle, compression level 4, clusters of 64 KiB
  note         the I/O priority idle has no effect on vda (none)
  consistency  at least filesystem, or the sync fails; the last image is fuzzy; writers may be held for 200 ms
  hooks        before every sync: /usr/local/bin/flush (at most 1m30s)
               before a freeze: /usr/local/bin/pause (at most 2s)
               after the thaw: /usr/local/bin/release (at most 1m30s)
               after every sync: /usr/local/bin/resume (at most 1m30s)
  created      2026-11-20 08:00:00
  starts       2026-11-21 03:00:00
  expires      2026-12-20 08:00:00, 30d after its creation
  last run     run 7 (schedule): succeeded, began 2026-11-24 09:58:30, took 1 min 30 s
               web01/7: incremental image (scan), fuzzy (vda was written to meanwhile)
               vda: scan, 40 GiB compared, 3 GiB changed, 900 MiB stored, damaged clusters repaired: 2
                    scanned: the machine was restarted
                    smc1-64k:00ff
               deleted afterwards: web01/4
";
    assert_eq!(smcd.say("job show web01").ok(), expected);
}

#[test]
fn a_job_that_waits_for_its_target_says_since_when_and_why() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/jobs/web01", 200, &sending("web01"));
    smcd.on("GET /v1/jobs", 200, &[sending("web01")]);
    let wait = "waits for its target since 2026-11-24 10:00:10, next try at 2026-11-24 10:01:10: the target at \
                backup:7310 cannot be reached";
    let said = smcd.say("job show web01").ok();
    for line in [
        "web01: Running, waiting for target\n",
        &format!("  waiting      {wait}\n"),
        "               sent 2 GiB at 30 MiB/s, of which 1 GiB survive a power cut of the target\n",
        "  target       backup\n",
        "  syncs        reads without limit, sends at most 20MiB, 22:00-06:00 unlimited, compression level 4",
        "  keeps        what the target decides\n",
        "               sent 901 MiB, up to 2 MiB of it twice, as connections were lost, waited 1 min 1 s for the target\n",
    ] {
        assert!(said.contains(line), "{line}{said}");
    }
    assert!(!said.contains("  store "), "{said}");
    let said = smcd.say("job ls").ok();
    assert!(said.contains(&format!("  web01 {wait}\n")), "{said}");
}

#[test]
fn a_job_that_failed_says_why_and_what_to_do() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/jobs/web02", 200, &in_error("web02"));
    let said = smcd.say("job show web02").ok();
    assert!(said.starts_with("web02: InError\n"), "{said}");
    assert!(
        said.contains("  error        the store is full: free some space"),
        "{said}"
    );
    assert!(said.contains("`smcctl job start web02` resumes"), "{said}");
    assert!(
        said.contains("  next         nothing, until it is started again\n"),
        "{said}"
    );
}

#[test]
fn jobs_and_runs_are_tables() {
    let smcd = FakeSmcd::new();
    smcd.on(
        "GET /v1/jobs",
        200,
        &[with_everything("web01"), in_error("web02"), waiting("db")],
    );
    let failed = in_error("web02").last_run.unwrap();
    let mut whole = succeeded("web02", 7);
    whole.disks[0].repaired_clusters = 0;
    smcd.on("GET /v1/jobs/web02/runs", 200, &[failed.clone(), whole]);
    let jobs = "\
NAME   STATUS                  NEXT                IMAGES  LAST-SYNC                   DISKS     SIZE
web01  Running, Comparing 50%  ends in 24 s             3  2026-11-24 10:00:00             2  140 GiB
  warning: all 3 images are in use: none was deleted
web02  InError                 -                        3  2026-11-24 10:00:00 failed      2  140 GiB
  error: the store is full: free some space in /var/lib/smc/store
db     Waiting                 sync in 5 h 59 min       3  2026-11-24 10:00:00             2  140 GiB
";
    assert_eq!(smcd.say("job ls").ok(), jobs);
    let runs = "\
RUN  STARTED                    TOOK  TYPE      OUTCOME    IMAGE    METHOD  CLASS  COMPARED  CHANGED   STORED     RATE
  8  2026-11-24 09:58:30  1 min 30 s  schedule  failed     -        scan    fuzzy   140 GiB    3 GiB  900 MiB  2 GiB/s
  error: the store is full: free some space in /var/lib/smc/store
  7  2026-11-24 09:58:30  1 min 30 s  schedule  succeeded  web02/7  scan    fuzzy   140 GiB    3 GiB  900 MiB  2 GiB/s
";
    assert_eq!(smcd.say("job history web02").ok(), runs);
    smcd.on("GET /v1/jobs/web03/runs", 200, &[failed, succeeded("web02", 7)]);
    let said = smcd.say("job history web03").ok();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].ends_with("     RATE  REPAIRED"), "{said}");
    assert!(lines[3].ends_with("  2 GiB/s         2"), "{said}");
    smcd.on("GET /v1/jobs/new/runs", 200, &json!([]));
    assert_eq!(smcd.say("job history new").ok(), "no runs yet\n");
}

#[test]
fn the_daemon_is_told_in_a_few_lines() {
    let smcd = FakeSmcd::new();
    let status = ServiceStatus {
        version: "0.1.0".to_owned(),
        pid: 4711,
        started: jiff::Timestamp::now() - jiff::SignedDuration::from_hours(51),
        config: None,
        store: "/var/lib/smc/store".to_owned(),
        jobs: [("Running", 1), ("Waiting", 2), ("Ready", 0)]
            .map(|(state, n)| (state.to_owned(), n))
            .into(),
        next_sync: Some("web01, in 5 h".to_owned()),
        warnings: vec!["the clock jumped".to_owned()],
    };
    smcd.on("GET /v1/status", 200, &status);
    let said = smcd.say("status").ok();
    assert!(
        said.starts_with("smcd 0.1.0 is up for 2 d 3 h, since 20"),
        "{said}"
    );
    let rest: Vec<&str> = said.lines().skip(1).collect();
    assert_eq!(
        rest,
        [
            "  store        /var/lib/smc/store",
            "  config       none: everything is as by default",
            "  jobs         1 Running, 2 Waiting",
            "  next sync    web01, in 5 h",
            "  warning      the clock jumped",
        ]
    );
}

fn check(level: Level, found: &str, advice: Option<&str>) -> Check {
    Check {
        id: "x".to_owned(),
        level,
        found: found.to_owned(),
        advice: advice.map(str::to_owned),
    }
}

#[test]
fn a_precheck_ends_in_a_verdict_which_is_the_exit_code() {
    let good = || check(Level::Ok, "the kernel has virtio drivers", None);
    let doubtful = || check(Level::Warning, "fstab names /dev/sdb1", Some("name it by UUID"));
    let bad = || {
        check(
            Level::Critical,
            "the store lies on vda",
            Some("take another disk"),
        )
    };
    let smcd = FakeSmcd::new();
    let request = "GET /v1/precheck?store=%2Fs&disk=vda&disk=vdb";
    let cases = [
        (vec![good()], 0, "ready"),
        (vec![good(), doubtful()], 0, "ready with 1 warning"),
        (vec![doubtful(), bad(), good(), bad()], 1, "not ready: 2 critical"),
        (vec![], 0, "ready"),
    ];
    for (checks, code, verdict) in cases {
        let smcd = FakeSmcd::new();
        smcd.on(request, 200, &Precheck { checks });
        let args = "precheck --store /s --disk vda --disk vdb";
        let ended = smcd.say(args);
        assert_eq!(
            (ended.code, ended.stdout.lines().last()),
            (Some(code), Some(verdict)),
            "{ended:?}"
        );
        let ended = smcd.say(&format!("{args} --json"));
        assert_eq!((ended.code, ended.objects().len()), (Some(code), 1), "{ended:?}");
    }
    smcd.on(
        "GET /v1/precheck",
        200,
        &Precheck {
            checks: vec![doubtful(), good()],
        },
    );
    let expected = "\
LEVEL    FOUND
warning  fstab names /dev/sdb1
         name it by UUID
ok       the kernel has virtio drivers
ready with 1 warning
";
    assert_eq!(smcd.say("precheck").ok(), expected);
}

#[test]
fn an_estimate_says_what_it_would_take() {
    let estimate = Estimate {
        disks: vec![DiskEstimate {
            name: "vda".to_owned(),
            path: "/dev/vda".to_owned(),
            size_bytes: 40 * GIB,
            read_rate_bytes: 2 * GIB,
            sampled_bytes: 4 * GIB,
            zero_share: 0.25,
            compressed_share: 0.5,
        }],
        target: None,
        store: Some(StoreEstimate {
            path: "/s".to_owned(),
            write_rate_bytes: 500 * MIB,
            free_bytes: 10 * GIB,
        }),
        total_bytes: 40 * GIB,
        stored_bytes: 15 * GIB,
        full_seconds: 31.0,
        incremental_seconds: 20.0,
        written_per_hour_bytes: Some(GIB),
        fits: false,
        notes: vec!["one sample".to_owned(), "no hooks".to_owned()],
    };
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/estimate", 200, &estimate);
    let expected = "\
DISK  PATH        SIZE    READS  SAMPLED  ZEROS  COMPRESSED-TO
vda   /dev/vda  40 GiB  2 GiB/s    4 GiB    25%            50%
  store        /s: 10 GiB free, writes 500 MiB/s
  full         about 31 s for 40 GiB, which take about 15 GiB in the store
  incremental  about 20 s; 1 GiB are written in an hour
  room         not enough for the full sync: free some, or take another store
  notes        one sample
               no hooks
";
    assert_eq!(smcd.say("estimate --all").ok(), expected);
    let to_target = Estimate {
        store: None,
        target: Some(TargetEstimate {
            name: "backup".to_owned(),
            send_rate_bytes: 30 * MIB,
            free_bytes: 10 * GIB,
        }),
        ..estimate
    };
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/estimate", 200, &to_target);
    let said = smcd.say("estimate --all --target backup").ok();
    assert_eq!(smcd.asked()[0].json()["target"], "backup");
    for line in [
        "  target       backup: 10 GiB free, takes 30 MiB/s\n",
        "  full         about 31 s for 40 GiB, which take about 15 GiB there\n",
        "  room         not enough for the full sync: free some there, or raise this machine's quota\n",
    ] {
        assert!(said.contains(line), "{line}{said}");
    }
}

#[test]
fn targets_are_listed_with_what_they_say() {
    let there = target("backup");
    let silent = TargetView {
        status: None,
        problem: Some("the target at x:7310 cannot be reached".to_owned()),
        used_by: Some(Vec::new()),
        ..target("other")
    };
    let smcd = FakeSmcd::new();
    let list = TargetList {
        targets: vec![there, silent],
    };
    smcd.on("GET /v1/targets", 200, &list);
    let expected = "\
TARGET  ADDRESS  SOURCE  CERTIFICATE UNTIL  FREE THERE  JOBS THERE   USED BY
backup  x:7310   src     2027-02-20             10 GiB  db/3 web01/7  web01
  the clock of backup differs by -3600 s: how long images are kept there goes by that clock
other   x:7310   src     2027-02-20                  -  -            -
  other: the target at x:7310 cannot be reached
";
    let said = smcd.say("target ls").ok();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&said), words(expected), "{said}");
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/targets", 200, &TargetList { targets: Vec::new() });
    let said = smcd.say("target ls").ok();
    assert_eq!(
        said,
        "this machine knows no target: `smc-store enrol` there prints the line for `smcctl target add`\n"
    );
}

#[test]
fn images_in_use_are_listed_with_their_users() {
    let export = ExportView {
        image: "web01/7".to_owned(),
        store: "/s".to_owned(),
        held_by: vec!["smc-image (pid 4711)".to_owned()],
        pins: vec![],
        error: None,
    };
    let silent = ExportView {
        image: String::new(),
        store: "/nfs".to_owned(),
        held_by: vec![],
        pins: vec![],
        error: Some("store /nfs does not answer: check its disk, or the server that it is on".to_owned()),
    };
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/exports", 200, std::slice::from_ref(&export));
    smcd.on("GET /v1/exports", 200, &[export, silent.clone()]);
    smcd.on("GET /v1/exports", 200, &[silent]);
    smcd.on("GET /v1/exports", 200, &json!([]));
    let expected = "IMAGE    STORE  HELD-BY               PINS\nweb01/7  /s     smc-image (pid 4711)  -\n";
    let unknown = "not known whether images of store /nfs are in use: store /nfs does not answer: check its disk, or the server that it is on\n";
    assert_eq!(smcd.say("exports").ok(), expected);
    assert_eq!(smcd.say("exports").ok(), format!("{expected}{unknown}"));
    assert_eq!(smcd.say("exports").ok(), unknown);
    assert_eq!(smcd.say("exports").ok(), "no image is in use\n");
}

#[test]
fn modifications_are_shown_beside_what_is_in_force() {
    let smcd = FakeSmcd::new();
    smcd.on("PATCH /v1/jobs/web01", 200, &with_everything("web01"));
    let said = smcd.say("job modify web01 --interval 12h").ok();
    assert!(
        said.contains("  interval     6h, 12h after the next sync\n"),
        "{said}"
    );
    assert!(!said.contains("last run"), "{said}");
}

#[test]
fn a_deletion_says_what_became_of_the_images() {
    let smcd = FakeSmcd::new();
    smcd.on_text("DELETE /v1/jobs/web01", 204, "");
    smcd.on_text("DELETE /v1/jobs/web01?purge=true", 204, "");
    let deleting = JobView {
        status: Status::Deleting,
        ..waiting("web01")
    };
    smcd.on("DELETE /v1/jobs/web01?purge=true", 200, &deleting);
    assert_eq!(
        smcd.say("job delete web01").ok(),
        "web01 is deleted; its images remain\n"
    );
    assert_eq!(smcd.say("job delete web01 --json").ok(), "");
    let purge = "job delete web01 --purge --yes";
    assert_eq!(smcd.say(purge).ok(), "web01 and its images are deleted\n");
    assert!(smcd.say(purge).ok().starts_with("web01: Deleting\n"));
}
