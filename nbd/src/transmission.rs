//! The transmission phase as a state machine over bytes: no I/O, no clock, no export.
//!
//! [`Transmission::advance`] eats input and returns one event at a time. What can be answered
//! from what was negotiated is answered here; only valid READ and BLOCK_STATUS requests are
//! handed out to be [executed](crate::execute). It holds one request header and nothing else: the
//! payload of a refused write is read past (T11, T12).

use zerocopy::FromBytes;

use crate::handshake::Session;
use crate::proto::{Errno, REQUEST_MAGIC, Request, cmd, cmd_flag};
use crate::reply::ReplyStyle;

const HEADER_SIZE: usize = size_of::<Request>();

/// What the driver of a [`Transmission`] does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Read more; all input is used up.
    Read,
    /// Send this reply.
    Reply(Vec<u8>),
    /// Do this and reply to it, in any order with others.
    Execute(Operation),
    /// The client is done: finish what is in flight and close.
    Disconnect,
    /// The two sides are out of step: close.
    Broken(&'static str),
}

/// A valid request on the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) kind: OperationKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperationKind {
    /// `whole`: the data must come in one piece.
    Read { whole: bool },
    /// `one`: exactly one extent is wanted.
    BlockStatus { one: bool },
}

/// Why a request is refused, for the client's machine and for its user.
type Refusal = (Errno, &'static str);

enum Phase {
    Header,
    /// Reads past a refused write's payload, then sends the reply.
    Skip {
        remaining: u32,
        reply: Vec<u8>,
    },
    Over,
}

/// The server's side of one transmission phase.
pub(crate) struct Transmission {
    size_bytes: u64,
    block_status: bool,
    max_payload_bytes: u32,
    style: ReplyStyle,
    phase: Phase,
    header: [u8; HEADER_SIZE],
    filled: usize,
    draining: bool,
}

impl Transmission {
    pub(crate) fn new(session: &Session, max_payload_bytes: u32) -> Self {
        Self {
            size_bytes: session.size_bytes,
            block_status: session.block_status,
            max_payload_bytes,
            style: ReplyStyle {
                structured: session.structured,
            },
            phase: Phase::Header,
            header: [0; HEADER_SIZE],
            filled: 0,
            draining: false,
        }
    }

    pub(crate) fn style(&self) -> ReplyStyle {
        self.style
    }

    /// From now on every request is refused: the server is going down (T17).
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Eats input from the front of `input` and returns the next event. Call it again, with what
    /// is left, until it wants to [read](Event::Read).
    pub(crate) fn advance(&mut self, input: &mut &[u8]) -> Event {
        match &mut self.phase {
            Phase::Header => {
                if !self.fill_header(input) {
                    return Event::Read;
                }
                match Request::read_from_bytes(&self.header) {
                    Ok(request) => self.request(&request, input),
                    Err(_) => self.broken("a short request"),
                }
            }
            Phase::Skip { .. } => self.skip(input),
            Phase::Over => Event::Disconnect,
        }
    }

    fn fill_header(&mut self, input: &mut &[u8]) -> bool {
        let free = self.header.get_mut(self.filled..).unwrap_or_default();
        let taken = free.len().min(input.len());
        let (head, tail) = input.split_at(taken);
        if let Some(free) = free.get_mut(..taken) {
            free.copy_from_slice(head);
        }
        *input = tail;
        self.filled += taken;
        let complete = self.filled == HEADER_SIZE;
        if complete {
            self.filled = 0;
        }
        complete
    }

    fn request(&mut self, request: &Request, input: &mut &[u8]) -> Event {
        if request.magic.get() != REQUEST_MAGIC {
            return self.broken("bad request magic");
        }
        let cookie = request.cookie.get();
        match request.command.get() {
            cmd::DISC => {
                self.phase = Phase::Over;
                Event::Disconnect
            }
            cmd::WRITE => {
                let (error, text) = self.check(request).err().unwrap_or(READ_ONLY);
                let reply = self.style.error(cookie, error, text);
                self.phase = Phase::Skip {
                    remaining: request.length.get(),
                    reply,
                };
                self.skip(input)
            }
            _ => match self.check(request) {
                Err((error, text)) => Event::Reply(self.style.error(cookie, error, text)),
                Ok(None) => Event::Reply(self.style.success(cookie)),
                Ok(Some(kind)) => Event::Execute(Operation {
                    cookie,
                    offset: request.offset.get(),
                    length: request.length.get(),
                    kind,
                }),
            },
        }
    }

    /// What a request asks for: an operation, nothing that takes any work, or a refusal (T10).
    fn check(&self, request: &Request) -> Result<Option<OperationKind>, Refusal> {
        if self.draining {
            return Err((Errno::Shutdown, "the server is shutting down"));
        }
        let flags = request.flags.get();
        let allowed = self.allowed_flags(request.command.get())?;
        if flags & !allowed != 0 {
            return Err((Errno::Inval, "a flag that this command does not take here"));
        }
        match request.command.get() {
            cmd::READ => self.check_read(request).map(Some),
            cmd::BLOCK_STATUS => self.check_block_status(request).map(Some),
            cmd::CACHE => self.check_range(request).map(|()| None),
            cmd::FLUSH if request.offset.get() != 0 || request.length.get() != 0 => {
                Err((Errno::Inval, "a flush takes no offset and no length"))
            }
            cmd::FLUSH => Ok(None),
            _ => Err(READ_ONLY),
        }
    }

    /// FUA is taken on every command (T8).
    fn allowed_flags(&self, command: u16) -> Result<u16, Refusal> {
        match command {
            cmd::READ if self.style.structured => Ok(cmd_flag::FUA | cmd_flag::DF),
            cmd::BLOCK_STATUS => Ok(cmd_flag::FUA | cmd_flag::REQ_ONE),
            cmd::WRITE_ZEROES => Ok(cmd_flag::FUA | cmd_flag::NO_HOLE),
            cmd::READ | cmd::WRITE | cmd::FLUSH | cmd::TRIM | cmd::CACHE => Ok(cmd_flag::FUA),
            _ => Err((Errno::Inval, "an unknown command")),
        }
    }

    fn check_read(&self, request: &Request) -> Result<OperationKind, Refusal> {
        if request.length.get() > self.max_payload_bytes {
            return Err((Errno::Inval, "a read longer than the advertised maximum payload"));
        }
        self.check_range(request)?;
        let unfragmented = request.flags.get() & cmd_flag::DF != 0;
        Ok(OperationKind::Read {
            whole: unfragmented || !self.style.structured,
        })
    }

    fn check_block_status(&self, request: &Request) -> Result<OperationKind, Refusal> {
        if !self.block_status {
            return Err((Errno::Inval, "no meta context was negotiated for this export"));
        }
        if request.length.get() == 0 {
            return Err((Errno::Inval, "a block status request of no bytes"));
        }
        self.check_range(request)?;
        Ok(OperationKind::BlockStatus {
            one: request.flags.get() & cmd_flag::REQ_ONE != 0,
        })
    }

    fn check_range(&self, request: &Request) -> Result<(), Refusal> {
        let end = request.offset.get().checked_add(u64::from(request.length.get()));
        if end.is_some_and(|end| end <= self.size_bytes) {
            Ok(())
        } else {
            Err((Errno::Inval, "the range does not lie within the export"))
        }
    }

    fn skip(&mut self, input: &mut &[u8]) -> Event {
        let Phase::Skip { remaining, reply } = &mut self.phase else {
            return Event::Read;
        };
        let taken = input.len().min(*remaining as usize);
        *input = input.get(taken..).unwrap_or_default();
        *remaining = remaining.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
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

#[cfg(test)]
mod tests;
