//! Finds what changed on a disk since an image was made, and hands it over in ascending order.
//!
//! There is one way so far, and it is always right: the [`scan`](fn@scan), which reads the whole disk and
//! compares every cluster's digest with the parent image's tree.

mod error;
mod examine;
mod scan;

pub use error::{Error, ErrorKind, Result};
pub use scan::{COMPRESS_LEVEL, Progress, ScanOptions, Scanned, Sink, scan};
