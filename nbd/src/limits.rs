//! Bounds on what clients can make the server do.

use std::time::Duration;

use crate::{ErrorKind, ServeError};

/// Bounds on what clients can make the server do. [`Default`] suits a machine that has other
/// work to do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time from accepting a connection to the end of its handshake; then it is dropped.
    pub handshake: Duration,
    /// Connections at a time of clients that have shown who they are; one more is closed. A Unix socket's mode has
    /// said it when they connect, TLS when they have shown a certificate; on TCP without it, opening an export counts.
    pub connections: usize,
    /// Connections at a time of clients that have not yet, beside those; a new one ends the one that has waited longest.
    pub handshakes: usize,
    /// How many of these may come from one IPv4 address, or from one /64 network of IPv6 addresses.
    pub handshakes_per_address: usize,
    /// Requests of one connection at a time; further ones wait in the socket.
    pub in_flight: usize,
    /// The longest read, as advertised in the block sizes, which clients take for the longest
    /// write too; at least 64 KiB.
    pub max_payload_bytes: u32,
    /// The longest write that is taken, in pieces; some clients do not look at the advertised
    /// maximum. A longer one is read past and refused, or ends the connection where headers are
    /// extended.
    pub max_write_bytes: u32,
    /// The longest option that is parsed; a longer one is read past and refused.
    pub option_bytes: u32,
    /// Options in one handshake; one more ends the connection.
    pub options: u32,
    /// Bytes of replies and writes held for all connections together; at least `max_payload_bytes`.
    pub memory_bytes: usize,
    /// Bytes of replies and writes held for one connection; at least `max_payload_bytes`.
    pub connection_memory_bytes: usize,
    /// How long a client may take to accept 1 MiB of reply, or to send 1 MiB of what it writes, or
    /// what is left of one, before it is dropped.
    pub stall: Duration,
    /// How long requests in flight get to finish on shutdown.
    pub grace: Duration,
    /// Threads that drive connections, each with its own ring or event loop.
    pub workers: usize,
    /// Whether connections may use an io_uring. Without one, and where the kernel refuses it, they wait by epoll.
    pub io_uring: bool,
    /// Threads on which the catalog and its exports are called.
    pub io_threads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            handshake: Duration::from_secs(10),
            connections: 128,
            handshakes: 128,
            handshakes_per_address: 32,
            in_flight: 64,
            max_payload_bytes: 32 << 20,
            max_write_bytes: 64 << 20,
            option_bytes: 64 << 10,
            options: 16 << 10,
            memory_bytes: 512 << 20,
            connection_memory_bytes: 64 << 20,
            stall: Duration::from_secs(30),
            grace: Duration::from_secs(5),
            workers: cores,
            io_uring: true,
            io_threads: (2 * cores).max(8),
        }
    }
}

impl Limits {
    pub(crate) fn bounds(&self) -> admission::Bounds {
        admission::Bounds {
            connections: self.connections,
            handshakes: self.handshakes,
            handshakes_per_network: self.handshakes_per_address,
        }
    }

    /// Refuses values with which no client could be served.
    pub(crate) fn check(&self) -> Result<(), ServeError> {
        let payload = self.max_payload_bytes as usize;
        let rules = [
            (self.connections > 0, "connections must be at least 1"),
            (self.handshakes > 0, "handshakes must be at least 1"),
            (
                self.handshakes_per_address > 0,
                "handshakes_per_address must be at least 1",
            ),
            (self.in_flight > 0, "in_flight must be at least 1"),
            (self.workers > 0, "workers must be at least 1"),
            (self.io_threads > 0, "io_threads must be at least 1"),
            (payload >= 64 << 10, "max_payload_bytes must be at least 65536"),
            (
                self.max_write_bytes >= self.max_payload_bytes,
                "max_write_bytes must be at least max_payload_bytes",
            ),
            (self.option_bytes >= 8 << 10, "option_bytes must be at least 8192"),
            (
                self.memory_bytes >= payload,
                "memory_bytes must be at least max_payload_bytes",
            ),
            (
                self.connection_memory_bytes >= payload,
                "connection_memory_bytes must be at least max_payload_bytes",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, rule)) => Err(ServeError::new(
                ErrorKind::InvalidInput,
                format!("these limits cannot work: {rule}"),
            )),
        }
    }
}
