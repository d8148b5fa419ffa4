//! Times, rates and states in words.

use api::{JobView, NextEvent, Phase, RunOutcome, Status, TargetWait};
use cli::paint::{Paint, Tone};
use cli::units::{duration, local_time};
use jiff::Timestamp;

/// A share of a hundred, without decimals; never 100 before the end.
pub fn percent(percent: f64) -> String {
    format!("{:.0}%", percent.clamp(0.0, 100.0).floor())
}

/// A point in time, and how far ahead it is.
pub fn moment(at: Option<Timestamp>, in_seconds: Option<u64>) -> String {
    let ahead = in_seconds.map(|seconds| format!("in {}", duration(seconds)));
    match (at.map(local_time), ahead) {
        (Some(at), Some(ahead)) => format!("{at} ({ahead})"),
        (Some(said), None) | (None, Some(said)) => said,
        (None, None) => String::new(),
    }
}

/// What happens next, and when.
pub fn next(next: &NextEvent) -> String {
    match moment(next.at, next.in_seconds) {
        when if when.is_empty() => next.text.clone(),
        when => format!("{}: {when}", next.text),
    }
}

/// Since when a sync waits for its target, and why.
pub fn waiting(wait: &TargetWait) -> String {
    let next = match wait.next_try {
        Some(at) => format!(", next try at {}", local_time(at)),
        None => String::new(),
    };
    format!(
        "waits for its target since {}{next}: {}",
        local_time(wait.since),
        wait.reason
    )
}

/// Until when the next sync was deferred, and why.
pub fn deferred(next: &NextEvent, reason: &str) -> String {
    match next.at {
        Some(at) => format!("until {}: {reason}", local_time(at)),
        None => reason.to_owned(),
    }
}

/// What a state says.
pub fn tone(status: Status) -> Tone {
    match status {
        Status::Running => Tone::Busy,
        Status::Ready | Status::Waiting | Status::Finished => Tone::Good,
        Status::Stopped | Status::Expired => Tone::Warning,
        Status::InError => Tone::Bad,
        Status::Canceled | Status::Deleting => Tone::Faint,
    }
}

/// What the end of a run says.
pub fn outcome_tone(outcome: RunOutcome) -> Tone {
    match outcome {
        RunOutcome::Running => Tone::Busy,
        RunOutcome::Succeeded => Tone::Good,
        RunOutcome::Stopped | RunOutcome::Interrupted | RunOutcome::Deferred => Tone::Warning,
        RunOutcome::Canceled => Tone::Faint,
        RunOutcome::Failed => Tone::Bad,
    }
}

/// A job's state, with the phase of a running sync and how much of it is done: `Running, Comparing 42%`.
pub fn state(job: &JobView) -> String {
    let Some(progress) = &job.progress else {
        return job.status.to_string();
    };
    if progress.waiting_for_target.is_some() {
        return format!("{}, waiting for target", job.status);
    }
    match progress.phase {
        Phase::Comparing | Phase::Transferring => {
            format!("{}, {} {}", job.status, progress.phase, percent(progress.percent))
        }
        phase => format!("{}, {phase}", job.status),
    }
}

/// A job's name and state.
pub fn headline(paint: Paint, job: &JobView) -> String {
    let name = paint.paint(Tone::Strong, &job.name);
    format!("{name}: {}", paint.paint(tone(job.status), &state(job)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_before_it_is() {
        assert_eq!(
            [0.0, 42.7, 99.99, 100.0, 7e9, -3.0].map(percent),
            ["0%", "42%", "99%", "100%", "100%", "0%"]
        );
    }
}
