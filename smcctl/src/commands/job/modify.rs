//! `smcctl job modify`: other parameters.

use crate::client::{Request, job};
use crate::commands::job::JobName;
use crate::context::Context;
use crate::{values, view};
use api::ModifyJob;
use cli::exit::WrongUse;
use jiff::Timestamp;
use std::process::ExitCode;

/// Change parameters of a job; what is not named stays
///
/// Interval and number of images count after the next sync has ended, description and bandwidth limit at once,
/// the others for the next sync. `smcctl job show` shows what is in force and what is to come.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobName,
    /// Whatever helps people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// From the end of a sync to the start of the next, as in 6h
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    interval: Option<u64>,
    /// Images to keep
    #[arg(long, value_name = "N")]
    max_images: Option<u32>,
    /// When to start by itself: +2h from now, or as in 2026-11-24T03:00:00+01:00
    #[arg(long, value_name = "WHEN", value_parser = values::start_at)]
    start_at: Option<Timestamp>,
    /// How long the job may stay unfinished after its creation, as in 30d
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    valid: Option<u64>,
    /// zstd level; 0 stores everything as it is
    #[arg(long, value_name = "N")]
    compress_level: Option<i32>,
    /// Read at most so much in a second, as in 50MiB; 0 is no limit
    #[arg(long, value_name = "SIZE", value_parser = cli::units::parse_rate)]
    bandwidth_limit: Option<u64>,
    /// Program to run before every sync; an empty PATH is none
    #[arg(long, value_name = "PATH", value_parser = values::path_or_none)]
    pre_hook: Option<String>,
    /// Program to run after every sync; an empty PATH is none
    #[arg(long, value_name = "PATH", value_parser = values::path_or_none)]
    post_hook: Option<String>,
    /// How long each of these programs may run, as in 60s
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    hook_timeout: Option<u64>,
    /// Whether to go on although a disk is not the one that the images know
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    accept_changed_disk: Option<bool>,
}

/// Changes what was named.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let wanted = wanted(args);
    if wanted == ModifyJob::default() {
        let advice = format!(
            "say what to change of {}: `smcctl job modify --help` lists it",
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
        interval_seconds: args.interval,
        max_images: args.max_images,
        compress_level: args.compress_level,
        pre_hook: args.pre_hook.clone(),
        post_hook: args.post_hook.clone(),
        hook_timeout_seconds: args.hook_timeout,
        start_at: args.start_at,
        valid_seconds: args.valid,
        accept_changed_disk: args.accept_changed_disk,
    }
}
