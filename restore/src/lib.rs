//! Writes disks of images to devices and files, and reads them from end to end.
//!
//! A part of the programs, as `cli` is: its errors and messages are for people.

pub mod apart;
pub mod digest;
pub mod evidence;
pub mod held;
pub mod onto;
pub mod pieces;
pub mod pipeline;
pub mod target;
pub mod write;
pub mod zero;
