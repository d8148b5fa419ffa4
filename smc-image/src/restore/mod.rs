//! What a disk of an image may be written to.

pub mod behind;
pub mod gpt;
pub mod target;
