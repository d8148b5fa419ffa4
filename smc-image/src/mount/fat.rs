//! Names and small files of a FAT filesystem, such as an EFI system partition, read without the kernel: many servers' kernels have
//! no vfat (Microsoft, "FAT: General Overview of On-Disk Format", version 1.03).
//!
//! Nothing here trusts the disk: sizes are checked before anything is read, chains and directories are bounded.

use super::partition::{Source, read_range, u32_at};
use anyhow::{Context, ensure};
use std::cell::Cell;

/// A directory of an EFI system partition has a handful of entries.
const ENTRIES_MAX: usize = 4096;
/// Directories in directories.
const DEPTH_MAX: usize = 8;
/// All that is looked at, and read.
const FILES_MAX: usize = 10_000;
const TOTAL_MAX_BYTES: u64 = 32 << 20;
/// Files up to this size are read: configurations of boot loaders, and no programs.
const READ_MAX_BYTES: u64 = 256 << 10;
const ENTRY_BYTES: usize = 32;

const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;
const SMALL_BASE: u8 = 0x08;
const SMALL_EXTENSION: u8 = 0x10;
const LAST_LONG_ENTRY: u8 = 0x40;
const DELETED: u8 = 0xe5;

/// A file or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FatFile {
    /// Where it is, with a slash in front.
    pub path: String,
    /// What is in it: `None` for a directory, and nothing for a file that is too large.
    pub content: Option<Vec<u8>>,
}

/// Everything that is there, each directory before what is in it.
///
/// # Errors
/// What is no FAT filesystem, or damaged; a disk that cannot be read.
pub fn files(source: &dyn Source, offset: u64, length: u64) -> anyhow::Result<Vec<FatFile>> {
    let fat = Fat::open(source, offset, length)?;
    let mut found = Vec::new();
    fat.walk(&fat.root()?, "", 0, &mut found)?;
    Ok(found)
}

/// How many bits a number in the table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

struct Fat<'a> {
    source: &'a dyn Source,
    /// The filesystem's place on the disk.
    offset: u64,
    length: u64,
    width: Width,
    cluster_bytes: u64,
    clusters: u32,
    /// From the beginning of the filesystem: the table, the root directory of the older kinds, the first cluster.
    table: u64,
    root: u64,
    root_bytes: u64,
    data: u64,
    root_cluster: u32,
    /// How much may still be read.
    left: Cell<u64>,
}

/// An entry of a directory.
struct Entry {
    name: String,
    is_directory: bool,
    cluster: u32,
    bytes: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    (u32_at(bytes, at) & 0xffff).into()
}

impl<'a> Fat<'a> {
    fn open(source: &'a dyn Source, offset: u64, length: u64) -> anyhow::Result<Self> {
        let sector = read_range(source, Some(offset), 512)?;
        let sector_bytes = u16_at(&sector, 11);
        let cluster_sectors = u64::from(sector[13]);
        ensure!(
            [512, 1024, 2048, 4096].contains(&sector_bytes) && cluster_sectors.is_power_of_two(),
            "it is no FAT filesystem"
        );
        let or = |small: u64, large: usize| {
            if small > 0 {
                small
            } else {
                u64::from(u32_at(&sector, large))
            }
        };
        let total = or(u16_at(&sector, 19), 32);
        let table_sectors = or(u16_at(&sector, 22), 36);
        let table = u16_at(&sector, 14);
        let root = table + u64::from(sector[16]) * table_sectors;
        let root_bytes = u16_at(&sector, 17) * ENTRY_BYTES as u64;
        let data = root + root_bytes.div_ceil(sector_bytes);
        ensure!(
            total > data && total <= length / sector_bytes,
            "its sizes are wrong"
        );
        let clusters = (total - data) / cluster_sectors;
        let width = match clusters {
            ..4085 => Width::Twelve,
            4085..65_525 => Width::Sixteen,
            _ => Width::ThirtyTwo,
        };
        Ok(Self {
            source,
            offset,
            length,
            width,
            cluster_bytes: cluster_sectors * sector_bytes,
            clusters: u32::try_from(clusters)?,
            table: table * sector_bytes,
            root: root * sector_bytes,
            root_bytes,
            data: data * sector_bytes,
            root_cluster: u32_at(&sector, 44),
            left: Cell::new(TOTAL_MAX_BYTES),
        })
    }

    fn read(&self, at: u64, length: u64) -> anyhow::Result<Vec<u8>> {
        let end = at.checked_add(length);
        ensure!(
            end.is_some_and(|end| end <= self.length),
            "it lies beyond the filesystem"
        );
        let left = self.left.get().checked_sub(length);
        self.left
            .set(left.context("it has more in its directories than an EFI system partition")?);
        read_range(self.source, self.offset.checked_add(at), length)
    }

    /// The content of the root directory.
    fn root(&self) -> anyhow::Result<Vec<u8>> {
        match self.width {
            Width::ThirtyTwo => self.chain(self.root_cluster, (ENTRIES_MAX * ENTRY_BYTES) as u64),
            _ => self.read(self.root, self.root_bytes),
        }
    }

    /// What the clusters from this one on hold, up to `most` bytes.
    fn chain(&self, first: u32, most: u64) -> anyhow::Result<Vec<u8>> {
        let mut content = Vec::new();
        let mut cluster = first;
        while (2..self.clusters.saturating_add(2)).contains(&cluster) && (content.len() as u64) < most {
            let at = self.data + u64::from(cluster - 2) * self.cluster_bytes;
            content.extend(self.read(at, self.cluster_bytes)?);
            cluster = self.next(cluster)?;
        }
        content.truncate(usize::try_from(most)?);
        Ok(content)
    }

    /// The cluster behind this one; a number that no cluster has at the end.
    fn next(&self, cluster: u32) -> anyhow::Result<u32> {
        let number = u64::from(cluster);
        let at = |offset: u64, length: u64| self.read(self.table + offset, length);
        Ok(match self.width {
            Width::Twelve => {
                let bytes = at(number + number / 2, 2)?;
                let both = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
                if cluster.is_multiple_of(2) {
                    both & 0xfff
                } else {
                    both >> 4
                }
            }
            Width::Sixteen => {
                let bytes = at(number * 2, 2)?;
                u16::from_le_bytes([bytes[0], bytes[1]]).into()
            }
            Width::ThirtyTwo => u32_at(&at(number * 4, 4)?, 0) & 0x0fff_ffff,
        })
    }

    fn walk(
        &self,
        directory: &[u8],
        path: &str,
        depth: usize,
        found: &mut Vec<FatFile>,
    ) -> anyhow::Result<()> {
        for entry in entries(directory) {
            if found.len() >= FILES_MAX {
                break;
            }
            let path = format!("{path}/{}", entry.name);
            let content = match entry.is_directory {
                true => None,
                false if entry.bytes > READ_MAX_BYTES => Some(Vec::new()),
                false => Some(self.chain(entry.cluster, entry.bytes)?),
            };
            found.push(FatFile {
                path: path.clone(),
                content,
            });
            if entry.is_directory && depth < DEPTH_MAX {
                let below = self.chain(entry.cluster, (ENTRIES_MAX * ENTRY_BYTES) as u64)?;
                self.walk(&below, &path, depth + 1, found)?;
            }
        }
        Ok(())
    }
}

/// What a directory lists, without itself and the one above.
fn entries(directory: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    // Parts of a long name come before their entry, the last part first.
    let mut long: Vec<u16> = Vec::new();
    for entry in directory.chunks_exact(ENTRY_BYTES) {
        let attributes = entry[11];
        match entry[0] {
            0 => break,
            DELETED => long.clear(),
            _ if attributes & 0x3f == ATTRIBUTE_LONG_NAME => {
                if entry[0] & LAST_LONG_ENTRY != 0 {
                    long.clear();
                }
                long.splice(0..0, long_part(entry));
            }
            _ if attributes & ATTRIBUTE_LABEL != 0 => long.clear(),
            _ => {
                let name = name(entry, &std::mem::take(&mut long));
                if is_name(&name) {
                    found.push(Entry {
                        name,
                        is_directory: attributes & ATTRIBUTE_DIRECTORY != 0,
                        cluster: u32::try_from(u16_at(entry, 20) << 16 | u16_at(entry, 26)).unwrap_or(0),
                        bytes: u32_at(entry, 28).into(),
                    });
                }
            }
        }
    }
    found
}

/// Thirteen units of a long name.
fn long_part(entry: &[u8]) -> Vec<u16> {
    let places = [1..11, 14..26, 28..32];
    let units = places.into_iter().flat_map(|place| entry[place].chunks_exact(2));
    units.map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect()
}

fn name(entry: &[u8], long: &[u16]) -> String {
    if !long.is_empty() {
        let end = long.iter().position(|unit| *unit == 0).unwrap_or(long.len());
        return String::from_utf16_lossy(&long[..end]);
    }
    // Short names have capital letters; two bits say which part of the name was written without.
    let part = |bytes: &[u8], small: u8| {
        let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
        if entry[12] & small != 0 {
            text.to_lowercase()
        } else {
            text
        }
    };
    match (
        part(&entry[..8], SMALL_BASE),
        part(&entry[8..11], SMALL_EXTENSION),
    ) {
        (base, extension) if extension.is_empty() => base,
        (base, extension) => format!("{base}.{extension}"),
    }
}

/// Whether a name can be that of a file in a directory of ours.
fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::partition::Bytes;
    use std::process::Command;

    fn mtool(disk: &std::path::Path, program: &str, arguments: &[&str]) {
        let mut command = Command::new(program);
        command.env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(disk);
        assert!(command.args(arguments).status().unwrap().success(), "{program}");
    }

    /// A filesystem of so many MiB with some files.
    fn made(mib: u64, options: &[&str]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("esp");
        let file = std::fs::File::create(&disk).unwrap();
        file.set_len(mib << 20).unwrap();
        let sectors = (mib * 2048).to_string();
        mtool(
            &disk,
            "mformat",
            &[options, &["-T", &sectors, "-v", "ESP", "::"]].concat(),
        );
        mtool(&disk, "mmd", &["::EFI", "::EFI/debian"]);
        let text = dir.path().join("grub.cfg");
        std::fs::write(&text, "configfile /grub.cfg\n".repeat(1000)).unwrap();
        let text = text.display().to_string();
        mtool(&disk, "mcopy", &[&text, "::EFI/debian/A configuration.cfg"]);
        mtool(&disk, "mcopy", &[&text, "::EFI/BOOTX64.EFI"]);
        mtool(&disk, "mdel", &["::EFI/BOOTX64.EFI"]);
        std::fs::read(&disk).unwrap()
    }

    #[test]
    fn names_and_contents_are_those_that_were_written() {
        for (mib, options) in [(4, &[][..]), (64, &[]), (64, &["-F"])] {
            let mut disk = vec![0; 1 << 20];
            disk.extend(made(mib, options));
            let found = files(&Bytes(disk), 1 << 20, mib << 20).unwrap();
            let paths: Vec<&str> = found.iter().map(|file| file.path.as_str()).collect();
            assert_eq!(
                paths,
                ["/EFI", "/EFI/debian", "/EFI/debian/A configuration.cfg"],
                "{mib} {options:?}"
            );
            assert_eq!(found[1].content, None);
            let text = found[2].content.as_deref().unwrap();
            assert!(
                text == "configfile /grub.cfg\n".repeat(1000).as_bytes(),
                "{} bytes",
                text.len()
            );
        }
    }

    #[test]
    fn whatever_is_on_the_disk_reading_ends() {
        let good = made(4, &[]);
        let mut random = testkit::Random::new(1);
        for _ in 0..2000 {
            let mut disk = good.clone();
            for _ in 0..8 {
                let at = usize::try_from(random.below(64 << 10)).unwrap();
                disk[at] = u8::try_from(random.below(256)).unwrap();
            }
            let length = disk.len() as u64;
            let _ = files(&Bytes(disk), 0, length);
        }
        assert!(files(&Bytes(vec![0; 4096]), 0, 4096).is_err());
        assert!(files(&Bytes(good), 1 << 60, 1 << 20).is_err());
    }
}
