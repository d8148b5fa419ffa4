//! A worker thread and its sockets without an io_uring: tokio's event loop, which waits by epoll.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;

use crate::listen::Socket;

/// An event loop for this thread.
pub(super) fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A connected socket that this thread's event loop watches.
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Fails when the kernel cannot watch the socket.
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Self::Unix(UnixStream::from_std(stream)?)
            }
            Socket::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                Self::Tcp(TcpStream::from_std(stream)?)
            }
        })
    }

    /// Reads to `buffer[range]`; 0 bytes at the end of the stream.
    pub(super) async fn read(
        &self,
        mut buffer: Vec<u8>,
        range: Range<usize>,
    ) -> (io::Result<usize>, Vec<u8>) {
        let target = buffer.get_mut(range).unwrap_or_default();
        let result = self.read_to(target).await;
        (result, buffer)
    }

    async fn read_to(&self, target: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_read(target)
                }
                Self::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_read(target)
                }
            };
            if !is_too_early(&read) {
                return read;
            }
        }
    }

    /// Writes `buffer[range]` completely.
    pub(super) async fn write(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<()>, Vec<u8>) {
        let result = self.write_all(buffer.get(range).unwrap_or_default()).await;
        (result, buffer)
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(stream) => stream.as_raw_fd(),
            Self::Tcp(stream) => stream.as_raw_fd(),
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Unix(stream) => {
                    stream.writable().await?;
                    stream.try_write(bytes)
                }
                Self::Tcp(stream) => {
                    stream.writable().await?;
                    stream.try_write(bytes)
                }
            };
            if is_too_early(&written) {
                continue;
            }
            match written? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => bytes = bytes.get(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }
}

/// Whether the socket was not ready after all.
fn is_too_early(result: &io::Result<usize>) -> bool {
    let early = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        )
    };
    result.as_ref().is_err_and(early)
}
