//! What a crash, a lost state, another machine or another disk must not lead to.

use super::{House, active_run};
use crate::job::{Ending, JobRecord};
use crate::service::run_begun;
use crate::service::{actions, create, deleting, view};
use crate::state::State;
use api::{ModifyJob, RunType, Status};
use serde_json::Value;
use std::path::{Path, PathBuf};
use testkit::process::wait_for;

/// Waits until the note of a job in a store says what is wanted.
pub fn wait_for_note(store: &Path, name: &str, wanted: impl Fn(&Value) -> bool) {
    wait_for(&format!("the note of {name}"), || {
        let note = imagefmt::Store::open(store).and_then(|store| store.note::<Value>(name));
        note.is_ok_and(|note| wanted(&note))
    });
}

/// A job that has one image and waits, and its store.
pub fn waiting(house: &House, name: &str) -> PathBuf {
    create::create(&house.parts, &house.request(name)).unwrap();
    actions::start(&house.parts, name).unwrap();
    house.wait_idle();
    let store = house.dir.path().join("store");
    wait_for_note(&store, name, |note| note["job"]["status"] == "Waiting");
    store
}

pub fn lose_state(house: &House) {
    std::fs::remove_file(house.dir.path().join("state.db")).unwrap();
}

#[test]
fn a_first_sync_takes_no_other_disk_than_the_job_was_created_for() {
    let house = House::new();
    let request = house.request("web01");
    create::create(&house.parts, &request).unwrap();
    std::fs::write(&request.disks[0].path, [1; 5000]).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    let error = house.job("web01").error.unwrap();
    assert!(error.contains("it had 100000 bytes and now has 5000"), "{error}");
    assert!(error.contains("accept_changed_disk"), "{error}");
}

#[test]
fn another_disk_is_accepted_once() {
    let house = House::new();
    waiting(&house, "web01");
    let accept = ModifyJob {
        accept_changed_disk: Some(true),
        ..ModifyJob::default()
    };
    actions::modify(&house.parts, "web01", &accept).unwrap();
    assert!(view::show(&house.parts, "web01").unwrap().accept_changed_disk);
    actions::sync(&house.parts, "web01").unwrap();
    house.wait_idle();
    assert!(!view::show(&house.parts, "web01").unwrap().accept_changed_disk);
}

#[test]
fn an_order_to_end_that_was_answered_counts_after_a_kill() {
    for (ending, status) in [
        (Ending::Stop, Status::Stopped),
        (Ending::Cancel, Status::Canceled),
    ] {
        let house = House::new();
        house.job_in("web01", Status::Running);
        match ending {
            Ending::Cancel => actions::cancel(&house.parts, "web01").unwrap(),
            _ => actions::stop(&house.parts, "web01").unwrap(),
        }
        std::fs::create_dir(house.dir.path().join("store")).unwrap();
        imagefmt::Store::open_or_create(&house.dir.path().join("store"), false).unwrap();
        let house = house.restart();
        house.wait_idle();
        assert_eq!(house.job("web01").status, status);
    }
}

#[test]
fn whether_an_image_was_made_is_decided_when_its_store_is_there() {
    let house = House::new();
    let store = waiting(&house, "web01");
    {
        let change = |job: &mut JobRecord| {
            job.status = Status::Running;
            job.run = Some(active_run(RunType::Manual, Some(1), None));
            Ok(Some(run_begun(1, RunType::Manual, job.created)))
        };
        house.parts.table.update("web01", change).unwrap();
    }
    let away = house.dir.path().join("away");
    std::fs::rename(&store, &away).unwrap();
    let house = house.restart();
    house.wait_idle();
    let job = house.job("web01");
    assert_eq!(job.status, Status::InError);
    assert!(job.error.unwrap().contains("store cannot be read"));
    std::fs::rename(&away, &store).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    let view = view::show(&house.parts, "web01").unwrap();
    assert_eq!(
        (view.status, &*view.images),
        (Status::Waiting, &["web01/1".to_owned()][..])
    );
    assert_eq!(view::runs(&house.parts, "web01", 10).unwrap().len(), 1);
}

#[test]
fn a_store_that_was_away_when_the_state_was_lost_is_looked_through_later() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let away = house.dir.path().join("away");
    std::fs::rename(&store, &away).unwrap();
    lose_state(&house);
    let house = house.restart();
    house.assert_warns("there is no store now");
    assert!(house.parts.table.lock().jobs().is_empty());
    std::fs::rename(&away, &store).unwrap();
    let house = house.restart();
    assert_eq!(house.job("web01").status, Status::Waiting);
    let house = house.restart();
    assert_eq!(view::status(&house.parts).warnings, Vec::<String>::new());
}

#[test]
fn a_rebuild_that_was_cut_short_is_begun_again() {
    let house = House::new();
    waiting(&house, "web01");
    lose_state(&house);
    let dir = house.dir.path().to_owned();
    // As it was before the first job was filled in.
    drop(State::open(&dir).unwrap());
    let house = house.restart();
    assert_eq!(house.job("web01").status, Status::Waiting);
}

#[test]
fn the_jobs_of_another_machine_are_left_alone() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let opened = imagefmt::Store::open(&store).unwrap();
    let mut note: Value = opened.note("web01").unwrap();
    note["host"] = "another machine".into();
    opened.put_note("web01", &note).unwrap();
    lose_state(&house);
    let house = house.restart();
    assert!(house.parts.table.lock().jobs().is_empty());
    house.assert_warns("belongs to another machine");
}

#[test]
fn a_stale_look_at_a_job_deletes_nothing_of_a_later_one_of_its_name() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let mut stale = house.job("web01");
    stale.status = Status::Deleting;
    deleting::purge_in_background(&house.parts, stale);
    house.wait_idle();
    let images = imagefmt::Store::open(&store).unwrap().job("web01").unwrap();
    assert_eq!(images.sequences(), [1]);
}

#[test]
fn a_purge_of_a_store_that_is_not_there_is_not_done() {
    let house = House::new();
    let store = waiting(&house, "web01");
    let away = house.dir.path().join("away");
    std::fs::rename(&store, &away).unwrap();
    assert_eq!(deleting::delete(&house.parts, "web01", true), Ok(false));
    house.wait_until("the purge has failed", || house.job("web01").error.is_some());
    assert_eq!(house.job("web01").status, Status::Deleting);
    // A store that is gone for good does not keep its job.
    assert_eq!(deleting::delete(&house.parts, "web01", false), Ok(true));
}

#[test]
fn images_that_another_job_is_to_build_on_are_not_purged() {
    let house = House::new();
    waiting(&house, "web01");
    actions::cancel(&house.parts, "web01").unwrap();
    let successor = api::CreateJob {
        name: "web02".to_owned(),
        take_up: Some("web01".to_owned()),
        ..house.request("web01")
    };
    create::create(&house.parts, &successor).unwrap();
    let refusal = deleting::delete(&house.parts, "web01", true).unwrap_err();
    assert!(
        refusal.message.contains("job web02 needs an image of job web01"),
        "{refusal}"
    );
    actions::start(&house.parts, "web02").unwrap();
    house.wait_idle();
    assert_eq!(deleting::delete(&house.parts, "web01", true), Ok(false));
}
