//! Bytes from a client that no state machine has eaten yet.

use std::rc::Rc;

use crate::buffer::ReplyBuffer;
use crate::channel::Channel;

const INPUT_BYTES: usize = 64 << 10;

/// What a client has sent.
pub(crate) struct Input {
    channel: Rc<Channel>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Why TLS ended.
    refused: Option<std::io::Error>,
}

impl Input {
    pub(crate) fn new(channel: Rc<Channel>) -> Self {
        Self {
            channel,
            buffer: vec![0; INPUT_BYTES],
            start: 0,
            end: 0,
            refused: None,
        }
    }

    /// Why TLS ended, where it did not end in order.
    pub(crate) fn refused(&self) -> Option<&std::io::Error> {
        self.refused.as_ref()
    }

    /// Lets a state machine eat from the front.
    pub(crate) fn feed<T>(&mut self, eat: impl FnOnce(&mut &[u8]) -> T) -> T {
        let mut rest = self.buffer.get(self.start..self.end).unwrap_or_default();
        let result = eat(&mut rest);
        self.start = self.end - rest.len();
        result
    }

    /// Waits for more, once all is eaten; false at the end of the stream. A call that is dropped
    /// takes the buffer with it: after that there is nothing more to be read.
    pub(crate) async fn fill(&mut self) -> bool {
        let buffer = std::mem::take(&mut self.buffer);
        let length = buffer.len();
        let (result, buffer) = self.channel.read(buffer, 0..length).await;
        self.buffer = buffer;
        (self.start, self.end) = (0, *result.as_ref().unwrap_or(&0));
        match result {
            Ok(count) => count > 0,
            Err(error) => {
                tracing::debug!("cannot read from a client: {error}");
                self.refused = Some(error).filter(|error| error.kind() == std::io::ErrorKind::InvalidData);
                false
            }
        }
    }

    /// Takes `count` bytes to the end of `target`, from the socket straight to where they are
    /// wanted; `None` if the stream ends before.
    pub(crate) async fn take(&mut self, count: usize, mut target: ReplyBuffer) -> Option<ReplyBuffer> {
        let here = count.min(self.end - self.start);
        target.push(self.buffer.get(self.start..self.start + here).unwrap_or_default());
        self.start += here;
        let mut filled = target.len();
        target.grow(count - here);
        let (mut bytes, used) = target.into_parts();
        while filled < used {
            let (result, back) = self.channel.read(bytes, filled..used).await;
            bytes = back;
            match result {
                Ok(more @ 1..) => filled += more,
                _ => return None,
            }
        }
        Some(ReplyBuffer::of_parts(bytes, used))
    }
}
