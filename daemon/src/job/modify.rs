//! Changing parameters of a job: which of them, in which state, and from when on.

use super::create::{
    check_bandwidth, check_description, check_freeze, check_freeze_hook_timeout, check_interval,
    check_max_images, check_min_scan_interval, check_no_checks, check_no_max_images, check_start_at,
    check_time, check_tracked, check_valid_time, hook, send_limit,
};
use super::record::JobRecord;
use super::refusal::{Refusal, Refused};
use crate::clock::{Deadline, Moment};
use crate::config::Config;
use api::{Action, ModifyJob, Status, limits, rules};
use std::time::Duration;

/// The job as it will be. Either everything is changed, or nothing.
///
/// # Errors
/// When the job's state does not allow it, or a value is out of range: nothing has changed then.
pub fn modify(job: &JobRecord, change: &ModifyJob, config: &Config, now: &Moment) -> Refused<JobRecord> {
    for action in actions(change) {
        if !rules::allowed(job.status, action) {
            return Err(Refusal::state(&job.name, job.status, action));
        }
    }
    if let Some(target) = job.place.target() {
        check_no_max_images(change.max_images, target)?;
        check_no_checks(&change.checks, target)?;
        if change.take_over == Some(true) {
            return Err(Refusal::invalid(format!(
                "take_over is about a store on this machine, but the images go to target {target}"
            )));
        }
    }
    let mut changed = job.clone();
    at_once(&mut changed, change)?;
    changed.tracking = change.tracking.unwrap_or(changed.tracking);
    schedule(&mut changed, change, config)?;
    next_sync(&mut changed, change, now)?;
    Ok(changed)
}

/// What a change is, as the table of states knows it.
fn actions(change: &ModifyJob) -> Vec<Action> {
    let mut actions = Vec::new();
    if change.interval_seconds.is_some() || change.max_images.is_some() {
        actions.push(Action::ModifySchedule);
    }
    let for_next_sync = change.compress_level.is_some()
        || change.pre_hook.is_some()
        || change.post_hook.is_some()
        || change.hook_timeout_seconds.is_some()
        || change.start_at.is_some()
        || change.valid_seconds.is_some()
        || change.accept_changed_disk.is_some()
        || change.on_read_error.is_some()
        || changes_consistency(change)
        || changes_freeze_hooks(change)
        || change.take_over.is_some()
        || change.tracking.is_some();
    if for_next_sync {
        actions.push(Action::ModifySync);
    }
    if change.description.is_some()
        || change.bandwidth_limit_bytes.is_some()
        || change.send_limit.is_some()
        || change.io_priority.is_some()
        || change.min_scan_interval_seconds.is_some()
        || !change.checks.is_empty()
    {
        actions.push(Action::ModifyAny);
    }
    actions
}

fn at_once(job: &mut JobRecord, change: &ModifyJob) -> Refused<()> {
    if let Some(description) = &change.description {
        check_description(description)?;
        job.description.clone_from(description);
    }
    if let Some(limit) = change.bandwidth_limit_bytes {
        check_bandwidth(limit)?;
        job.bandwidth_limit_bytes = limit;
    }
    if let Some(limit) = &change.send_limit {
        job.send_limit = send_limit(Some(limit), &job.place)?;
    }
    job.io_priority = change.io_priority.unwrap_or(job.io_priority);
    job.checks.change(&change.checks)
}

fn changes_consistency(change: &ModifyJob) -> bool {
    change.consistency.is_some() || change.require_consistency.is_some() || change.freeze_budget_ms.is_some()
}

fn changes_freeze_hooks(change: &ModifyJob) -> bool {
    change.freeze_hook.is_some() || change.thaw_hook.is_some() || change.freeze_hook_timeout_seconds.is_some()
}

/// In Ready at once, otherwise after the next sync has ended.
fn schedule(job: &mut JobRecord, change: &ModifyJob, config: &Config) -> Refused<()> {
    let (interval, max_images) = (change.interval_seconds, change.max_images);
    if change.tracking.is_some() {
        for seconds in job.intervals() {
            check_interval(seconds, job.tracking, config)?;
        }
    }
    if interval.is_none() && max_images.is_none() {
        return Ok(());
    }
    if job.schedule.is_none() {
        return Err(Refusal::invalid(format!(
            "job {} is a single full sync: it has neither interval nor max_images",
            job.name
        )));
    }
    interval.map_or(Ok(()), |seconds| check_interval(seconds, job.tracking, config))?;
    max_images.map_or(Ok(()), check_max_images)?;
    job.pending.interval_seconds = interval.or(job.pending.interval_seconds);
    job.pending.max_images = max_images.or(job.pending.max_images);
    if job.status == Status::Ready {
        job.apply_pending();
    }
    Ok(())
}

fn next_sync(job: &mut JobRecord, change: &ModifyJob, now: &Moment) -> Refused<()> {
    if let Some(level) = change.compress_level {
        if !limits::COMPRESS_LEVEL.contains(&level) {
            return Err(Refusal::invalid(format!(
                "compress_level {level} is out of range: 0 to 19"
            )));
        }
        job.compress_level = level;
    }
    hooks(job, change)?;
    consistency(job, change)?;
    if let Some(on_read_error) = change.on_read_error {
        job.on_read_error = on_read_error;
    }
    if let Some(accept) = change.accept_changed_disk {
        job.accept_changed_disk = accept;
    }
    if let Some(seconds) = change.min_scan_interval_seconds {
        min_scan_interval(job, seconds, now)?;
    }
    if let Some(take_over) = change.take_over {
        job.take_over = take_over;
    }
    if let Some(at) = change.start_at {
        if job.status != Status::Ready {
            return Err(Refusal::conflict(format!(
                "job {} is {}: start_at can only be changed before the job is started (in Ready)",
                job.name, job.status
            )));
        }
        check_start_at(at, now)?;
        job.start_at = Some(at);
    }
    change
        .valid_seconds
        .map_or(Ok(()), |seconds| valid_time(job, seconds, now))
}

fn hooks(job: &mut JobRecord, change: &ModifyJob) -> Refused<()> {
    let hooks = &mut job.hooks;
    for (what, path, into) in [
        ("pre_hook", &change.pre_hook, &mut hooks.pre),
        ("post_hook", &change.post_hook, &mut hooks.post),
        ("freeze_hook", &change.freeze_hook, &mut hooks.freeze),
        ("thaw_hook", &change.thaw_hook, &mut hooks.thaw),
    ] {
        if let Some(path) = path {
            *into = hook(what, Some(path))?;
        }
    }
    if let Some(seconds) = change.hook_timeout_seconds {
        check_time("hook_timeout", seconds, &limits::HOOK_TIMEOUT)?;
        hooks.timeout_seconds = seconds;
    }
    if let Some(seconds) = change.freeze_hook_timeout_seconds {
        check_freeze_hook_timeout(seconds)?;
        hooks.freeze_timeout_seconds = seconds;
    }
    Ok(())
}

/// A budget that was chosen before stays, unless the new class cannot do with it.
fn consistency(job: &mut JobRecord, change: &ModifyJob) -> Refused<()> {
    if change.consistency.is_some() || change.tracking.is_some() {
        let consistency = change.consistency.unwrap_or(job.consistency);
        check_tracked(consistency, job.tracking)?;
    }
    if !changes_consistency(change) {
        return Ok(());
    }
    job.consistency = change.consistency.unwrap_or(job.consistency);
    job.require_consistency = change.require_consistency.unwrap_or(job.require_consistency);
    job.freeze_budget_ms = change.freeze_budget_ms.or(job.freeze_budget_ms);
    check_freeze(job.consistency, job.freeze_budget_ms)
}

/// Counted from the last scan: what has passed of the old time has passed of the new one.
fn min_scan_interval(job: &mut JobRecord, seconds: u64, now: &Moment) -> Refused<()> {
    check_min_scan_interval(seconds)?;
    if let Some(from) = &job.scan_from {
        let before = Duration::from_secs(job.min_scan_interval_seconds);
        let passed = before.saturating_sub(from.remaining(now));
        let left = Duration::from_secs(seconds).saturating_sub(passed);
        job.scan_from = Some(Deadline::after(now, left));
    }
    job.min_scan_interval_seconds = seconds;
    Ok(())
}

/// Counted from the creation: what has passed of the old time has passed of the new one.
fn valid_time(job: &mut JobRecord, seconds: u64, now: &Moment) -> Refused<()> {
    let valid = Duration::from_secs(seconds);
    check_valid_time(valid)?;
    let left = job.expires.remaining(now);
    let passed = Duration::from_secs(job.valid_seconds).saturating_sub(left);
    job.valid_seconds = seconds;
    job.expires = Deadline::after(now, valid.saturating_sub(passed));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::create::{new_record, tests as create};
    use super::*;
    use crate::clock::{Clock, HandClock};

    fn job(status: Status, clock: &HandClock) -> JobRecord {
        let config = Config::load(None).unwrap();
        let mut job = new_record(&create::good(), create::resolved_input(), &config, &clock.now()).unwrap();
        job.status = status;
        job
    }

    fn modified(job: &JobRecord, change: &ModifyJob, clock: &HandClock) -> Refused<JobRecord> {
        modify(job, change, &Config::load(None).unwrap(), &clock.now())
    }

    #[test]
    fn an_interval_counts_at_once_in_ready_and_later_everywhere_else() {
        let clock = HandClock::new();
        let change = ModifyJob {
            interval_seconds: Some(3600),
            ..ModifyJob::default()
        };
        let ready = modified(&job(Status::Ready, &clock), &change, &clock).unwrap();
        assert_eq!(ready.schedule.unwrap().interval_seconds, 3600);
        for status in [Status::Running, Status::Waiting, Status::Stopped] {
            let mut later = modified(&job(status, &clock), &change, &clock).unwrap();
            assert_eq!(later.schedule.unwrap().interval_seconds, 6 * 3600, "{status}");
            assert_eq!(later.pending.interval_seconds, Some(3600));
            later.apply_pending();
            assert_eq!(later.schedule.unwrap().interval_seconds, 3600);
            assert_eq!(later.schedule.unwrap().max_images, Some(3));
        }
    }

    #[test]
    fn a_change_to_a_class_that_cannot_be_reached_is_refused_and_others_are_not() {
        use api::{LeastConsistency, Tracking};
        let clock = HandClock::new();
        let wanted = |consistency, tracking| ModifyJob {
            consistency,
            tracking,
            ..ModifyJob::default()
        };
        let (filesystem, off) = (Some(LeastConsistency::Filesystem), Some(Tracking::Off));
        let waiting = job(Status::Waiting, &clock);
        assert!(modified(&waiting, &wanted(filesystem, off), &clock).is_err());
        let frozen = modified(&waiting, &wanted(filesystem, None), &clock).unwrap();
        assert!(modified(&frozen, &wanted(None, off), &clock).is_err());
        let crash = wanted(Some(LeastConsistency::Crash), off);
        let untracked = modified(&frozen, &crash, &clock).unwrap();
        assert!(modified(&untracked, &wanted(filesystem, None), &clock).is_err());
        // A record of an earlier version.
        let old = JobRecord {
            tracking: Tracking::Off,
            ..frozen
        };
        let other = ModifyJob {
            compress_level: Some(1),
            ..ModifyJob::default()
        };
        assert!(modified(&old, &other, &clock).is_ok());
        assert!(modified(&old, &wanted(None, Some(Tracking::Auto)), &clock).is_ok());
    }

    #[test]
    fn one_wrong_value_changes_nothing() {
        let clock = HandClock::new();
        let change = ModifyJob {
            description: Some("new".to_owned()),
            max_images: Some(11),
            ..ModifyJob::default()
        };
        assert!(modified(&job(Status::Waiting, &clock), &change, &clock).is_err());
    }

    #[test]
    fn valid_time_counts_from_the_creation() {
        let clock = HandClock::new();
        let job = job(Status::Waiting, &clock);
        clock.pass(Duration::from_secs(10 * 86400));
        let change = ModifyJob {
            valid_seconds: Some(12 * 86400),
            ..ModifyJob::default()
        };
        let changed = modified(&job, &change, &clock).unwrap();
        assert_eq!(
            changed.expires.remaining(&clock.now()),
            Duration::from_secs(2 * 86400)
        );
    }

    #[test]
    fn limit_and_priority_may_change_while_it_runs_and_the_compression_may_not() {
        let clock = HandClock::new();
        let running = job(Status::Running, &clock);
        let limit = ModifyJob {
            bandwidth_limit_bytes: Some(1 << 20),
            io_priority: Some(api::IoPriority::Idle),
            ..ModifyJob::default()
        };
        let changed = modified(&running, &limit, &clock).unwrap();
        assert_eq!(
            (changed.bandwidth_limit_bytes, changed.io_priority),
            (1 << 20, api::IoPriority::Idle)
        );
        let level = ModifyJob {
            compress_level: Some(1),
            ..ModifyJob::default()
        };
        assert!(modified(&running, &level, &clock).is_err());
    }
}
