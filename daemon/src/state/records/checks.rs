//! Which values records may have: what no version of smcd would write is damage or a forgery.
//!
//! The ranges are wide where a version to come may widen them, and narrow enough that no arithmetic on them overflows.

use super::job::StoredJob;
use super::run::StoredRun;
use crate::targets::parse_send_limit;
use api::limits;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A record whose values are checked when it is read.
pub trait Checked {
    /// Looks at every value that something is calculated from.
    ///
    /// # Errors
    /// In words, which value is out of range.
    fn check(&self) -> Result<(), String>;
}

/// Numbers of runs and images, and times in milliseconds: a run every microsecond would take 285 years to get there.
const COUNT: RangeInclusive<u64> = 0..=1 << 53;

/// Bytes of one disk; those of 64 disks can be added.
const DISK_BYTES: RangeInclusive<u64> = 0..=1 << 56;

/// Bytes of a job, and bytes a second.
const BYTES: RangeInclusive<u64> = 0..=1 << 62;

/// Seconds: a thousand years.
const SECONDS: RangeInclusive<u64> = 0..=1000 * 366 * 86400;

fn within<T: Copy + PartialOrd + Display>(
    what: &str,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(format!(
        "{what} is {value}, which is not between {} and {}: the record is damaged, or smcd did not write it",
        range.start(),
        range.end()
    ))
}

fn up_to(most: &RangeInclusive<Duration>) -> RangeInclusive<u64> {
    0..=most.end().as_secs()
}

impl Checked for StoredJob {
    fn check(&self) -> Result<(), String> {
        crate::job::check_name(&self.name).map_err(|refusal| refusal.message)?;
        if let Some(target) = &self.target {
            imagefmt::check_name("target", target).map_err(|error| error.to_string())?;
        }
        within("runs", self.runs, &COUNT)?;
        within("tracker_misses", self.tracker_misses, &COUNT)?;
        let numbers = self
            .images
            .iter()
            .copied()
            .chain(self.hooks_owed)
            .chain(self.thaw_owed);
        let of_run = self
            .run
            .iter()
            .flat_map(|run| std::iter::once(run.number).chain(run.image));
        for number in numbers.chain(of_run) {
            within("the number of an image or run", number, &COUNT)?;
        }
        within("the number of disks", self.disks.len(), &(0..=limits::DISKS_MAX))?;
        for disk in &self.disks {
            imagefmt::check_name("disk", &disk.name).map_err(|error| error.to_string())?;
            within("the size of a disk", disk.size_bytes, &DISK_BYTES)?;
        }
        let of_schedule = self.schedule.as_ref();
        let intervals = of_schedule.map(|schedule| schedule.interval_seconds);
        for interval in intervals.into_iter().chain(self.pending.interval_seconds) {
            within("interval_seconds", interval, &up_to(&limits::INTERVAL))?;
        }
        let images = of_schedule.and_then(|schedule| schedule.max_images);
        if of_schedule.is_some() && images.is_none() && self.target.is_none() {
            return Err("it says nowhere how many images are kept in its store".to_owned());
        }
        for images in images.into_iter().chain(self.pending.max_images) {
            within("max_images", images, &limits::MAX_IMAGES)?;
        }
        within("compress_level", self.compress_level, &limits::COMPRESS_LEVEL)?;
        if let Some(limit) = &self.send_limit {
            parse_send_limit(limit).map_err(|error| format!("send_limit: {error}"))?;
        }
        within("bandwidth_limit_bytes", self.bandwidth_limit_bytes, &BYTES)?;
        within(
            "the hooks' timeout_seconds",
            self.hooks.timeout_seconds,
            &up_to(&limits::HOOK_TIMEOUT),
        )?;
        within("valid_seconds", self.valid_seconds, &up_to(&limits::VALID_TIME))?;
        within(
            "min_scan_interval_seconds",
            self.min_scan_interval_seconds,
            &up_to(&limits::MIN_SCAN_INTERVAL),
        )?;
        within(
            "boot_every_images",
            self.checks.boot_every_images,
            &limits::BOOT_EVERY_IMAGES,
        )?;
        for seconds in [self.checks.boot_every_seconds, self.checks.verify_every_seconds] {
            within(
                "the time between two checks",
                seconds,
                &up_to(&limits::CHECK_EVERY),
            )?;
        }
        for checked in self.checks.booted.iter().chain(&self.checks.verified) {
            within("the number of a checked image", checked.sequence, &COUNT)?;
        }
        let deadlines = std::iter::once(&self.expires).chain(&self.next_sync);
        for deadline in deadlines.chain(&self.scan_from) {
            within("since_boot_ms", deadline.since_boot_ms, &COUNT)?;
            within("span_seconds", deadline.span_seconds, &SECONDS)?;
        }
        Ok(())
    }
}

impl Checked for StoredRun {
    fn check(&self) -> Result<(), String> {
        within("number", self.number, &COUNT)?;
        if let Some(seconds) = self.seconds {
            within("seconds", seconds, &(0.0..=1e11))?;
        }
        if let Some(transfer) = &self.transfer {
            within("sent_bytes", transfer.sent_bytes, &BYTES)?;
            within("sent_again_bytes", transfer.sent_again_bytes, &BYTES)?;
            within("waited_seconds", transfer.waited_seconds, &(0.0..=1e11))?;
        }
        within("the number of disks", self.disks.len(), &(0..=limits::DISKS_MAX))?;
        let of_disks = self.disks.iter().flat_map(|disk| {
            [
                disk.size_bytes,
                disk.compared_bytes,
                disk.audited_bytes,
                disk.dirty_bytes,
                disk.stored_bytes,
            ]
        });
        let own = [
            self.compared_bytes,
            self.dirty_bytes,
            self.stored_bytes,
            self.compare_rate_bytes,
        ];
        for bytes in own.into_iter().chain(of_disks) {
            within("a number of bytes", bytes, &BYTES)?;
        }
        Ok(())
    }
}
