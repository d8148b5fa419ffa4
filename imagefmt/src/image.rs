//! Opened images and their disks: what readers hold.

use crate::cache::ChainFiles;
use crate::codec::Content;
use crate::digest::{DiskDigest, cluster_digest};
use crate::error::{Error, ErrorKind, Result, Within};
use crate::geometry::Geometry;
use crate::int::to_usize;
use crate::manifest::Manifest;
use crate::pointer::{Codec, Pointer};
use crate::storage::Lock;
use crate::tree::{Run, Tree};
use std::ops::ControlFlow;
use std::sync::Arc;

/// An image, opened and locked against deletion for as long as it or one of its disks lives.
#[derive(Debug, Clone)]
pub struct Image {
    chain: String,
    manifest: Arc<Manifest>,
    disks: Vec<Disk>,
}

/// One disk of an image. Cheap to clone; safe to read from many threads.
#[derive(Debug, Clone)]
pub struct Disk {
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
        manifest: Manifest,
        files: &Arc<ChainFiles>,
        lock: &Arc<Lock>,
    ) -> Result<Self> {
        let cluster_size = manifest.cluster_size()?;
        let mut tables = manifest.layer_tables();
        let disk = |record: &crate::manifest::DiskRecord| {
            let label = format!("{}/{}:{}", manifest.job, manifest.sequence, record.name);
            let geometry = Geometry::new(record.size_bytes, cluster_size)?;
            let layers = Arc::new(tables.remove(record.name.as_str()).unwrap_or_default());
            let tree = Tree::new(geometry, record.root()?, layers, files.clone()).within(|| label.clone())?;
            Ok(Disk {
                label: label.into(),
                name: record.name.as_str().into(),
                tree,
                _lock: lock.clone(),
            })
        };
        let disks = manifest.disks.iter().map(disk).collect::<Result<_>>()?;
        Ok(Self {
            chain: chain.to_owned(),
            manifest: Arc::new(manifest),
            disks,
        })
    }

    /// The image's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Name of the chain that holds it.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// How people write it: `web01/7`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.manifest.job, self.manifest.sequence)
    }

    /// All disks.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The disk of this name, or the only one where none is named.
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
                let label = self.label();
                Error::new(
                    ErrorKind::NotFound,
                    format!("image {label} has no disk {name}; it has {}", names()),
                )
            }),
            (None, [disk]) => Ok(disk),
            (None, _) => {
                let label = self.label();
                let first = &self.disks[0].name;
                Err(Error::invalid(format!(
                    "image {label} has several disks: name one of {}, as in {label}:{first}",
                    names()
                )))
            }
        }
    }
}

impl Disk {
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

    /// The disk's tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Digest of the disk's content, as its root gives it.
    pub fn digest(&self) -> DiskDigest {
        self.tree.digest()
    }

    /// Fills `target` from byte `offset`. Nothing is handed out that was not verified: a damaged or
    /// unreadable cluster is an error that names it, never zeros.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        let end = offset
            .checked_add(target.len() as u64)
            .filter(|&end| end <= self.size_bytes());
        if end.is_none() {
            let (len, size) = (target.len(), self.size_bytes());
            return Err(Error::invalid(format!(
                "{}: {len} bytes at {offset} lie beyond its {size}",
                self.label
            )));
        }
        self.fill(offset, target).within(|| self.label.to_string())
    }

    fn fill(&self, mut offset: u64, mut target: &mut [u8]) -> Result<()> {
        let geometry = self.geometry();
        while !target.is_empty() {
            let index = geometry.cluster_at(offset);
            let leaf = self.tree.leaf(crate::geometry::parent_index(index))?;
            let pointers = &leaf.children()[crate::geometry::slot(index)..];
            let done = self.fill_from_leaf(index, pointers, offset, target)?;
            target = &mut target[done..];
            offset += done as u64;
        }
        Ok(())
    }

    /// Fills as much of `target` as the clusters of one leaf hold, from cluster `first` on.
    fn fill_from_leaf(
        &self,
        first: u64,
        pointers: &[Pointer],
        offset: u64,
        target: &mut [u8],
    ) -> Result<usize> {
        let geometry = self.geometry();
        let mut done = 0;
        let mut at = 0;
        while at < pointers.len() && done < target.len() {
            let index = first + at as u64;
            let rest = &mut target[done..];
            let run = self.raw_run(index, &pointers[at..], offset + done as u64, rest.len());
            if run > 0 {
                done += self.read_raw_run(index, &pointers[at..at + run], rest)?;
                at += run;
                continue;
            }
            let start = to_usize(offset + done as u64 - geometry.cluster_offset(index));
            let len = (geometry.cluster_len(index) - start).min(rest.len());
            self.read_part(index, &pointers[at], start, &mut rest[..len])?;
            done += len;
            at += 1;
        }
        Ok(done)
    }

    /// How many clusters from `index` on are wanted whole, stored raw, and lie behind one another.
    fn raw_run(&self, index: u64, pointers: &[Pointer], offset: u64, wanted: usize) -> usize {
        let geometry = self.geometry();
        if geometry.cluster_offset(index) != offset {
            return 0;
        }
        let mut left = wanted;
        let mut run = 0;
        for pair in pointers.iter().enumerate() {
            let (i, pointer) = pair;
            let len = geometry.cluster_len(index + i as u64);
            let follows = i == 0
                || (pointer.place.layer == pointers[i - 1].place.layer
                    && pointer.place.offset == pointers[i - 1].place.end());
            if pointer.codec != Codec::Raw || len > left || !follows {
                break;
            }
            left -= len;
            run += 1;
        }
        run
    }

    /// Reads clusters that lie behind one another with one read, straight to where they are wanted.
    fn read_raw_run(&self, index: u64, pointers: &[Pointer], target: &mut [u8]) -> Result<usize> {
        let geometry = self.geometry();
        let total: usize = pointers.iter().map(|pointer| pointer.place.len as usize).sum();
        let target = &mut target[..total];
        let place = pointers[0].place;
        self.tree
            .read_stored(place.layer, place.offset, target)
            .within(|| self.tree.cluster_name(index))?;
        let mut rest = &*target;
        for (i, pointer) in pointers.iter().enumerate() {
            let index = index + i as u64;
            let (cluster, behind) = rest.split_at(geometry.cluster_len(index));
            if cluster_digest(cluster) != pointer.digest {
                let error = Error::damaged("content does not match its digest");
                return Err(error).within(|| self.tree.place_name(index, pointer));
            }
            rest = behind;
        }
        Ok(total)
    }

    fn read_part(&self, index: u64, pointer: &Pointer, start: usize, target: &mut [u8]) -> Result<()> {
        if pointer.is_null() {
            target.fill(0);
            return Ok(());
        }
        let content: Arc<Content> = self.tree.read_cluster_cached(index, pointer)?;
        let range = start..start + target.len();
        target.copy_from_slice(content.readable(range).within(|| self.tree.cluster_name(index))?);
        Ok(())
    }

    /// What lies in `length` bytes from `offset` on: at most `max` extents, which may end early.
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
        walked.within(|| self.label.to_string())?;
        Ok(extents)
    }
}
