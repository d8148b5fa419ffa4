//! The disks of an image, described as a running kernel and udev would describe them: for rules that look at a machine's files.

mod esp;

use crate::guest::firmware::Signs;
use crate::mount::partition::{EFI_SYSTEM, u32_at};
use crate::mount::select::{Found, NamedDisk, disks_of, survey};
use crate::mount::tree::{GuestTree, head, label, uuid};
use anyhow::{Context, bail};
use esp::ShownEsp;
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
    /// What the kernel says of its filesystem's errors; nothing if it is no ext4.
    errors: Option<u32>,
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
    let (mut shown, mut esp) = (Vec::new(), None);
    for (major, disk) in (FIRST_MAJOR..).zip(&disks) {
        let found = survey(disk)?;
        if esp.is_none() {
            esp = esp::show(tree, disk, &found)?;
        }
        shown.extend(disk_and_partitions(&disks, disk, &found, major)?);
        let mut sector = [0; 512];
        disk.source.read_at(0, &mut sector)?;
        write(tree, &format!("/dev/{}", disk.name), sector)?;
    }
    for disk in &disks {
        show_stack(tree, disk)?;
    }
    shown.iter().try_for_each(|device| show(tree, device))?;
    let mounts = mounts(tree, &shown, esp.as_ref());
    write(tree, "/proc/1/mountinfo", mounts)?;
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
    mount_memory(&place, directory)
}

/// Mounts an empty filesystem on a directory, which the image knows by this name.
fn mount_memory(place: &Path, name: &str) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("tmpfs"), place, Some("tmpfs"), flags, None::<&str>)
        .with_context(|| format!("mount a filesystem in memory on {name}"))
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
    found: &[Found],
    major: usize,
) -> anyhow::Result<Vec<Shown>> {
    let whole = Shown {
        directory: format!("/sys/block/{}", disk.name),
        name: disk.name.to_owned(),
        number: format!("{major}:0"),
        size_bytes: disk.source.size_bytes(),
        properties: Vec::new(),
        errors: None,
    };
    let mut shown = vec![whole];
    for found in found {
        let head = head(disks, &found.place)?;
        let (properties, errors) = (properties(found, &head), errors(&head));
        let Some(number) = found.place.partition else {
            (shown[0].properties, shown[0].errors) = (properties, errors);
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
            errors,
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

/// How many errors an ext4 has had.
fn errors(head: &[u8]) -> Option<u32> {
    let id = hostdev::filesystem_id(head)?;
    id.starts_with("ext:").then(|| ext4_errors(head))
}

fn properties(found: &Found, head: &[u8]) -> Vec<String> {
    let id = hostdev::filesystem_id(head).unwrap_or_default();
    // As blkid calls them.
    let kind = match id.split(':').next().unwrap_or_default() {
        "ext" => "ext4",
        "fat" => "vfat",
        "lvm" => "LVM2_member",
        "luks" => "crypto_LUKS",
        "md" => "linux_raid_member",
        other => other,
    };
    let place = &found.place;
    let is_esp = found.kind == EFI_SYSTEM;
    let known = [
        ("ID_FS_TYPE", kind.to_owned()),
        ("ID_FS_UUID", uuid(kind, head)),
        ("ID_FS_LABEL_ENC", encoded(&label(kind, head))),
        ("ID_PART_ENTRY_UUID", place.partition_id.clone()),
        ("ID_PART_ENTRY_NAME", encoded(&place.partition_name)),
        (
            "ID_PART_ENTRY_TYPE",
            String::from(if is_esp { EFI_SYSTEM_TYPE } else { "" }),
        ),
    ];
    let known = known.into_iter().filter(|(_, value)| !value.is_empty());
    known.map(|(name, value)| format!("{name}={value}")).collect()
}

/// As udev writes text that is on a disk.
fn encoded(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "#+-.:=@_".contains(c);
    let mut encoded = String::new();
    for c in text.chars() {
        if is_plain(c) {
            encoded.push(c);
        } else {
            for byte in c.to_string().bytes() {
                // Writing to a text cannot fail.
                let _ = write!(encoded, "\\x{byte:02x}");
            }
        }
    }
    encoded
}

/// How many errors the kernel has met in an ext4, by its superblock (Linux, fs/ext4/ext4.h: `s_state` and `s_error_count`).
fn ext4_errors(head: &[u8]) -> u32 {
    const SUPERBLOCK: usize = 1024;
    const HAS_ERRORS: u32 = 2;
    let has_errors = u32_at(head, SUPERBLOCK + 0x3a) & HAS_ERRORS != 0;
    u32_at(head, SUPERBLOCK + 0x194).max(u32::from(has_errors))
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
    if let Some(errors) = device.errors {
        let path = format!("/sys/fs/ext4/{}/errors_count", device.name);
        write(tree, &path, format!("{errors}\n"))?;
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
fn mounts(tree: &GuestTree, shown: &[Shown], esp: Option<&ShownEsp>) -> String {
    let of_kernel = tree.mounted.iter().map(|mounted| {
        let name = match mounted.place.partition {
            Some(number) => partition_name(&mounted.place.disk, number),
            None => mounted.place.disk.clone(),
        };
        (name, mounted.point.clone(), mounted.fstype)
    });
    let read = esp.map(|(name, point)| (name.clone(), point.clone(), "vfat"));
    let mut table = String::new();
    for (id, (name, point, fstype)) in (20..).zip(of_kernel.chain(read)) {
        let Some(device) = shown.iter().find(|device| device.name == name) else {
            continue;
        };
        let (number, point) = (&device.number, escaped(&point));
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
