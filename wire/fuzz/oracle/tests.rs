//! The fuzzers' functions on stable: every file of the corpora, and a fixed number of generated inputs.

use super::*;
use crate::digests::{Digests, Known, Level, Want};
use crate::message::{Begin, Commit, Credit, Hello, Pause, Refusal, Refuse, Upto};
use crate::{Id128, Root};
use std::panic::{AssertUnwindSafe, catch_unwind};
use testkit::Random;
use testkit::corpus::{Corpora, call};

const CORPORA: Corpora = Corpora::of(env!("CARGO_MANIFEST_DIR"));

/// Messages of many kinds.
fn messages() -> Vec<Message> {
    let known = (0..20u8).map(|at| Known {
        digest: [at / 2; 32],
        lost: at % 5 == 0,
    });
    let want = Want {
        disk: 0,
        level: Level::Leaves,
        first: 3,
        count: 20,
    };
    vec![
        Message::Hello(Hello {
            versions: vec![1],
            software: "smc".to_owned(),
            session: Some(Id128([3; 16])),
            lane: Some(2),
        }),
        Message::Refuse(Refuse {
            code: Refusal::Busy,
            text: "later".to_owned(),
            retry_after_s: Some(5),
        }),
        Message::Begin(Begin {
            run: Id128([1; 16]),
            request: serde_json::json!({ "job": "web" }),
            disks: vec![serde_json::json!({ "name": "vda", "size_bytes": 1 << 20 })],
        }),
        put(100),
        Message::Want(want),
        Message::Digests(Digests {
            want,
            known: known.collect(),
        }),
        Message::Commit(Commit {
            run: Id128([1; 16]),
            consistency: "crash".into(),
            reason: "text".to_owned(),
            disks: vec![Root([7; 32])],
        }),
        Message::Received(Upto { seq: 4 }),
        Message::Credit(Credit { bytes: 1 << 20 }),
        Message::Pause(Pause { reason: None }),
        Message::Checkpoint(Nothing {}),
    ]
}

/// All of them, one behind the other.
fn stream() -> Vec<u8> {
    let frames = messages().into_iter().zip(1..);
    frames
        .flat_map(|(message, seq)| message.into_frame(seq).unwrap().encode())
        .collect()
}

/// Some bytes changed, inserted, removed, or doubled.
fn mutate(random: &mut Random, input: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let place = |random: &mut Random, end: usize| usize::try_from(random.below(end as u64)).unwrap();
        let at = place(random, input.len() + 1);
        let len = place(random, 24).min(input.len() - at);
        let byte = random.next_u64().to_le_bytes()[3];
        match random.below(5) {
            0 if at < input.len() => input[at] ^= 1 << (byte % 8),
            1 if at < input.len() => input[at] = byte,
            2 => drop(input.drain(at..at + len)),
            3 => input.insert(at, byte),
            _ => input.extend_from_within(at..at + len),
        }
    }
}

#[test]
fn every_file_of_the_corpora_breaks_no_rule() {
    let size = CORPORA.run(&TARGETS).unwrap();
    assert!(size < 200_000, "{size} bytes");
}

#[test]
fn mutated_messages_break_no_rule_and_many_are_still_read() {
    let mut random = Random::new(1);
    let (whole, mut read) = (stream(), 0);
    for round in 0..3000u32 {
        let mut input = whole.clone();
        mutate(&mut random, &mut input);
        read += cut(&input, 1000, true).0.len();
        call(TARGETS[0], &[&round.to_le_bytes()[..2], &input].concat());
        for message in messages() {
            let which = KINDS
                .iter()
                .position(|(_, kind)| *kind == message.kind())
                .unwrap();
            let mut body = message.into_frame(1).unwrap().body;
            mutate(&mut random, &mut body);
            call(TARGETS[1], &[&[u8::try_from(which).unwrap()], &body[..]].concat());
        }
    }
    assert!(read > 10_000, "no more than {read} frames");
}

#[test]
fn generated_sessions_break_no_rule() {
    let mut random = Random::new(2);
    for _ in 0..300 {
        let length = usize::try_from(random.below(800)).unwrap();
        call(TARGETS[2], &random.bytes(length));
    }
}

/// Something that is wrong has to be found.
#[test]
fn the_oracle_notices_what_is_wrong() {
    let finds = |check: &dyn Fn()| catch_unwind(AssertUnwindSafe(check)).is_err();
    let mut session = Session {
        window: Window::new(CREDIT),
        order: Order::new(CREDIT),
        pushed: 1,
        applied: 0,
        acknowledged: 0,
    };
    assert!(finds(&|| session.check()), "a message that was lost");
    session.window.push(put(1)).unwrap();
    session.check();
    session.applied = 2;
    assert!(finds(&|| session.check()), "a message that was applied twice");
    let long = Frame {
        kind: 1,
        seq: 1,
        body: vec![0; SOURCE_JSON_MAX_BYTES + 1],
    };
    assert!(finds(&|| check_length(&long, true)));
    check_length(&long, false);
}

/// The first inputs, by hand; the fuzzers find the rest.
#[test]
#[ignore = "writes the first files of fuzz/corpus"]
fn write_the_first_corpora() {
    let put = |target: &str, number: usize, bytes: &[u8]| CORPORA.write_first(target, number, bytes).unwrap();
    let mut random = Random::new(7);
    for number in 0..8u8 {
        let mut input = stream();
        if number > 2 {
            mutate(&mut random, &mut input);
        }
        put(
            "frames",
            number.into(),
            &[&[number, number * 31], &input[..]].concat(),
        );
        put("order", number.into(), &random.bytes(300));
    }
    for (number, message) in messages().into_iter().enumerate() {
        let which = KINDS
            .iter()
            .position(|(_, kind)| *kind == message.kind())
            .unwrap();
        let body = message.into_frame(1).unwrap().body;
        put(
            "message",
            number,
            &[&[u8::try_from(which).unwrap()], &body[..]].concat(),
        );
    }
}
