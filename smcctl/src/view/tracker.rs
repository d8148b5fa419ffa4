//! The tracker: a few lines about it, and a row a disk.

use api::{TrackedDisk, TrackerView};
use cli::paint::{Paint, Tone};
use cli::table::Align::{Left, Right};
use cli::table::Table;
use cli::text::count;
use cli::units::{local_time, size};

/// Whether this machine can track, what is tracked, and why a disk cannot be relied on.
pub fn lines(paint: Paint, tracker: &TrackerView) -> Vec<String> {
    let mut lines = vec![headline(paint, tracker)];
    let problem = tracker.problem.as_ref();
    lines.extend(problem.map(|problem| paint.paint(Tone::Warning, problem)));
    if !tracker.disks.is_empty() {
        lines.push(String::new());
        lines.extend(table(&tracker.disks).lines(paint));
        lines.extend(tracker.disks.iter().filter_map(|disk| doubt(paint, disk)));
    }
    lines
}

fn headline(paint: Paint, tracker: &TrackerView) -> String {
    if let Some(reason) = &tracker.unavailable_reason {
        let text = format!("this machine cannot track disks, so syncs read them completely: {reason}");
        return paint.paint(Tone::Warning, &text);
    }
    if !tracker.attached {
        return "no disk is tracked; this machine can".to_owned();
    }
    format!(
        "{} tracked: {} of memory, {} writes seen, pinned in {}",
        count(tracker.disks.len(), "disk"),
        size(tracker.memory_bytes),
        tracker.events,
        tracker.directory
    )
}

fn table(disks: &[TrackedDisk]) -> Table {
    let mut table = Table::new(&[
        ("DISK", Left),
        ("JOBS", Left),
        ("SINCE", Left),
        ("WRITTEN", Right),
        ("EVENTS", Right),
        ("MEMORY", Right),
        ("NEXT SYNC", Left),
    ]);
    for disk in disks {
        let jobs = match disk.jobs.as_slice() {
            [] => "-".to_owned(),
            jobs => jobs.join(", "),
        };
        let next = match (disk.under_way && disk.trusted, disk.trusted) {
            (true, _) => "under way",
            (_, true) => "tracked",
            (_, false) => "reads all",
        };
        table.row([
            disk.name.clone(),
            jobs,
            local_time(disk.since),
            size(disk.dirty_bytes),
            disk.events.to_string(),
            size(disk.memory_bytes),
            next.to_owned(),
        ]);
    }
    table
}

fn doubt(paint: Paint, disk: &TrackedDisk) -> Option<String> {
    let doubt = disk.doubt.as_ref()?;
    let text = format!("{}: the next sync reads all of it: {doubt}", disk.name);
    Some(paint.paint(Tone::Warning, &text))
}
