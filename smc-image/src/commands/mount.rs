//! `smc-image mount`: look into an image.

use crate::context::Context;
use crate::helper::HelperArgs;
use crate::mount::journal::Journal;
use crate::mount::select::{self, Selection, Wanted};
use crate::mount::{self, Access, Mounted, Plan, Service, fuse};
use crate::overlay::parse_limit;
use anyhow::{Context as _, ensure};
use cli::interrupt::Interrupt;
use cli::output;
use cli::text::printable_line;
use cli::units;
use imagefmt::{Consistency, ImageRef};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Mount a filesystem of an image
///
/// The image is not changed. It is mounted read-only, and what was in the filesystem's journal when the image was
/// created is shown too: the kernel replays the journal into an overlay, which is deleted when the filesystem is
/// unmounted. With --rw, everything that is changed goes to that overlay.
///
/// Uses FUSE and a loop device, so it also works on kernels without NBD. A btrfs on several disks is mounted as a
/// whole. LVM, RAID and LUKS are opened in a small guest (QEMU) and not by this machine's kernel; a volume is named as a
/// disk: web01/7:vg0-root. Unmount with 'smc-image umount DIR' or umount(8).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image; with :DISK or :VOLUME if there are several filesystems
    #[arg(value_name = "IMAGE")]
    image: ImageRef,
    /// Directory to mount it on
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Number of the partition; not needed if there is one filesystem
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Let files be changed; the changes are lost when it is unmounted
    #[arg(long)]
    rw: bool,
    /// Do not replay the journal: shows the filesystem as it is without it, which may be incomplete
    #[arg(long, conflicts_with = "rw")]
    no_replay: bool,
    /// Largest amount that may be written
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = parse_limit)]
    overlay_limit: u64,
    /// Directory for what is written and does not fit into memory, in a file without a name
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    overlay_dir: PathBuf,
    #[command(flatten)]
    helper: HelperArgs,
    /// Open LVM, RAID and LUKS in a guest, with the key on standard input (what mount itself starts)
    #[arg(long = "helper", hide = true, requires = "fuse_server")]
    with_helper: bool,
    /// Serve the disks in the foreground, in this mount's private DIR, if their image has this id (what mount itself
    /// starts)
    #[arg(long, value_name = "ID", hide = true, conflicts_with = "partition")]
    fuse_server: Option<String>,
}

/// What `--json` shows.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    image: &'a str,
    disks: Vec<&'a str>,
    partition: Option<u32>,
    filesystem: &'a str,
    size_bytes: u64,
    dir: &'a Path,
    loop_devices: &'a [PathBuf],
    server_pid: i32,
    writable: bool,
    journal_not_replayed: bool,
}

/// Mounts it and returns when it is there.
///
/// # Errors
/// Wrong use, an image that cannot be opened or mounted, and an interrupt: nothing is left of the mount then.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    mount::require_root()?;
    if let Some(id) = &args.fuse_server {
        let helper = args.with_helper.then(|| args.helper.means());
        let service = Service {
            helper,
            ..service(context, args, &args.image, id, &args.overlay_dir)
        };
        return fuse::serve(context, &service, &args.dir);
    }
    let interrupt = Interrupt::install()?;
    let dir = args
        .dir
        .canonicalize()
        .with_context(|| format!("find {}", args.dir.display()))?;
    ensure!(dir.is_dir(), "{} is not a directory", dir.display());
    // Held until the server holds it too: nobody deletes the image in between.
    let image = context.open_image(&args.image.with_disk(None))?;
    let disks = select::disks_of(&image);
    let wanted = Wanted {
        disk: args.image.disk.as_deref(),
        partition: args.partition,
    };
    let (helper, key) = args.helper.prepare(&args.image, &image, &disks, wanted)?;
    let (number, id) = (image.id().reference(None), image.manifest().id.to_string());
    let overlay_dir = std::path::absolute(&args.overlay_dir).context("find the overlay's directory")?;
    let plan = Plan {
        service: Service {
            helper,
            ..service(context, args, &number, &id, &overlay_dir)
        },
        disks: &disks,
        wanted,
        key: key.as_deref(),
        access: access(args),
        dir: &dir,
    };
    let mounted = mount::mount(&plan, &interrupt);
    let mounted = mounted.with_context(|| format!("mount {}", args.image))?;
    show(context, &shown(&plan, &mounted, image.manifest().consistency))?;
    for problem in &mounted.problems {
        output::complain(format_args!("smc-image: not opened: {}", printable_line(problem)));
    }
    Ok(ExitCode::SUCCESS)
}

fn service<'a>(
    context: &'a Context,
    args: &Args,
    image: &'a ImageRef,
    image_id: &'a str,
    overlay_dir: &'a Path,
) -> Service<'a> {
    Service {
        store: &context.store,
        image,
        image_id,
        overlay_dir,
        overlay_limit_bytes: args.overlay_limit,
        helper: None,
    }
}

fn access(args: &Args) -> Access {
    match (args.rw, args.no_replay) {
        (true, _) => Access::Writable,
        (false, true) => Access::NoReplay,
        (false, false) => Access::ReadOnly,
    }
}

fn shown<'a>(plan: &Plan<'a>, mounted: &'a Mounted, consistency: Consistency) -> Shown<'a> {
    let Selection {
        places,
        filesystem,
        journal,
        ..
    } = &mounted.selection;
    let record = &mounted.record;
    Shown {
        image: &record.image,
        disks: places.iter().map(|place| place.disk.as_str()).collect(),
        partition: record.partition,
        filesystem: filesystem.fstype,
        size_bytes: places.iter().map(|place| place.length).sum(),
        dir: &record.dir,
        loop_devices: &record.loop_devices,
        server_pid: record.server.pid,
        writable: plan.access == Access::Writable,
        journal_not_replayed: plan.access == Access::NoReplay && is_incomplete(*journal, consistency),
    }
}

/// Whether what is mounted without its journal may lack what was written last. Where the journal does not tell, it depends
/// on whether the filesystem was written to while the image was made.
fn is_incomplete(journal: Journal, consistency: Consistency) -> bool {
    match journal {
        Journal::Clean => false,
        Journal::Dirty => true,
        Journal::Unknown => matches!(consistency, Consistency::Fuzzy | Consistency::Crash),
    }
}

fn show(context: &Context, mounted: &Shown<'_>) -> anyhow::Result<()> {
    if context.json {
        return output::json(mounted);
    }
    let Shown {
        image,
        disks,
        filesystem,
        dir,
        ..
    } = mounted;
    let place = mounted
        .partition
        .map_or_else(String::new, |number| format!(", partition {number}"));
    let on = match disks.as_slice() {
        [_] => String::new(),
        several => format!(" on {}", several.join(" and ")),
    };
    let size = units::size(mounted.size_bytes);
    let how = if mounted.writable {
        "writable, for as long as it is mounted,"
    } else {
        "read-only"
    };
    output::line(format!(
        "mounted {image}{place} ({filesystem}{on}, {size}) {how} on {}",
        dir.display()
    ))?;
    if mounted.journal_not_replayed {
        output::complain(
            "smc-image: the journal was not replayed: what was written last may be missing or look damaged",
        );
    }
    Ok(())
}
