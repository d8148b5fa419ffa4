//! The range of every parameter of a job.
//!
//! They are those of Alibaba SMC's CreateReplicationJob (`Frequency`, `MaxNumberOfImageToKeep`, `ValidTime`,
//! `ScheduledStartTime`, `ClientToken`, `Name`, `Description`), where smc has no reason to differ.

use std::ops::RangeInclusive;
use std::time::Duration;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// The time from the end of one sync to the start of the next. The configuration may lower the minimum for tests
/// (`laboratory.min_interval`).
pub const INTERVAL: RangeInclusive<Duration> = Duration::from_secs(HOUR)..=Duration::from_secs(7 * DAY);

/// The shortest interval of a job whose disks are tracked: its syncs read only what was written to. Alibaba SMC has none below
/// an hour.
pub const TRACKED_INTERVAL_MIN: Duration = Duration::from_secs(60);

/// The least time between the starts of two scheduled syncs that read a whole disk.
pub const MIN_SCAN_INTERVAL: RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(7 * DAY);

/// That time for a job that does not specify one.
pub const MIN_SCAN_INTERVAL_DEFAULT: Duration = Duration::from_secs(HOUR);

/// How often new images are booted: every N-th. 0 is none.
pub const BOOT_EVERY_IMAGES: RangeInclusive<u32> = 0..=1000;

/// The time within which an image is booted, or all are read again. 0 is never.
pub const CHECK_EVERY: RangeInclusive<Duration> = Duration::from_secs(DAY)..=Duration::from_secs(90 * DAY);

/// How many images of a job are kept.
pub const MAX_IMAGES: RangeInclusive<u32> = 1..=10;

/// How long after its creation an unfinished job expires.
pub const VALID_TIME: RangeInclusive<Duration> = Duration::from_secs(7 * DAY)..=Duration::from_secs(90 * DAY);

/// The valid time of a job that does not specify one.
pub const VALID_TIME_DEFAULT: Duration = Duration::from_secs(30 * DAY);

/// How far in the future `start_at` may lie.
pub const START_AHEAD: Duration = Duration::from_secs(30 * DAY);

/// zstd level; 0 stores everything raw.
pub const COMPRESS_LEVEL: RangeInclusive<i32> = 0..=19;

/// The lowest bandwidth limit in bytes per second of reading (0 means no limit). At this rate a GiB takes four and a
/// half hours.
pub const BANDWIDTH_MIN_BYTES: u64 = 64 << 10;

/// How long a hook may run.
pub const HOOK_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(HOUR);

/// The timeout of hooks if the job does not specify one.
pub const HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// How long a hook may take that runs just before a freeze.
pub const FREEZE_HOOK_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// That timeout if the job does not specify one.
pub const FREEZE_HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);

/// How long a sync may hold writers.
pub const FREEZE_BUDGET: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(10);

/// How long it may where that is not specified.
pub const FREEZE_BUDGET_DEFAULT: Duration = Duration::from_millis(200);

/// Length of a job's name in characters. Names consist of letters, digits, `.`, `_` and `-` and start with a letter:
/// SMC's rule without the colon, which separates image and disk in `web01/7:vda`, and no longer than a store allows.
pub const NAME_LEN: RangeInclusive<usize> = 2..=64;

/// Length of a description in characters.
pub const DESCRIPTION_LEN_MAX: usize = 128;

/// Length of a client token in characters, all of them ASCII.
pub const CLIENT_TOKEN_LEN_MAX: usize = 64;

/// The most disks that a job can have.
pub const DISKS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use utoipa::PartialSchema;

    /// The ranges in the OpenAPI document are those that the daemon enforces.
    #[test]
    fn the_schema_of_a_new_job_has_the_same_ranges() {
        let schema = serde_json::to_value(crate::CreateJob::schema()).unwrap();
        let of = |field: &str, what: &str| schema["properties"][field][what].as_f64().unwrap();
        let seconds = |time: &Duration| time.as_secs_f64();
        let same = |a: f64, b: f64| assert!((a - b).abs() < 0.5, "{a} and {b}");
        same(of("interval_seconds", "maximum"), seconds(INTERVAL.end()));
        let range = (MIN_SCAN_INTERVAL.start(), MIN_SCAN_INTERVAL.end());
        same(of("min_scan_interval_seconds", "minimum"), seconds(range.0));
        same(of("min_scan_interval_seconds", "maximum"), seconds(range.1));
        same(of("max_images", "minimum"), (*MAX_IMAGES.start()).into());
        same(of("max_images", "maximum"), (*MAX_IMAGES.end()).into());
        same(of("valid_seconds", "minimum"), seconds(VALID_TIME.start()));
        same(of("valid_seconds", "maximum"), seconds(VALID_TIME.end()));
        same(of("compress_level", "maximum"), (*COMPRESS_LEVEL.end()).into());
        same(of("hook_timeout_seconds", "maximum"), seconds(HOOK_TIMEOUT.end()));
        let range = (FREEZE_HOOK_TIMEOUT.start(), FREEZE_HOOK_TIMEOUT.end());
        same(of("freeze_hook_timeout_seconds", "minimum"), seconds(range.0));
        same(of("freeze_hook_timeout_seconds", "maximum"), seconds(range.1));
        same(
            of("freeze_budget_ms", "maximum"),
            FREEZE_BUDGET.end().as_secs_f64() * 1000.0,
        );
        let length = |count: usize| f64::from(u32::try_from(count).unwrap());
        same(of("name", "minLength"), length(*NAME_LEN.start()));
        same(of("name", "maxLength"), length(*NAME_LEN.end()));
        same(of("description", "maxLength"), length(DESCRIPTION_LEN_MAX));
        same(of("client_token", "maxLength"), length(CLIENT_TOKEN_LEN_MAX));
    }
}
