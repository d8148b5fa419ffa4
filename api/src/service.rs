//! The daemon itself, the machine's disks, and the images in use.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The state of the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// The version of smcd, for example `0.1.0`.
    pub version: String,
    /// The process ID of smcd.
    pub pid: u32,
    /// When the daemon started.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// The path of the configuration file. Absent if smcd runs with defaults, without a file.
    pub config: Option<String>,
    /// The directory of the default store, used by jobs that name no other.
    pub store: String,
    /// The number of jobs in each state that occurs, for example `{"Waiting": 2}`.
    pub jobs: BTreeMap<String, usize>,
    /// The job whose sync is due next and when, for example `web01 in 5h 59m`. Absent if no sync is scheduled.
    pub next_sync: Option<String>,
    /// Problems of the daemon itself that need attention, one sentence each.
    pub warnings: Vec<String>,
}

/// The machine's disks, and which of them a job with `all_disks` would include.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskList {
    /// Every block device except partitions, sorted by name.
    pub disks: Vec<ListedDisk>,
}

/// One of the machine's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedDisk {
    /// The kernel's name of the disk, for example `vda`.
    pub name: String,
    /// The path of the device, for example `/dev/vda`.
    pub path: String,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// The model. Absent if unknown.
    pub model: Option<String>,
    /// The serial number. Absent if unknown.
    pub serial: Option<String>,
    /// What the disk contains, as text: for example `gpt, 3 partitions: vfat /boot/efi, ext4 /, swap`.
    pub holds: String,
    /// Why a job with `all_disks` would leave this disk out. Absent if the job would include it.
    pub left_out: Option<String>,
}

/// An image that is in use, and what uses it. An image in use is not deleted.
///
/// If it is not known which images of a store are in use, the answer has an entry for that store with an `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExportView {
    /// The image as JOB/NUMBER, for example `web01/7`. Empty in an entry that is about the whole store.
    pub image: String,
    /// The directory of the image's store.
    pub store: String,
    /// The processes that have the image open, for example `smc-image (pid 4711)`.
    pub held_by: Vec<String>,
    /// The names of the image's pins.
    pub pins: Vec<String>,
    /// Why it is not known who uses the image, or which images of the store are in use: the store does not answer, or
    /// cannot be read. Absent if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
