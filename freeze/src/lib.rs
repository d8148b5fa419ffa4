//! Flushes and freezes the filesystems that lie on disks, and thaws them whatever happens.
//!
//! - [`on_disks`]: the filesystems on some disks, through partitions, LVM, RAID, encryption and files behind loop devices, in all
//!   mount namespaces: what can be frozen, what cannot, and what nobody accounts for.
//! - [`OnDisks::flush`]: has the kernel write all that it holds back.
//! - [`OnDisks::freeze`]: stops all writes at one instant, for at most a time that is given: [`Frozen`]. [`Frozen::thaw`] gives the
//!   [`Evidence`] of it.
//! - [`Watchdog`]: a process of its own that thaws when the time is up, and when the process that froze dies.
//! - [`thaw_listed`]: thaws what processes left frozen that have died, and their watchdogs too.
//!
//! **Invariants.** Nothing is frozen without a watchdog that has said that it is ready, and the watchdog thaws: a process that is killed
//! while it thaws can do harm (see `Watchdog::thaw`). Between the first freeze and the last thaw
//! this crate allocates nothing, logs nothing, takes no lock, and opens, writes and closes no file: all of it may need a
//! filesystem that is frozen. A process that writes to one waits in the kernel, and no signal ends that.
//!
//! It is about the machine on which it runs: other than `hostdev`, it does not look at trees that look like a machine.

mod error;
mod evidence;
mod find;
mod flush;
mod frozen;
mod ioctl;
mod list;
mod order;
mod watchdog;

pub use error::{Error, ErrorKind, Result};
pub use evidence::{Evidence, FreezeOutcome, OfFilesystem, ThawOutcome};
pub use find::{Filesystem, Holders, Kind, OnDisks, Unaccounted, on_disks};
pub use flush::{Flushed, NotFlushed};
pub use frozen::Frozen;
pub use list::{LIST_DIRECTORY, thaw_listed};
pub use watchdog::{Watchdog, WatchdogArgs, WatchdogProgram, is_systemd_running, watch};
