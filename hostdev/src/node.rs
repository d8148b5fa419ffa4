//! Block devices and files as nodes of the graph of what lies on what.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{BlockDevice, DeviceNumber, Error, ErrorKind, Result, Root};

/// A file among all files: `st_dev` and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// `st_dev` of its filesystem.
    pub filesystem: u64,
    /// Its inode number.
    pub inode: u64,
}

impl FileId {
    /// Of the file with this metadata.
    pub fn of(metadata: &Metadata) -> FileId {
        FileId {
            filesystem: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// Something that holds the bytes of a disk: a block device, or a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// A block device.
    Device(DeviceNumber),
    /// A file, and a path that leads to it.
    File(PathBuf, FileId),
}

impl Node {
    /// What a path leads to, links followed.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `Io`.
    pub fn at(root: &Root, path: &Path) -> Result<Node> {
        let metadata = root.metadata(path)?;
        let metadata = metadata.ok_or_else(|| Error::new(ErrorKind::NotFound, "examine", root.join(path)))?;
        Ok(Node::of(path, &metadata))
    }

    /// What has this path and this metadata.
    pub fn of(path: &Path, metadata: &Metadata) -> Node {
        match DeviceNumber::of_block_device(metadata) {
            Some(number) => Node::Device(number),
            None => Node::File(path.to_owned(), FileId::of(metadata)),
        }
    }

    /// The whole disk of a partition; anything else as it is.
    ///
    /// # Errors
    /// `PermissionDenied`, `Malformed`, `Io`; `NotFound` when the disk is gone meanwhile.
    pub fn whole(self, root: &Root) -> Result<Node> {
        let Node::Device(number) = self else {
            return Ok(self);
        };
        match BlockDevice::find(root, number)? {
            Some(device) => Ok(Node::Device(device.whole_disk()?.number())),
            None => Ok(self),
        }
    }

    /// Whether both are the same device or the same file, by whatever path.
    pub fn is_same(&self, other: &Node) -> bool {
        match (self, other) {
            (Node::Device(a), Node::Device(b)) => a == b,
            (Node::File(_, a), Node::File(_, b)) => a == b,
            _ => false,
        }
    }
}
