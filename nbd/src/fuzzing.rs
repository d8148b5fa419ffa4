//! What the fuzzers in `fuzz/` call, and tests on stable with them: each function takes any bytes, and a panic in one
//! is a finding. The server's state machines are driven without sockets ([`driver`]) against exports of which all
//! is known ([`world`]), and a [`referee`] that knows the protocol and a [`model`] of the disks judge each
//! conversation from both sides' bytes.
//!
//! Not part of the crate's interface.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzzer looks for"
)]

mod driver;
mod model;
mod referee;
mod script;
#[cfg(test)]
mod tests;
mod wire;
mod world;

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
use driver::Driver;
use referee::{Conversation, Outcome, judge};
use world::World;

/// A target's name, as in `fuzz/fuzz_targets`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 3] = [("bytes", bytes), ("sequence", sequence), ("server", server)];

/// A server that does not answer for so long hangs.
const PATIENCE: Duration = Duration::from_secs(15);

/// A client that does not listen fills the socket with replies, and then nothing that it says is taken any more. It
/// leaves after so long, well before the server would drop it.
const IMPATIENCE: Duration = Duration::from_millis(100);

/// What a client says, and what else decides how the server fares.
#[derive(Debug, Clone)]
struct Session {
    tls: Tls,
    client: Vec<u8>,
    /// Where the server's reads end.
    cuts: BTreeSet<usize>,
    /// The server is told to go down when it has read so much.
    drained_at: usize,
    /// Which requests go on first.
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

    /// Runs it through the state machines and has it judged. Returns what the server said as well.
    fn run(&self) -> (Vec<u8>, Outcome) {
        let limits = world::limits();
        let mut driver = Driver::new(&World, &limits, self.tls, self.chance);
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
        let outcome = self.judge(&driver.sent, true);
        assert_eq!(closed, outcome.closed, "whether the server closes");
        (driver.sent, outcome)
    }

    fn judge(&self, server: &[u8], ordered: bool) -> Outcome {
        let conversation = Conversation {
            client: &self.client,
            cuts: &self.cuts,
            drained_at: self.drained_at,
            server,
            tls: self.tls,
            ordered,
        };
        judge(&conversation, &world::limits())
    }

    /// Says the first `length` bytes to a real server, in pieces, and then no more; has it judged unless the client
    /// went away without listening.
    fn run_over_socket(&self, length: usize, listens: bool) -> Outcome {
        let (client, stream) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let patience = if listens { PATIENCE } else { IMPATIENCE };
        client.set_write_timeout(Some(patience)).unwrap();
        let mut server = Server::new(Arc::new(World), world::limits()).unwrap();
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
            said.judge(&heard, false)
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
            // The server may have closed for a good reason, of which the referee knows.
            if client.write_all(&self.client[start..end]).is_err() {
                return;
            }
            start = end;
        }
        let _ = client.shutdown(Shutdown::Write);
    }
}

/// Bytes from a client, behind four that say how the server fares.
pub fn bytes(data: &[u8]) {
    if let Some((control, raw)) = data.split_first_chunk() {
        script::raw(*control, raw).run();
    }
}

/// A sequence of options and commands that are good, or nearly.
pub fn sequence(data: &[u8]) {
    script::write(&mut Unstructured::new(data), false).run();
}

/// The same, said to a real server over a socket, perhaps not to the end.
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
