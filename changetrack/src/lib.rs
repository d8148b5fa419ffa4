//! Finds what changed on disks since an image was made, and hands it over in ascending order.
//!
//! - A [`Plan`] says which ranges of a disk to read, how they were found, and why that way. [`Plan::scan`], all of the
//!   disk, is always right. [`Plan::tracked`] is right where the one that names the changed clusters has missed none.
//! - A [`Pipeline`] reads the ranges of several disks at the same time, compares every cluster's digest with a base,
//!   and gives a [`Sink`] what differs. Its threads, rings and buffers are made once, for any number of passes.
//! - [`compare_read`] does the same with what has been read before, while filesystems were frozen.

mod error;
mod pipeline;
mod plan;
mod worker;

pub use error::{Error, ErrorKind, Result};
pub use pipeline::{COMPRESS_LEVEL, Pass, Pipeline, PipelineOptions, Progress, Sink};
pub use plan::{MERGE_GAP_BYTES, Plan};
pub use worker::compare_read;
