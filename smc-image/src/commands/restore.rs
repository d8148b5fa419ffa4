//! `smc-image restore`: an image back onto a device.

use crate::context::Context;
use crate::copy::digest;
use crate::copy::write::{self, Written, write_disk};
use crate::copy::zero::Zeroer;
use crate::exit::{Advise, advised};
use crate::restore::behind::{self, Found};
use crate::restore::gpt;
use crate::restore::target::Target;
use anyhow::{Context as _, bail};
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use cli::{ask, output, units};
use imagefmt::{Disk, Error, ErrorKind, Image, ImageRef};
use serde_json::json;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Write a disk of an image to a block device, and verify what was written
///
/// Refuses a target that is mounted or otherwise in use, is read-only or too small, or holds the store. On a larger
/// target, the space behind the end of the image stays as it is, and restore looks at it: an old signature there
/// (RAID, LVM, ZFS) can make programs take the disk for what it was before, and the backup of a GPT is then not at
/// the end of the disk.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The disk of an image, as in web01/7:vda
    image: ImageRef,
    /// A block device, or an existing file that is large enough; its content is overwritten
    #[arg(value_name = "DEV")]
    target: PathBuf,
    /// Do not ask before overwriting
    #[arg(long, short)]
    yes: bool,
    /// Write zeros to the places behind the end of the image where signatures of RAID, LVM, ZFS and the like may be
    #[arg(long)]
    wipe: bool,
    /// Move the backup of a GPT to the end of the target; there the target then differs from the image
    #[arg(long)]
    fix_gpt: bool,
}

/// What was found and done after the image was written and verified.
#[derive(Debug, Default)]
struct Behind {
    left_over: Vec<Found>,
    wiped_bytes: u64,
    /// Where the backup of the partition table is, if not at the end of the target.
    backup_offset: Option<u64>,
    backup_moved: bool,
}

/// Restores, then reads back what was written and compares its digest with the image's.
///
/// # Errors
/// A target or an image that is refused, a failed write, what does not read back as it was written, an interrupt.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let image = context.open_image(&args.image)?;
    let disk = image.disk(args.image.disk.as_deref())?;
    let target = Target::open(&args.target, disk.size_bytes(), &context.store)?;
    check_readable(disk)?;
    warn_of_sectors(&image, disk, &target);
    if !args.yes {
        confirm(&image, disk, &target)?;
    }
    let interrupt = Interrupt::install()?;
    let begun = AtomicBool::new(false);
    let shown = args.target.display();
    let written = write(disk, &target, &begun, &interrupt);
    let written = written.map_err(|error| match begun.load(Ordering::Relaxed) {
        true => advised(
            error,
            format!("{shown} is incomplete: it holds part of the image, do not use it"),
        ),
        false => advised(error, format!("nothing was written: {shown} is as it was")),
    })?;
    let verified = verify(disk, &target, &interrupt);
    verified.advise(format!("what {shown} holds is not verified: do not use it"))?;
    target.set_buffered();
    let behind = look_behind(args, &image, disk, &target);
    let behind = behind.advise(format!(
        "the image is on {shown} and verified; what is behind it is not as it should be"
    ))?;
    warn_of(&behind, &target);
    report(context.json, disk, &target, written, &behind)?;
    Ok(ExitCode::SUCCESS)
}

/// Looks at what the image does not reach, and repairs it where that is asked for.
fn look_behind(args: &Args, image: &Image, disk: &Disk, target: &Target) -> anyhow::Result<Behind> {
    let mut behind = Behind::default();
    if args.wipe {
        let zeroer = Zeroer::new(&target.file)?;
        behind.wiped_bytes = behind::wipe(target, disk.size_bytes(), &zeroer)?;
        target.file.sync_all().context("flush the target")?;
    } else {
        behind.left_over = behind::look(target, disk.size_bytes())?;
    }
    if let Some(misplaced) = gpt::look(target, block_bytes(image, disk, target))? {
        behind.backup_offset = Some(misplaced.offset());
        if args.fix_gpt {
            for step in misplaced
                .moved()
                .context("move the backup of the partition table")?
            {
                for (offset, bytes) in step {
                    let written = target.file.write_all_at(&bytes, offset);
                    written.with_context(|| format!("write the partition table at byte {offset}"))?;
                }
                target.file.sync_all().context("flush the target")?;
            }
            behind.backup_moved = true;
        }
    }
    Ok(behind)
}

/// What the target's partition table counts in: its own sectors or, in a file, those of the source.
fn block_bytes(image: &Image, disk: &Disk, target: &Target) -> u64 {
    let record = image.manifest().disk(disk.name());
    let source = record.map(|record| record.logical_block_size);
    let own = target.device.logical_block_size();
    match target.device.device_number() {
        Some(_) => own.into(),
        None => source
            .filter(|bytes| matches!(bytes, 512..=4096))
            .unwrap_or(own)
            .into(),
    }
}

fn warn_of(behind: &Behind, target: &Target) {
    let path = target.device.path().display();
    for Found { kind, offset } in &behind.left_over {
        output::complain(format_args!(
            "smc-image: warning: behind the image, at byte {offset}, {path} has the signature of another use ({kind}): \
             it may be taken for that. wipefs(8) shows and removes it, `restore --wipe` does while it restores"
        ));
    }
    if let (Some(offset), false) = (behind.backup_offset, behind.backup_moved) {
        output::complain(format_args!(
            "smc-image: warning: the backup of the partition table is at byte {offset}, and not at the end of {path}. \
             `sgdisk --move-second-header` moves it, `restore --fix-gpt` does while it restores"
        ));
    }
}

/// Refuses an image that cannot be written whole, as far as its map shows it, before anything is written.
fn check_readable(disk: &Disk) -> anyhow::Result<()> {
    let unreadable = disk
        .unreadable_at_source(1)
        .map_err(anyhow::Error::from)
        .advise("nothing was written; `smc-image verify` shows all that is damaged")?;
    let Some(first) = unreadable.first() else {
        return Ok(());
    };
    let what = format!(
        "{}: cluster {} (byte {}) was unreadable at the source",
        disk.label(),
        disk.geometry().cluster_at(first.start),
        first.start
    );
    Err(Error::new(ErrorKind::Unreadable, what).into())
        .advise("nothing was written: the image lacks part of the disk; restore an older or newer one")
}

/// A partition table counts in sectors: on a device with others it is not understood.
fn warn_of_sectors(image: &Image, disk: &Disk, target: &Target) {
    let Some(record) = image.manifest().disk(disk.name()) else {
        return;
    };
    let (source, device) = (record.logical_block_size, &target.device);
    if device.device_number().is_some() && device.logical_block_size() != source {
        let (path, own) = (device.path().display(), device.logical_block_size());
        output::complain(format_args!(
            "smc-image: warning: {path} has sectors of {own} bytes, the source had {source}: \
             a partition table of the image will not be understood there"
        ));
    }
}

fn confirm(image: &Image, disk: &Disk, target: &Target) -> anyhow::Result<()> {
    let path = target.device.path().display();
    if !ask::is_possible() {
        return Err(anyhow::anyhow!(
            "{path} would be overwritten, and there is no terminal to ask on"
        ))
        .advise("give --yes if that is what you want");
    }
    let created = units::local_time(image.manifest().finished);
    output::complain(format_args!("All data on {} will be lost.", target.description()));
    let question = format!("Write {} of {created} to it?", disk.label());
    if !ask::is_confirmed(question)? {
        bail!("not confirmed: {path} was left as it is");
    }
    Ok(())
}

fn write(disk: &Disk, target: &Target, begun: &AtomicBool, interrupt: &Interrupt) -> anyhow::Result<Written> {
    let path = target.device.path().display();
    let progress = Progress::bytes(disk.size_bytes(), format!("write {path}"));
    let place = write::Target {
        file: &target.file,
        alignment: target.device.alignment(),
        is_zero: false,
        begun,
    };
    write_disk(disk, place, interrupt, &progress)
        .with_context(|| format!("restore {} to {path}", disk.label()))
}

fn verify(disk: &Disk, target: &Target, interrupt: &Interrupt) -> anyhow::Result<()> {
    let path = target.device.path().display();
    let progress = Progress::bytes(disk.size_bytes(), format!("verify {path}"));
    let found = digest::of_device(&target.device, disk.geometry(), &progress, Some(interrupt))
        .with_context(|| format!("read back {path}"))?;
    let wanted = disk.digest();
    if found != wanted {
        bail!("{path} does not hold what was written to it: its digest is {found}, the image's is {wanted}");
    }
    Ok(())
}

fn report(json: bool, disk: &Disk, target: &Target, written: Written, behind: &Behind) -> anyhow::Result<()> {
    let path = target.device.path().display();
    let left_alone = target.device.size_bytes() - disk.size_bytes() - behind.wiped_bytes;
    if json {
        return output::json(&json!({
            "image": disk.label(),
            "target": path.to_string(),
            "size_bytes": disk.size_bytes(),
            "data_bytes": written.data_bytes,
            "zero_bytes": written.zero_bytes,
            "write_seconds": written.took.as_secs_f64(),
            "left_alone_bytes": left_alone,
            "wiped_bytes": behind.wiped_bytes,
            "left_over": behind.left_over,
            "gpt_backup_offset": behind.backup_offset,
            "gpt_backup_moved": behind.backup_moved,
            "digest": disk.digest().to_string(),
            "verified": true,
        }));
    }
    let (data, zeros) = (units::size(written.data_bytes), units::size(written.zero_bytes));
    output::line(format_args!(
        "{} restored to {path}: {data} of data, {zeros} of zeros; verified",
        disk.label()
    ))?;
    let (left, wiped) = (units::size(left_alone), units::size(behind.wiped_bytes));
    if behind.wiped_bytes > 0 {
        output::line(format_args!(
            "behind the image, {wiped} were zeroed where signatures may be; {left} were left as they were"
        ))?;
    } else if left_alone > 0 {
        output::line(format_args!(
            "{path} has {left} more, from byte {} on: left as they were",
            disk.size_bytes()
        ))?;
    }
    if behind.backup_moved {
        output::line(format_args!(
            "the backup of the partition table was then moved to the end of {path}"
        ))?;
    }
    Ok(())
}
