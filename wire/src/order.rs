//! The target's side of the order.

use crate::error::{Error, Result};
use crate::frame::Frame;
use std::collections::BTreeMap;

/// A numbered message whose turn has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its number.
    pub seq: u64,
    /// The message.
    pub frame: Frame,
}

/// Puts what comes by several connections, early, late and twice, into order. It holds what is early: no more than the credit that the
/// source has, and one message.
#[derive(Debug)]
pub struct Order {
    early: BTreeMap<u64, Frame>,
    early_bytes: u64,
    most_bytes: u64,
    next: u64,
}

impl Order {
    /// An order for a source that has so much credit.
    pub fn new(credit_bytes: u64) -> Order {
        Order {
            early: BTreeMap::new(),
            early_bytes: 0,
            most_bytes: credit_bytes + crate::frame::JSON_MAX_BYTES as u64,
            next: 1,
        }
    }

    /// Takes a numbered message from any connection. One that came before is ignored.
    ///
    /// # Errors
    /// `Malformed` without a number; `TooMuch` when the source has sent more than it had credit for.
    pub fn push(&mut self, frame: Frame) -> Result<()> {
        let seq = frame.seq;
        if seq == 0 {
            return Err(Error::malformed("a message has no number that needs one"));
        }
        if seq < self.next || self.early.contains_key(&seq) {
            return Ok(());
        }
        if self.early_bytes + frame.cost_bytes() > self.most_bytes {
            return Err(Error::too_much(
                "the source has sent more than it may have under way",
            ));
        }
        self.early_bytes += frame.cost_bytes();
        self.early.insert(seq, frame);
        Ok(())
    }

    /// The next message, if it has come.
    pub fn take(&mut self) -> Option<Taken> {
        let (seq, frame) = self.early.remove_entry(&self.next)?;
        self.early_bytes -= frame.cost_bytes();
        self.next += 1;
        Some(Taken { seq, frame })
    }

    /// Whether the next message has come.
    pub fn has_next(&self) -> bool {
        self.early.contains_key(&self.next)
    }

    /// What is held counts so many bytes of the credit.
    pub fn held_bytes(&self) -> u64 {
        self.early_bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::ErrorKind;
    use crate::Window;
    use crate::message::{Message, Nothing};
    use crate::{Frames, Piece, PutBuilder};
    use proptest::prelude::*;

    fn frame(seq: u64, length: usize) -> Frame {
        Frame {
            kind: 64,
            seq,
            body: vec![0; length],
        }
    }

    #[test]
    fn messages_come_once_and_in_order() {
        let mut order = Order::new(1 << 20);
        let mut seen = Vec::new();
        for seq in [3, 1, 1, 2, 5, 3, 2, 5, 4, 1] {
            order.push(frame(seq, 10)).unwrap();
            seen.extend(std::iter::from_fn(|| order.take()).map(|taken| taken.seq));
        }
        assert_eq!(seen, [1, 2, 3, 4, 5]);
        assert_eq!(order.held_bytes(), 0);
        assert!(order.push(frame(0, 10)).is_err());
    }

    #[test]
    fn a_source_that_sends_more_than_it_may_is_refused() {
        let mut order = Order::new(1 << 20);
        let long = crate::frame::BINARY_MAX_BYTES;
        let refused = (2..100).find_map(|seq| order.push(frame(seq, long)).err());
        assert_eq!(refused.unwrap().kind(), ErrorKind::TooMuch);
        assert!(order.held_bytes() <= (1 << 20) + (4 << 20));
    }

    /// What happens to a session.
    #[derive(Debug, Clone)]
    enum Step {
        /// The source has another message.
        Push(bool),
        /// A connection takes a message and the target gets it.
        Carry(u32),
        /// A connection takes a message, and is lost before or after the target gets it.
        Lose(u32, bool),
        /// The target says how far it has come.
        Acknowledge,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<bool>().prop_map(Step::Push),
            (0..4u32).prop_map(Step::Carry),
            (0..4u32, any::<bool>()).prop_map(|(lane, arrives)| Step::Lose(lane, arrives)),
            Just(Step::Acknowledge),
        ]
    }

    fn message(is_put: bool) -> Message {
        if !is_put {
            return Message::Checkpoint(Nothing {});
        }
        let mut builder = PutBuilder::default();
        let piece = Piece {
            cluster: 1,
            codec: 2,
            digest: [1; 32],
            stored: &[1; 100],
        };
        builder.push(0, &piece);
        Message::Put(builder.take().unwrap().unwrap())
    }

    fn deliver(order: &mut Order, applied: &mut Vec<u64>, bytes: &[u8]) {
        let mut frames = Frames::default();
        frames.feed(bytes);
        while let Some(frame) = frames.next_frame().unwrap() {
            order.push(frame).unwrap();
        }
        applied.extend(std::iter::from_fn(|| order.take()).map(|taken| taken.seq));
    }

    proptest! {
        #[test]
        fn whatever_connections_do_every_message_is_applied_once_and_in_order(steps in proptest::collection::vec(step(), 1..200)) {
            let (mut window, mut order) = (Window::new(1000), Order::new(1000));
            let mut applied = Vec::new();
            let mut pushed = 0;
            for step in steps {
                match step {
                    Step::Push(is_put) if window.has_room() => {
                        pushed += 1;
                        assert_eq!(window.push(message(is_put)).unwrap(), pushed);
                    }
                    Step::Push(_) => {}
                    Step::Carry(lane) => {
                        if let Some(sent) = window.next_for(lane, true) {
                            deliver(&mut order, &mut applied, &sent.bytes);
                        }
                    }
                    Step::Lose(lane, arrives) => {
                        let sent = window.next_for(lane, true);
                        if let Some(sent) = sent.filter(|_| arrives) {
                            deliver(&mut order, &mut applied, &sent.bytes);
                        }
                        window.lost(lane);
                    }
                    Step::Acknowledge => {
                        if let Some(last) = applied.last() {
                            window.received(*last).unwrap();
                        }
                    }
                }
            }
            // The connections come back.
            (0..4).for_each(|lane| window.lost(lane));
            while let Some(sent) = window.next_for(0, true) {
                deliver(&mut order, &mut applied, &sent.bytes);
            }
            prop_assert_eq!(applied, (1..=pushed).collect::<Vec<_>>());
        }
    }
}
