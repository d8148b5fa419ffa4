//! `smc-image restore`: an image back onto a device.

use crate::behind::{self, Found, gpt};
use crate::context::Context;
use crate::exit::{Advise, advised};
use anyhow::{Context as _, bail};
use blockio::Ranges;
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use cli::{ask, output, units};
use imagefmt::{Disk, Image, ImageRef};
use restore::digest;
use restore::evidence::Proof;
use restore::held::{self, Held, State};
use restore::onto::{self, Difference};
use restore::target::Target;
use restore::write::Written;
use restore::zero::Zeroer;
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
///
/// With --onto, the target is read and compared with the image first, and only what differs is written and read back: a target that
/// holds an older image of the server gets what has changed since, whoever wrote it.
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
    /// Write only what differs from what the target holds
    #[arg(long)]
    onto: bool,
    /// Directory in which it is written down which image each target holds [default: /var/lib/smc/restored; of users other than
    /// root, ~/.local/state/smc/restored]
    #[arg(long, value_name = "DIR", env = "SMC_RESTORED")]
    restored: Option<PathBuf>,
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
    onto::check_readable(disk)?;
    warn_of_sectors(&image, disk, &target);
    let records = args.restored.clone().unwrap_or_else(held::default_directory);
    let mut held = Held::open(&records, &target, &warn)?;
    let before = held.state().cloned();
    let found = args
        .onto
        .then(|| compare(disk, &target, before.as_ref()))
        .transpose()?;
    let ranges = found.as_ref().map(|found| &found.ranges);
    if let Some(ranges) = ranges {
        onto::check_data(disk, ranges, None)?;
    }
    if !args.yes && ranges.is_none_or(|ranges| !ranges.is_empty()) {
        confirm(&image, disk, &target, ranges)?;
    }
    let interrupt = Interrupt::install()?;
    let found = found
        .map(|found| still(disk, &target, found, &interrupt))
        .transpose()?;
    let compared_bytes = found.is_some().then(|| disk.size_bytes());
    let (written, proof) = write_verified(disk, &target, found, &mut held, &interrupt)?;
    target.check_in_place()?;
    note(&mut held, disk, &target, &proof);
    target.set_buffered();
    let behind = look_behind(args, &image, disk, &target);
    let behind = behind.advise(format!(
        "the image is on {} and verified; what is behind it is not as it should be",
        args.target.display()
    ))?;
    if behind.backup_moved
        // Its beginning is no longer that of the image.
        && let Err(error) = held.forget()
    {
        warn(&format!("{error:#}"));
    }
    warn_of(&behind, &target);
    let done = Done {
        written,
        compared_bytes,
        before,
        behind,
    };
    report(context.json, disk, &target, &done)?;
    Ok(ExitCode::SUCCESS)
}

/// Finds what differs. What the target was written down to hold is said, and not believed.
fn compare(disk: &Disk, target: &Target, before: Option<&State>) -> anyhow::Result<Difference> {
    let path = target.device.path().display();
    if let Some(State::Between { to, .. }) = before {
        output::complain(format_args!(
            "smc-image: a restore of {to} to {path} was cut off: all of {path} is compared"
        ));
    }
    onto::differing_from_device(disk, target, None).advise(format!(
        "nothing was written: {path} is as it was. Without --onto, restore overwrites it and does not read it before"
    ))
}

/// What was found, or what is found now if the target was written to since, as while somebody was asked.
fn still(
    disk: &Disk,
    target: &Target,
    found: Difference,
    interrupt: &Interrupt,
) -> anyhow::Result<Difference> {
    let Some(again) = onto::found_again(disk, target, &found, interrupt)? else {
        return Ok(found);
    };
    warn(&format!(
        "{} was written to after it was compared: it was compared again",
        target.device.path().display()
    ));
    Ok(again)
}

/// Writes, then reads back what was written. That it begins is written down before. Returns why it is known what the target holds.
fn write_verified(
    disk: &Disk,
    target: &Target,
    found: Option<Difference>,
    held: &mut Held,
    interrupt: &Interrupt,
) -> anyhow::Result<(Written, Proof)> {
    let shown = target.device.path().display();
    let whole = Ranges::from(0..disk.size_bytes());
    let ranges = found.as_ref().map_or(&whole, |found| &found.ranges);
    let mut written = Written::default();
    if !ranges.is_empty() {
        let begun = AtomicBool::new(false);
        let done = onto::write(disk, target, ranges, held, &begun, interrupt);
        written = done.map_err(|error| match begun.load(Ordering::Relaxed) {
            true => advised(
                error,
                format!("{shown} is incomplete: it holds part of the image, do not use it. restore --onto completes it"),
            ),
            false => advised(error, format!("nothing was written: {shown} is as it was")),
        })?;
    }
    let verified = match found {
        Some(found) => {
            onto::verify(disk, target, &found.ranges, interrupt).map(|()| found.proof(disk, target))
        }
        None => verify(disk, target, interrupt),
    };
    let proof = verified.advise(format!("what {shown} holds is not verified: do not use it"))?;
    Ok((written, proof))
}

/// Writes down what the target holds now.
fn note(held: &mut Held, disk: &Disk, target: &Target, proof: &Proof) {
    let noted = held.holds(disk, proof, target);
    if let Some(text) = noted.unwrap_or_else(|error| Some(format!("{error:#}"))) {
        warn(&text);
    }
}

fn warn(text: &str) {
    output::complain(format_args!("smc-image: warning: {text}"));
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

fn confirm(image: &Image, disk: &Disk, target: &Target, differing: Option<&Ranges>) -> anyhow::Result<()> {
    let path = target.device.path().display();
    if !ask::is_possible() {
        return Err(anyhow::anyhow!(
            "{path} would be overwritten, and there is no terminal to ask on"
        ))
        .advise("give --yes if that is what you want");
    }
    let created = units::local_time(image.manifest().finished);
    let description = target.description();
    match differing {
        Some(ranges) => output::complain(format_args!(
            "{} of {description} differ from the image, and will be overwritten.",
            units::size(ranges.bytes())
        )),
        None => output::complain(format_args!("All data on {description} will be lost.")),
    }
    let question = format!("Write {} of {created} to it?", disk.label());
    if !ask::is_confirmed(question)? {
        bail!("not confirmed: {path} was left as it is");
    }
    Ok(())
}

/// Reads all of it: whatever is written to the target meanwhile is seen.
fn verify(disk: &Disk, target: &Target, interrupt: &Interrupt) -> anyhow::Result<Proof> {
    let path = target.device.path().display();
    let proof = Proof::begin(target)?;
    let progress = Progress::bytes(disk.size_bytes(), format!("verify {path}"));
    let found = digest::of_device(&target.device, disk.geometry(), &progress, Some(interrupt))
        .with_context(|| format!("read back {path}"))?;
    let wanted = disk.digest();
    if found != wanted {
        bail!("{path} does not hold what was written to it: its digest is {found}, the image's is {wanted}");
    }
    Ok(proof)
}

/// What a restore has done.
struct Done {
    written: Written,
    /// Bytes that were read to find what differs; absent where all was written.
    compared_bytes: Option<u64>,
    /// What was written down of the target before.
    before: Option<State>,
    behind: Behind,
}

fn report(json: bool, disk: &Disk, target: &Target, done: &Done) -> anyhow::Result<()> {
    if json {
        return output::json(&as_json(disk, target, done));
    }
    let (
        path,
        Written {
            data_bytes,
            zero_bytes,
            ..
        },
    ) = (target.device.path().display(), done.written);
    let (data, zeros) = (units::size(data_bytes), units::size(zero_bytes));
    let label = disk.label();
    match done.compared_bytes {
        Some(_) if data_bytes + zero_bytes == 0 => {
            output::line(format_args!("{path} was read, and holds {label} already"))?;
        }
        Some(compared) => output::line(format_args!(
            "{label} restored onto {path}: {} compared, {data} of data and {zeros} of zeros written; verified",
            units::size(compared)
        ))?,
        None => output::line(format_args!(
            "{label} restored to {path}: {data} of data, {zeros} of zeros; verified"
        ))?,
    }
    report_behind(disk, target, &done.behind)
}

fn left_alone_bytes(disk: &Disk, target: &Target, behind: &Behind) -> u64 {
    target.device.size_bytes() - disk.size_bytes() - behind.wiped_bytes
}

fn report_behind(disk: &Disk, target: &Target, behind: &Behind) -> anyhow::Result<()> {
    let (path, left_alone) = (
        target.device.path().display(),
        left_alone_bytes(disk, target, behind),
    );
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

fn as_json(disk: &Disk, target: &Target, done: &Done) -> serde_json::Value {
    let Done { written, behind, .. } = done;
    let held = match &done.before {
        Some(State::Holds(holding)) => Some(holding.disk.as_str()),
        _ => None,
    };
    json!({
        "image": disk.label(),
        "target": target.device.path().display().to_string(),
        "size_bytes": disk.size_bytes(),
        "held": held,
        "was_cut_off": matches!(done.before, Some(State::Between { .. })),
        "compared_bytes": done.compared_bytes,
        "data_bytes": written.data_bytes,
        "zero_bytes": written.zero_bytes,
        "write_seconds": written.took.as_secs_f64(),
        "left_alone_bytes": left_alone_bytes(disk, target, behind),
        "wiped_bytes": behind.wiped_bytes,
        "left_over": behind.left_over,
        "gpt_backup_offset": behind.backup_offset,
        "gpt_backup_moved": behind.backup_moved,
        "digest": disk.digest().to_string(),
        "verified": true,
    })
}
