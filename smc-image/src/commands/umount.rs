//! `smc-image umount`: the end of `smc-image mount`.

use crate::context::Context;
use crate::mount::{self, teardown};
use anyhow::Context as _;
use cli::output;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Unmount what 'smc-image mount' mounted
///
/// Returns when the mount, its loop device and its process are gone. Also removes what is left of a mount whose
/// process was killed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory on which it is mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// What `--json` shows.
#[derive(Debug, Serialize)]
struct Unmounted<'a> {
    image: &'a str,
    partition: Option<u32>,
    dir: &'a Path,
    read_errors: Vec<&'a str>,
}

/// Unmounts it.
///
/// # Errors
/// As [`unmount`].
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    mount::require_root()?;
    let dir = args
        .dir
        .canonicalize()
        .with_context(|| format!("find {}", args.dir.display()))?;
    let unmounted = teardown::unmount(&dir)?;
    let (image, partition) = (&unmounted.record.image, unmounted.record.partition);
    let read_errors: Vec<&str> = unmounted.complaints.lines().map(str::trim).collect();
    if context.json {
        output::json(&Unmounted {
            image,
            partition,
            dir: &dir,
            read_errors,
        })?;
    } else {
        output::line(format!("unmounted {image} from {}", dir.display()))?;
        for error in read_errors {
            output::complain(format_args!("smc-image: while it was mounted: {error}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
