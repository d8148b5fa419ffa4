//! Pointers: 48 bytes that say what a cluster or node holds (digest) and where it is stored.

use crate::error::{Error, Result};
use crate::format::digest::Digest;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a stored pointer in bytes.
pub const POINTER_LEN: usize = 48;

/// Most bytes a pointer can say are stored: 24 bits.
pub const STORED_LEN_MAX: u32 = (1 << 24) - 1;

/// A pointer as it stands in a node block (docs/format.md, "Pointer").
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawPointer {
    pub digest: [u8; 32],
    pub layer: U32,
    pub stored_len: [u8; 3],
    pub codec: u8,
    pub offset: U64,
}

const _: () = assert!(size_of::<RawPointer>() == POINTER_LEN);
const _: () = assert!(std::mem::offset_of!(RawPointer, layer) == 32);
const _: () = assert!(std::mem::offset_of!(RawPointer, stored_len) == 36);
const _: () = assert!(std::mem::offset_of!(RawPointer, codec) == 39);
const _: () = assert!(std::mem::offset_of!(RawPointer, offset) == 40);

/// How the stored bytes stand for the plain ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Nothing stored: all zeros.
    Null = 0,
    /// The plain bytes.
    Raw = 1,
    /// One zstd frame.
    Zstd = 2,
    /// Plain bytes and a bitmap of the sectors that were unreadable at the source.
    Damaged = 3,
}

/// What a reader gets of a cluster. Equal digests mean equal content only where this is equal too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holding {
    /// Zeros.
    Nothing,
    /// All bytes.
    Plain,
    /// Bytes, some of which were unreadable at the source.
    Partial,
}

impl Codec {
    /// What a reader gets of a cluster of this codec.
    pub(crate) fn holding(self) -> Holding {
        match self {
            Self::Null => Holding::Nothing,
            Self::Raw | Self::Zstd => Holding::Plain,
            Self::Damaged => Holding::Partial,
        }
    }

    /// The codec with this number.
    ///
    /// # Errors
    /// `Damaged` for a number that no version defines.
    pub fn from_byte(byte: u8) -> Result<Self> {
        match byte {
            0 => Ok(Self::Null),
            1 => Ok(Self::Raw),
            2 => Ok(Self::Zstd),
            3 => Ok(Self::Damaged),
            _ => Err(Error::damaged(format!(
                "pointer field codec is {byte}, which no version defines"
            ))),
        }
    }
}

/// Where bytes lie in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The layer's id within its chain.
    pub layer: u32,
    /// Byte offset in the layer.
    pub offset: u64,
    /// Stored length in bytes.
    pub len: u32,
}

impl Place {
    /// The first offset behind the stored bytes.
    pub fn end(&self) -> u64 {
        // Checked when the pointer was parsed: offset is at most 2^63, len 24 bits.
        self.offset + u64::from(self.len)
    }
}

/// What a cluster or node holds, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pointer {
    /// Digest of the content; null exactly when the codec is.
    pub digest: Digest,
    /// How it is stored.
    pub codec: Codec,
    /// Where; all zero when the codec is null.
    pub place: Place,
}

impl Pointer {
    /// Points to nothing but zeros.
    pub const NULL: Self = Self {
        digest: Digest::NULL,
        codec: Codec::Null,
        place: Place {
            layer: 0,
            offset: 0,
            len: 0,
        },
    };

    /// Whether this stands for all zeros.
    pub fn is_null(&self) -> bool {
        self.codec == Codec::Null
    }

    /// Whether this is content of the digest `digest`, held in the way that `codec` does.
    pub(crate) fn holds(&self, digest: &Digest, codec: Codec) -> bool {
        self.digest == *digest && self.codec.holding() == codec.holding()
    }

    pub(crate) fn to_raw(self) -> RawPointer {
        let [a, b, c, _] = self.place.len.to_le_bytes();
        RawPointer {
            digest: self.digest.0,
            layer: U32::new(self.place.layer),
            stored_len: [a, b, c],
            codec: self.codec as u8,
            offset: U64::new(self.place.offset),
        }
    }

    /// Checks all that can be checked of a pointer by itself.
    pub(crate) fn from_raw(raw: &RawPointer) -> Result<Self> {
        let [a, b, c] = raw.stored_len;
        let place = Place {
            layer: raw.layer.get(),
            offset: raw.offset.get(),
            len: u32::from_le_bytes([a, b, c, 0]),
        };
        let pointer = Self {
            digest: Digest(raw.digest),
            codec: Codec::from_byte(raw.codec)?,
            place,
        };
        if pointer.codec == Codec::Null {
            if pointer != Self::NULL {
                return Err(Error::damaged("a null pointer is not all zero"));
            }
        } else if pointer.digest.is_null() {
            return Err(Error::damaged(
                "pointer field digest is null, but its codec is not",
            ));
        } else if place.len == 0 {
            return Err(Error::damaged("pointer field length is 0"));
        } else if place.offset > i64::MAX as u64 - u64::from(STORED_LEN_MAX) {
            return Err(Error::damaged("pointer field offset is beyond any file"));
        }
        Ok(pointer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Pointer {
        Pointer {
            digest: Digest([7; 32]),
            codec: Codec::Zstd,
            place: Place {
                layer: 0x0102_0304,
                offset: 0x1122_3344_5566,
                len: 0xabcdef,
            },
        }
    }

    #[test]
    fn pointer_survives_storing() {
        assert_eq!(Pointer::from_raw(&sample().to_raw()).unwrap(), sample());
        assert_eq!(Pointer::from_raw(&Pointer::NULL.to_raw()).unwrap(), Pointer::NULL);
    }

    #[test]
    fn impossible_pointers_are_refused() {
        let broken: [fn(&mut RawPointer); 5] = [
            |raw| raw.codec = 9,
            |raw| raw.codec = 0,
            |raw| raw.digest = [0; 32],
            |raw| raw.stored_len = [0; 3],
            |raw| raw.offset = U64::new(u64::MAX),
        ];
        for damage in broken {
            let mut raw = sample().to_raw();
            damage(&mut raw);
            assert!(Pointer::from_raw(&raw).is_err());
        }
    }
}
