//! Checking what is asked of a new job: every range in one place, every message with value and range.

use super::checks::ImageChecks;
use super::record::{DiskRecord, JobRecord, Schedule};
use super::refusal::{Refusal, Refused};
use crate::clock::{Deadline, Moment};
use crate::config::Config;
use crate::engine::Place;
use crate::targets::parse_send_limit;
use api::{ChecksRequest, CreateJob, HooksView, LeastConsistency, PendingView, Status, Tracking, limits};
use imagefmt::{ClusterSize, Uuid};
use jiff::Timestamp;
use remote::SendLimit;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

/// What was found out before a job is made: its disks, opened and checked.
#[derive(Debug)]
pub struct ResolvedInput {
    pub place: Place,
    pub disks: Vec<DiskRecord>,
}

/// Makes a job in Ready of what was requested.
///
/// # Errors
/// `Invalid` for a value that is not allowed: the message names it and its range.
pub fn new_record(
    request: &CreateJob,
    given: ResolvedInput,
    config: &Config,
    now: &Moment,
) -> Refused<JobRecord> {
    check_texts(request)?;
    let valid = valid_time(request)?;
    if let Some(start_at) = request.start_at {
        check_start_at(start_at, now)?;
    }
    if let Place::Target(name) = &given.place {
        check_for_target(request, name)?;
    }
    let schedule = schedule(request, &given.place, config)?;
    let send_limit = send_limit(request.send_limit.as_deref(), &given.place)?;
    let mut checks = ImageChecks::default();
    checks.change(&request.checks)?;
    Ok(JobRecord {
        name: request.name.clone(),
        id: Some(Uuid::random().map_err(|error| Refusal::failed(&error.into()))?),
        description: request.description.clone(),
        status: Status::Ready,
        error: None,
        warnings: Vec::new(),
        place: given.place,
        disks: given.disks,
        automatic_incremental: request.automatic_incremental,
        schedule,
        pending: PendingView::default(),
        compress_level: compress_level(request)?,
        bandwidth_limit_bytes: bandwidth(request)?,
        send_limit,
        io_priority: request.io_priority.unwrap_or_default(),
        cluster_size_bytes: cluster_size(request)?,
        tracking: request.tracking.unwrap_or_default(),
        min_scan_interval_seconds: min_scan_interval(request)?,
        scan_from: None,
        unwatch_owed: false,
        checks,
        hooks: hooks(request)?,
        take_up: request.take_up.clone(),
        accept_changed_disk: request.accept_changed_disk,
        on_read_error: request.on_read_error.unwrap_or_default(),
        consistency: consistency(request)?,
        require_consistency: request.require_consistency,
        freeze_budget_ms: request.freeze_budget_ms,
        take_over: request.take_over,
        created: now.wall,
        start_at: request.start_at,
        valid_seconds: valid.as_secs(),
        expires: Deadline::after(now, valid),
        next_sync: None,
        deferred: None,
        completing: false,
        verifying: false,
        run: None,
        runs: 0,
        tracker_misses: 0,
        hooks_owed: None,
        thaw_owed: None,
        unconfirmed: false,
        retention_pending: false,
        images: Vec::new(),
        purge: false,
        synced: false,
        written: None,
        request: request.clone(),
    })
}

fn check_texts(request: &CreateJob) -> Refused<()> {
    check_name(&request.name)?;
    check_description(&request.description)?;
    check_token(request.client_token.as_deref())
}

/// How long a new job is valid.
fn valid_time(request: &CreateJob) -> Refused<Duration> {
    let valid = request.valid_seconds.map(Duration::from_secs);
    let valid = valid.unwrap_or(limits::VALID_TIME_DEFAULT);
    check_valid_time(valid)?;
    Ok(valid)
}

fn compress_level(request: &CreateJob) -> Refused<i32> {
    let level = request.compress_level.unwrap_or(changetrack::COMPRESS_LEVEL);
    in_range("compress_level", level, &limits::COMPRESS_LEVEL)?;
    Ok(level)
}

fn bandwidth(request: &CreateJob) -> Refused<u64> {
    let bytes = request.bandwidth_limit_bytes.unwrap_or(0);
    check_bandwidth(bytes)?;
    Ok(bytes)
}

fn min_scan_interval(request: &CreateJob) -> Refused<u64> {
    let seconds = request.min_scan_interval_seconds;
    let seconds = seconds.unwrap_or(limits::MIN_SCAN_INTERVAL_DEFAULT.as_secs());
    check_min_scan_interval(seconds)?;
    Ok(seconds)
}

/// The class that the images of a new job are to have.
fn consistency(request: &CreateJob) -> Refused<LeastConsistency> {
    let consistency = request.consistency.unwrap_or_default();
    check_freeze(consistency, request.freeze_budget_ms)?;
    check_tracked(consistency, request.tracking.unwrap_or_default())?;
    Ok(consistency)
}

/// The hooks of a new job.
fn hooks(request: &CreateJob) -> Refused<HooksView> {
    let hooks = HooksView {
        pre: hook("pre_hook", request.pre_hook.as_deref())?,
        post: hook("post_hook", request.post_hook.as_deref())?,
        freeze: hook("freeze_hook", request.freeze_hook.as_deref())?,
        thaw: hook("thaw_hook", request.thaw_hook.as_deref())?,
        freeze_timeout_seconds: request
            .freeze_hook_timeout_seconds
            .unwrap_or(limits::FREEZE_HOOK_TIMEOUT_DEFAULT.as_secs()),
        timeout_seconds: request
            .hook_timeout_seconds
            .unwrap_or(limits::HOOK_TIMEOUT_DEFAULT.as_secs()),
    };
    check_time("hook_timeout", hooks.timeout_seconds, &limits::HOOK_TIMEOUT)?;
    check_freeze_hook_timeout(hooks.freeze_timeout_seconds)?;
    Ok(hooks)
}

/// How long writers may be held, in milliseconds: enough for the class that is wanted.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_freeze(consistency: LeastConsistency, budget_ms: Option<u64>) -> Refused<()> {
    let range = &limits::FREEZE_BUDGET;
    match budget_ms {
        Some(0) if consistency == LeastConsistency::Filesystem => Err(Refusal::invalid(
            "consistency filesystem needs a freeze: leave freeze_budget out, or allow 10 ms to 10 s",
        )),
        None | Some(0) => Ok(()),
        Some(budget) if range.contains(&Duration::from_millis(budget)) => Ok(()),
        Some(budget) => Err(Refusal::invalid(format!(
            "freeze_budget {budget} ms is out of range: {} ms to {} ms, or 0 to freeze nothing",
            range.start().as_millis(),
            range.end().as_millis()
        ))),
    }
}

/// Whether a class can be had with this use of the tracker.
///
/// # Errors
/// `Invalid`, with what to do.
pub fn check_tracked(consistency: LeastConsistency, tracking: Tracking) -> Refused<()> {
    unreachable_class(consistency, tracking).map_or(Ok(()), |why| Err(Refusal::invalid(why)))
}

/// Why no image can have the class that is wanted, if none can.
pub fn unreachable_class(consistency: LeastConsistency, tracking: Tracking) -> Option<&'static str> {
    let is_unreachable = consistency == LeastConsistency::Filesystem && tracking == Tracking::Off;
    is_unreachable.then_some(
        "consistency filesystem can never be reached with tracking off, because nothing is frozen without the tracker: set \
         tracking to auto, or consistency to crash",
    )
}

/// How long a freeze hook may run.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_freeze_hook_timeout(seconds: u64) -> Refused<()> {
    check_time("freeze_hook_timeout", seconds, &limits::FREEZE_HOOK_TIMEOUT)
}

/// SMC's rule for names, without the colon, and the store's.
///
/// # Errors
/// `Invalid`, with the rule.
pub fn check_name(name: &str) -> Refused<()> {
    let good = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
    let fits = limits::NAME_LEN.contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(good)
        && imagefmt::check_name("job", name).is_ok();
    if fits {
        return Ok(());
    }
    let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    Err(Refusal::invalid(format!(
        "name \"{shown}\" is not allowed: use {} to {} letters, digits, '.', '_' or '-', starting with a letter and not \
         ending in .json or .tmp",
        limits::NAME_LEN.start(),
        limits::NAME_LEN.end()
    )))
}

/// Refuses what only a job with a store can have.
fn check_for_target(request: &CreateJob, name: &str) -> Refused<()> {
    check_no_max_images(request.max_images, name)?;
    check_no_checks(&request.checks, name)?;
    let for_stores = [
        ("take_over", request.take_over),
        ("allow_network_fs", request.allow_network_fs),
    ];
    match for_stores.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((what, _)) => Err(Refusal::invalid(format!(
            "{what} is about a store on this machine, but the images go to target {name}: leave it out"
        ))),
    }
}

/// How much may be sent to a target, as it is kept: `None` for no limit.
///
/// # Errors
/// `Invalid` for a text that is no limit, and with a store.
pub fn send_limit(limit: Option<&str>, place: &Place) -> Refused<Option<String>> {
    let Some(limit) = limit.map(str::trim) else {
        return Ok(None);
    };
    if place.target().is_none() {
        return Err(Refusal::invalid(
            "send_limit is about what is sent to a target, but the images go into a store: bandwidth_limit limits reading",
        ));
    }
    let parsed = parse_send_limit(limit).map_err(|error| Refusal::invalid(format!("send_limit: {error}")))?;
    Ok((parsed != SendLimit::default()).then(|| limit.to_owned()))
}

/// Refuses to say how many images a target keeps.
///
/// # Errors
/// `Invalid`, with what to do.
pub fn check_no_max_images(max_images: Option<u32>, target: &str) -> Refused<()> {
    match max_images {
        None => Ok(()),
        Some(_) => Err(Refusal::invalid(format!(
            "target {target} decides itself how many images it keeps (max_images in its smc-store.toml): leave max_images out"
        ))),
    }
}

/// Refuses checks of images that are not on this machine.
///
/// # Errors
/// `Invalid`, with what to do.
pub fn check_no_checks(checks: &ChecksRequest, target: &str) -> Refused<()> {
    match checks.is_empty() {
        true => Ok(()),
        false => Err(Refusal::invalid(format!(
            "the images are on target {target}, so this machine cannot check them: check them there, with `smc-image verify` \
             and `smc-image boot --check`"
        ))),
    }
}

/// The interval and number of images, which incremental jobs need and others cannot have.
fn schedule(request: &CreateJob, place: &Place, config: &Config) -> Refused<Option<Schedule>> {
    let max_images = request.max_images;
    match (
        request.automatic_incremental,
        request.interval_seconds,
        max_images,
    ) {
        (true, Some(interval_seconds), _) if max_images.is_some() || place.target().is_some() => {
            check_interval(interval_seconds, request.tracking.unwrap_or_default(), config)?;
            max_images.map_or(Ok(()), check_max_images)?;
            Ok(Some(Schedule {
                interval_seconds,
                max_images,
            }))
        }
        (true, None, _) => Err(Refusal::invalid(
            "automatic_incremental needs an interval: the time from the end of a sync to the start of the next, 1h to 7d",
        )),
        (true, Some(_), _) => Err(Refusal::invalid(
            "automatic_incremental needs max_images: the number of images to keep, 1 to 10",
        )),
        (false, None, None) => Ok(None),
        (false, _, _) => Err(Refusal::invalid(
            "interval and max_images are only allowed with automatic_incremental: without it, the job is a single \
             full sync",
        )),
    }
}

fn cluster_size(request: &CreateJob) -> Refused<Option<u32>> {
    match (request.cluster_size_bytes, &request.take_up) {
        (Some(_), Some(from)) => Err(Refusal::invalid(format!(
            "cluster_size cannot be chosen for a job that continues {from}: it has the cluster size of that job"
        ))),
        (Some(bytes), None) => ClusterSize::from_bytes(bytes.into())
            .map(|_| Some(bytes))
            .map_err(|_| {
                Refusal::invalid(format!(
                    "cluster_size must be 16KiB (16384), 64KiB (65536) or 256KiB (262144), but it is {bytes}"
                ))
            }),
        (None, Some(_)) => Ok(None),
        (None, None) => Ok(Some(ClusterSize::K64.bytes())),
    }
}

/// The time from the end of one sync to the start of the next.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_interval(seconds: u64, tracking: Tracking, config: &Config) -> Refused<()> {
    let least = match tracking {
        Tracking::Auto => config.min_interval.min(limits::TRACKED_INTERVAL_MIN),
        Tracking::Off => config.min_interval,
    };
    check_time("interval", seconds, &(least..=*limits::INTERVAL.end()))
}

/// The least time between two scheduled syncs that read a whole disk.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_min_scan_interval(seconds: u64) -> Refused<()> {
    check_time("min_scan_interval", seconds, &limits::MIN_SCAN_INTERVAL)
}

/// The number of images to keep.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_max_images(count: u32) -> Refused<()> {
    in_range("max_images", count, &limits::MAX_IMAGES)
}

/// How long a job may stay unfinished.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_valid_time(valid: Duration) -> Refused<()> {
    check_time("valid_time", valid.as_secs(), &limits::VALID_TIME)
}

/// When a job starts by itself.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_start_at(at: Timestamp, now: &Moment) -> Refused<()> {
    let ahead = at.duration_since(now.wall);
    let most = i64::try_from(limits::START_AHEAD.as_secs()).unwrap_or(i64::MAX);
    if (0..=most).contains(&ahead.as_secs()) {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "start_at must be between now ({}) and 30 days from now, but it is {at}",
        now.wall
    )))
}

/// The limit of reading, in bytes per second.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_bandwidth(bytes: u64) -> Refused<()> {
    if bytes == 0 || bytes >= limits::BANDWIDTH_MIN_BYTES {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "bandwidth_limit {bytes} is out of range: use 0 for no limit, or at least {} bytes per second (64KiB)",
        limits::BANDWIDTH_MIN_BYTES
    )))
}

/// A description for people: one line.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_description(text: &str) -> Refused<()> {
    let length = text.chars().count();
    if length > limits::DESCRIPTION_LEN_MAX {
        return Err(Refusal::invalid(format!(
            "description has {length} characters, but at most {} are allowed",
            limits::DESCRIPTION_LEN_MAX
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::invalid(
            "description contains control characters: it must be a single line of text",
        ));
    }
    Ok(())
}

fn check_token(token: Option<&str>) -> Refused<()> {
    let fits = |token: &str| {
        (1..=limits::CLIENT_TOKEN_LEN_MAX).contains(&token.len())
            && token.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match token {
        Some(token) if !fits(token) => Err(Refusal::invalid(format!(
            "client_token must be 1 to {} printable ASCII characters without spaces",
            limits::CLIENT_TOKEN_LEN_MAX
        ))),
        _ => Ok(()),
    }
}

/// A program by its absolute path; an empty path is no program.
///
/// # Errors
/// `Invalid` for a path that is not absolute or does not name an executable file.
pub fn hook(what: &str, path: Option<&str>) -> Refused<Option<String>> {
    let Some(path) = path.filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let shown = path.escape_debug();
    if !Path::new(path).is_absolute() {
        return Err(Refusal::invalid(format!(
            "{what} must be an absolute path without arguments, but it is \"{shown}\""
        )));
    }
    let metadata = std::fs::metadata(path)
        .map_err(|error| Refusal::invalid(format!("{what} {shown} cannot be run: {error}")))?;
    let executable = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0;
    if !metadata.is_file() || !executable {
        return Err(Refusal::invalid(format!(
            "{what} {shown} cannot be run: it is not an executable file"
        )));
    }
    Ok(Some(path.to_owned()))
}

/// A time in whole seconds, called `what`.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn check_time(what: &str, seconds: u64, range: &RangeInclusive<Duration>) -> Refused<()> {
    let value = Duration::from_secs(seconds);
    if range.contains(&value) {
        return Ok(());
    }
    let shown = |time: &Duration| days(*time);
    Err(Refusal::invalid(format!(
        "{what} {} is out of range: {} to {}",
        shown(&value),
        shown(range.start()),
        shown(range.end())
    )))
}

/// As people write it: whole days as days, and no years.
fn days(time: Duration) -> String {
    const DAY: u64 = 24 * 3600;
    let seconds = time.as_secs();
    if seconds > 0 && seconds.is_multiple_of(DAY) {
        format!("{}d", seconds / DAY)
    } else {
        humantime::format_duration(Duration::from_secs(seconds))
            .to_string()
            .replace(' ', "")
    }
}

/// A number called `what`.
///
/// # Errors
/// `Invalid`, with the value and the allowed range.
pub fn in_range<T: PartialOrd + Display + Copy>(
    what: &str,
    value: T,
    range: &RangeInclusive<T>,
) -> Refused<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "{what} {value} is out of range: {} to {}",
        range.start(),
        range.end()
    )))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::clock::{Clock, HandClock};
    use api::ErrorKind;

    /// A request that is right.
    pub fn good() -> CreateJob {
        CreateJob {
            name: "web01".to_owned(),
            automatic_incremental: true,
            interval_seconds: Some(6 * 3600),
            max_images: Some(3),
            ..CreateJob::default()
        }
    }

    pub fn resolved_input() -> ResolvedInput {
        ResolvedInput {
            place: Place::Store("/srv/store".into()),
            disks: vec![DiskRecord {
                name: "vda".to_owned(),
                path: "/dev/vda".into(),
                size_bytes: 1 << 30,
                identity: Default::default(),
            }],
        }
    }

    fn number<T: TryFrom<i64, Error: std::fmt::Debug>>(value: i64) -> T {
        value.try_into().unwrap()
    }

    fn made(request: &CreateJob) -> Refused<JobRecord> {
        let config = Config::load(None).unwrap();
        new_record(request, resolved_input(), &config, &HandClock::new().now())
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let record = made(&good()).unwrap();
        assert_eq!(record.status, Status::Ready);
        assert_eq!(record.valid_seconds, 30 * 24 * 3600);
        assert_eq!(record.compress_level, 4);
        assert_eq!(record.bandwidth_limit_bytes, 0);
        assert_eq!(record.io_priority, api::IoPriority::None);
        assert_eq!(record.cluster_size_bytes, Some(65536));
        assert_eq!(record.hooks.timeout_seconds, 60);
    }

    #[test]
    fn every_range_is_kept_at_both_ends_and_named() {
        type Set = fn(&mut CreateJob, i64);
        type Row = (&'static str, Set, &'static [i64], &'static [i64], &'static str);
        let rows: [Row; 8] = [
            (
                "interval",
                |job, value| job.interval_seconds = Some(number(value)),
                &[60, 7 * 86400],
                &[59, 7 * 86400 + 1],
                "1m to 7d",
            ),
            (
                "interval",
                |job, value| {
                    job.tracking = Some(Tracking::Off);
                    job.interval_seconds = Some(number(value));
                },
                &[3600, 7 * 86400],
                &[3599, 7 * 86400 + 1],
                "1h to 7d",
            ),
            (
                "min_scan_interval",
                |job, value| job.min_scan_interval_seconds = Some(number(value)),
                &[60, 7 * 86400],
                &[59, 7 * 86400 + 1],
                "1m to 7d",
            ),
            (
                "max_images",
                |job, value| job.max_images = Some(number(value)),
                &[1, 10],
                &[0, 11],
                "1 to 10",
            ),
            (
                "valid_time",
                |job, value| job.valid_seconds = Some(number(value)),
                &[7 * 86400, 90 * 86400],
                &[7 * 86400 - 1, 90 * 86400 + 1],
                "7d to 90d",
            ),
            (
                "compress_level",
                |job, value| job.compress_level = Some(number(value)),
                &[0, 19],
                &[-1, 20],
                "0 to 19",
            ),
            (
                "bandwidth_limit",
                |job, value| job.bandwidth_limit_bytes = Some(number(value)),
                &[0, 65536, 1 << 40],
                &[1, 65535],
                "at least 65536",
            ),
            (
                "hook_timeout",
                |job, value| job.hook_timeout_seconds = Some(number(value)),
                &[1, 3600],
                &[0, 3601],
                "1s to 1h",
            ),
        ];
        for (what, set, fine, wrong, range) in rows {
            for &value in fine {
                let mut job = good();
                set(&mut job, value);
                assert!(made(&job).is_ok(), "{what} {value}");
            }
            for &value in wrong {
                let mut job = good();
                set(&mut job, value);
                let refusal = made(&job).unwrap_err();
                assert_eq!(refusal.kind, ErrorKind::Invalid);
                assert!(
                    refusal.message.starts_with(what) && refusal.message.contains(range),
                    "{refusal}"
                );
            }
        }
    }

    #[test]
    fn names_follow_smcs_rule_without_the_colon() {
        let longest = "a".repeat(64);
        for name in ["ab", "web-01.prod_eu", &longest] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        let longer = "a".repeat(65);
        for name in [
            "",
            "a",
            "1ab",
            "-ab",
            "a:b",
            "a/b",
            "a b",
            "http://x",
            "ä1",
            "a.json",
            "a\u{1b}[2J",
            &longer,
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(!check_name("a\u{1b}[2J").unwrap_err().message.contains('\u{1b}'));
    }

    #[test]
    fn incremental_jobs_need_both_and_others_have_neither() {
        for (automatic, interval, images) in [
            (true, None, Some(3)),
            (true, Some(3600), None),
            (false, Some(3600), None),
            (false, None, Some(1)),
        ] {
            let job = CreateJob {
                automatic_incremental: automatic,
                interval_seconds: interval,
                max_images: images,
                ..good()
            };
            assert!(made(&job).is_err(), "{automatic} {interval:?} {images:?}");
        }
        let once = CreateJob {
            automatic_incremental: false,
            interval_seconds: None,
            max_images: None,
            ..good()
        };
        assert_eq!(made(&once).unwrap().schedule, None);
    }

    #[test]
    fn a_start_lies_within_thirty_days_from_now() {
        let now = HandClock::new().now();
        for (seconds, fine) in [
            (-60, false),
            (0, true),
            (30 * 86400, true),
            (30 * 86400 + 1, false),
        ] {
            let at = crate::clock::later(now.wall, seconds);
            assert_eq!(check_start_at(at, &now).is_ok(), fine, "{seconds}");
        }
    }

    #[test]
    fn a_class_that_cannot_be_reached_is_refused() {
        let wanted = |consistency, tracking| CreateJob {
            consistency: Some(consistency),
            tracking: Some(tracking),
            ..good()
        };
        let refusal = made(&wanted(LeastConsistency::Filesystem, Tracking::Off)).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::Invalid);
        assert!(refusal.message.contains("set tracking to auto"), "{refusal}");
        assert!(made(&wanted(LeastConsistency::Filesystem, Tracking::Auto)).is_ok());
        assert!(made(&wanted(LeastConsistency::Crash, Tracking::Off)).is_ok());
    }

    #[test]
    fn tokens_and_descriptions_are_bounded() {
        for (token, fine) in [
            ("a", true),
            (&*"x".repeat(64), true),
            ("", false),
            ("a b", false),
            ("é", false),
        ] {
            let job = CreateJob {
                client_token: Some(token.to_owned()),
                ..good()
            };
            assert_eq!(made(&job).is_ok(), fine, "{token}");
        }
        for (text, fine) in [
            ("ä".repeat(128), true),
            ("a".repeat(129), false),
            ("a\nb".to_owned(), false),
        ] {
            assert_eq!(check_description(&text).is_ok(), fine, "{text}");
        }
    }

    #[test]
    fn hooks_are_programs_that_are_there() {
        assert_eq!(
            hook("pre_hook", Some("/bin/true")),
            Ok(Some("/bin/true".to_owned()))
        );
        assert_eq!(hook("pre_hook", Some("")), Ok(None));
        for path in ["true", "/nonexistent", "/etc/passwd", "/tmp"] {
            assert!(hook("pre_hook", Some(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn the_cluster_size_is_the_other_jobs_for_a_job_that_takes_it_up() {
        let job = CreateJob {
            take_up: Some("db".to_owned()),
            ..good()
        };
        assert_eq!(made(&job).unwrap().cluster_size_bytes, None);
        let both = CreateJob {
            cluster_size_bytes: Some(65536),
            ..job
        };
        assert!(made(&both).is_err());
        let odd = CreateJob {
            cluster_size_bytes: Some(4096),
            ..good()
        };
        assert!(made(&odd).is_err());
    }
}
