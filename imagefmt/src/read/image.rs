//! Opened images and their disks: what readers hold.

use crate::error::{Error, ErrorKind, Result};
use crate::format::digest::{Digest, DiskDigest};
use crate::format::geometry::Geometry;
use crate::format::manifest::{DiskRecord, Manifest};
use crate::format::name::ImageId;
use crate::format::pointer::{Codec, Pointer};
use crate::read::cache::{ChainFiles, Opening};
use crate::read::tree::{Run, Tree};
use crate::storage::Lock;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// An image, opened and locked against deletion for as long as it or one of its disks lives.
#[derive(Debug, Clone)]
pub struct Image {
    id: ImageId,
    manifest: Arc<Manifest>,
    disks: Vec<Disk>,
}

/// One disk of an image. Cheap to clone; safe to read from many threads.
#[derive(Debug, Clone)]
pub struct Disk {
    image: ImageId,
    label: Arc<str>,
    name: Arc<str>,
    tree: Tree,
    _lock: Arc<Lock>,
}

/// A piece of a disk of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Whether the image stores anything for it; what is not stored reads as zeros.
    pub data: bool,
}

impl Image {
    pub(crate) fn new(
        chain: &str,
        manifest: Arc<Manifest>,
        files: &Arc<ChainFiles>,
        lock: &Arc<Lock>,
        opening: Opening,
    ) -> Result<Self> {
        let cluster_size = manifest.cluster_size()?;
        let mut tables = manifest.layer_tables();
        let id = ImageId::new(chain, manifest.sequence, &manifest.job);
        let disk = |record: &DiskRecord| {
            let geometry = Geometry::new(record.size_bytes, cluster_size)?;
            let layers = Arc::new(tables.remove(record.name.as_str()).unwrap_or_default());
            let tree = Tree::new(geometry, record.root()?, layers, files.clone(), opening)
                .map_err(|error| error.of_disk(&id, &record.name))?;
            Ok(Disk {
                image: id.clone(),
                label: format!("{id}:{}", record.name).into(),
                name: record.name.as_str().into(),
                tree,
                _lock: lock.clone(),
            })
        };
        let disks = manifest.disks.iter().map(disk).collect::<Result<_>>()?;
        Ok(Self { id, manifest, disks })
    }

    /// The image's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Which image it is. Displayed as people write it: `web01/7`.
    pub fn id(&self) -> &ImageId {
        &self.id
    }

    /// All disks.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The disk of this name, or the only one where none is named.
    ///
    /// # Errors
    /// `NotFound` where the image has no such disk, `Invalid` where none is named and it has several.
    pub fn disk(&self, name: Option<&str>) -> Result<&Disk> {
        let names = || {
            self.disks
                .iter()
                .map(|disk| &*disk.name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        match (name, self.disks.as_slice()) {
            (Some(name), disks) => disks.iter().find(|disk| &*disk.name == name).ok_or_else(|| {
                let what = format!("image {} has no disk {name}; it has {}", self.id, names());
                Error::new(ErrorKind::NotFound, what)
            }),
            (None, [disk]) => Ok(disk),
            (None, _) => {
                let (label, first) = (&self.id, &self.disks[0].name);
                Err(Error::invalid(format!(
                    "image {label} has several disks: name one of {}, as in {label}:{first}",
                    names()
                )))
            }
        }
    }
}

impl Disk {
    /// A disk that is still being written, as far as `tree` goes. What `like` keeps from being deleted stays with it.
    pub(crate) fn of_tree(image: ImageId, name: &str, tree: Tree, like: Option<&Self>) -> Self {
        Self {
            label: format!("{image}:{name}").into(),
            image,
            name: name.into(),
            tree,
            _lock: like.map_or_else(|| Arc::new(Lock::new(())), |like| like._lock.clone()),
        }
    }

    /// How people write it: `web01/7:vda`.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The disk's name within its image.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size and cluster size.
    pub fn geometry(&self) -> Geometry {
        self.tree.geometry()
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.geometry().size_bytes()
    }

    /// The error, with this disk named in it.
    pub(crate) fn name_in(&self, error: Error) -> Error {
        error.of_disk(&self.image, &self.name)
    }

    /// The disk's tree.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Digest of the root node of its tree: null for a disk of zeros.
    pub fn root_digest(&self) -> Digest {
        self.tree.root().digest
    }

    /// Digest of the disk's content, as its root gives it.
    pub fn digest(&self) -> DiskDigest {
        self.tree.digest()
    }

    /// How many layers the disk's content is stored in, and how many bytes of them are its own.
    pub fn layers(&self) -> (usize, u64) {
        let layers = self.tree.layers();
        let referenced = layers.iter().map(|(_, layer)| layer.referenced);
        (layers.iter().count(), referenced.sum())
    }

    /// Byte ranges of clusters in which the source had unreadable sectors, as the disk's map shows them: the first `max`,
    /// neighbours joined.
    ///
    /// # Errors
    /// `Damaged` and `Io` where a node of the map cannot be read.
    pub fn unreadable_at_source(&self, max: usize) -> Result<Vec<Range<u64>>> {
        let geometry = self.geometry();
        let mut found: Vec<Range<u64>> = Vec::new();
        let walked = self.tree.walk(0..geometry.cluster_count(), &mut |run| {
            let Run::Data(
                index,
                Pointer {
                    codec: Codec::Damaged,
                    ..
                },
            ) = run
            else {
                return ControlFlow::Continue(());
            };
            let start = geometry.cluster_offset(index);
            let end = start + geometry.cluster_len(index) as u64;
            let full = found.len() == max;
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ if full => return ControlFlow::Break(()),
                _ => found.push(start..end),
            }
            ControlFlow::Continue(())
        });
        walked.map_err(|error| self.name_in(error))?;
        Ok(found)
    }

    /// What lies in `length` bytes from `offset` on: at most `max` extents, which may end early.
    ///
    /// # Errors
    /// `Damaged` and `Io` where a node of the tree cannot be read.
    pub fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>> {
        let end = offset.saturating_add(length).min(self.size_bytes());
        let mut extents: Vec<Extent> = Vec::new();
        if offset >= end || max == 0 {
            return Ok(extents);
        }
        let geometry = self.geometry();
        let clusters = geometry.cluster_at(offset)..geometry.cluster_at(end - 1) + 1;
        let walked = self.tree.walk(clusters, &mut |run| {
            let (range, data) = match run {
                Run::Zero(range) => (range, false),
                Run::Data(index, _) => (index..index + 1, true),
            };
            let start = geometry.cluster_offset(range.start).max(offset);
            let stop = geometry.cluster_offset(range.end).min(end);
            let full = extents.len() == max;
            match extents.last_mut() {
                Some(last) if last.data == data => last.length += stop - start,
                _ if full => return ControlFlow::Break(()),
                _ => extents.push(Extent {
                    offset: start,
                    length: stop - start,
                    data,
                }),
            }
            ControlFlow::Continue(())
        });
        walked.map_err(|error| self.name_in(error))?;
        Ok(extents)
    }
}
