//! What boots in QEMU: a bootable disk with real content, and guests that start from an NBD export and
//! report which point in time they are at.
//!
//! - [`disk`]: [`disk::BootDisk`], a PC disk with boot loader, ext4 root, distribution kernel and payload.
//! - [`guest`]: [`guest::boot`], one headless run on a throw-away overlay over an NBD export.
//! - [`system`]: [`system::System`], a freshly installed Debian with systemd that runs a script, boot after boot.
//! - [`server`]: [`server::Server`], a Debian with its own kernel and GRUB on disks that start by themselves.
//! - [`uefi`]: a disk that UEFI boots.
//!
//! QEMU itself is driven by the crate `boot`. The tools and the guest kernel come from `scripts/setup.sh`.

pub mod disk;
pub mod guest;
pub mod initramfs;
pub mod kernel;
pub mod payload;
pub mod server;
pub mod system;
pub mod uefi;
