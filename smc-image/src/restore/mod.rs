//! Writing a disk of an image to a device or file: what may be written to, and how.

pub mod target;
pub mod write;
