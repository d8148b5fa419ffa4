//! Requests and replies with extended headers.

use super::*;
use crate::proto::{EXTENDED_REPLY_MAGIC, ExtendedChunkHeader};

pub(super) const LARGE: u64 = 1 << 40;
pub(super) const MOST: u32 = 1 << 20;
pub(super) const PAYLOAD_LEN: u16 = 1 << 5;

/// An export of 1 TiB with three contexts; payloads up to 1 MiB are taken.
pub(super) fn extended(writable: bool) -> Transmission {
    let contexts = [3, 7, 9].map(|id| Context {
        id,
        name: format!("x:{id}"),
    });
    let session = Session {
        size_bytes: LARGE,
        writable,
        style: Extended,
        contexts: contexts.into(),
        ..session(true, false)
    };
    let limits = Limits {
        max_payload_bytes: PAYLOAD,
        max_write_bytes: MOST,
        ..Limits::default()
    };
    Transmission::new(&session, &limits)
}

pub(super) fn request(command: u16, flags: u16, offset: u64, length: u64) -> Vec<u8> {
    let request = ExtendedRequest {
        magic: EXTENDED_REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: command.into(),
        cookie: COOKIE.into(),
        offset: offset.into(),
        length: length.into(),
    };
    request.as_bytes().to_vec()
}

/// The error in an extended reply of one chunk to a request at `offset`, 0 for a success.
pub(super) fn error_in_reply(reply: &[u8], offset: u64) -> u32 {
    let (header, payload) = ExtendedChunkHeader::read_from_prefix(reply).unwrap();
    assert_eq!(header.magic.get(), EXTENDED_REPLY_MAGIC);
    assert_eq!((header.cookie.get(), header.offset.get()), (COOKIE, offset));
    assert_eq!(header.flags.get(), 1, "the only chunk is the last");
    assert_eq!(header.length.get(), payload.len() as u64);
    if header.kind.get() == 0 {
        assert!(payload.is_empty());
        return 0;
    }
    assert_eq!(header.kind.get(), 0x8001);
    let (error, text) = ErrorHead::read_from_prefix(payload).unwrap();
    assert_eq!(usize::from(error.text_length.get()), text.len());
    error.error.get()
}

/// The error with which one request, whose header and payload these are, is answered at once.
pub(super) fn refused(machine: &mut Transmission, bytes: &[u8], offset: u64) -> u32 {
    let events = events(machine, bytes);
    let [Event::Reply(reply)] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(machine.held.is_empty(), "out of step");
    error_in_reply(reply, offset)
}

fn executed(bytes: &[u8]) -> Operation {
    match &events(&mut extended(true), bytes)[..] {
        [Event::Execute(operation)] => operation.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn t2_every_reply_is_extended_and_repeats_cookie_and_offset() {
    let mut machine = extended(true);
    for offset in [0, 1, LARGE, u64::MAX] {
        assert_eq!(refused(&mut machine, &request(99, 0, offset, 0), offset), EINVAL);
        let past = request(cmd::READ, 0, offset, LARGE);
        assert_eq!(refused(&mut machine, &past, offset), EINVAL);
    }
    let nothing = request(cmd::CACHE, 0, LARGE, 0);
    assert_eq!(refused(&mut machine, &nothing, LARGE), 0);
    machine.drain();
    assert_eq!(refused(&mut machine, &request(cmd::READ, 0, 5, 5), 5), ESHUTDOWN);
}

#[test]
fn a_compact_header_is_out_of_step_where_headers_are_extended_and_the_other_way_round() {
    let compact = [super::request(cmd::READ, 0, 0, 1), vec![0; 4]].concat();
    assert!(matches!(
        events(&mut extended(true), &compact)[..],
        [Event::Broken(_)]
    ));
    for structured in [false, true] {
        let found = events(&mut machine(structured, true), &request(cmd::READ, 0, 0, 1));
        assert!(matches!(found[..], [Event::Broken(_)]));
    }
    let mut reserved = request(cmd::READ, 0, 0, 1);
    reserved[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
    assert!(matches!(
        events(&mut extended(true), &reserved)[..],
        [Event::Broken(_)]
    ));
}

#[test]
fn t13_effect_lengths_have_64_bits() {
    for command in [cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE, cmd::BLOCK_STATUS] {
        for length in [LARGE, LARGE - 1, 1 << 32, u64::from(u32::MAX) + 2] {
            let operation = executed(&request(command, 0, LARGE - length, length));
            assert_eq!((operation.offset, operation.length), (LARGE - length, length));
        }
    }
}

#[test]
fn t10_64_bit_ranges_are_checked_without_overflow() {
    let ranges = [
        (0, LARGE + 1),
        (1, LARGE),
        (LARGE, 1),
        (1, u64::MAX),
        (u64::MAX, u64::MAX),
        (u64::MAX, 1),
        (1 << 63, 1 << 63),
    ];
    let mut machine = extended(true);
    let commands = [
        (cmd::READ, EINVAL),
        (cmd::TRIM, EINVAL),
        (cmd::CACHE, EINVAL),
        (cmd::BLOCK_STATUS, EINVAL),
        (cmd::WRITE_ZEROES, 28),
    ];
    for (command, error) in commands {
        for (offset, length) in ranges {
            let bytes = request(command, 0, offset, length);
            assert_eq!(
                refused(&mut machine, &bytes, offset),
                error,
                "{command} {offset} {length}"
            );
        }
    }
}

#[test]
fn payloads_where_none_belongs_are_read_past_and_invalid() {
    for writable in [false, true] {
        let mut machine = extended(writable);
        for command in [
            cmd::READ,
            cmd::FLUSH,
            cmd::TRIM,
            cmd::CACHE,
            cmd::WRITE_ZEROES,
            8,
            99,
        ] {
            for length in [0, 1, 512, u64::from(MOST)] {
                let mut bytes = request(command, PAYLOAD_LEN, 5, length);
                bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 0x21);
                assert_eq!(refused(&mut machine, &bytes, 5), EINVAL, "{command} {length}");
            }
        }
    }
}

#[test]
fn a_payload_longer_than_the_longest_write_ends_the_connection_whatever_it_is_for() {
    for command in [cmd::READ, cmd::WRITE, cmd::BLOCK_STATUS, cmd::FLUSH, 99] {
        for length in [u64::from(MOST) + 1, 1 << 32, u64::MAX] {
            let found = events(&mut extended(true), &request(command, PAYLOAD_LEN, 0, length));
            assert!(
                matches!(found[..], [Event::Broken(_)]),
                "{command} {length}: {found:?}"
            );
        }
    }
}

#[test]
fn t16_disc_ends_it_also_with_a_payload() {
    let disc = request(cmd::DISC, PAYLOAD_LEN, 0, u64::MAX);
    assert_eq!(events(&mut extended(true), &disc), [Event::Disconnect]);
}

#[test]
fn t5_reads_have_the_same_limit_as_elsewhere() {
    let df = executed(&request(cmd::READ, DF, 7, PAYLOAD.into()));
    assert_eq!(df.kind, OperationKind::Read { whole: true });
    let mut machine = extended(true);
    for length in [u64::from(PAYLOAD) + 1, 1 << 32, LARGE] {
        assert_eq!(
            refused(&mut machine, &request(cmd::READ, 0, 0, length), 0),
            EINVAL
        );
    }
}

/// One of everything, ended by DISC.
fn recorded() -> Vec<u8> {
    let filter = [&4096_u64.to_be_bytes()[..], &7_u32.to_be_bytes()].concat();
    [
        request(cmd::READ, 0, 0, 4096),
        request(cmd::TRIM, PAYLOAD_LEN, 0, 5),
        b"12345".to_vec(),
        request(cmd::BLOCK_STATUS, PAYLOAD_LEN, 0, 12),
        filter,
        request(cmd::WRITE, 0, LARGE, 5),
        b"12345".to_vec(),
        request(cmd::BLOCK_STATUS, PAYLOAD_LEN, 1, 13),
        vec![0; 13],
        request(cmd::WRITE_ZEROES, FUA, 0, LARGE),
        request(cmd::WRITE, PAYLOAD_LEN, LARGE, 3),
        b"123".to_vec(),
        request(cmd::FLUSH, 0, 0, 0),
        request(cmd::DISC, 0, 0, 0),
    ]
    .concat()
}

#[test]
fn an_extended_session_split_at_every_byte_is_the_same_session() {
    let session = recorded();
    let whole = events(&mut extended(true), &session);
    assert_eq!(whole.len(), 9, "{whole:?}");
    for at in 0..=session.len() {
        let (head, tail) = session.split_at(at);
        let mut machine = extended(true);
        let mut found = events(&mut machine, head);
        if at < session.len() {
            found.extend(events(&mut machine, tail));
        }
        assert_eq!(found, whole, "split at {at}");
    }
    let mut machine = extended(true);
    let found: Vec<Event> = session
        .chunks(1)
        .flat_map(|byte| events(&mut machine, byte))
        .collect();
    assert_eq!(found, whole);
}
