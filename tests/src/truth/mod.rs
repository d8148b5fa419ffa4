//! That tracked syncs lose no write: disks whose every byte is known are written to, synced, and compared.
//!
//! [`life`] has rounds of changes, syncs, kills and deletions; [`fire`] has fio, which writes without a pause; [`jobs`]
//! kills the service; [`tamper`] gives the tracker reasons not to be believed.

pub mod fire;
pub mod jobs;
pub mod known;
pub mod life;
pub mod tamper;

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// How syncs found what had changed.
#[derive(Debug, Default, Clone)]
pub struct Methods {
    /// Disks that were read as the tracker said.
    pub tracked: u64,
    /// Disks that were read completely although an image had them, by reason.
    pub scanned: BTreeMap<String, u64>,
    /// Disks that were stored completely.
    pub full: u64,
    /// Bytes that were compared, of all disks.
    pub compared_bytes: u64,
    /// Bytes among them that an audit read.
    pub audited_bytes: u64,
    /// Disks of which an audit said that the tracker had missed writes.
    pub misses: u64,
}

impl Methods {
    /// Counts the disks of a report (`smcd sync --json`), or of a run of a job.
    ///
    /// # Errors
    /// When it has no disks.
    pub fn count(&mut self, report: &Value) -> Result<()> {
        let disks = report["disks"].as_array().context("a report without disks")?;
        for disk in disks {
            let number = |key: &str| disk[key].as_u64().unwrap_or_default();
            self.compared_bytes += number("compared_bytes");
            self.audited_bytes += number("audited_bytes");
            let reason = disk["method_reason"].as_str().context("no reason")?;
            self.misses += u64::from(reason.contains("missed writes"));
            match disk["method"].as_str() {
                Some("tracked") => self.tracked += 1,
                Some("full") => self.full += 1,
                _ => *self.scanned.entry(reason.to_owned()).or_default() += 1,
            }
        }
        Ok(())
    }

    /// Adds what others counted.
    pub fn add(&mut self, other: &Self) {
        self.tracked += other.tracked;
        self.full += other.full;
        self.compared_bytes += other.compared_bytes;
        self.audited_bytes += other.audited_bytes;
        self.misses += other.misses;
        for (reason, count) in &other.scanned {
            *self.scanned.entry(reason.clone()).or_default() += count;
        }
    }

    /// Disks that were tracked, of those that could be, in percent.
    pub fn share(&self) -> u64 {
        let scanned: u64 = self.scanned.values().sum();
        self.tracked * 100 / (self.tracked + scanned).max(1)
    }
}
