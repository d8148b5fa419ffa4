//! `smcctl job create`: a new job.

use crate::client::{Request, job};
use crate::commands::disks;
use crate::commands::estimate::{Disks, Place};
use crate::commands::job::checks::Checks;
use crate::commands::job::name::JobName;
use crate::context::Context;
use crate::{values, view};
use anyhow::Context as _;
use api::{CreateJob, IoPriority, JobView, LeastConsistency, OnReadError, Status, Tracking};
use cli::exit::Advise;
use cli::exit::WrongUse;
use cli::output;
use cli::paint::Paint;
use jiff::Timestamp;
use std::process::ExitCode;

/// Create a job
///
/// The first sync stores the disks completely. With --interval and --max-images, incremental syncs follow,
/// which store what changed. With --once, the job is a single full sync. No disk is read before the job is
/// started: by --start, --start-at or `smcctl job start`. With --target, the images go to another machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobName,
    #[command(flatten)]
    disks: Disks,
    #[command(flatten)]
    place: Place,
    /// Time from the end of a sync to the start of the next, 1h to 7d; from 1min where the disks are tracked
    #[arg(long, value_name = "TIME", value_parser = values::seconds, conflicts_with = "once")]
    interval: Option<u64>,
    /// Number of images to keep, 1 to 10: after each sync, the oldest ones that are not in use are deleted. With --target, it is
    /// the target that decides
    #[arg(long, value_name = "N", conflicts_with = "once")]
    max_images: Option<u32>,
    /// A single full sync, without incremental ones
    #[arg(long)]
    once: bool,
    /// Description for people, at most 128 characters
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// Time at which the job starts by itself, for example +2h or 2026-11-24T03:00:00+01:00
    #[arg(long, value_name = "WHEN", value_parser = values::start_at)]
    start_at: Option<Timestamp>,
    /// How long the job may stay unfinished, 7d to 90d [default: 30d]
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    valid: Option<u64>,
    /// zstd compression level, 0 to 19; 0 means no compression [default: 4]
    #[arg(long, value_name = "N")]
    compress_level: Option<i32>,
    /// Limit of reading from all disks together, per second, for example 50MiB; 0 means no limit
    #[arg(long, value_name = "SIZE", value_parser = cli::units::parse_rate)]
    bandwidth_limit: Option<u64>,
    /// Limit of what is sent to the target, per second, which may depend on the time of day: "20MiB, 22:00-06:00 unlimited"
    #[arg(long, value_name = "LIMIT", requires = "target")]
    send_limit: Option<String>,
    /// I/O priority of reads from the disks: none, idle (other reads and writes come first), or best-effort:0 (first) to
    /// best-effort:7 (last). The I/O schedulers bfq and mq-deadline honour it [default: none]
    #[arg(long, value_name = "CLASS[:N]")]
    io_priority: Option<IoPriority>,
    /// How changes are found: auto (the disks are tracked where the machine can, so that a sync reads only what was
    /// written to) or off (every sync reads the disks completely) [default: auto]
    #[arg(long, value_name = "auto|off", value_parser = values::tracking)]
    tracking: Option<Tracking>,
    /// Least time between the starts of two scheduled syncs that read a whole disk, 1min to 7d. It matters for intervals
    /// below it, while a disk cannot be tracked [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    min_scan_interval: Option<u64>,
    #[command(flatten)]
    checks: Checks,
    /// Unit of comparison and storage: 16KiB, 64KiB or 256KiB [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = values::cluster_size)]
    cluster_size: Option<u32>,
    /// Program to run before every sync; if it fails, the sync fails
    #[arg(long, value_name = "PATH", value_parser = values::path)]
    pre_hook: Option<String>,
    /// Program to run after every sync, whether it succeeded or not
    #[arg(long, value_name = "PATH", value_parser = values::path)]
    post_hook: Option<String>,
    /// How long each of these programs, and each thaw hook, may run, 1s to 1h [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    hook_timeout: Option<u64>,
    /// Program to run just before the filesystems are frozen; if it fails or takes too long, nothing is frozen
    #[arg(long, value_name = "PATH", value_parser = values::path)]
    freeze_hook: Option<String>,
    /// Program to run when nothing is frozen any more, whatever became of the freeze hook
    #[arg(long, value_name = "PATH", value_parser = values::path)]
    thaw_hook: Option<String>,
    /// How long each freeze hook may run, 1s to 1min [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    freeze_hook_timeout: Option<u64>,
    /// Finished job to continue: the first sync stores what differs from its newest image
    #[arg(long, value_name = "JOB")]
    take_up: Option<String>,
    /// Token that makes the request safe to repeat: with the same token, no second job is created
    #[arg(long, value_name = "TOKEN")]
    client_token: Option<String>,
    /// Accept disks whose serial number, WWN, UUID or backing file differs from the one in the images
    #[arg(long)]
    accept_changed_disk: bool,
    /// What becomes of sectors that cannot be read: stop (the sync fails and names them) or skip (the image records them as
    /// unreadable and has everything else: for a disk that is failing) [default: stop]
    #[arg(long, value_name = "stop|skip", value_parser = values::on_read_error)]
    on_read_error: Option<OnReadError>,
    /// Consistency class that images are to have at least: any, crash (what a power cut would leave) or filesystem (all
    /// filesystems at one instant: they are frozen for a moment). An image below it is kept, with a warning [default: any]
    #[arg(long, value_name = "any|crash|filesystem")]
    consistency: Option<LeastConsistency>,
    /// Let a sync fail whose image has not that class; the image is kept all the same
    #[arg(long, requires = "consistency")]
    require_consistency: bool,
    /// Freeze the filesystems on the disks for a moment, so that an image has all disks at one instant. BUDGET is how long writers
    /// may be held, 10ms to 10s, or off [default: 200ms; without this option, --consistency=filesystem means it too]
    #[arg(long, value_name = "BUDGET", num_args = 0..=1, require_equals = true, default_missing_value = "200ms", value_parser = values::freeze_budget)]
    freeze: Option<u64>,
    /// Take over images that belong to another machine, or to a job that is not known to be over
    #[arg(long)]
    take_over: bool,
    /// Allow a new store on NFS, CIFS, FUSE or similar, which may not keep locks and durability guarantees
    #[arg(long)]
    allow_network_fs: bool,
    /// Start the job immediately
    #[arg(long)]
    start: bool,
}

/// Creates the job, and starts it if asked for.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let wanted = wanted(args)?;
    if args.disks.all {
        show_choice(context, &args.place)?;
    }
    let created = context.client.send(&Request::post("/jobs").with(&wanted)?)?;
    if context.json {
        created.print_json()?;
    }
    let job: JobView = created.view()?;
    if !created.is_new() {
        output::complain(format_args!(
            "smcctl: {} was already created with the same client token",
            job.name
        ));
    }
    // One that was created by an earlier request may have been started since.
    if args.start && job.status == Status::Ready {
        return start(context, &args.job.name);
    }
    if !context.json {
        context.print(&view::job::brief(context.paint, &job))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn start(context: &Context, name: &str) -> anyhow::Result<ExitCode> {
    let started = context.client.send(&Request::post(job(name, Some("start"))));
    let started = started
        .with_context(|| format!("{name} was created but could not be started"))
        .advise(format!("`smcctl job start {name}` tries again"))?;
    context.tell(&started, view::job::brief)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints which disks --all includes.
fn show_choice(context: &Context, place: &Place) -> anyhow::Result<()> {
    let answer = context.client.send(&disks::request(place))?;
    if context.json {
        let lines = view::disks::chosen(Paint::none(), &answer.view()?);
        lines.iter().for_each(output::complain);
        return Ok(());
    }
    context.print(&view::disks::chosen(context.paint, &answer.view()?))
}

fn wanted(args: &Args) -> anyhow::Result<CreateJob> {
    let is_kept_there = args.place.target.is_some();
    let scheduled = args.interval.is_some() && (args.max_images.is_some() || is_kept_there);
    if !scheduled && !args.once {
        let advice = match is_kept_there {
            true => {
                "say --interval TIME for a sync again and again, as in --interval 6h, or --once for a single full one"
            }
            false => {
                "say --interval TIME and --max-images N for a sync again and again, as in --interval 6h \
                 --max-images 3, or --once for a single full one"
            }
        };
        return Err(WrongUse(advice.to_owned()).into());
    }
    Ok(CreateJob {
        name: args.job.name.clone(),
        description: args.description.clone(),
        client_token: args.client_token.clone(),
        store: args.place.store.clone(),
        target: args.place.target.clone(),
        disks: args.disks.disks.clone(),
        all_disks: args.disks.all,
        automatic_incremental: scheduled,
        interval_seconds: args.interval,
        max_images: args.max_images,
        start_at: args.start_at,
        valid_seconds: args.valid,
        compress_level: args.compress_level,
        bandwidth_limit_bytes: args.bandwidth_limit,
        send_limit: args.send_limit.clone(),
        io_priority: args.io_priority,
        cluster_size_bytes: args.cluster_size,
        tracking: args.tracking,
        min_scan_interval_seconds: args.min_scan_interval,
        checks: args.checks.request(),
        pre_hook: args.pre_hook.clone(),
        post_hook: args.post_hook.clone(),
        hook_timeout_seconds: args.hook_timeout,
        freeze_hook: args.freeze_hook.clone(),
        thaw_hook: args.thaw_hook.clone(),
        freeze_hook_timeout_seconds: args.freeze_hook_timeout,
        take_up: args.take_up.clone(),
        accept_changed_disk: args.accept_changed_disk,
        on_read_error: args.on_read_error,
        consistency: args.consistency,
        require_consistency: args.require_consistency,
        freeze_budget_ms: args.freeze,
        take_over: args.take_over,
        allow_network_fs: args.allow_network_fs,
    })
}
