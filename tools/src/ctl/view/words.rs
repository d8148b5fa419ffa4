//! Times, rates and states in words.

use api::{JobView, NextEvent, Phase, RunOutcome, Status};
use jiff::Timestamp;
use std::time::Duration;
use tools::output;
use tools::paint::{Paint, Tone};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// How long something takes, in its two largest units: `5 h 59 min`.
pub fn duration(seconds: u64) -> String {
    let two = |large: u64, unit: &str, rest: u64, small: &str| match rest {
        0 => format!("{large} {unit}"),
        rest => format!("{large} {unit} {rest} {small}"),
    };
    match seconds {
        DAY.. => two(seconds / DAY, "d", seconds % DAY / HOUR, "h"),
        HOUR.. => two(seconds / HOUR, "h", seconds % HOUR / MINUTE, "min"),
        MINUTE.. => two(seconds / MINUTE, "min", seconds % MINUTE, "s"),
        _ => format!("{seconds} s"),
    }
}

/// The same of a measured time, with a tenth while that says something.
pub fn measured(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let rounded = Duration::try_from_secs_f64(seconds + 0.5).unwrap_or(Duration::MAX);
    duration(rounded.as_secs())
}

/// A length of time as it is given on the command line: `6h`, `1h30m`.
pub fn setting(seconds: u64) -> String {
    let parts = [
        (seconds / DAY, "d"),
        (seconds % DAY / HOUR, "h"),
        (seconds % HOUR / MINUTE, "m"),
        (seconds % MINUTE, "s"),
    ];
    let said: String = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if said.is_empty() { "0s".to_owned() } else { said }
}

/// Bytes a second.
pub fn rate(bytes: u64) -> String {
    format!("{}/s", output::size(bytes))
}

/// A share of a hundred, without decimals; never 100 before the end.
pub fn percent(percent: f64) -> String {
    format!("{:.0}%", percent.clamp(0.0, 100.0).floor())
}

/// A point in time, and how far ahead it is.
pub fn moment(at: Option<Timestamp>, in_seconds: Option<u64>) -> String {
    let ahead = in_seconds.map(|seconds| format!("in {}", duration(seconds)));
    match (at.map(output::local_time), ahead) {
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
        RunOutcome::Stopped | RunOutcome::Interrupted => Tone::Warning,
        RunOutcome::Canceled => Tone::Faint,
        RunOutcome::Failed => Tone::Bad,
    }
}

/// A job's state, with the phase of a running sync and how much of it is done: `Running, Comparing 42%`.
pub fn state(job: &JobView) -> String {
    let Some(progress) = &job.progress else {
        return job.status.to_string();
    };
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
    fn times_are_in_two_units() {
        let said = [0, 59, 60, 61, 3600, 21_599, 86_400, 90_061].map(duration);
        let expected = [
            "0 s",
            "59 s",
            "1 min",
            "1 min 1 s",
            "1 h",
            "5 h 59 min",
            "1 d",
            "1 d 1 h",
        ];
        assert_eq!(said, expected);
        assert!(duration(u64::MAX).ends_with('h'));
    }

    #[test]
    fn measured_times_are_rounded_and_any_number_is_one() {
        assert_eq!(
            [0.04, 9.94, 9.96, 41.6, -1.0].map(measured),
            ["0.0 s", "9.9 s", "10 s", "42 s", "0.0 s"]
        );
        assert!(measured(1e300).ends_with('h'));
    }

    #[test]
    fn settings_are_as_they_are_given() {
        assert_eq!(
            [0, 60, 5400, 21_600, 2_592_000].map(setting),
            ["0s", "1m", "1h30m", "6h", "30d"]
        );
    }

    #[test]
    fn nothing_is_done_before_it_is() {
        assert_eq!(
            [0.0, 42.7, 99.99, 100.0, 7e9, -3.0].map(percent),
            ["0%", "42%", "99%", "100%", "100%", "0%"]
        );
    }
}
