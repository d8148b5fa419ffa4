//! Commands that write, in all three styles.

use super::extended::{self, PAYLOAD_LEN, error_in_reply};
use super::*;

const ENOSPC: u32 = 28;
const NO_HOLE: u16 = 2;
const FAST_ZERO: u16 = 16;
const MOST: u32 = 1 << 20;
const STYLES: [ReplyStyle; 3] = [Simple, Structured, Extended];

fn writable(style: ReplyStyle) -> Transmission {
    let session = Session {
        style,
        writable: true,
        ..session(style.has_chunks(), style.has_chunks())
    };
    let limits = Limits {
        max_payload_bytes: PAYLOAD,
        max_write_bytes: MOST,
        ..Limits::default()
    };
    Transmission::new(&session, &limits)
}

/// A request in a style, with the payload of a write and what announces it.
fn sent(style: ReplyStyle, command: u16, flags: u16, offset: u64, length: u32) -> Vec<u8> {
    let writes = command == cmd::WRITE;
    let mut bytes = if style == Extended {
        let announced = if writes { PAYLOAD_LEN } else { 0 };
        extended::request(command, flags | announced, offset, length.into())
    } else {
        request(command, flags, offset, length)
    };
    if writes {
        bytes.resize(bytes.len() + length as usize, 0x25);
    }
    bytes
}

/// The error with which a request is answered at once: the same in all styles.
fn verdict(command: u16, flags: u16, offset: u64, length: u32) -> u32 {
    let errors = STYLES.map(|style| {
        let mut machine = writable(style);
        let events = events(&mut machine, &sent(style, command, flags, offset, length));
        let [Event::Reply(reply)] = &events[..] else {
            panic!("{style:?}: {events:?}")
        };
        assert!(machine.held.is_empty(), "out of step");
        match style {
            Extended => error_in_reply(reply, offset),
            _ => error_in(reply, style == Structured),
        }
    });
    assert_eq!(errors, [errors[0]; 3]);
    errors[0]
}

/// The operation that a request becomes: the same in all styles.
fn accepted(command: u16, flags: u16, offset: u64, length: u32) -> Operation {
    let operations = STYLES.map(|style| {
        let mut machine = writable(style);
        let found = events(&mut machine, &sent(style, command, flags, offset, length));
        assert!(machine.held.is_empty(), "out of step");
        match (&found[..], command) {
            ([Event::Receive(operation)], cmd::WRITE) => operation.clone(),
            ([Event::Execute(operation)], _) if command != cmd::WRITE => operation.clone(),
            _ => panic!("{style:?}: {found:?}"),
        }
    });
    assert_eq!(operations[0], operations[1]);
    assert_eq!(operations[1], operations[2]);
    let operation = operations[0].clone();
    assert_eq!((operation.cookie, operation.offset), (COOKIE, offset));
    assert_eq!(operation.length, u64::from(length));
    operation
}

#[test]
fn writing_commands_become_operations_with_their_flags() {
    for flags in [0, FUA] {
        let durable = flags == FUA;
        for (command, kind) in [
            (cmd::WRITE, OperationKind::Write),
            (cmd::TRIM, OperationKind::Trim),
        ] {
            let operation = accepted(command, flags, 3, 77);
            assert_eq!((operation.kind, operation.durable), (kind, durable));
        }
        for (extra, no_hole, fast) in [
            (0, false, false),
            (NO_HOLE, true, false),
            (FAST_ZERO, false, true),
            (NO_HOLE | FAST_ZERO, true, true),
        ] {
            let operation = accepted(cmd::WRITE_ZEROES, flags | extra, 3, 77);
            let kind = OperationKind::WriteZeroes(Zeroing { no_hole, fast });
            assert_eq!((operation.kind, operation.durable), (kind, durable));
        }
    }
    assert_eq!(accepted(cmd::FLUSH, FUA, 0, 0).kind, OperationKind::Flush);
}

#[test]
fn t10_writes_past_the_end_have_no_space_and_trims_are_invalid() {
    for (offset, length) in [
        (SIZE, 1),
        (SIZE - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (1 << 63, 9),
    ] {
        assert_eq!(
            verdict(cmd::WRITE, 0, offset, length),
            ENOSPC,
            "{offset} {length}"
        );
        assert_eq!(verdict(cmd::WRITE_ZEROES, 0, offset, length), ENOSPC);
        assert_eq!(verdict(cmd::TRIM, 0, offset, length), EINVAL);
    }
    for command in [cmd::WRITE, cmd::WRITE_ZEROES, cmd::TRIM] {
        accepted(command, 0, SIZE - 512, 512);
    }
}

#[test]
fn t10_zero_lengths_of_every_command_are_survived() {
    for command in [cmd::WRITE, cmd::WRITE_ZEROES, cmd::TRIM, cmd::CACHE] {
        for offset in [0, 5, SIZE] {
            assert_eq!(verdict(command, FUA, offset, 0), 0, "{command} at {offset}");
        }
        let beyond = verdict(command, 0, SIZE + 1, 0);
        assert_eq!(
            beyond,
            if [cmd::WRITE, cmd::WRITE_ZEROES].contains(&command) {
                ENOSPC
            } else {
                EINVAL
            }
        );
    }
    for style in STYLES {
        let found = events(&mut writable(style), &sent(style, cmd::READ, 0, SIZE, 0));
        assert!(
            matches!(&found[..], [Event::Execute(read)] if read.length == 0),
            "{found:?}"
        );
    }
}

#[test]
fn t10_flags_of_other_commands_are_invalid_and_payloads_read_past() {
    for (command, legal) in [
        (cmd::WRITE, FUA | PAYLOAD_LEN),
        (cmd::TRIM, FUA | PAYLOAD_LEN),
        (cmd::FLUSH, FUA | PAYLOAD_LEN),
        (cmd::CACHE, FUA | PAYLOAD_LEN),
        (cmd::WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO | PAYLOAD_LEN),
    ] {
        for flag in (0..16).map(|bit| 1_u16 << bit).filter(|flag| legal & flag == 0) {
            let length = if command == cmd::FLUSH { 0 } else { 512 };
            assert_eq!(verdict(command, flag, 0, length), EINVAL, "{command} with {flag}");
        }
    }
}

#[test]
fn compact_requests_know_no_payload_flag() {
    for style in [Simple, Structured] {
        for command in [
            cmd::READ,
            cmd::WRITE,
            cmd::TRIM,
            cmd::CACHE,
            cmd::WRITE_ZEROES,
            cmd::BLOCK_STATUS,
        ] {
            let mut machine = writable(style);
            let found = events(&mut machine, &sent(style, command, PAYLOAD_LEN, 0, 512));
            let [Event::Reply(reply)] = &found[..] else {
                panic!("{found:?}")
            };
            assert_eq!(error_in(reply, style == Structured), EINVAL, "{command}");
            assert!(machine.held.is_empty(), "out of step after {command}");
        }
    }
}

#[test]
fn a_write_without_the_payload_flag_is_taken_with_its_payload() {
    let bytes = extended::request(cmd::WRITE, 0, 0, 512);
    let mut input = &bytes[..];
    let found = writable(Extended).advance(&mut input);
    assert!(
        matches!(&found, Event::Receive(operation) if operation.length == 512),
        "{found:?}"
    );
    // One that is refused is read past.
    let mut bytes = extended::request(cmd::WRITE, 0, SIZE, 5);
    bytes.extend(b"12345");
    bytes.extend(extended::request(cmd::DISC, 0, 0, 0));
    let found = events(&mut writable(Extended), &bytes);
    let [Event::Reply(reply), Event::Disconnect] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(error_in_reply(reply, SIZE), ENOSPC);
}

#[test]
fn t12_a_write_longer_than_is_taken_is_read_past_and_never_held() {
    assert_eq!(accepted(cmd::WRITE, 0, 0, MOST).length, u64::from(MOST));
    for style in [Simple, Structured] {
        let mut machine = writable(style);
        assert_eq!(events(&mut machine, &request(cmd::WRITE, 0, 0, u32::MAX)), []);
        let mut left = u64::from(u32::MAX);
        let junk = vec![0x25; 1 << 20];
        while left > junk.len() as u64 {
            assert_eq!(events(&mut machine, &junk), []);
            assert!(machine.held.is_empty());
            left -= junk.len() as u64;
        }
        let found = events(&mut machine, &junk[..usize::try_from(left).unwrap()]);
        assert!(
            matches!(&found[..], [Event::Reply(reply)] if error_in(reply, style == Structured) == EINVAL)
        );
    }
}

#[test]
fn t11_a_write_out_of_range_is_read_past_in_parts() {
    for style in STYLES {
        let bytes = [
            sent(style, cmd::WRITE, 0, SIZE, 300),
            sent(style, cmd::DISC, 0, 0, 0),
        ]
        .concat();
        let mut machine = writable(style);
        let found: Vec<Event> = bytes
            .chunks(7)
            .flat_map(|part| events(&mut machine, part))
            .collect();
        assert!(
            matches!(&found[..], [Event::Reply(_), Event::Disconnect]),
            "{found:?}"
        );
    }
}

#[test]
fn t10_a_read_only_export_permits_no_writing_in_any_style() {
    for style in STYLES {
        let session = Session {
            style,
            ..session(style.has_chunks(), false)
        };
        for (command, offset) in [
            (cmd::WRITE, 0),
            (cmd::WRITE, SIZE),
            (cmd::TRIM, 0),
            (cmd::WRITE_ZEROES, SIZE),
        ] {
            let found = events(&mut start(&session), &sent(style, command, FUA, offset, 512));
            let [Event::Reply(reply)] = &found[..] else {
                panic!("{found:?}")
            };
            let error = match style {
                Extended => error_in_reply(reply, offset),
                _ => error_in(reply, style == Structured),
            };
            assert_eq!(error, EPERM, "{style:?} {command}");
        }
    }
}

#[test]
fn t17_while_draining_writes_are_read_past_and_refused() {
    for style in STYLES {
        let mut machine = writable(style);
        machine.drain();
        for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES, cmd::FLUSH] {
            let length = if command == cmd::FLUSH { 0 } else { 512 };
            let found = events(&mut machine, &sent(style, command, 0, 0, length));
            let [Event::Reply(reply)] = &found[..] else {
                panic!("{found:?}")
            };
            let error = match style {
                Extended => error_in_reply(reply, 0),
                _ => error_in(reply, style == Structured),
            };
            assert_eq!(error, ESHUTDOWN);
        }
    }
}
