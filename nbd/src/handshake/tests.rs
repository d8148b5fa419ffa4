//! The handshake's MUSTs, named as in docs/nbd.md, on bytes alone.

use proptest::prelude::*;

use super::*;
use crate::{ExportError, Extent};

mod contexts;
mod extended;
mod flags;
mod tls;

const OFFERED: u32 = 3;
const FIXED_ONLY: u32 = 1;

struct Zeros;

impl Export for Zeros {
    fn size_bytes(&self) -> u64 {
        1 << 40
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        buf.fill(0);
        Ok(())
    }

    fn extents(&self, _: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::hole(length)])
    }
}

fn disk_info() -> ExportInfo {
    ExportInfo {
        name: "disk".into(),
        description: Some("a disk".into()),
        size_bytes: 1 << 40,
        preferred_block_bytes: 65536,
        access: Access::ReadOnly,
    }
}

/// A catalog of one export, "disk", which is the default export too.
struct Shelf {
    access: Access,
    contexts: Vec<String>,
}

impl Shelf {
    fn disk(&self) -> ExportInfo {
        let access = self.access;
        ExportInfo {
            access,
            ..disk_info()
        }
    }

    fn answer(&self, question: Question) -> Answer {
        let known = |name: &str| name == "disk" || name.is_empty();
        match question {
            Question::List => Answer::Exports(vec![self.disk()]),
            Question::Contexts(name) if known(&name) => Answer::Contexts(self.contexts.clone()),
            Question::Describe(name) if known(&name) => Answer::Described(self.disk()),
            Question::Open(name) if known(&name) => Answer::Opened(self.disk(), Arc::new(Zeros)),
            Question::Describe(name) | Question::Open(name) | Question::Contexts(name) => {
                Answer::Failed(ServeError::not_found(&name))
            }
        }
    }
}

fn catalog(question: Question) -> Answer {
    let shelf = Shelf {
        access: Access::ReadOnly,
        contexts: Vec::new(),
    };
    shelf.answer(question)
}

/// A client and a driver in one: what was sent, what came back, how it ended.
struct Talk {
    machine: Handshake,
    shelf: Shelf,
    out: Vec<u8>,
    session: Option<Session>,
    closed: Option<&'static str>,
    /// How often TLS was begun.
    encrypted: usize,
    leftover: Vec<u8>,
}

impl Talk {
    fn start(flags: u32) -> Self {
        Self::with_tls(Tls::None, flags)
    }

    fn with_tls(tls: Tls, flags: u32) -> Self {
        let mut talk = Self::silent(tls);
        talk.say(&flags.to_be_bytes());
        talk
    }

    /// One that has been greeted and has said nothing.
    fn silent(tls: Tls) -> Self {
        let limits = Limits {
            option_bytes: 8192,
            ..Limits::default()
        };
        let (machine, greeting) = Handshake::new(&limits, tls);
        assert_eq!(greeting, b"NBDMAGICIHAVEOPT\x00\x03");
        Self {
            machine,
            shelf: Shelf {
                access: Access::ReadOnly,
                contexts: Vec::new(),
            },
            out: Vec::new(),
            session: None,
            closed: None,
            encrypted: 0,
            leftover: Vec::new(),
        }
    }

    /// One whose structured replies are already negotiated.
    fn structured() -> Self {
        let mut talk = Self::start(OFFERED);
        assert_eq!(talk.option(opt::STRUCTURED_REPLY, &[]), [(rep::ACK, vec![])]);
        talk
    }

    fn say(&mut self, mut input: &[u8]) {
        let mut step = self.machine.advance(&mut input);
        loop {
            assert!(
                self.machine.held.capacity() <= 2 * 8192,
                "more is held than the limit allows"
            );
            step = match step {
                Step::Read => {
                    assert!(input.is_empty(), "input left uneaten");
                    return;
                }
                Step::Send(bytes) => {
                    self.out.extend(bytes);
                    self.machine.advance(&mut input)
                }
                Step::Ask(question) => self.machine.answer(self.shelf.answer(question)),
                Step::Encrypt(bytes) => {
                    self.out.extend(bytes);
                    self.encrypted += 1;
                    self.machine.advance(&mut input)
                }
                Step::Enter(bytes, session) => {
                    self.out.extend(bytes);
                    self.session = Some(session);
                    self.leftover = input.to_vec();
                    return;
                }
                Step::Close(bytes, why) => {
                    self.out.extend(bytes);
                    self.closed = Some(why);
                    return;
                }
            };
        }
    }

    /// Sends an option and takes the replies to it.
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.say(&encoded(option, data));
        self.replies(option)
    }

    fn replies(&mut self, option: u32) -> Vec<(u32, Vec<u8>)> {
        let out = std::mem::take(&mut self.out);
        replies_in(&out, option)
    }

    /// The only reply's type.
    fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        let replies = self.option(option, data);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies[0].0
    }
}

fn encoded(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [
        &OPTION_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// Splits the server's bytes into replies; anything that is not one is a failure.
fn replies_in(mut out: &[u8], option: u32) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !out.is_empty() {
        let (header, rest) = crate::proto::OptionReplyHeader::read_from_prefix(out).unwrap();
        assert_eq!(header.magic.get(), 0x0003_e889_0455_65a9);
        assert_eq!(header.option.get(), option);
        let (payload, rest) = rest.split_at(header.length.get() as usize);
        replies.push((header.kind.get(), payload.to_vec()));
        out = rest;
    }
    replies
}

fn string(text: &str) -> Vec<u8> {
    [
        &u32::try_from(text.len()).unwrap().to_be_bytes()[..],
        text.as_bytes(),
    ]
    .concat()
}

fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn context(id: u32) -> (u32, Vec<u8>) {
    (
        rep::META_CONTEXT,
        [&id.to_be_bytes()[..], b"base:allocation"].concat(),
    )
}

const DONE: (u32, Vec<u8>) = (rep::ACK, Vec::new());

#[test]
fn h1_every_unknown_client_flag_closes() {
    for bit in 2..32 {
        let talk = Talk::start(OFFERED | 1 << bit);
        assert_eq!(talk.closed, Some("unknown client flags"));
        assert!(talk.out.is_empty());
    }
    for flags in 0..=OFFERED {
        assert_eq!(Talk::start(flags).closed, None);
    }
}

#[test]
fn h2_without_fixed_newstyle_only_export_name_is_legal() {
    for option in [
        opt::LIST,
        opt::ABORT,
        opt::GO,
        opt::INFO,
        opt::STRUCTURED_REPLY,
        5,
        99,
    ] {
        let mut talk = Talk::start(0);
        talk.say(&encoded(option, &[]));
        assert!(talk.closed.is_some() && talk.out.is_empty(), "option {option}");
    }
    let mut talk = Talk::start(0);
    talk.say(&encoded(opt::EXPORT_NAME, b"disk"));
    assert!(talk.session.is_some());
}

#[test]
fn h3_export_name_is_padded_by_124_zeros_unless_declined() {
    for (flags, padding) in [(FIXED_ONLY, 124), (OFFERED, 0), (0, 124)] {
        let mut talk = Talk::start(flags);
        talk.say(&encoded(opt::EXPORT_NAME, b"disk"));
        let flags = [0x05, 0x0f];
        let expected = [&(1_u64 << 40).to_be_bytes()[..], &flags, &vec![0; padding]].concat();
        assert_eq!(talk.out, expected);
    }
}

#[test]
fn h3_go_is_never_padded() {
    let mut talk = Talk::start(FIXED_ONLY);
    let replies = talk.option(opt::GO, &go("disk", &[]));
    assert_eq!(replies.last(), Some(&DONE));
    assert!(talk.session.is_some());
}

#[test]
fn h4_an_export_name_that_fails_closes_without_a_word() {
    for name in [&b"other"[..], b"di\0sk", b"\xff", &[b'x'; 4097]] {
        let mut talk = Talk::start(OFFERED);
        talk.say(&encoded(opt::EXPORT_NAME, name));
        assert!(talk.closed.is_some() && talk.session.is_none());
        assert!(talk.out.is_empty());
    }
}

#[test]
fn h6_unknown_options_are_read_past_and_unsupported() {
    let mut talk = Talk::start(OFFERED);
    // PEEK, STARTTLS where there is no TLS, and numbers nobody has given a meaning.
    for option in [0, 4, 5, 12, 99, u32::MAX] {
        for length in [0, 1, 8192, 100_000] {
            assert_eq!(talk.verdict(option, &vec![0xee; length]), rep::ERR_UNSUP);
            assert_eq!(talk.option(opt::LIST, &[]).len(), 2, "out of step after {option}");
        }
    }
}

#[test]
fn h7_data_where_none_belongs_is_read_past_and_invalid() {
    let mut talk = Talk::start(OFFERED);
    for option in [opt::LIST, opt::STRUCTURED_REPLY, opt::EXTENDED_HEADERS] {
        for length in [1, 4, 100_000] {
            assert_eq!(talk.verdict(option, &vec![0; length]), rep::ERR_INVALID);
        }
    }
    // The refused STRUCTURED_REPLY has negotiated nothing.
    talk.option(opt::GO, &go("disk", &[]));
    assert_eq!(talk.session.unwrap().style, ReplyStyle::Simple);
}

#[test]
fn h8_abort_is_acknowledged_with_or_without_data() {
    for length in [0, 1, 100_000] {
        let mut talk = Talk::start(OFFERED);
        assert_eq!(talk.option(opt::ABORT, &vec![7; length]), [DONE]);
        assert!(talk.closed.is_some());
    }
}

#[test]
fn h9_lengths_that_do_not_fit_are_invalid_and_stay_in_step() {
    let mut wrong: Vec<Vec<u8>> = (0..6).map(|length| vec![0; length]).collect();
    wrong.push([&u32::MAX.to_be_bytes()[..], b"disk\0\0"].concat());
    wrong.push([&5_u32.to_be_bytes()[..], b"disk\0\0"].concat());
    wrong.push([go("disk", &[3]), vec![0]].concat());
    wrong.push(go("disk", &[3])[..11].to_vec());
    wrong.push([string("disk"), vec![0xff, 0xff, 0, 3]].concat());
    wrong.push(go("di\0sk", &[]));
    wrong.push(go(&"x".repeat(4097), &[]));
    let mut talk = Talk::start(OFFERED);
    for data in &wrong {
        for option in [opt::INFO, opt::GO] {
            assert_eq!(talk.verdict(option, data), rep::ERR_INVALID, "{data:?}");
        }
    }
    assert_eq!(talk.option(opt::INFO, &go("disk", &[])).len(), 2);
}

#[test]
fn h9_export_is_always_told_and_unknown_infos_are_ignored() {
    let mut talk = Talk::structured();
    let flags = [0x05, 0x8f];
    let export = [&[0, 0][..], &(1_u64 << 40).to_be_bytes(), &flags].concat();
    assert_eq!(
        talk.option(opt::INFO, &go("disk", &[])),
        [(rep::INFO, export.clone()), DONE]
    );
    assert_eq!(
        talk.option(opt::INFO, &go("disk", &[77, 0, 0xffff])),
        [(rep::INFO, export), DONE]
    );
}

#[test]
fn h9_info_then_go_tell_the_same() {
    let mut talk = Talk::structured();
    let wanted = go("", &[1, 2, 3]);
    let reported = talk.option(opt::INFO, &wanted);
    assert_eq!(reported[1], (rep::INFO, b"\0\x01disk".to_vec()));
    assert_eq!(reported[2], (rep::INFO, b"\0\x02a disk".to_vec()));
    assert_eq!(talk.option(opt::GO, &wanted), reported);
    assert!(talk.session.is_some());
}

#[test]
fn h9_an_unknown_export_may_be_retried() {
    let mut talk = Talk::start(OFFERED);
    for option in [opt::INFO, opt::GO] {
        assert_eq!(talk.verdict(option, &go("other", &[])), rep::ERR_UNKNOWN);
    }
    talk.option(opt::GO, &go("disk", &[]));
    assert!(talk.session.is_some());
}

#[test]
fn n2_a_name_of_4096_bytes_is_looked_up_and_its_echo_is_bounded() {
    let mut talk = Talk::start(OFFERED);
    let replies = talk.option(opt::GO, &go(&"\u{1b}".repeat(4096), &[]));
    assert_eq!(replies[0].0, rep::ERR_UNKNOWN);
    let text = String::from_utf8(replies[0].1.clone()).unwrap();
    assert!(text.len() <= 4096 && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn h10_block_sizes_are_told_whenever_asked_and_never_required() {
    let mut talk = Talk::start(OFFERED);
    let sizes = [
        &[0, 3][..],
        &1_u32.to_be_bytes(),
        &65536_u32.to_be_bytes(),
        &(32_u32 << 20).to_be_bytes(),
    ];
    for option in [opt::INFO, opt::GO] {
        let replies = talk.option(option, &go("disk", &[3]));
        assert!(replies.contains(&(rep::INFO, sizes.concat())));
    }
    let mut talk = Talk::start(OFFERED);
    assert_eq!(talk.option(opt::GO, &go("disk", &[])).last(), Some(&DONE));
}

#[test]
fn h10_the_preferred_size_is_a_power_of_two_within_bounds() {
    for (wanted, reported) in [
        (0, 512_u32),
        (1, 512),
        (4097, 8192),
        (u32::MAX, 32 << 20),
        (65536, 65536),
    ] {
        let info = ExportInfo {
            preferred_block_bytes: wanted,
            ..disk_info()
        };
        let request = InfoRequest::parse(&go("disk", &[3])).unwrap();
        let bytes = Replies::new(opt::INFO).info(&request, &info, 1, 33 << 20);
        let replies = replies_in(&bytes, opt::INFO);
        assert_eq!(replies[1].1[6..10], reported.to_be_bytes());
    }
}

#[test]
fn h11_set_before_structured_replies_is_invalid() {
    let mut talk = Talk::start(OFFERED);
    let wanted = meta("disk", &["base:allocation"]);
    assert_eq!(talk.verdict(opt::SET_META_CONTEXT, &wanted), rep::ERR_INVALID);
}

#[test]
fn h11_queries_select_what_they_name() {
    let listed: &[(&[&str], bool)] = &[
        (&[], true),
        (&["base:"], true),
        (&["base:allocation"], true),
        (&["x-other:thing", "base:allocation", "base:"], true),
        (&["x-other:thing"], false),
        (&["base:allocations"], false),
        (&["nonsense"], false),
        (&[""], false),
    ];
    let mut talk = Talk::structured();
    for (queries, found) in listed {
        let expected = if *found {
            vec![context(0), DONE]
        } else {
            vec![DONE]
        };
        assert_eq!(
            talk.option(opt::LIST_META_CONTEXT, &meta("disk", queries)),
            expected,
            "{queries:?}"
        );
        let selected = queries.contains(&"base:allocation");
        let expected = if selected {
            vec![context(1), DONE]
        } else {
            vec![DONE]
        };
        assert_eq!(
            talk.option(opt::SET_META_CONTEXT, &meta("disk", queries)),
            expected,
            "{queries:?}"
        );
    }
}

/// What is left of a set `base:allocation` after another option, seen at GO.
fn contexts_after(option: u32, data: &[u8], go_name: &str) -> bool {
    let mut talk = Talk::structured();
    talk.option(opt::SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
    talk.option(option, data);
    talk.option(opt::GO, &go(go_name, &[]));
    !talk.session.unwrap().contexts.is_empty()
}

#[test]
fn h11_every_set_replaces_and_clears_even_when_it_fails() {
    assert!(contexts_after(opt::LIST, &[], "disk"));
    assert!(contexts_after(
        opt::LIST_META_CONTEXT,
        &meta("disk", &["x:y"]),
        "disk"
    ));
    let failing = [
        vec![],
        vec![9; 8192],
        vec![9; 100_000],
        meta("other", &["base:allocation"]),
        meta("disk", &[]),
    ];
    for data in failing {
        assert!(!contexts_after(opt::SET_META_CONTEXT, &data, "disk"));
    }
    assert!(contexts_after(
        opt::SET_META_CONTEXT,
        &meta("disk", &["base:allocation"]),
        "disk"
    ));
}

#[test]
fn h11_contexts_of_another_name_are_dropped_at_go() {
    assert!(!contexts_after(opt::LIST, &[], ""));
    assert!(!contexts_after(
        opt::SET_META_CONTEXT,
        &meta("", &["base:allocation"]),
        "disk"
    ));
    assert!(contexts_after(
        opt::SET_META_CONTEXT,
        &meta("", &["base:allocation"]),
        ""
    ));
}

#[test]
fn h11_unknown_exports_and_bad_lengths_are_told_apart() {
    let mut talk = Talk::structured();
    for option in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        assert_eq!(talk.verdict(option, &meta("other", &[])), rep::ERR_UNKNOWN);
        let mut many = meta("disk", &["base:allocation"]);
        many[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        for data in [&many[..], &many[..20], &[meta("disk", &[]), vec![0]].concat()] {
            assert_eq!(talk.verdict(option, data), rep::ERR_INVALID);
        }
    }
}

#[test]
fn h13_while_draining_options_are_refused_and_abort_is_acknowledged() {
    let mut talk = Talk::structured();
    talk.machine.drain();
    let options = [
        (opt::LIST, vec![]),
        (opt::GO, go("disk", &[])),
        (opt::INFO, go("disk", &[])),
        (opt::STRUCTURED_REPLY, vec![]),
        (opt::SET_META_CONTEXT, meta("disk", &[])),
        (opt::LIST_META_CONTEXT, meta("disk", &[])),
        (77, vec![1, 2, 3]),
    ];
    for (option, data) in options {
        assert_eq!(talk.verdict(option, &data), rep::ERR_SHUTDOWN);
    }
    assert_eq!(talk.option(opt::ABORT, &[]), [DONE]);

    let mut talk = Talk::start(OFFERED);
    talk.machine.drain();
    talk.say(&encoded(opt::EXPORT_NAME, b"disk"));
    assert!(talk.closed.is_some() && talk.out.is_empty());
}

#[test]
fn h13_a_shutdown_during_a_question_refuses_its_answer() {
    let (mut machine, _) = Handshake::new(&Limits::default(), Tls::None);
    let input = [OFFERED.to_be_bytes().to_vec(), encoded(opt::GO, &go("disk", &[]))].concat();
    let Step::Ask(question) = machine.advance(&mut &input[..]) else {
        panic!("GO asks")
    };
    machine.drain();
    let Step::Send(bytes) = machine.answer(catalog(question)) else {
        panic!("a refusal")
    };
    assert_eq!(replies_in(&bytes, opt::GO)[0].0, rep::ERR_SHUTDOWN);
}

#[test]
fn refusals_carry_their_reason() {
    let kinds = [
        (ErrorKind::NotFound, rep::ERR_UNKNOWN),
        (ErrorKind::Refused, rep::ERR_POLICY),
        (ErrorKind::ShuttingDown, rep::ERR_SHUTDOWN),
        (ErrorKind::Io, rep::ERR_UNKNOWN),
    ];
    for (kind, expected) in kinds {
        let (mut machine, _) = Handshake::new(&Limits::default(), Tls::None);
        let input = [OFFERED.to_be_bytes().to_vec(), encoded(opt::GO, &go("disk", &[]))].concat();
        machine.advance(&mut &input[..]);
        let Step::Send(bytes) = machine.answer(Answer::Failed(ServeError::new(kind, "no luck today"))) else {
            panic!("a refusal")
        };
        assert_eq!(
            replies_in(&bytes, opt::GO),
            [(expected, b"no luck today".to_vec())]
        );
    }
}

#[test]
fn n3_options_above_the_limit_are_too_big_and_hold_nothing() {
    let mut talk = Talk::structured();
    for option in [opt::INFO, opt::GO, opt::SET_META_CONTEXT, opt::LIST_META_CONTEXT] {
        assert_eq!(talk.verdict(option, &vec![0; 8193]), rep::ERR_TOO_BIG);
    }
    // 4 GiB announced: nothing is kept while it comes.
    let header = [
        &OPTION_MAGIC.to_be_bytes()[..],
        &opt::GO.to_be_bytes(),
        &[0xff; 4],
    ]
    .concat();
    talk.say(&header);
    talk.say(&vec![0; 1 << 20]);
    assert!(talk.machine.held.is_empty() && talk.out.is_empty() && talk.closed.is_none());
}

#[test]
fn n3_the_number_of_options_is_bounded() {
    let limits = Limits {
        options: 3,
        ..Limits::default()
    };
    let (mut machine, _) = Handshake::new(&limits, Tls::None);
    let input = [OFFERED.to_be_bytes().to_vec(), encoded(99, &[]).repeat(4)].concat();
    let mut rest = &input[..];
    for _ in 0..3 {
        assert!(matches!(machine.advance(&mut rest), Step::Send(_)));
    }
    assert!(matches!(
        machine.advance(&mut rest),
        Step::Close(_, "too many options")
    ));
}

/// Every option in its good form, and some bad ones.
fn repertoire() -> Vec<Vec<u8>> {
    vec![
        encoded(opt::LIST, &[]),
        encoded(opt::LIST, &[1]),
        encoded(opt::INFO, &go("disk", &[1, 2, 3])),
        encoded(opt::INFO, &[0; 5]),
        encoded(opt::GO, &go("other", &[])),
        encoded(opt::STRUCTURED_REPLY, &[]),
        encoded(opt::LIST_META_CONTEXT, &meta("disk", &[])),
        encoded(opt::SET_META_CONTEXT, &meta("disk", &["base:allocation"])),
        encoded(5, &[]),
        encoded(11, &[]),
    ]
}

#[test]
fn n6_options_in_any_order_stay_in_step() {
    let all = repertoire();
    let count = all.len();
    for code in 0..count.pow(4) {
        let said = [
            code % count,
            code / count % count,
            code / count.pow(2) % count,
            code / count.pow(3),
        ];
        let mut talk = Talk::start(OFFERED);
        talk.say(&said.map(|index| &all[index][..]).concat());
        assert_eq!(talk.closed, None);
        talk.out.clear();
        talk.option(opt::GO, &go("disk", &[]));
        let session = talk.session.unwrap();
        let style = match said {
            said if said.contains(&9) => ReplyStyle::Extended,
            said if said.contains(&5) => ReplyStyle::Structured,
            _ => ReplyStyle::Simple,
        };
        assert_eq!(session.style, style, "{said:?}");
        let mut after_chunks = said.into_iter().skip_while(|index| ![5, 9].contains(index));
        assert_eq!(
            !session.contexts.is_empty(),
            after_chunks.any(|index| index == 7),
            "{said:?}"
        );
    }
}

/// A whole handshake and the start of transmission, as a client would send it.
fn recorded() -> Vec<u8> {
    let mut session = OFFERED.to_be_bytes().to_vec();
    repertoire().iter().for_each(|option| session.extend(option));
    session.extend(encoded(opt::GO, &go("disk", &[3])));
    session.extend(b"first request");
    session
}

fn outcome(parts: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
    let mut talk = Talk::silent(Tls::None);
    for part in parts {
        if talk.session.is_some() {
            talk.leftover.extend_from_slice(part);
        } else {
            talk.say(part);
        }
    }
    assert!(talk.session.is_some());
    (talk.out, talk.leftover)
}

#[test]
fn a_session_split_at_every_byte_is_the_same_session() {
    let session = recorded();
    let whole = outcome(&[&session]);
    assert_eq!(whole.1, b"first request");
    for at in 0..=session.len() {
        let (head, tail) = session.split_at(at);
        assert_eq!(outcome(&[head, tail]), whole, "split at {at}");
    }
    let bytes: Vec<&[u8]> = session.chunks(1).collect();
    assert_eq!(outcome(&bytes), whole);
}

proptest! {
    #[test]
    fn garbage_never_panics_and_holds_little(flags in 0_u32..5, bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        Talk::start(flags).say_all(&bytes);
    }

    /// Well-formed headers with arbitrary options, lengths and data go deeper than noise does.
    #[test]
    fn arbitrary_options_never_panic(
        options in prop::collection::vec((0_u32..13, prop::collection::vec(any::<u8>(), 0..64), 0_u32..80), 0..16)
    ) {
        let mut talk = Talk::start(OFFERED);
        for (option, data, length) in options {
            let mut bytes = encoded(option, &data);
            bytes[12..16].copy_from_slice(&length.to_be_bytes());
            talk.say_all(&bytes);
        }
    }

    /// One byte of a good session changed.
    #[test]
    fn a_flipped_byte_never_panics(at in 0_usize..200, value in any::<u8>()) {
        let mut session = recorded();
        let at = at.min(session.len() - 1);
        session[at] = value;
        let mut talk = Talk::start(OFFERED);
        talk.say_all(session.get(4..).unwrap());
    }
}

impl Talk {
    /// Like `say`, but for input that may end the handshake at any point.
    fn say_all(&mut self, bytes: &[u8]) {
        if self.session.is_none() && self.closed.is_none() {
            self.say(bytes);
        }
    }
}
