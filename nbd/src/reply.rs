//! The bytes of replies in the transmission phase.

use zerocopy::IntoBytes;

use crate::options::{ALLOCATION_CONTEXT_ID, wire_text};
use crate::proto::{
    BlockDescriptor, BlockStatusChunk, CHUNK_MAGIC, ChunkHeader, DataChunk, Errno, ErrorChunk,
};
use crate::proto::{HoleChunk, SIMPLE_REPLY_MAGIC, SimpleReply, chunk};

/// How a connection's replies look. Without structured replies nothing but simple ones may be
/// sent; with them a READ gets nothing but chunks (T2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyStyle {
    pub(crate) structured: bool,
}

impl ReplyStyle {
    /// A success without content, to anything but a READ of some bytes.
    pub(crate) fn success(self, cookie: u64) -> Vec<u8> {
        if self.structured {
            header(cookie, chunk::NONE, 0, true).as_bytes().to_vec()
        } else {
            simple(cookie, 0).as_bytes().to_vec()
        }
    }

    /// A failure of the whole request.
    pub(crate) fn error(self, cookie: u64, error: Errno, text: &str) -> Vec<u8> {
        self.failure(cookie, error, text, None)
    }

    /// A failure at one offset of the export; ends the reply.
    pub(crate) fn error_at(self, cookie: u64, error: Errno, text: &str, offset: u64) -> Vec<u8> {
        self.failure(cookie, error, text, Some(offset))
    }

    fn failure(self, cookie: u64, error: Errno, text: &str, offset: Option<u64>) -> Vec<u8> {
        if !self.structured {
            return simple(cookie, error as u32).as_bytes().to_vec();
        }
        let text = wire_text(text);
        let tail = offset.map(u64::to_be_bytes);
        let tail = tail.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        let kind = if tail.is_empty() {
            chunk::ERROR
        } else {
            chunk::ERROR_OFFSET
        };
        let payload = size_of::<ErrorChunk>() - size_of::<ChunkHeader>() + text.len() + tail.len();
        let head = ErrorChunk {
            header: header(cookie, kind, payload, true),
            error: (error as u32).into(),
            text_length: u16::try_from(text.len()).unwrap_or_default().into(),
        };
        [head.as_bytes(), text.as_bytes(), tail].concat()
    }
}

fn simple(cookie: u64, error: u32) -> SimpleReply {
    SimpleReply {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: error.into(),
        cookie: cookie.into(),
    }
}

fn header(cookie: u64, kind: u16, payload: usize, done: bool) -> ChunkHeader {
    ChunkHeader {
        magic: CHUNK_MAGIC.into(),
        flags: if done { chunk::DONE } else { 0 }.into(),
        kind: kind.into(),
        cookie: cookie.into(),
        // Payloads are bounded by the maximum payload and the descriptor count, far below 4 GiB.
        length: u32::try_from(payload).unwrap_or(u32::MAX).into(),
    }
}

/// The header of a simple reply with data.
pub(crate) fn simple_data(cookie: u64) -> SimpleReply {
    simple(cookie, 0)
}

/// An OFFSET_DATA chunk, up to its `length` bytes of data.
pub(crate) fn data_chunk(cookie: u64, offset: u64, length: usize, done: bool) -> DataChunk {
    let payload = size_of::<u64>() + length;
    DataChunk {
        header: header(cookie, chunk::OFFSET_DATA, payload, done),
        offset: offset.into(),
    }
}

/// An OFFSET_HOLE chunk.
pub(crate) fn hole_chunk(cookie: u64, offset: u64, size: u32, done: bool) -> HoleChunk {
    let payload = size_of::<HoleChunk>() - size_of::<ChunkHeader>();
    HoleChunk {
        header: header(cookie, chunk::OFFSET_HOLE, payload, done),
        offset: offset.into(),
        size: size.into(),
    }
}

/// The reply to BLOCK_STATUS: the one chunk of our one context.
pub(crate) fn block_status(cookie: u64, descriptors: &[BlockDescriptor]) -> Vec<u8> {
    let payload = size_of::<u32>() + size_of_val(descriptors);
    let head = BlockStatusChunk {
        header: header(cookie, chunk::BLOCK_STATUS, payload, true),
        context: ALLOCATION_CONTEXT_ID.into(),
    };
    [head.as_bytes(), descriptors.as_bytes()].concat()
}
