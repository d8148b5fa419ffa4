//! What stands on the wire: magics, numbers and fixed structures of the NBD protocol
//! (NetworkBlockDevice/nbd, doc/proto.md, and its branch `extension-ext-header`). Everything is
//! big-endian. No other crate knows these.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "NBDMAGIC".
pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": ends the greeting and starts every option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;
pub(crate) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(crate) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The longest string on the wire, in bytes.
pub(crate) const MAX_STRING: usize = 4096;
/// Zeros after the reply to EXPORT_NAME, unless the client asked to go without.
pub(crate) const EXPORT_NAME_PADDING: usize = 124;

/// Flags of the greeting and, with the same values, of the client's answer to it.
pub(crate) mod handshake_flag {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Options.
pub(crate) mod opt {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub(crate) mod rep {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERROR + 1;
    pub(crate) const ERR_POLICY: u32 = ERROR + 2;
    pub(crate) const ERR_INVALID: u32 = ERROR + 3;
    pub(crate) const ERR_TLS_REQD: u32 = ERROR + 5;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR + 6;
    pub(crate) const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub(crate) const ERR_TOO_BIG: u32 = ERROR + 9;
    pub(crate) const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;
}

/// Types of information in replies to INFO and GO.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub(crate) mod tx_flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
    pub(crate) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands.
pub(crate) mod cmd {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Command flags.
pub(crate) mod cmd_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of structured reply chunks.
pub(crate) mod chunk {
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const BLOCK_STATUS_EXT: u16 = 6;
    pub(crate) const ERROR: u16 = 1 << 15 | 1;
    pub(crate) const ERROR_OFFSET: u16 = 1 << 15 | 2;
    /// The chunk flag of a reply's last chunk.
    pub(crate) const DONE: u16 = 1 << 0;
}

/// Errors of the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Errno {
    Perm = 1,
    Io = 5,
    Inval = 22,
    NoSpc = 28,
    NotSup = 95,
    Shutdown = 108,
}

/// The meta context that every export has.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";

macro_rules! wire_struct {
    ($(#[$doc:meta])* $name:ident, $size:literal, { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $kind),* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire_struct! {
    /// What the server says first.
    Greeting, 18, { init_magic: U64, option_magic: U64, flags: U16 }
}
wire_struct! {
    /// Starts every option; `length` bytes follow.
    OptionHeader, 16, { magic: U64, option: U32, length: U32 }
}
wire_struct! {
    /// Starts every reply to an option; `length` bytes follow.
    OptionReplyHeader, 20, { magic: U64, option: U32, kind: U32, length: U32 }
}
wire_struct! {
    /// The reply to EXPORT_NAME, before its padding.
    ExportNameReply, 10, { size: U64, flags: U16 }
}
wire_struct! {
    /// `info::EXPORT`.
    InfoExport, 12, { kind: U16, size: U64, flags: U16 }
}
wire_struct! {
    /// `info::BLOCK_SIZE`.
    InfoBlockSize, 14, { kind: U16, minimum: U32, preferred: U32, maximum_payload: U32 }
}
wire_struct! {
    /// A request; a WRITE is followed by `length` bytes.
    Request, 28, { magic: U32, flags: U16, command: U16, cookie: U64, offset: U64, length: U32 }
}
wire_struct! {
    /// A simple reply; one to a READ without error is followed by the data.
    SimpleReply, 16, { magic: U32, error: U32, cookie: U64 }
}
wire_struct! {
    /// Starts every chunk of a structured reply; `length` bytes follow.
    ChunkHeader, 20, { magic: U32, flags: U16, kind: U16, cookie: U64, length: U32 }
}
wire_struct! {
    /// A request once extended headers were negotiated; one with PAYLOAD_LEN is followed by
    /// `length` bytes.
    ExtendedRequest, 32, { magic: U32, flags: U16, command: U16, cookie: U64, offset: U64, length: U64 }
}
wire_struct! {
    /// Starts every chunk of an extended reply; `length` bytes follow. `offset` is the request's.
    ExtendedChunkHeader, 32, { magic: U32, flags: U16, kind: U16, cookie: U64, offset: U64, length: U64 }
}
wire_struct! {
    /// What an OFFSET_HOLE chunk carries.
    Hole, 12, { offset: U64, size: U32 }
}
wire_struct! {
    /// What an ERROR chunk carries, up to its text.
    ErrorHead, 6, { error: U32, text_length: U16 }
}
wire_struct! {
    /// One extent in a BLOCK_STATUS chunk, whose payload starts with the context's id.
    BlockDescriptor, 8, { length: U32, flags: U32 }
}
wire_struct! {
    /// What a BLOCK_STATUS_EXT chunk carries, up to its descriptors.
    BlockStatusExt, 8, { context: U32, count: U32 }
}
wire_struct! {
    /// One extent in a BLOCK_STATUS_EXT chunk.
    BlockDescriptorExt, 16, { length: U64, flags: U64 }
}

/// Text for people, made fit for the wire: without NUL, at most 4096 bytes.
pub(crate) fn wire_text(text: &str) -> String {
    let mut clean = text.replace('\0', "");
    let end = (0..=MAX_STRING.min(clean.len()))
        .rev()
        .find(|&end| clean.is_char_boundary(end));
    clean.truncate(end.unwrap_or(0));
    clean
}
