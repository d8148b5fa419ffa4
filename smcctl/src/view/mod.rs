//! What answers look like for people: lines of text, made without any I/O.

pub mod disks;
pub mod estimate;
pub mod exports;
mod fields;
pub mod frame;
pub mod job;
pub mod jobs;
pub mod run;
pub mod status;
pub mod targets;
pub mod tracker;
mod words;
