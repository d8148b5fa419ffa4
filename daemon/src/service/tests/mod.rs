//! Every action in every state, actions at once, and what a restart finds: on the service itself, with a clock set by
//! hand and disks that are not there. Real syncs are run by the cross-crate tests.

use super::live::LiveRun;
use super::run_begun;
use super::startup::start_with;
use super::{Parts, Scheduler};
use crate::clock::{Clock, Deadline, HandClock};
use crate::config::Config;
use crate::engine::Place;
use crate::job::Ending;
use crate::job::{ActiveRun, DiskRecord, JobRecord, Refused, ResolvedInput, new_record};
use crate::service::{actions, create, deleting, view};
use crate::stores::Stores;
use crate::stores::tests::Gate;
use api::{Action, CompleteJob, CreateJob, ErrorKind, ModifyJob, RunType, Status, rules};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use testkit::process::wait_for;

mod crashes;
mod forged;
mod hanging;
mod machines;
mod released;
mod unreadable;

const HOUR: Duration = Duration::from_secs(3600);

/// A daemon without a socket.
struct House {
    dir: tempfile::TempDir,
    clock: Arc<HandClock>,
    parts: Arc<Parts>,
    /// Through which its stores are reached.
    gate: Gate,
}

fn config(dir: &Path) -> Config {
    Config {
        store: dir.join("store"),
        state_dir: dir.to_owned(),
        hooks_dir: dir.join("hooks.d"),
        // No BPF filesystem: nothing is tracked.
        tracker: dir.join("bpf"),
        ..Config::load(None).unwrap()
    }
}

/// Run 1 of a job, as a kill leaves it behind.
fn active_run(run_type: RunType, image: Option<u64>, ending: Option<Ending>) -> ActiveRun {
    ActiveRun {
        number: 1,
        run_type,
        image,
        ending,
        from_waiting: false,
        written: None,
    }
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::started(dir, Arc::new(HandClock::new()), Gate::default())
    }

    fn started(dir: tempfile::TempDir, clock: Arc<HandClock>, gate: Gate) -> Self {
        let config = config(dir.path());
        Self::started_with(config, dir, clock, gate)
    }

    fn started_with(config: Config, dir: tempfile::TempDir, clock: Arc<HandClock>, gate: Gate) -> Self {
        let stores = Stores::new(Box::new(gate.clone()));
        let parts = start_with(config, clock.clone(), stores).unwrap();
        Self {
            dir,
            clock,
            parts,
            gate,
        }
    }

    /// As after a kill: the old service is gone, and nothing was said. What the new one does in the background is done.
    fn restart(self) -> Self {
        let house = self.restart_behind(|_| ());
        house.wait_until("the background is idle", || house.parts.background.is_idle());
        house
    }

    /// The same, where something happens to the stores meanwhile; the new service is not waited for.
    fn restart_behind(self, meanwhile: impl FnOnce(&Gate)) -> Self {
        let Self {
            dir,
            clock,
            parts,
            gate,
        } = self;
        drop(parts);
        meanwhile(&gate);
        Self::started(dir, clock, gate)
    }

    fn warns(&self, words: &str) -> bool {
        let warnings = view::status(&self.parts).warnings;
        warnings.iter().any(|warning| warning.contains(words))
    }

    #[track_caller]
    fn assert_warns(&self, words: &str) {
        let warnings = view::status(&self.parts).warnings;
        assert!(self.warns(words), "{words}: {warnings:?}");
    }

    #[track_caller]
    fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        wait_for(what, done);
    }

    fn request(&self, name: &str) -> CreateJob {
        let disk = self.dir.path().join(format!("{name}.img"));
        std::fs::write(&disk, vec![7; 100_000]).unwrap();
        CreateJob {
            name: name.to_owned(),
            disks: vec![api::DiskRequest {
                path: disk.display().to_string(),
                name: Some("vda".to_owned()),
            }],
            automatic_incremental: true,
            interval_seconds: Some(6 * 3600),
            max_images: Some(3),
            ..CreateJob::default()
        }
    }

    /// A job that is in `status`, of a disk that is not there. A running one has no thread: it runs until it is ended.
    fn job_in(&self, name: &str, status: Status) {
        let given = ResolvedInput {
            place: Place::Store(self.dir.path().join("store")),
            disks: vec![DiskRecord {
                name: "vda".to_owned(),
                path: self.dir.path().join("gone"),
                size_bytes: 4096,
                identity: Default::default(),
            }],
        };
        let request = CreateJob {
            name: name.to_owned(),
            ..self.request("other")
        };
        let now = self.clock.now();
        let mut job = new_record(&request, given, &self.parts.config, &now).unwrap();
        job.status = status;
        job.next_sync = (status == Status::Waiting).then(|| Deadline::after(&now, 6 * HOUR));
        let mut table = self.parts.table.lock();
        if status == Status::Running {
            job.runs = 1;
            job.run = Some(active_run(RunType::Manual, None, None));
            let live = Arc::new(LiveRun::new(name, 1, now.wall, crate::engine::Control::default()));
            self.parts.live.begin(name, live, None);
        }
        table.insert(job).unwrap();
    }

    fn job(&self, name: &str) -> JobRecord {
        self.parts.table.job(name).unwrap()
    }

    fn ask(&self, name: &str, action: Action) -> Refused<()> {
        let modify = |change: ModifyJob| actions::modify(&self.parts, name, &change);
        match action {
            Action::Start => actions::start(&self.parts, name),
            Action::Sync => actions::sync(&self.parts, name),
            Action::ModifySchedule => modify(ModifyJob {
                interval_seconds: Some(7200),
                ..ModifyJob::default()
            }),
            Action::ModifySync => modify(ModifyJob {
                compress_level: Some(1),
                ..ModifyJob::default()
            }),
            Action::ModifyAny => modify(ModifyJob {
                description: Some("new".to_owned()),
                ..ModifyJob::default()
            }),
            Action::Confirm => actions::confirm(&self.parts, name),
            Action::Stop => actions::stop(&self.parts, name),
            Action::Cancel => actions::cancel(&self.parts, name),
            Action::Complete => actions::complete(&self.parts, name, &CompleteJob::default()),
            Action::TakeUp => {
                let successor = CreateJob {
                    take_up: Some(name.to_owned()),
                    ..self.request("successor")
                };
                create::create(&self.parts, &successor).map(drop)
            }
            Action::Delete => deleting::delete(&self.parts, name, false).map(drop),
        }
    }

    /// Waits until no sync runs, and none is being resumed.
    fn wait_idle(&self) {
        self.wait_until("no sync runs", || {
            actions::running(&self.parts) == 0 && self.parts.background.is_idle()
        });
    }
}

/// Changes the note of a job in a store, without the key that seals it.
fn edit_note(store: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let store = imagefmt::Store::open(store).unwrap();
    let mut note: Value = store.note(name).unwrap();
    change(&mut note);
    store.put_note(name, &note).unwrap();
}

#[test]
fn every_action_in_every_state_is_allowed_or_refused_as_the_table_says() {
    for status in Status::ALL {
        for action in Action::ALL {
            let house = House::new();
            house.job_in("web01", status);
            let before = house.job("web01");
            let answer = house.ask("web01", action);
            let told = format!("{status} × {action:?}: {answer:?}");
            match answer {
                Ok(()) => assert!(rules::allowed(status, action), "{told}"),
                // A job without images cannot be continued, whatever its state.
                Err(refusal) if rules::allowed(status, action) && action == Action::TakeUp => {
                    assert!(refusal.message.contains("has no job web01"), "{told}");
                }
                Err(refusal) => {
                    assert!(!rules::allowed(status, action), "{told}");
                    assert_eq!(refusal.kind, ErrorKind::Conflict, "{told}");
                    assert!(refusal.message.contains(&status.to_string()), "{told}");
                    assert!(refusal.message.contains("web01"), "{told}");
                    assert_eq!(house.job("web01"), before, "{told}: nothing has changed");
                }
            }
            house.parts.live.end("web01");
        }
    }
}

#[test]
fn the_documentation_has_the_same_table() {
    let text = include_str!("../../../../docs/operations.md");
    let cell = |status: Status, action: Action| {
        if rules::allowed(status, action) {
            "yes"
        } else {
            "–"
        }
    };
    let heads: Vec<String> = Status::ALL.iter().map(Status::to_string).collect();
    let head = format!("| action | {} |", heads.join(" | "));
    assert!(text.contains(&head), "docs/operations.md has no line\n{head}");
    for action in Action::ALL {
        let cells: Vec<&str> = Status::ALL.iter().map(|&status| cell(status, action)).collect();
        let row = format!("| {} | {} |", action.label(), cells.join(" | "));
        assert!(text.contains(&row), "docs/operations.md has no line\n{row}");
    }
}

#[test]
fn an_unknown_job_is_told_with_those_that_there_are() {
    let house = House::new();
    house.job_in("web01", Status::Ready);
    for action in Action::ALL {
        if action == Action::TakeUp {
            continue;
        }
        let refusal = house.ask("db\u{1b}[2J", action).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::NotFound);
        assert!(refusal.message.contains("existing jobs: web01"), "{refusal}");
        assert!(!refusal.message.contains('\u{1b}'));
    }
}

#[test]
fn of_conflicting_actions_at_once_one_wins() {
    for round in 0..20 {
        let house = House::new();
        house.job_in("web01", Status::Waiting);
        let ask = |action: Action| {
            let house = &house;
            move || house.ask("web01", action)
        };
        let won: Vec<bool> = std::thread::scope(|scope| {
            let actions = [
                Action::Complete,
                Action::Complete,
                Action::Cancel,
                Action::Delete,
                Action::Complete,
            ];
            let asked: Vec<_> = actions
                .into_iter()
                .cycle()
                .skip(round % 5)
                .take(5)
                .map(|action| scope.spawn(ask(action)))
                .collect();
            asked
                .into_iter()
                .map(|asked| asked.join().unwrap().is_ok())
                .collect()
        });
        let known = house.parts.table.lock().jobs().get("web01").map(|job| job.status);
        let ended = matches!(known, None | Some(Status::Finished | Status::Canceled));
        assert!(ended, "{known:?} {won:?}");
        // Complete and cancel exclude each other; deleting what has ended is possible behind either.
        let wins = won.iter().filter(|&&won| won).count();
        assert!(wins == 1 || (wins == 2 && known.is_none()), "{known:?} {won:?}");
    }
}

#[test]
fn a_sync_that_is_being_ended_takes_no_second_order() {
    let house = House::new();
    house.job_in("web01", Status::Running);
    actions::stop(&house.parts, "web01").unwrap();
    for action in [Action::Stop, Action::Cancel] {
        let refusal = house.ask("web01", action).unwrap_err();
        assert!(refusal.message.contains("is ending (stop)"), "{refusal}");
    }
    assert!(matches!(
        house.parts.live.get("web01"),
        Some((_, Some(Ending::Stop)))
    ));
}

#[test]
fn a_shutdown_lets_nothing_begin() {
    let house = House::new();
    house.job_in("web01", Status::Waiting);
    actions::close(&house.parts);
    for action in [
        Action::Sync,
        Action::Stop,
        Action::Complete,
        Action::Delete,
        Action::ModifyAny,
    ] {
        assert_eq!(
            house.ask("web01", action).unwrap_err().kind,
            ErrorKind::Unavailable,
            "{action:?}"
        );
    }
    let new = house.request("db");
    assert_eq!(
        create::create(&house.parts, &new).unwrap_err().kind,
        ErrorKind::Unavailable
    );
}

#[test]
fn a_repeated_create_with_its_token_is_the_same_job() {
    let house = House::new();
    let request = CreateJob {
        client_token: Some("token-1".to_owned()),
        ..house.request("web01")
    };
    assert_eq!(
        create::create(&house.parts, &request),
        Ok(("web01".to_owned(), true))
    );
    assert_eq!(
        create::create(&house.parts, &request),
        Ok(("web01".to_owned(), false))
    );
    let house = house.restart();
    assert_eq!(
        create::create(&house.parts, &request),
        Ok(("web01".to_owned(), false))
    );
    let other = CreateJob {
        max_images: Some(4),
        ..request
    };
    let refusal = create::create(&house.parts, &other).unwrap_err();
    assert!(
        refusal.message.contains("create job web01 with other parameters"),
        "{refusal}"
    );
}

#[test]
fn a_disk_has_one_unfinished_job() {
    let house = House::new();
    let first = house.request("web01");
    create::create(&house.parts, &first).unwrap();
    let second = CreateJob {
        name: "web02".to_owned(),
        ..first.clone()
    };
    let refusal = create::create(&house.parts, &second).unwrap_err();
    assert!(
        refusal.message.contains("belongs to job web01, which is Ready"),
        "{refusal}"
    );
    actions::cancel(&house.parts, "web01").unwrap();
    create::create(&house.parts, &second).unwrap();
    let again = create::create(&house.parts, &first).unwrap_err();
    assert!(
        again.message.contains("job web01 already exists (Canceled)"),
        "{again}"
    );
}

#[test]
fn of_two_jobs_created_at_once_on_one_disk_one_is_made() {
    for _ in 0..5 {
        let house = House::new();
        let request = |name: &str| CreateJob {
            name: name.to_owned(),
            ..house.request("disk")
        };
        let requests = [request("aa"), request("bb"), request("cc")];
        let made = std::thread::scope(|scope| {
            let asked: Vec<_> = requests
                .iter()
                .map(|request| scope.spawn(|| create::create(&house.parts, request)))
                .collect();
            asked
                .into_iter()
                .map(|asked| asked.join().unwrap())
                .filter(Result::is_ok)
                .count()
        });
        assert_eq!(made, 1);
    }
}

#[test]
fn a_disk_that_vanished_leads_to_in_error_and_start_goes_on_when_it_is_back() {
    let house = House::new();
    let request = house.request("web01");
    create::create(&house.parts, &request).unwrap();
    let disk = Path::new(&request.disks[0].path).to_owned();
    let away = disk.with_extension("away");
    std::fs::rename(&disk, &away).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    let job = house.job("web01");
    assert_eq!(job.status, Status::InError);
    let error = job.error.unwrap();
    assert!(error.contains("web01.img"), "{error}");
    std::fs::rename(&away, &disk).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    assert_eq!(house.job("web01").status, Status::Waiting);
    let runs = view::runs(&house.parts, "web01", 10).unwrap();
    let outcomes: Vec<_> = runs.iter().map(|run| run.outcome).collect();
    assert_eq!(outcomes, [api::RunOutcome::Succeeded, api::RunOutcome::Failed]);
}

#[test]
fn several_missed_intervals_lead_to_one_sync() {
    let house = House::new();
    create::create(&house.parts, &house.request("web01")).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    house.clock.reboot(50 * HOUR);
    let house = house.restart();
    let mut scheduler = Scheduler::default();
    for _ in 0..3 {
        scheduler.tick(&house.parts);
        house.wait_idle();
    }
    assert_eq!(view::runs(&house.parts, "web01", 10).unwrap().len(), 2);
    let left = house
        .job("web01")
        .next_sync
        .unwrap()
        .remaining(&house.clock.now());
    assert_eq!(left, 6 * HOUR);
}

#[test]
fn a_modified_interval_counts_after_the_next_sync() {
    let house = House::new();
    create::create(&house.parts, &house.request("web01")).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    house.ask("web01", Action::ModifySchedule).unwrap();
    let view = view::show(&house.parts, "web01").unwrap();
    assert_eq!(view.interval_seconds, Some(6 * 3600));
    assert_eq!(view.pending.interval_seconds, Some(7200));
    assert_eq!(view.next.in_seconds, Some(6 * 3600));
    house.clock.pass(6 * HOUR);
    Scheduler::default().tick(&house.parts);
    house.wait_idle();
    let view = view::show(&house.parts, "web01").unwrap();
    assert_eq!(view.interval_seconds, Some(7200));
    assert_eq!(view.pending, api::PendingView::default());
    assert_eq!(view.next.in_seconds, Some(7200));
}

#[test]
fn a_job_that_was_running_is_gone_on_with() {
    let house = House::new();
    create::create(&house.parts, &house.request("web01")).unwrap();
    {
        let change = |job: &mut JobRecord| {
            job.status = Status::Running;
            job.runs = 1;
            job.run = Some(active_run(RunType::Schedule, None, None));
            Ok(Some(run_begun(1, RunType::Schedule, job.created)))
        };
        house.parts.table.update("web01", change).unwrap();
    }
    let house = house.restart();
    house.wait_idle();
    assert_eq!(house.job("web01").status, Status::Waiting);
    let runs = view::runs(&house.parts, "web01", 10).unwrap();
    assert_eq!(runs[0].outcome, api::RunOutcome::Succeeded);
    assert_eq!(runs[1].outcome, api::RunOutcome::Interrupted);
    assert_eq!(runs[0].run_type, RunType::Schedule);
}

#[test]
fn an_image_that_was_made_before_a_kill_is_counted_once() {
    let house = House::new();
    create::create(&house.parts, &house.request("web01")).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    {
        // As it was between the image's manifest and the word about it.
        let change = |job: &mut JobRecord| {
            job.status = Status::Running;
            job.next_sync = None;
            job.run = Some(active_run(RunType::Manual, Some(1), None));
            Ok(Some(run_begun(1, RunType::Manual, job.created)))
        };
        house.parts.table.update("web01", change).unwrap();
    }
    let house = house.restart();
    house.wait_idle();
    let view = view::show(&house.parts, "web01").unwrap();
    assert_eq!(view.status, Status::Waiting);
    assert_eq!(view.images, ["web01/1"]);
    let runs = view::runs(&house.parts, "web01", 10).unwrap();
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].outcome, api::RunOutcome::Succeeded);
    assert_eq!(runs[0].image.as_deref(), Some("web01/1"));
}

#[test]
fn a_lost_or_damaged_state_is_found_again_in_the_stores() {
    for damage in [None, Some(&b"garbage"[..])] {
        let house = House::new();
        let elsewhere = house.dir.path().join("elsewhere");
        let request = CreateJob {
            store: Some(elsewhere.display().to_string()),
            ..house.request("web01")
        };
        create::create(&house.parts, &request).unwrap();
        actions::start(&house.parts, "web01").unwrap();
        house.wait_idle();
        // The note is written by the run's thread, behind the run's end.
        crashes::wait_for_note(&elsewhere, "web01", |note| note["job"]["status"] == "Waiting");
        let before = house.job("web01");
        let state = house.dir.path().join("state.db");
        match damage {
            None => std::fs::remove_file(&state).unwrap(),
            Some(bytes) => std::fs::write(&state, bytes).unwrap(),
        }
        let house = house.restart();
        let mut after = house.job("web01");
        assert!(after.warnings.pop().unwrap().contains("restored from its store"));
        assert_eq!(after, before);
        assert_eq!(view::runs(&house.parts, "web01", 10).unwrap().len(), 1);
        house.assert_warns("the state of web01 was restored");
        assert_eq!(house.warns("damaged"), damage.is_some());
    }
}

/// A page of the state's database that holds this text is overwritten.
fn damage_page_with(house: &House, text: &str) {
    const PAGE: usize = 4096;
    let path = house.dir.path().join("state.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(text.len()).position(|part| part == text.as_bytes());
    bytes[at.unwrap() / PAGE * PAGE..][..PAGE].fill(0x5a);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn of_a_damaged_database_every_job_is_kept_that_can_be_read() {
    let house = House::new();
    let names: Vec<String> = (10..40).map(|number| format!("job{number}")).collect();
    names.iter().for_each(|name| house.job_in(name, Status::Stopped));
    // Only the database has these: they have no notes.
    let before: Vec<JobRecord> = names.iter().map(|name| house.job(name)).collect();
    damage_page_with(&house, "\"name\":\"job25\"");
    let house = house.restart();
    house.assert_warns("the state database was damaged");
    house.assert_warns("job10, job11");
    let after = house.parts.table.lock().jobs().clone();
    let lost = before.iter().filter(|job| after.get(&job.name) != Some(*job));
    let lost: Vec<&str> = lost.map(|job| job.name.as_str()).collect();
    assert!(lost.contains(&"job25") && lost.len() < 5, "{lost:?}");
}

#[test]
fn deleting_keeps_images_and_purging_does_not() {
    let house = House::new();
    create::create(&house.parts, &house.request("web01")).unwrap();
    actions::start(&house.parts, "web01").unwrap();
    house.wait_idle();
    assert_eq!(deleting::delete(&house.parts, "web01", false), Ok(true));
    let store = imagefmt::Store::open(&house.dir.path().join("store")).unwrap();
    assert_eq!(store.job("web01").unwrap().sequences(), [1]);
    let again = house.request("web01");
    let refusal = create::create(&house.parts, &again).unwrap_err();
    assert!(refusal.message.contains("--take-up web01"), "{refusal}");
    let adopted = CreateJob {
        take_up: Some("web01".to_owned()),
        ..again
    };
    create::create(&house.parts, &adopted).unwrap();
    let first = store.job("web01").unwrap().get(1).unwrap();
    store.pin(&first, "audit").unwrap();
    let refusal = deleting::delete(&house.parts, "web01", true).unwrap_err();
    assert!(refusal.message.contains("web01/1 is pinned (audit)"), "{refusal}");
    store.unpin(&first, Some("audit")).unwrap();
    deleting::delete(&house.parts, "web01", true).unwrap();
    house.wait_until("the job is gone", || {
        !house.parts.table.lock().jobs().contains_key("web01")
    });
    assert_eq!(store.job("web01").unwrap().sequences(), [0u64; 0]);
    // The note goes in the background, behind the job.
    house.wait_until("its note is gone", || store.notes().unwrap().is_empty());
}
