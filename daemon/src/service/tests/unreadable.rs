//! Jobs whose record this version cannot read: another version wrote it, or a disk damaged it.

use super::crashes::{lose_state, wait_for_note, waiting};
use super::{House, edit_note};
use crate::job::Refused;
use crate::service::Scheduler;
use crate::service::{actions, create, deleting, view};
use crate::state::NoteKey;
use api::{Action, CreateJob, ErrorKind, ModifyJob, Status};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::path::Path;
use testkit::process::wait_for;

fn database(house: &House) -> Connection {
    Connection::open(house.dir.path().join("state.db")).unwrap()
}

fn record(house: &House, name: &str) -> Value {
    let sql = "SELECT record FROM jobs WHERE name = ?1";
    let text: String = database(house).query_row(sql, [name], |row| row.get(0)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn edit(house: &House, name: &str, change: impl FnOnce(&mut Value)) {
    let mut value = record(house, name);
    change(&mut value);
    let sql = "UPDATE jobs SET record = ?2 WHERE name = ?1";
    database(house)
        .execute(sql, params![name, value.to_string()])
        .unwrap();
}

/// Changes the job's note as smcd would write it: its seal fits.
fn edit_sealed_note(store: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let (key, _) = NoteKey::open(store.parent().unwrap()).unwrap();
    edit_note(store, name, |note| {
        change(note);
        note["seal"] = key.seal(note["host"].as_str().unwrap(), &note["job"]).into();
    });
}

fn refused<T: std::fmt::Debug>(answer: Refused<T>) -> String {
    let refusal = answer.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::Conflict, "{refusal}");
    refusal.message
}

#[test]
fn a_field_of_a_newer_version_in_a_request_costs_no_job() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let newer = |record: &mut Value| record["request"]["freeze"] = json!(true);
    edit(&house, "web01", newer);
    let house = house.restart();
    assert_eq!(house.job("web01").status, Status::Waiting);
    assert_eq!(view::status(&house.parts).warnings, Vec::<String>::new());
    // The same in the note, when the state is lost.
    edit_sealed_note(&store, "web01", |note| newer(&mut note["job"]));
    lose_state(&house);
    let house = house.restart();
    assert_eq!(house.job("web01").status, Status::Waiting);
    assert_eq!(record(&house, "web01")["request"]["freeze"], json!(true));
}

#[test]
fn a_downgrade_and_an_upgrade_lose_nothing_that_this_version_does_not_know() {
    let house = House::new();
    let store = waiting(&house, "web01");
    edit(&house, "web01", |record| {
        record["tracker"] = json!({ "map": 7 });
        record["hooks"]["freeze"] = json!("/bin/freeze");
    });
    let house = house.restart();
    let modify = ModifyJob {
        description: Some("by the older version".to_owned()),
        ..ModifyJob::default()
    };
    actions::modify(&house.parts, "web01", &modify).unwrap();
    actions::sync(&house.parts, "web01").unwrap();
    house.wait_idle();
    let after = record(&house, "web01");
    assert_eq!(after["tracker"], json!({ "map": 7 }));
    assert_eq!(after["hooks"]["freeze"], json!("/bin/freeze"));
    assert_eq!(after["description"], json!("by the older version"));
    wait_for_note(&store, "web01", |note| {
        note["job"]["tracker"] == json!({ "map": 7 }) && note["runs"][0]["number"] == json!(2)
    });
}

#[test]
fn a_job_of_a_newer_version_does_nothing_and_keeps_what_is_its_own() {
    let house = House::new();
    waiting(&house, "web01");
    let store = waiting(&house, "db");
    edit(&house, "web01", |record| record["status"] = json!("Paused"));
    let before = record(&house, "web01");
    let house = house.restart();

    let shown = view::show(&house.parts, "web01").unwrap();
    assert_eq!(shown.status, Status::InError);
    assert!(shown.error.unwrap().contains("Paused"));
    let listed = view::list(&house.parts);
    let names: Vec<&str> = listed.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(names, ["db", "web01"]);
    let warnings = view::status(&house.parts).warnings;
    assert!(
        warnings[0].contains("the record of job web01 cannot be read"),
        "{warnings:?}"
    );

    for action in Action::ALL {
        if action != Action::Delete {
            assert!(
                refused(house.ask("web01", action)).contains("web01"),
                "{action:?}"
            );
        }
    }
    assert!(refused(deleting::delete(&house.parts, "web01", true)).contains("web01"));
    assert!(refused(view::runs(&house.parts, "web01", 5)).contains("web01"));
    assert!(refused(create::create(&house.parts, &house.request("web01"))).contains("web01"));
    let on_its_disk = CreateJob {
        name: "new".to_owned(),
        ..house.request("web01")
    };
    assert!(refused(create::create(&house.parts, &on_its_disk)).contains("web01"));

    // Another job goes on as ever, and the schedule leaves this one alone.
    house.clock.pass(super::HOUR * 24 * 40);
    Scheduler::default().tick(&house.parts);
    house.wait_idle();
    assert_eq!(house.job("db").status, Status::Expired);
    assert_eq!(record(&house, "web01"), before);
    let images = imagefmt::Store::open(&store).unwrap().job("web01").unwrap();
    assert_eq!(images.sequences(), [1]);

    // The version that knows it finds it as it was.
    edit(&house, "web01", |record| record["status"] = json!("Stopped"));
    let house = house.restart();
    assert_eq!(house.job("web01").status, Status::Stopped);
    assert_eq!(view::status(&house.parts).warnings, Vec::<String>::new());
}

#[test]
fn a_job_that_cannot_be_read_can_be_forgotten_and_its_images_taken_up() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let sql = "UPDATE jobs SET record = substr(record, 1, 400)";
    database(&house).execute(sql, []).unwrap();
    let house = house.restart();
    assert_eq!(view::show(&house.parts, "web01").unwrap().status, Status::InError);
    assert_eq!(deleting::delete(&house.parts, "web01", false), Ok(true));
    let successor = CreateJob {
        take_up: Some("web01".to_owned()),
        ..house.request("web01")
    };
    create::create(&house.parts, &successor).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    let images = imagefmt::Store::open(&store).unwrap().job("web01").unwrap();
    assert_eq!(images.sequences(), [1, 2]);
}

#[test]
fn a_note_that_cannot_be_read_keeps_its_job_and_no_other() {
    let newer = |note: &mut Value| note["job"]["status"] = json!("Paused");
    let newest = |note: &mut Value| note["min_reader"] = json!(9);
    for (change, reason) in [
        (&newer as &dyn Fn(&mut Value), "Paused"),
        (&newest, "format 9 or later"),
    ] {
        let house = House::new();
        let store = waiting(&house, "web01");
        waiting(&house, "db");
        let path = store.join(".notes/web01.json");
        let whole = std::fs::read(&path).unwrap();
        edit_sealed_note(&store, "web01", change);
        let before = std::fs::read(&path).unwrap();
        lose_state(&house);
        let house = house.restart();
        assert_eq!(house.job("db").status, Status::Waiting);
        let shown = view::show(&house.parts, "web01").unwrap();
        assert!(shown.error.unwrap().contains(reason));
        let again = CreateJob {
            take_up: Some("web01".to_owned()),
            ..house.request("web01")
        };
        assert!(refused(create::create(&house.parts, &again)).contains(reason));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        // After an upgrade it is found.
        std::fs::write(&path, whole).unwrap();
        let house = house.restart();
        assert_eq!(house.job("web01").status, Status::Waiting);
    }
}

#[test]
fn a_damaged_note_keeps_its_name_until_the_job_is_deleted() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let path = store.join(".notes/web01.json");
    let mut damaged = std::fs::read(&path).unwrap();
    damaged[200] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    lose_state(&house);
    let house = house.restart().restart();
    assert!(view::show(&house.parts, "web01").unwrap().error.is_some());
    assert_eq!(std::fs::read(&path).unwrap(), damaged);
    assert_eq!(deleting::delete(&house.parts, "web01", false), Ok(true));
    wait_for("the note is gone", || !path.exists());
    let house = house.restart();
    assert_eq!(
        view::show(&house.parts, "web01").unwrap_err().kind,
        ErrorKind::NotFound
    );
}

#[test]
fn a_record_that_a_disk_has_changed_is_damage_although_it_can_be_parsed() {
    let house = House::new();
    waiting(&house, "web01");
    waiting(&house, "db");
    let before = record(&house, "db");
    // As a disk does it: nobody takes the digest away.
    database(&house)
        .execute("DROP TRIGGER jobs_without_digest", [])
        .unwrap();
    edit(&house, "web01", |record| record["status"] = json!("Stopped"));
    let house = house.restart();
    let shown = view::show(&house.parts, "web01").unwrap();
    assert_eq!(shown.status, Status::InError);
    assert!(shown.error.unwrap().contains("it is not what smcd has written"));
    assert_eq!(house.job("db").status, Status::Waiting);
    assert_eq!(record(&house, "db"), before);
}

#[test]
fn a_record_that_an_earlier_version_wrote_has_no_digest_and_is_read() {
    let house = House::new();
    waiting(&house, "web01");
    // An earlier version knows no digest, and leaves the column alone.
    edit(&house, "web01", |record| {
        record["description"] = json!("by an earlier version")
    });
    let house = house.restart();
    assert_eq!(house.job("web01").description, "by an earlier version");
    let modify = ModifyJob {
        description: Some("by this one".to_owned()),
        ..ModifyJob::default()
    };
    actions::modify(&house.parts, "web01", &modify).unwrap();
    let sql = "SELECT digest IS NOT NULL FROM jobs";
    assert!(
        database(&house)
            .query_row(sql, [], |row| row.get::<_, bool>(0))
            .unwrap()
    );
}

#[test]
fn a_run_that_cannot_be_read_is_a_warning_of_its_job() {
    let house = House::new();
    waiting(&house, "web01");
    actions::sync(&house.parts, "web01").unwrap();
    house.wait_idle();
    let sql = "UPDATE runs SET record = '{}' WHERE number = 1";
    database(&house).execute(sql, []).unwrap();
    let shown = view::show(&house.parts, "web01").unwrap();
    assert!(
        shown.warnings[0].contains("run 1 cannot be read"),
        "{:?}",
        shown.warnings
    );
    let runs = view::runs(&house.parts, "web01", 10).unwrap();
    assert_eq!(runs.iter().map(|run| run.number).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_job_of_another_machine_is_stopped_when_its_record_can_be_read_again() {
    let house = House::new();
    waiting(&house, "web01");
    database(&house)
        .execute("UPDATE host SET id = 'another machine'", [])
        .unwrap();
    edit(&house, "web01", |record| record["status"] = json!("Paused"));
    let house = house.restart();
    edit(&house, "web01", |record| record["status"] = json!("Waiting"));
    let house = house.restart();
    assert_eq!(house.job("web01").status, Status::Stopped);
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    let house = house.restart();
    assert_eq!(house.job("web01").status, Status::Waiting);
}
