//! A job as it is at this moment: what a live view draws again and again.

use crate::view::job::brief;
use crate::view::words::{headline, next, waiting};
use api::{JobView, Phase, Progress, Transfer};
use cli::paint::{Paint, Tone};
use cli::units::{duration, measured, rate, size};

/// Width of a bar.
const BAR: usize = 30;

/// The lines of one job.
pub fn lines(paint: Paint, job: &JobView) -> Vec<String> {
    let mut lines = brief(paint, job);
    let Some(progress) = &job.progress else {
        return lines;
    };
    let about = format!(
        "  {}, for {}{}",
        progress.image.as_deref().unwrap_or("no image yet"),
        measured(progress.elapsed_seconds),
        progress
            .disk
            .as_deref()
            .map(|disk| format!(", reading {disk}"))
            .unwrap_or_default()
    );
    let drawn = [about, compared(paint, progress), stored(paint, progress)];
    let sent = progress.transfer.as_ref().map(|transfer| sent(paint, transfer));
    lines.splice(1..1, drawn.into_iter().chain(sent));
    lines
}

fn compared(paint: Paint, progress: &Progress) -> String {
    let done = progress.compared_bytes;
    let total = progress.total_bytes;
    let numbers = format!("{} of {}", size(done), size(total));
    bar(
        paint,
        "compared",
        (done, total),
        &numbers,
        progress.compare_rate_bytes,
        progress.eta_seconds,
    )
}

/// What will be stored in the end is not known: if what is still to come changes as much as what was compared.
fn stored(paint: Paint, progress: &Progress) -> String {
    let done = progress.stored_bytes;
    let total = expected(progress);
    let numbers = match progress.phase {
        Phase::Comparing | Phase::Transferring => format!("{} of about {}", size(done), size(total)),
        _ => size(done),
    };
    let rate = progress.store_rate_bytes;
    let left = total
        .saturating_sub(done)
        .checked_div(rate)
        .filter(|_| total > done);
    bar(paint, "stored", (done, total), &numbers, rate, left)
}

/// How much of what was sent the target has made durable.
fn sent(paint: Paint, transfer: &Transfer) -> String {
    let (durable, sent) = (transfer.durable_bytes, transfer.sent_bytes);
    let numbers = format!("{}, of which {} durable there", size(sent), size(durable));
    bar(
        paint,
        "sent",
        (durable, sent),
        &numbers,
        transfer.send_rate_bytes,
        None,
    )
}

/// Bytes stored in the end, as far as the part that was compared tells.
fn expected(progress: &Progress) -> u64 {
    let (stored, compared) = (
        u128::from(progress.stored_bytes),
        u128::from(progress.compared_bytes),
    );
    let expected = (stored * u128::from(progress.total_bytes)).checked_div(compared);
    let expected = expected.and_then(|bytes| u64::try_from(bytes).ok());
    expected.unwrap_or(0).max(progress.stored_bytes)
}

fn bar(
    paint: Paint,
    label: &str,
    (done, total): (u64, u64),
    numbers: &str,
    rate_bytes: u64,
    left: Option<u64>,
) -> String {
    let left = left
        .map(|seconds| format!(", {} left", duration(seconds)))
        .unwrap_or_default();
    let drawn = paint.paint(Tone::Busy, &drawn(done, total));
    format!("  {label:<8} [{drawn}] {numbers}, {}{left}", rate(rate_bytes))
}

/// `====>     `, as wide as a bar always is.
fn drawn(done: u64, total: u64) -> String {
    let filled = u128::from(done.min(total)) * BAR as u128 / u128::from(total.max(1));
    let filled = usize::try_from(filled).unwrap_or(BAR);
    let head = if filled < BAR { ">" } else { "" };
    format!("{:<BAR$}", "=".repeat(filled) + head)
}

/// One line for where there is no terminal.
pub fn line(job: &JobView) -> String {
    let mut parts = vec![headline(Paint::none(), job)];
    if let Some(progress) = &job.progress {
        parts.extend(progress.image.clone());
        parts.extend(progress.held_up.clone());
        parts.extend(progress.waiting_for_target.as_ref().map(waiting));
    }
    parts.extend(
        job.ending
            .as_ref()
            .map(|ending| format!("{ending} was asked for")),
    );
    parts.extend(job.error.as_ref().map(|error| format!("error: {error}")));
    parts.extend(job.warnings.iter().map(|warning| format!("warning: {warning}")));
    if job.progress.is_none() && !job.next.text.is_empty() {
        parts.push(format!("next: {}", next(&job.next)));
    }
    parts.join("; ")
}

/// What [`line`] is printed for again when it changes: all but what counts on, and a sync's progress in tenths.
pub fn key(job: &JobView) -> String {
    let progress = job.progress.as_ref();
    let tenths = progress.map(|progress| (progress.percent.clamp(0.0, 100.0) / 10.0).floor());
    let waits = |progress: &Progress| progress.waiting_for_target.as_ref().map(|wait| wait.since);
    let sync = progress.map(|progress| (progress.phase, &progress.image, waits(progress)));
    let told = (&job.ending, job.completing, &job.error, &job.warnings);
    format!(
        "{:?}",
        (job.status, sync, tenths, told, job.next.event, &job.images)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(compared: u64, total: u64, stored: u64, rate: u64) -> Progress {
        Progress {
            phase: Phase::Comparing,
            image: None,
            started: jiff::Timestamp::UNIX_EPOCH,
            elapsed_seconds: 1.0,
            disk: None,
            compared_bytes: compared,
            total_bytes: total,
            percent: 0.0,
            compare_rate_bytes: rate,
            dirty_bytes: 0,
            stored_bytes: stored,
            store_rate_bytes: rate,
            eta_seconds: None,
            resumed: false,
            held_up: None,
            waiting_for_target: None,
            transfer: None,
        }
    }

    #[test]
    fn bars_are_as_wide_as_they_are() {
        for (done, total) in [
            (0, 0),
            (0, 10),
            (5, 10),
            (10, 10),
            (11, 10),
            (u64::MAX, u64::MAX),
            (1, u64::MAX),
        ] {
            assert_eq!(drawn(done, total).chars().count(), BAR, "{done} of {total}");
        }
        assert_eq!(drawn(5, 10).trim_end(), "===============>");
        assert_eq!(drawn(10, 10), "=".repeat(BAR));
    }

    #[test]
    fn what_will_be_stored_follows_from_what_was_compared() {
        assert_eq!(expected(&progress(25, 100, 10, 0)), 40);
        assert_eq!(expected(&progress(0, 100, 0, 0)), 0);
        assert_eq!(expected(&progress(1, u64::MAX, u64::MAX, 0)), u64::MAX);
        let line = stored(Paint::none(), &progress(25, 100, 10, 5));
        assert!(line.ends_with("] 10 B of about 40 B, 5 B/s, 6 s left"), "{line}");
        let done = stored(Paint::none(), &progress(100, 100, 10, 5));
        assert!(done.ends_with("] 10 B of about 10 B, 5 B/s"), "{done}");
    }
}
