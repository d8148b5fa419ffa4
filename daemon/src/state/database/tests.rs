use super::*;
use crate::clock::{Clock, HandClock};
use crate::config::Config;
use crate::engine::Place;
use crate::job::new_record;
use api::{RunOutcome, RunType, Status};
use serde_json::{Value, json};

/// A database that smcd wrote before records had a version, with jobs in several states.
const FORMAT_0: &[u8] = include_bytes!("../fixtures/format-0.db");

fn job(name: &str) -> JobRecord {
    let request = api::CreateJob {
        name: name.to_owned(),
        client_token: Some(format!("token-{name}")),
        automatic_incremental: true,
        interval_seconds: Some(3600),
        max_images: Some(3),
        disks: vec![api::DiskRequest {
            path: format!("/dev/{name}"),
            name: None,
        }],
        ..Default::default()
    };
    let given = crate::job::ResolvedInput {
        place: Place::Store("/srv/store".into()),
        disks: vec![crate::job::DiskRecord {
            name: "vda".to_owned(),
            path: format!("/dev/{name}").into(),
            size_bytes: 4096,
            identity: Default::default(),
        }],
    };
    new_record(
        &request,
        given,
        &Config::load(None).unwrap(),
        &HandClock::new().now(),
    )
    .unwrap()
}

fn run(number: u64) -> RunView {
    crate::service::run_begun(number, RunType::Manual, jiff::Timestamp::UNIX_EPOCH)
}

/// A state with jobs `db` and `web01`, each with two runs.
fn filled(dir: &Path) -> State {
    let (mut state, _) = State::open(dir).unwrap();
    for name in ["db", "web01"] {
        state.save(&job(name), Some(&run(1))).unwrap();
        state.save(&job(name), Some(&run(2))).unwrap();
    }
    state.claim(&[]).unwrap();
    state
}

fn names(jobs: &[JobRecord]) -> Vec<&str> {
    jobs.iter().map(|job| job.name.as_str()).collect()
}

fn record(state: &State, name: &str) -> Vec<u8> {
    stored_job(&state.connection, name).unwrap().unwrap().text
}

fn json_of(state: &State, name: &str) -> Value {
    serde_json::from_slice(&record(state, name)).unwrap()
}

/// Puts bytes in a record's place, as a newer version or a failing disk would.
fn put_bytes(state: &State, name: &str, bytes: &[u8]) {
    state
        .connection
        .execute(
            "UPDATE jobs SET record = CAST(?2 AS TEXT) WHERE name = ?1",
            params![name, bytes],
        )
        .unwrap();
}

fn put_run_json(state: &State, name: &str, number: u64, record: &Value) {
    state
        .connection
        .execute(
            "UPDATE runs SET record = ?3 WHERE job = ?1 AND number = ?2",
            params![name, signed(number), record.to_string()],
        )
        .unwrap();
}

/// Changes a job's record as JSON.
fn edit(state: &State, name: &str, change: impl FnOnce(&mut Value)) {
    let mut record = json_of(state, name);
    change(&mut record);
    put_bytes(state, name, record.to_string().as_bytes());
}

#[test]
fn jobs_and_runs_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, opened) = State::open(dir.path()).unwrap();
    assert_eq!(opened, Opened::New);
    let mut web = job("web01");
    state.save(&web, Some(&run(1))).unwrap();
    web.description = "changed".to_owned();
    web.schedule.as_mut().unwrap().interval_seconds = 7200;
    web.pending.max_images = Some(5);
    web.run = Some(crate::job::ActiveRun {
        number: 2,
        run_type: RunType::Schedule,
        image: Some(7),
        ending: Some(crate::job::Ending::Cancel),
        from_waiting: true,
        written: Some(crate::job::WriteCounter {
            boot: "a".to_owned(),
            bytes: 5,
        }),
    });
    let mut ended = run(2);
    ended.outcome = RunOutcome::Failed;
    ended.seconds = Some(1.5);
    state.save(&web, Some(&ended)).unwrap();
    let db = job("db");
    state.save(&db, None).unwrap();
    state.claim(&[]).unwrap();
    drop(state);
    let (mut state, opened) = State::open(dir.path()).unwrap();
    assert_eq!(opened, Opened::Found);
    let jobs = state.jobs().unwrap();
    assert_eq!(jobs.readable, [db, web]);
    assert_eq!(jobs.unreadable, []);
    assert_eq!(state.runs("web01", 10).unwrap().readable, [ended.clone(), run(1)]);
    assert_eq!(state.runs("web01", 1).unwrap().readable, [ended]);
    assert_eq!(state.run("web01", 1).unwrap(), Some(run(1)));
    state.remove("web01").unwrap();
    assert_eq!(state.runs("web01", 10).unwrap(), Runs::default());
}

#[test]
fn a_job_with_a_target_is_found_again_and_no_earlier_version_acts_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = State::open(dir.path()).unwrap();
    let mut web = job("web01");
    web.place = Place::Target("backup".to_owned());
    web.schedule.as_mut().unwrap().max_images = None;
    web.request.target = Some("backup".to_owned());
    let mut sent = run(1);
    sent.transfer = Some(api::RunTransfer {
        sent_bytes: 5,
        sent_again_bytes: 2,
        waited_seconds: 61.5,
    });
    state.save(&web, Some(&sent)).unwrap();
    assert_eq!(state.jobs().unwrap().readable, [web]);
    assert_eq!(state.runs("web01", 10).unwrap().readable, [sent]);
    let record = json_of(&state, "web01");
    assert_eq!(
        (&record["target"], &record["store"]),
        (&json!("backup"), &json!(""))
    );
    assert_eq!(record["min_reader"], json!(crate::state::records::FORMAT));
    // One that names a file elsewhere was not written by smcd.
    edit(&state, "web01", |record| record["target"] = json!("../x"));
    let jobs = state.jobs().unwrap();
    assert_eq!(jobs.readable, []);
    assert_eq!(jobs.unreadable[0].store, None, "an empty path is no store");
}

#[test]
fn a_job_with_a_store_can_be_read_by_the_version_before_targets() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = State::open(dir.path()).unwrap();
    let mut web = job("web01");
    web.unconfirmed = true;
    state.save(&web, None).unwrap();
    assert_eq!(json_of(&state, "web01")["min_reader"], json!(7));
    web.unconfirmed = false;
    state.save(&web, None).unwrap();
    assert_eq!(json_of(&state, "web01")["min_reader"], json!(0));
    // Only a target decides itself how many images it keeps.
    edit(&state, "web01", |record| {
        record["schedule"]["max_images"] = json!(null);
    });
    let jobs = state.jobs().unwrap();
    assert_eq!(jobs.readable, []);
    assert!(jobs.unreadable[0].reason.contains("how many images"), "{jobs:?}");
}

#[test]
fn what_the_version_before_wrote_is_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state.db"), FORMAT_0).unwrap();
    let (state, opened) = State::open(dir.path()).unwrap();
    assert_eq!(opened, Opened::Found);
    let jobs = state.jobs().unwrap();
    assert_eq!(jobs.unreadable, []);
    assert_eq!(names(&jobs.readable), ["app", "broken", "db", "web01"]);
    let [app, broken, db, web] = &jobs.readable[..] else {
        panic!("{jobs:?}")
    };
    assert_eq!((app.status, app.schedule), (Status::Ready, None));
    assert!(app.start_at.is_some());
    assert_eq!(broken.status, Status::Running);
    let ending = db.run.as_ref().and_then(|run| run.ending);
    assert_eq!(ending, Some(crate::job::Ending::Stop));
    assert_eq!((web.status, web.runs, web.synced), (Status::Waiting, 2, true));
    assert_eq!(web.pending.interval_seconds, Some(7200));
    assert_eq!(web.hooks.timeout_seconds, 90);
    assert_eq!(web.request.client_token.as_deref(), Some("token-1"));
    assert!(web.next_sync.is_some());
    let runs = state.runs("web01", 10).unwrap();
    assert_eq!(runs.unreadable, []);
    assert_eq!(runs.readable[0].image.as_deref(), Some("web01/2"));
    assert_eq!(runs.readable[1].disks[0].size_bytes, 100_000);
}

#[test]
fn a_field_that_was_renamed_is_read_under_its_old_name() {
    let dir = tempfile::tempdir().unwrap();
    let state = filled(dir.path());
    edit(&state, "web01", |record| {
        let record = record.as_object_mut().unwrap();
        record.remove("retention_pending");
        record.insert("excess".to_owned(), json!(true));
    });
    let jobs = state.jobs().unwrap();
    assert_eq!(jobs.unreadable, []);
    assert!(jobs.readable[1].retention_pending);
}

#[test]
fn the_version_before_can_read_what_this_one_writes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state.db"), FORMAT_0).unwrap();
    let (mut state, _) = State::open(dir.path()).unwrap();
    let version: u32 = state
        .connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(version, 1, "it takes no file of a higher version");
    let keys = |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let before = json_of(&state, "web01");
    let web = state.jobs().unwrap().readable.pop().unwrap();
    state.save(&web, None).unwrap();
    let after = json_of(&state, "web01");
    // It ignores unknown fields of a job, and refuses those of a request.
    for key in keys(&before) {
        assert_eq!(before[&key], after[&key], "{key}");
    }
    assert_eq!(keys(&before["request"]), keys(&after["request"]));
    let mut added = keys(&after);
    added.retain(|key| before.get(key).is_none());
    assert_eq!(
        added,
        [
            "checks",
            "consistency",
            "deferred",
            "format",
            "hooks_owed",
            "images",
            "io_priority",
            "min_reader",
            "min_scan_interval_seconds",
            "on_read_error",
            "require_consistency",
            "scan_from",
            "thaw_owed",
            "tracker_misses",
            "tracking",
            "unconfirmed",
            "unwatch_owed"
        ]
    );
}

#[test]
fn what_a_newer_version_added_survives_a_rewrite() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = filled(dir.path());
    let mut web = job("web01");
    web.status = Status::Running;
    web.run = Some(crate::job::ActiveRun {
        number: 2,
        run_type: RunType::Manual,
        image: None,
        ending: None,
        from_waiting: false,
        written: None,
    });
    state.save(&web, None).unwrap();
    let added = [
        "/added",
        "/run/added",
        "/disks/0/added",
        "/disks/0/identity/added",
        "/schedule/added",
        "/pending/added",
        "/hooks/added",
        "/expires/added",
        "/request/added",
        "/request/disks/0/added",
    ];
    edit(&state, "web01", |record| {
        record["format"] = json!(9);
        record["min_reader"] = json!(1);
        for pointer in added {
            let (object, _) = pointer.rsplit_once('/').unwrap();
            record.pointer_mut(object).unwrap()["added"] = json!({ "since": 9 });
        }
    });
    let mut newer = serde_json::to_value(StoredRun::new(&run(2), None)).unwrap();
    newer["added"] = json!("x");
    put_run_json(&state, "web01", 2, &newer);

    let mut web = state.jobs().unwrap().readable.pop().unwrap();
    web.description = "changed by this version".to_owned();
    web.run.as_mut().unwrap().image = Some(3);
    let mut ended = state.run("web01", 2).unwrap().unwrap();
    ended.outcome = RunOutcome::Succeeded;
    state.save(&web, Some(&ended)).unwrap();

    let record = json_of(&state, "web01");
    assert_eq!(record["description"], "changed by this version");
    for pointer in added {
        assert_eq!(record.pointer(pointer), Some(&json!({ "since": 9 })), "{pointer}");
    }
    let note = state.note("web01", 50).unwrap().unwrap();
    assert_eq!(note.job, record);
    assert_eq!(note.runs[0]["added"], "x");
    assert_eq!(note.runs[0]["outcome"], "succeeded");

    // What is about another run or another deadline is not taken over.
    web.run.as_mut().unwrap().number = 3;
    web.expires = crate::clock::Deadline::after(&HandClock::new().now(), std::time::Duration::from_secs(5));
    state.save(&web, None).unwrap();
    let record = json_of(&state, "web01");
    assert_eq!(record.pointer("/run/added"), None);
    assert_eq!(record.pointer("/expires/added"), None);
    assert_eq!(record.pointer("/hooks/added"), Some(&json!({ "since": 9 })));
}

#[test]
fn an_unknown_value_or_a_newer_format_costs_its_job_alone() {
    type Row = (&'static str, fn(&mut Value));
    let changes: [Row; 5] = [
        ("Paused", |record| record["status"] = json!("Paused")),
        ("thaw", |record| {
            record["run"] = json!({
                "number": 2, "run_type": "manual", "image": null, "ending": "thaw", "from_waiting": false, "written": null
            });
        }),
        ("by_event", |record| {
            record["run"] = json!({ "number": 2, "run_type": "by_event", "image": null });
        }),
        ("invalid type", |record| record["disks"] = json!({ "all": true })),
        ("format 90 or later", |record| {
            record["format"] = json!(91);
            record["min_reader"] = json!(90);
        }),
    ];
    for (reason, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        let state = filled(dir.path());
        edit(&state, "web01", change);
        let before = record(&state, "web01");
        drop(state);
        let (mut state, opened) = State::open(dir.path()).unwrap();
        assert_eq!(opened, Opened::Found, "{reason}");
        let jobs = state.jobs().unwrap();
        assert_eq!(names(&jobs.readable), ["db"], "{reason}");
        let [web] = &jobs.unreadable[..] else {
            panic!("{reason}: {jobs:?}")
        };
        assert!(web.reason.contains(reason), "{}", web.reason);
        assert_eq!(web.store.as_deref(), Some(Path::new("/srv/store")), "{reason}");
        assert_eq!(web.disks, [PathBuf::from("/dev/web01")], "{reason}");
        assert_eq!(web.client_token.as_deref(), Some("token-web01"), "{reason}");
        state.save(&jobs.readable[0], Some(&run(3))).unwrap();
        assert!(
            state.save(&job("web01"), None).is_err(),
            "{reason}: it is not written over"
        );
        assert_eq!(record(&state, "web01"), before, "{reason}");
    }
}

#[test]
fn a_run_that_cannot_be_read_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let state = filled(dir.path());
    let mut newer = serde_json::to_value(StoredRun::new(&run(2), None)).unwrap();
    newer["outcome"] = json!("verified");
    put_run_json(&state, "web01", 2, &newer);
    let runs = state.runs("web01", 10).unwrap();
    assert_eq!(runs.readable, [run(1)]);
    let [(2, reason)] = &runs.unreadable[..] else {
        panic!("{runs:?}")
    };
    assert!(reason.contains("verified"), "{reason}");
    assert!(state.run("web01", 2).is_err());
    // The note keeps it for the version that knows it.
    assert_eq!(state.note("web01", 50).unwrap().unwrap().runs[0], newer);
}

#[test]
fn a_damaged_record_costs_its_job_alone_wherever_the_damage_is() {
    let dir = tempfile::tempdir().unwrap();
    let state = filled(dir.path());
    let whole = record(&state, "web01");
    state
        .connection
        .execute_batch("PRAGMA synchronous = OFF")
        .unwrap();
    let mut unreadable = 0;
    let mut check = |bytes: &[u8], what: &str| {
        put_bytes(&state, "web01", bytes);
        let jobs = state.jobs().unwrap();
        let all = jobs.readable.len() + jobs.unreadable.len();
        assert_eq!((names(&jobs.readable)[0], all), ("db", 2), "{what}");
        unreadable += jobs.unreadable.len();
    };
    for at in 0..whole.len() {
        check(&whole[..at], &format!("cut at {at}"));
        for flip in [0x80, 0x01] {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            check(&damaged, &format!("byte {at} flipped by {flip:#x}"));
        }
    }
    assert!(
        unreadable >= 2 * whole.len(),
        "{unreadable} of {}",
        3 * whole.len()
    );
    put_bytes(&state, "web01", &whole[..whole.len() - 1]);
    let jobs = state.jobs().unwrap();
    assert_eq!(jobs.unreadable[0].disks, [PathBuf::from("/dev/web01")]);
}

#[test]
fn a_damaged_file_is_set_aside_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    for (number, garbage) in [&b"this is no database"[..], &[0xff; 5000]].iter().enumerate() {
        fs::write(dir.path().join("state.db"), garbage).unwrap();
        let (state, opened) = State::open(dir.path()).unwrap();
        let Opened::Damaged(kept, why) = opened else {
            panic!("{opened:?}")
        };
        assert_eq!(fs::read(&kept).unwrap(), *garbage, "{why}");
        assert!(kept.ends_with(format!("state.db.damaged-{}", number + 1)));
        assert_eq!(state.jobs().unwrap(), Jobs::default());
    }
}

#[test]
fn a_damaged_page_leads_to_a_state_that_works_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()));
    let path = dir.path().join("state.db");
    let whole = fs::read(&path).unwrap();
    let mut set_aside = 0;
    for page in 0..whole.len() / 4096 {
        let mut damaged = whole.clone();
        damaged[page * 4096..][..4096].fill(0xff);
        fs::write(&path, &damaged).unwrap();
        let (mut state, opened) = State::open(dir.path()).unwrap();
        match opened {
            Opened::Damaged(kept, _) => {
                assert_eq!(fs::read(kept).unwrap(), damaged, "page {page}");
                set_aside += 1;
            }
            Opened::Found | Opened::New => {}
        }
        state.save(&job("new"), Some(&run(1))).unwrap();
    }
    assert!(set_aside > 3, "{set_aside} of {} pages", whole.len() / 4096);
}

#[test]
fn a_newer_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = State::open(dir.path()).unwrap();
    state.connection.pragma_update(None, "user_version", 99).unwrap();
    drop(state);
    let before = fs::read(dir.path().join("state.db")).unwrap();
    let error = format!("{:#}", State::open(dir.path()).unwrap_err());
    assert!(error.contains("a newer smcd wrote it"), "{error}");
    assert_eq!(fs::read(dir.path().join("state.db")).unwrap(), before);
}

#[test]
fn a_newer_schema_that_only_adds_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let state = filled(dir.path());
    state
        .connection
        .execute_batch(
            "ALTER TABLE jobs ADD COLUMN owner TEXT;
             CREATE TABLE trackers (disk TEXT PRIMARY KEY) STRICT;
             INSERT INTO trackers VALUES ('vda');
             UPDATE schema SET version = 77;",
        )
        .unwrap();
    drop(state);
    let (mut state, opened) = State::open(dir.path()).unwrap();
    assert_eq!(opened, Opened::Found);
    assert_eq!(names(&state.jobs().unwrap().readable), ["db", "web01"]);
    state.save(&job("web01"), Some(&run(3))).unwrap();
    let count = |sql: &str| -> u32 { state.connection.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(count("SELECT version FROM schema"), 77);
    assert_eq!(count("SELECT count(*) FROM trackers"), 1);
}

#[test]
fn jobs_of_another_machine_stay_so_while_their_record_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = filled(dir.path());
    edit(&state, "web01", |record| record["status"] = json!("Paused"));
    let unreadable = state.jobs().unwrap().unreadable;
    state.claim(&unreadable).unwrap();
    assert!(state.is_foreign("web01").unwrap());
    assert!(!state.is_foreign("db").unwrap());
    state.adopt("web01").unwrap();
    assert!(!state.is_foreign("web01").unwrap());
}
