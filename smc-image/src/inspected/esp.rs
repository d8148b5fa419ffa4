//! The EFI system partition, where this machine's kernel has no vfat: its names and its small files, as if it were mounted.

use super::{mount_memory, partition_name};
use crate::mount::fat;
use crate::mount::partition::EFI_SYSTEM;
use crate::mount::select::{Found, NamedDisk};
use crate::mount::tree::GuestTree;
use anyhow::Context;
use hostdev::FstabLine;
use std::fs;

/// Where servers have it.
const POINTS: [&str; 3] = ["/boot/efi", "/efi", "/boot"];

/// Its name and where it is shown.
pub type ShownEsp = (String, String);

/// Shows the first EFI system partition of a disk, unless the kernel has mounted one.
///
/// # Errors
/// A disk that cannot be read, and what cannot be written to the tree. What is no FAT filesystem is left out.
pub fn show(tree: &GuestTree, disk: &NamedDisk<'_>, found: &[Found]) -> anyhow::Result<Option<ShownEsp>> {
    if tree.mounted.iter().any(|mounted| mounted.fstype == "vfat") {
        return Ok(None);
    }
    let mut esps = found.iter().filter(|found| found.kind == EFI_SYSTEM);
    let Some((place, number)) = esps.find_map(|found| Some((&found.place, found.place.partition?))) else {
        return Ok(None);
    };
    let files = match fat::files(disk.source, place.offset, place.length) {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!(
                "the EFI system partition of {} is not looked into: {error:#}",
                disk.name
            );
            return Ok(None);
        }
    };
    let point = point(tree);
    // Links are followed within the image.
    let directory = tree.root.located(&point)?;
    if !directory.is_dir() {
        tracing::warn!(
            "the EFI system partition of {} is not looked into: there is no {point}",
            disk.name
        );
        return Ok(None);
    }
    mount_memory(&directory, &point)?;
    for file in files {
        let place = directory.join(file.path.trim_start_matches('/'));
        match file.content {
            Some(content) => fs::write(&place, content),
            None => fs::create_dir(&place),
        }
        .with_context(|| format!("show {point}{}", file.path))?;
    }
    Ok(Some((partition_name(disk.name, number), point)))
}

/// Where the server itself mounts it.
fn point(tree: &GuestTree) -> String {
    let lines = FstabLine::all(&tree.root.text("/etc/fstab").unwrap_or_default());
    let mut lines = lines.into_iter().filter(|line| line.fs_type == "vfat");
    let named = lines.find(|line| POINTS.contains(&line.point.as_str()));
    named.map_or_else(|| POINTS[0].to_owned(), |line| line.point)
}
