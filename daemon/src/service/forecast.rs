//! How long the last sync would take if services were stopped now: from rates that were measured, never assumed.

use super::written;
use crate::clock::Moment;
use crate::job::JobRecord;
use crate::units::{rate, seconds};
use api::{DiskTracking, Forecast, RunView};
use std::time::Duration;

/// How the next sync will find what has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// As the last one did: nobody has asked the tracker.
    AsLast,
    /// By reading all of the disks, or of one of them.
    Scan,
    /// By the tracker, which has seen writes to clusters of so many bytes since the newest image.
    Tracked { written_bytes: u64 },
}

impl Next {
    /// What the tracker says of the disks of a job.
    pub fn of(disks: &[Option<DiskTracking>]) -> Self {
        let written = |disk: &Option<DiskTracking>| {
            let disk = disk.as_ref().filter(|disk| disk.trusted);
            disk.map(|disk| disk.dirty_bytes)
        };
        match disks.iter().map(written).sum::<Option<u64>>() {
            Some(written_bytes) => Self::Tracked { written_bytes },
            None => Self::Scan,
        }
    }
}

/// Looks at the newest runs (newest first); nothing before a sync has made an image.
pub fn forecast(job: &JobRecord, runs: &[RunView], next: Next, now: &Moment) -> Option<Forecast> {
    let made: Vec<&RunView> = runs
        .iter()
        .filter(|run| run.image.is_some() && run.seconds.is_some() && run.compare_rate_bytes > 0)
        .collect();
    let is_tracked = match next {
        Next::AsLast => was_tracked(made.first()?),
        Next::Scan => false,
        Next::Tracked { .. } => true,
    };
    // A scan reads in order, a tracked sync here and there: each has its own speed.
    let alike = made.iter().find(|run| was_tracked(run) == is_tracked);
    let last = *alike.or(made.first())?;
    let change = match next {
        Next::Tracked { written_bytes } => seen(&made, last, written_bytes),
        Next::AsLast | Next::Scan => change(job, &made, now),
    };
    let compare_bytes = match is_tracked {
        true => tracked_bytes(job, last, change.dirty_bytes),
        false => job.total_bytes(),
    };
    let compare_rate = limited(last.compare_rate_bytes, job.bandwidth_limit_bytes);
    let compare_seconds = seconds(compare_bytes, compare_rate);
    let transfer_rate = transfer_rate(&made)?;
    let dirty_bytes = change.dirty_bytes.min(job.total_bytes());
    let transfer_seconds = seconds(dirty_bytes, transfer_rate);
    let other_seconds = other(last);
    Some(Forecast {
        seconds: compare_seconds.max(transfer_seconds) + other_seconds,
        compare_seconds,
        transfer_seconds,
        other_seconds,
        compare_bytes,
        dirty_bytes,
        compare_rate_bytes: compare_rate,
        transfer_rate_bytes: transfer_rate,
        dirty_rate_bytes: change.rate_bytes,
        writers_held_ms: job.freeze_budget().and_then(|_| writers_held_ms(&made)),
        basis: change.basis,
    })
}

/// The longest time for which a sync has held writers.
fn writers_held_ms(made: &[&RunView]) -> Option<u64> {
    let held = |run: &&RunView| run.instant.as_ref().map(|instant| instant.held_us);
    let held = made.iter().filter_map(held).filter(|held| *held > 0);
    held.max().map(|held_us| held_us.div_ceil(1000))
}

fn was_tracked(run: &RunView) -> bool {
    run.method.as_deref() == Some("tracked")
}

/// What a tracked sync will read: what was written to, and as much as `last` did to check the tracker.
fn tracked_bytes(job: &JobRecord, last: &RunView, dirty_bytes: u64) -> u64 {
    let audited: u64 = last.disks.iter().map(|disk| disk.audited_bytes).sum();
    audited.saturating_add(dirty_bytes).min(job.total_bytes())
}

struct Change {
    dirty_bytes: u64,
    rate_bytes: u64,
    basis: String,
}

/// What the tracker has seen since the last image.
fn seen(made: &[&RunView], last: &RunView, written_bytes: u64) -> Change {
    let speed = match was_tracked(last) {
        true => "the last tracked sync",
        false => "the last sync, which read everything: no tracked one was measured yet",
    };
    Change {
        dirty_bytes: written_bytes,
        rate_bytes: dirty_rate(made),
        basis: format!(
            "changes as the tracker has seen them since the newest image; reading at the rate of {speed}"
        ),
    }
}

/// What changed since the last image: by the kernel's count of what was written, where it counts, or else at the rate
/// of the last two syncs.
fn change(job: &JobRecord, made: &[&RunView], now: &Moment) -> Change {
    let rate_bytes = dirty_rate(made);
    let counted = job
        .written
        .as_ref()
        .and_then(|before| written::between(before, &written::count(job, now)?));
    if let Some(bytes) = counted {
        return Change {
            dirty_bytes: bytes,
            rate_bytes,
            basis: "reading at the last sync's rate; changes are all bytes that the kernel has counted as written \
                    since that sync started"
                .to_owned(),
        };
    }
    let since = now.wall.duration_since(made[0].started).as_secs().max(0);
    let since = u64::try_from(since).unwrap_or(0);
    Change {
        dirty_bytes: rate_bytes.saturating_mul(since),
        rate_bytes,
        basis:
            "reading at the last sync's rate; changes at the rate of the last two syncs, because the kernel's \
                counters do not reach back to the last one"
                .to_owned(),
    }
}

/// Bytes a second that changed between the starts of the last two syncs.
fn dirty_rate(made: &[&RunView]) -> u64 {
    let [last, before, ..] = made else { return 0 };
    let span = last.started.duration_since(before.started).as_secs().max(1);
    last.dirty_bytes / u64::try_from(span).unwrap_or(1)
}

/// Bytes of changes a second that were stored: the best of what was measured, as every sync also had to read.
fn transfer_rate(made: &[&RunView]) -> Option<u64> {
    let rate = |run: &&RunView| {
        let time = seconds(run.compared_bytes, run.compare_rate_bytes);
        per_second(run.dirty_bytes, time)
    };
    made.iter().filter_map(rate).max()
}

/// What a sync takes beside reading.
fn other(run: &RunView) -> f64 {
    let reading = seconds(run.compared_bytes, run.compare_rate_bytes);
    // A target that was away is not expected to be so again.
    let waited = run.transfer.as_ref().map_or(0.0, |sent| sent.waited_seconds);
    (run.seconds.unwrap_or(0.0) - reading - waited).max(0.0)
}

fn limited(rate: u64, limit: u64) -> u64 {
    if limit == 0 { rate } else { rate.min(limit) }
}

fn per_second(bytes: u64, time: f64) -> Option<u64> {
    if bytes == 0 || time <= 0.0 {
        return None;
    }
    Some(rate(bytes, Duration::from_secs_f64(time.min(1e9))))
}

#[cfg(test)]
mod tests {
    use super::super::live::run_begun;
    use super::*;
    use crate::clock::{Clock, HandClock, later};
    use crate::config::Config;
    use crate::engine::Place;
    use crate::job::{DiskRecord, ResolvedInput, new_record};
    use api::{RunOutcome, RunType};

    const MIB: u64 = 1 << 20;

    fn job() -> JobRecord {
        let request = api::CreateJob {
            name: "web01".to_owned(),
            ..Default::default()
        };
        let given = ResolvedInput {
            place: Place::Store("/s".into()),
            disks: vec![DiskRecord {
                name: "vda".to_owned(),
                path: "/nonexistent".into(),
                size_bytes: 1000 * MIB,
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

    /// A run that began so long ago, compared 1000 MiB at 100 MiB/s and took 2 s beside that.
    fn run(number: u64, began_ago: i64, dirty: u64, now: &Moment) -> RunView {
        RunView {
            outcome: RunOutcome::Succeeded,
            image: Some(format!("web01/{number}")),
            seconds: Some(12.0),
            compared_bytes: 1000 * MIB,
            compare_rate_bytes: 100 * MIB,
            dirty_bytes: dirty,
            ..run_begun(number, RunType::Schedule, later(now.wall, -began_ago))
        }
    }

    #[test]
    fn what_a_run_has_waited_for_its_target_is_not_foretold() {
        let now = HandClock::new().now();
        let mut waited = run(1, 100, 36 * MIB, &now);
        waited.seconds = Some(3612.0);
        waited.transfer = Some(api::RunTransfer {
            sent_bytes: 36 * MIB,
            sent_again_bytes: 0,
            waited_seconds: 3600.0,
        });
        let foreseen = forecast(&job(), &[waited], Next::AsLast, &now).unwrap();
        assert!((foreseen.other_seconds - 2.0).abs() < 0.01, "{foreseen:?}");
    }

    #[test]
    fn nothing_is_foretold_before_there_is_an_image() {
        let now = HandClock::new().now();
        assert_eq!(forecast(&job(), &[], Next::AsLast, &now), None);
    }

    #[test]
    fn reading_bounds_a_sync_of_few_changes() {
        let now = HandClock::new().now();
        // In the hour between the two, 36 MiB changed: in the 100 s since, 1 MiB or so.
        let runs = [run(2, 100, 36 * MIB, &now), run(1, 3700, 1000 * MIB, &now)];
        let foreseen = forecast(&job(), &runs, Next::AsLast, &now).unwrap();
        assert!((foreseen.compare_seconds - 10.0).abs() < 0.01, "{foreseen:?}");
        assert!((foreseen.other_seconds - 2.0).abs() < 0.01, "{foreseen:?}");
        assert!((foreseen.seconds - 12.0).abs() < 0.01, "{foreseen:?}");
        assert_eq!(foreseen.dirty_rate_bytes, 36 * MIB / 3600);
        assert_eq!(foreseen.transfer_rate_bytes / MIB, 100);
        assert!(foreseen.transfer_seconds < 0.1, "{foreseen:?}");
    }

    fn tracking(doubt: Option<&str>, dirty_bytes: u64) -> Option<DiskTracking> {
        Some(DiskTracking {
            trusted: doubt.is_none(),
            doubt: doubt.map(str::to_owned),
            since: None,
            dirty_bytes,
        })
    }

    #[test]
    fn one_disk_that_is_not_tracked_makes_the_next_sync_a_scan() {
        let good = tracking(None, 3 * MIB);
        let both = [good.clone(), good.clone()];
        let written_bytes = 6 * MIB;
        assert_eq!(Next::of(&both), Next::Tracked { written_bytes });
        assert_eq!(Next::of(&[good.clone(), tracking(Some("x"), 0)]), Next::Scan);
        assert_eq!(Next::of(&[good, None]), Next::Scan);
    }

    #[test]
    fn a_tracked_sync_is_foretold_by_what_the_tracker_has_seen_and_how_fast_tracked_syncs_were() {
        let now = HandClock::new().now();
        let mut tracked = run(2, 100, 30 * MIB, &now);
        tracked.method = Some("tracked".to_owned());
        tracked.compared_bytes = 60 * MIB;
        tracked.compare_rate_bytes = 20 * MIB;
        tracked.seconds = Some(4.0);
        let runs = [run(3, 50, 36 * MIB, &now), tracked];
        let next = Next::Tracked {
            written_bytes: 40 * MIB,
        };
        let foreseen = forecast(&job(), &runs, next, &now).unwrap();
        assert_eq!(
            (foreseen.dirty_bytes, foreseen.compare_bytes),
            (40 * MIB, 40 * MIB)
        );
        assert!((foreseen.compare_seconds - 2.0).abs() < 0.01, "{foreseen:?}");
        assert!((foreseen.other_seconds - 1.0).abs() < 0.01, "{foreseen:?}");
        let scan = forecast(&job(), &runs, Next::Scan, &now).unwrap();
        assert_eq!(
            (scan.compare_bytes, scan.compare_rate_bytes),
            (1000 * MIB, 100 * MIB)
        );
        // None was tracked yet.
        let foreseen = forecast(&job(), &runs[..1], next, &now).unwrap();
        assert_eq!(
            (foreseen.compare_bytes, foreseen.compare_rate_bytes),
            (40 * MIB, 100 * MIB)
        );
        assert!(
            foreseen.basis.contains("no tracked one was measured yet"),
            "{}",
            foreseen.basis
        );
    }

    #[test]
    fn writers_are_held_as_long_as_they_were_at_most() {
        let now = HandClock::new().now();
        let held = |number: u64, held_us: u64| RunView {
            instant: Some(api::RunInstant {
                held_us,
                ..Default::default()
            }),
            ..run(number, 100, MIB, &now)
        };
        let runs = [
            run(4, 50, MIB, &now),
            held(3, 0),
            held(2, 40_100),
            held(1, 12_000),
        ];
        let foreseen = |job: &JobRecord, runs: &[RunView]| {
            let foreseen = forecast(job, runs, Next::AsLast, &now);
            foreseen.unwrap().writers_held_ms
        };
        let mut freezing = job();
        freezing.freeze_budget_ms = Some(200);
        assert_eq!(foreseen(&freezing, &runs), Some(41));
        assert_eq!(foreseen(&freezing, &runs[..2]), None, "nothing was measured");
        assert_eq!(foreseen(&job(), &runs), None, "it freezes no more");
    }

    #[test]
    fn a_limit_and_a_busy_disk_make_it_longer() {
        let now = HandClock::new().now();
        let runs = [run(2, 3600, 1000 * MIB, &now), run(1, 7200, 1000 * MIB, &now)];
        let mut limited = job();
        limited.bandwidth_limit_bytes = 10 * MIB;
        let foreseen = forecast(&limited, &runs, Next::AsLast, &now).unwrap();
        assert!((foreseen.compare_seconds - 100.0).abs() < 0.1, "{foreseen:?}");
        assert!(foreseen.dirty_bytes <= 1000 * MIB);
        assert!(foreseen.transfer_seconds > 9.0, "{foreseen:?}");
    }

    #[test]
    fn failed_runs_and_absurd_figures_are_survived() {
        let now = HandClock::new().now();
        let mut failed = run(3, 0, 5, &now);
        failed.outcome = RunOutcome::Failed;
        failed.image = None;
        assert_eq!(forecast(&job(), &[failed], Next::AsLast, &now), None);
        let mut odd = run(1, -1_000_000, u64::MAX, &now);
        odd.compare_rate_bytes = u64::MAX;
        odd.seconds = Some(f64::MAX);
        let _ = forecast(&job(), &[odd.clone(), odd], Next::AsLast, &now);
    }
}
