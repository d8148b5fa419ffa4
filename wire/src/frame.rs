//! Frames: a header of 16 bytes and a body.

use crate::error::{Error, Result};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Length of a frame's header in bytes.
pub const HEADER_BYTES: usize = 16;

/// The longest body of a binary message: stored pieces of 1 MiB and what is said of them, or so many digests.
pub const BINARY_MAX_BYTES: usize = (1 << 20) + (64 << 10);

/// The longest body of a JSON message: the record of an image that names many places.
pub const JSON_MAX_BYTES: usize = 4 << 20;

/// The longest body of a JSON message from a source: none of them carries an image's record.
pub const SOURCE_JSON_MAX_BYTES: usize = 256 << 10;

/// What a numbered message counts beside its bytes: both sides have to keep a place for it, however short it is.
pub const COST_BYTES: u64 = 128;

/// The first of the kinds whose bodies are binary.
const FIRST_BINARY: u8 = 64;

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    body_bytes: U32,
    kind: u8,
    zero: [u8; 3],
    seq: U64,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which message it is.
    pub kind: u8,
    /// Its number among the messages that are kept in order; for answers, that of the question; otherwise 0.
    pub seq: u64,
    /// What it says.
    pub body: Vec<u8>,
}

impl Frame {
    /// The frame as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.body.len());
        let header = Header {
            // A body is never longer than a frame may be, which is far below 4 GiB.
            body_bytes: U32::new(u32::try_from(self.body.len()).unwrap_or(u32::MAX)),
            kind: self.kind,
            zero: [0; 3],
            seq: U64::new(self.seq),
        };
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Bytes that it takes when it is sent.
    pub fn len_bytes(&self) -> u64 {
        (HEADER_BYTES + self.body.len()) as u64
    }

    /// What it counts of the credit.
    pub fn cost_bytes(&self) -> u64 {
        self.len_bytes() + COST_BYTES
    }
}

/// The longest body that a frame of this kind may have.
pub(crate) fn body_max(kind: u8) -> usize {
    if kind < FIRST_BINARY {
        JSON_MAX_BYTES
    } else {
        BINARY_MAX_BYTES
    }
}

/// Cuts what comes by one connection into frames. It holds no more than one frame that is not complete, and what was fed last.
#[derive(Debug)]
pub struct Frames {
    json_max_bytes: usize,
    bytes: Vec<u8>,
    /// Where the next frame begins in `bytes`.
    start: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Frames::within(JSON_MAX_BYTES)
    }
}

impl Frames {
    /// What a source sends.
    pub fn of_source() -> Frames {
        Frames::within(SOURCE_JSON_MAX_BYTES)
    }

    fn within(json_max_bytes: usize) -> Frames {
        Frames {
            json_max_bytes,
            bytes: Vec::new(),
            start: 0,
        }
    }

    /// Takes the next bytes of the connection.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, if all of it has come.
    ///
    /// # Errors
    /// `Malformed` for a header that no frame has, `TooMuch` for a body that is too long: known before the body has come. The
    /// connection cannot be used any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        let rest = &self.bytes[self.start..];
        let Ok((header, rest)) = Header::read_from_prefix(rest) else {
            return Ok(None);
        };
        if header.zero != [0; 3] {
            return Err(Error::malformed(
                "a frame's header has something where zeros belong",
            ));
        }
        let length = header.body_bytes.get() as usize;
        let is_json = header.kind < FIRST_BINARY;
        let most = if is_json {
            self.json_max_bytes
        } else {
            BINARY_MAX_BYTES
        };
        if length > most {
            return Err(Error::too_much(format!(
                "a message of kind {} is said to have {length} bytes, of at most {most}",
                header.kind
            )));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Frame {
            kind: header.kind,
            seq: header.seq.get(),
            body: body.to_vec(),
        };
        self.start += HEADER_BYTES + length;
        Ok(Some(frame))
    }

    /// Whether the connection may end here: no frame has begun.
    pub fn is_between(&self) -> bool {
        self.start == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn frames_come_whole_however_they_were_cut() {
        let frames = [
            Frame {
                kind: 1,
                seq: 7,
                body: b"{}".to_vec(),
            },
            Frame {
                kind: 64,
                seq: u64::MAX,
                body: vec![9; 5000],
            },
            Frame {
                kind: 3,
                seq: 0,
                body: Vec::new(),
            },
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for step in [1, 3, 16, 17, 5000, bytes.len()] {
            let (mut cutter, mut found) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(step) {
                cutter.feed(piece);
                while let Some(frame) = cutter.next_frame().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, frames, "in pieces of {step}");
            assert!(cutter.is_between());
        }
    }

    #[test]
    fn a_length_that_is_too_long_is_refused_before_the_body_comes() {
        let mut cutter = Frames::default();
        let mut header = Frame {
            kind: 64,
            seq: 1,
            body: Vec::new(),
        }
        .encode();
        header[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        cutter.feed(&header);
        assert_eq!(cutter.next_frame().unwrap_err().kind(), ErrorKind::TooMuch);
        let mut cutter = Frames::default();
        header[..4].fill(0);
        header[6] = 1;
        cutter.feed(&header);
        assert_eq!(cutter.next_frame().unwrap_err().kind(), ErrorKind::Malformed);
    }

    #[test]
    fn the_header_is_what_the_document_says() {
        let frame = Frame {
            kind: 64,
            seq: 0x0102,
            body: vec![0xAA],
        };
        assert_eq!(
            frame.encode(),
            [1, 0, 0, 0, 64, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0xAA]
        );
    }
}
