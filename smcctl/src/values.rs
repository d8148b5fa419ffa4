//! Values on the command line as people write them, and as smcd takes them.
//!
//! Which values are allowed is for smcd to say: here is only refused what cannot be told to it.

use api::{DiskRequest, OnReadError, Tracking};
use cli::units::{parse_duration, parse_size};
use jiff::Timestamp;
use std::path;

/// A disk: `[NAME=]DEV`.
///
/// # Errors
/// In words, what is wrong with it.
pub fn disk(text: &str) -> Result<DiskRequest, String> {
    let (name, device) = cli::disk::name_and_device(text);
    Ok(DiskRequest {
        path: path(device)?,
        name: name.map(str::to_owned),
    })
}

/// A path, which smcd must find from wherever it is.
///
/// # Errors
/// In words, what is wrong with it.
pub fn path(text: &str) -> Result<String, String> {
    let absolute = path::absolute(text).map_err(|error| error.to_string())?;
    let said = absolute.to_str().map(str::to_owned);
    said.ok_or_else(|| {
        format!(
            "{} is not valid UTF-8, which smcd requires of paths",
            absolute.display()
        )
    })
}

/// A path, or nothing, which stands for none.
///
/// # Errors
/// In words, what is wrong with it.
pub fn path_or_none(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Ok(String::new())
    } else {
        path(text)
    }
}

/// A length of time in seconds, from `90s`, `6h`, `30d`.
///
/// # Errors
/// In words, what is wrong with it.
pub fn seconds(text: &str) -> Result<u64, String> {
    let time = parse_duration(text)?;
    if time.subsec_nanos() != 0 {
        return Err("smcd accepts only whole seconds".to_owned());
    }
    Ok(time.as_secs())
}

/// How changes are found.
///
/// # Errors
/// Where it is neither `auto` nor `off`.
pub fn tracking(text: &str) -> Result<Tracking, String> {
    match text {
        "auto" => Ok(Tracking::Auto),
        "off" => Ok(Tracking::Off),
        _ => Err("it must be auto or off".to_owned()),
    }
}

/// What becomes of sectors that cannot be read.
pub fn on_read_error(text: &str) -> Result<OnReadError, String> {
    match text {
        "stop" => Ok(OnReadError::Stop),
        "skip" => Ok(OnReadError::Skip),
        _ => Err("it must be stop or skip".to_owned()),
    }
}

/// How long writers may be held, in milliseconds; `off` is 0.
///
/// # Errors
/// In words, what is wrong with it.
pub fn freeze_budget(text: &str) -> Result<u64, String> {
    if text == "off" {
        return Ok(0);
    }
    let budget = parse_duration(text)?;
    u64::try_from(budget.as_millis()).map_err(|_| "this is longer than any freeze may take".to_owned())
}

/// The size of a cluster in bytes.
///
/// # Errors
/// In words, what is wrong with it.
pub fn cluster_size(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| "this is larger than any cluster size".to_owned())
}

/// A point in time: RFC 3339, or `+2h` from now.
///
/// # Errors
/// In words, what is wrong with it.
pub fn start_at(text: &str) -> Result<Timestamp, String> {
    match text.strip_prefix('+') {
        Some(ahead) => {
            let ahead = parse_duration(ahead)?;
            Timestamp::now()
                .checked_add(ahead)
                .map_err(|error| error.to_string())
        }
        None => text.parse().map_err(|error| {
            format!("{error}; use +2h, or a time with its zone such as 2026-11-24T03:00:00+01:00")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let named = disk("vda=/dev/loop0").unwrap();
        assert_eq!((named.name.as_deref(), &*named.path), (Some("vda"), "/dev/loop0"));
        let plain = disk("/dev/disk/by-id/a=b").unwrap();
        assert_eq!((plain.name, &*plain.path), (None, "/dev/disk/by-id/a=b"));
        assert!(disk("vda=").is_err());
        assert!(disk("").is_err());
    }

    #[test]
    fn paths_are_told_from_the_root() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(path("store").unwrap(), here.join("store").to_str().unwrap());
        assert_eq!(path_or_none(""), Ok(String::new()));
        assert!(path("").is_err());
    }

    #[test]
    fn times_and_sizes_are_read_as_people_write_them() {
        assert_eq!(seconds("6h"), Ok(6 * 3600));
        assert_eq!(seconds("1h 30m"), Ok(5400));
        assert_eq!(seconds("30d"), Ok(30 * 86400));
        assert!(seconds("6").is_err() && seconds("1500ms").is_err() && seconds("soon").is_err());
        assert_eq!((freeze_budget("200ms"), freeze_budget("off")), (Ok(200), Ok(0)));
        assert_eq!(cluster_size("16k"), Ok(16384));
        assert!(cluster_size("many").is_err() && cluster_size("4GiB").is_err());
    }

    #[test]
    fn starts_are_points_in_time() {
        let start = start_at("2026-11-24T03:00:00+01:00").unwrap();
        assert_eq!(start.to_string(), "2026-11-24T02:00:00Z");
        let (before, start) = (Timestamp::now(), start_at("+2h").unwrap());
        assert!(before.duration_until(start).as_secs() >= 7200);
        assert!(start_at("tomorrow").is_err() && start_at("+2").is_err() && start_at("+99999999y").is_err());
    }
}
