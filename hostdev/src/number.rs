//! Device numbers.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::str::FromStr;

/// Major and minor number of a device, written `major:minor` as in sysfs and mountinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// The driver's part.
    pub major: u32,
    /// The device's part.
    pub minor: u32,
}

impl DeviceNumber {
    /// The number with these parts.
    pub const fn new(major: u32, minor: u32) -> DeviceNumber {
        DeviceNumber { major, minor }
    }

    /// Of a `dev_t` as in `st_dev` and `st_rdev` (makedev(3)).
    pub fn of_dev(dev: u64) -> DeviceNumber {
        DeviceNumber::new(libc::major(dev), libc::minor(dev))
    }

    /// Of the block device whose node has this metadata; `None` if it is another kind of file.
    pub fn of_block_device(metadata: &Metadata) -> Option<DeviceNumber> {
        metadata
            .file_type()
            .is_block_device()
            .then(|| DeviceNumber::of_dev(metadata.rdev()))
    }

    /// Whether it stands for no device: filesystems without one, or with several (btrfs), have major number 0.
    pub fn is_anonymous(self) -> bool {
        self.major == 0
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The text is not `major:minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseDeviceNumberError;

impl fmt::Display for ParseDeviceNumberError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a device number is written MAJOR:MINOR")
    }
}

impl std::error::Error for ParseDeviceNumberError {}

impl FromStr for DeviceNumber {
    type Err = ParseDeviceNumberError;

    fn from_str(text: &str) -> Result<DeviceNumber, ParseDeviceNumberError> {
        let number = |digits: &str| {
            // `u32::from_str` takes a plus sign too.
            let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits
                .parse()
                .ok()
                .filter(|_| is_number)
                .ok_or(ParseDeviceNumberError)
        };
        let (major, minor) = text.split_once(':').ok_or(ParseDeviceNumberError)?;
        Ok(DeviceNumber::new(number(major)?, number(minor)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_written_alike() {
        for text in ["8:1", "0:41", "259:1048575", "4294967295:0"] {
            let number: DeviceNumber = text.parse().expect("a number");
            assert_eq!(number.to_string(), text);
        }
        let anonymous: DeviceNumber = "0:41".parse().expect("a number");
        assert!(anonymous.is_anonymous());
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "",
            ":",
            "8",
            "8:",
            ":1",
            "8:1:2",
            "+8:1",
            "8:-1",
            "8: 1",
            " 8:1",
            "4294967296:0",
            "a:b",
        ] {
            assert_eq!(
                text.parse::<DeviceNumber>(),
                Err(ParseDeviceNumberError),
                "{text:?}"
            );
        }
    }
}
