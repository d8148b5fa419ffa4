//! The volumes that a helper guest has put together, as files beside those of the disks.

use super::partition::Source;
use super::select::NamedDisk;
use super::state;
use crate::helper::Volume;
use anyhow::Context;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A volume, and its file.
#[derive(Debug)]
pub struct VolumeFile {
    volume: Volume,
    path: PathBuf,
}

impl VolumeFile {
    /// The file of a volume in the mount with this private directory.
    pub fn new(dir: &Path, volume: Volume) -> Self {
        Self {
            path: state::disk_path(dir, &volume.name),
            volume,
        }
    }

    /// It as the disks of an image are looked at.
    pub fn named(&self) -> NamedDisk<'_> {
        NamedDisk {
            name: &self.volume.name,
            block_bytes: self.volume.block_bytes,
            source: self,
            volume: Some(&self.volume),
        }
    }
}

/// The disks of an image, and what was put together from them.
pub fn beside<'a>(disks: &[NamedDisk<'a>], volumes: &'a [VolumeFile]) -> Vec<NamedDisk<'a>> {
    let volumes = volumes.iter().map(VolumeFile::named);
    disks.iter().copied().chain(volumes).collect()
}

impl Source for VolumeFile {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes
    }

    /// The file is opened for each read: for as long as it is open, its server does not end.
    fn read_at(&self, offset: u64, target: &mut [u8]) -> anyhow::Result<()> {
        let read = File::open(&self.path).and_then(|file| file.read_exact_at(target, offset));
        read.with_context(|| format!("read {} in the helper guest", self.volume.name))
    }
}
