//! `smcctl job delete`: forget a job, and its images if asked for.

use crate::client::{Request, job, with_query};
use crate::commands::job::name::JobName;
use crate::context::Context;
use crate::view;
use anyhow::bail;
use api::JobView;
use cli::exit::WrongUse;
use cli::text::count;
use cli::{ask, output};
use std::process::ExitCode;

/// Delete a job; its images remain, unless --purge is given
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobName,
    /// Delete the job's images too
    #[arg(long)]
    purge: bool,
    /// Do not ask before images are deleted
    #[arg(long, short)]
    yes: bool,
}

/// Deletes it, after a question where images go with it.
///
/// # Errors
/// When it is not confirmed; when smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let name = &args.job.name;
    if args.purge && !args.yes {
        confirm(context, name)?;
    }
    let purge = args.purge.then_some(("purge", "true"));
    let answer = context
        .client
        .send(&Request::delete(with_query(&job(name, None), purge)))?;
    if context.json || !answer.is_empty() {
        context.tell(&answer, view::job::brief)?;
    } else if args.purge {
        output::line(format_args!("{name} and its images are deleted"))?;
    } else {
        output::line(format_args!("{name} is deleted; its images remain"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn confirm(context: &Context, name: &str) -> anyhow::Result<()> {
    if !ask::is_possible() {
        let why = format!(
            "the images of {name} would be deleted, and there is no terminal to ask on: give --yes if that is \
             what you want"
        );
        return Err(WrongUse(why).into());
    }
    let job: JobView = context.client.send(&Request::get(job(name, None)))?.view()?;
    let images = match job.images.as_slice() {
        [] => "what is left of it".to_owned(),
        images => format!("{} ({})", count(images.len(), "image"), images.join(", ")),
    };
    let store = job.store.as_deref().unwrap_or("its store");
    output::complain(format_args!(
        "Job {} and {images} in {store} will be gone for good.",
        job.name
    ));
    if !ask::is_confirmed("Delete them?")? {
        bail!("not confirmed: {name} was not changed");
    }
    Ok(())
}
