//! The oracle of the fuzzers in `fuzz_targets/`. Each public function takes any bytes; a panic in one is a finding.
//!
//! It is a module of the crate `wire` (`src/lib.rs` names this path), compiled for tests and for the fuzzers only. `tests.rs` runs a
//! short version of every target in the suite.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzzer looks for"
)]

#[cfg(test)]
mod tests;

use crate::frame::{BINARY_MAX_BYTES, JSON_MAX_BYTES, SOURCE_JSON_MAX_BYTES};
use crate::message::{KINDS, Nothing};
use crate::put::FULL_BYTES;
use crate::{Frame, Frames, Message, Order, Piece, PutBuilder, Window};

/// A target's name, as in `fuzz/fuzz_targets`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 3] = [("frames", frames), ("message", message), ("order", order)];

/// What comes by a connection, in pieces of any length: behind a byte that says who sends it, and one that says how long the pieces are.
pub fn frames(data: &[u8]) {
    let [who, step, stream @ ..] = data else { return };
    let is_source = who % 2 == 0;
    let whole = cut(stream, stream.len(), is_source);
    let pieces = cut(stream, usize::from(*step), is_source);
    assert_eq!(whole, pieces, "the frames depend on how they were cut");
    let (found, is_broken) = whole;
    let again: Vec<u8> = found.iter().flat_map(Frame::encode).collect();
    assert!(stream.starts_with(&again), "frames are not what came");
    let rest = &stream[again.len()..];
    assert!(
        is_broken || rest.len() < 16 + JSON_MAX_BYTES,
        "a frame is not found"
    );
    for frame in found {
        check_length(&frame, is_source);
        check_message(&frame);
    }
}

/// All frames of a stream, and whether it ends in something that is none.
fn cut(stream: &[u8], step: usize, is_source: bool) -> (Vec<Frame>, bool) {
    let mut cutter = if is_source {
        Frames::of_source()
    } else {
        Frames::default()
    };
    let mut found = Vec::new();
    for piece in stream.chunks(step.max(1)) {
        cutter.feed(piece);
        loop {
            match cutter.next_frame() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
    }
    (found, false)
}

fn check_length(frame: &Frame, is_source: bool) {
    let most = match (frame.kind < 64, is_source) {
        (true, true) => SOURCE_JSON_MAX_BYTES,
        (true, false) => JSON_MAX_BYTES,
        (false, _) => BINARY_MAX_BYTES,
    };
    assert!(frame.body.len() <= most);
}

/// The body of a message, behind a byte that says which one.
pub fn message(data: &[u8]) {
    let Some((which, body)) = data.split_first() else {
        return;
    };
    let (_, kind) = KINDS[usize::from(*which) % KINDS.len()];
    check_message(&Frame {
        kind,
        seq: 1,
        body: body.to_vec(),
    });
}

/// What is read is written so that it is read as the same; the binary messages byte for byte.
fn check_message(frame: &Frame) {
    let Ok(read) = Message::from_frame(frame.clone()) else {
        return;
    };
    assert_eq!(read.kind(), frame.kind);
    if let Message::Put(put) = &read {
        let pieces: Vec<_> = put.pieces().collect();
        assert!(pieces.is_sorted_by(|a, b| a.cluster < b.cluster) && !pieces.is_empty());
        let stored: usize = pieces.iter().map(|piece| piece.stored.len()).sum();
        assert_eq!(stored + 8 + 48 * pieces.len(), frame.body.len());
    }
    if let Message::Digests(digests) = &read {
        assert_eq!(digests.known.len(), digests.want.count as usize);
    }
    let written = read.clone().into_frame(frame.seq);
    let Ok(written) = written else {
        // JSON that is written with more signs than it was read with: only at the very limit.
        assert!(frame.kind < 64 && frame.body.len() > JSON_MAX_BYTES / 8);
        return;
    };
    if frame.kind >= 64 {
        assert_eq!(written, *frame);
    }
    assert_eq!(Message::from_frame(written).unwrap(), read);
}

const CREDIT: u64 = 4096;

/// A source and a target that keep to the rules for as long as the bytes say, over connections that do what they like, and then strangers.
pub fn order(data: &[u8]) {
    let mut session = Session {
        window: Window::new(CREDIT),
        order: Order::new(CREDIT),
        pushed: 0,
        applied: 0,
        acknowledged: 0,
    };
    for step in data.chunks_exact(2) {
        session.step(step[0], step[1]);
        session.check();
    }
    session.end();
}

struct Session {
    window: Window,
    order: Order,
    /// Number of the last message that was pushed, that was applied, and that the source knows to be applied.
    pushed: u64,
    applied: u64,
    acknowledged: u64,
}

impl Session {
    fn step(&mut self, what: u8, how: u8) {
        let lane = u32::from(how % 5);
        match what % 8 {
            0 | 1 if self.window.has_room() => self.push(how),
            2 | 3 => self.carry(lane, true),
            4 => {
                // Given to a connection that is lost before or after it arrives.
                self.carry(lane, how >= 128);
                self.window.lost(lane);
            }
            5 => self.acknowledge(u64::from(how)),
            6 => self.stray(how),
            7 => self.window.set_credit(u64::from(how) * 64),
            _ => {}
        }
    }

    fn push(&mut self, how: u8) {
        self.pushed += 1;
        let message = match how % 3 {
            0 => Message::Checkpoint(Nothing {}),
            _ => put(usize::from(how) * 8),
        };
        assert_eq!(self.window.push(message).unwrap(), self.pushed);
    }

    /// A connection takes a message; it may arrive.
    fn carry(&mut self, lane: u32, arrives: bool) {
        let Some(sent) = self.window.next_for(lane, lane % 2 == 1) else {
            return;
        };
        assert!(
            !sent.is_control || lane == 0,
            "only the control connection has that"
        );
        assert!(sent.seq > self.acknowledged && sent.seq <= self.pushed);
        if arrives {
            let mut frames = Frames::of_source();
            frames.feed(&sent.bytes);
            self.order.push(frames.next_frame().unwrap().unwrap()).unwrap();
        }
        self.apply();
    }

    fn apply(&mut self) {
        while let Some(taken) = self.order.take() {
            self.applied += 1;
            assert_eq!(taken.seq, self.applied);
            assert!(Message::from_frame(taken.frame).is_ok());
        }
    }

    /// The target says how far it has come, or something that cannot be.
    fn acknowledge(&mut self, back: u64) {
        if back < 200 {
            let seq = self.applied.saturating_sub(back % 3);
            self.window.received(seq).unwrap();
            self.acknowledged = self.acknowledged.max(seq);
        } else {
            assert!(self.window.received(self.pushed + back).is_err());
        }
    }

    /// A message that came before comes once more, or one without a number.
    fn stray(&mut self, how: u8) {
        let seq = self.applied.saturating_sub(u64::from(how));
        let frame = Frame {
            kind: 64,
            seq,
            body: vec![how; 9],
        };
        assert_eq!(self.order.push(frame).is_ok(), seq > 0);
    }

    fn check(&self) {
        let most = CREDIT.max(255 * 64) + FULL_BYTES as u64;
        assert!(self.window.held_bytes() <= most);
        assert_eq!(self.window.last_seq(), self.pushed);
        assert_eq!(self.window.received_seq(), self.acknowledged);
        assert!(self.acknowledged <= self.applied && self.applied <= self.pushed);
    }

    /// All connections come back: everything arrives. Then the source sends whatever it likes: what is held stays within bounds.
    fn end(mut self) {
        (0..5).for_each(|lane| self.window.lost(lane));
        for _ in 0..=self.pushed {
            self.carry(0, true);
            self.carry(1, true);
        }
        assert_eq!(self.applied, self.pushed, "something never comes");
        let most = CREDIT + JSON_MAX_BYTES as u64;
        let refused = (2..).find_map(|ahead| {
            let frame = Frame {
                kind: 64,
                seq: self.pushed + ahead,
                body: vec![0; BINARY_MAX_BYTES],
            };
            let refused = self.order.push(frame).err();
            assert!(self.order.held_bytes() <= most);
            refused
        });
        assert_eq!(refused.unwrap().kind(), crate::ErrorKind::TooMuch);
    }
}

fn put(bytes: usize) -> Message {
    let mut builder = PutBuilder::default();
    let piece = Piece {
        cluster: 7,
        codec: 1,
        digest: [1; 32],
        stored: &vec![3; bytes],
    };
    builder.push(0, &piece);
    Message::Put(builder.take().unwrap().unwrap())
}
