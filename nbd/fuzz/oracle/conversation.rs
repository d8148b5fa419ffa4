//! Checks a whole conversation: reads the client's bytes as the protocol defines them, and compares the server's bytes
//! with that. Shares no code with the server but numbers; its panics are the fuzzers' findings.

mod replies;
mod requests;

use std::collections::BTreeSet;

use super::exports::{self, Denied, Kind};
use crate::handshake::Tls;
use crate::proto::{handshake_flag, info, opt, rep, tx_flag};
use crate::reply::ReplyStyle;
use crate::{Access, ExportInfo, Limits};

const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const MAX_STRING: usize = 4096;
const MAX_CONTEXTS: usize = 64;

/// All that was said on one connection.
pub(super) struct Conversation<'a> {
    pub client: &'a [u8],
    /// Where the server's reads of it ended, but for the last one.
    pub cuts: &'a BTreeSet<usize>,
    /// The server was told to go down when it had read that much.
    pub drained_at: usize,
    pub server: &'a [u8],
    pub tls: Tls,
    /// Changes were done one after another, as they were sent.
    pub ordered: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Outcome {
    /// The server has to close before the client does.
    pub closed: bool,
    pub options: u32,
    pub style: Option<ReplyStyle>,
    pub requests: u32,
    /// Bytes of the client's that mean something: up to its last whole message.
    pub understood: usize,
}

/// One direction's bytes.
struct Stream<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Stream<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    /// A number of that many bytes.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        let taken = self.take(bytes)?;
        Some(taken.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn u16(&mut self) -> Option<u16> {
        self.number(2).map(|number| u16::try_from(number).unwrap())
    }

    fn u32(&mut self) -> Option<u32> {
        self.number(4).map(|number| u32::try_from(number).unwrap())
    }

    fn text(&mut self, count: usize) -> Option<&'a str> {
        let text = std::str::from_utf8(self.take(count)?).ok()?;
        (count <= MAX_STRING && !text.contains('\0')).then_some(text)
    }

    fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()?;
        self.text(usize::try_from(length).unwrap())
    }

    fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }
}

/// What was agreed on when transmission began.
struct Deal {
    kind: Kind,
    style: ReplyStyle,
    /// Ids and names, in the server's order.
    contexts: Vec<(u32, String)>,
}

/// What an option leads to.
enum Next {
    Option,
    Enter(Deal),
    /// The server closes.
    Close,
}

struct Haggling<'a> {
    client: Stream<'a>,
    server: Stream<'a>,
    conversation: &'a Conversation<'a>,
    limits: &'a Limits,
    tls: Tls,
    style: ReplyStyle,
    fixed_newstyle: bool,
    no_zeroes: bool,
    selected: Option<(String, Vec<(u32, String)>)>,
    outcome: Outcome,
}

/// Panics at whatever the server got wrong.
pub(super) fn check(conversation: &Conversation<'_>, limits: &Limits) -> Outcome {
    let mut haggling = Haggling {
        client: Stream::new(conversation.client),
        server: Stream::new(conversation.server),
        conversation,
        limits,
        tls: conversation.tls,
        style: ReplyStyle::Simple,
        fixed_newstyle: false,
        no_zeroes: false,
        selected: None,
        outcome: Outcome::default(),
    };
    let deal = haggling.haggle();
    let Haggling {
        client,
        server,
        mut outcome,
        ..
    } = haggling;
    match deal {
        Some(deal) => requests::check(deal, client, server, conversation, limits, &mut outcome),
        None => assert!(server.is_empty(), "the server goes on talking in the handshake"),
    }
    outcome
}

impl Haggling<'_> {
    /// All options; the deal if there is one.
    fn haggle(&mut self) -> Option<Deal> {
        assert_eq!(self.server.take(8), Some(&b"NBDMAGIC"[..]));
        assert_eq!(self.server.number(8), Some(OPTION_MAGIC));
        let offered = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        assert_eq!(self.server.u16(), Some(offered));
        let flags = self.client.u32()?;
        if flags & !u32::from(offered) != 0 {
            self.outcome.closed = true;
            return None;
        }
        self.fixed_newstyle = flags & 1 != 0;
        self.no_zeroes = flags & 2 != 0;
        loop {
            self.outcome.understood = self.client.at;
            match self.option()? {
                Next::Option => self.outcome.options += 1,
                Next::Enter(deal) => {
                    self.outcome.style = Some(deal.style);
                    return Some(deal);
                }
                Next::Close => {
                    self.outcome.closed = true;
                    return None;
                }
            }
        }
    }

    /// The next option and its replies; nothing if the client did not say all of it.
    fn option(&mut self) -> Option<Next> {
        let (magic, option, length) = (self.client.number(8)?, self.client.u32()?, self.client.u32()?);
        let is_name = option == opt::EXPORT_NAME;
        let too_many = self.outcome.options >= self.limits.options;
        if magic != OPTION_MAGIC || too_many || (!self.fixed_newstyle && !is_name) {
            return Some(Next::Close);
        }
        if option == opt::SET_META_CONTEXT {
            self.selected = None;
        }
        let length = usize::try_from(length).unwrap();
        if is_name && length > MAX_STRING {
            return Some(Next::Close);
        }
        let data = self.client.take(length)?;
        let draining = self.client.at > self.conversation.drained_at;
        if option == opt::ABORT {
            self.expect(option, rep::ACK);
            return Some(Next::Close);
        }
        if is_name {
            return Some(self.export_name(data, draining));
        }
        if let Some(refusal) = self.refusal(option, data, draining) {
            self.expect(option, refusal);
            return Some(Next::Option);
        }
        Some(self.served(option, data))
    }

    /// Errors that can be told without a look at the data.
    fn refusal(&self, option: u32, data: &[u8], draining: bool) -> Option<u32> {
        let is_known = matches!(option, 3 | 6..=11);
        let takes_none = matches!(option, opt::LIST | opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS);
        Some(match (option, self.tls) {
            (_, Tls::Required) if option != opt::STARTTLS => rep::ERR_TLS_REQD,
            _ if draining => rep::ERR_SHUTDOWN,
            (opt::STARTTLS, Tls::None) => rep::ERR_UNSUP,
            (opt::STARTTLS, Tls::Active) => rep::ERR_INVALID,
            (opt::STARTTLS, Tls::Required) if data.is_empty() => return None,
            (opt::STARTTLS, Tls::Required) => rep::ERR_INVALID,
            _ if takes_none && !data.is_empty() => rep::ERR_INVALID,
            _ if !is_known => rep::ERR_UNSUP,
            _ if data.len() > usize::try_from(self.limits.option_bytes).unwrap() => rep::ERR_TOO_BIG,
            (opt::STRUCTURED_REPLY, _) if self.style == ReplyStyle::Extended => rep::ERR_EXT_HEADER_REQD,
            (opt::SET_META_CONTEXT, _) if self.style == ReplyStyle::Simple => rep::ERR_INVALID,
            _ => return None,
        })
    }

    fn served(&mut self, option: u32, data: &[u8]) -> Next {
        match option {
            opt::STARTTLS => return self.start_tls(),
            opt::STRUCTURED_REPLY => {
                self.style = ReplyStyle::Structured;
                self.expect(option, rep::ACK);
            }
            opt::EXTENDED_HEADERS => {
                self.style = ReplyStyle::Extended;
                self.expect(option, rep::ACK);
            }
            opt::LIST => self.list(),
            opt::INFO | opt::GO => return self.info(option, data),
            _ => self.meta_context(option, data),
        }
        Next::Option
    }

    fn start_tls(&mut self) -> Next {
        let at = self.client.at;
        if !self.client.is_empty() && !self.conversation.cuts.contains(&at) {
            return Next::Close;
        }
        self.expect(opt::STARTTLS, rep::ACK);
        self.tls = Tls::Active;
        self.style = ReplyStyle::Simple;
        self.selected = None;
        Next::Option
    }

    /// One reply's kind and data.
    fn reply(&mut self, option: u32) -> (u32, Stream<'_>) {
        let server = &mut self.server;
        assert_eq!(server.number(8), Some(REPLY_MAGIC), "no reply to option {option}");
        assert_eq!(server.u32(), Some(option), "a reply to another option");
        let kind = server.u32().expect("a reply's kind");
        let length = server.u32().expect("a reply's length");
        let data = server.take(usize::try_from(length).unwrap());
        (kind, Stream::new(data.expect("a reply's data")))
    }

    /// The last reply to an option.
    fn expect(&mut self, option: u32, expected: u32) {
        let (kind, mut data) = self.reply(option);
        assert_eq!(kind, expected, "reply to option {option}");
        let length = data.bytes.len();
        assert!(kind != rep::ACK || length == 0, "an acknowledgement with data");
        data.text(length).expect("an error's text");
    }

    fn list(&mut self) {
        for name in exports::LISTED.iter().filter(|name| !name.contains('\0')) {
            let (kind, mut data) = self.reply(opt::LIST);
            assert_eq!(kind, rep::SERVER);
            assert_eq!(data.string(), Some(*name));
            assert_eq!(data.text(data.bytes.len() - data.at), Some("the disk disk"));
        }
        self.expect(opt::LIST, rep::ACK);
    }

    fn export_name(&mut self, data: &[u8], draining: bool) -> Next {
        let name = Stream::new(data).text(data.len());
        let found = name.map(|name| (name, exports::find(name)));
        let (Some((name, Ok(kind))), Tls::None | Tls::Active) = (found, self.tls) else {
            return Next::Close;
        };
        if draining || self.style == ReplyStyle::Extended {
            return Next::Close;
        }
        assert_eq!(self.server.number(8), Some(kind.still().size()));
        assert_eq!(self.server.u16(), Some(self.flags(name, kind.access())));
        if !self.no_zeroes {
            assert_eq!(self.server.take(124), Some(&[0; 124][..]));
        }
        Next::Enter(self.deal(name, kind))
    }

    fn deal(&self, name: &str, kind: Kind) -> Deal {
        let contexts = self.chosen(name).unwrap_or_default().to_vec();
        let style = self.style;
        Deal {
            kind,
            style,
            contexts,
        }
    }

    /// The contexts that hold for an export.
    fn chosen(&self, name: &str) -> Option<&[(u32, String)]> {
        let (export, contexts) = self.selected.as_ref()?;
        let holds = export == name && !contexts.is_empty() && self.style != ReplyStyle::Simple;
        holds.then_some(contexts)
    }

    fn flags(&self, name: &str, access: Access) -> u16 {
        let mut flags = tx_flag::HAS_FLAGS | tx_flag::SEND_FLUSH | tx_flag::SEND_FUA | tx_flag::SEND_CACHE;
        flags |= match access {
            Access::ReadOnly => tx_flag::READ_ONLY,
            Access::Writable { .. } => {
                tx_flag::SEND_TRIM | tx_flag::SEND_WRITE_ZEROES | tx_flag::SEND_FAST_ZERO
            }
        };
        if access != (Access::Writable { shared: false }) {
            flags |= tx_flag::CAN_MULTI_CONN;
        }
        if self.style != ReplyStyle::Simple {
            flags |= tx_flag::SEND_DF;
        }
        if self.style == ReplyStyle::Extended && self.chosen(name).is_some() {
            flags |= tx_flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Next {
        let Some((name, wanted)) = info_request(data) else {
            self.expect(option, rep::ERR_INVALID);
            return Next::Option;
        };
        let found = exports::find(name);
        let described = match found {
            Err(denied @ Denied::Shut) if option == opt::GO => Err(denied),
            _ => exports::describe(name),
        };
        match described {
            Err(denied) => {
                self.expect(option, refused(denied));
                Next::Option
            }
            Ok(told) => {
                self.check_infos(option, name, &told, &wanted);
                match found {
                    Ok(kind) if option == opt::GO => Next::Enter(self.deal(name, kind)),
                    _ => Next::Option,
                }
            }
        }
    }

    /// What a client is told of an export: in any order, each once, and the acknowledgement last.
    fn check_infos(&mut self, option: u32, name: &str, told: &ExportInfo, wanted: &BTreeSet<u16>) {
        let flags = self.flags(name, told.access);
        let most = self.limits.max_payload_bytes;
        let mut expected: BTreeSet<u16> = wanted
            .iter()
            .copied()
            .filter(|kind| (1..=3).contains(kind))
            .collect();
        expected.insert(info::EXPORT);
        if told.description.is_none() {
            expected.remove(&info::DESCRIPTION);
        }
        while !expected.is_empty() {
            let (kind, mut data) = self.reply(option);
            assert_eq!(kind, rep::INFO, "of {expected:?}");
            let kind = data.u16().expect("an info's kind");
            assert!(expected.remove(&kind), "info {kind} twice, or nobody asked");
            let rest = data.bytes.len() - data.at;
            match kind {
                info::EXPORT => {
                    assert_eq!(data.number(8), Some(told.size_bytes));
                    assert_eq!(data.u16(), Some(flags));
                }
                info::NAME => assert_eq!(data.text(rest), Some(told.name.as_str())),
                info::DESCRIPTION => {
                    let text = told.description.as_deref().unwrap().replace('\0', "");
                    assert_eq!(data.text(rest), Some(text.as_str()));
                }
                _ => {
                    let sizes = [(); 3].map(|()| data.u32());
                    assert_eq!(sizes, [Some(1), Some(exports::PREFERRED.1), Some(most)]);
                }
            }
            assert!(data.is_empty(), "info {kind} is too long");
        }
        self.expect(option, rep::ACK);
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) {
        let Some((name, queries)) = meta_request(data) else {
            return self.expect(option, rep::ERR_INVALID);
        };
        if let Err(denied) = exports::describe(name) {
            return self.expect(option, refused(denied));
        }
        let all = ["base:allocation".to_owned()]
            .into_iter()
            .chain(exports::contexts(name));
        let lists = option == opt::LIST_META_CONTEXT;
        let is_meant = |context: &str| {
            let namespaces = context.split_inclusive(':').next();
            queries.contains(context)
                || lists && (queries.is_empty() || namespaces.is_some_and(|it| queries.contains(it)))
        };
        let meant: Vec<String> = all
            .filter(|context| is_meant(context) && !context.contains('\0'))
            .collect();
        if !lists && meant.len() > MAX_CONTEXTS {
            return self.expect(option, rep::ERR_TOO_BIG);
        }
        let mut chosen: Vec<(u32, String)> = Vec::new();
        for context in meant {
            let (kind, mut data) = self.reply(option);
            assert_eq!(kind, rep::META_CONTEXT);
            let id = data.u32().expect("a context's id");
            assert_eq!(data.text(data.bytes.len() - 4), Some(context.as_str()));
            let is_new = chosen.iter().all(|(other, _)| *other != id);
            assert!(if lists { id == 0 } else { is_new }, "an id that is not its own");
            chosen.push((id, context));
        }
        self.expect(option, rep::ACK);
        if !lists {
            self.selected = Some((name.to_owned(), chosen));
        }
    }
}

fn refused(denied: Denied) -> u32 {
    match denied {
        Denied::Refused => rep::ERR_POLICY,
        Denied::Unknown | Denied::Shut => rep::ERR_UNKNOWN,
    }
}

fn info_request(data: &[u8]) -> Option<(&str, BTreeSet<u16>)> {
    let mut data = Stream::new(data);
    let name = data.string()?;
    let count = data.u16()?;
    let wanted: Option<BTreeSet<u16>> = (0..count).map(|_| data.u16()).collect();
    data.is_empty().then_some((name, wanted?))
}

fn meta_request(data: &[u8]) -> Option<(&str, BTreeSet<&str>)> {
    let mut data = Stream::new(data);
    let name = data.string()?;
    let count = data.u32()?;
    let queries: Option<BTreeSet<&str>> = (0..count).map(|_| data.string()).collect();
    data.is_empty().then_some((name, queries?))
}
