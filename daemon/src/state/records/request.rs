//! The record of the request that created a job.

use super::Extra;
use super::image_checks::StoredChecksRequest;
use super::job::{StoredConsistency, StoredOnReadError, StoredPriority, StoredTracking};
use api::{CreateJob, DiskRequest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::ops::Not;

/// What was asked for when the job was created. Absent is what was not given, as readers of format 0 expect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredRequest {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(default)]
    disks: Vec<StoredDiskRequest>,
    #[serde(default)]
    all_disks: bool,
    automatic_incremental: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interval_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_images: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compress_level: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bandwidth_limit_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    send_limit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    io_priority: Option<StoredPriority>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_size_bytes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracking: Option<StoredTracking>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_scan_interval_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checks: Option<StoredChecksRequest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pre_hook: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    post_hook: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hook_timeout_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freeze_hook: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thaw_hook: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freeze_hook_timeout_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    take_up: Option<String>,
    #[serde(default)]
    accept_changed_disk: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_read_error: Option<StoredOnReadError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    consistency: Option<StoredConsistency>,
    #[serde(default, skip_serializing_if = "Not::not")]
    require_consistency: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freeze_budget_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Not::not")]
    take_over: bool,
    #[serde(default)]
    allow_network_fs: bool,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredDiskRequest {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(flatten)]
    extra: Extra,
}

impl From<&CreateJob> for StoredRequest {
    fn from(request: &CreateJob) -> Self {
        // Named one by one: a field that is added to the API must not be forgotten here.
        let CreateJob {
            name,
            description,
            client_token,
            store,
            target,
            disks,
            all_disks,
            automatic_incremental,
            interval_seconds,
            max_images,
            start_at,
            valid_seconds,
            compress_level,
            bandwidth_limit_bytes,
            send_limit,
            io_priority,
            cluster_size_bytes,
            tracking,
            min_scan_interval_seconds,
            checks,
            pre_hook,
            post_hook,
            hook_timeout_seconds,
            freeze_hook,
            thaw_hook,
            freeze_hook_timeout_seconds,
            take_up,
            accept_changed_disk,
            on_read_error,
            consistency,
            require_consistency,
            freeze_budget_ms,
            take_over,
            allow_network_fs,
        } = request.clone();
        let disk = |disk: DiskRequest| StoredDiskRequest {
            path: disk.path,
            name: disk.name,
            extra: Extra::new(),
        };
        Self {
            name,
            description,
            client_token,
            store,
            target,
            disks: disks.into_iter().map(disk).collect(),
            all_disks,
            automatic_incremental,
            interval_seconds,
            max_images,
            start_at,
            valid_seconds,
            compress_level,
            bandwidth_limit_bytes,
            send_limit,
            io_priority: io_priority.map(StoredPriority),
            cluster_size_bytes,
            tracking: tracking.map(StoredTracking),
            min_scan_interval_seconds,
            checks: StoredChecksRequest::of(&checks),
            pre_hook,
            post_hook,
            hook_timeout_seconds,
            freeze_hook,
            thaw_hook,
            freeze_hook_timeout_seconds,
            take_up,
            accept_changed_disk,
            on_read_error: on_read_error.map(StoredOnReadError),
            consistency: consistency.map(StoredConsistency),
            require_consistency,
            freeze_budget_ms,
            take_over,
            allow_network_fs,
            extra: Extra::new(),
        }
    }
}

impl StoredRequest {
    /// Takes over the unknown fields of an earlier record of the same request.
    pub(super) fn inherit(&mut self, before: Self) {
        self.extra = before.extra;
        for (disk, before) in self.disks.iter_mut().zip(before.disks) {
            if disk.path == before.path {
                disk.extra = before.extra;
            }
        }
    }

    /// The request that it describes.
    pub(super) fn into_request(self) -> CreateJob {
        let disk = |disk: StoredDiskRequest| DiskRequest {
            path: disk.path,
            name: disk.name,
        };
        CreateJob {
            name: self.name,
            description: self.description,
            client_token: self.client_token,
            store: self.store,
            target: self.target,
            disks: self.disks.into_iter().map(disk).collect(),
            all_disks: self.all_disks,
            automatic_incremental: self.automatic_incremental,
            interval_seconds: self.interval_seconds,
            max_images: self.max_images,
            start_at: self.start_at,
            valid_seconds: self.valid_seconds,
            compress_level: self.compress_level,
            bandwidth_limit_bytes: self.bandwidth_limit_bytes,
            send_limit: self.send_limit,
            io_priority: self.io_priority.map(|priority| priority.0),
            cluster_size_bytes: self.cluster_size_bytes,
            tracking: self.tracking.map(|tracking| tracking.0),
            min_scan_interval_seconds: self.min_scan_interval_seconds,
            checks: self.checks.unwrap_or_default().into_request(),
            pre_hook: self.pre_hook,
            post_hook: self.post_hook,
            hook_timeout_seconds: self.hook_timeout_seconds,
            freeze_hook: self.freeze_hook,
            thaw_hook: self.thaw_hook,
            freeze_hook_timeout_seconds: self.freeze_hook_timeout_seconds,
            take_up: self.take_up,
            accept_changed_disk: self.accept_changed_disk,
            on_read_error: self.on_read_error.map(|stored| stored.0),
            consistency: self.consistency.map(|stored| stored.0),
            require_consistency: self.require_consistency,
            freeze_budget_ms: self.freeze_budget_ms,
            take_over: self.take_over,
            allow_network_fs: self.allow_network_fs,
        }
    }
}
