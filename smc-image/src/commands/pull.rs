//! `smc-image pull`: the store that a target keeps of a source, as a directory of this machine.

use crate::context::Context;
use crate::exit::Advise;
use crate::pull::PulledFiles;
use anyhow::{Context as _, anyhow, ensure};
use cli::interrupt::Interrupt;
use cli::output;
use fuser::{BackgroundSession, Config, MountOption, Session};
use remote::TargetFiles;
use remote::pull::PulledStore;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

/// Threads that read from the target: each waits for one answer at a time.
const THREADS: usize = 16;
/// How often it is looked whether the directory is still mounted, or somebody wants this to end.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Show the images that a target has of a source in a directory of this machine, to restore, boot, serve or mount them here
///
/// The directory is a store that can only be read: `smc-image --store DIR ls`, `restore`, `serve`, `boot`, `mount`, `verify`, `diff`,
/// `export` work on it, and read from the target only what they need. What comes is checked against the images' digests. An image
/// that is open here is not deleted there.
///
/// It needs the role `pull`: on the target, `smc-store enrol NAME --role pull --of SOURCE` prints a line, and here
/// `smcd target add TARGET LINE` takes it. It runs until SIGINT, SIGTERM or umount(8).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The target, as `smcd target ls` shows it
    target: String,
    /// An empty directory
    dir: PathBuf,
    /// Directory with what this machine knows of targets
    #[arg(long, value_name = "DIR", default_value = remote::DIRECTORY)]
    targets_directory: PathBuf,
}

/// Shows the store until somebody wants it to end.
///
/// # Errors
/// A target that is not known, or does not let this machine read; a directory that cannot be mounted on.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let files = TargetFiles::open(&args.targets_directory, &args.target)?;
    check_role(&files)?;
    renew_if_old(&files);
    check_directory(&args.dir)?;
    let dir = fs::canonicalize(&args.dir).with_context(|| format!("find {}", args.dir.display()))?;
    let store = PulledStore::new(&files)?;
    // It fails now, and not in the first program that reads.
    let listing = store.list()?;
    let source = listing.source;
    let interrupt = Interrupt::install()?;
    let session = mount(PulledFiles::new(store), &dir, &source)?;
    announce(context, args, &source)?;
    while !interrupt.is_set() && is_mounted(&dir) {
        sleep(POLL_INTERVAL);
    }
    drop(session);
    Ok(ExitCode::SUCCESS)
}

fn check_role(files: &TargetFiles) -> anyhow::Result<()> {
    let record = &files.record;
    if record.role == "pull" {
        return Ok(());
    }
    let (name, source) = (&files.name, &record.source);
    Err(anyhow!("this machine is {source} at target {name}, with the role {}", record.role)).advise(format!(
        "on the target, `smc-store enrol NAME --role pull --of {source}` prints the line for a machine that may read"
    ))
}

fn renew_if_old(files: &TargetFiles) {
    if let Err(error) = remote::renew_if_old(files) {
        output::complain(format_args!(
            "smc-image: the certificate for target {} is not renewed: {}",
            files.name,
            error.full_message()
        ));
    }
}

fn check_directory(dir: &Path) -> anyhow::Result<()> {
    let shown = dir.display();
    match fs::read_dir(dir) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Err(anyhow!(
            "{shown} is still mounted from an smc-image pull that was killed"
        ))
        .advise(format!("`umount {shown}` first")),
        Err(error) => Err(error).with_context(|| format!("use directory {shown}")),
        Ok(entries) => {
            ensure!(entries.count() == 0, "{shown} is not empty");
            Ok(())
        }
    }
}

fn mount(files: PulledFiles, dir: &Path, source: &str) -> anyhow::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoExec,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::DefaultPermissions,
        MountOption::FSName(format!("smc-image-pull:{source}")),
        MountOption::Subtype("smc".to_owned()),
    ];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session = Session::new(files, dir, &config);
    let session = session.with_context(|| format!("mount {} through FUSE", dir.display()))?;
    session.spawn().context("start a thread")
}

/// Whether something is mounted on the directory; yes, where that cannot be found out.
fn is_mounted(dir: &Path) -> bool {
    hostdev::MountTable::own(&hostdev::Root::system()).map_or(true, |table| table.on(dir).is_some())
}

fn announce(context: &Context, args: &Args, source: &str) -> anyhow::Result<()> {
    let dir = args.dir.display();
    if context.json {
        return output::unless_closed(output::json(&json!({
            "source": source,
            "target": args.target,
            "dir": args.dir,
        })));
    }
    output::unless_closed(output::line(format_args!(
        "the images of {source} at target {} are in {dir}: smc-image --store {dir} ls",
        args.target
    )))
}
