//! Words for people: sizes, lists, and what files say, made safe to show.

use std::ffi::OsStr;
use std::fmt::Write;

/// Longest text out of a file that goes into a message, in characters.
const SHOWN_MAX: usize = 120;

/// Text that came from a file or a device: without surrounding white space, with everything escaped that a
/// terminal would obey or not show, and shortened.
pub(crate) fn shown(text: &str) -> String {
    escaped(text.trim(), SHOWN_MAX)
}

/// The first `max` characters of `text`, with what is not printable escaped.
pub(crate) fn escaped(text: &str, max: usize) -> String {
    let mut shown = String::new();
    for (index, letter) in text.chars().enumerate() {
        if index == max {
            shown.push('…');
            break;
        }
        match letter {
            '\'' | '"' | '\\' => shown.push(letter),
            _ => shown.extend(letter.escape_debug()),
        }
    }
    shown
}

/// A size as people write it, rounded down to a tenth: `64 MiB`, `1.5 TiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut whole, mut rest, mut unit) = (bytes, 0, 0);
    while whole >= 1024 && unit + 1 < UNITS.len() {
        (whole, rest, unit) = (whole / 1024, whole % 1024, unit + 1);
    }
    let (tenth, unit) = (rest * 10 / 1024, UNITS[unit]);
    if tenth == 0 || whole >= 100 {
        format!("{whole} {unit}")
    } else {
        format!("{whole}.{tenth} {unit}")
    }
}

/// The first `max` items with commas, and how many more there are. The items are safe to show already.
pub(crate) fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>, max: usize) -> String {
    let (mut text, mut more) = (String::new(), 0);
    for (index, item) in items.into_iter().enumerate() {
        if index >= max {
            more += 1;
            continue;
        }
        let comma = if index == 0 { "" } else { ", " };
        text.push_str(comma);
        text.push_str(item.as_ref());
    }
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

/// `1 partition`, `3 partitions`.
pub(crate) fn count(number: usize, one: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {one}{s}")
}

/// A key by which `nvme2n1` comes before `nvme10n1`, and Linux 6.1.9 before 6.1.10: runs of digits count as numbers.
pub(crate) fn natural_key(name: &str) -> Vec<(u8, u64, String)> {
    let mut parts: Vec<(u8, u64, String)> = Vec::new();
    for letter in name.chars().take(256) {
        let digit = letter.to_digit(10);
        match (digit, parts.last_mut()) {
            (Some(digit), Some((0, number, _))) => {
                *number = number.saturating_mul(10).saturating_add(u64::from(digit));
            }
            (Some(digit), _) => parts.push((0, u64::from(digit), String::new())),
            (None, Some((1, _, text))) => text.push(letter),
            (None, _) => parts.push((1, 0, letter.to_string())),
        }
    }
    parts
}

/// A path, as [`shown`] does.
pub(crate) fn shown_path(path: impl AsRef<OsStr>) -> String {
    shown(&path.as_ref().to_string_lossy())
}

/// An error with its cause, on one line.
pub(crate) fn cause(error: &hostdev::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_long_text_is_cut() {
        assert_eq!(shown(" a\x1b[2Jb\n"), "a\\u{1b}[2Jb");
        assert_eq!(shown("\u{202e}x"), "\\u{202e}x");
        assert_eq!(shown(r#"C:\it's "it""#), r#"C:\it's "it""#);
        assert_eq!(shown(&"x".repeat(10_000)).chars().count(), SHOWN_MAX + 1);
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (64 << 20, "64 MiB"),
            (3 << 39, "1.5 TiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn lists_say_what_they_leave_out() {
        assert_eq!(list(["a", "b"], 2), "a, b");
        assert_eq!(list(["a", "b", "c", "d"], 2), "a, b and 2 more");
        assert_eq!(list([""; 0], 2), "");
    }

    #[test]
    fn names_sort_by_their_numbers() {
        let mut names = ["nvme10n1", "nvme2n1", "dm-0", "6.1.10-1", "6.1.9-2"];
        names.sort_by_key(|name| natural_key(name));
        assert_eq!(names, ["6.1.9-2", "6.1.10-1", "dm-0", "nvme2n1", "nvme10n1"]);
        assert_eq!(natural_key(&"9".repeat(100)).len(), 1);
    }
}
