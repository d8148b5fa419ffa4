//! The handshake as a state machine over bytes: no I/O, no clock, no catalog.
//!
//! [`Handshake::advance`] eats input and says what to do next. Where an option needs the catalog
//! the machine [asks](Step::Ask) and continues with [`Handshake::answer`]. What it holds is bounded
//! by one option of at most [`Limits::option_bytes`]; longer ones are read past, so that the two
//! sides stay in step whatever a client sends.

use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use crate::context::Context;
use crate::options::{self, InfoRequest, MetaRequest, Replies};
use crate::proto::{BASE_ALLOCATION, EXPORT_NAME_PADDING, ExportNameReply, Greeting, INIT_MAGIC, MAX_STRING};
use crate::proto::{OPTION_MAGIC, OptionHeader, handshake_flag, opt, rep, tx_flag};
use crate::reply::ReplyStyle;
use crate::{Access, ErrorKind, Export, ExportInfo, Limits, ServeError};

const CLIENT_FLAGS_SIZE: usize = 4;
/// Meta contexts that one client may select: each costs a chunk in every block status reply.
pub(crate) const CONTEXTS_MAX: usize = 64;

/// Whether this connection is to be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    /// The server has no TLS here (NOTLS).
    None,
    /// Nothing but STARTTLS is served (FORCEDTLS).
    Required,
    /// It is.
    Active,
}

/// What the driver of a [`Handshake`] does next.
pub(crate) enum Step {
    /// Read more; all input is used up.
    Read,
    /// Send this and go on.
    Send(Vec<u8>),
    /// Ask the catalog, then call [`Handshake::answer`].
    Ask(Question),
    /// Send this, begin TLS, and continue with what comes through it.
    Encrypt(Vec<u8>),
    /// Send this and begin transmission with the rest of the input.
    Enter(Vec<u8>, Session),
    /// Send this, if anything, and close; the text says why.
    Close(Vec<u8>, &'static str),
}

/// A question to the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    List,
    Describe(String),
    /// All meta contexts beside `base:allocation`.
    Contexts(String),
    /// Describe and open.
    Open(String),
}

/// The catalog's answer.
pub(crate) enum Answer {
    Exports(Vec<ExportInfo>),
    Described(ExportInfo),
    Contexts(Vec<String>),
    Opened(ExportInfo, Arc<dyn Export>),
    Failed(ServeError),
}

/// What was negotiated.
pub(crate) struct Session {
    pub(crate) name: String,
    pub(crate) export: Arc<dyn Export>,
    pub(crate) size_bytes: u64,
    pub(crate) writable: bool,
    pub(crate) style: ReplyStyle,
    /// What was selected for this export.
    pub(crate) contexts: Arc<[Context]>,
}

/// The option whose question is with the catalog.
enum Pending {
    List,
    Info { option: u32, request: InfoRequest },
    ExportName { name: String },
    Meta { option: u32, request: MetaRequest },
}

enum Phase {
    ClientFlags,
    Header,
    Body {
        option: u32,
        length: usize,
    },
    /// Reads past the rest of an option, then answers it.
    Skip {
        option: u32,
        remaining: u32,
        refusal: u32,
        text: &'static str,
    },
    Waiting(Pending),
    Over,
}

/// The server's side of one handshake.
pub(crate) struct Handshake {
    option_bytes: u32,
    options_left: u32,
    max_payload_bytes: u32,
    phase: Phase,
    /// Input of the current phase, if it came in parts; never longer than the phase needs.
    held: Vec<u8>,
    fixed_newstyle: bool,
    no_zeroes: bool,
    tls: Tls,
    style: ReplyStyle,
    /// What was selected last, and for which export.
    selected: Option<(String, Arc<[Context]>)>,
    draining: bool,
}

impl Handshake {
    /// A handshake at its start, and the greeting to send.
    pub(crate) fn new(limits: &Limits, tls: Tls) -> (Self, Vec<u8>) {
        let greeting = Greeting {
            init_magic: INIT_MAGIC.into(),
            option_magic: OPTION_MAGIC.into(),
            flags: (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).into(),
        };
        let machine = Self {
            option_bytes: limits.option_bytes,
            options_left: limits.options,
            max_payload_bytes: limits.max_payload_bytes,
            phase: Phase::ClientFlags,
            held: Vec::new(),
            fixed_newstyle: false,
            no_zeroes: false,
            tls,
            style: ReplyStyle::Simple,
            selected: None,
            draining: false,
        };
        (machine, greeting.as_bytes().to_vec())
    }

    /// From now on every option but ABORT is refused: the server is going down (H13).
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Eats input from the front of `input` and returns the next step. Call it again, with what
    /// is left, until it wants to [read](Step::Read).
    pub(crate) fn advance(&mut self, input: &mut &[u8]) -> Step {
        loop {
            if let Some(step) = self.advance_phase(input) {
                return step;
            }
        }
    }

    /// One phase's work; `None` when it led to another phase without a step to take.
    fn advance_phase(&mut self, input: &mut &[u8]) -> Option<Step> {
        match self.phase {
            Phase::ClientFlags => match self.gather(CLIENT_FLAGS_SIZE, input) {
                Some(bytes) => self.client_flags(&bytes),
                None => Some(Step::Read),
            },
            Phase::Header => match self.gather(size_of::<OptionHeader>(), input) {
                Some(bytes) => self.header(&bytes),
                None => Some(Step::Read),
            },
            Phase::Body { option, length } => match self.gather(length, input) {
                Some(bytes) => Some(self.body(option, &bytes, input)),
                None => Some(Step::Read),
            },
            Phase::Skip { .. } => Some(self.skip(input)),
            Phase::Waiting(_) => Some(Step::Read),
            Phase::Over => Some(Step::Close(Vec::new(), "the handshake is over")),
        }
    }

    /// Takes exactly `wanted` bytes, or holds what there is.
    fn gather(&mut self, wanted: usize, input: &mut &[u8]) -> Option<Vec<u8>> {
        let taken = input.len().min(wanted.saturating_sub(self.held.len()));
        let (head, tail) = input.split_at(taken);
        self.held.extend_from_slice(head);
        *input = tail;
        (self.held.len() == wanted).then(|| std::mem::take(&mut self.held))
    }

    fn client_flags(&mut self, bytes: &[u8]) -> Option<Step> {
        let offered = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        let flags = u32::from_be_bytes(bytes.try_into().unwrap_or_default());
        if flags & !offered != 0 {
            return Some(self.close("unknown client flags"));
        }
        self.fixed_newstyle = flags & u32::from(handshake_flag::FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.phase = Phase::Header;
        None
    }

    fn header(&mut self, bytes: &[u8]) -> Option<Step> {
        let Ok(header) = OptionHeader::read_from_bytes(bytes) else {
            return Some(self.close("a short option header"));
        };
        let (option, length) = (header.option.get(), header.length.get());
        if header.magic.get() != OPTION_MAGIC {
            return Some(self.close("bad option magic"));
        }
        if !self.fixed_newstyle && option != opt::EXPORT_NAME {
            return Some(self.close("an option other than EXPORT_NAME from a client without fixed newstyle"));
        }
        match self.options_left.checked_sub(1) {
            Some(left) => self.options_left = left,
            None => return Some(self.close("too many options")),
        }
        self.begin(option, length)
    }

    /// Decides how the data of an option is taken in.
    fn begin(&mut self, option: u32, length: u32) -> Option<Step> {
        if option == opt::SET_META_CONTEXT {
            // H11: a new request replaces the old set even where it fails.
            self.selected = None;
        }
        let skip = |refusal, text| Phase::Skip {
            option,
            remaining: length,
            refusal,
            text,
        };
        self.phase = match option {
            opt::EXPORT_NAME if length as usize > MAX_STRING => {
                return Some(self.close("an export name longer than 4096 bytes"));
            }
            opt::ABORT => skip(rep::ACK, ""),
            opt::STARTTLS if self.tls == Tls::None => skip(rep::ERR_UNSUP, "TLS is not set up here"),
            opt::STARTTLS if self.tls == Tls::Active => skip(rep::ERR_INVALID, "TLS is active already"),
            opt::STARTTLS if length == 0 => Phase::Body { option, length: 0 },
            opt::EXPORT_NAME => Phase::Body {
                option,
                length: length as usize,
            },
            _ if self.tls == Tls::Required && option != opt::STARTTLS => {
                skip(rep::ERR_TLS_REQD, "this server wants TLS first")
            }
            opt::STARTTLS | opt::LIST | opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS if length > 0 => {
                skip(rep::ERR_INVALID, "this option takes no data")
            }
            opt::LIST
            | opt::INFO
            | opt::GO
            | opt::STRUCTURED_REPLY
            | opt::EXTENDED_HEADERS
            | opt::LIST_META_CONTEXT
            | opt::SET_META_CONTEXT => {
                if length > self.option_bytes {
                    skip(rep::ERR_TOO_BIG, "the option's data is too long")
                } else {
                    Phase::Body {
                        option,
                        length: length as usize,
                    }
                }
            }
            _ => skip(rep::ERR_UNSUP, "the server does not support this option"),
        };
        None
    }

    fn skip(&mut self, input: &mut &[u8]) -> Step {
        let Phase::Skip {
            option,
            remaining,
            refusal,
            text,
        } = &mut self.phase
        else {
            return Step::Read;
        };
        let taken = input.len().min(*remaining as usize);
        *input = input.get(taken..).unwrap_or_default();
        *remaining = remaining.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
        if *remaining > 0 {
            return Step::Read;
        }
        let (option, refusal, text) = (*option, *refusal, *text);
        if option == opt::ABORT {
            self.phase = Phase::Over;
            return Step::Close(Replies::new(option).ack(), "the client aborted");
        }
        self.refuse(option, refusal, text)
    }

    /// Answers an option; `rest` is what of the input lies behind it.
    fn body(&mut self, option: u32, data: &[u8], rest: &[u8]) -> Step {
        if self.draining {
            return self.refuse(option, rep::ERR_SHUTDOWN, "the server is shutting down");
        }
        match option {
            opt::STARTTLS => self.encrypt(rest),
            opt::EXPORT_NAME => self.export_name(data),
            opt::LIST => self.ask(Pending::List, Question::List),
            opt::INFO | opt::GO => self.info(option, data),
            opt::STRUCTURED_REPLY if self.style == ReplyStyle::Extended => {
                let text = "extended headers were negotiated already and stay";
                self.refuse(option, rep::ERR_EXT_HEADER_REQD, text)
            }
            opt::STRUCTURED_REPLY => {
                self.style = ReplyStyle::Structured;
                self.send(Replies::new(option).ack())
            }
            opt::EXTENDED_HEADERS => {
                self.style = ReplyStyle::Extended;
                self.send(Replies::new(option).ack())
            }
            _ => self.meta_context(option, data),
        }
    }

    /// Forgets all that was said in the clear (H12). What already lies behind the option could
    /// have been put there by anybody, and must not be taken for what comes through TLS.
    fn encrypt(&mut self, rest: &[u8]) -> Step {
        if !rest.is_empty() {
            return self.close("bytes in the clear behind STARTTLS");
        }
        self.tls = Tls::Active;
        self.style = ReplyStyle::Simple;
        self.selected = None;
        self.phase = Phase::Header;
        Step::Encrypt(Replies::new(opt::STARTTLS).ack())
    }

    fn export_name(&mut self, data: &[u8]) -> Step {
        if self.tls == Tls::Required {
            return self.close("EXPORT_NAME without TLS, which this server wants");
        }
        if self.style == ReplyStyle::Extended {
            return self.close("EXPORT_NAME after extended headers");
        }
        match options::name(data) {
            Ok(name) => self.ask(Pending::ExportName { name: name.clone() }, Question::Open(name)),
            Err(text) => self.close(text),
        }
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Step {
        match InfoRequest::parse(data) {
            Err(text) => self.refuse(option, rep::ERR_INVALID, text),
            Ok(request) => {
                let name = request.name.clone();
                let question = if option == opt::GO {
                    Question::Open(name)
                } else {
                    Question::Describe(name)
                };
                self.ask(Pending::Info { option, request }, question)
            }
        }
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Step {
        if option == opt::SET_META_CONTEXT && !self.style.has_chunks() {
            return self.refuse(option, rep::ERR_INVALID, "negotiate structured replies first");
        }
        match MetaRequest::parse(data) {
            Err(text) => self.refuse(option, rep::ERR_INVALID, text),
            Ok(request) => {
                let question = Question::Contexts(request.name.clone());
                self.ask(Pending::Meta { option, request }, question)
            }
        }
    }

    fn ask(&mut self, pending: Pending, question: Question) -> Step {
        self.phase = Phase::Waiting(pending);
        Step::Ask(question)
    }

    fn send(&mut self, reply: Vec<u8>) -> Step {
        self.phase = Phase::Header;
        Step::Send(reply)
    }

    /// Answers an option with an error, or closes where the option knows no errors (H4).
    fn refuse(&mut self, option: u32, refusal: u32, text: &str) -> Step {
        if option == opt::EXPORT_NAME {
            return self.close("an EXPORT_NAME that cannot be served");
        }
        // Without TLS a client learns nothing else, not even this.
        let tells = self.draining && refusal != rep::ERR_TLS_REQD;
        let refusal = if tells { rep::ERR_SHUTDOWN } else { refusal };
        self.send(Replies::new(option).error(refusal, text))
    }

    fn close(&mut self, why: &'static str) -> Step {
        self.phase = Phase::Over;
        Step::Close(Vec::new(), why)
    }

    /// Goes on with what the catalog said to the last [question](Step::Ask).
    pub(crate) fn answer(&mut self, answer: Answer) -> Step {
        let Phase::Waiting(pending) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return self.close("an answer without a question");
        };
        if self.draining {
            return self.refuse(pending.option(), rep::ERR_SHUTDOWN, "the server is shutting down");
        }
        match (pending, answer) {
            (pending, Answer::Failed(error)) => {
                self.refuse(pending.option(), refusal(error.kind()), &error.to_string())
            }
            (Pending::List, Answer::Exports(exports)) => self.send(Replies::new(opt::LIST).exports(&exports)),
            (Pending::Meta { option, request }, Answer::Contexts(names)) => {
                self.answer_meta(option, request, names)
            }
            (Pending::Info { option, request }, Answer::Described(info)) => {
                let flags = self.transmission_flags(&info, &request.name);
                self.send(Replies::new(option).info(&request, &info, flags, self.max_payload_bytes))
            }
            (Pending::Info { option, request }, Answer::Opened(info, export)) => {
                let flags = self.transmission_flags(&info, &request.name);
                let reply = Replies::new(option).info(&request, &info, flags, self.max_payload_bytes);
                self.enter(reply, request.name, &info, export)
            }
            (Pending::ExportName { name }, Answer::Opened(info, export)) => {
                self.enter(self.export_name_reply(&info, &name), name, &info, export)
            }
            _ => self.close("an answer to another question"),
        }
    }

    fn answer_meta(&mut self, option: u32, request: MetaRequest, others: Vec<String>) -> Step {
        let all = [BASE_ALLOCATION.to_owned()].into_iter().chain(others);
        if option == opt::LIST_META_CONTEXT {
            let listed = all.filter(|name| request.lists(name));
            let listed = listed.map(|name| Context {
                id: options::LISTED_CONTEXT_ID,
                name,
            });
            return self.send(Replies::new(option).meta_contexts(listed));
        }
        let chosen = all.filter(|name| request.selects(name));
        let chosen: Arc<[Context]> = (1..).zip(chosen).map(|(id, name)| Context { id, name }).collect();
        if chosen.len() > CONTEXTS_MAX {
            return self.refuse(
                option,
                rep::ERR_TOO_BIG,
                "more meta contexts at once than are served",
            );
        }
        let reply = Replies::new(option).meta_contexts(chosen.iter().cloned());
        self.selected = Some((request.name, chosen));
        self.send(reply)
    }

    fn export_name_reply(&self, info: &ExportInfo, name: &str) -> Vec<u8> {
        let reply = ExportNameReply {
            size: info.size_bytes.into(),
            flags: self.transmission_flags(info, name).into(),
        };
        let mut bytes = reply.as_bytes().to_vec();
        if !self.no_zeroes {
            bytes.resize(bytes.len() + EXPORT_NAME_PADDING, 0);
        }
        bytes
    }

    fn enter(&mut self, reply: Vec<u8>, name: String, info: &ExportInfo, export: Arc<dyn Export>) -> Step {
        self.phase = Phase::Over;
        let contexts = self.selected_for(&name).cloned().unwrap_or_default();
        let session = Session {
            name,
            export,
            size_bytes: info.size_bytes,
            writable: info.access != Access::ReadOnly,
            style: self.style,
            contexts,
        };
        Step::Enter(reply, session)
    }

    fn selected_for(&self, export: &str) -> Option<&Arc<[Context]>> {
        let (_, contexts) = self.selected.as_ref().filter(|(name, _)| name == export)?;
        Some(contexts).filter(|contexts| self.style.has_chunks() && !contexts.is_empty())
    }

    /// What the export can do, in this connection: DF needs chunks, and a filter for BLOCK_STATUS
    /// needs extended headers and something to be filtered.
    fn transmission_flags(&self, info: &ExportInfo, name: &str) -> u16 {
        let only_if = |holds: bool, flag: u16| if holds { flag } else { 0 };
        let access = match info.access {
            Access::ReadOnly => tx_flag::READ_ONLY | tx_flag::CAN_MULTI_CONN,
            Access::Writable { shared } => {
                let writes = tx_flag::SEND_TRIM | tx_flag::SEND_WRITE_ZEROES | tx_flag::SEND_FAST_ZERO;
                writes | only_if(shared, tx_flag::CAN_MULTI_CONN)
            }
        };
        let filters = self.style == ReplyStyle::Extended && self.selected_for(name).is_some();
        tx_flag::HAS_FLAGS
            | tx_flag::SEND_FLUSH
            | tx_flag::SEND_FUA
            | tx_flag::SEND_CACHE
            | access
            | only_if(self.style.has_chunks(), tx_flag::SEND_DF)
            | only_if(filters, tx_flag::BLOCK_STATUS_PAYLOAD)
    }
}

impl Pending {
    fn option(&self) -> u32 {
        match self {
            Self::List => opt::LIST,
            Self::ExportName { .. } => opt::EXPORT_NAME,
            Self::Info { option, .. } | Self::Meta { option, .. } => *option,
        }
    }
}

fn refusal(kind: ErrorKind) -> u32 {
    match kind {
        ErrorKind::Refused => rep::ERR_POLICY,
        ErrorKind::ShuttingDown => rep::ERR_SHUTDOWN,
        // To the protocol, an export that cannot be opened is one that is not available.
        _ => rep::ERR_UNKNOWN,
    }
}

#[cfg(test)]
mod tests;
