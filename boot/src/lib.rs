//! QEMU guests: what runs them, how they start, and what they write to their console.
//!
//! - [`Accelerator`]: the processor's virtualization where a guest has been seen to run on it, QEMU's translator
//!   otherwise.
//! - [`Machine`]: a headless PC, described piece by piece: memory, disks (an NBD export among them), a kernel, serial
//!   lines, a network.
//! - [`Guest`]: a running machine. [`Guest::follow`] reads its console until it powers off, and kills it when it takes
//!   too long.
//!
//! What a guest writes to a disk may go to an overlay that QEMU throws away ([`Disk::snapshot`]): so an image that is
//! served is started without being changed. Nothing here knows images or the NBD server.

mod accelerator;
mod console;
mod error;
mod guest;
mod machine;
mod probe;

pub use accelerator::Accelerator;
pub use error::{Error, ErrorKind, Result};
pub use guest::{Follow, Guest, Next, Run};
pub use machine::{Bus, Disk, Machine, QEMU, nbd_uri};
pub use probe::Probe;
