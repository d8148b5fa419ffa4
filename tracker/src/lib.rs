//! Finds out which parts of a disk were written to, with eBPF programs in the kernel's block layer.
//!
//! - [`Tracker`]: programs and maps, pinned in a directory of bpffs, which outlive this process.
//! - [`Watch`]: one disk that is watched, found again by [`Tracker::watch`].
//! - [`Tracking`]: one sync's use of a watch, from before its first read until its image exists: which clusters were
//!   written to ([`Bitmap`]), and whether that can be believed ([`Distrust`]).
//! - [`support`]: whether this machine can track.
//!
//! docs/tracking.md explains how it works, and what is checked before bits are believed.
//!
//! **Invariants.** A tracker that might be wrong is never believed. No bit is cleared before the image that holds
//! what it stands for exists. This crate knows nothing of images and jobs.

// The helpers of the tests name this crate as other crates do.
#[cfg(test)]
extern crate self as tracker;

mod bitmap;
mod books;
mod distrust;
mod error;
mod evidence;
mod layout;
mod mapping;
mod pinned;
mod pins;
mod programs;
mod refusal;
mod shared;
mod sys;
mod target;
mod tracking;
mod watch;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

pub use bitmap::{Bitmap, Ranges};
pub use distrust::Distrust;
pub use error::{Error, ErrorKind, Result};
pub use pinned::{PIN_DIRECTORY, Status, Support, Tracker, support};
pub use target::Target;
pub use tracking::{Settled, Tracking};
pub use watch::{Watch, WatchStatus};

/// Which image bits are relative to. What it is made of is its user's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageMark(pub [u8; 32]);
