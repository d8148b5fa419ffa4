//! What the tests of every crate share. Nothing of it is in a program that users run.
//!
//! - [`corpus`]: the functions of fuzzers on stable.
//! - [`device`]: direct writes, discards and zeroing of block devices, and zram devices.
//! - [`guard`]: loop devices, mounts and scratch directories that are released when they are dropped, on an early
//!   return and while a panic unwinds too.
//! - [`failing`]: files with places that cannot be read.
//! - [`process`]: child processes that end with us, waiting with a deadline, and Ctrl-C.
//! - [`program`]: programs under test, run to their end or watched while they run.
//! - [`requests`]: the requests that a loop device gets, as the kernel records them.
//! - [`sandbox`]: programs that run as on a kernel without io_uring.
//! - [`noise`]: bytes and numbers that look random and are the same for the same seed.
//! - [`pages`]: what every program owes its users: help, man pages and completions for every command.

pub mod corpus;
pub mod device;
pub mod error;
pub mod failing;
pub mod guard;
pub mod noise;
pub mod pages;
pub mod process;
pub mod program;
pub mod requests;
pub mod sandbox;

pub use error::{Error, ErrorKind, Result};
pub use noise::{Random, noise};
