//! `smc-image gc`: frees what crashes left behind.

use crate::commands::rm;
use crate::context::Context;
use crate::exit;
use cli::output;
use imagefmt::{Error, ErrorKind, JobImages, Store};
use serde_json::json;
use std::collections::HashSet;
use std::process::ExitCode;

/// Free space that no image needs
///
/// Deleting an image frees its space immediately. gc finds what a crash or a kill left behind: images whose deletion
/// was interrupted, layers of syncs that never ended, and anything else that no image needs. It keeps what an
/// unfinished sync has stored, for the next sync to resume, and skips jobs that are being synced.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these jobs
    #[arg(value_name = "JOB", value_parser = job_name)]
    jobs: Vec<String>,
}

fn job_name(text: &str) -> Result<String, String> {
    imagefmt::check_name("job", text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Collects the garbage of one chain after another; one that fails keeps no other from it.
///
/// # Errors
/// A store that cannot be opened, read or written, or that another process is writing to.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let mut code = ExitCode::SUCCESS;
    let (chains, unread) = chains(&store, &args.jobs)?;
    for error in unread {
        code = rm::worse(code, exit::report(&error.into()));
    }
    for images in chains {
        let job = images.job();
        let done = match store.gc(job) {
            Ok(reclaimed) => {
                let printed = if context.json {
                    let space = rm::space(&reclaimed);
                    output::json(&json!({ "job": job, "chain": images.chain(), "space": space }))
                } else {
                    output::line(format_args!("{job}: {}", rm::in_words(&reclaimed)))
                };
                output::unless_closed(printed)?;
                rm::judge(job, &reclaimed)
            }
            Err(error) if error.kind() == ErrorKind::Busy && args.jobs.is_empty() => {
                output::complain(format_args!("smc-image: {job} is skipped: {error}"));
                ExitCode::SUCCESS
            }
            Err(error) => exit::report(&error.into()),
        };
        code = rm::worse(code, done);
    }
    Ok(code)
}

/// One job of each chain that is to be cleaned up, and why there may be more.
fn chains(store: &Store, jobs: &[String]) -> imagefmt::Result<(Vec<JobImages>, Vec<Error>)> {
    let (mut found, unread): (Vec<JobImages>, _) = if jobs.is_empty() {
        let (jobs, unread) = store.readable_jobs()?;
        (jobs.into_values().collect(), unread)
    } else {
        let named = jobs.iter().map(|job| store.job(job));
        (named.collect::<imagefmt::Result<_>>()?, Vec::new())
    };
    let mut chains = HashSet::new();
    found.retain(|images| chains.insert(images.chain().to_owned()));
    Ok((found, unread))
}
