//! The command line of smcd.

use crate::engine::DiskArg;
use anyhow::{Context, Result};
use api::{LeastConsistency, OnReadError, limits};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use imagefmt::ClusterSize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Block-level server migration: reads disks while the server runs and writes chained images.
///
/// Without a command, smcd runs as the service that executes jobs; `smcctl` controls it.
#[derive(Debug, Parser)]
#[command(name = "smcd", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Configuration file [default: /etc/smc/smcd.toml, if it exists].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check the configuration and exit.
    #[arg(long)]
    pub check_config: bool,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What becomes of sectors that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadErrors {
    /// The sync fails and names the first of them.
    Stop,
    /// The image records them as unreadable and has everything else.
    Skip,
}

impl From<ReadErrors> for OnReadError {
    fn from(asked: ReadErrors) -> Self {
        match asked {
            ReadErrors::Stop => Self::Stop,
            ReadErrors::Skip => Self::Skip,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sync one or more disks into one image, now, without the service.
    ///
    /// The first sync of a job is full; every later one stores only what changed. The disks are opened
    /// read-only and may be in use; the image records how consistent it therefore is (its consistency class).
    Sync(Box<SyncArgs>),

    /// Show which disks are tracked, what was written to them, and whether the next sync can rely on it; without the service.
    Tracker(TrackerArgs),

    /// Make targets known that take images over the network, and show or forget them.
    Target(TargetArgs),

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

    /// Thaw what a process of smc left frozen that has died, and its watchdog too. The service's unit runs it after each stop.
    #[command(hide = true)]
    Thaw {
        /// Where the lists of what may be frozen are.
        #[arg(long, value_name = "DIR", default_value = freeze::LIST_DIRECTORY)]
        lists: PathBuf,
    },

    /// Thaw what the process that starts this froze, when its time is up, and when it dies. smcd starts it before it freezes.
    #[command(hide = true)]
    ThawWatchdog(WatchdogArgs),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TrackerArgs {
    #[command(subcommand)]
    pub command: Option<TrackerCommand>,

    /// Where the tracker is pinned: a directory on a mounted BPF filesystem.
    #[arg(long, value_name = "DIR", default_value = tracker::PIN_DIRECTORY, global = true)]
    pub tracker_directory: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum TrackerCommand {
    /// Stop tracking: take the tracker out of the kernel. The next syncs read whole disks.
    ///
    /// It is refused while the service runs: `smcctl tracker remove` knows which jobs use the tracker.
    Remove,
}

#[derive(Debug, Args)]
pub struct TargetArgs {
    #[command(subcommand)]
    pub command: TargetCommand,

    /// Where the targets that this machine knows are kept.
    #[arg(long, value_name = "DIR", default_value = remote::DIRECTORY, global = true)]
    pub targets_directory: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum TargetCommand {
    /// Enrol this machine at a target: make a key, and have the target sign it.
    Add {
        /// Name of the target on this machine.
        name: String,
        /// The line that `smc-store enrol` has printed on the target; read from standard input if it is -. It is used up by this.
        line: String,
        /// The target is known already: get another key in place of the one that is of no use any more. Jobs continue with their images.
        #[arg(long)]
        again: bool,
    },

    /// List targets, and whether they can be reached.
    Ls {
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },

    /// Have the target sign a new key. A sync does this by itself when two thirds of a certificate's time are over.
    Renew {
        /// Name of the target.
        name: String,
    },

    /// Forget a target: this machine's key for it is deleted. Images there stay.
    Rm {
        /// Name of the target.
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct WatchdogArgs {
    /// The list of what may be frozen.
    #[arg(long, value_name = "FILE")]
    pub list: PathBuf,

    /// Move into a cgroup of its own.
    #[arg(long)]
    pub own_cgroup: bool,

    /// Inherited descriptors: the connection, the process, and one on each filesystem.
    #[arg(value_name = "FD", required = true)]
    pub descriptors: Vec<i32>,
}

/// Prints a completion script.
///
/// # Errors
/// Output that cannot be written.
pub fn print_completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "smcd", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes a page for smcd and one for each of its commands.
///
/// # Errors
/// A directory that cannot be written to.
pub fn write_man_pages(dir: &Path) -> Result<()> {
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("write man pages to {}", dir.display()))
}

/// Prints to standard output; a closed pipe is not an error.
///
/// # Errors
/// Output that cannot be written.
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
#[command(group(clap::ArgGroup::new("place").required(true).args(["store", "target"])))]
pub struct SyncArgs {
    /// Directory of the store that holds the images; created if it is missing or empty.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,

    /// Send the image to this target instead of writing it into a store of this machine. `smcd target add` makes one known.
    /// How many images are kept there, and for how long, is decided there.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["max_images", "take_over", "verify", "allow_network_fs"])]
    pub target: Option<String>,

    /// Limit of what is sent to the target, in bytes per second, for example 20MiB; 0 and `unlimited` mean no limit. It may depend
    /// on the local time of day: "20MiB, 22:00-06:00 unlimited".
    #[arg(long, value_name = "LIMIT", requires = "target", value_parser = crate::targets::parse_send_limit)]
    pub send_limit: Option<remote::SendLimit>,

    /// Data connections to the target: several fill a long or lossy line that one does not.
    #[arg(long, value_name = "1..8", requires = "target", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub connections: u32,

    /// How long the sync waits for a target that is away. After that it ends, and the next one resumes it.
    #[arg(long, value_name = "TIME", requires = "target", default_value = "10min", value_parser = ::cli::units::parse_duration)]
    pub target_timeout: Duration,

    /// Where the targets that this machine knows are kept.
    #[arg(long, value_name = "DIR", default_value = remote::DIRECTORY)]
    pub targets_directory: PathBuf,

    /// Name of the job: its images are called NAME/1, NAME/2 and so on.
    #[arg(long, value_name = "NAME")]
    pub job: String,

    /// A disk: a block device or a regular file. NAME is its name in the job [default: the device's name].
    #[arg(long = "disk", value_name = "[NAME=]DEV", required = true)]
    pub disks: Vec<DiskArg>,

    /// Continue the images of this finished job: the first image of the new job is incremental, based on that
    /// job's newest image.
    #[arg(long, value_name = "JOB", conflicts_with = "cluster_size")]
    pub take_up: Option<String>,

    /// Number of images of the job to keep: after the sync, the oldest ones that are not in use are deleted.
    #[arg(long, value_name = "1..10", value_parser = clap::value_parser!(u8).range(1..=10))]
    pub max_images: Option<u8>,

    /// Unit of comparison and storage: 16KiB, 64KiB or 256KiB. A job's first image fixes it [default: 64KiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_cluster_size)]
    pub cluster_size: Option<ClusterSize>,

    /// zstd compression level; 0 means no compression. Incompressible data is never compressed.
    #[arg(long, value_name = "0..19", default_value_t = changetrack::COMPRESS_LEVEL, value_parser = clap::value_parser!(i32).range(0..=19))]
    pub compress_level: i32,

    /// Limit of reading from all disks together, in bytes per second, for example 50MiB; 0 means no limit.
    #[arg(long, value_name = "SIZE", value_parser = ::cli::units::parse_rate)]
    pub bandwidth_limit: Option<u64>,

    /// I/O priority of reads from the disks: none, idle (other reads and writes come first), or best-effort:0 (first)
    /// to best-effort:7 (last). The I/O schedulers bfq and mq-deadline honour it.
    #[arg(long, value_name = "CLASS[:N]", default_value_t = api::IoPriority::None)]
    pub io_priority: api::IoPriority,

    /// How often to write a checkpoint, from which an interrupted sync can be resumed; 0 means after every
    /// chunk. A checkpoint waits for the writes in flight.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub checkpoint_every: u32,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// Accept a disk whose serial number, WWN, UUID or backing file differs from the one that the job recorded.
    #[arg(long)]
    pub accept_changed_disk: bool,

    /// What becomes of sectors that cannot be read: stop (the sync fails and names the first of them) or skip (the image records
    /// them as unreadable and has everything else). For a disk that is failing: everything that can be read is read first,
    /// and the bad places are tried again at the end.
    #[arg(long, value_name = "stop|skip", default_value = "stop")]
    pub on_read_error: ReadErrors,

    /// The consistency class that the image is to have at least: any, crash (what a power cut would leave) or filesystem (all
    /// filesystems at one instant: they are frozen for a moment). An image below it is kept, with a warning: it is a good base
    /// for the next sync.
    #[arg(long, value_name = "any|crash|filesystem", default_value_t)]
    pub consistency: LeastConsistency,

    /// End with exit code 1 if the image has not the class that --consistency wants. The image is kept all the same.
    #[arg(long, requires = "consistency")]
    pub require_consistency: bool,

    /// The disks are not in use, as in a rescue system: hold them exclusively, so that nobody can mount them meanwhile. The image is
    /// of class offline, unless somebody writes to a disk all the same. Refused if a disk is in use.
    #[arg(long, conflicts_with = "freeze")]
    pub offline: bool,

    /// Compare everything after the sync, by reading the disks and the image. End with exit code 1 if it is not the same.
    #[arg(long)]
    pub verify: bool,

    /// Take over images that belong to another machine, or to a job of the service that is not over. Their
    /// previous owner can no longer write to them. A server that was installed anew, or runs a rescue system, is another
    /// machine.
    #[arg(long)]
    pub take_over: bool,

    /// Begin to watch the disks, so that the next sync reads only what was written to since this one. A disk that is
    /// watched already is read in part without this option too.
    #[arg(long)]
    pub track: bool,

    /// Bring all disks to one instant: passes over what was written meanwhile, until the rest is little; then all filesystems on the
    /// disks are frozen together while it is read. Writers are held for at most BUDGET (10ms to 10s) [default: 200ms]. Implies
    /// --track, and is implied by --consistency=filesystem. If that does not succeed, the image is made all the same, and says why.
    #[arg(long, value_name = "BUDGET", num_args = 0..=1, require_equals = true, default_missing_value = "200ms", value_parser = parse_freeze_budget)]
    pub freeze: Option<Duration>,

    /// Where the tracker is pinned: a directory on a mounted BPF filesystem.
    #[arg(long, value_name = "DIR", default_value = tracker::PIN_DIRECTORY)]
    pub tracker_directory: PathBuf,

    /// Allow creating a new store on NFS, CIFS, FUSE or a similar filesystem, which may not keep locks and
    /// durability guarantees.
    #[arg(long)]
    pub allow_network_fs: bool,
}

/// How long writers may be held.
fn parse_freeze_budget(text: &str) -> std::result::Result<Duration, String> {
    let budget = ::cli::units::parse_duration(text)?;
    if limits::FREEZE_BUDGET.contains(&budget) {
        Ok(budget)
    } else {
        Err("it must be between 10ms and 10s".to_owned())
    }
}

fn parse_cluster_size(text: &str) -> std::result::Result<ClusterSize, String> {
    ClusterSize::from_bytes(::cli::units::parse_size(text)?)
        .map_err(|_| "it must be 16KiB, 64KiB or 256KiB".to_owned())
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
    fn a_freeze_has_a_budget_of_10_ms_to_10_s() {
        let budget = |more: &[&str]| {
            let sync = ["smcd", "sync", "--store=s", "--job=j", "--disk=/dev/x"];
            let arguments = sync.iter().chain(more);
            match Cli::try_parse_from(arguments).ok().and_then(|cli| cli.command) {
                Some(Command::Sync(args)) => Some(args.freeze),
                _ => None,
            }
        };
        assert_eq!(budget(&[]), Some(None));
        assert_eq!(budget(&["--freeze"]), Some(Some(Duration::from_millis(200))));
        assert_eq!(budget(&["--freeze=2s"]), Some(Some(Duration::from_secs(2))));
        assert_eq!(budget(&["--freeze=9ms"]), None);
        assert_eq!(budget(&["--freeze=11s"]), None);
    }

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
