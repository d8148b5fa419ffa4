//! Post hooks run whatever happens, so that an application is always released.

use super::{House, active_run, config};
use crate::clock::HandClock;
use crate::job::{Ending, JobRecord};
use crate::service::run_begun;
use crate::service::{actions, create, view};
use api::{CreateJob, ErrorKind, ModifyJob, RunType, Status};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

/// A house whose hooks write down their stage and outcome when they have done `work`.
fn house_with_hooks(work: &str) -> House {
    let house = House::new();
    let hooks = house.dir.path().join("hooks.d");
    fs::create_dir(&hooks).unwrap();
    let program = hooks.join("application");
    let log = house.dir.path().join("log");
    let text = format!(
        "#!/bin/sh\ncd {}\n{work}\necho $1 $SMC_RUN $SMC_OUTCOME >> {}\n",
        house.dir.path().display(),
        log.display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    house
}

fn log(house: &House) -> Vec<String> {
    let text = fs::read_to_string(house.dir.path().join("log")).unwrap_or_default();
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// As a kill leaves it behind whose pre hooks had run.
fn killed_run(house: &House, ending: Option<Ending>) {
    let change = |job: &mut JobRecord| {
        job.status = Status::Running;
        job.runs = 1;
        job.hooks_owed = Some(1);
        job.run = Some(active_run(RunType::Manual, None, ending));
        Ok(Some(run_begun(1, RunType::Manual, job.created)))
    };
    house.parts.table.update("web01", change).unwrap();
}

#[test]
fn a_run_owes_its_post_hooks_before_its_pre_hooks_run() {
    let house = house_with_hooks("[ $1 = post ] || until [ -e go ]; do sleep 0.01; done");
    create::create(&house.parts, &house.request("web01")).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    assert_eq!(
        house.job("web01").hooks_owed,
        Some(1),
        "it is saved before anybody can see it"
    );
    fs::write(house.dir.path().join("go"), "").unwrap();
    house.wait_idle();
    assert_eq!(log(&house), ["pre 1", "post 1 succeeded"]);
    assert_eq!(house.job("web01").hooks_owed, None);
}

#[test]
fn after_a_kill_the_post_hooks_run_before_the_sync_is_resumed() {
    let house = house_with_hooks("");
    create::create(&house.parts, &house.request("web01")).unwrap();
    killed_run(&house, None);
    let house = house.restart();
    house.wait_idle();
    assert_eq!(log(&house), ["post 1 interrupted", "pre 2", "post 2 succeeded"]);
    assert_eq!(house.job("web01").status, Status::Waiting);
}

#[test]
fn after_a_kill_during_a_stop_or_cancel_the_post_hooks_run() {
    for (ending, status) in [
        (Ending::Stop, Status::Stopped),
        (Ending::Cancel, Status::Canceled),
    ] {
        let house = house_with_hooks("");
        create::create(&house.parts, &house.request("web01")).unwrap();
        killed_run(&house, Some(ending));
        let house = house.restart();
        house.wait_idle();
        assert_eq!(log(&house), ["post 1 interrupted"]);
        assert_eq!(house.job("web01").status, status);
        assert_eq!(house.job("web01").hooks_owed, None);
    }
}

#[test]
fn a_store_that_hangs_does_not_keep_applications_stopped() {
    let house = house_with_hooks("");
    create::create(&house.parts, &house.request("web01")).unwrap();
    killed_run(&house, None);
    let change = |job: &mut JobRecord| {
        job.run.as_mut().unwrap().image = Some(1);
        Ok(None)
    };
    house.parts.table.update("web01", change).unwrap();
    let store = house.dir.path().join("store");
    let house = house.restart_behind(|gate| gate.hang(&store));
    house.wait_until("the post hooks have run", || {
        house.job("web01").hooks_owed.is_none()
    });
    assert_eq!(log(&house), ["post 1 interrupted"]);
    house.gate.release();
    house.wait_idle();
}

/// A sync in the middle of its disk, which it reads slowly.
fn slow_sync(house: &House) {
    let request = CreateJob {
        bandwidth_limit_bytes: Some(64 << 10),
        ..house.request("web01")
    };
    fs::write(&request.disks[0].path, vec![7; 4 << 20]).unwrap();
    create::create(&house.parts, &request).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_until("the sync reads", || {
        let progress = view::show(&house.parts, "web01").unwrap().progress;
        progress.is_some_and(|progress| progress.image.is_some())
    });
}

#[test]
fn a_shutdown_lets_post_hooks_end() {
    // It takes its time: at a shutdown it used to be killed as it began.
    let house = house_with_hooks("[ $1 = pre ] || sleep 0.5");
    slow_sync(&house);
    actions::close(&house.parts);
    house.wait_until("the sync has ended", || actions::running(&house.parts) == 0);
    assert_eq!(log(&house), ["pre 1", "post 1 interrupted"]);
    assert_eq!(house.job("web01").hooks_owed, None);
    assert_eq!(
        house.job("web01").status,
        Status::Running,
        "the next start resumes it"
    );
}

#[test]
fn after_a_kill_in_a_freeze_the_thaw_hooks_run_before_the_post_hooks() {
    let house = house_with_hooks("");
    create::create(&house.parts, &house.request("web01")).unwrap();
    killed_run(&house, None);
    let owing = |job: &mut JobRecord| {
        job.thaw_owed = Some(1);
        Ok(None)
    };
    house.parts.table.update("web01", owing).unwrap();
    let house = house.restart();
    house.wait_idle();
    assert_eq!(log(&house)[..2], ["thaw 1", "post 1 interrupted"]);
    assert_eq!(house.job("web01").thaw_owed, None);
}

#[test]
fn a_post_hook_that_outlives_the_shutdown_runs_at_the_next_start() {
    let house = house_with_hooks("[ $1 = pre ] || [ -e go ] || exec sleep 1000");
    let House { dir, gate, parts, .. } = house;
    drop(parts);
    let config = crate::config::Config {
        stop_timeout: Duration::from_secs(1),
        ..config(dir.path())
    };
    let house = House::started_with(config, dir, Arc::new(HandClock::new()), gate);
    slow_sync(&house);
    actions::close(&house.parts);
    house.wait_until("the sync has ended", || actions::running(&house.parts) == 0);
    assert_eq!(log(&house), ["pre 1"]);
    assert_eq!(house.job("web01").hooks_owed, Some(1));
    let warnings = house.job("web01").warnings;
    assert!(
        warnings[0].ends_with("was killed because smcd ends; it runs again at the next start"),
        "{warnings:?}"
    );
    fs::write(house.dir.path().join("go"), "").unwrap();
    let house = house.restart();
    assert_eq!(log(&house)[..2], ["pre 1", "post 1 interrupted"]);
    let no_limit = ModifyJob {
        bandwidth_limit_bytes: Some(0),
        ..ModifyJob::default()
    };
    actions::modify(&house.parts, "web01", &no_limit).unwrap();
    house.wait_idle();
    assert_eq!(log(&house)[2..], ["pre 2", "post 2 succeeded"]);
}

#[test]
fn a_job_starts_no_sync_before_its_post_hooks_have_ended() {
    let house = house_with_hooks("until [ -e go ]; do sleep 0.01; done");
    create::create(&house.parts, &house.request("web01")).unwrap();
    killed_run(&house, Some(Ending::Stop));
    let change = |job: &mut JobRecord| {
        job.status = Status::Stopped;
        job.run = None;
        Ok(None)
    };
    house.parts.table.update("web01", change).unwrap();
    let house = house.restart_behind(|_| ());
    let refusal = actions::start(&house.parts, "web01").unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::Conflict);
    assert!(refusal.message.contains("the post hooks of run 1"), "{refusal}");
    fs::write(house.dir.path().join("go"), "").unwrap();
    house.wait_until("they have ended", || house.job("web01").hooks_owed.is_none());
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    assert_eq!(log(&house), ["post 1 interrupted", "pre 2", "post 2 succeeded"]);
}

#[test]
fn a_job_of_another_machine_owes_nothing_here() {
    let house = house_with_hooks("");
    create::create(&house.parts, &house.request("web01")).unwrap();
    killed_run(&house, None);
    let database = rusqlite::Connection::open(house.dir.path().join("state.db")).unwrap();
    database
        .execute("UPDATE host SET id = 'another machine'", [])
        .unwrap();
    drop(database);
    let house = house.restart();
    assert_eq!(log(&house), Vec::<String>::new());
    let job = house.job("web01");
    assert_eq!((job.status, job.hooks_owed), (Status::Stopped, None));
}
