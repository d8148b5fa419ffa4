//! `smcctl job modify`: other parameters.

use crate::client::{Request, job};
use crate::commands::job::checks::Checks;
use crate::commands::job::name::JobName;
use crate::context::Context;
use crate::{values, view};
use api::{IoPriority, LeastConsistency, ModifyJob, OnReadError, Tracking};
use cli::exit::WrongUse;
use jiff::Timestamp;
use std::process::ExitCode;

/// Change parameters of a job
///
/// Parameters that are not named stay as they are. Interval and number of images take effect when the next sync
/// has ended; description, bandwidth limit, least time between scans, checks and valid time immediately; the others with the next sync.
/// `smcctl job show` shows current and future values.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobName,
    /// Description for people, at most 128 characters
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Time from the end of a sync to the start of the next, 1h to 7d; from 1min where the disks are tracked
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    interval: Option<u64>,
    /// Number of images to keep, 1 to 10
    #[arg(long, value_name = "N")]
    max_images: Option<u32>,
    /// Time at which the job starts by itself, for example +2h or 2026-11-24T03:00:00+01:00
    #[arg(long, value_name = "WHEN", value_parser = values::start_at)]
    start_at: Option<Timestamp>,
    /// How long the job may stay unfinished after its creation, 7d to 90d
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    valid: Option<u64>,
    /// zstd compression level, 0 to 19; 0 means no compression
    #[arg(long, value_name = "N")]
    compress_level: Option<i32>,
    /// Limit of reading from all disks together, per second, for example 50MiB; 0 means no limit
    #[arg(long, value_name = "SIZE", value_parser = cli::units::parse_rate)]
    bandwidth_limit: Option<u64>,
    /// Limit of what is sent to the target, per second, at once: "20MiB, 22:00-06:00 unlimited", or unlimited
    #[arg(long, value_name = "LIMIT")]
    send_limit: Option<String>,
    /// I/O priority of reads from the disks: none, idle (other reads and writes come first), or best-effort:0 (first) to
    /// best-effort:7 (last). The I/O schedulers bfq and mq-deadline honour it
    #[arg(long, value_name = "CLASS[:N]")]
    io_priority: Option<IoPriority>,
    /// How changes are found: auto or off
    #[arg(long, value_name = "auto|off", value_parser = values::tracking)]
    tracking: Option<Tracking>,
    /// Least time between the starts of two scheduled syncs that read a whole disk, 1min to 7d
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    min_scan_interval: Option<u64>,
    #[command(flatten)]
    checks: Checks,
    /// Program to run before every sync; an empty PATH removes it
    #[arg(long, value_name = "PATH", value_parser = values::path_or_none)]
    pre_hook: Option<String>,
    /// Program to run after every sync; an empty PATH removes it
    #[arg(long, value_name = "PATH", value_parser = values::path_or_none)]
    post_hook: Option<String>,
    /// How long each of these programs, and each thaw hook, may run, 1s to 1h
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    hook_timeout: Option<u64>,
    /// Program to run just before the filesystems are frozen; if it fails or takes too long, nothing is frozen; an empty
    /// PATH removes it
    #[arg(long, value_name = "PATH", value_parser = values::path_or_none)]
    freeze_hook: Option<String>,
    /// Program to run when nothing is frozen any more, whatever became of the freeze hook; an empty PATH removes it
    #[arg(long, value_name = "PATH", value_parser = values::path_or_none)]
    thaw_hook: Option<String>,
    /// How long each freeze hook may run, 1s to 1min
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    freeze_hook_timeout: Option<u64>,
    /// Whether to accept disks whose identity differs from the one in the images, for the next image
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    accept_changed_disk: Option<bool>,
    /// What becomes of sectors that cannot be read: stop (the sync fails and names them) or skip (the image records them as
    /// unreadable and has everything else)
    #[arg(long, value_name = "stop|skip", value_parser = values::on_read_error)]
    on_read_error: Option<OnReadError>,
    /// Consistency class that images are to have at least: any, crash (what a power cut would leave) or filesystem (all
    /// filesystems at one instant: they are frozen for a moment). An image below it is kept, with a warning
    #[arg(long, value_name = "any|crash|filesystem")]
    consistency: Option<LeastConsistency>,
    /// Whether a sync fails whose image has not that class; the image is kept all the same
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    require_consistency: Option<bool>,
    /// Freeze the filesystems on the disks for a moment, so that an image has all disks at one instant. BUDGET is how long writers
    /// may be held, 10ms to 10s, or off [default: 200ms]
    #[arg(long, value_name = "BUDGET", num_args = 0..=1, require_equals = true, default_missing_value = "200ms", value_parser = values::freeze_budget)]
    freeze: Option<u64>,
    /// Whether to take over images that belong to another machine or job, with the next image
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    take_over: Option<bool>,
}

/// Changes what was named.
///
/// # Errors
/// Where nothing is to be changed; when smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let wanted = wanted(args);
    if wanted == ModifyJob::default() {
        let advice = format!(
            "nothing to change for {}: `smcctl job modify --help` lists the parameters",
            args.job.name
        );
        return Err(WrongUse(advice).into());
    }
    let modify = Request::patch(job(&args.job.name, None)).with(&wanted)?;
    let answer = context.client.send(&modify)?;
    context.tell(&answer, view::job::parameters)?;
    Ok(ExitCode::SUCCESS)
}

fn wanted(args: &Args) -> ModifyJob {
    ModifyJob {
        description: args.description.clone(),
        bandwidth_limit_bytes: args.bandwidth_limit,
        send_limit: args.send_limit.clone(),
        io_priority: args.io_priority,
        interval_seconds: args.interval,
        max_images: args.max_images,
        compress_level: args.compress_level,
        tracking: args.tracking,
        min_scan_interval_seconds: args.min_scan_interval,
        checks: args.checks.request(),
        pre_hook: args.pre_hook.clone(),
        post_hook: args.post_hook.clone(),
        hook_timeout_seconds: args.hook_timeout,
        freeze_hook: args.freeze_hook.clone(),
        thaw_hook: args.thaw_hook.clone(),
        freeze_hook_timeout_seconds: args.freeze_hook_timeout,
        start_at: args.start_at,
        valid_seconds: args.valid,
        accept_changed_disk: args.accept_changed_disk,
        on_read_error: args.on_read_error,
        consistency: args.consistency,
        require_consistency: args.require_consistency,
        freeze_budget_ms: args.freeze,
        take_over: args.take_over,
    }
}
