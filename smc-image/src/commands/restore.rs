//! `smc-image restore`: an image back onto a device.

use crate::context::Context;
use crate::copy::digest;
use crate::copy::write::{self, Written, write_disk};
use crate::exit::Advise;
use crate::restore::target::Target;
use anyhow::{Context as _, bail};
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use cli::{ask, output, units};
use imagefmt::{Codec, Disk, Error, ErrorKind, Image, ImageRef, Run};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write a disk of an image to a block device, and verify what was written
///
/// Refuses a target that is mounted or in use otherwise, too small, or holds the store. What the target has
/// behind the end of the image is left alone.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The disk of an image, as in web01/7:vda
    image: ImageRef,
    /// A block device, or a file that exists and is large enough; its content is lost
    #[arg(value_name = "DEV")]
    target: PathBuf,
    /// Do not ask before overwriting
    #[arg(long, short)]
    yes: bool,
}

/// Restores, then reads back what was written and compares its digest with the image's.
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
    let written = write(disk, &target, &interrupt).advise(format!(
        "{} is incomplete: it holds part of the image, do not use it",
        args.target.display()
    ))?;
    let verified = verify(disk, &target, &interrupt);
    verified.advise(format!(
        "what {} holds is not verified: do not use it",
        args.target.display()
    ))?;
    report(context.json, disk, &target, written)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses an image that cannot be written whole, as far as its map shows it, before anything is written.
fn check_readable(disk: &Disk) -> anyhow::Result<()> {
    let geometry = disk.geometry();
    let mut unreadable = None;
    let walked = disk
        .tree()
        .walk(0..geometry.cluster_count(), &mut |run| match run {
            Run::Data(index, pointer) if pointer.codec == Codec::Damaged => {
                unreadable = Some(index);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
    walked
        .map_err(|error| error.within(disk.label()))
        .map_err(anyhow::Error::from)
        .advise("nothing was written; `smc-image verify` shows all that is damaged")?;
    let Some(index) = unreadable else { return Ok(()) };
    let what = format!(
        "{}: cluster {index} (byte {}) was unreadable at the source",
        disk.label(),
        geometry.cluster_offset(index)
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

fn write(disk: &Disk, target: &Target, interrupt: &Interrupt) -> anyhow::Result<Written> {
    let path = target.device.path().display();
    let progress = Progress::bytes(disk.size_bytes(), format!("write {path}"));
    let place = write::Target {
        file: &target.file,
        alignment: target.device.alignment(),
        is_zero: false,
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

fn report(json: bool, disk: &Disk, target: &Target, written: Written) -> anyhow::Result<()> {
    let path = target.device.path().display();
    let left_alone = target.device.size_bytes() - disk.size_bytes();
    if json {
        return output::json(&json!({
            "image": disk.label(),
            "target": path.to_string(),
            "size_bytes": disk.size_bytes(),
            "data_bytes": written.data_bytes,
            "zero_bytes": written.zero_bytes,
            "left_alone_bytes": left_alone,
            "digest": disk.digest().to_string(),
            "verified": true,
        }));
    }
    let (data, zeros) = (units::size(written.data_bytes), units::size(written.zero_bytes));
    output::line(format_args!(
        "{} restored to {path}: {data} of data, {zeros} of zeros; verified",
        disk.label()
    ))?;
    if left_alone > 0 {
        let (size, from) = (units::size(left_alone), disk.size_bytes());
        output::line(format_args!(
            "{path} has {size} more, from byte {from} on: left as they were"
        ))?;
    }
    Ok(())
}
