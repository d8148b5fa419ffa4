//! Sizes and lengths of time as people write and read them, and points in time in the local time zone.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A number of bytes as people write it: `64 MiB`, `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = |unit: usize| 1u64 << (10 * (unit + 1));
    let Some(unit) = (0..UNITS.len()).rev().find(|&unit| bytes >= step(unit)) else {
        return format!("{bytes} B");
    };
    let (whole, rest) = (bytes / step(unit), bytes % step(unit));
    if rest == 0 {
        return format!("{whole} {}", UNITS[unit]);
    }
    // In 128 bits, since ten times an EiB is more than 64 hold.
    let tenths = u128::from(bytes) * 10 / u128::from(step(unit));
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Bytes a second: `50 MiB/s`.
pub fn rate(bytes: u64) -> String {
    format!("{}/s", size(bytes))
}

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

/// A point in time in the local time zone, to the second.
pub fn local_time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// A day in the local time zone.
pub fn local_date(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d").to_string()
}

/// A number of bytes, from `64KiB`, `50MiB`, `1.5GiB`; units are binary.
///
/// # Errors
/// Text that is no size; the message shows how one is written.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let parsed = parse_size::Config::new().with_binary().parse_size(text);
    parsed.map_err(|error| format!("{error}; write 64KiB, 50MiB or 1.5GiB"))
}

/// Bytes a second, as [`parse_size`] or with `/s` after it.
///
/// # Errors
/// Text that is no size.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    parse_size(text.strip_suffix("/s").unwrap_or(text))
}

/// A length of time, from `90s`, `6h`, `1h 30m`, `30d`.
///
/// # Errors
/// Text that is no length of time.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_people_write_them() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(u64::MAX), "15.9 EiB");
    }

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
    fn sizes_and_times_are_read_as_people_write_them() {
        assert_eq!(parse_size("64KiB"), Ok(65536));
        assert_eq!(parse_size("1.5G"), Ok(3 << 29));
        assert_eq!(parse_rate("50MiB/s"), Ok(50 << 20));
        assert_eq!(parse_rate("0"), Ok(0));
        assert!(parse_size("many").unwrap_err().contains("50MiB"));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert!(parse_duration("soon").is_err());
    }
}
