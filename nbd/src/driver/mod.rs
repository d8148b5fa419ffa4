//! What drives the tasks and sockets of a worker thread: an io_uring, or epoll where there is none.
//!
//! Buffers are handed over by value and come back with the result; on a ring, a future that is dropped leaves its buffer
//! and its socket with the ring until the completion. So a socket is closed only when nothing of it is in flight, and to
//! end an operation one shuts the socket down.

mod epoll;
mod uring;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::RawFd;

use nix::sys::socket::{self, MsgFlags, send};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::listen::Socket;

thread_local! {
    /// Whether this thread has a ring.
    static HAS_RING: Cell<bool> = const { Cell::new(false) };
}

/// Makes a ring for this thread if `io_uring` allows it and the kernel gives one, or an event loop; says that it is
/// `ready`, and drives `future` to its end. Fails without running it if the kernel gives neither.
pub(crate) fn block_on<F: Future>(io_uring: bool, ready: impl FnOnce(), future: F) -> io::Result<F::Output> {
    match io_uring.then(uring::runtime) {
        Some(Ok(ring)) => {
            HAS_RING.set(true);
            ready();
            return Ok(ring.block_on(future));
        }
        Some(Err(error)) => {
            tracing::debug!(%error, "the kernel refuses an io_uring; waiting by epoll instead")
        }
        None => {}
    }
    let event_loop = epoll::runtime()?;
    ready();
    Ok(LocalSet::new().block_on(&event_loop, future))
}

/// Runs a task on this thread. Its panic is caught and found in the handle.
pub(crate) fn spawn<F: Future + 'static>(future: F) -> JoinHandle<F::Output> {
    spawn_local(future)
}

/// A connected socket on this thread's ring or event loop.
pub(crate) enum Stream {
    Uring(uring::Stream),
    Epoll(epoll::Stream),
}

impl Stream {
    /// The socket must be in blocking mode: a ring does the waiting itself. Fails when the kernel cannot watch it.
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        if HAS_RING.get() {
            Ok(Self::Uring(uring::Stream::new(socket)))
        } else {
            epoll::Stream::new(socket).map(Self::Epoll)
        }
    }

    /// Reads to `buffer[range]`; 0 bytes at the end of the stream.
    pub(crate) async fn read(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Uring(stream) => stream.read(buffer, range).await,
            Self::Epoll(stream) => stream.read(buffer, range).await,
        }
    }

    /// Writes `buffer[range]` completely.
    pub(crate) async fn write(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Uring(stream) => stream.write(buffer, range).await,
            Self::Epoll(stream) => stream.write(buffer, range).await,
        }
    }

    /// Writes what the socket takes without waiting, past the driver: a short reply needs no
    /// second way through it. 0 on any error.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> usize {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.as_raw_fd(), bytes, flags).unwrap_or(0)
    }

    /// Ends what is in flight in the given directions. A socket that the peer has already closed
    /// needs no ending.
    pub(crate) fn shut_down(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => socket::Shutdown::Read,
            Shutdown::Write => socket::Shutdown::Write,
            Shutdown::Both => socket::Shutdown::Both,
        };
        let _ = socket::shutdown(self.as_raw_fd(), how);
    }

    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Uring(stream) => stream.as_raw_fd(),
            Self::Epoll(stream) => stream.as_raw_fd(),
        }
    }
}
