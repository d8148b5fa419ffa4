//! The daemon.

use crate::view::fields::Fields;
use api::ServiceStatus;
use cli::paint::{Paint, Tone};
use cli::units::{duration, local_time};
use jiff::Timestamp;

/// What it is, how long it has been up, and what its jobs do.
pub fn lines(paint: Paint, status: &ServiceStatus, now: Timestamp) -> Vec<String> {
    let up = u64::try_from(status.started.duration_until(now).as_secs()).unwrap_or(0);
    let headline = format!(
        "{} {} is up for {}, since {} (pid {})",
        paint.paint(Tone::Strong, "smcd"),
        status.version,
        duration(up),
        local_time(status.started),
        status.pid
    );
    let mut fields = Fields::under(paint, headline);
    fields.field("store", &status.store);
    fields.field(
        "config",
        status
            .config
            .as_deref()
            .unwrap_or("none: everything is as by default"),
    );
    fields.field("jobs", jobs(status));
    fields.field("next sync", status.next_sync.as_deref().unwrap_or("none"));
    for warning in &status.warnings {
        fields.painted("warning", Tone::Warning, warning);
    }
    fields.lines()
}

fn jobs(status: &ServiceStatus) -> String {
    let counted = status.jobs.iter().filter(|(_, number)| **number > 0);
    let said: Vec<String> = counted
        .map(|(state, number)| format!("{number} {state}"))
        .collect();
    if said.is_empty() {
        "none".to_owned()
    } else {
        said.join(", ")
    }
}
