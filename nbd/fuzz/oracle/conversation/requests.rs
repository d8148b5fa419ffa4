//! What the client asked for in the transmission phase, and what it has to get.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::replies;
use super::{Conversation, Deal, Outcome, Stream};
use crate::Limits;
use crate::fuzzing::exports;
use crate::fuzzing::model::{Model, errno};
use crate::proto::{cmd, cmd_flag};
use crate::reply::ReplyStyle;

/// How a request has to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Want {
    /// With this error, and no content before.
    Error(u32),
    /// Without content.
    Success,
    /// With the data, or up to a byte that cannot be read.
    Data { whole: bool, bad: Option<u64> },
    /// With some extents in each of these contexts, by id and name, unless one of them is broken.
    Status { one: bool, contexts: Vec<(u32, String)> },
}

/// A request that waits for its reply, or for the rest of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub offset: u64,
    /// What it is about, which for a filtered BLOCK_STATUS is not the header's.
    pub length: u64,
    pub want: Want,
    /// An overlay's damage may have been healed meanwhile, or not.
    pub may_fail: bool,
    /// Content that has come, by where it starts.
    pub pieces: BTreeMap<u64, u64>,
    /// Contexts that have come.
    pub contexts: BTreeSet<u32>,
}

/// A request as it was sent.
struct Request {
    flags: u16,
    command: u16,
    offset: u64,
    length: u64,
    payload: u64,
    draining: bool,
}

impl Request {
    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

pub(super) struct Requests<'a> {
    pub deal: Deal,
    pub model: Model,
    pub ordered: bool,
    client: Stream<'a>,
    limits: &'a Limits,
    drained_at: usize,
    waiting: BTreeMap<u64, VecDeque<Asked>>,
    outcome: &'a mut Outcome,
}

/// Checks the transmission phase, at which both streams begin.
pub(super) fn check<'a>(
    deal: Deal,
    client: Stream<'a>,
    mut server: Stream<'a>,
    conversation: &Conversation<'_>,
    limits: &'a Limits,
    outcome: &'a mut Outcome,
) {
    let mut requests = Requests {
        model: Model::new(deal.kind),
        deal,
        ordered: conversation.ordered,
        client,
        limits,
        drained_at: conversation.drained_at,
        waiting: BTreeMap::new(),
        outcome,
    };
    requests.outcome.understood = requests.client.at;
    while !server.is_empty() {
        replies::check_next(&mut requests, &mut server);
    }
    while requests.take_next() {}
    let left = requests.waiting.values().map(VecDeque::len).sum::<usize>();
    assert_eq!(left, 0, "requests were not answered: {:?}", requests.waiting);
}

impl Requests<'_> {
    /// Takes a request out that waits with this cookie.
    pub(super) fn find(&mut self, cookie: u64) -> Asked {
        loop {
            if let Some(asked) = self.waiting.get_mut(&cookie).and_then(VecDeque::pop_front) {
                return asked;
            }
            assert!(
                self.take_next(),
                "a reply to nothing that was asked: cookie {cookie:x}"
            );
        }
    }

    /// Puts it back, to be found next.
    pub(super) fn put_back(&mut self, cookie: u64, asked: Asked) {
        self.waiting.entry(cookie).or_default().push_front(asked);
    }

    /// Understands the client's next request, and does it to the model; false if there is none.
    fn take_next(&mut self) -> bool {
        !self.outcome.closed && self.next().is_some()
    }

    fn next(&mut self) -> Option<()> {
        let extended = self.deal.style == ReplyStyle::Extended;
        let magic = self.client.u32()?;
        let (flags, command) = (self.client.u16()?, self.client.u16()?);
        let (cookie, offset) = (self.client.number(8)?, self.client.number(8)?);
        let length = self.client.number(if extended { 8 } else { 4 })?;
        // A write has its data behind it whether or not it says so.
        let announced = extended && flags & cmd_flag::PAYLOAD_LEN != 0;
        let has_payload = announced || command == cmd::WRITE;
        let request = Request {
            flags,
            command,
            offset,
            length,
            payload: if has_payload { length } else { 0 },
            draining: self.client.at > self.drained_at,
        };
        let good = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let too_long = extended && request.payload > self.limits.max_write_bytes.into();
        if magic != good || command == cmd::DISC || too_long {
            self.outcome.closed = true;
            return None;
        }
        let payload = self.client.take(usize::try_from(request.payload).unwrap())?;
        self.outcome.understood = self.client.at;
        self.outcome.requests += 1;
        let asked = self.ask(&request, payload);
        self.waiting.entry(cookie).or_default().push_back(asked);
        Some(())
    }

    fn ask(&mut self, request: &Request, payload: &[u8]) -> Asked {
        let filter = request.command == cmd::BLOCK_STATUS && request.has(cmd_flag::PAYLOAD_LEN);
        let mut length = request.length;
        if let (true, Some(effect)) = (filter, payload.first_chunk()) {
            length = u64::from_be_bytes(*effect);
        }
        let result = self.check(request, length, payload);
        let changes = matches!(
            request.command,
            cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES | cmd::READ
        );
        Asked {
            offset: request.offset,
            length,
            may_fail: !self.ordered && self.model.is_overlay() && changes && result.is_ok(),
            want: result.unwrap_or_else(Want::Error),
            pieces: BTreeMap::new(),
            contexts: BTreeSet::new(),
        }
    }

    /// The rules, in the order in which they are told.
    fn check(&mut self, request: &Request, length: u64, payload: &[u8]) -> Result<Want, u32> {
        if request.draining {
            return Err(errno::ESHUTDOWN);
        }
        let writable = !self.model.is_still();
        if request.flags & !self.allowed(request.command, writable).ok_or(errno::EINVAL)? != 0 {
            return Err(errno::EINVAL);
        }
        match request.command {
            cmd::READ => self.read(request, length),
            cmd::FLUSH if request.offset > 0 || length > 0 => Err(errno::EINVAL),
            cmd::FLUSH => Ok(Want::Success),
            cmd::CACHE => self
                .in_range(request.offset, length, errno::EINVAL)
                .map(|()| Want::Success),
            cmd::BLOCK_STATUS => self.status(request, length, payload),
            _ if !writable => Err(errno::EPERM),
            _ => self.change(request, length, payload),
        }
    }

    fn allowed(&self, command: u16, writable: bool) -> Option<u16> {
        let style = self.deal.style;
        let chunks = if style == ReplyStyle::Simple {
            0
        } else {
            cmd_flag::DF
        };
        let payload = if style == ReplyStyle::Extended {
            cmd_flag::PAYLOAD_LEN
        } else {
            0
        };
        let fast = if writable { cmd_flag::FAST_ZERO } else { 0 };
        let own = match command {
            cmd::READ => chunks,
            cmd::WRITE => payload,
            cmd::WRITE_ZEROES => cmd_flag::NO_HOLE | fast,
            cmd::BLOCK_STATUS => cmd_flag::REQ_ONE | payload,
            cmd::FLUSH | cmd::TRIM | cmd::CACHE => 0,
            _ => return None,
        };
        Some(own | cmd_flag::FUA)
    }

    fn in_range(&self, offset: u64, length: u64, error: u32) -> Result<(), u32> {
        let end = u128::from(offset) + u128::from(length);
        match end <= u128::from(self.deal.kind.still().size()) {
            true => Ok(()),
            false => Err(error),
        }
    }

    fn read(&self, request: &Request, length: u64) -> Result<Want, u32> {
        if length > self.limits.max_payload_bytes.into() {
            return Err(errno::EINVAL);
        }
        self.in_range(request.offset, length, errno::EINVAL)?;
        if length == 0 {
            return Ok(Want::Success);
        }
        Ok(Want::Data {
            whole: request.has(cmd_flag::DF),
            bad: self.model.first_bad(request.offset, length),
        })
    }

    fn status(&self, request: &Request, length: u64, payload: &[u8]) -> Result<Want, u32> {
        let mut contexts = self.deal.contexts.clone();
        if contexts.is_empty() {
            return Err(errno::EINVAL);
        }
        if request.has(cmd_flag::PAYLOAD_LEN) {
            let ids = payload.get(8..).unwrap_or_default();
            let wanted: Vec<u32> = ids
                .chunks(4)
                .filter_map(|id| Some(u32::from_be_bytes(id.try_into().ok()?)))
                .collect();
            let once: BTreeSet<u32> = wanted.iter().copied().collect();
            contexts.retain(|(id, _)| once.contains(id));
            let well_formed = ids.len() == 4 * wanted.len() && once.len() == wanted.len();
            if !well_formed || contexts.is_empty() || contexts.len() != wanted.len() {
                return Err(errno::EINVAL);
            }
        }
        self.in_range(request.offset, length, errno::EINVAL)?;
        if length == 0 {
            return Err(errno::EINVAL);
        }
        let one = request.has(cmd_flag::REQ_ONE);
        Ok(Want::Status { one, contexts })
    }

    fn change(&mut self, request: &Request, length: u64, payload: &[u8]) -> Result<Want, u32> {
        let beyond = match request.command {
            cmd::TRIM => errno::EINVAL,
            cmd::WRITE if length > self.limits.max_write_bytes.into() => return Err(errno::EINVAL),
            _ => errno::ENOSPC,
        };
        let offset = request.offset;
        self.in_range(offset, length, beyond)?;
        if length > 0 {
            match request.command {
                cmd::TRIM => self.model.trim(offset, length),
                cmd::WRITE => self.model.write(offset, payload)?,
                _ => self
                    .model
                    .zero(offset, length, request.has(cmd_flag::FAST_ZERO))?,
            }
        }
        Ok(Want::Success)
    }

    /// Whether a context can be answered.
    pub(super) fn is_broken(name: &str) -> bool {
        name == exports::BROKEN
    }
}
