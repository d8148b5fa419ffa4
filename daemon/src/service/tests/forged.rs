//! What others write into a store is not done by root, and extreme values harm nobody.

use super::crashes::{lose_state, wait_for_note, waiting};
use super::{HOUR, House, edit_note};
use crate::service::Scheduler;
use crate::service::{actions, create, deleting, view};
use crate::state::NoteKey;
use api::{ErrorKind, Status};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The job is there, and does nothing before it is confirmed.
fn is_unconfirmed(house: &House, name: &str) {
    let job = house.job(name);
    assert!(job.unconfirmed);
    assert_eq!(
        (job.status, job.hooks_owed, job.run),
        (Status::Stopped, None, None)
    );
    assert!(view::show(&house.parts, name).unwrap().unconfirmed);
    house.clock.pass(7 * HOUR);
    Scheduler::default().tick(&house.parts);
    house.wait_idle();
    assert_eq!(house.job(name).status, Status::Stopped);
    let refusal = actions::start(&house.parts, name).unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::Conflict);
    assert!(refusal.message.contains("is not confirmed"), "{refusal}");
    assert!(
        refusal.message.contains(&format!("smcctl job confirm {name}")),
        "{refusal}"
    );
}

/// A program that leaves a mark.
fn write_hook(house: &House, mark: &Path) -> PathBuf {
    let hook = house.dir.path().join("hook");
    std::fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", mark.display())).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&hook, mode).unwrap();
    hook
}

#[test]
fn a_note_that_was_changed_runs_nothing_before_root_confirms_it() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let mark = house.dir.path().join("mark");
    let hook = write_hook(&house, &mark);
    edit_note(&store, "web01", |note| {
        note["job"]["hooks"]["pre"] = json!(hook);
        note["job"]["hooks_owed"] = json!(1);
    });
    lose_state(&house);
    let house = house.restart();
    is_unconfirmed(&house, "web01");
    house.assert_warns("web01 must be confirmed");
    let refusal = actions::start(&house.parts, "web01").unwrap_err();
    assert!(refusal.message.contains(&hook.display().to_string()), "{refusal}");
    let house = house.restart();
    is_unconfirmed(&house, "web01");
    assert!(!mark.exists(), "the hook has run");
    actions::confirm(&house.parts, "web01").unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    assert_eq!(house.job("web01").status, Status::Waiting);
    assert!(mark.exists());
    // What this machine writes from now on is its own.
    wait_for_note(&store, "web01", |note| note["job"]["status"] == "Waiting");
    lose_state(&house);
    let house = house.restart();
    assert!(!house.job("web01").unconfirmed);
    assert_eq!(house.job("web01").status, Status::Waiting);
}

/// An ended job cannot be started, and its hooks would run without that.
#[test]
fn a_note_of_an_ended_job_runs_no_post_hooks_and_deletes_nothing() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let mark = house.dir.path().join("mark");
    let hook = write_hook(&house, &mark);
    edit_note(&store, "web01", |note| {
        note["job"]["status"] = json!("Finished");
        note["job"]["hooks"]["post"] = json!(hook);
        note["job"]["hooks_owed"] = json!(1);
        note["job"]["retention_pending"] = json!(true);
    });
    lose_state(&house);
    let house = house.restart();
    house.clock.pass(HOUR);
    Scheduler::default().tick(&house.parts);
    house.wait_until("the background is idle", || house.parts.background.is_idle());
    let job = house.job("web01");
    assert_eq!(
        (job.status, job.hooks_owed, job.retention_pending),
        (Status::Finished, None, false)
    );
    assert!(!mark.exists(), "the hook has run");
}

#[test]
fn a_note_of_a_lost_key_or_of_another_store_is_confirmed_by_root() {
    let house = House::new();
    waiting(&house, "web01");
    std::fs::remove_file(house.dir.path().join("notes.key")).unwrap();
    lose_state(&house);
    let house = house.restart();
    is_unconfirmed(&house, "web01");

    // A store that root uses, into which somebody copies a note of another one.
    let house = House::new();
    let store = waiting(&house, "web01");
    let note: Value = imagefmt::Store::open(&store).unwrap().note("web01").unwrap();
    let other = house.dir.path().join("other");
    imagefmt::Store::open_or_create(&other, false).unwrap();
    let request = api::CreateJob {
        store: Some(other.display().to_string()),
        ..house.request("db")
    };
    create::create(&house.parts, &request).unwrap();
    wait_for_note(&other, "db", |_| true);
    deleting::delete(&house.parts, "web01", false).unwrap();
    house.wait_until("its note is gone", || {
        imagefmt::Store::open(&store).unwrap().notes().unwrap().is_empty()
    });
    imagefmt::Store::open(&other)
        .unwrap()
        .put_note("web01", &note)
        .unwrap();
    lose_state(&house);
    let house = house.restart();
    is_unconfirmed(&house, "web01");
    assert!(!house.job("db").unconfirmed);
}

#[test]
fn a_note_that_is_not_ours_deletes_nothing() {
    let house = House::new();
    let store = waiting(&house, "web01");
    edit_note(&store, "web01", |note| {
        note["job"]["status"] = json!("Deleting");
        note["job"]["purge"] = json!(true);
    });
    lose_state(&house);
    let house = house.restart();
    is_unconfirmed(&house, "web01");
    let images = imagefmt::Store::open(&store).unwrap().job("web01").unwrap();
    assert_eq!(images.sequences(), [1]);
}

/// Every place in a value that holds a number.
fn numbers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_owned()),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                numbers(item, &format!("{at}/{index}"), found);
            }
        }
        Value::Object(fields) => {
            for (key, field) in fields {
                numbers(field, &format!("{at}/{key}"), found);
            }
        }
        _ => {}
    }
}

/// Writes extreme values into every number of the records in a table, one after the other, and looks at the job that the
/// record is of.
fn try_extremes(mut house: House, table: &str) {
    let database = || Connection::open(house.dir.path().join("state.db")).unwrap();
    let sql = format!("SELECT record FROM {table}");
    let text: String = database().query_row(&sql, [], |row| row.get(0)).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    let mut places = Vec::new();
    numbers(&record, "", &mut places);
    assert!(places.len() > 5, "{places:?}");
    let extremes = [
        json!(0),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(-1),
        json!(1e300),
    ];
    for place in &places {
        for extreme in &extremes {
            let mut changed = record.clone();
            *changed.pointer_mut(place).unwrap() = extreme.clone();
            let write = |house: &House, record: &Value| {
                let database = Connection::open(house.dir.path().join("state.db")).unwrap();
                let sql = format!("UPDATE {table} SET record = ?1");
                database.execute(&sql, params![record.to_string()]).unwrap();
            };
            write(&house, &changed);
            house = house.restart();
            let what = format!("{place} = {extreme}");
            assert_eq!(view::list(&house.parts).len(), 1, "{what}");
            view::status(&house.parts);
            view::measured(&house.parts);
            view::runs(&house.parts, "web01", 10).ok();
            view::show(&house.parts, "web01").unwrap();
            Scheduler::default().tick(&house.parts);
            // It may be refused.
            let _ = actions::sync(&house.parts, "web01");
            house.wait_idle();
            let shown = view::show(&house.parts, "web01").unwrap();
            assert!(!shown.error.is_some_and(|error| error.contains("bug")), "{what}");
            // As it was.
            write(&house, &record);
        }
    }
}

#[test]
fn extreme_values_in_the_record_of_a_job_harm_nobody() {
    let house = House::new();
    waiting(&house, "web01");
    try_extremes(house, "jobs");
}

#[test]
fn extreme_values_in_the_record_of_a_run_harm_nobody() {
    let house = House::new();
    waiting(&house, "web01");
    try_extremes(house, "runs");
}

#[test]
fn a_note_with_an_extreme_number_of_runs_does_not_end_the_daemon() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let (key, _) = NoteKey::open(house.dir.path()).unwrap();
    edit_note(&store, "web01", |note| {
        note["job"]["runs"] = json!(u64::MAX);
        note["job"]["status"] = json!("Running");
        note["seal"] = key.seal(note["host"].as_str().unwrap(), &note["job"]).into();
    });
    lose_state(&house);
    let house = house.restart();
    let shown = view::show(&house.parts, "web01").unwrap();
    let error = shown.error.unwrap();
    assert!(
        error.contains("runs") && error.contains("18446744073709551615"),
        "{error}"
    );
}
