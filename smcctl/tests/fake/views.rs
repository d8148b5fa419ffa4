//! Jobs and the rest, as smcd tells of them.

use api::{
    DiskView, Event, Forecast, HooksView, IoPriority, JobView, NextEvent, PendingView, Phase, Progress,
    RunDisk, RunOutcome, RunTransfer, RunType, RunView, Status, TargetStatus, TargetView, TargetWait,
    Transfer,
};
use jiff::Timestamp;

pub const GIB: u64 = 1 << 30;
pub const MIB: u64 = 1 << 20;

pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A job that waits for its next sync.
pub fn waiting(name: &str) -> JobView {
    JobView {
        name: name.to_owned(),
        description: "Web server of the shop".to_owned(),
        status: Status::Waiting,
        ending: None,
        completing: false,
        verifying: false,
        error: None,
        warnings: Vec::new(),
        next: next(
            Event::Sync,
            "incremental sync",
            Some(("2026-11-24T16:00:00Z", 21_599)),
        ),
        progress: None,
        forecast: None,
        store: Some("/var/lib/smc/store".to_owned()),
        target: None,
        disks: vec![
            disk("vda", "/dev/vda", 40 * GIB),
            disk("data", "/dev/vdb", 100 * GIB),
        ],
        automatic_incremental: true,
        interval_seconds: Some(21_600),
        max_images: Some(3),
        pending: PendingView::default(),
        compress_level: 4,
        bandwidth_limit_bytes: 0,
        send_limit: None,
        io_priority: IoPriority::None,
        io_priority_note: None,
        cluster_size_bytes: Some(65_536),
        tracking: api::Tracking::Auto,
        min_scan_interval_seconds: 3600,
        checks: api::ChecksView::default(),
        accept_changed_disk: false,
        on_read_error: api::OnReadError::Stop,
        consistency: api::LeastConsistency::Any,
        require_consistency: false,
        freeze_budget_ms: None,
        take_over: false,
        unconfirmed: false,
        hooks: HooksView {
            pre: None,
            post: None,
            freeze: None,
            thaw: None,
            freeze_timeout_seconds: 2,
            timeout_seconds: 60,
        },
        take_up: None,
        created: time("2026-11-20T08:00:00Z"),
        start_at: None,
        valid_seconds: 30 * 86_400,
        expires: Some(time("2026-12-20T08:00:00Z")),
        images: ["5", "6", "7"].map(|number| format!("{name}/{number}")).to_vec(),
        last_run: Some(succeeded(name, 7)),
    }
}

/// A job whose incremental sync is going on.
pub fn running(name: &str) -> JobView {
    JobView {
        status: Status::Running,
        next: next(
            Event::RunEnds,
            "the sync ends",
            Some(("2026-11-24T10:01:00Z", 24)),
        ),
        progress: Some(Progress {
            phase: Phase::Comparing,
            image: Some(format!("{name}/8")),
            started: time("2026-11-24T10:00:00Z"),
            elapsed_seconds: 41.6,
            disk: Some("data".to_owned()),
            compared_bytes: 70 * GIB,
            total_bytes: 140 * GIB,
            percent: 50.0,
            compare_rate_bytes: 2 * GIB,
            dirty_bytes: 3 * GIB,
            stored_bytes: GIB,
            store_rate_bytes: 32 * MIB,
            eta_seconds: Some(35),
            resumed: false,
            held_up: None,
            waiting_for_target: None,
            transfer: None,
        }),
        ..waiting(name)
    }
}

/// A job whose last sync failed.
pub fn in_error(name: &str) -> JobView {
    let error = "the store is full: free some space in /var/lib/smc/store".to_owned();
    JobView {
        status: Status::InError,
        error: Some(error.clone()),
        next: next(Event::Nothing, "nothing, until it is started again", None),
        last_run: Some(RunView {
            outcome: RunOutcome::Failed,
            image: None,
            disks: Vec::new(),
            error: Some(error),
            ..succeeded(name, 8)
        }),
        ..waiting(name)
    }
}

/// A job whose sync waits for its target.
pub fn sending(name: &str) -> JobView {
    let mut job = JobView {
        store: None,
        target: Some("backup".to_owned()),
        max_images: None,
        send_limit: Some("20MiB, 22:00-06:00 unlimited".to_owned()),
        ..running(name)
    };
    if let Some(progress) = &mut job.progress {
        progress.waiting_for_target = Some(TargetWait {
            since: time("2026-11-24T10:00:10Z"),
            reason: "the target at backup:7310 cannot be reached".to_owned(),
            next_try: Some(time("2026-11-24T10:01:10Z")),
        });
        progress.transfer = Some(Transfer {
            sent_bytes: 2 * GIB,
            send_rate_bytes: 30 * MIB,
            durable_bytes: GIB,
        });
    }
    if let Some(run) = &mut job.last_run {
        run.transfer = Some(RunTransfer {
            sent_bytes: 901 * MIB,
            sent_again_bytes: 2 * MIB,
            waited_seconds: 61.0,
        });
    }
    job
}

/// A target whose clock is slow.
pub fn target(name: &str) -> TargetView {
    TargetView {
        name: name.to_owned(),
        address: "x:7310".to_owned(),
        source: "src".to_owned(),
        valid_until: Some(time("2027-02-20T12:00:00Z")),
        used_by: Some(vec!["web01".to_owned()]),
        status: Some(TargetStatus {
            software: "smc-store 0.1.0".to_owned(),
            free_bytes: 10 * GIB,
            clock_differs_s: -3600,
            jobs: [("db".to_owned(), 3), ("web01".to_owned(), 7)].into(),
        }),
        problem: None,
    }
}

/// A job with everything that a job may have.
pub fn with_everything(name: &str) -> JobView {
    JobView {
        ending: Some("stop".to_owned()),
        completing: true,
        verifying: true,
        consistency: api::LeastConsistency::Filesystem,
        require_consistency: true,
        freeze_budget_ms: Some(200),
        warnings: vec!["all 3 images are in use: none was deleted".to_owned()],
        forecast: Some(forecast()),
        pending: PendingView {
            interval_seconds: Some(43_200),
            max_images: Some(5),
        },
        bandwidth_limit_bytes: 50 * MIB,
        io_priority: IoPriority::Idle,
        io_priority_note: Some("the I/O priority idle has no effect on vda (none)".to_owned()),
        hooks: HooksView {
            pre: Some("/usr/local/bin/flush".to_owned()),
            post: Some("/usr/local/bin/resume".to_owned()),
            freeze: Some("/usr/local/bin/pause".to_owned()),
            thaw: Some("/usr/local/bin/release".to_owned()),
            freeze_timeout_seconds: 2,
            timeout_seconds: 90,
        },
        take_up: Some("old01".to_owned()),
        start_at: Some(time("2026-11-21T03:00:00Z")),
        ..running(name)
    }
}

pub fn forecast() -> Forecast {
    Forecast {
        seconds: 81.2,
        compare_seconds: 70.0,
        transfer_seconds: 24.0,
        other_seconds: 11.2,
        compare_bytes: 140 * GIB,
        dirty_bytes: 800 * MIB,
        compare_rate_bytes: 2 * GIB,
        transfer_rate_bytes: 33 * MIB,
        dirty_rate_bytes: 300 << 10,
        writers_held_ms: Some(41),
        basis: "the last 3 syncs".to_owned(),
    }
}

pub fn succeeded(name: &str, number: u64) -> RunView {
    RunView {
        number,
        run_type: RunType::Schedule,
        started: time("2026-11-24T09:58:30Z"),
        finished: Some(time("2026-11-24T10:00:00Z")),
        seconds: Some(90.4),
        outcome: RunOutcome::Succeeded,
        image: Some(format!("{name}/{number}")),
        kind: Some("incremental".to_owned()),
        method: Some("scan".to_owned()),
        consistency: Some("fuzzy".to_owned()),
        consistency_reason: Some("vda was written to meanwhile".to_owned()),
        verified: None,
        instant: None,
        resumed: false,
        compared_bytes: 140 * GIB,
        dirty_bytes: 3 * GIB,
        stored_bytes: 900 * MIB,
        compare_rate_bytes: 2 * GIB,
        disks: vec![RunDisk {
            repaired_clusters: 2,
            unreadable_clusters: 0,
            name: "vda".to_owned(),
            size_bytes: 40 * GIB,
            method: Some("scan".to_owned()),
            method_reason: Some("the machine was restarted".to_owned()),
            compared_bytes: 40 * GIB,
            audited_bytes: 0,
            dirty_bytes: 3 * GIB,
            stored_bytes: 900 * MIB,
            digest: Some("smc1-64k:00ff".to_owned()),
        }],
        transfer: None,
        deleted: vec![format!("{name}/4")],
        error: None,
        warnings: Vec::new(),
    }
}

pub fn next(event: Event, text: &str, at: Option<(&str, u64)>) -> NextEvent {
    NextEvent {
        deferred: None,
        event,
        at: at.map(|(at, _)| time(at)),
        in_seconds: at.map(|(_, seconds)| seconds),
        text: text.to_owned(),
    }
}

fn disk(name: &str, path: &str, size_bytes: u64) -> DiskView {
    DiskView {
        name: name.to_owned(),
        path: path.to_owned(),
        size_bytes,
        tracking: None,
    }
}
