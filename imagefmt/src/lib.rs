//! The chained image format of smc and the store that holds it.
//!
//! An image is a Merkle tree over append-only layers (docs/format.md is normative). This crate writes one
//! with [`Store::begin`] and reads any with [`Store::image`]; it never opens a device and knows nothing of
//! NBD or jobs.

#![deny(clippy::big_endian_bytes, clippy::host_endian_bytes)]

mod builder;
mod cache;
mod chain;
mod checkpoint;
mod codec;
mod delete;
mod diff;
mod digest;
mod dir;
mod disk_read;
mod disk_writer;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gc;
mod geometry;
mod holders;
mod id;
mod image;
mod int;
mod jobs;
mod layer;
mod manifest;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "only tests and fuzzers have it")]
mod memory;
mod name;
mod node;
mod notes;
mod paths;
mod pins;
mod pointer;
mod reclaim;
mod recover;
mod roots;
mod sealed;
mod storage;
mod store;
mod sync;
#[cfg(test)]
mod tests;
mod tree;
mod verdict;
mod verify;

pub use builder::{BuildStats, ClusterUpdate};
pub use codec::{Content, SECTOR_LEN, compress_cluster, encode_damaged};
pub use delete::Reclaimed;
pub use diff::Change;
pub use digest::{Digest, DiskDigest, DiskHasher, cluster_digest, is_zero};
pub use dir::DirStorage;
pub use disk_read::TryRead;
pub use disk_writer::{Comparison, DiskMeta, DiskSink, DiskWriter};
pub use error::{Error, ErrorKind, Result};
pub use geometry::{ClusterSize, FANOUT, Geometry};
pub use id::Uuid;
pub use image::{Disk, Extent, Image};
pub use jobs::JobImages;
pub use layer::{LayerEntry, LayerTable};
pub use manifest::{Consistency, DiskIdentity, DiskRecord, Kind, LayerRecord, Manifest, Method, ParentRef};
pub use name::{ImageRef, Which, check_name};
pub use node::{Node, NodeId};
pub use pins::{PIN_NAME, Pin};
pub use pointer::{Codec, Place, Pointer};
pub use storage::{LayerAppend, LayerRead, Lock, LockMode, Storage};
pub use store::{Chain, Store};
pub use sync::ImageWriter;
pub use tree::{Run, Tree};
pub use verdict::{Against, Complete, Damage, Samples, Span, Stopped, Verdict, VerdictState};
pub use verify::{Finding, Position, Resume, Sample, Scope, Verified, Verifier, VerifyPlan, VerifyProgress};

use std::path::Path;
use std::sync::Arc;

/// Opens the store in a directory. Never writes.
pub fn open_store(path: &Path) -> Result<Store> {
    Store::open(Arc::new(DirStorage::open(path)?), &path.display().to_string())
}

/// Opens the store in a directory, or makes an empty or missing directory one.
///
/// On NFS, CIFS, FUSE and their like a new store is made only with `allow_network_fs`.
pub fn open_or_create_store(path: &Path, allow_network_fs: bool) -> Result<Store> {
    match open_store(path) {
        Err(error) if error.kind() == ErrorKind::NotAStore => {
            let label = path.display().to_string();
            let storage = DirStorage::open_for_store(path, allow_network_fs)?;
            // Two that create it at once take turns, and the second finds it there.
            let _turn = storage
                .lock_whole()
                .map_err(|error| error.within(label.clone()))?;
            match open_store(path) {
                Err(error) if error.kind() == ErrorKind::NotAStore => {}
                opened => return opened,
            }
            Store::check_empty(&storage, &label)?;
            storage.probe().map_err(|error| error.within(label.clone()))?;
            Store::create(Arc::new(storage), &label)
        }
        opened => opened,
    }
}
