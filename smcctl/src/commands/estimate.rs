//! `smcctl estimate`: what a job would cost.

use crate::client::Request;
use crate::context::Context;
use crate::{values, view};
use api::{DiskRequest, EstimateRequest};
use std::process::ExitCode;

/// Estimate how long syncs would take, and how much space they would need
///
/// Reads from each disk, and writes to the store or sends to the target, for a few seconds.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    disks: Disks,
    #[command(flatten)]
    place: Place,
    /// zstd compression level to measure with
    #[arg(long, value_name = "N")]
    compress_level: Option<i32>,
    /// How long to read from each disk, and to write to the store or send to the target
    #[arg(long, value_name = "N")]
    seconds: Option<u32>,
}

/// Where the images go.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Place {
    /// Directory of the store [default: the store in smcd's configuration]
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    pub store: Option<String>,
    /// Target that takes the images, in place of a store: another machine, which `smcd target ls` lists
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
}

impl Place {
    /// As parameters of a request.
    pub fn query(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let store = self.store.as_deref().map(|store| ("store", store));
        store
            .into_iter()
            .chain(self.target.as_deref().map(|target| ("target", target)))
    }
}

/// The disks of a request.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Disks {
    /// A disk (a block device or a file), optionally with its name in the job [default name: the device's name];
    /// may be repeated
    #[arg(long = "disk", value_name = "[NAME=]DEV", value_parser = values::disk)]
    pub disks: Vec<DiskRequest>,
    /// Include every disk that can be migrated; `smcctl disks` lists them
    #[arg(long)]
    pub all: bool,
}

/// Prints what was measured.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let wanted = EstimateRequest {
        disks: args.disks.disks.clone(),
        all_disks: args.disks.all,
        store: args.place.store.clone(),
        target: args.place.target.clone(),
        compress_level: args.compress_level,
        seconds: args.seconds,
    };
    let answer = context
        .client
        .send(&Request::post("/estimate").with(&wanted)?.slow())?;
    context.tell(&answer, view::estimate::lines)?;
    Ok(ExitCode::SUCCESS)
}
