//! smcctl while time passes, without a terminal: waiting and watching.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod fake;

use api::{JobView, Phase, RunOutcome, Status};
use fake::FakeSmcd;
use fake::views::{GIB, in_error, running, waiting};
use testkit::program::{Run, Running, wait_for};

/// Tells web01 something and waits: it runs, and then it is found like that.
fn waits(what: &str, after: &JobView) -> (Run, Vec<String>) {
    let smcd = FakeSmcd::new();
    let action = what.rsplit(' ').next().unwrap();
    smcd.on(&format!("POST /v1/jobs/web01/{action}"), 200, &running("web01"));
    smcd.on("GET /v1/jobs/web01", 200, after);
    (smcd.say(&format!("job {what} web01 --wait")), smcd.lines())
}

#[test]
fn waiting_ends_with_the_sync_and_tells_how_it_went() {
    let (ended, lines) = waits("sync", &waiting("web01"));
    assert_eq!(lines, ["POST /v1/jobs/web01/sync", "GET /v1/jobs/web01"]);
    let said = ended.ok();
    assert!(
        said.starts_with("web01: Waiting\n") && said.contains("web01/7: incremental image"),
        "{said}"
    );

    let (ended, _) = waits("start", &in_error("web01"));
    assert!(ended.stdout.starts_with("web01: InError\n"), "{ended:?}");
    let said = ended.fails(1);
    assert!(
        said.starts_with("smcctl: web01: the sync failed: the store is full"),
        "{said}"
    );
    assert!(said.contains("`smcctl job start web01`"), "{said}");

    let (ended, _) = waits("--json sync", &waiting("web01"));
    assert_eq!(ended.objects(), [serde_json::to_value(waiting("web01")).unwrap()]);
}

#[test]
fn waiting_fails_if_something_else_came_of_it() {
    let at = |status: Status| JobView {
        status,
        ..waiting("web01")
    };
    let cases = [
        ("stop", Status::Stopped, Status::Waiting),
        ("cancel", Status::Canceled, Status::Finished),
        ("complete", Status::Finished, Status::Stopped),
    ];
    for (what, wanted, other) in cases {
        waits(what, &at(wanted)).0.ok();
        let said = waits(what, &at(other)).0.fails(1);
        assert!(said.contains(&format!("web01 is {other}")), "{said}");
    }
    let mut stopped = at(Status::Stopped);
    stopped.last_run.as_mut().unwrap().outcome = RunOutcome::Stopped;
    let said = waits("sync", &stopped).0.fails(1);
    assert!(said.contains("web01 is Stopped, its last run stopped"), "{said}");
}

#[test]
fn nothing_is_waited_for_where_nothing_runs() {
    let smcd = FakeSmcd::new();
    let finished = JobView {
        status: Status::Finished,
        ..waiting("web01")
    };
    smcd.on("POST /v1/jobs/web01/complete", 200, &finished);
    smcd.say("job complete web01 --wait").ok();
    assert_eq!(smcd.lines(), ["POST /v1/jobs/web01/complete"]);
}

/// A sync that goes on by a percent, then cleans up, and then is over.
fn watched() -> [JobView; 4] {
    let mut later = running("web01");
    let progress = later.progress.as_mut().unwrap();
    (progress.compared_bytes, progress.percent) = (71 * GIB, 51.0);
    let mut cleaning = running("web01");
    cleaning.progress.as_mut().unwrap().phase = Phase::Cleaning;
    [running("web01"), later, cleaning, waiting("web01")]
}

fn watching() -> FakeSmcd {
    let smcd = FakeSmcd::new();
    for job in watched() {
        smcd.on("GET /v1/jobs/web01", 200, &job);
    }
    smcd
}

#[test]
fn watching_prints_a_line_when_something_changes() {
    let smcd = watching();
    let said = smcd.say("job watch web01 --until-idle").ok();
    assert_eq!(smcd.lines().len(), 4, "{said}");
    let without_time = |line: &'_ str| line.split_once("  ").unwrap().1.to_owned();
    let lines: Vec<String> = said.lines().map(without_time).collect();
    let expected = [
        "web01: Running, Comparing 50%; web01/8",
        "web01: Running, Cleaning; web01/8",
        "web01: Waiting; next: incremental sync: 2026-11-24 16:00:00 (in 5 h 59 min)",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn watching_for_programs_prints_the_job_when_something_changes() {
    let ended = watching().say("--json job watch web01 --until-idle");
    let [first, _, cleaning, last] = watched();
    let expected = [first, cleaning, last].map(|job| serde_json::to_value(job).unwrap());
    assert_eq!(ended.objects(), expected);
}

#[test]
fn watching_all_jobs_ends_when_none_runs_and_tells_of_errors() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/jobs", 200, &[waiting("web01"), in_error("web02")]);
    let ended = smcd.say("job watch --until-idle");
    assert_eq!(
        (ended.code, ended.stdout.lines().count()),
        (Some(1), 2),
        "{ended:?}"
    );
    smcd.on("GET /v1/jobs/web01", 200, &waiting("web01"));
    smcd.say("job watch web01 --until-idle").ok();
}

#[test]
fn ctrl_c_ends_watching_well_and_waiting_with_a_word() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/jobs/web01", 200, &running("web01"));
    smcd.on("POST /v1/jobs/web01/sync", 200, &running("web01"));
    let mut watching = Running::start(&mut smcd.command(&["job", "watch", "web01"]));
    assert!(watching.lines(1)[0].contains("web01: Running"));
    let (code, complaints) = watching.signal("INT");
    assert_eq!((code, complaints.as_str()), (Some(0), ""));

    let waiting = Running::start(&mut smcd.command(&["job", "sync", "web01", "--wait"]));
    wait_for("the request for a sync", || {
        smcd.lines().last().is_some_and(|line| line.starts_with("POST"))
    });
    wait_for("another look", || {
        smcd.lines().last().is_some_and(|line| line.starts_with("GET"))
    });
    let (code, complaints) = waiting.signal("INT");
    assert_eq!(code, Some(130), "{complaints}");
    assert!(
        complaints.contains("smcd continues") && complaints.contains("job watch web01"),
        "{complaints}"
    );
}
