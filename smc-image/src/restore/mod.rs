//! What a disk of an image may be written to.

pub mod target;
