//! This machine's disks, and whether it is ready to be migrated and to boot elsewhere.
//!
//! - [`disks`] lists every block device that is no partition, with what it holds, and why a job of all disks
//!   leaves it out.
//! - [`precheck`] looks at everything that decides whether the copy will start: drivers, boot loader, mounts,
//!   names of disks and interfaces. Each line says what was found and what to do.
//! - [`inspect`] does that by the same rules for a machine that does not run, such as an image of one.
//! - [`disk_names`] turns the device numbers below a store into the names of disks that both of these take.
//!
//! **Invariants.** Nothing is changed on the machine: files and devices are opened for reading, and programs
//! that write caches are told not to. Everything ends in a few seconds: what may hang (programs, `statvfs` on a
//! dead server) has a deadline. What a file says is bounded when it is read, and escaped and shortened before
//! it gets into a message. What could not be determined is reported as that, never as fine.

mod command;
mod files;
mod inventory;
mod precheck;
#[cfg(test)]
mod tests;
mod text;

pub use hostdev::{Error, ErrorKind, Result, Root};
pub use inventory::{disk_names, disks};
pub use precheck::{PrecheckInput, TargetRoom, inspect, precheck};
