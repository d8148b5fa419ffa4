//! A store that does not answer, and who is not held up by it.

use super::{HOUR, House};
use crate::service::Scheduler;
use crate::service::events::Event;
use crate::service::{actions, create, deleting, view};
use api::{Action, CreateJob, Status};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;
use testkit::process::PATIENCE;

/// Fails if something is held up by a store that never answers.
fn in_time<T: Send>(what: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let (done, waits) = channel();
        scope.spawn(move || done.send(work()));
        match waits.recv_timeout(PATIENCE) {
            Ok(done) => done,
            // The thread that hangs would be waited for.
            Err(_) => {
                eprintln!("{what} is held up by a store that does not answer");
                std::process::abort()
            }
        }
    })
}

/// `web01`, with an image in a store of its own, and `db` in the usual one, both Waiting.
fn two_jobs(house: &House) -> PathBuf {
    let store = house.dir.path().join("other");
    let request = CreateJob {
        store: Some(store.display().to_string()),
        ..house.request("web01")
    };
    create::create(&house.parts, &request).unwrap();
    create::create(&house.parts, &house.request("db")).unwrap();
    for name in ["web01", "db"] {
        actions::start(&house.parts, name).unwrap();
    }
    house.wait_idle();
    store
}

#[test]
fn a_store_that_hangs_holds_up_neither_views_nor_other_jobs_nor_the_schedule() {
    let house = House::new();
    let store = two_jobs(&house);
    house.gate.hang(&store);
    let listed = in_time("job ls", || view::list(&house.parts));
    let images: Vec<_> = listed.iter().map(|job| job.images.clone()).collect();
    assert_eq!(images, [["db/1"], ["web01/1"]]);
    in_time("status", || view::status(&house.parts));
    in_time("metrics", || view::measured(&house.parts));
    let exports = in_time("exports", || view::exports(&house.parts));
    let silent = exports
        .iter()
        .find(|export| export.store == store.display().to_string());
    let error = silent.and_then(|export| export.error.clone());
    assert!(
        error.is_some_and(|error| error.contains("does not answer")),
        "{exports:?}"
    );
    let shown = in_time("job show", || view::show(&house.parts, "web01").unwrap());
    assert_eq!(shown.images, ["web01/1"]);
    let warnings = shown.warnings.join(" ");
    assert!(
        warnings.contains("the list of its images may be out of date"),
        "{warnings}"
    );

    house.clock.pass(6 * HOUR);
    let mut scheduler = Scheduler::default();
    in_time("the schedule", || scheduler.tick(&house.parts));
    in_time("another job's sync", || {
        house.wait_until("db has synced", || {
            house.job("db").status == Status::Waiting && house.job("db").runs == 2
        });
    });
    // The job of the store is what waits.
    assert_eq!(house.job("web01").status, Status::Running);
    let silence = format!("store {} has not answered for ", store.display());
    house.wait_until("users are told which store does not answer", || {
        let progress = view::list(&house.parts).remove(1).progress.unwrap();
        assert_eq!(progress.phase, api::Phase::Preparing);
        progress.held_up.is_some_and(|by| by.starts_with(&silence))
    });
    house.assert_warns(&silence);
    in_time("stop", || actions::stop(&house.parts, "web01").unwrap());
    house.gate.release();
    house.wait_idle();
    assert_eq!(house.job("web01").status, Status::Stopped);
    assert!(!house.warns(&silence), "it answers again");
    assert_eq!(view::show(&house.parts, "db").unwrap().images, ["db/1", "db/2"]);
}

#[test]
fn a_store_that_hangs_does_not_hold_up_the_start() {
    let house = House::new();
    let store = two_jobs(&house);
    {
        let change = |job: &mut super::JobRecord| {
            job.status = Status::Running;
            job.run = Some(super::active_run(api::RunType::Manual, Some(1), None));
            Ok(None)
        };
        house.parts.table.update("web01", change).unwrap();
    }
    let house = in_time("the start", || house.restart_behind(|gate| gate.hang(&store)));
    let listed = in_time("job ls", || view::list(&house.parts));
    assert_eq!(listed[1].images, ["web01/1"]);
    assert_eq!(listed[1].status, Status::Running);
    house.gate.release();
    house.wait_idle();
    assert_eq!(house.job("web01").status, Status::Waiting);
    assert_eq!(view::runs(&house.parts, "web01", 10).unwrap().len(), 1);
}

#[test]
fn a_state_that_was_lost_is_found_in_stores_that_answer_while_another_hangs() {
    let house = House::new();
    let store = two_jobs(&house);
    super::crashes::wait_for_note(&store, "web01", |note| note["job"]["status"] == "Waiting");
    let usual = house.dir.path().join("store");
    super::crashes::wait_for_note(&usual, "db", |note| note["job"]["status"] == "Waiting");
    super::crashes::lose_state(&house);
    let house = in_time("the start", || house.restart_behind(|gate| gate.hang(&store)));
    in_time("the job of the other store", || {
        house.wait_until("db is found", || {
            house.parts.table.lock().jobs().contains_key("db")
        });
    });
    house.wait_until("the look is over", || house.parts.background.is_idle());
    assert!(!house.parts.table.lock().jobs().contains_key("web01"));
    house.assert_warns("does not answer");
    house.gate.release();
    Scheduler::default().tick(&house.parts);
    house.wait_until("web01 is found", || {
        house.parts.table.lock().jobs().contains_key("web01")
    });
}

#[test]
fn a_sync_that_waits_for_a_suspended_process_says_so_and_can_be_stopped_and_canceled() {
    let house = House::new();
    create::create(&house.parts, &house.request("web01")).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    let lock = house.dir.path().join("store/web01/reclaim.lock");
    let held = std::fs::File::options().append(true).open(lock).unwrap();
    held.lock().unwrap();
    let us = format!("(pid {})", std::process::id());
    for (action, status) in [
        (Action::Stop, Status::Stopped),
        (Action::Cancel, Status::Canceled),
    ] {
        actions::start(&house.parts, "web01")
            .or_else(|_| actions::sync(&house.parts, "web01"))
            .unwrap();
        house.wait_until("the sync waits", || {
            let progress = view::show(&house.parts, "web01").unwrap().progress;
            let held_up = progress.and_then(|progress| progress.held_up);
            held_up.is_some_and(|by| by.contains(&us) && by.contains("waiting until"))
        });
        house.ask("web01", action).unwrap();
        house.wait_until("the sync has ended", || house.job("web01").status == status);
    }
    held.unlock().unwrap();
    house.wait_idle();
}

#[test]
fn images_that_others_delete_are_gone_from_the_list_after_a_minute() {
    let house = House::new();
    two_jobs(&house);
    actions::sync(&house.parts, "db").unwrap();
    house.wait_idle();
    assert_eq!(house.job("db").images, [1, 2]);
    let store = imagefmt::Store::open(&house.dir.path().join("store")).unwrap();
    let first = store.job("db").unwrap().get(1).unwrap();
    store.delete(&first).unwrap();
    assert_eq!(view::show(&house.parts, "db").unwrap().images, ["db/2"]);
    Scheduler::default().tick(&house.parts);
    house.wait_idle();
    assert_eq!(house.job("db").images, [2]);
}

#[test]
fn two_listeners_see_every_change_of_a_jobs_life() {
    let house = House::new();
    let (one, two) = (house.parts.listen(), house.parts.listen());
    create::create(&house.parts, &house.request("web01")).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    actions::cancel(&house.parts, "web01").unwrap();
    deleting::delete(&house.parts, "web01", false).unwrap();
    let seen = one.wait(Duration::ZERO);
    assert_eq!(two.wait(Duration::ZERO), seen);
    let name = "web01".to_owned();
    assert_eq!(seen.first(), Some(&Event::Saved(name.clone())));
    assert!(seen.contains(&Event::Progressed(name.clone())));
    assert_eq!(seen.last(), Some(&Event::Removed(name)));
}
