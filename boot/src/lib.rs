//! QEMU guests: what runs them, how they start, and what they write to their console.
//!
//! - [`Accelerator`]: the processor's virtualization where a guest has been seen to run on it, QEMU's translator
//!   otherwise.
//! - [`Machine`]: a headless PC, described piece by piece: memory, disks (an NBD export among them), a kernel, serial
//!   lines, a network.
//! - [`Guest`]: a running machine. [`Guest::follow`] reads its console until it powers off, and kills it when it takes
//!   too long.
//! - [`Pc`]: the machine that a whole server starts on, and [`Running`], the same when it runs: console both ways, pictures
//!   of the screen, the line to the guest's [`Agent`], nothing in any directory. [`Transcript`] and [`Findings`] read the console.
//!
//! - [`Archive`] and [`Modules`]: an initramfs, and the drivers of a kernel for it.
//!
//! What a guest writes to a disk may go to an overlay that QEMU throws away ([`Disk::snapshot`]): so an image that is
//! served is started without being changed. Nothing here knows images or the NBD server.

mod accelerator;
mod agent;
mod archive;
mod bus;
mod console;
pub mod diagnosis;
mod error;
mod firmware;
mod guest;
mod machine;
mod modules;
mod pc;
mod probe;
mod qmp;
mod running;
mod sector;
mod transcript;

pub use accelerator::Accelerator;
pub use agent::{Agent, Executed};
pub use archive::Archive;
pub use bus::Bus;
pub use diagnosis::{Diagnosis, Findings, Problem};
pub use error::{Error, ErrorKind, Result};
pub use firmware::Ovmf;
pub use guest::{Follow, Guest, Next, Run};
pub use machine::{Disk, Machine, QEMU, nbd_uri};
pub use modules::{Module, Modules, version_of};
pub use pc::{DirectKernel, Firmware, Forward, Network, Pc, PcDisk, Source};
pub use probe::{KVM_VERDICT, Probe};
pub use running::{Running, Said};
pub use transcript::Transcript;
