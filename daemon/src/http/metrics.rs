//! Metrics for Prometheus, collected when they are requested.

use super::Service;
use super::answer::Failure;
use crate::job::ImageChecks;
use crate::service::view;
use anyhow::Context;
use api::{Progress, RunOutcome, RunView, Status, TrackerView};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Job {
    job: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    job: String,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCheck {
    job: String,
    check: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Disk {
    disk: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfClass {
    job: String,
    class: &'static str,
}

type OfDisk = Family<Disk, Gauge<i64>>;
type Whole = Family<Job, Gauge<i64>>;
type Fraction = Family<Job, Gauge<f64, AtomicU64>>;

/// The metrics of all jobs.
#[derive(Default)]
struct Figures {
    status: Family<InState, Gauge<i64>>,
    runs: Whole,
    size: Whole,
    compared: Whole,
    compare_rate: Whole,
    stored: Whole,
    sent: Whole,
    send_rate: Whole,
    durable: Whole,
    waiting: Whole,
    last_success: Fraction,
    last_duration: Fraction,
    last_compared: Whole,
    last_dirty: Whole,
    last_stored: Whole,
    last_sent: Whole,
    last_failed: Whole,
    check_failed: Family<OfCheck, Gauge<i64>>,
    check_finished: Family<OfCheck, Gauge<f64, AtomicU64>>,
    last_consistency: Family<OfClass, Gauge<i64>>,
    freeze: Fraction,
    passes: Whole,
    tracker_misses: Family<Job, Counter>,
    tracker_attached: Gauge<i64>,
    tracked_trusted: OfDisk,
    tracked_missed: OfDisk,
    tracked_dirty: OfDisk,
}

/// Returns metrics of all jobs in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "machine", responses((status = 200, content_type = "application/openmetrics-text", body = String)))]
pub async fn serve(State(service): State<Service>) -> Result<impl IntoResponse, Failure> {
    // They read no store, so they never wait for one.
    let figures = Figures::default();
    for (job, progress, run) in view::measured(&service) {
        figures.add_job(&job.name, job.status, job.runs, job.total_bytes());
        figures.add_misses(&job.name, job.tracker_misses);
        figures.add_checks(&job.name, &job.checks);
        if let Some(progress) = progress {
            figures.add_progress(&job.name, &progress);
        }
        if let Some(run) = run {
            figures.add_run(&job.name, &run);
        }
    }
    // As it was a minute ago at most.
    if let Some(tracker) = view::tracker_seen(&service) {
        figures.add_tracker(&tracker);
    }
    let text = figures
        .text()
        .map_err(|error| crate::job::Refusal::failed(&error))?;
    Ok(([(CONTENT_TYPE, OPENMETRICS)], text))
}

impl Figures {
    fn add_job(&self, name: &str, status: Status, runs: u64, size: u64) {
        for state in Status::ALL {
            let labels = InState {
                job: name.to_owned(),
                status: state.to_string(),
            };
            self.status.get_or_create(&labels).set(i64::from(state == status));
        }
        set(&self.runs, name, runs);
        set(&self.size, name, size);
    }

    fn add_misses(&self, name: &str, misses: u64) {
        self.tracker_misses.get_or_create(&label(name)).inc_by(misses);
    }

    fn add_checks(&self, name: &str, checks: &ImageChecks) {
        for (check, last) in [("boot", &checks.booted), ("verify", &checks.verified)] {
            let Some(last) = last else { continue };
            let labels = OfCheck {
                job: name.to_owned(),
                check,
            };
            self.check_failed
                .get_or_create(&labels)
                .set(i64::from(!last.good));
            let finished = last.finished.as_duration().as_secs_f64();
            self.check_finished.get_or_create(&labels).set(finished);
        }
    }

    fn add_progress(&self, name: &str, progress: &Progress) {
        set(&self.compared, name, progress.compared_bytes);
        set(&self.compare_rate, name, progress.compare_rate_bytes);
        set(&self.stored, name, progress.stored_bytes);
        if let Some(transfer) = &progress.transfer {
            set(&self.sent, name, transfer.sent_bytes);
            set(&self.send_rate, name, transfer.send_rate_bytes);
            set(&self.durable, name, transfer.durable_bytes);
            set(
                &self.waiting,
                name,
                u64::from(progress.waiting_for_target.is_some()),
            );
        }
    }

    fn add_run(&self, name: &str, run: &RunView) {
        set(
            &self.last_failed,
            name,
            u64::from(run.outcome == RunOutcome::Failed),
        );
        self.add_class(name, run.consistency.as_deref());
        let (Some(finished), RunOutcome::Succeeded) = (run.finished, run.outcome) else {
            return;
        };
        let at = finished.as_duration().as_secs_f64();
        self.last_success.get_or_create(&label(name)).set(at);
        if let Some(duration) = run.seconds {
            self.last_duration.get_or_create(&label(name)).set(duration);
        }
        set(&self.last_compared, name, run.compared_bytes);
        set(&self.last_dirty, name, run.dirty_bytes);
        set(&self.last_stored, name, run.stored_bytes);
        if let Some(transfer) = &run.transfer {
            set(&self.last_sent, name, transfer.sent_bytes);
        }
        if let Some(instant) = &run.instant {
            let held = Duration::from_micros(instant.held_us).as_secs_f64();
            self.freeze.get_or_create(&label(name)).set(held);
            let passes = u64::try_from(instant.passes.len()).unwrap_or(u64::MAX);
            set(&self.passes, name, passes);
        }
    }

    /// One of the classes has the image of the newest run; none, if that made no image.
    fn add_class(&self, name: &str, class: Option<&str>) {
        for known in ["fuzzy", "crash", "filesystem", "offline"] {
            let labels = OfClass {
                job: name.to_owned(),
                class: known,
            };
            let is_it = i64::from(class == Some(known));
            self.last_consistency.get_or_create(&labels).set(is_it);
        }
    }

    fn add_tracker(&self, tracker: &TrackerView) {
        self.tracker_attached.set(i64::from(tracker.attached));
        for disk in &tracker.disks {
            let label = Disk {
                disk: disk.name.clone(),
            };
            let set = |family: &OfDisk, value: u64| {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                family.get_or_create(&label).set(value);
            };
            set(&self.tracked_trusted, u64::from(disk.trusted));
            set(&self.tracked_missed, u64::from(disk.missed));
            set(&self.tracked_dirty, disk.dirty_clusters);
        }
    }

    fn text(&self) -> anyhow::Result<String> {
        let mut registry = Registry::with_prefix("smc");
        self.register_jobs(&mut registry);
        self.register_transfers(&mut registry);
        self.register_last_syncs(&mut registry);
        self.register_checks(&mut registry);
        self.register_instants(&mut registry);
        self.register_tracker(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).context("write metrics")?;
        Ok(text)
    }

    fn register_jobs(&self, registry: &mut Registry) {
        registry.register(
            "job_status",
            "1 for the current state of a job, 0 for the others",
            self.status.clone(),
        );
        registry.register("job_runs", "Number of syncs started so far", self.runs.clone());
        registry.register_with_unit(
            "job_size",
            "Size of all disks of a job",
            Unit::Bytes,
            self.size.clone(),
        );
        registry.register_with_unit(
            "sync_compared",
            "Bytes compared so far by the running sync",
            Unit::Bytes,
            self.compared.clone(),
        );
        registry.register(
            "sync_compare_rate_bytes_per_second",
            "Current rate of comparing in the running sync",
            self.compare_rate.clone(),
        );
        registry.register_with_unit(
            "sync_stored",
            "Bytes stored so far by the running sync",
            Unit::Bytes,
            self.stored.clone(),
        );
    }

    fn register_transfers(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "sync_sent",
            "Bytes sent so far to its target by the running sync",
            Unit::Bytes,
            self.sent.clone(),
        );
        registry.register(
            "sync_send_rate_bytes_per_second",
            "Current rate of sending in the running sync",
            self.send_rate.clone(),
        );
        registry.register_with_unit(
            "sync_durable",
            "Bytes sent by the running sync that survive a power cut of its target",
            Unit::Bytes,
            self.durable.clone(),
        );
        registry.register(
            "sync_waiting_for_target",
            "1 while the running sync waits for its target, otherwise 0",
            self.waiting.clone(),
        );
        registry.register_with_unit(
            "last_sync_sent",
            "Bytes sent to its target by the last successful sync",
            Unit::Bytes,
            self.last_sent.clone(),
        );
    }

    fn register_last_syncs(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "last_sync_finished_timestamp",
            "Unix time when the last successful sync ended",
            Unit::Seconds,
            self.last_success.clone(),
        );
        registry.register_with_unit(
            "last_sync_duration",
            "Duration of the last successful sync",
            Unit::Seconds,
            self.last_duration.clone(),
        );
        registry.register_with_unit(
            "last_sync_compared",
            "Bytes compared by the last successful sync",
            Unit::Bytes,
            self.last_compared.clone(),
        );
        registry.register_with_unit(
            "last_sync_dirty",
            "Bytes that differed in the last successful sync",
            Unit::Bytes,
            self.last_dirty.clone(),
        );
        registry.register_with_unit(
            "last_sync_stored",
            "Bytes stored by the last successful sync",
            Unit::Bytes,
            self.last_stored.clone(),
        );
        registry.register(
            "last_sync_failed",
            "1 if the last sync failed, otherwise 0",
            self.last_failed.clone(),
        );
        registry.register(
            "last_sync_consistency",
            "1 for the consistency class of the image that the last sync made, 0 for the others",
            self.last_consistency.clone(),
        );
    }

    fn register_checks(&self, registry: &mut Registry) {
        registry.register(
            "image_check_failed",
            "1 if the last check of a job's images found that one does not boot, or damage, or could not be made; otherwise 0",
            self.check_failed.clone(),
        );
        registry.register_with_unit(
            "image_check_finished_timestamp",
            "Unix time when the last check of a job's images ended",
            Unit::Seconds,
            self.check_finished.clone(),
        );
    }

    fn register_instants(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "job_freeze",
            "How long writers were held by the last successful sync that was to freeze; 0 if nothing was frozen",
            Unit::Seconds,
            self.freeze.clone(),
        );
        registry.register(
            "job_passes",
            "Passes of that sync over all disks together, before it froze",
            self.passes.clone(),
        );
    }

    fn register_tracker(&self, registry: &mut Registry) {
        registry.register(
            "job_tracker_misses",
            "How often an audit has found that the tracker of one of a job's disks had missed writes; later images do not reset it",
            self.tracker_misses.clone(),
        );
        registry.register(
            "tracker_attached",
            "1 while the tracker's programs are attached in the kernel, otherwise 0",
            self.tracker_attached.clone(),
        );
        registry.register(
            "tracked_disk_trusted",
            "1 if the next sync can rely on the tracker of a disk, 0 if it reads the whole disk",
            self.tracked_trusted.clone(),
        );
        registry.register(
            "tracked_disk_missed",
            "1 if the tracker has missed writes to a disk, or may have, since its newest image",
            self.tracked_missed.clone(),
        );
        registry.register(
            "tracked_disk_dirty_clusters",
            "Clusters of a tracked disk that were written to since its newest image",
            self.tracked_dirty.clone(),
        );
    }
}

fn label(name: &str) -> Job {
    Job { job: name.to_owned() }
}

fn set(family: &Whole, name: &str, value: u64) {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    family.get_or_create(&label(name)).set(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_jobs_and_states_are_labels() {
        let figures = Figures::default();
        figures.add_job("web01", Status::Waiting, 7, 1 << 30);
        let failed = crate::job::Checked {
            sequence: 7,
            finished: "2026-11-24T10:00:00Z".parse().unwrap(),
            good: false,
            is_made: true,
            text: String::new(),
        };
        let checks = ImageChecks {
            booted: Some(failed),
            ..ImageChecks::default()
        };
        figures.add_checks("web01", &checks);
        figures.add_misses("web01", 3);
        let text = figures.text().unwrap();
        assert!(
            text.contains("smc_job_status{job=\"web01\",status=\"Waiting\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("smc_job_status{job=\"web01\",status=\"Ready\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("smc_job_size_bytes{job=\"web01\"} 1073741824"),
            "{text}"
        );
        assert!(
            text.contains("smc_image_check_failed{job=\"web01\",check=\"boot\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("smc_job_tracker_misses_total{job=\"web01\"} 3"),
            "{text}"
        );
        assert!(!text.contains("check=\"verify\""), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn the_class_of_the_last_image_is_one_of_all() {
        let figures = Figures::default();
        figures.add_class("web01", Some("fuzzy"));
        figures.add_class("db", None);
        let text = figures.text().unwrap();
        let line =
            |job: &str, class: &str| format!("smc_last_sync_consistency{{job=\"{job}\",class=\"{class}\"}}");
        for (job, class, value) in [("web01", "fuzzy", 1), ("web01", "crash", 0), ("db", "fuzzy", 0)] {
            let line = format!("{} {value}", line(job, class));
            assert!(text.contains(&line), "{text}");
        }
    }
}
