//! The record of a run in a job's history.

use super::instant::{instant_record, instant_view};
use super::job::RunTypeName;
use super::{Extra, Version};
use api::{RunDisk, RunOutcome, RunTransfer, RunType, RunView};
use imagefmt::InstantRecord;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A run, as the database and the note of its job hold it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredRun {
    #[serde(flatten)]
    version: Version,
    pub number: u64,
    #[serde(with = "RunTypeName")]
    run_type: RunType,
    started: Timestamp,
    finished: Option<Timestamp>,
    pub(super) seconds: Option<f64>,
    #[serde(with = "RunOutcomeName")]
    outcome: RunOutcome,
    image: Option<String>,
    kind: Option<String>,
    method: Option<String>,
    consistency: Option<String>,
    consistency_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instant: Option<InstantRecord>,
    resumed: bool,
    pub(super) compared_bytes: u64,
    pub(super) dirty_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) compare_rate_bytes: u64,
    pub(super) disks: Vec<StoredRunDisk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) transfer: Option<StoredTransfer>,
    deleted: Vec<String>,
    error: Option<String>,
    warnings: Vec<String>,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredRunDisk {
    name: String,
    pub(super) size_bytes: u64,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    method_reason: Option<String>,
    pub(super) compared_bytes: u64,
    #[serde(default)]
    pub(super) audited_bytes: u64,
    pub(super) dirty_bytes: u64,
    pub(super) stored_bytes: u64,
    #[serde(default)]
    repaired_clusters: u64,
    #[serde(default)]
    unreadable_clusters: u64,
    #[serde(default)]
    digest: Option<String>,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredTransfer {
    pub(super) sent_bytes: u64,
    pub(super) sent_again_bytes: u64,
    pub(super) waited_seconds: f64,
    #[serde(flatten)]
    extra: Extra,
}

/// How a run ended, on disk.
#[derive(Serialize, Deserialize)]
#[serde(remote = "RunOutcome", rename_all = "snake_case")]
enum RunOutcomeName {
    Running,
    Succeeded,
    Stopped,
    Canceled,
    Failed,
    Deferred,
    Interrupted,
}

impl StoredRun {
    /// As it is written now, with the unknown fields of what was written before.
    pub fn new(run: &RunView, before: Option<Self>) -> Self {
        let mut stored = Self::from(run);
        if let Some(before) = before {
            stored.extra = before.extra;
            if let (Some(transfer), Some(before)) = (&mut stored.transfer, before.transfer) {
                transfer.extra = before.extra;
            }
            for disk in &mut stored.disks {
                let known = before.disks.iter().find(|before| before.name == disk.name);
                disk.extra = known.map(|known| known.extra.clone()).unwrap_or_default();
            }
        }
        stored
    }

    /// The run that it describes.
    pub fn into_run(self) -> RunView {
        let disk = |disk: StoredRunDisk| RunDisk {
            name: disk.name,
            size_bytes: disk.size_bytes,
            method: disk.method,
            method_reason: disk.method_reason,
            compared_bytes: disk.compared_bytes,
            audited_bytes: disk.audited_bytes,
            dirty_bytes: disk.dirty_bytes,
            stored_bytes: disk.stored_bytes,
            repaired_clusters: disk.repaired_clusters,
            unreadable_clusters: disk.unreadable_clusters,
            digest: disk.digest,
        };
        RunView {
            number: self.number,
            run_type: self.run_type,
            started: self.started,
            finished: self.finished,
            seconds: self.seconds,
            outcome: self.outcome,
            image: self.image,
            kind: self.kind,
            method: self.method,
            consistency: self.consistency,
            consistency_reason: self.consistency_reason,
            verified: self.verified,
            instant: self.instant.map(instant_view),
            resumed: self.resumed,
            compared_bytes: self.compared_bytes,
            dirty_bytes: self.dirty_bytes,
            stored_bytes: self.stored_bytes,
            compare_rate_bytes: self.compare_rate_bytes,
            disks: self.disks.into_iter().map(disk).collect(),
            transfer: self.transfer.map(|transfer| RunTransfer {
                sent_bytes: transfer.sent_bytes,
                sent_again_bytes: transfer.sent_again_bytes,
                waited_seconds: transfer.waited_seconds,
            }),
            deleted: self.deleted,
            error: self.error,
            warnings: self.warnings,
        }
    }
}

impl From<&RunView> for StoredRun {
    fn from(run: &RunView) -> Self {
        let disk = |disk: &RunDisk| StoredRunDisk {
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            method: disk.method.clone(),
            method_reason: disk.method_reason.clone(),
            compared_bytes: disk.compared_bytes,
            audited_bytes: disk.audited_bytes,
            dirty_bytes: disk.dirty_bytes,
            stored_bytes: disk.stored_bytes,
            repaired_clusters: disk.repaired_clusters,
            unreadable_clusters: disk.unreadable_clusters,
            digest: disk.digest.clone(),
            extra: Extra::new(),
        };
        let run = run.clone();
        Self {
            version: Version::CURRENT,
            disks: run.disks.iter().map(disk).collect(),
            number: run.number,
            run_type: run.run_type,
            started: run.started,
            finished: run.finished,
            seconds: run.seconds,
            outcome: run.outcome,
            image: run.image,
            kind: run.kind,
            method: run.method,
            consistency: run.consistency,
            consistency_reason: run.consistency_reason,
            verified: run.verified,
            instant: run.instant.map(instant_record),
            resumed: run.resumed,
            compared_bytes: run.compared_bytes,
            dirty_bytes: run.dirty_bytes,
            stored_bytes: run.stored_bytes,
            compare_rate_bytes: run.compare_rate_bytes,
            transfer: run.transfer.map(|transfer| StoredTransfer {
                sent_bytes: transfer.sent_bytes,
                sent_again_bytes: transfer.sent_again_bytes,
                waited_seconds: transfer.waited_seconds,
                extra: Extra::new(),
            }),
            deleted: run.deleted,
            error: run.error,
            warnings: run.warnings,
            extra: Extra::new(),
        }
    }
}
