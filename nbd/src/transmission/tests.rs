//! The transmission phase's MUSTs, named as in docs/nbd.md, on bytes alone.

use std::sync::Arc;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::proto::{ChunkHeader, ErrorHead, SimpleReply};
use crate::{Export, ExportError, Extent};

mod extended;
mod filters;
mod writing;

use ReplyStyle::{Extended, Simple, Structured};

const SIZE: u64 = (1 << 20) + 100;
const PAYLOAD: u32 = 64 << 10;
const COOKIE: u64 = 0x0123_4567_89ab_cdef;

struct Nothing;

impl Export for Nothing {
    fn size_bytes(&self) -> u64 {
        SIZE
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), ExportError> {
        unreachable!("the machine does no I/O")
    }
    fn extents(&self, _: u64, _: u64) -> Result<Vec<Extent>, ExportError> {
        unreachable!("the machine does no I/O")
    }
}

fn session(structured: bool, block_status: bool) -> Session {
    let allocation = Context {
        id: 1,
        name: "base:allocation".into(),
    };
    Session {
        name: String::new(),
        export: Arc::new(Nothing),
        size_bytes: SIZE,
        writable: false,
        style: if structured { Structured } else { Simple },
        contexts: block_status.then_some(allocation).into_iter().collect(),
    }
}

fn start(session: &Session) -> Transmission {
    let limits = Limits {
        max_payload_bytes: PAYLOAD,
        ..Limits::default()
    };
    Transmission::new(session, &limits)
}

fn machine(structured: bool, block_status: bool) -> Transmission {
    start(&session(structured, block_status))
}

fn request(command: u16, flags: u16, offset: u64, length: u32) -> Vec<u8> {
    let request = Request {
        magic: REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: command.into(),
        cookie: COOKIE.into(),
        offset: offset.into(),
        length: length.into(),
    };
    request.as_bytes().to_vec()
}

/// All events until the machine wants more input or is over. The data of a write is taken away, as
/// far as it is there.
fn events(machine: &mut Transmission, mut input: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        match machine.advance(&mut input) {
            Event::Read => return events,
            end @ (Event::Disconnect | Event::Broken(_)) => {
                events.push(end);
                return events;
            }
            event => {
                if let Event::Receive(write) = &event {
                    let length = usize::try_from(write.length).unwrap();
                    input = input.get(length..).unwrap_or_default();
                }
                events.push(event);
            }
        }
    }
}

/// The error in a reply, 0 for a success; checks that it has the negotiated form.
fn error_in(reply: &[u8], structured: bool) -> u32 {
    if !structured {
        let simple = SimpleReply::read_from_bytes(reply).unwrap();
        assert_eq!((simple.magic.get(), simple.cookie.get()), (0x6744_6698, COOKIE));
        return simple.error.get();
    }
    let (header, payload) = ChunkHeader::read_from_prefix(reply).unwrap();
    assert_eq!((header.magic.get(), header.cookie.get()), (0x668e_33ef, COOKIE));
    assert_eq!(header.flags.get(), 1, "the only chunk is the last");
    assert_eq!(header.length.get() as usize, payload.len());
    match header.kind.get() {
        0 => 0,
        kind => {
            assert_eq!(kind, 0x8001);
            let (error, text) = ErrorHead::read_from_prefix(payload).unwrap();
            assert_eq!(usize::from(error.text_length.get()), text.len());
            error.error.get()
        }
    }
}

/// The error with which one request is answered at once, in both styles.
fn verdict(command: u16, flags: u16, offset: u64, length: u32) -> u32 {
    let verdicts = [false, true].map(|structured| {
        let mut machine = machine(structured, structured);
        let mut input = request(command, flags, offset, length);
        if command == cmd::WRITE {
            input.resize(input.len() + length as usize, 0xee);
        }
        let events = events(&mut machine, &input);
        let [Event::Reply(reply)] = &events[..] else {
            panic!("{events:?}")
        };
        assert!(machine.held.is_empty(), "in step and still connected");
        error_in(reply, structured)
    });
    assert_eq!(verdicts[0], verdicts[1]);
    verdicts[0]
}

fn operation(structured: bool, bytes: &[u8]) -> Operation {
    match &events(&mut machine(structured, true), bytes)[..] {
        [Event::Execute(operation)] => operation.clone(),
        other => panic!("{other:?}"),
    }
}

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ESHUTDOWN: u32 = 108;
const FUA: u16 = 1;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;

#[test]
fn t1_the_cookie_is_passed_on_verbatim() {
    assert_eq!(operation(true, &request(cmd::READ, 0, 5, 7)).cookie, COOKIE);
    // Every reply's is checked in `error_in`.
    assert_eq!(verdict(cmd::FLUSH, 0, 0, 0), 0);
}

#[test]
fn t2_early_errors_keep_to_the_negotiated_style() {
    // `verdict` parses the reply as chunk or as simple reply, by what was negotiated.
    assert_eq!(verdict(cmd::READ, 0, SIZE, 1), EINVAL);
    assert_eq!(verdict(cmd::READ, 0, 0, PAYLOAD + 1), EINVAL);
}

#[test]
fn t5_df_reads_in_one_piece_and_needs_structured_replies() {
    assert_eq!(
        operation(true, &request(cmd::READ, DF, 0, 65536)).kind,
        OperationKind::Read { whole: true }
    );
    assert_eq!(
        operation(true, &request(cmd::READ, 0, 0, 65536)).kind,
        OperationKind::Read { whole: false }
    );
    assert_eq!(
        operation(false, &request(cmd::READ, 0, 0, 65536)).kind,
        OperationKind::Read { whole: true }
    );
    let replies = events(&mut machine(false, false), &request(cmd::READ, DF, 0, 512));
    assert!(matches!(&replies[..], [Event::Reply(reply)] if error_in(reply, false) == EINVAL));
}

#[test]
fn t6_block_status_needs_a_context_a_length_and_a_range() {
    let whole = operation(true, &request(cmd::BLOCK_STATUS, REQ_ONE, 100, 1 << 20));
    assert!(matches!(whole.kind, OperationKind::BlockStatus { one: true, .. }));
    let replies = events(&mut machine(true, false), &request(cmd::BLOCK_STATUS, 0, 0, 512));
    assert!(matches!(&replies[..], [Event::Reply(reply)] if error_in(reply, true) == EINVAL));
    assert_eq!(verdict(cmd::BLOCK_STATUS, 0, SIZE - 1, 2), EINVAL);
    assert_eq!(verdict(cmd::BLOCK_STATUS, 0, 0, u32::MAX), EINVAL);
    assert_eq!(verdict(cmd::BLOCK_STATUS, 0, 0, 0), EINVAL);
}

#[test]
fn t8_fua_is_accepted_on_every_command() {
    assert_eq!(verdict(cmd::FLUSH, FUA, 0, 0), 0);
    operation(true, &request(cmd::CACHE, FUA, 0, 4096));
    assert_eq!(verdict(cmd::WRITE, FUA, 0, 512), EPERM);
    assert_eq!(verdict(cmd::TRIM, FUA, 0, 512), EPERM);
    operation(true, &request(cmd::READ, FUA, 0, 512));
    operation(true, &request(cmd::BLOCK_STATUS, FUA, 0, 512));
}

#[test]
fn t10_ranges_are_checked_without_overflow() {
    for command in [cmd::READ, cmd::CACHE, cmd::BLOCK_STATUS] {
        for (offset, length) in [
            (SIZE, 1),
            (SIZE - 1, 2),
            (u64::MAX, 1),
            (u64::MAX - 511, 512),
            (1 << 63, 9),
        ] {
            assert_eq!(
                verdict(command, 0, offset, length),
                EINVAL,
                "{command} {offset} {length}"
            );
        }
    }
    operation(true, &request(cmd::READ, 0, SIZE - 1, 1));
}

#[test]
fn t10_writing_of_any_kind_is_refused_as_not_permitted() {
    for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
        assert_eq!(verdict(command, 0, 0, 512), EPERM);
        assert_eq!(verdict(command, 0, u64::MAX, 512), EPERM);
        assert_eq!(verdict(command, 0, 0, 0), EPERM);
    }
    assert_eq!(verdict(cmd::WRITE_ZEROES, 2, 0, 512), EPERM);
}

#[test]
fn t10_unknown_commands_and_misplaced_flags_are_invalid() {
    for command in [8, 9, 255, u16::MAX] {
        assert_eq!(verdict(command, 0, 0, 0), EINVAL);
    }
    for (command, legal) in [
        (cmd::READ, FUA | DF),
        (cmd::WRITE, FUA),
        (cmd::FLUSH, FUA),
        (cmd::TRIM, FUA),
        (cmd::CACHE, FUA),
        (cmd::WRITE_ZEROES, FUA | 2),
        (cmd::BLOCK_STATUS, FUA | REQ_ONE),
    ] {
        for flag in (0..16).map(|bit| 1_u16 << bit).filter(|flag| legal & flag == 0) {
            let length = if command == cmd::FLUSH { 0 } else { 512 };
            assert_eq!(
                verdict(command, flag, 0, length),
                EINVAL,
                "{command} with flag {flag}"
            );
        }
    }
    assert_eq!(verdict(cmd::FLUSH, 0, 1, 0), EINVAL);
}

#[test]
fn t10_zero_lengths_do_not_disconnect() {
    assert_eq!(operation(true, &request(cmd::READ, 0, SIZE, 0)).length, 0);
    assert_eq!(verdict(cmd::CACHE, 0, SIZE, 0), 0);
    assert_eq!(verdict(cmd::READ, 0, SIZE + 1, 0), EINVAL);
}

#[test]
fn t11_t12_a_refused_writes_payload_is_read_past_and_never_held() {
    let mut machine = machine(true, false);
    let mut input = request(cmd::WRITE, 0, u64::MAX, u32::MAX);
    assert_eq!(events(&mut machine, &input), []);
    input = vec![0x25; 1 << 20];
    for _ in 0..4095 {
        assert_eq!(events(&mut machine, &input), []);
    }
    // Two bytes more than are left: they belong to the next request.
    let last = events(&mut machine, &input);
    assert!(
        matches!(&last[..], [Event::Reply(reply)] if error_in(reply, true) == EPERM),
        "{last:?}"
    );
    assert_eq!(machine.held.len(), 1);
}

#[test]
fn t13_commands_without_payload_may_be_4_gib_long() {
    let session = Session {
        size_bytes: 1 << 40,
        ..session(true, true)
    };
    let mut machine = start(&session);
    let events = events(
        &mut machine,
        &[
            request(cmd::CACHE, 0, 1, u32::MAX),
            request(cmd::BLOCK_STATUS, 0, 3, u32::MAX),
        ]
        .concat(),
    );
    let [Event::Execute(cache), Event::Execute(status)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((cache.offset, cache.length), (1, u32::MAX.into()));
    assert_eq!((status.offset, status.length), (3, u32::MAX.into()));
}

#[test]
fn t16_disc_ends_it_whatever_else_it_carries() {
    for (flags, offset, length) in [(0, 0, 0), (0xffff, 7, 7)] {
        let mut machine = machine(true, true);
        let mut input = request(cmd::DISC, flags, offset, length);
        input.extend(request(cmd::FLUSH, 0, 0, 0));
        assert_eq!(events(&mut machine, &input), [Event::Disconnect]);
    }
}

#[test]
fn t17_while_draining_every_request_is_refused() {
    for structured in [false, true] {
        let mut machine = machine(structured, true);
        machine.drain();
        for command in [cmd::READ, cmd::FLUSH, cmd::BLOCK_STATUS, cmd::CACHE, 99] {
            let events = events(&mut machine, &request(command, 0, 0, 512));
            assert!(matches!(&events[..], [Event::Reply(reply)] if error_in(reply, structured) == ESHUTDOWN));
        }
        let write = [
            request(cmd::WRITE, 0, 0, 512),
            vec![0; 512],
            request(cmd::DISC, 0, 0, 0),
        ]
        .concat();
        assert!(matches!(
            &events(&mut machine, &write)[..],
            [Event::Reply(_), Event::Disconnect]
        ));
    }
}

#[test]
fn reserved_and_wrong_magics_are_out_of_step() {
    for magic in [
        0_u32,
        0x1256_0953,
        0x9674_4668,
        0x2560_9514,
        0x21e4_1c71,
        0x6744_6698,
    ] {
        let mut bytes = request(cmd::READ, 0, 0, 1);
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        let events = events(&mut machine(true, true), &bytes);
        assert!(matches!(events[..], [Event::Broken(_)]), "{events:?}");
    }
}

/// One of everything, ended by DISC.
fn recorded() -> Vec<u8> {
    [
        request(cmd::READ, 0, 0, 4096),
        request(cmd::WRITE, 0, 0, 5),
        b"12345".to_vec(),
        request(cmd::BLOCK_STATUS, REQ_ONE, 0, 4096),
        request(cmd::CACHE, 0, 0, 9),
        request(77, 0, 0, 9),
        request(cmd::WRITE, 0xffff, 0, 0),
        request(cmd::FLUSH, 0, 0, 0),
        request(cmd::READ, DF, 1, 1),
        request(cmd::DISC, 0, 0, 0),
    ]
    .concat()
}

#[test]
fn a_session_split_at_every_byte_is_the_same_session() {
    let session = recorded();
    let whole = events(&mut machine(true, true), &session);
    assert_eq!(whole.len(), 9);
    for at in 0..=session.len() {
        let (head, tail) = session.split_at(at);
        let mut machine = machine(true, true);
        let mut found = events(&mut machine, head);
        if at < session.len() {
            found.extend(events(&mut machine, tail));
        }
        assert_eq!(found, whole, "split at {at}");
    }
}

/// Whatever is handed out to be executed lies within the export and the limits.
fn check_events(found: &[Event], size: u64) {
    for event in found {
        if let Event::Execute(operation) | Event::Receive(operation) = event {
            assert!(operation.offset.checked_add(operation.length).unwrap() <= size);
            let is_read = matches!(operation.kind, OperationKind::Read { .. });
            assert!(!is_read || operation.length <= PAYLOAD.into());
            let is_write = operation.kind == OperationKind::Write;
            assert_eq!(is_write, matches!(event, Event::Receive(_)));
            assert!(!is_write || operation.length <= Limits::default().max_write_bytes.into());
            let may_be_empty = is_read || operation.kind == OperationKind::Flush;
            assert!(may_be_empty || operation.length > 0);
        }
    }
}

fn any_session() -> impl Strategy<Value = Session> {
    let styles = prop::sample::select(vec![Simple, Structured, Extended]);
    (styles, any::<bool>()).prop_map(|(style, writable)| Session {
        style,
        writable,
        ..session(style.has_chunks(), style.has_chunks())
    })
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, writable: {}", self.style, self.writable)
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(session in any_session(), bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        check_events(&events(&mut start(&session), &bytes), SIZE);
    }

    #[test]
    fn arbitrary_requests_yield_only_valid_operations(
        session in any_session(),
        requests in prop::collection::vec((0_u16..10, 0_u16..64, any::<u64>(), any::<u64>(), 0_u8..4), 0..32)
    ) {
        let mut machine = start(&session);
        for (command, flags, offset, length, near) in requests {
            // Mostly near the borders, where mistakes are.
            let offset = if near > 0 { SIZE.wrapping_sub(offset % 1024) } else { offset };
            let length = if near > 1 { length % 2048 } else { length };
            let bytes = if session.style == Extended {
                extended::request(command, flags, offset, length)
            } else {
                request(command, flags, offset, u32::try_from(length & 0xffff_ffff).unwrap())
            };
            check_events(&events(&mut machine, &bytes), SIZE);
        }
    }
}
