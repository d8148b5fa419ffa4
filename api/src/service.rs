//! The daemon itself, the machine's disks, and who uses images.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// Configuration file, where one was read.
    pub config: Option<String>,
    /// Store of jobs that name none.
    pub store: String,
    /// Jobs by state.
    pub jobs: BTreeMap<String, usize>,
    /// The job whose sync starts next, and when.
    pub next_sync: Option<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The machine's disks: which a job of all disks would have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskList {
    /// Every block device that is no partition, by name.
    pub disks: Vec<ListedDisk>,
}

/// One of the machine's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedDisk {
    /// The kernel's name: `vda`.
    pub name: String,
    /// `/dev/vda`.
    pub path: String,
    /// Size.
    pub size_bytes: u64,
    /// Model, where known.
    pub model: Option<String>,
    /// Serial number, where known.
    pub serial: Option<String>,
    /// What it holds, in words: `gpt, 3 partitions: vfat /boot/efi, ext4 /, swap`.
    pub holds: String,
    /// Why a job of all disks does not have it; absent if it does.
    pub left_out: Option<String>,
}

/// An image that is in use, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExportView {
    /// `web01/7`.
    pub image: String,
    /// Directory of the store.
    pub store: String,
    /// Processes that have it open, as `smc-image (pid 4711)`.
    pub held_by: Vec<String>,
    /// Names of its pins.
    pub pins: Vec<String>,
}
