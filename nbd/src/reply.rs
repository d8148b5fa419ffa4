//! The bytes of replies in the transmission phase.

use std::ops::Deref;

use zerocopy::IntoBytes;

use crate::buffer::ReplyBuffer;
use crate::proto::{BlockDescriptor, BlockDescriptorExt, BlockStatusExt, CHUNK_MAGIC, ChunkHeader, Errno};
use crate::proto::{
    EXTENDED_REPLY_MAGIC, ErrorHead, ExtendedChunkHeader, Hole, SIMPLE_REPLY_MAGIC, SimpleReply,
};
use crate::proto::{chunk, wire_text};

/// How a connection's replies look (T2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyStyle {
    /// Nothing but simple replies may be sent.
    Simple,
    /// A READ gets nothing but chunks, and so does everything else.
    Structured,
    /// Chunks with longer headers.
    Extended,
}

/// Which request a reply belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) cookie: u64,
    /// The request's offset: extended replies repeat it.
    pub(crate) offset: u64,
}

/// A header of either size.
pub(crate) struct Head {
    bytes: [u8; size_of::<ExtendedChunkHeader>()],
    len: usize,
}

impl Head {
    fn of(header: &[u8]) -> Self {
        let mut bytes = [0; size_of::<ExtendedChunkHeader>()];
        for (to, from) in bytes.iter_mut().zip(header) {
            *to = *from;
        }
        let len = header.len();
        Self { bytes, len }
    }
}

impl Deref for Head {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl ReplyStyle {
    /// Whether replies are made of chunks.
    pub(crate) fn has_chunks(self) -> bool {
        self != Self::Simple
    }

    /// A success without content, to anything but a READ of some bytes.
    pub(crate) fn success(self, tag: Tag) -> Vec<u8> {
        match self {
            Self::Simple => simple(tag, 0),
            _ => self.chunk(tag, chunk::NONE, 0, true),
        }
        .to_vec()
    }

    /// A failure of the whole request.
    pub(crate) fn error(self, tag: Tag, error: Errno, text: &str) -> Vec<u8> {
        self.failure(tag, error, text, None)
    }

    /// A failure at one offset of the export; ends the reply.
    pub(crate) fn error_at(self, tag: Tag, error: Errno, text: &str, offset: u64) -> Vec<u8> {
        self.failure(tag, error, text, Some(offset))
    }

    fn failure(self, tag: Tag, error: Errno, text: &str, offset: Option<u64>) -> Vec<u8> {
        if !self.has_chunks() {
            return simple(tag, error as u32).to_vec();
        }
        let text = wire_text(text);
        let tail = offset.map(u64::to_be_bytes);
        let tail = tail.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        let kind = if tail.is_empty() {
            chunk::ERROR
        } else {
            chunk::ERROR_OFFSET
        };
        let payload = size_of::<ErrorHead>() + text.len() + tail.len();
        let reported = ErrorHead {
            error: (error as u32).into(),
            text_length: u16::try_from(text.len()).unwrap_or_default().into(),
        };
        let head = self.chunk(tag, kind, payload, true);
        [&*head, reported.as_bytes(), text.as_bytes(), tail].concat()
    }

    /// The header of a chunk. Payloads are bounded by the maximum payload and the number of
    /// descriptors, far below 4 GiB.
    fn chunk(self, tag: Tag, kind: u16, payload: usize, done: bool) -> Head {
        let flags = if done { chunk::DONE } else { 0 };
        if self == Self::Extended {
            let header = ExtendedChunkHeader {
                magic: EXTENDED_REPLY_MAGIC.into(),
                flags: flags.into(),
                kind: kind.into(),
                cookie: tag.cookie.into(),
                offset: tag.offset.into(),
                length: (payload as u64).into(),
            };
            return Head::of(header.as_bytes());
        }
        let header = ChunkHeader {
            magic: CHUNK_MAGIC.into(),
            flags: flags.into(),
            kind: kind.into(),
            cookie: tag.cookie.into(),
            length: u32::try_from(payload).unwrap_or(u32::MAX).into(),
        };
        Head::of(header.as_bytes())
    }

    /// Appends what stands before `length` bytes of data: a simple header, or that of an
    /// OFFSET_DATA chunk of the bytes from `offset` on.
    pub(crate) fn push_data_head(
        self,
        out: &mut ReplyBuffer,
        tag: Tag,
        offset: u64,
        length: usize,
        done: bool,
    ) {
        if !self.has_chunks() {
            return out.push(&simple(tag, 0));
        }
        out.push(&self.chunk(tag, chunk::OFFSET_DATA, size_of::<u64>() + length, done));
        out.push(&offset.to_be_bytes());
    }

    /// Appends an OFFSET_HOLE chunk.
    pub(crate) fn push_hole(self, out: &mut ReplyBuffer, tag: Tag, offset: u64, size: u32, done: bool) {
        let hole = Hole {
            offset: offset.into(),
            size: size.into(),
        };
        out.push(&self.chunk(tag, chunk::OFFSET_HOLE, size_of::<Hole>(), done));
        out.push(hole.as_bytes());
    }

    /// Appends one context's part of the reply to BLOCK_STATUS: extents as length and flags.
    pub(crate) fn push_block_status(
        self,
        out: &mut ReplyBuffer,
        tag: Tag,
        context: u32,
        extents: &[(u64, u32)],
        done: bool,
    ) {
        if self == Self::Extended {
            let payload = size_of::<BlockStatusExt>() + size_of::<BlockDescriptorExt>() * extents.len();
            out.push(&self.chunk(tag, chunk::BLOCK_STATUS_EXT, payload, done));
            let head = BlockStatusExt {
                context: context.into(),
                count: u32::try_from(extents.len()).unwrap_or(u32::MAX).into(),
            };
            out.push(head.as_bytes());
            for &(length, flags) in extents {
                let flags = u64::from(flags).into();
                let length = length.into();
                out.push(BlockDescriptorExt { length, flags }.as_bytes());
            }
            return;
        }
        let payload = size_of::<u32>() + size_of::<BlockDescriptor>() * extents.len();
        out.push(&self.chunk(tag, chunk::BLOCK_STATUS, payload, done));
        out.push(&context.to_be_bytes());
        for &(length, flags) in extents {
            let length = u32::try_from(length).unwrap_or(u32::MAX).into();
            let flags = flags.into();
            out.push(BlockDescriptor { length, flags }.as_bytes());
        }
    }
}

fn simple(tag: Tag, error: u32) -> Head {
    let reply = SimpleReply {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: error.into(),
        cookie: tag.cookie.into(),
    };
    Head::of(reply.as_bytes())
}
