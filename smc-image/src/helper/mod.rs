//! The helper guest: where an image has volumes of LVM, arrays of md or LUKS containers, a small guest in QEMU puts them
//! together and serves them as disks. This machine's kernel never sees the parts, so its own volume groups are not in
//! danger, and it needs no drivers for them.
//!
//! image → overlay → NBD → the guest's virtio disks → LVM, md, LUKS in the guest → a virtio port → files of the FUSE server,
//! beside those of the disks. Above that, everything is as for a disk.

mod client;
pub mod init;
pub mod options;
mod stack;
mod supplies;
mod wire;

pub use client::Helper;
pub use options::HelperArgs;
pub use wire::{Opened, Volume};

use std::path::Path;

/// What the guest is made of.
#[derive(Debug, Clone, Copy)]
pub struct Means<'a> {
    /// Its kernel; `None` for one that is found in `root`.
    pub kernel: Option<&'a Path>,
    /// The root directory of the system whose modules and programs it gets.
    pub root: &'a Path,
}
