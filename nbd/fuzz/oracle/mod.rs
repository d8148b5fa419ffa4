//! The oracle of the fuzzers in `fuzz_targets/`. Each public function takes any bytes; a panic in one is a finding.
//!
//! A [`script`] makes a client's side of a conversation from the bytes. The server's state machines are driven without
//! sockets ([`driver`]) against [`exports`] whose contents are known. Then [`conversation`] reads both sides' bytes by
//! the protocol's rules, with a [`model`] of the disks, and panics where the server broke one.
//!
//! It is a module of the crate `nbd` (`src/lib.rs` names this path), because the driver needs the state machines; it is
//! compiled for tests and for the fuzzers only. `tests` runs a short version of every target in the suite.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzzer looks for"
)]

mod conversation;
mod driver;
mod exports;
mod model;
mod script;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arbitrary::Unstructured;

use crate::Server;
use crate::handshake::Tls;
use conversation::{Conversation, Outcome, check};
use driver::Driver;
use exports::Exports;

/// A target's name, as in `fuzz/fuzz_targets`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 3] = [("bytes", bytes), ("sequence", sequence), ("server", server)];

/// A server that sends nothing for this long hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A client that does not listen fills the socket with replies; then the server takes nothing more from it. It leaves
/// after this time, well before the server would drop it.
const IMPATIENCE: Duration = Duration::from_millis(100);

/// What a client sends, and what else decides what the server does.
#[derive(Debug, Clone)]
struct Session {
    tls: Tls,
    client: Vec<u8>,
    /// Where the server's reads end.
    cuts: BTreeSet<usize>,
    /// The server starts to shut down when it has read this many bytes.
    drained_at: usize,
    /// Seed of the order in which requests continue.
    chance: u64,
}

impl Session {
    fn of(client: Vec<u8>) -> Self {
        Self {
            tls: Tls::None,
            client,
            cuts: BTreeSet::new(),
            drained_at: usize::MAX,
            chance: 1,
        }
    }

    /// Runs it through the state machines and checks it. Returns what the server sent as well.
    fn run(&self) -> (Vec<u8>, Outcome) {
        let limits = exports::limits();
        let mut driver = Driver::new(&Exports, &limits, self.tls, self.chance);
        let length = self.client.len();
        let ends = self
            .cuts
            .iter()
            .copied()
            .filter(|cut| *cut < length)
            .chain([length]);
        let mut start = 0;
        for end in ends {
            if start >= self.drained_at {
                driver.drain();
            }
            driver.feed(&self.client[start..end]);
            start = end;
        }
        let closed = driver.is_closed();
        driver.finish();
        let outcome = self.check(&driver.sent, true);
        assert_eq!(closed, outcome.closed, "whether the server closes");
        (driver.sent, outcome)
    }

    fn check(&self, server: &[u8], ordered: bool) -> Outcome {
        let conversation = Conversation {
            client: &self.client,
            cuts: &self.cuts,
            drained_at: self.drained_at,
            server,
            tls: self.tls,
            ordered,
        };
        check(&conversation, &exports::limits())
    }

    /// Says the first `length` bytes to a real server, in pieces, and then no more; checks the conversation unless
    /// the client went away without listening.
    fn run_over_socket(&self, length: usize, listens: bool) -> Outcome {
        let (client, stream) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let patience = if listens { PATIENCE } else { IMPATIENCE };
        client.set_write_timeout(Some(patience)).unwrap();
        let mut server = Server::new(Arc::new(Exports), exports::limits()).unwrap();
        server.connect(stream);
        let running = thread::spawn(move || server.run());
        let said = Self {
            client: self.client[..length].to_vec(),
            ..self.clone()
        };
        let heard = if listens {
            said.converse(&client)
        } else {
            said.say(&client);
            Vec::new()
        };
        drop(client);
        running.join().unwrap().unwrap();
        if listens {
            said.check(&heard, false)
        } else {
            Outcome::default()
        }
    }

    /// Says everything, piece by piece, while another thread listens to the end.
    fn converse(&self, mut client: &UnixStream) -> Vec<u8> {
        thread::scope(|scope| {
            scope.spawn(|| self.say(client));
            let mut heard = Vec::new();
            match client.read_to_end(&mut heard) {
                Ok(_) => {}
                // The server closed with some of the client's bytes unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => panic!("the server hangs: {error}"),
            }
            heard
        })
    }

    fn say(&self, mut client: &UnixStream) {
        let length = self.client.len();
        let ends = self
            .cuts
            .iter()
            .copied()
            .filter(|cut| *cut < length)
            .chain([length]);
        let mut start = 0;
        for end in ends {
            // The server may have closed for a good reason, which the check allows for.
            if client.write_all(&self.client[start..end]).is_err() {
                return;
            }
            start = end;
        }
        let _ = client.shutdown(Shutdown::Write);
    }
}

/// Bytes from a client, behind four that decide what the server does.
pub fn bytes(data: &[u8]) {
    if let Some((control, raw)) = data.split_first_chunk() {
        script::raw(*control, raw).run();
    }
}

/// A sequence of options and commands that are good, or nearly.
pub fn sequence(data: &[u8]) {
    script::write(&mut Unstructured::new(data), false).run();
}

/// The same, sent to a real server over a socket, perhaps not to the end.
pub fn server(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (cut, listens) = script::end(&mut input);
    let session = script::write(&mut input, true);
    let length = session.client.len();
    let length = if cut == u16::MAX {
        length
    } else {
        usize::from(cut) % (length + 1)
    };
    session.run_over_socket(length, listens);
}
