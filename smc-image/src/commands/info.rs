//! `smc-image info`: all that is recorded about an image.

use crate::commands::verdict as boot_verdict;
use crate::context::Context;
use crate::exit;
use anyhow::Context as _;
use cli::output;
use cli::text;
use cli::units;
use imagefmt::{
    BootVerdict, Disk, DiskIdentity, DiskRecord, Image, ImageId, ImageRef, InstantRecord, Manifest,
};
use serde_json::{Value, json};
use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

/// Show all that is recorded about an image
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, or one disk of it
    image: ImageRef,
    /// Also list the ranges that were unreadable at the source; the maps of the disks are read for this
    #[arg(long)]
    unreadable: bool,
}

/// Shows the manifest, and what follows from it.
///
/// # Errors
/// A store or an image that cannot be opened, and output that cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let image = store.image(&args.image)?;
    let parent = store.parent(image.id());
    let disks: Vec<&Disk> = match &args.image.disk {
        Some(name) => vec![image.disk(Some(name))?],
        None => image.disks().iter().collect(),
    };
    let boot = store.boot_verdict(image.id(), image.manifest());
    let mut shown = Vec::new();
    for disk in disks {
        let record = image
            .manifest()
            .disk(disk.name())
            .context("a disk without a record")?;
        let unreadable = args
            .unreadable
            .then(|| disk.unreadable_at_source(usize::MAX))
            .transpose()?;
        shown.push((disk, record, unreadable));
    }
    if context.json {
        let disks: Vec<Value> = shown
            .iter()
            .map(|(disk, record, found)| disk_object(disk, record, found))
            .collect();
        let mut object = image_object(&image, &parent, &disks);
        object["boot"] = match &boot {
            Ok(Some(verdict)) => boot_verdict::object(verdict)?,
            _ => Value::Null,
        };
        output::json(&object)?;
        return judge(boot);
    }
    print_image(&image, &parent)?;
    print_boot(&boot)?;
    for (disk, record, unreadable) in &shown {
        print_disk(disk, record)?;
        if let Some(unreadable) = unreadable {
            print_unreadable(unreadable)?;
        }
    }
    judge(boot)
}

/// What is beside the image counts for the exit code alone: the image itself has been shown.
fn judge(boot: imagefmt::Result<Option<BootVerdict>>) -> anyhow::Result<ExitCode> {
    match boot {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(error) => Ok(exit::report(&error.into())),
    }
}

fn print_boot(boot: &imagefmt::Result<Option<BootVerdict>>) -> anyhow::Result<()> {
    match boot {
        Ok(None) => field("booted", "never checked"),
        Ok(Some(verdict)) => field("booted", boot_verdict::in_short(verdict)),
        Err(_) => field("booted", "the boot verdict cannot be read"),
    }
}

fn field(name: &str, value: impl std::fmt::Display) -> anyhow::Result<()> {
    output::line(format_args!("{name:<14}{value}"))
}

fn disk_field(name: &str, value: impl std::fmt::Display) -> anyhow::Result<()> {
    output::line(format_args!("  {name:<12}{value}"))
}

/// A choice with the reason for it, where one is recorded.
fn with_reason(choice: impl std::fmt::Display, reason: &str) -> String {
    if reason.is_empty() {
        choice.to_string()
    } else {
        format!("{choice} ({reason})")
    }
}

/// What the store says of the image that another was made from; `None` where there is none, or it was deleted.
type Parent = imagefmt::Result<Option<ImageId>>;

fn print_image(image: &Image, parent: &Parent) -> anyhow::Result<()> {
    let manifest = image.manifest();
    field("image", image.id().to_string())?;
    field("id", manifest.id)?;
    field(
        "chain",
        format_args!("{} ({})", image.id().chain(), manifest.chain),
    )?;
    field("parent", parent_text(image, parent))?;
    if let Some(owner) = &manifest.owner {
        field("owner", owner)?;
    }
    field("started", units::local_time(manifest.started))?;
    field("finished", units::local_time(manifest.finished))?;
    field("kind", manifest.kind)?;
    field(
        "consistency",
        with_reason(manifest.consistency, &manifest.consistency_reason),
    )?;
    if let Some(instant) = &manifest.instant {
        print_instant(instant)?;
    }
    field("cluster size", units::size(manifest.cluster_size.into()))?;
    field("features", features(manifest))
}

/// Paths came from the source, so they are shown without control characters.
fn print_instant(instant: &InstantRecord) -> anyhow::Result<()> {
    field(
        "instant",
        text::writers_held(instant.held_us, instant.passes.len()),
    )?;
    for one in &instant.filesystems {
        let took = Duration::from_micros(one.freezing_us).as_millis();
        let what = format!("{} ({}), within {took} ms", one.mount_point, one.fs_type);
        field("frozen", what.escape_debug())?;
    }
    let mut left_out = instant.left_out.iter();
    left_out.try_for_each(|what| field("not frozen", what.escape_debug()))
}

fn features(manifest: &Manifest) -> String {
    let all: Vec<&str> = manifest
        .incompatible
        .iter()
        .chain(&manifest.compatible)
        .map(String::as_str)
        .collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(", ")
    }
}

fn parent_text(image: &Image, parent: &Parent) -> String {
    let Some(record) = &image.manifest().parent else {
        return "none".to_owned();
    };
    let (number, id) = (record.sequence, record.id);
    match parent {
        Ok(Some(parent)) => format!("{parent} ({id})"),
        Ok(None) => format!("number {number}, deleted ({id})"),
        Err(error) => format!("number {number} ({id}); cannot be read: {}", error.full_message()),
    }
}

fn print_disk(disk: &Disk, record: &DiskRecord) -> anyhow::Result<()> {
    let (count, referenced) = disk.layers();
    output::line("")?;
    output::line(disk.label())?;
    disk_field(
        "size",
        format_args!("{} ({} bytes)", units::size(record.size_bytes), record.size_bytes),
    )?;
    disk_field("digest", disk.digest())?;
    disk_field("method", with_reason(record.method, &record.method_reason))?;
    disk_field("compared", units::size(record.compared_bytes))?;
    disk_field("dirty", units::size(record.dirty_bytes))?;
    disk_field("stored", units::size(record.stored_bytes))?;
    if record.repaired_clusters > 0 {
        let count = usize::try_from(record.repaired_clusters).unwrap_or(usize::MAX);
        let clusters = text::count(count, "cluster");
        disk_field(
            "repaired",
            format_args!("{clusters}, damaged in the image before"),
        )?;
    }
    if record.unreadable_clusters > 0 {
        let count = usize::try_from(record.unreadable_clusters).unwrap_or(usize::MAX);
        let clusters = text::count(count, "cluster");
        let what = "sectors in them could not be read from the disk, and cannot be read from the image";
        disk_field(
            "unreadable",
            format_args!("{clusters}: {what} (--unreadable lists them)"),
        )?;
    }
    let layers = text::count(count, "layer");
    disk_field(
        "layers",
        format_args!("{layers}, {} referenced", units::size(referenced)),
    )?;
    disk_field("sectors", units::size(record.logical_block_size.into()))?;
    identity(&record.identity)
        .into_iter()
        .try_for_each(|(name, value)| disk_field(name, value))
}

/// Ids of filesystems, of which there may be one for each partition.
fn holds(filesystems: &[String]) -> Option<String> {
    (!filesystems.is_empty()).then(|| filesystems.join(", "))
}

/// What is known of a disk's identity. It came from the source, so it is shown without control characters.
fn identity(identity: &DiskIdentity) -> Vec<(&'static str, String)> {
    let known = [
        ("model", identity.model.clone()),
        ("serial", identity.serial.clone()),
        ("wwn", identity.wwn.clone()),
        ("uuid", identity.uuid.clone()),
        ("file", identity.backing_file.clone()),
        ("diskseq", identity.diskseq.map(|number| number.to_string())),
        ("table", identity.table.clone()),
        ("holds", holds(&identity.filesystems)),
    ];
    let shown = known.into_iter().filter_map(|(name, value)| Some((name, value?)));
    shown
        .map(|(name, value)| (name, value.escape_debug().to_string()))
        .collect()
}

fn print_unreadable(unreadable: &[Range<u64>]) -> anyhow::Result<()> {
    if unreadable.is_empty() {
        return disk_field("unreadable", "nothing");
    }
    unreadable.iter().try_for_each(|range| {
        let (offset, length) = (range.start, units::size(range.end - range.start));
        disk_field(
            "unreadable",
            format_args!("sectors within {length} from byte {offset} on"),
        )
    })
}

fn image_object(image: &Image, parent: &Parent, disks: &[Value]) -> Value {
    let manifest = image.manifest();
    json!({
        "image": image.id().to_string(),
        "job": manifest.job,
        "owner": manifest.owner,
        "sequence": manifest.sequence,
        "id": manifest.id,
        "chain": { "name": image.id().chain(), "id": manifest.chain },
        "parent": manifest.parent,
        "parent_image": parent.as_ref().ok().and_then(Option::as_ref).map(ToString::to_string),
        "parent_error": parent.as_ref().err().map(imagefmt::Error::full_message),
        "started": manifest.started,
        "finished": manifest.finished,
        "kind": manifest.kind,
        "consistency": manifest.consistency,
        "consistency_reason": manifest.consistency_reason,
        "instant": manifest.instant,
        "cluster_size": manifest.cluster_size,
        "format": manifest.format,
        "incompatible": manifest.incompatible,
        "compatible": manifest.compatible,
        "disks": disks,
    })
}

fn disk_object(disk: &Disk, record: &DiskRecord, unreadable: &Option<Vec<Range<u64>>>) -> Value {
    let (count, referenced) = disk.layers();
    let mut object = json!({
        "name": record.name,
        "size_bytes": record.size_bytes,
        "logical_block_size": record.logical_block_size,
        "identity": record.identity,
        "digest": disk.digest().to_string(),
        "method": record.method,
        "method_reason": record.method_reason,
        "compared_bytes": record.compared_bytes,
        "dirty_bytes": record.dirty_bytes,
        "stored_bytes": record.stored_bytes,
        "repaired_clusters": record.repaired_clusters,
        "unreadable_clusters": record.unreadable_clusters,
        "layers": count,
        "referenced_bytes": referenced,
    });
    if let Some(unreadable) = unreadable {
        let extent = |range: &Range<u64>| json!({ "start": range.start, "length": range.end - range.start });
        object["unreadable"] = unreadable.iter().map(extent).collect();
    }
    object
}
