//! The only module that touches tokio-uring: a ring on the current thread, tasks on it, and
//! sockets. A successor takes its place here.
//!
//! Buffers are handed to the ring by value and come back with the completion; a future that is
//! dropped leaves its buffer and its socket with the ring until then. So a socket is closed only
//! when nothing of it is in flight, and to end an operation one shuts the socket down.

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, send};
use tokio::task::JoinHandle;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpStream, UnixStream};

use crate::listen::Socket;

/// Makes a ring for this thread, says so, and drives `future` on it to its end. Fails without
/// running it if the kernel gives out no ring.
pub(crate) fn block_on<F: Future>(ready: impl FnOnce(), future: F) -> io::Result<F::Output> {
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder())?;
    ready();
    Ok(runtime.block_on(future))
}

/// Runs a task on this thread's ring. Its panic is caught and found in the handle.
pub(crate) fn spawn<F: Future + 'static>(future: F) -> JoinHandle<F::Output> {
    tokio_uring::spawn(future)
}

/// A connected socket on this thread's ring.
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// The socket must be in blocking mode: the ring does the waiting.
    pub(crate) fn new(socket: Socket) -> Self {
        match socket {
            Socket::Unix(stream) => Self::Unix(UnixStream::from_std(stream)),
            Socket::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream)),
        }
    }

    /// Reads to `buffer[range]`; 0 bytes at the end of the stream.
    pub(crate) async fn read(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<usize>, Vec<u8>) {
        // The library knows no slice of nothing.
        if range.is_empty() {
            return (Ok(0), buffer);
        }
        let slice = buffer.slice(range);
        let (result, slice) = match self {
            Self::Unix(stream) => stream.read(slice).await,
            Self::Tcp(stream) => stream.read(slice).await,
        };
        (result, slice.into_inner())
    }

    /// Writes `buffer[range]` completely.
    pub(crate) async fn write(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<()>, Vec<u8>) {
        if range.is_empty() {
            return (Ok(()), buffer);
        }
        let slice = buffer.slice(range);
        let (result, slice) = match self {
            Self::Unix(stream) => stream.write_all(slice).await,
            Self::Tcp(stream) => stream.write_all(slice).await,
        };
        (result, slice.into_inner())
    }

    /// Writes what the socket takes without waiting, without the ring: a short reply needs no
    /// second way through it. 0 on any error.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> usize {
        let socket = match self {
            Self::Unix(stream) => stream.as_raw_fd(),
            Self::Tcp(stream) => stream.as_raw_fd(),
        };
        send(socket, bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).unwrap_or(0)
    }

    /// Ends what is in flight in the given directions. A socket that the peer has already closed
    /// needs no ending.
    pub(crate) fn shut_down(&self, how: Shutdown) {
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
    }
}
