//! The disks of an image, described as a running kernel and udev would describe them: for rules that look at a machine's files.

use crate::guest::firmware::Signs;
use crate::mount::partition::EFI_SYSTEM;
use crate::mount::select::{Found, NamedDisk, disks_of, survey};
use crate::mount::tree::{GuestTree, head, uuid};
use anyhow::{Context, bail};
use imagefmt::Image;
use nix::mount::MsFlags;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Where the kernel and udev show what they know; a filesystem in memory is mounted on each.
const SHOWN: [&str; 4] = ["/proc", "/sys", "/run", "/dev"];

/// The major device number of the first disk; each has one of its own.
const FIRST_MAJOR: usize = 300;

/// The type of an EFI system partition in a GPT.
const EFI_SYSTEM_TYPE: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// What is described of a disk or partition.
struct Shown {
    /// Its directory in `/sys/block`.
    directory: String,
    name: String,
    number: String,
    size_bytes: u64,
    /// What udev knows, as `NAME=VALUE`.
    properties: Vec<String>,
}

/// Writes the description into the tree, above whatever the image has there.
///
/// # Errors
/// A disk that cannot be read, and what cannot be mounted or written.
pub fn describe(tree: &GuestTree, image: &Image) -> anyhow::Result<()> {
    for directory in SHOWN {
        cover(tree, directory)?;
    }
    let disks: Vec<NamedDisk<'_>> = disks_of(image).into_iter().chain(tree.opened()).collect();
    let mut shown = Vec::new();
    for (major, disk) in (FIRST_MAJOR..).zip(&disks) {
        shown.extend(disk_and_partitions(&disks, disk, major)?);
        let mut sector = [0; 512];
        disk.source.read_at(0, &mut sector)?;
        write(tree, &format!("/dev/{}", disk.name), sector)?;
    }
    for disk in &disks {
        show_stack(tree, disk)?;
    }
    shown.iter().try_for_each(|device| show(tree, device))?;
    write(tree, "/proc/1/mountinfo", mounts(tree, &shown))?;
    write(tree, "/proc/swaps", "Filename Type Size Used Priority\n")?;
    let signs = Signs::of(image)?;
    if signs.esp && !signs.boot_sector {
        fs::create_dir_all(tree.root.join("/sys/firmware/efi")).context("tell that it starts by UEFI")?;
    }
    Ok(())
}

fn cover(tree: &GuestTree, directory: &str) -> anyhow::Result<()> {
    let place = tree.root.join(directory);
    // A link would lead out of the tree.
    match fs::symlink_metadata(&place) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => bail!("{directory} is no directory in the image"),
        Err(_) => fs::create_dir(&place).with_context(|| format!("make {directory}"))?,
    }
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("tmpfs"), &place, Some("tmpfs"), flags, None::<&str>)
        .with_context(|| format!("mount a filesystem in memory on {directory}"))
}

fn write(tree: &GuestTree, path: &str, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let place = tree.root.join(path);
    fs::create_dir_all(place.parent().unwrap_or(Path::new("/")))
        .and_then(|()| fs::write(&place, content))
        .with_context(|| format!("write {path}"))
}

fn disk_and_partitions(
    disks: &[NamedDisk<'_>],
    disk: &NamedDisk<'_>,
    major: usize,
) -> anyhow::Result<Vec<Shown>> {
    let found = survey(disk)?;
    let whole = Shown {
        directory: format!("/sys/block/{}", disk.name),
        name: disk.name.to_owned(),
        number: format!("{major}:0"),
        size_bytes: disk.source.size_bytes(),
        properties: Vec::new(),
    };
    let mut shown = vec![whole];
    for found in &found {
        let properties = properties(disks, found)?;
        let Some(number) = found.place.partition else {
            shown[0].properties = properties;
            continue;
        };
        let name = partition_name(disk.name, number);
        shown[0].properties = vec!["ID_PART_TABLE_TYPE=gpt".to_owned()];
        shown.push(Shown {
            directory: format!("/sys/block/{}/{name}", disk.name),
            number: format!("{major}:{number}"),
            size_bytes: found.place.length,
            name,
            properties,
        });
    }
    Ok(shown)
}

/// As the kernel names it: `vda1`, `nvme0n1p1`.
fn partition_name(disk: &str, number: u32) -> String {
    let separator = if disk.ends_with(|last: char| last.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{disk}{separator}{number}")
}

fn properties(disks: &[NamedDisk<'_>], found: &Found) -> anyhow::Result<Vec<String>> {
    let head = head(disks, &found.place)?;
    let id = hostdev::filesystem_id(&head).unwrap_or_default();
    // As blkid calls them.
    let kind = match id.split(':').next().unwrap_or_default() {
        "ext" => "ext4",
        "fat" => "vfat",
        "lvm" => "LVM2_member",
        "luks" => "crypto_LUKS",
        "md" => "linux_raid_member",
        other => other,
    };
    let mut properties = Vec::new();
    if !kind.is_empty() {
        properties.push(format!("ID_FS_TYPE={kind}"));
        properties.push(format!("ID_FS_UUID={}", uuid(kind, &head)));
    }
    if found.kind == EFI_SYSTEM {
        properties.push(format!("ID_PART_ENTRY_TYPE={EFI_SYSTEM_TYPE}"));
    }
    Ok(properties)
}

fn show(tree: &GuestTree, device: &Shown) -> anyhow::Result<()> {
    let Shown {
        directory, number, ..
    } = device;
    write(tree, &format!("{directory}/dev"), format!("{number}\n"))?;
    write(
        tree,
        &format!("{directory}/size"),
        format!("{}\n", device.size_bytes / 512),
    )?;
    if let Some((_, partition)) = number.split_once(':').filter(|(_, partition)| *partition != "0") {
        write(tree, &format!("{directory}/partition"), format!("{partition}\n"))?;
    }
    for links in ["slaves", "holders"] {
        let path = format!("{directory}/{links}");
        fs::create_dir_all(tree.root.join(&path)).with_context(|| format!("make {path}"))?;
    }
    let lines = device.properties.iter().map(|line| format!("E:{line}\n"));
    write(
        tree,
        &format!("/run/udev/data/b{number}"),
        lines.collect::<String>(),
    )
}

/// What a volume lies on, as links show it, and how the mapper names it.
fn show_stack(tree: &GuestTree, disk: &NamedDisk<'_>) -> anyhow::Result<()> {
    let Some(volume) = disk.volume else { return Ok(()) };
    let name = disk.name;
    for part in &volume.parts {
        let below = part
            .partition
            .map_or_else(|| part.disk.clone(), |number| partition_name(&part.disk, number));
        let of_disk = match part.partition {
            Some(_) => format!("/sys/block/{}/{below}", part.disk),
            None => format!("/sys/block/{below}"),
        };
        fs::create_dir_all(tree.root.join(format!("/sys/block/{name}/slaves/{below}")))
            .and_then(|()| fs::create_dir_all(tree.root.join(format!("{of_disk}/holders/{name}"))))
            .with_context(|| format!("show what {name} lies on"))?;
    }
    if volume
        .aliases
        .iter()
        .any(|alias| alias.starts_with("/dev/mapper/"))
    {
        write(tree, &format!("/sys/block/{name}/dm/name"), format!("{name}\n"))?;
    }
    Ok(())
}

/// The kernel's table of mounts, as far as the tree goes.
fn mounts(tree: &GuestTree, shown: &[Shown]) -> String {
    let mut table = String::new();
    for (id, mounted) in (20..).zip(&tree.mounted) {
        let name = match mounted.place.partition {
            Some(number) => partition_name(&mounted.place.disk, number),
            None => mounted.place.disk.clone(),
        };
        let Some(device) = shown.iter().find(|device| device.name == name) else {
            continue;
        };
        let (number, point, fstype) = (&device.number, escaped(&mounted.point), mounted.fstype);
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{id} 1 {number} / {point} rw - {fstype} /dev/{name} rw");
    }
    table
}

/// A path in the kernel's table of mounts: blanks would end it.
fn escaped(path: &str) -> String {
    path.replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012")
}
