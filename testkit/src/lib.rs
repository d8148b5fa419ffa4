//! What the tests of every crate share. Nothing of it is in a program that users run.
//!
//! - [`guard`]: loop devices, mounts and scratch directories that are released when they are dropped, on an early
//!   return and while a panic unwinds too.
//! - [`process`]: child processes that end with us, waiting with a deadline, and Ctrl-C.

pub mod error;
pub mod guard;
pub mod process;

pub use error::{Error, ErrorKind, Result};
