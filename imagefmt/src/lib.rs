//! The chained image format of smc and the store that holds it.
//!
//! An image is a Merkle tree over append-only layers (docs/format.md is normative). This crate writes one
//! with [`Store::begin`] and reads any with [`Store::image`]; it never opens a device and knows nothing of
//! NBD or jobs.

#![deny(clippy::big_endian_bytes, clippy::host_endian_bytes)]

mod error;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
#[path = "../fuzz/oracle/mod.rs"]
pub mod fuzzing;
mod parallel;
mod read;
mod reclaim;
mod storage;
mod store;
#[cfg(test)]
mod tests;
mod verify;
mod write;

pub use error::{Error, ErrorKind, Result};
pub use format::codec::SECTOR_LEN;
pub use format::digest::{Digest, DiskDigest, DiskHasher, cluster_digest, is_zero};
pub use format::geometry::{ClusterSize, Geometry};
pub use format::id::Uuid;
pub use format::manifest::{Consistency, DiskIdentity, DiskRecord, Kind, Manifest, Method};
pub use format::name::{ImageId, ImageRef, Which, check_name};
pub use format::owner::{Owner, TakeOver};
pub use format::pointer::Codec;
pub use read::bytes::TryRead;
pub use read::image::{Disk, Extent, Image};
pub use read::tree::Run;
pub use reclaim::delete::Reclaimed;
pub use storage::Lock;
pub use storage::holders::of as lock_holders;
pub use store::fallback::Fallback;
pub use store::jobs::JobImages;
pub use store::locks::LockWait;
pub use store::pins::{PIN_NAME, Pin};
pub use store::{Readers, Store};
pub use verify::boot::{BootMachine, BootProblem, BootResult, BootVerdict};
pub use verify::verdict::{Against, Span, Verdict, VerdictState};
pub use verify::{Finding, Inspection, Scope, Verified, Verifier, VerifyPlan, VerifyProgress};
pub use write::base::Base;
pub use write::builder::ClusterUpdate;
pub use write::disk::{DiskId, DiskMeta};
pub use write::encoder::ClusterEncoder;
pub use write::sync::{ImageWriter, WriteRequest};

#[cfg(test)]
pub(crate) use {
    format::node::NodeId, format::pointer::Pointer, read::diff::Change, storage::Storage, verify::Sample,
};

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use storage::dir::DirStorage;

/// How long another process that makes a store in the same directory is waited for.
const CREATION_PATIENCE: Duration = Duration::from_secs(10);

/// Opens the store in a directory. Never writes.
pub fn open_store(path: &Path) -> Result<Store> {
    Store::open(Arc::new(DirStorage::open(path)?), &path.display().to_string())
}

/// Opens the store in a directory, or makes an empty or missing directory one.
///
/// On NFS, CIFS, FUSE and their like a new store is made only with `allow_network_fs`.
///
/// # Errors
/// `NotAStore` for a directory that holds something else; `Busy`, with who it is, while another process makes a store there;
/// otherwise when it cannot be read or written.
pub fn open_or_create_store(path: &Path, allow_network_fs: bool) -> Result<Store> {
    match open_store(path) {
        Err(error) if error.kind() == ErrorKind::NotAStore => {
            let label = path.display().to_string();
            let storage = DirStorage::open_for_store(path, allow_network_fs)?;
            // Two that create it at once take turns, and the second finds it there.
            let _turn = storage
                .lock_whole(CREATION_PATIENCE)
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
