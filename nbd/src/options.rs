//! What options carry, and the replies to them.

use zerocopy::{Immutable, IntoBytes};

use crate::ExportInfo;
use crate::context::Context;
use crate::proto::{InfoBlockSize, InfoExport, MAX_STRING, OPTION_REPLY_MAGIC, OptionReplyHeader, wire_text};
use crate::proto::{info, rep};

/// The id of a meta context that is only listed.
pub(crate) const LISTED_CONTEXT_ID: u32 = 0;

const MIN_PREFERRED_BLOCK: u32 = 512;
const BAD_STRING: &str = "a string must be at most 4096 bytes of UTF-8 without NUL";
const TRUNCATED: &str = "the option's lengths do not fit its data";

/// Checks a string from the wire.
pub(crate) fn name(bytes: &[u8]) -> Result<String, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| BAD_STRING)?;
    if is_wire_string(text) {
        Ok(text.to_owned())
    } else {
        Err(BAD_STRING)
    }
}

fn is_wire_string(text: &str) -> bool {
    text.len() <= MAX_STRING && !text.contains('\0')
}

/// Takes fields off the front of an option's data; every length is checked before it is used.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(TRUNCATED)?;
        self.0 = tail;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        let (head, tail) = self.0.split_first_chunk().ok_or(TRUNCATED)?;
        self.0 = tail;
        Ok(u16::from_be_bytes(*head))
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        let (head, tail) = self.0.split_first_chunk().ok_or(TRUNCATED)?;
        self.0 = tail;
        Ok(u32::from_be_bytes(*head))
    }

    fn string(&mut self) -> Result<String, &'static str> {
        let length = self.u32()? as usize;
        name(self.bytes(length)?)
    }

    fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err(TRUNCATED) }
    }
}

/// The data of INFO and GO (H9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InfoRequest {
    pub(crate) name: String,
    wants_name: bool,
    wants_description: bool,
    wants_block_size: bool,
}

impl InfoRequest {
    pub(crate) fn parse(data: &[u8]) -> Result<Self, &'static str> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let mut request = Self {
            name,
            wants_name: false,
            wants_description: false,
            wants_block_size: false,
        };
        for _ in 0..fields.u16()? {
            match fields.u16()? {
                info::NAME => request.wants_name = true,
                info::DESCRIPTION => request.wants_description = true,
                info::BLOCK_SIZE => request.wants_block_size = true,
                _ => {}
            }
        }
        fields.end()?;
        Ok(request)
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT (H11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetaRequest {
    pub(crate) name: String,
    queries: Vec<String>,
}

impl MetaRequest {
    pub(crate) fn parse(data: &[u8]) -> Result<Self, &'static str> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        // Grows with the data that is there, not with the number that it claims.
        let mut queries = Vec::new();
        for _ in 0..fields.u32()? {
            queries.push(fields.string()?);
        }
        fields.end()?;
        // The same question a thousand times costs no more than once.
        queries.sort_unstable();
        queries.dedup();
        Ok(Self { name, queries })
    }

    /// Whether LIST names this context: asked for as such or by the part up to a colon, or no
    /// question at all.
    pub(crate) fn lists(&self, context: &str) -> bool {
        let prefixes = context
            .match_indices(':')
            .filter_map(|(at, _)| context.get(..=at));
        self.queries.is_empty()
            || self.selects(context)
            || prefixes.into_iter().any(|part| self.selects(part))
    }

    /// Whether SET selects this context: asked for as such.
    pub(crate) fn selects(&self, context: &str) -> bool {
        self.queries
            .binary_search_by(|query| query.as_str().cmp(context))
            .is_ok()
    }
}

/// Builds the replies to one option.
pub(crate) struct Replies {
    option: u32,
    bytes: Vec<u8>,
}

impl Replies {
    pub(crate) fn new(option: u32) -> Self {
        Self {
            option,
            bytes: Vec::new(),
        }
    }

    fn add(&mut self, kind: u32, payload: &[&[u8]]) {
        let length: usize = payload.iter().map(|part| part.len()).sum();
        let header = OptionReplyHeader {
            magic: OPTION_REPLY_MAGIC.into(),
            option: self.option.into(),
            kind: kind.into(),
            // Payloads are made of a few strings that are each at most MAX_STRING long.
            length: u32::try_from(length).unwrap_or(u32::MAX).into(),
        };
        self.bytes.extend_from_slice(header.as_bytes());
        for part in payload {
            self.bytes.extend_from_slice(part);
        }
    }

    fn add_info(&mut self, payload: &(impl IntoBytes + Immutable)) {
        self.add(rep::INFO, &[payload.as_bytes()]);
    }

    fn add_info_text(&mut self, kind: u16, text: &str) {
        self.add(rep::INFO, &[&kind.to_be_bytes(), text.as_bytes()]);
    }

    pub(crate) fn ack(mut self) -> Vec<u8> {
        self.add(rep::ACK, &[]);
        self.bytes
    }

    pub(crate) fn error(mut self, kind: u32, text: &str) -> Vec<u8> {
        self.add(kind, &[wire_text(text).as_bytes()]);
        self.bytes
    }

    /// The replies to LIST. A name that no client could ask for is left out.
    pub(crate) fn exports(mut self, exports: &[ExportInfo]) -> Vec<u8> {
        for export in exports.iter().filter(|export| is_wire_string(&export.name)) {
            let length = u32::try_from(export.name.len()).unwrap_or(u32::MAX).to_be_bytes();
            let description = wire_text(export.description.as_deref().unwrap_or_default());
            self.add(
                rep::SERVER,
                &[&length, export.name.as_bytes(), description.as_bytes()],
            );
        }
        self.ack()
    }

    /// The replies to INFO and GO: EXPORT always, the others if asked for (H9, H10).
    pub(crate) fn info(
        mut self,
        request: &InfoRequest,
        export: &ExportInfo,
        flags: u16,
        max_payload_bytes: u32,
    ) -> Vec<u8> {
        self.add_info(&InfoExport {
            kind: info::EXPORT.into(),
            size: export.size_bytes.into(),
            flags: flags.into(),
        });
        if request.wants_name && is_wire_string(&export.name) {
            self.add_info_text(info::NAME, &export.name);
        }
        if request.wants_description
            && let Some(description) = &export.description
        {
            self.add_info_text(info::DESCRIPTION, &wire_text(description));
        }
        if request.wants_block_size {
            self.add_info(&InfoBlockSize {
                kind: info::BLOCK_SIZE.into(),
                minimum: 1.into(),
                preferred: preferred_block(export.preferred_block_bytes, max_payload_bytes).into(),
                maximum_payload: max_payload_bytes.into(),
            });
        }
        self.ack()
    }

    /// The replies to LIST_META_CONTEXT and SET_META_CONTEXT. A name that no client could ask for
    /// is left out.
    pub(crate) fn meta_contexts(mut self, contexts: impl Iterator<Item = Context>) -> Vec<u8> {
        for context in contexts.filter(|context| is_wire_string(&context.name)) {
            self.add(
                rep::META_CONTEXT,
                &[&context.id.to_be_bytes(), context.name.as_bytes()],
            );
        }
        self.ack()
    }
}

/// The preferred block size must be a power of two from 512 to the maximum payload.
fn preferred_block(wanted: u32, max_payload_bytes: u32) -> u32 {
    let largest = 1 << max_payload_bytes.max(1).ilog2();
    wanted
        .checked_next_power_of_two()
        .unwrap_or(largest)
        .clamp(MIN_PREFERRED_BLOCK, largest)
}
