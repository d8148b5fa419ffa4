//! What smcd can be asked for.

use crate::engine::DiskArg;
use anyhow::{Context, Result};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use imagefmt::ClusterSize;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Block-level server migration: reads disks while the server runs and writes chained images.
///
/// Without a command it is the service: it keeps jobs, which `smcctl` controls.
#[derive(Debug, Parser)]
#[command(name = "smcd", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Configuration file [default: /etc/smc/smcd.toml, which need not exist].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check the configuration and do nothing else.
    #[arg(long)]
    pub check_config: bool,

    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sync one or several disks into one image, now.
    ///
    /// The first sync of a job is full; every later one stores only what changed. The disks are opened
    /// read-only and may be in use; the image says what that makes of it (its consistency).
    Sync(SyncArgs),

    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },

    /// Write the man pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory.
        dir: PathBuf,
    },

    /// Print the OpenAPI document of the control API.
    Openapi,
}

/// Prints a completion script.
pub fn print_completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "smcd", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes a page for smcd and one for each of its commands.
pub fn write_man_pages(dir: &Path) -> Result<()> {
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("write man pages to {}", dir.display()))
}

/// Prints to standard output; nobody reading it is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Directory that holds the images; an empty or missing one becomes a store.
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,

    /// Name of the job: its images are JOB/1, JOB/2, and so on.
    #[arg(long, value_name = "NAME")]
    pub job: String,

    /// A disk: a block device or a regular file. NAME is the disk's name in the job [default: the device's].
    #[arg(long = "disk", value_name = "[NAME=]DEV", required = true)]
    pub disks: Vec<DiskArg>,

    /// Continue the chain of this job, which is finished: the first image of the new job is incremental, on
    /// that job's newest image.
    #[arg(long, value_name = "JOB", conflicts_with = "cluster_size")]
    pub take_up: Option<String>,

    /// Keep this many images of the job: afterwards, the earliest ones that nobody uses are deleted.
    #[arg(long, value_name = "1..10", value_parser = clap::value_parser!(u8).range(1..=10))]
    pub max_images: Option<u8>,

    /// Unit of comparison: 16KiB, 64KiB or 256KiB; fixed with a job's first image [default: 64KiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_cluster_size)]
    pub cluster_size: Option<ClusterSize>,

    /// zstd level; 0 stores everything raw, and what does not look compressible is raw at any level.
    #[arg(long, value_name = "0..19", default_value_t = changetrack::COMPRESS_LEVEL, value_parser = clap::value_parser!(i32).range(0..=19))]
    pub compress_level: i32,

    /// Read no more than this many bytes a second, of all disks together; 0 is no limit.
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg)]
    pub bandwidth_limit: Option<u64>,

    /// Make what is stored so far durable this often, so that a sync that is cut short is gone on with from
    /// there; 0 after every chunk. Each one waits for the writes in flight.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub checkpoint_every: u32,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// Go on although a disk's serial number, WWN or backing file is not the one that the job knows.
    #[arg(long)]
    pub accept_changed_disk: bool,

    /// Make a new store on NFS, CIFS, FUSE or the like, where locks and durability are not ours to promise.
    #[arg(long)]
    pub allow_network_fs: bool,
}

fn parse_size_arg(text: &str) -> std::result::Result<u64, String> {
    let config = parse_size::Config::new().with_binary();
    config
        .parse_size(text)
        .map_err(|error| format!("{error}; write a size such as 50MiB"))
}

fn parse_cluster_size(text: &str) -> std::result::Result<ClusterSize, String> {
    let bytes = parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|error| format!("{error}; write 16KiB, 64KiB or 256KiB"))?;
    ClusterSize::from_bytes(bytes).map_err(|_| "only 16KiB, 64KiB and 256KiB exist".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_sizes_are_read_as_people_write_them() {
        for text in ["64KiB", "64k", "65536", "64 KB"] {
            assert_eq!(parse_cluster_size(text), Ok(ClusterSize::K64), "{text}");
        }
        assert!(parse_cluster_size("32KiB").is_err());
        assert!(parse_cluster_size("big").is_err());
    }

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
