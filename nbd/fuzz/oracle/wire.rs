//! A client's bytes.

use crate::reply::ReplyStyle;

/// What a client has said so far.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) bytes: Vec<u8>,
    /// Cookies are used once, unless somebody insists.
    pub(super) cookie: u64,
}

/// A request's fields, but for its length.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fields {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) offset: u64,
}

/// A string behind its length.
pub(super) fn string(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&length, text.as_bytes()].concat()
}

/// The data of INFO and GO.
pub(super) fn info(name: &str, infos: &[u16]) -> Vec<u8> {
    let count = u16::try_from(infos.len()).unwrap().to_be_bytes();
    let infos: Vec<u8> = infos.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    [&string(name)[..], &count, &infos].concat()
}

/// The data of options about meta contexts.
pub(super) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap().to_be_bytes();
    let queries: Vec<u8> = queries.iter().flat_map(|query| string(query)).collect();
    [&string(name)[..], &count, &queries].concat()
}

impl Client {
    pub(super) fn flags(&mut self, flags: u32) {
        self.bytes.extend(flags.to_be_bytes());
    }

    pub(super) fn option(&mut self, option: u32, data: &[u8]) {
        self.bytes.extend_from_slice(b"IHAVEOPT");
        self.bytes.extend(option.to_be_bytes());
        self.bytes
            .extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        self.bytes.extend_from_slice(data);
    }

    /// A request; compact headers have no room for more than 32 bits of length.
    pub(super) fn request(&mut self, style: ReplyStyle, fields: Fields, length: u64, payload: &[u8]) {
        let magic: u32 = match style {
            ReplyStyle::Extended => 0x21e4_1c71,
            _ => 0x2560_9513,
        };
        self.cookie += 1;
        self.bytes.extend(magic.to_be_bytes());
        self.bytes.extend(fields.flags.to_be_bytes());
        self.bytes.extend(fields.command.to_be_bytes());
        self.bytes.extend(self.cookie.to_be_bytes());
        self.bytes.extend(fields.offset.to_be_bytes());
        let skipped = if style == ReplyStyle::Extended { 0 } else { 4 };
        self.bytes.extend_from_slice(&length.to_be_bytes()[skipped..]);
        self.bytes.extend_from_slice(payload);
    }
}
