//! Frames over a connection.

use crate::error::{Error, Result};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use wire::{Frame, Frames, Message};

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;

/// A connection from which TLS reads: rustls asks for 4 KiB at a time, which would be a system call each.
pub fn buffered<S: AsyncRead>(stream: S) -> BufReader<S> {
    BufReader::with_capacity(READ_BYTES, stream)
}

/// Reads frames.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    frames: Frames,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// What comes by `inner`.
    pub fn new(inner: R) -> Reader<R> {
        Reader {
            inner,
            frames: Frames::default(),
            buffer: vec![0; READ_BYTES],
        }
    }

    /// What comes from a source by `inner`.
    pub fn of_source(inner: R) -> Reader<R> {
        Reader {
            frames: Frames::of_source(),
            ..Reader::new(inner)
        }
    }

    /// The next frame; `None` at the end of the connection.
    ///
    /// # Errors
    /// `InvalidData` for what is no frame, `UnexpectedEof` for an end within one; those of the connection.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let found = self.frames.next_frame();
            if let Some(frame) = found.map_err(invalid)? {
                return Ok(Some(frame));
            }
            let count = self.inner.read(&mut self.buffer).await?;
            if count == 0 {
                return match self.frames.is_between() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            self.frames.feed(&self.buffer[..count]);
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// As [`next`](Self::next), and for a frame that says nothing that the protocol knows.
    pub async fn message(&mut self) -> io::Result<Option<(u64, Message)>> {
        let Some(frame) = self.next().await? else {
            return Ok(None);
        };
        let seq = frame.seq;
        Ok(Some((seq, Message::from_frame(frame).map_err(invalid)?)))
    }
}

fn invalid(error: wire::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Sends one message.
///
/// # Errors
/// Those of the connection; a message that does not fit into a frame.
pub async fn send<W: AsyncWrite + Unpin>(writer: &mut W, seq: u64, message: Message) -> io::Result<()> {
    let frame = message.into_frame(seq).map_err(invalid)?;
    writer.write_all(&frame.encode()).await?;
    writer.flush().await
}

/// What the target says first on a connection, or why there is none.
pub(crate) fn lost(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData => {
            Error::untrue(format!("the target does not keep to the protocol: {error}"))
        }
        _ => Error::unreachable(format!("the connection to the target was lost: {error}")),
    }
}

/// As [`lost`], for results.
pub(crate) fn or_lost<T>(result: io::Result<T>) -> Result<T> {
    result.map_err(|error| lost(&error))
}
