//! Two machines with one store: neither writes to, continues or deletes the other's images by chance.

use super::crashes::{wait_for_note, waiting};
use super::{House, config};
use crate::clock::HandClock;
use crate::config::Config;
use crate::service::{actions, create, deleting, view};
use crate::stores::tests::Gate;
use api::{CompleteJob, CreateJob, ErrorKind, ModifyJob, Status};
use hostdev::Root;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A daemon on a machine of its own, with this store.
fn machine(digit: char, store: &Path) -> House {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("machine");
    for (path, text) in [
        ("etc/machine-id", digit.to_string().repeat(32)),
        ("proc/sys/kernel/hostname", format!("host-{digit}")),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let config = Config {
        store: store.to_owned(),
        root: Root::at(root),
        ..config(dir.path())
    };
    House::started_with(config, dir, Arc::new(HandClock::new()), Gate::default())
}

fn two_machines() -> (tempfile::TempDir, PathBuf, House, House) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (first, second) = (machine('a', &store), machine('b', &store));
    (dir, store, first, second)
}

fn create_waiting(house: &House, store: &Path, request: &CreateJob) {
    create::create(&house.parts, request).unwrap();
    actions::start(&house.parts, &request.name).unwrap();
    house.wait_idle();
    wait_for_note(store, &request.name, |note| note["job"]["status"] == "Waiting");
}

fn refused(house: &House, request: &CreateJob, words: &[&str]) {
    let refusal = create::create(&house.parts, request).unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::Conflict, "{refusal}");
    for word in words {
        assert!(refusal.message.contains(word), "{refusal}");
    }
}

fn sequences(store: &Path, job: &str) -> Vec<u64> {
    let store = imagefmt::Store::open(store).unwrap();
    store.job(job).unwrap().sequences().to_vec()
}

#[test]
fn a_job_of_the_same_name_is_refused_by_its_note_and_by_its_chain() {
    let (_dir, store, first, second) = two_machines();
    create::create(&first.parts, &first.request("web01")).unwrap();
    wait_for_note(&store, "web01", |_| true);
    refused(
        &second,
        &second.request("web01"),
        &["is used by job web01 of machine", "(host-a)", "--take-over"],
    );
    // Both are created before one can see the note of the other.
    fs::remove_file(store.join(".notes/web01.json")).unwrap();
    create::create(&second.parts, &second.request("web01")).unwrap();
    actions::start(&first.parts, "web01").unwrap();
    first.wait_idle();
    actions::start(&second.parts, "web01").unwrap();
    second.wait_idle();
    let error = second.job("web01").error.unwrap();
    for words in [
        "belongs to job web01 of machine",
        "(host-a)",
        "(host-b)",
        "--take-over",
    ] {
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(sequences(&store, "web01"), [1]);
    // It deletes nothing of the other machine either.
    actions::cancel(&second.parts, "web01").unwrap();
    assert_eq!(deleting::delete(&second.parts, "web01", true), Ok(false));
    let is_refused = || {
        let error = second.job("web01").error;
        error.is_some_and(|error| error.contains("belong to job web01") && error.contains("(host-a)"))
    };
    second.wait_until("the purge is refused", is_refused);
    assert_eq!(sequences(&store, "web01"), [1]);
    assert_eq!(deleting::delete(&second.parts, "web01", false), Ok(true));
    actions::sync(&first.parts, "web01").unwrap();
    first.wait_idle();
    assert_eq!(sequences(&store, "web01"), [1, 2]);
}

#[test]
fn images_are_taken_over_when_somebody_says_so() {
    let (_dir, store, first, second) = two_machines();
    create_waiting(&first, &store, &first.request("web01"));
    let taking = CreateJob {
        take_over: true,
        accept_changed_disk: true,
        take_up: Some("web01".to_owned()),
        ..second.request("web01")
    };
    create_waiting(&second, &store, &taking);
    assert!(
        !view::show(&second.parts, "web01").unwrap().take_over,
        "it is for one image"
    );
    assert_eq!(sequences(&store, "web01"), [1, 2]);
    actions::sync(&first.parts, "web01").unwrap();
    first.wait_idle();
    let error = first.job("web01").error.unwrap();
    assert!(error.contains("(host-b)"), "{error}");
    let modified = ModifyJob {
        take_over: Some(true),
        accept_changed_disk: Some(true),
        ..ModifyJob::default()
    };
    actions::modify(&first.parts, "web01", &modified).unwrap();
    assert!(view::show(&first.parts, "web01").unwrap().take_over);
    actions::start(&first.parts, "web01").unwrap();
    first.wait_idle();
    assert_eq!(first.job("web01").status, Status::Waiting);
    assert_eq!(sequences(&store, "web01"), [1, 2, 3]);
}

#[test]
fn a_job_that_is_active_elsewhere_is_not_continued() {
    let (_dir, store, first, second) = two_machines();
    create_waiting(&first, &store, &first.request("web01"));
    let successor = CreateJob {
        take_up: Some("web01".to_owned()),
        accept_changed_disk: true,
        ..second.request("web02")
    };
    refused(
        &second,
        &successor,
        &["belongs to job web01", "(host-a)", "--take-over"],
    );
    actions::complete(&first.parts, "web01", &CompleteJob::default()).unwrap();
    wait_for_note(&store, "web01", |note| note["job"]["status"] == "Finished");
    create_waiting(&second, &store, &successor);
    assert_eq!(sequences(&store, "web02"), [2]);
}

#[test]
fn a_successor_that_was_canceled_before_its_first_image_blocks_nobody() {
    let house = House::new();
    waiting(&house, "web01");
    actions::cancel(&house.parts, "web01").unwrap();
    let successor = |name: &str| CreateJob {
        name: name.to_owned(),
        take_up: Some("web01".to_owned()),
        ..house.request("web01")
    };
    create::create(&house.parts, &successor("web02")).unwrap();
    let refusal = create::create(&house.parts, &successor("web03")).unwrap_err();
    assert!(refusal.message.contains("web02"), "{refusal}");
    actions::cancel(&house.parts, "web02").unwrap();
    create::create(&house.parts, &successor("web03")).unwrap();
    actions::start(&house.parts, "web03").unwrap();
    house.wait_idle();
    assert_eq!(house.job("web03").status, Status::Waiting);
}

#[test]
fn what_the_first_sync_would_refuse_is_refused_at_once() {
    let house = House::new();
    waiting(&house, "web01");
    actions::cancel(&house.parts, "web01").unwrap();
    let mut successor = CreateJob {
        take_up: Some("web01".to_owned()),
        ..house.request("web02")
    };
    fs::write(&successor.disks[0].path, [7; 5000]).unwrap();
    refused(
        &house,
        &successor,
        &["is not the disk", "backing file", "--accept-changed-disk"],
    );
    successor.disks[0].path = house.dir.path().join("web01.img").display().to_string();
    fs::write(&successor.disks[0].path, [7; 5000]).unwrap();
    refused(&house, &successor, &["it had 100000 bytes and now has 5000"]);
    successor.accept_changed_disk = true;
    create::create(&house.parts, &successor).unwrap();
    actions::start(&house.parts, "web02").unwrap();
    house.wait_idle();
    assert_eq!(
        house.job("web02").status,
        Status::Waiting,
        "{:?}",
        house.job("web02").error
    );
}
