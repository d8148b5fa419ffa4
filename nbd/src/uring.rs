//! The only module that touches tokio-uring: a ring on the current thread, tasks on it, and
//! sockets. A successor takes its place here.
//!
//! Buffers are handed to the ring by value and come back with the completion; a future that is
//! dropped leaves its buffer and its socket with the ring until then. So a socket is closed only
//! when nothing of it is in flight, and to end an operation one shuts the socket down.

use std::future::Future;
use std::io;
use std::net::Shutdown;

use tokio::task::JoinHandle;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpStream, UnixStream};

use crate::listen::Accepted;

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
    pub(crate) fn new(accepted: Accepted) -> Self {
        match accepted {
            Accepted::Unix(stream) => Self::Unix(UnixStream::from_std(stream)),
            Accepted::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream)),
        }
    }

    /// Reads into `buffer` from its start; 0 bytes at the end of the stream.
    pub(crate) async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Unix(stream) => stream.read(buffer).await,
            Self::Tcp(stream) => stream.read(buffer).await,
        }
    }

    /// Writes `buffer[start..end]` completely.
    pub(crate) async fn write(&self, buffer: Vec<u8>, start: usize, end: usize) -> (io::Result<()>, Vec<u8>) {
        let slice = buffer.slice(start..end);
        let (result, slice) = match self {
            Self::Unix(stream) => stream.write_all(slice).await,
            Self::Tcp(stream) => stream.write_all(slice).await,
        };
        (result, slice.into_inner())
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
