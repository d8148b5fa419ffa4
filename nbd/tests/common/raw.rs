//! A client that sends what it likes: for what no real client would do.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use testkit::process::PATIENCE;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;

pub const REP_ACK: u32 = 1;
pub const REP_ERR_POLICY: u32 = (1 << 31) + 2;
pub const REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
pub const REP_ERR_SHUTDOWN: u32 = (1 << 31) + 7;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const PAYLOAD_LEN: u16 = 1 << 5;

/// A connection at the byte level. Reads fail after a while rather than hang the tests.
pub struct Raw<S = UnixStream>(pub S);

impl Raw {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// Greeted, with client flags sent.
    pub fn greeted(socket: &Path) -> Self {
        let mut raw = Self::connect(socket);
        assert_eq!(raw.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        raw.say(&[0, 0, 0, 3]);
        raw
    }

    /// In the transmission phase of the default export.
    pub fn transmitting(socket: &Path, structured: bool) -> Self {
        let mut raw = Self::greeted(socket);
        if structured {
            assert_eq!(raw.option(OPT_STRUCTURED_REPLY, &[]), REP_ACK);
        }
        assert_eq!(raw.option(OPT_GO, &[0; 6]), REP_ACK);
        raw
    }

    /// In the transmission phase of the default export, with extended headers and
    /// `base:allocation`, whose id is 1.
    pub fn extended(socket: &Path) -> Self {
        let mut raw = Self::greeted(socket);
        assert_eq!(raw.option(OPT_EXTENDED_HEADERS, &[]), REP_ACK);
        let allocation = b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
        assert_eq!(raw.option(OPT_SET_META_CONTEXT, allocation), REP_ACK);
        assert_eq!(raw.option(OPT_GO, &[0; 6]), REP_ACK);
        raw
    }
}

impl<S: Read + Write> Raw<S> {
    pub fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads to the end of the stream; a reset counts as one.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut bytes) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        bytes
    }

    /// Sends an option and returns the type of the last reply to it.
    pub fn option(&mut self, option: u32, data: &[u8]) -> u32 {
        self.say(&option_bytes(option, data));
        loop {
            let header = self.take(20);
            let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
            let length = u32::from_be_bytes(header[16..20].try_into().unwrap());
            self.take(length as usize);
            if kind == REP_ACK || kind >= 1 << 31 {
                return kind;
            }
        }
    }

    /// A write of `data`.
    pub fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        let mut header = request_bytes(CMD_WRITE, cookie, offset, length);
        header[4..6].copy_from_slice(&flags.to_be_bytes());
        self.say(&[&header[..], data].concat());
    }

    /// A request with extended headers; a payload follows where there is one.
    pub fn request_extended(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u64) {
        let parts: [&[u8]; 6] = [
            &[0x21, 0xe4, 0x1c, 0x71],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &cookie.to_be_bytes(),
            &offset.to_be_bytes(),
            &length.to_be_bytes(),
        ];
        self.say(&parts.concat());
    }

    /// An extended chunk's flags, type and payload; it must repeat cookie and offset.
    pub fn extended_chunk(&mut self, cookie: u64, offset: u64) -> (u16, u16, Vec<u8>) {
        let header = self.take(32);
        assert_eq!(header[..4], 0x6e8a_278c_u32.to_be_bytes());
        assert_eq!((be64(&header[8..16]), be64(&header[16..24])), (cookie, offset));
        let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let length = usize::try_from(be64(&header[24..])).unwrap();
        (half(4), half(6), self.take(length))
    }

    /// The error of an extended reply of one chunk, 0 for a success.
    pub fn extended_verdict(&mut self, cookie: u64, offset: u64) -> u32 {
        let (flags, kind, payload) = self.extended_chunk(cookie, offset);
        assert_eq!(flags, 1, "the only chunk is the last");
        match kind {
            0 => 0,
            0x8001 | 0x8002 => u32::from_be_bytes(payload[..4].try_into().unwrap()),
            other => panic!("chunk type {other}"),
        }
    }

    pub fn request(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        self.say(&request_bytes(command, cookie, offset, length));
    }

    /// A simple reply's error and cookie.
    pub fn simple_reply(&mut self) -> (u32, u64) {
        let header = self.take(16);
        assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes());
        (
            u32::from_be_bytes(header[4..8].try_into().unwrap()),
            be64(&header[8..]),
        )
    }

    /// A chunk's flags, type, cookie and payload.
    pub fn chunk(&mut self) -> (u16, u16, u64, Vec<u8>) {
        let header = self.take(20);
        assert_eq!(header[..4], 0x668e_33ef_u32.to_be_bytes());
        let length = u32::from_be_bytes(header[16..20].try_into().unwrap());
        let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        (half(4), half(6), be64(&header[8..16]), self.take(length as usize))
    }
}

pub fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [
        b"IHAVEOPT",
        &option.to_be_bytes()[..],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

pub fn request_bytes(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let head = [0x25, 0x60, 0x95, 0x13, 0, 0];
    let parts: [&[u8]; 5] = [
        &head,
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    parts.concat()
}
