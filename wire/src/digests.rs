//! Digests of what the target has, on their way to the source.

use crate::error::{Error, Result};
use crate::message::Body;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Digests of one answer at most.
pub const DIGESTS_MAX: u32 = 32 << 10;

/// Of what digests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Of clusters.
    Clusters,
    /// Of leaves: nodes above clusters.
    Leaves,
}

impl Level {
    fn number(self) -> u16 {
        match self {
            Self::Clusters => 0,
            Self::Leaves => 1,
        }
    }

    fn of(number: u16) -> Result<Level> {
        match number {
            0 => Ok(Self::Clusters),
            1 => Ok(Self::Leaves),
            _ => Err(Error::malformed(format!(
                "there are no digests of level {number}"
            ))),
        }
    }
}

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    disk: U32,
    level: U16,
    zero: [u8; 2],
    first: U64,
    count: U32,
    zero_too: [u8; 4],
}

const HEAD_BYTES: usize = size_of::<Head>();
const _: () = assert!(HEAD_BYTES == 24);

/// Which digests of a disk are wanted, of what it is compared with in the pass that began last. Body: disk u32, level u16 (0 clusters, 1 leaves), two
/// zeros, the first u64, how many u32 (at most [`DIGESTS_MAX`]), four zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The disk, as [`Begin`](crate::message::Begin) numbers them.
    pub disk: u32,
    /// Of what.
    pub level: Level,
    /// The first one.
    pub first: u64,
    /// How many.
    pub count: u32,
}

impl Want {
    fn head(&self) -> Head {
        Head {
            disk: U32::new(self.disk),
            level: U16::new(self.level.number()),
            zero: [0; 2],
            first: U64::new(self.first),
            count: U32::new(self.count),
            zero_too: [0; 4],
        }
    }

    fn read(head: &Head) -> Result<Want> {
        if head.zero != [0; 2] || head.zero_too != [0; 4] {
            return Err(Error::malformed(
                "a message of digests has something where zeros belong",
            ));
        }
        let want = Want {
            disk: head.disk.get(),
            level: Level::of(head.level.get())?,
            first: head.first.get(),
            count: head.count.get(),
        };
        if want.count == 0 || want.count > DIGESTS_MAX || want.first.checked_add(want.count.into()).is_none()
        {
            return Err(Error::malformed(format!(
                "{} digests cannot be asked for at once",
                want.count
            )));
        }
        Ok(want)
    }
}

impl Body for Want {
    fn into_body(self) -> Vec<u8> {
        self.head().as_bytes().to_vec()
    }

    fn from_body(body: Vec<u8>) -> Result<Want> {
        let head =
            Head::read_from_bytes(&body).map_err(|_| Error::malformed("a question has another length"))?;
        Want::read(&head)
    }
}

/// One digest of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The digest; 32 zeros for what is all zeros, and for what is [`lost`](Self::lost) with the node that had it.
    pub digest: [u8; 32],
    /// It has to be stored anew, whatever the source has there: it is damaged, or cannot be read.
    pub lost: bool,
}

impl Known {
    /// What is all zeros.
    pub const NULL: Known = Known {
        digest: [0; 32],
        lost: false,
    };
}

/// The answer to [`Want`]. Body: what was asked for, as in the question; a bit for each digest (the lowest of the first byte first), set where it is not null;
/// a bit for each, set where it is lost; the digests that are not null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// What was asked for.
    pub want: Want,
    /// As many as were asked for.
    pub known: Vec<Known>,
}

impl Body for Digests {
    fn into_body(self) -> Vec<u8> {
        let mut body = self.want.into_body();
        let set = |is_set: &dyn Fn(&Known) -> bool| {
            let mut bits = vec![0u8; self.known.len().div_ceil(8)];
            for (at, _) in self.known.iter().enumerate().filter(|(_, known)| is_set(known)) {
                bits[at / 8] |= 1 << (at % 8);
            }
            bits
        };
        body.extend(set(&|known| known.digest != Known::NULL.digest));
        body.extend(set(&|known| known.lost));
        for known in &self.known {
            if known.digest != Known::NULL.digest {
                body.extend_from_slice(&known.digest);
            }
        }
        body
    }

    fn from_body(body: Vec<u8>) -> Result<Digests> {
        let cut_off = || Error::malformed("a message of digests has another length than it says");
        let (head, rest) = Head::read_from_prefix(&body).map_err(|_| cut_off())?;
        let want = Want::read(&head)?;
        let count = want.count as usize;
        let bits = count.div_ceil(8);
        let (present, rest) = rest.split_at_checked(bits).ok_or_else(cut_off)?;
        let (lost, rest) = rest.split_at_checked(bits).ok_or_else(cut_off)?;
        let is_set = |bits: &[u8], at: usize| bits[at / 8] >> (at % 8) & 1 == 1;
        if (count..bits * 8).any(|at| is_set(present, at) || is_set(lost, at)) {
            return Err(Error::malformed(
                "a message of digests has bits behind its last one",
            ));
        }
        let mut digests = rest.chunks_exact(32);
        let mut known = Vec::with_capacity(count);
        for at in 0..count {
            let mut digest = [0; 32];
            if is_set(present, at) {
                digest.copy_from_slice(digests.next().ok_or_else(cut_off)?);
                if digest == Known::NULL.digest {
                    return Err(Error::malformed("a digest is null, and said not to be"));
                }
            }
            let lost = is_set(lost, at);
            known.push(Known { digest, lost });
        }
        if digests.next().is_some() || !digests.remainder().is_empty() {
            return Err(cut_off());
        }
        Ok(Digests { want, known })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn answer() -> Digests {
        let known = (0..19u8).map(|at| Known {
            digest: if at % 3 == 0 { [0; 32] } else { [at; 32] },
            lost: at == 4 || at == 18,
        });
        Digests {
            want: Want {
                disk: 1,
                level: Level::Clusters,
                first: 512,
                count: 19,
            },
            known: known.collect(),
        }
    }

    #[test]
    fn digests_come_out_as_they_went_in() {
        let body = answer().into_body();
        assert_eq!(body.len(), 24 + 3 + 3 + 12 * 32);
        assert_eq!(Digests::from_body(body).unwrap(), answer());
        let want = answer().want;
        assert_eq!(Want::from_body(want.into_body()).unwrap(), want);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let body = answer().into_body();
        for length in 0..body.len() {
            assert!(
                Digests::from_body(body[..length].to_vec()).is_err(),
                "cut off after {length}"
            );
        }
        let longer = [&body[..], &[0; 32]].concat();
        assert!(Digests::from_body(longer).is_err());
        for (at, value) in [
            (4, 2),
            (6, 1),
            (20, 1),
            (26, 0xFF),
            (16, 0),
            (19, 0xFF),
            (15, 0xFF),
        ] {
            let mut other = body.clone();
            other[at] = value;
            assert!(Digests::from_body(other).is_err() == (at != 15), "byte {at}");
        }
        let mut null = body.clone();
        null[30..62].fill(0);
        assert!(Digests::from_body(null).is_err());
    }
}
