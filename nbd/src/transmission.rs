//! The transmission phase as a state machine over bytes: no I/O, no clock, no export.
//!
//! [`Transmission::advance`] eats input and returns one event at a time. What can be answered
//! from what was negotiated is answered here; only valid requests that need the export are handed
//! out to be [executed](crate::execute). It holds one request header and a list of context ids,
//! and nothing else: the payload of a refused request is read past (T11, T12), that of a valid
//! write is the driver's to take.

use std::sync::Arc;

use zerocopy::FromBytes;

use crate::context::Context;
use crate::handshake::{CONTEXTS_MAX, Session};
use crate::proto::{EXTENDED_REQUEST_MAGIC, Errno, ExtendedRequest, REQUEST_MAGIC, Request, cmd, cmd_flag};
use crate::reply::{ReplyStyle, Tag};
use crate::{Limits, Zeroing};

/// The longest payload of a BLOCK_STATUS: a length and the ids of all contexts.
const FILTER_MAX: usize = size_of::<u64>() + CONTEXTS_MAX * size_of::<u32>();

/// What the driver of a [`Transmission`] does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Read more; all input is used up.
    Read,
    /// Send this reply.
    Reply(Vec<u8>),
    /// Do this and reply to it, in any order with others.
    Execute(Operation),
    /// The same for a write, whose `length` bytes come next in the input: take them before
    /// advancing again.
    Receive(Operation),
    /// The client is done: finish what is in flight and close.
    Disconnect,
    /// The two sides are out of step: close.
    Broken(&'static str),
}

/// A valid request on the export. `length` is not 0, but for a READ or a FLUSH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) kind: OperationKind,
    /// FUA: what it writes is durable before the reply.
    pub(crate) durable: bool,
}

impl Operation {
    pub(crate) fn tag(&self) -> Tag {
        Tag {
            cookie: self.cookie,
            offset: self.offset,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OperationKind {
    /// `whole`: the data must come in one piece.
    Read {
        whole: bool,
    },
    Write,
    WriteZeroes(Zeroing),
    Trim,
    Flush,
    Cache,
    /// `one`: exactly one extent is wanted, for each of the contexts.
    BlockStatus {
        one: bool,
        contexts: Arc<[Context]>,
    },
}

/// Why a request is refused, for the client's machine and for its user.
type Refusal = (Errno, &'static str);

/// A request as it was sent, whichever header it had.
#[derive(Debug, Clone, Copy)]
struct Incoming {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u64,
    /// Bytes that follow the header.
    payload: u64,
}

impl Incoming {
    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn tag(&self) -> Tag {
        Tag {
            cookie: self.cookie,
            offset: self.offset,
        }
    }
}

enum Phase {
    Header,
    /// Reads past a refused request's payload, then sends the reply.
    Skip {
        remaining: u64,
        reply: Vec<u8>,
    },
    /// Gathers the payload of a BLOCK_STATUS.
    Filter(Incoming),
    Over,
}

/// The server's side of one transmission phase.
pub(crate) struct Transmission {
    size_bytes: u64,
    writable: bool,
    contexts: Arc<[Context]>,
    max_payload_bytes: u64,
    max_write_bytes: u64,
    style: ReplyStyle,
    phase: Phase,
    /// Input of the current phase, if it came in parts; never longer than the phase needs.
    held: Vec<u8>,
    draining: bool,
}

impl Transmission {
    pub(crate) fn new(session: &Session, limits: &Limits) -> Self {
        Self {
            size_bytes: session.size_bytes,
            writable: session.writable,
            contexts: Arc::clone(&session.contexts),
            max_payload_bytes: limits.max_payload_bytes.into(),
            max_write_bytes: limits.max_write_bytes.into(),
            style: session.style,
            phase: Phase::Header,
            held: Vec::with_capacity(size_of::<ExtendedRequest>()),
            draining: false,
        }
    }

    /// From now on every request is refused: the server is going down (T17).
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Eats input from the front of `input` and returns the next event. Call it again, with what
    /// is left, until it wants to [read](Event::Read).
    pub(crate) fn advance(&mut self, input: &mut &[u8]) -> Event {
        match &self.phase {
            Phase::Header => match self.incoming(input) {
                Ok(Some(request)) => self.request(request, input),
                Ok(None) => Event::Read,
                Err(why) => self.broken(why),
            },
            Phase::Skip { .. } => self.skip(input),
            Phase::Filter(request) => self.filter(*request, input),
            Phase::Over => Event::Disconnect,
        }
    }

    /// The next request's header, once all of it is there.
    fn incoming(&mut self, input: &mut &[u8]) -> Result<Option<Incoming>, &'static str> {
        const BAD_MAGIC: &str = "bad request magic";
        if self.style == ReplyStyle::Extended {
            let Some(request) = self.header::<ExtendedRequest>(input) else {
                return Ok(None);
            };
            if request.magic.get() != EXTENDED_REQUEST_MAGIC {
                return Err(BAD_MAGIC);
            }
            let (flags, length) = (request.flags.get(), request.length.get());
            let command = request.command.get();
            // QEMU (10.0) and libnbd without its own checks leave the flag out of a write, whose
            // data follows all the same.
            let has_payload = flags & cmd_flag::PAYLOAD_LEN != 0;
            return Ok(Some(Incoming {
                flags,
                command,
                cookie: request.cookie.get(),
                offset: request.offset.get(),
                length,
                payload: if has_payload || command == cmd::WRITE {
                    length
                } else {
                    0
                },
            }));
        }
        let Some(request) = self.header::<Request>(input) else {
            return Ok(None);
        };
        if request.magic.get() != REQUEST_MAGIC {
            return Err(BAD_MAGIC);
        }
        let (command, length) = (request.command.get(), request.length.get().into());
        Ok(Some(Incoming {
            flags: request.flags.get(),
            command,
            cookie: request.cookie.get(),
            offset: request.offset.get(),
            length,
            payload: if command == cmd::WRITE { length } else { 0 },
        }))
    }

    /// Takes a header off the input, or holds what there is of it. One that lies whole in the
    /// input, as nearly all do, is not copied first.
    fn header<H: FromBytes>(&mut self, input: &mut &[u8]) -> Option<H> {
        if self.held.is_empty()
            && let Ok((header, rest)) = H::read_from_prefix(input)
        {
            *input = rest;
            return Some(header);
        }
        if !self.gather(size_of::<H>(), input) {
            return None;
        }
        let header = H::read_from_bytes(&self.held).ok();
        self.held.clear();
        header
    }

    /// Holds input until there are `wanted` bytes of it.
    fn gather(&mut self, wanted: usize, input: &mut &[u8]) -> bool {
        let taken = input.len().min(wanted.saturating_sub(self.held.len()));
        let (head, tail) = input.split_at(taken);
        self.held.extend_from_slice(head);
        *input = tail;
        self.held.len() == wanted
    }

    fn request(&mut self, request: Incoming, input: &mut &[u8]) -> Event {
        if request.command == cmd::DISC {
            self.phase = Phase::Over;
            return Event::Disconnect;
        }
        if self.style == ReplyStyle::Extended && request.payload > self.max_write_bytes {
            return self.broken("a payload longer than any that is taken");
        }
        match self.check(&request) {
            Err(refusal) => self.refuse(&request, refusal, input),
            Ok(None) => Event::Reply(self.style.success(request.tag())),
            Ok(Some(OperationKind::BlockStatus { .. })) if request.has(cmd_flag::PAYLOAD_LEN) => {
                self.phase = Phase::Filter(request);
                self.filter(request, input)
            }
            Ok(Some(kind)) => {
                let receives = kind == OperationKind::Write;
                let operation = Operation {
                    cookie: request.cookie,
                    offset: request.offset,
                    length: request.length,
                    kind,
                    durable: request.has(cmd_flag::FUA),
                };
                if receives {
                    Event::Receive(operation)
                } else {
                    Event::Execute(operation)
                }
            }
        }
    }

    /// Reads past the payload, then answers with an error.
    fn refuse(&mut self, request: &Incoming, (error, text): Refusal, input: &mut &[u8]) -> Event {
        self.phase = Phase::Skip {
            remaining: request.payload,
            reply: self.style.error(request.tag(), error, text),
        };
        self.skip(input)
    }

    /// What a request asks for: an operation, nothing that takes any work, or a refusal (T10).
    fn check(&self, request: &Incoming) -> Result<Option<OperationKind>, Refusal> {
        if self.draining {
            return Err((Errno::Shutdown, "the server is shutting down"));
        }
        if request.flags & !self.allowed_flags(request.command)? != 0 {
            return Err((Errno::Inval, "a flag that this command does not take here"));
        }
        match request.command {
            cmd::READ => self.check_read(request).map(Some),
            cmd::BLOCK_STATUS => self.check_block_status(request).map(Some),
            cmd::CACHE => self.check_range(request, Errno::Inval, OperationKind::Cache),
            cmd::FLUSH if request.offset != 0 || request.length != 0 => {
                Err((Errno::Inval, "a flush takes no offset and no length"))
            }
            cmd::FLUSH => Ok(self.writable.then_some(OperationKind::Flush)),
            _ if !self.writable => Err(READ_ONLY),
            cmd::TRIM => self.check_range(request, Errno::Inval, OperationKind::Trim),
            cmd::WRITE => self.check_write(request),
            _ => {
                let how = Zeroing {
                    no_hole: request.has(cmd_flag::NO_HOLE),
                    fast: request.has(cmd_flag::FAST_ZERO),
                };
                self.check_range(request, Errno::NoSpc, OperationKind::WriteZeroes(how))
            }
        }
    }

    /// FUA is taken on every command (T8).
    fn allowed_flags(&self, command: u16) -> Result<u16, Refusal> {
        let extended = self.style == ReplyStyle::Extended;
        let only_if = |holds: bool, flag: u16| if holds { flag } else { 0 };
        let specific = match command {
            cmd::READ => only_if(self.style.has_chunks(), cmd_flag::DF),
            cmd::WRITE => only_if(extended, cmd_flag::PAYLOAD_LEN),
            cmd::WRITE_ZEROES => cmd_flag::NO_HOLE | only_if(self.writable, cmd_flag::FAST_ZERO),
            cmd::BLOCK_STATUS => cmd_flag::REQ_ONE | only_if(extended, cmd_flag::PAYLOAD_LEN),
            cmd::FLUSH | cmd::TRIM | cmd::CACHE => 0,
            _ => return Err((Errno::Inval, "an unknown command")),
        };
        Ok(cmd_flag::FUA | specific)
    }

    fn check_read(&self, request: &Incoming) -> Result<OperationKind, Refusal> {
        if request.length > self.max_payload_bytes {
            return Err((Errno::Inval, "a read longer than the advertised maximum payload"));
        }
        let whole = request.has(cmd_flag::DF) || !self.style.has_chunks();
        self.check_range(request, Errno::Inval, OperationKind::Read { whole })?;
        Ok(OperationKind::Read { whole })
    }

    fn check_write(&self, request: &Incoming) -> Result<Option<OperationKind>, Refusal> {
        if request.length > self.max_write_bytes {
            return Err((Errno::Inval, "a write longer than any that is taken"));
        }
        self.check_range(request, Errno::NoSpc, OperationKind::Write)
    }

    fn check_block_status(&self, request: &Incoming) -> Result<OperationKind, Refusal> {
        if self.contexts.is_empty() {
            return Err((Errno::Inval, "no meta context was negotiated for this export"));
        }
        let kind = OperationKind::BlockStatus {
            one: request.has(cmd_flag::REQ_ONE),
            contexts: Arc::clone(&self.contexts),
        };
        if request.has(cmd_flag::PAYLOAD_LEN) {
            // Its range is in the payload.
            let ids = request.length.checked_sub(size_of::<u64>() as u64);
            let fits = |bytes: u64| {
                bytes.is_multiple_of(size_of::<u32>() as u64) && request.length <= FILTER_MAX as u64
            };
            return match ids {
                Some(bytes) if bytes > 0 && fits(bytes) => Ok(kind),
                _ => Err((Errno::Inval, "a payload that is no length with context ids")),
            };
        }
        match self.check_range(request, Errno::Inval, kind)? {
            Some(kind) => Ok(kind),
            None => Err(NO_BYTES),
        }
    }

    /// The payload of a BLOCK_STATUS: its length, and the contexts that are wanted of it.
    fn filter(&mut self, request: Incoming, input: &mut &[u8]) -> Event {
        let Ok(wanted) = usize::try_from(request.payload) else {
            return self.broken("a payload longer than any that is taken");
        };
        if !self.gather(wanted, input) {
            return Event::Read;
        }
        let payload = std::mem::take(&mut self.held);
        self.phase = Phase::Header;
        match self.filtered(&request, &payload) {
            Ok(operation) => Event::Execute(operation),
            Err((error, text)) => Event::Reply(self.style.error(request.tag(), error, text)),
        }
    }

    fn filtered(&self, request: &Incoming, payload: &[u8]) -> Result<Operation, Refusal> {
        let (length, ids) = payload.split_first_chunk().ok_or(NO_BYTES)?;
        let ranged = Incoming {
            length: u64::from_be_bytes(*length),
            ..*request
        };
        let mut contexts: Vec<Context> = Vec::new();
        for id in ids.chunks_exact(size_of::<u32>()) {
            let id = u32::from_be_bytes(id.try_into().unwrap_or_default());
            let known = self.contexts.iter().find(|context| context.id == id);
            let context = known.filter(|context| !contexts.contains(context));
            let unknown = (
                Errno::Inval,
                "a context id that was not negotiated, or is named twice",
            );
            contexts.push(context.ok_or(unknown)?.clone());
        }
        let kind = OperationKind::BlockStatus {
            one: request.has(cmd_flag::REQ_ONE),
            contexts: contexts.into(),
        };
        let kind = self.check_range(&ranged, Errno::Inval, kind)?.ok_or(NO_BYTES)?;
        Ok(Operation {
            cookie: ranged.cookie,
            offset: ranged.offset,
            length: ranged.length,
            kind,
            durable: false,
        })
    }

    /// `kind`, if the range lies within the export; nothing, if there is nothing in it.
    fn check_range(
        &self,
        request: &Incoming,
        error: Errno,
        kind: OperationKind,
    ) -> Result<Option<OperationKind>, Refusal> {
        let end = request.offset.checked_add(request.length);
        if end.is_some_and(|end| end <= self.size_bytes) {
            Ok((request.length > 0).then_some(kind))
        } else {
            Err((error, "the range does not lie within the export"))
        }
    }

    fn skip(&mut self, input: &mut &[u8]) -> Event {
        let Phase::Skip { remaining, reply } = &mut self.phase else {
            return Event::Read;
        };
        let taken = usize::try_from(*remaining).map_or(input.len(), |remaining| remaining.min(input.len()));
        *input = input.get(taken..).unwrap_or_default();
        *remaining = remaining.saturating_sub(taken as u64);
        if *remaining > 0 {
            return Event::Read;
        }
        let reply = std::mem::take(reply);
        self.phase = Phase::Header;
        Event::Reply(reply)
    }

    fn broken(&mut self, why: &'static str) -> Event {
        self.phase = Phase::Over;
        Event::Broken(why)
    }
}

const READ_ONLY: Refusal = (Errno::Perm, "the export is read-only");
const NO_BYTES: Refusal = (Errno::Inval, "a block status request of no bytes");

#[cfg(test)]
mod tests;
