//! `smc-image info`: all that is recorded about an image.

use crate::commands::verdict as boot_verdict;
use crate::context::Context;
use crate::exit;
use anyhow::Context as _;
use cli::output;
use cli::text;
use cli::units;
use imagefmt::{
    BootVerdict, Codec, Disk, DiskIdentity, DiskRecord, Image, ImageId, ImageRef, Manifest, Run, Store,
};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::process::ExitCode;

/// Show all that is recorded about an image
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, or one disk of it
    image: ImageRef,
    /// Also list what was unreadable at the source; reads the maps of the disks for it
    #[arg(long)]
    unreadable: bool,
}

/// A piece of a disk that holds sectors which could not be read at the source.
struct Unreadable {
    offset: u64,
    length: u64,
}

/// Shows the manifest, and what follows from it.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let image = store.image(&args.image)?;
    let parent = Parent::of(&store, &image);
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
        let unreadable = args.unreadable.then(|| unreadable(disk)).transpose()?;
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

/// The clusters that hold unreadable sectors, neighbours joined.
fn unreadable(disk: &Disk) -> imagefmt::Result<Vec<Unreadable>> {
    let geometry = disk.geometry();
    let mut found: Vec<Unreadable> = Vec::new();
    disk.tree().walk(0..geometry.cluster_count(), &mut |run| {
        if let Run::Data(index, pointer) = run {
            let (offset, length) = (geometry.cluster_offset(index), geometry.cluster_len(index) as u64);
            match found.last_mut() {
                _ if pointer.codec != Codec::Damaged => {}
                Some(last) if last.offset + last.length == offset => last.length += length,
                _ => found.push(Unreadable { offset, length }),
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Number of layers that a disk points into, and the bytes that it references there.
fn layers(disk: &Disk) -> (usize, u64) {
    let layers = disk.tree().layers();
    (
        layers.iter().count(),
        layers.iter().map(|(_, layer)| layer.referenced).sum(),
    )
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

/// The image that another was made from.
enum Parent {
    None,
    /// It was deleted.
    Deleted,
    Found(ImageId),
    /// An image of its number is there, but cannot be read.
    Unread(imagefmt::Error),
}

impl Parent {
    fn of(store: &Store, image: &Image) -> Self {
        match (image.manifest().parent.is_some(), store.parent(image.id())) {
            (_, Ok(Some(parent))) => Self::Found(parent),
            (false, Ok(None)) => Self::None,
            (true, Ok(None)) => Self::Deleted,
            (_, Err(error)) => Self::Unread(error),
        }
    }

    /// The image, where it is known.
    fn image(&self) -> Option<String> {
        match self {
            Self::Found(parent) => Some(parent.to_string()),
            Self::None | Self::Deleted | Self::Unread(_) => None,
        }
    }

    /// Why the image is not known.
    fn error(&self) -> Option<String> {
        match self {
            Self::Unread(error) => Some(error.full_message()),
            Self::None | Self::Deleted | Self::Found(_) => None,
        }
    }
}

fn print_image(image: &Image, parent: &Parent) -> anyhow::Result<()> {
    let manifest = image.manifest();
    field("image", image.id().to_string())?;
    field("id", manifest.id)?;
    field(
        "chain",
        format_args!("{} ({})", image.id().chain(), manifest.chain),
    )?;
    let (number, id) = manifest.parent.as_ref().map_or_else(Default::default, |record| {
        (record.sequence, record.id.to_string())
    });
    match parent {
        Parent::None => field("parent", "none")?,
        Parent::Deleted => field("parent", format_args!("number {number}, deleted ({id})"))?,
        Parent::Found(parent) => field("parent", format_args!("{parent} ({id})"))?,
        Parent::Unread(error) => field(
            "parent",
            format_args!("number {number} ({id}); cannot be read: {}", error.full_message()),
        )?,
    }
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
    field("cluster size", units::size(manifest.cluster_size.into()))?;
    field("features", features(manifest))
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

fn print_disk(disk: &Disk, record: &DiskRecord) -> anyhow::Result<()> {
    let (count, referenced) = layers(disk);
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

fn print_unreadable(unreadable: &[Unreadable]) -> anyhow::Result<()> {
    if unreadable.is_empty() {
        return disk_field("unreadable", "nothing");
    }
    unreadable.iter().try_for_each(|extent| {
        let (offset, length) = (extent.offset, units::size(extent.length));
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
        "parent_image": parent.image(),
        "parent_error": parent.error(),
        "started": manifest.started,
        "finished": manifest.finished,
        "kind": manifest.kind,
        "consistency": manifest.consistency,
        "consistency_reason": manifest.consistency_reason,
        "cluster_size": manifest.cluster_size,
        "format": manifest.format,
        "incompatible": manifest.incompatible,
        "compatible": manifest.compatible,
        "disks": disks,
    })
}

fn disk_object(disk: &Disk, record: &DiskRecord, unreadable: &Option<Vec<Unreadable>>) -> Value {
    let (count, referenced) = layers(disk);
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
        "layers": count,
        "referenced_bytes": referenced,
    });
    if let Some(unreadable) = unreadable {
        let extent = |extent: &Unreadable| json!({ "start": extent.offset, "length": extent.length });
        object["unreadable"] = unreadable.iter().map(extent).collect();
    }
    object
}
