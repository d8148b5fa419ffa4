//! The server without sockets and threads: drives the state machines as `connection.rs` and `link.rs` do, and
//! leaves to the fuzzer what is chance there: how the client's bytes are cut, and which request goes on first.
//!
//! What those two do beside it (memory, slots, time, writes in pieces) is not here; the target that talks to a
//! real server is for that.

use std::sync::Arc;

use crate::buffer::ReplyBuffer;
use crate::connection::consult;
use crate::execute::{self, Execution};
use crate::handshake::{Handshake, Session, Step, Tls};
use crate::link::SHORT_BYTES;
use crate::transmission::{Event, Operation, OperationKind, Transmission};
use crate::{Catalog, Client, Limits};

/// Where a reply of any style has its cookie.
const COOKIE_AT: usize = 8;

enum Phase {
    Handshake(Handshake),
    Transmission(Flow),
    Closed,
}

struct Flow {
    session: Session,
    machine: Transmission,
    pending: Vec<Execution>,
    /// A write whose data has not all come.
    receiving: Option<(Operation, Vec<u8>)>,
}

/// A server's end of one connection.
pub(super) struct Driver<'a> {
    catalog: &'a dyn Catalog,
    limits: &'a Limits,
    phase: Phase,
    draining: bool,
    /// Which request goes on next.
    chance: u64,
    /// All that the client was sent.
    pub(super) sent: Vec<u8>,
}

impl<'a> Driver<'a> {
    /// A connection that has just been accepted.
    pub(super) fn new(catalog: &'a dyn Catalog, limits: &'a Limits, tls: Tls, chance: u64) -> Self {
        let (machine, greeting) = Handshake::new(limits, tls);
        Self {
            catalog,
            limits,
            phase: Phase::Handshake(machine),
            draining: false,
            chance: chance | 1,
            sent: greeting,
        }
    }

    /// Whether the server has closed the connection of its own accord.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// The server is going down.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// What came in one read.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        loop {
            let goes_on = match std::mem::replace(&mut self.phase, Phase::Closed) {
                Phase::Handshake(machine) => self.negotiate(machine, &mut rest),
                Phase::Transmission(flow) => self.transmit(flow, &mut rest),
                Phase::Closed => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// The client says no more: what is in flight is finished.
    pub(super) fn finish(&mut self) {
        if let Phase::Transmission(mut flow) = std::mem::replace(&mut self.phase, Phase::Closed) {
            self.finish_all(&mut flow);
        }
    }

    /// True if there is more to be done now.
    fn negotiate(&mut self, mut machine: Handshake, rest: &mut &[u8]) -> bool {
        if self.draining {
            machine.drain();
        }
        let mut step = machine.advance(rest);
        if let Step::Ask(question) = step {
            step = machine.answer(consult(self.catalog, &Client::Process(0), &question));
        }
        let goes_on = !matches!(step, Step::Read);
        match step {
            Step::Read => assert!(rest.is_empty(), "asks for more without having eaten all"),
            Step::Send(bytes) => self.sent.extend(bytes),
            Step::Encrypt(bytes) => {
                assert!(rest.is_empty(), "begins TLS behind bytes in the clear");
                self.sent.extend(bytes);
            }
            Step::Ask(_) => panic!("asks again"),
            Step::Enter(bytes, session) => {
                self.sent.extend(bytes);
                self.phase = Phase::Transmission(Flow {
                    machine: Transmission::new(&session, self.limits),
                    session,
                    pending: Vec::new(),
                    receiving: None,
                });
                return true;
            }
            Step::Close(bytes, _) => {
                self.sent.extend(bytes);
                return false;
            }
        }
        self.phase = Phase::Handshake(machine);
        goes_on
    }

    fn transmit(&mut self, mut flow: Flow, rest: &mut &[u8]) -> bool {
        if self.draining {
            flow.machine.drain();
        }
        if flow.receiving.is_some() && !self.receive(&mut flow, rest) {
            self.phase = Phase::Transmission(flow);
            return false;
        }
        let goes_on = match flow.machine.advance(rest) {
            Event::Read => {
                assert!(rest.is_empty(), "asks for more without having eaten all");
                false
            }
            Event::Reply(bytes) => {
                let cookie = bytes[COOKIE_AT..COOKIE_AT + 8].try_into().unwrap();
                self.await_cookie(&mut flow, u64::from_be_bytes(cookie));
                self.sent.extend(bytes);
                true
            }
            Event::Execute(operation) => {
                self.start(&mut flow, operation);
                true
            }
            Event::Receive(operation) => {
                flow.receiving = Some((operation, Vec::new()));
                true
            }
            Event::Disconnect | Event::Broken(_) => {
                self.finish_all(&mut flow);
                return false;
            }
        };
        while self.chance().is_multiple_of(3) && !flow.pending.is_empty() {
            self.step_one(&mut flow);
        }
        self.phase = Phase::Transmission(flow);
        goes_on
    }

    /// Takes a write's data; true once it is written.
    fn receive(&mut self, flow: &mut Flow, rest: &mut &[u8]) -> bool {
        let (operation, mut data) = flow.receiving.take().unwrap();
        let length = usize::try_from(operation.length).unwrap();
        let (head, tail) = rest.split_at(rest.len().min(length - data.len()));
        data.extend_from_slice(head);
        *rest = tail;
        if data.len() < length {
            flow.receiving = Some((operation, data));
            return false;
        }
        self.finish_all(flow);
        let export = &flow.session.export;
        let offset = operation.offset;
        let flush = |()| match operation.durable {
            true => export.flush(),
            false => Ok(()),
        };
        let done = execute::guarded(offset, || export.write_at(offset, &data).and_then(flush));
        let style = flow.session.style;
        let reply = execute::conclusion(style, operation.tag(), operation.length, done);
        self.sent.extend(reply);
        true
    }

    /// Begins a request. What changes the disk is done alone, so that there is one truth about what others read.
    fn start(&mut self, flow: &mut Flow, operation: Operation) {
        self.await_cookie(flow, operation.cookie);
        let export = &flow.session.export;
        let style = flow.session.style;
        let is_short = (1..=SHORT_BYTES).contains(&operation.length);
        if matches!(operation.kind, OperationKind::Read { .. }) && is_short {
            let mut out = ReplyBuffer::default();
            if execute::try_read(&**export, style, &operation, &mut out) {
                self.sent.extend_from_slice(out.filled());
                return;
            }
            assert!(out.is_empty(), "leaves something of a read that did not work");
        }
        let changes = matches!(
            operation.kind,
            OperationKind::WriteZeroes(_) | OperationKind::Trim
        );
        if changes {
            self.finish_all(flow);
        }
        let execution = Execution::new(Arc::clone(&flow.session.export), style, operation);
        flow.pending.push(execution);
        if changes {
            self.finish_all(flow);
        }
    }

    /// Cookies that a client uses twice at a time are answered in the order in which they came.
    fn await_cookie(&mut self, flow: &mut Flow, cookie: u64) {
        if flow.pending.iter().any(|one| one.tag().cookie == cookie) {
            self.finish_all(flow);
        }
    }

    fn finish_all(&mut self, flow: &mut Flow) {
        while !flow.pending.is_empty() {
            self.step_one(flow);
        }
    }

    fn step_one(&mut self, flow: &mut Flow) {
        let chosen = usize::try_from(self.chance()).unwrap() % flow.pending.len();
        let execution = &mut flow.pending[chosen];
        let expected = execution.step_bytes();
        let mut out = ReplyBuffer::default();
        execution.step(&mut out);
        assert!(!out.is_empty(), "a step without any result");
        // Headers of many short chunks come on top.
        assert!(
            out.len() <= expected + expected / 4,
            "{} bytes, not {expected}",
            out.len()
        );
        self.sent.extend_from_slice(out.filled());
        if execution.is_finished() {
            flow.pending.remove(chosen);
        }
    }

    fn chance(&mut self) -> u64 {
        // xorshift64
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance >> 8
    }
}
