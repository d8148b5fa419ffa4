//! What boots in QEMU: a bootable disk with real content, and guests that start from an NBD export and
//! say which point in time they woke up in.
//!
//! - [`guard`]: loop devices, mounts and scratch directories that go away when they are dropped, whatever
//!   happens in between. The cross-crate tests use them too.
//! - [`process`]: child processes that end with us, deadlines, and Ctrl-C.
//! - [`disk`]: [`disk::BootDisk`], a PC disk with boot loader, ext4 root, distribution kernel and payload.
//! - [`qemu`]: [`qemu::boot`], one headless run on a throw-away overlay over an NBD export.
//! - [`system`]: [`system::System`], a freshly installed Debian with systemd that runs a script, boot after boot.
//!
//! The tools and the guest kernel come from `scripts/setup.sh`.

pub mod disk;
pub mod error;
pub mod guard;
pub mod initramfs;
pub mod kernel;
pub mod payload;
pub mod process;
pub mod qemu;
pub mod system;

pub use error::{Error, ErrorKind, Result};
