//! A connection's bytes, in the clear or through TLS.

use std::cell::OnceCell;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::sync::Arc;

use crate::driver::Stream;
use crate::tls::{Session, Tls};

/// A connected socket that can begin TLS once.
pub(crate) struct Channel {
    stream: Stream,
    tls: OnceCell<Session>,
}

impl Channel {
    pub(crate) fn new(stream: Stream) -> Self {
        let tls = OnceCell::new();
        Self { stream, tls }
    }

    /// From now on everything is encrypted; nothing may be in flight.
    pub(crate) fn encrypt(&self, tls: &Tls) -> io::Result<()> {
        let again = |_| io::Error::other("TLS is active already");
        self.tls.set(Session::new(tls)?).map_err(again)
    }

    /// Whether everything is encrypted from now on.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.tls.get().is_some()
    }

    /// The certificate that the client has shown.
    pub(crate) fn certificate(&self) -> Option<Arc<[u8]>> {
        self.tls.get()?.certificate()
    }

    /// Reads to `buffer[range]`; 0 at the end of the stream. A call that is dropped takes the
    /// buffer with it, and what has come meanwhile: after that there is nothing more to be read.
    pub(crate) async fn read(
        &self,
        mut buffer: Vec<u8>,
        range: Range<usize>,
    ) -> (io::Result<usize>, Vec<u8>) {
        match self.tls.get() {
            None => self.stream.read(buffer, range).await,
            Some(session) => {
                let target = buffer.get_mut(range).unwrap_or_default();
                (session.read(&self.stream, target).await, buffer)
            }
        }
    }

    /// Writes `buffer[range]` completely.
    pub(crate) async fn write(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<()>, Vec<u8>) {
        match self.tls.get() {
            None => self.stream.write(buffer, range).await,
            Some(session) => {
                let plain = buffer.get(range).unwrap_or_default();
                (session.write(&self.stream, plain).await, buffer)
            }
        }
    }

    /// Writes as much of `bytes` as the socket takes at once, and returns how much that is; nothing
    /// may be in flight. What cannot be written now is for [`write`](Channel::write), which tells
    /// errors as well.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> usize {
        match self.tls.get() {
            None => self.stream.try_send(bytes),
            Some(_) => 0,
        }
    }

    /// Ends the writing side in order.
    pub(crate) async fn finish(&self) {
        if let Some(session) = self.tls.get() {
            // A client that is gone does not need it.
            let _ = session.close(&self.stream).await;
        }
        self.stream.shut_down(Shutdown::Write);
    }

    /// Ends what is in flight, at once.
    pub(crate) fn shut_down(&self) {
        self.stream.shut_down(Shutdown::Both);
    }
}
