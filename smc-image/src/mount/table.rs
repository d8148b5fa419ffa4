//! What is mounted, as the kernel tells it (proc(5), `/proc/self/mountinfo`).

use anyhow::Context;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mounted filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub dir: PathBuf,
    /// What: the device, for filesystems on one.
    pub source: PathBuf,
}

/// What is mounted on `dir`, on top of whatever else may be.
pub fn on(dir: &Path) -> anyhow::Result<Option<Mounted>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(text.lines().filter_map(parse).rfind(|mounted| mounted.dir == dir))
}

/// Whether this device is mounted on `dir`, be it below something else.
pub fn is_on(source: &Path, dir: &Path) -> anyhow::Result<bool> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(text
        .lines()
        .filter_map(parse)
        .any(|mounted| mounted.dir == dir && mounted.source == source))
}

fn parse(line: &str) -> Option<Mounted> {
    let (before, after) = line.split_once(" - ")?;
    Some(Mounted {
        dir: unescaped(before.split(' ').nth(4)?),
        source: unescaped(after.split(' ').nth(1)?),
    })
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let escape = behind.get(..3).filter(|_| byte == b'\\').and_then(octal);
        bytes.push(escape.unwrap_or(byte));
        rest = if escape.is_some() { &behind[3..] } else { behind };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_and_escapes_are_understood() {
        let line =
            r"36 35 7:3 / /mnt/a\040b\134c rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw,errors=continue";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.dir, Path::new(r"/mnt/a b\c"));
        assert_eq!(mounted.source, Path::new("/dev/loop3"));
        assert_eq!(parse("nonsense"), None);
    }
}
