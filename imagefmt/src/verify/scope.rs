//! Which clusters a verification reads.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Clusters come into a sample, or stay out of it, in units of this many bytes of the disk.
const UNIT_BYTES: u64 = 1 << 20;

/// Which clusters a verification reads. All nodes are read in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All of them.
    #[default]
    All,
    /// One slice of several.
    Sample(Sample),
}

/// One slice of a disk: of the units of 1 MiB, those whose number leaves the remainder `slice` when divided by
/// `of`. All slices together are the whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredSample")]
pub struct Sample {
    slice: u32,
    of: u32,
}

#[derive(Deserialize)]
struct StoredSample {
    slice: u32,
    of: u32,
}

impl TryFrom<StoredSample> for Sample {
    type Error = Error;

    fn try_from(stored: StoredSample) -> Result<Self> {
        Self::new(stored.slice, stored.of)
    }
}

impl Sample {
    /// The one slice that is everything.
    pub(crate) const WHOLE: Self = Self { slice: 0, of: 1 };

    /// Slice `slice`, from 0, of `of` slices.
    ///
    /// # Errors
    /// `Invalid` where there are not so many slices.
    pub fn new(slice: u32, of: u32) -> Result<Self> {
        if slice < of {
            return Ok(Self { slice, of });
        }
        Err(Error::invalid(format!("there is no slice {slice} of {of}")))
    }

    /// The slice's number, from 0.
    pub fn slice(self) -> u32 {
        self.slice
    }

    /// How many slices there are.
    pub fn of(self) -> u32 {
        self.of
    }
}

impl Scope {
    /// Slice `number`, from 0, where `samples` make up the whole; everything where there is only one, or none.
    pub(crate) fn slice(number: u32, samples: Option<u32>) -> Self {
        match samples {
            Some(of) if of > 1 => Self::Sample(Sample::new(number, of).unwrap_or(Sample::WHOLE)),
            _ => Self::All,
        }
    }

    /// Whether it has the cluster that begins at byte `offset`.
    pub(crate) fn has(self, offset: u64) -> bool {
        match self {
            Self::All => true,
            Self::Sample(Sample { slice, of }) => offset / UNIT_BYTES % u64::from(of) == u64::from(slice),
        }
    }

    /// How many bytes of a disk of `size_bytes` it has.
    pub fn bytes_of(self, size_bytes: u64) -> u64 {
        match self {
            Self::All => size_bytes,
            Self::Sample(Sample { slice, of }) => {
                let round = u64::from(of) * UNIT_BYTES;
                let before = u64::from(slice) * UNIT_BYTES;
                let last = (size_bytes % round).saturating_sub(before).min(UNIT_BYTES);
                size_bytes / round * UNIT_BYTES + last
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_do_not_overlap_and_leave_nothing_out() {
        for of in [1, 2, 7, 100] {
            let slices: Vec<Scope> = (0..of)
                .map(|slice| Scope::Sample(Sample::new(slice, of).unwrap()))
                .collect();
            for offset in (0..300 * UNIT_BYTES).step_by(1 << 18) {
                let count = slices.iter().filter(|scope| scope.has(offset)).count();
                assert_eq!(count, 1, "byte {offset} in slices of {of}");
            }
            for size in [1, UNIT_BYTES - 1, UNIT_BYTES, 113 * UNIT_BYTES + 5] {
                let total: u64 = slices.iter().map(|scope| scope.bytes_of(size)).sum();
                assert_eq!(total, size, "slices of {of}");
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_clusters() {
        let scope = Scope::Sample(Sample::new(3, 5).unwrap());
        for clusters in 0..200u64 {
            let counted = (0..clusters).filter(|cluster| scope.has(cluster << 18)).count();
            assert_eq!(scope.bytes_of(clusters << 18), (counted as u64) << 18);
        }
    }

    #[test]
    fn impossible_slices_are_refused() {
        for (slice, of) in [(0, 0), (1, 1), (100, 100)] {
            assert!(Sample::new(slice, of).is_err());
            let text = format!("{{\"sample\":{{\"slice\":{slice},\"of\":{of}}}}}");
            assert!(serde_json::from_str::<Scope>(&text).is_err(), "{text}");
        }
    }
}
