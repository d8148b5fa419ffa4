//! What a sync says when it is done.

use crate::engine::{DeletedImage, Synced};
use anyhow::Result;
use cli::output;
use cli::text::{count_if_any, writers_held};
use cli::units::{measured, rate, size};
use imagefmt::{ClusterSize, Consistency, DiskRecord, InstantRecord, Kind, Method};
use serde::Serialize;
use std::time::Duration;

/// One sync, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Report {
    image: String,
    kind: Kind,
    method: Method,
    consistency: Consistency,
    consistency_reason: String,
    /// What was done to have all disks at one instant.
    instant: Option<InstantRecord>,
    /// Whether everything was compared after the sync, and is the same; absent if that was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
    #[serde(skip)]
    is_written_since: bool,
    seconds: f64,
    /// Seconds among them in which the tracker was checked.
    audit_seconds: f64,
    #[serde(skip)]
    millis: u64,
    /// Whether it resumed an unfinished sync.
    resumed: bool,
    disks: Vec<DiskReport>,
    deleted: Vec<DeletedImage>,
}

#[derive(Debug, Serialize)]
struct DiskReport {
    name: String,
    size_bytes: u64,
    /// How its changes were found, and why that way.
    method: Method,
    method_reason: String,
    compared_bytes: u64,
    /// Bytes among them that were read only to check the tracker.
    audited_bytes: u64,
    dirty_bytes: u64,
    stored_bytes: u64,
    /// Clusters that were damaged in the image before and were stored anew.
    repaired_clusters: u64,
    unreadable_clusters: u64,
    digest: String,
}

impl Report {
    /// Of the sync that made an image.
    ///
    /// # Errors
    /// When the manifest cannot be understood.
    pub fn new(synced: &Synced, took: Duration, deleted: Vec<DeletedImage>) -> Result<Self> {
        let (manifest, compared) = (&synced.manifest, synced.compared.as_ref());
        let cluster_size = manifest.cluster_size()?;
        let disks = manifest
            .disks
            .iter()
            .map(|disk| DiskReport::new(disk, cluster_size));
        Ok(Self {
            image: format!("{}/{}", manifest.job, manifest.sequence),
            kind: manifest.kind,
            method: manifest.method(),
            consistency: manifest.consistency,
            consistency_reason: manifest.consistency_reason.clone(),
            instant: manifest.instant.clone(),
            verified: compared.map(|compared| compared.is_equal),
            is_written_since: compared.is_some_and(|compared| !compared.written.is_empty()),
            seconds: seconds(took),
            audit_seconds: seconds(synced.audit_took),
            millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            resumed: synced.resumed,
            disks: disks.collect::<Result<_>>()?,
            deleted,
        })
    }

    /// One JSON object on one line.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print_json(&self) -> Result<()> {
        output::json(self)
    }

    /// A few lines for people.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print_text(&self) -> Result<()> {
        output::line(format_args!(
            "{}: {} image, {}, in {} ({})",
            self.image,
            self.kind,
            self.consistency,
            measured(self.seconds),
            self.consistency_reason
        ))?;
        if let Some(instant) = &self.instant {
            let held = writers_held(instant.held_us, instant.passes.len());
            output::line(format_args!("  {held}"))?;
        }
        for disk in &self.disks {
            let speed = disk.compared_bytes.saturating_mul(1000) / self.millis.max(1);
            output::line(format_args!(
                "  {:<12} {}: {} compared ({}){}, {} changed, {} stored{}\n  {:<12} {}",
                disk.name,
                disk.method,
                size(disk.compared_bytes),
                rate(speed),
                disk.audited(),
                size(disk.dirty_bytes),
                size(disk.stored_bytes),
                disk.not_as_usual(),
                "",
                disk.digest
            ))?;
            if disk.method == Method::Scan {
                output::line(format_args!("  {:<12} scanned: {}", "", disk.method_reason))?;
            }
        }
        if self.verified == Some(true) {
            let same = match self.is_written_since {
                false => "everything is the same",
                true => "everything that was not written to since is the same",
            };
            output::line(format_args!("  compared with the disks: {same}"))?;
        }
        for deleted in &self.deleted {
            let freed = size(deleted.freed_bytes);
            output::line(format_args!("  deleted {}: {freed} freed", deleted.image))?;
        }
        Ok(())
    }
}

/// To the millisecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

impl DiskReport {
    /// What was damaged in the store, and what could not be read from the disk.
    fn not_as_usual(&self) -> String {
        let repaired = count_if_any("damaged clusters repaired", self.repaired_clusters);
        repaired + &count_if_any("clusters with unreadable sectors", self.unreadable_clusters)
    }

    fn audited(&self) -> String {
        match self.audited_bytes {
            0 => String::new(),
            bytes => format!(", {} of it audited", size(bytes)),
        }
    }

    fn new(disk: &DiskRecord, cluster_size: ClusterSize) -> Result<Self> {
        Ok(Self {
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            method: disk.method,
            method_reason: disk.method_reason.clone(),
            compared_bytes: disk.compared_bytes,
            audited_bytes: disk.audited_bytes,
            dirty_bytes: disk.dirty_bytes,
            stored_bytes: disk.stored_bytes,
            repaired_clusters: disk.repaired_clusters,
            unreadable_clusters: disk.unreadable_clusters,
            digest: disk.disk_digest(cluster_size)?.to_string(),
        })
    }
}
