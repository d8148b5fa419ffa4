//! The only module that touches tokio-uring: a ring on the current thread, and sockets on it. A successor takes its
//! place here.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpStream, UnixStream};

use crate::listen::Socket;

/// A ring for this thread.
pub(super) fn runtime() -> io::Result<tokio_uring::Runtime> {
    tokio_uring::Runtime::new(&tokio_uring::builder())
}

/// A connected socket on this thread's ring.
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// The socket must be in blocking mode: the ring does the waiting.
    pub(super) fn new(socket: Socket) -> Self {
        match socket {
            Socket::Unix(stream) => Self::Unix(UnixStream::from_std(stream)),
            Socket::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream)),
        }
    }

    /// Reads to `buffer[range]`; 0 bytes at the end of the stream.
    pub(super) async fn read(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<usize>, Vec<u8>) {
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
    pub(super) async fn write(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<()>, Vec<u8>) {
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

    pub(super) fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(stream) => stream.as_raw_fd(),
            Self::Tcp(stream) => stream.as_raw_fd(),
        }
    }
}
