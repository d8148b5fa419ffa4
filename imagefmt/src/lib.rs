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
pub use format::digest::{Digest, DiskDigest, DiskHasher, leaf_digest, root_digest};
pub use format::geometry::{ClusterSize, Geometry};
pub use format::id::Uuid;
pub use format::instant::{FrozenRecord, InstantRecord, PassRecord};
pub use format::manifest::{Consistency, DiskIdentity, DiskRecord, Kind, Manifest, Method};
pub use format::name::{ImageId, ImageRef, check_name};
pub use format::owner::{Owner, TakeOver};
pub use format::pointer::Codec;
pub use read::bytes::TryRead;
pub use read::image::{Disk, Extent, Image};
pub use reclaim::delete::Reclaimed;
pub use storage::Lock;
pub use storage::holders::of as lock_holders;
pub use store::fallback::{Fallback, Known};
pub use store::jobs::JobImages;
pub use store::locks::LockWait;
pub use store::pins::Pin;
pub use store::proven::Proven;
pub use store::request::WriteRequest;
pub use store::{Readers, Store};
pub use verify::boot::{BootMachine, BootProblem, BootResult, BootVerdict};
pub use verify::verdict::{Against, Span, Verdict, VerdictState};
pub use verify::{Finding, Inspection, Verified, Verifier, VerifyPlan, VerifyProgress};
pub use write::base::{Base, Digests, StoredDigest};
pub use write::builder::ClusterUpdate;
pub use write::disk::{Audited, DiskId, DiskMeta};
pub use write::encoder::ClusterEncoder;
pub use write::sync::ImageWriter;
pub use write::target::WriteImage;

#[cfg(test)]
pub(crate) use {
    format::codec::SECTOR_LEN, format::node::NodeId, format::pointer::Pointer, read::diff::Change,
    storage::Storage, verify::Sample, verify::Scope,
};
