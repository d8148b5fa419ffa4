//! Names of jobs, chains and disks, references to images (`web01/7`, `web01/latest:vda`), and what a reference is
//! resolved to.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name in bytes.
const NAME_LEN_MAX: usize = 64;

/// Checks a name of a job, chain or disk: letters, digits, `.`, `_` and `-`, starting with a letter or
/// digit, not ending in `.json` or `.tmp`, at most 64. Such a name is safe as a file name, in an NBD export name and in a log line.
///
/// # Errors
/// `Invalid`, with the name and what a name may be.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let starts_well = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    // The names that files of the store itself have.
    let reserved = name.ends_with(".json") || name.ends_with(".tmp");
    if starts_well && !reserved && name.len() <= NAME_LEN_MAX && name.bytes().all(good) {
        return Ok(());
    }
    let name = printable(name, SHOWN_MAX);
    Err(Error::invalid(format!(
        "{what} name \"{name}\" does not fit: use 1 to {NAME_LEN_MAX} letters, digits, '.', '_' or '-', \
         starting with a letter or digit and not ending in .json or .tmp"
    )))
}

/// Characters that a message repeats of a name that is none.
pub(crate) const SHOWN_MAX: usize = 80;

/// Text that a store or user gave, for a message: short, and nothing in it that a terminal would obey.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let mut shown = String::new();
    for (count, letter) in text.chars().enumerate() {
        match letter {
            _ if count == max => {
                shown.push('…');
                break;
            }
            '"' | '\'' => shown.push(letter),
            _ => shown.extend(letter.escape_debug()),
        }
    }
    shown
}

/// One image of a store: what [`Store::resolve`](crate::Store::resolve) finds for a reference.
///
/// An image lies in a chain, which several jobs may have continued one after another; people name it by its job.
/// Displayed as they write it: `web01/7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId {
    chain: Arc<str>,
    sequence: u64,
    job: Arc<str>,
}

impl ImageId {
    pub(crate) fn new(chain: &str, sequence: u64, job: &str) -> Self {
        Self {
            chain: chain.into(),
            sequence,
            job: job.into(),
        }
    }

    /// The job that made the image; the chain's name where the image's manifest cannot be read.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The image's number, which no other image of its chain has.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Name of the chain that holds it: a directory of the store. No command takes it for a job's name.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// The reference that names this image, or one disk of it.
    pub fn reference(&self, disk: Option<&str>) -> ImageRef {
        ImageRef {
            job: self.job.to_string(),
            which: Which::Sequence(self.sequence),
            disk: disk.map(str::to_owned),
        }
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.sequence)
    }
}

/// Which image of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    /// The one with this number.
    Sequence(u64),
    /// The newest.
    Latest,
}

/// A reference to an image, or to one disk of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// The job.
    pub job: String,
    /// Which of its images.
    pub(crate) which: Which,
    /// One disk of it.
    pub disk: Option<String>,
}

impl ImageRef {
    /// The newest image of a job.
    pub fn latest(job: &str) -> Self {
        Self {
            job: job.to_owned(),
            which: Which::Latest,
            disk: None,
        }
    }

    /// Whether it names the newest image, whichever that is.
    pub fn is_latest(&self) -> bool {
        self.which == Which::Latest
    }

    /// Whether both name the same image, or one disk of it.
    pub fn is_same_image(&self, other: &Self) -> bool {
        self.job == other.job && self.which == other.which
    }

    /// The same image, and one disk of it or none.
    #[must_use]
    pub fn with_disk(&self, disk: Option<&str>) -> Self {
        Self {
            disk: disk.map(str::to_owned),
            ..self.clone()
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.which {
            Which::Sequence(sequence) => write!(f, "{}/{sequence}", self.job)?,
            Which::Latest => write!(f, "{}/latest", self.job)?,
        }
        self.disk.as_ref().map_or(Ok(()), |disk| write!(f, ":{disk}"))
    }
}

impl FromStr for ImageRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let text = printable(text, SHOWN_MAX);
            Error::invalid(format!(
                "\"{text}\" is not an image: write JOB/NUMBER or JOB/latest, with :DISK for one disk"
            ))
        };
        let (job, rest) = text.split_once('/').ok_or_else(bad)?;
        let (which, disk) = match rest.split_once(':') {
            Some((which, disk)) => (which, Some(disk.to_owned())),
            None => (rest, None),
        };
        let which = match which {
            "latest" => Which::Latest,
            digits if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                Which::Sequence(digits.parse().map_err(|_| bad())?)
            }
            _ => return Err(bad()),
        };
        check_name("job", job)?;
        disk.as_deref().map_or(Ok(()), |disk| check_name("disk", disk))?;
        Ok(Self {
            job: job.to_owned(),
            which,
            disk,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_shown_alike() {
        for text in ["web01/7", "web01/latest", "web01/7:vda", "a.b-c_d/123456:disk-1"] {
            assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_could_leave_the_store_is_no_name() {
        for text in [
            "",
            "web01",
            "/7",
            "../7",
            "web01/",
            "web01/-1",
            "web01/+1",
            "web01/7:",
            "web01/7:../x",
            "a/b/c",
            ".hidden/1",
            "web 01/1",
            "web\u{0}/1",
            "web01/99999999999999999999",
            "store.json/1",
        ] {
            assert!(text.parse::<ImageRef>().is_err(), "{text} was accepted");
        }
    }
}
