//! What the kernel says of this machine's devices, typed: numbers, enums and paths, no sentences.
//!
//! - [`BlockDevice`]: one device as sysfs shows it: its size, its [`Identity`], its I/O [`Counters`], its
//!   partitions, what it lies on and what lies on it.
//! - [`disks_below`], [`lies_on`], [`below`]: what lies on what, down to the whole disks; [`first_user`]: who uses a
//!   device or file.
//! - [`Inventory`]: all devices, mounts and swaps, read once, and which lie on which disks.
//! - [`MountTable`] and [`swaps`]: what is mounted and what is swapped to; [`file_places`]: where a file lies on a device.
//! - [`LoopDevice`]: a loop device that goes away with its last user; [`loop_status`] and [`detach_loop`] for any.
//! - [`forget_btrfs`]: what the kernel remembers of a btrfs that is unmounted.
//! - [`Machine`]: which machine this is; [`ProcessStat`]: which process an id means.
//! - [`table_id`], [`filesystem_id`]: ids that are stored on a disk; [`FstabLine`]: what is mounted at boot.
//! - [`Root`]: where the machine's files are seen, read within bounds, so that tests build machines out of
//!   directories.
//!
//! **Invariants.** Nothing is read without a bound. An error never becomes an empty answer: what does not exist is
//! `None` or nothing, what exists and cannot be read is an [`Error`] or is named as unread. Of a kernel's table, a
//! line that cannot be understood costs that line only, and is counted.

mod block;
mod btrfs;
mod content;
mod counters;
mod error;
mod escape;
mod extents;
mod fstab;
mod gpt;
mod identity;
mod inventory;
mod loopdev;
mod machine;
mod mounts;
mod node;
mod number;
mod process;
mod root;
mod swaps;
mod topology;
mod usage;

pub use block::{BlockDevice, Mapped};
pub use btrfs::forget_btrfs;
pub use content::{HEAD_BYTES, filesystem_id, table_id};
pub use counters::{Counters, Discards};
pub use error::{Error, ErrorKind, Result};
pub use escape::unescape;
pub use extents::{FilePlaces, file_places};
pub use fstab::FstabLine;
pub use gpt::{GptDefect, gpt_header, guid_text, uuid_text};
pub use identity::Identity;
pub use inventory::{Block, Filesystem, Inventory, Namespaces, OnDisk, PlacedMount};
pub use loopdev::{LoopDevice, LoopOptions, LoopStatus, detach_loop, loop_status};
pub use machine::Machine;
pub use mounts::{Mount, MountTable};
pub use node::{FileId, Node};
pub use number::{DeviceNumber, ParseDeviceNumberError};
pub use process::ProcessStat;
pub use root::Root;
pub use swaps::{Swap, swaps};
pub use topology::{
    Backing, Dependencies, below, below_path, devices_of, disks_below, lies_on, mount_id, schedulers,
};
pub use usage::{User, first_user};
