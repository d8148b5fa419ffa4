//! `smc-image mount`: look into an image.

use crate::context::Context;
use crate::mount::journal::Journal;
use crate::mount::{self, Plan, fuse, select};
use anyhow::{Context as _, ensure};
use cli::interrupt::Interrupt;
use cli::output;
use cli::units;
use imagefmt::{Consistency, Image, ImageRef};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Mount a filesystem of an image, read-only
///
/// Uses FUSE and a loop device, so it also works on kernels without NBD. The filesystem's journal is not replayed:
/// the last writes before the image was created may be missing. Unmount it with 'smc-image umount DIR' or umount(8).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, with :DISK if it has several disks
    #[arg(value_name = "IMAGE")]
    image: ImageRef,
    /// Directory to mount it on
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Number of the partition; not needed if there is one filesystem on the disk
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Serve the disk in the foreground, in this mount's private DIR, if its image has this id (what mount itself
    /// starts)
    #[arg(long, value_name = "ID", hide = true, conflicts_with = "partition")]
    fuse_server: Option<String>,
}

/// What `--json` shows.
#[derive(Debug, Serialize)]
struct Mounted<'a> {
    image: &'a str,
    partition: Option<u32>,
    filesystem: &'a str,
    size_bytes: u64,
    dir: &'a Path,
    loop_device: Option<&'a Path>,
    server_pid: i32,
    journal_not_replayed: bool,
}

/// Mounts it and returns when it is there.
///
/// # Errors
/// Wrong use, an image that cannot be opened or mounted, and an interrupt: nothing is left of the mount then.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    mount::require_root()?;
    if let Some(id) = &args.fuse_server {
        return fuse::serve(context, &args.image, id, &args.dir);
    }
    let interrupt = Interrupt::install()?;
    let dir = args
        .dir
        .canonicalize()
        .with_context(|| format!("find {}", args.dir.display()))?;
    ensure!(dir.is_dir(), "{} is not a directory", dir.display());
    // Held until the server holds it too: nobody deletes the image in between.
    let image = context.open_image(&args.image)?;
    let disk = image.disk(args.image.disk.as_deref())?;
    let block_bytes = block_bytes(&image, disk.name());
    let selection = select::select(disk, block_bytes.into(), args.partition)
        .with_context(|| format!("mount {}", disk.label()))?;
    let plan = Plan {
        store: &context.store,
        image: &image.id().reference(Some(disk.name())),
        image_id: &image.manifest().id.to_string(),
        selection: &selection,
        block_bytes,
        dir: &dir,
    };
    let record = mount::mount(&plan, &interrupt)?;
    let shown = Mounted {
        image: &record.image,
        partition: record.partition,
        filesystem: selection.filesystem.fstype,
        size_bytes: selection.length,
        dir: &record.dir,
        loop_device: record.loop_device.as_deref(),
        server_pid: record.server.pid,
        journal_not_replayed: is_incomplete(selection.journal, image.manifest().consistency),
    };
    show(context, &shown)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether what is mounted may lack what was written last: where that cannot be told from the journal, it depends on
/// whether the filesystem was written to while the image was made.
fn is_incomplete(journal: Journal, consistency: Consistency) -> bool {
    match journal {
        Journal::Clean => false,
        Journal::Dirty => true,
        Journal::Unknown => matches!(consistency, Consistency::Fuzzy | Consistency::Crash),
    }
}

/// The disk's logical block size, where it is one that a loop device can have.
fn block_bytes(image: &Image, disk: &str) -> u32 {
    let recorded = image
        .manifest()
        .disk(disk)
        .map(|record| record.logical_block_size);
    recorded
        .filter(|bytes| matches!(bytes, 512 | 1024 | 2048 | 4096))
        .unwrap_or(512)
}

fn show(context: &Context, mounted: &Mounted<'_>) -> anyhow::Result<()> {
    if context.json {
        return output::json(mounted);
    }
    let Mounted {
        image,
        filesystem,
        dir,
        ..
    } = mounted;
    let place = mounted
        .partition
        .map_or_else(String::new, |number| format!(", partition {number}"));
    let size = units::size(mounted.size_bytes);
    output::line(format!(
        "mounted {image}{place} ({filesystem}, {size}) read-only on {}",
        dir.display()
    ))?;
    if mounted.journal_not_replayed {
        output::complain(
            "smc-image: the journal was not replayed: what was written last may be missing or look damaged",
        );
    }
    Ok(())
}
