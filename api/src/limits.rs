//! The range of every parameter of a job.
//!
//! They are those of Alibaba SMC's CreateReplicationJob (`Frequency`, `MaxNumberOfImageToKeep`, `ValidTime`,
//! `ScheduledStartTime`, `ClientToken`, `Name`, `Description`), where smc has no reason to differ.

use std::ops::RangeInclusive;
use std::time::Duration;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// From the end of one sync to the start of the next. A laboratory may lower the lower bound by configuration.
pub const INTERVAL: RangeInclusive<Duration> = Duration::from_secs(HOUR)..=Duration::from_secs(7 * DAY);

/// How many images of a job are kept.
pub const MAX_IMAGES: RangeInclusive<u32> = 1..=10;

/// How long an unfinished job lives after its creation.
pub const VALID_TIME: RangeInclusive<Duration> = Duration::from_secs(7 * DAY)..=Duration::from_secs(90 * DAY);

/// The life of a job that says nothing about it.
pub const VALID_TIME_DEFAULT: Duration = Duration::from_secs(30 * DAY);

/// How far ahead a job may be told to start.
pub const START_AHEAD: Duration = Duration::from_secs(30 * DAY);

/// zstd level; 0 stores everything raw.
pub const COMPRESS_LEVEL: RangeInclusive<i32> = 0..=19;

/// Bytes a second of reading; 0 is no limit. A lower one would need a day for a GiB.
pub const BANDWIDTH_MIN_BYTES: u64 = 64 << 10;

/// How long a hook may run.
pub const HOOK_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(HOUR);

/// The time of a hook that has no other.
pub const HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Length of a job's name in characters. Letters, digits, `.`, `_` and `-`, starting with a letter: SMC's rule
/// without the colon, which stands before the disk in the name of an image, and no longer than a store takes.
pub const NAME_LEN: RangeInclusive<usize> = 2..=64;

/// Length of a description in characters.
pub const DESCRIPTION_LEN_MAX: usize = 128;

/// Length of a client token in characters, all of them ASCII.
pub const CLIENT_TOKEN_LEN_MAX: usize = 64;

/// Disks of a job.
pub const DISKS_MAX: usize = 64;
