//! One connection in the transmission phase: takes requests, executes them in parallel, and writes
//! their replies in the order in which they are ready.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::buffer::{ReplyBuffer, Spares};
use crate::channel::Channel;
use crate::execute::{self, Execution};
use crate::handshake::Session;
use crate::input::Input;
use crate::proto::Errno;
use crate::readahead::ReadAhead;
use crate::reply::ReplyStyle;
use crate::shared::{Shared, Stage};
use crate::transmission::{Event, Operation, OperationKind, Transmission};
use crate::{Export, ExportError, driver};

/// One write's worth: what must get through within [`Limits::stall`](crate::Limits::stall).
const WRITE_BYTES: usize = 1 << 20;
/// A write's data is taken and handed on in pieces of this length.
const PIECE_BYTES: u64 = 1 << 20;
/// Replies that were ready at once are sent together, up to about this many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// Reads up to this length are tried without a thread.
pub(crate) const SHORT_BYTES: u64 = 256 << 10;
/// What a batch may hold: it is sent once it is full, after one more reply.
const BATCH_ROOM: usize = BATCH_BYTES + (260 << 10);
/// How long a connection without requests stays open on shutdown, to answer late ones.
const LINGER: Duration = Duration::from_millis(200);
/// How long a client has to take its last replies once the grace time is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Memory that was granted: of the connection's share, and of what all connections share or of what is reserved for this
/// one.
type Grant = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What every connection has for itself, however much others hold: without it, clients that never read their replies would
/// starve the others. Enough for each step of a request, or for a request of 256 KiB, which is what most clients send, with
/// its headers.
const RESERVED_BYTES: usize = execute::STEP_BYTES + execute::HEADER_ROOM;

/// Bytes to send, and the memory they were granted.
struct Outgoing {
    bytes: ReplyBuffer,
    /// How many of them have been sent.
    sent: usize,
    memory: Option<Grant>,
}

impl Outgoing {
    fn new(bytes: ReplyBuffer, memory: Option<Grant>) -> Self {
        let sent = 0;
        Self { bytes, sent, memory }
    }

    fn small(bytes: Vec<u8>) -> Self {
        Self::new(bytes.into(), None)
    }
}

/// Replies that are ready while more requests have arrived.
struct Batch {
    bytes: ReplyBuffer,
    memory: Grant,
}

struct Link {
    shared: Arc<Shared>,
    export: Arc<dyn Export>,
    style: ReplyStyle,
    channel: Rc<Channel>,
    replies: mpsc::Sender<Outgoing>,
    /// Replies that the writer has, which must go first.
    unwritten: Rc<Cell<usize>>,
    /// One permit for each request that may be in flight.
    slots: Arc<Semaphore>,
    /// What this connection may hold.
    memory: Arc<Semaphore>,
    /// What of it need not be granted out of [`Shared::memory`].
    reserve: Arc<Semaphore>,
    ahead: RefCell<ReadAhead>,
    /// A range is being prepared.
    preparing: Arc<AtomicBool>,
}

/// Serves a client from the end of its handshake until it leaves or the server shuts down.
pub(crate) async fn transmit(channel: Rc<Channel>, input: Input, session: &Session, shared: &Arc<Shared>) {
    tracing::debug!(export = %crate::error::escaped(&session.name), "transmission begins");
    let in_flight = shared.limits.in_flight;
    let (replies, outgoing) = mpsc::channel(in_flight);
    let unwritten = Rc::default();
    let writer = Writer {
        channel: Rc::clone(&channel),
        unwritten: Rc::clone(&unwritten),
        spares: Arc::clone(&shared.spares),
        stall: shared.limits.stall,
    };
    let writer = driver::spawn(writer.write(outgoing));
    let link = Rc::new(Link {
        channel: Rc::clone(&channel),
        replies,
        unwritten,
        slots: Arc::new(Semaphore::new(in_flight)),
        memory: Arc::new(Semaphore::new(shared.limits.connection_memory_bytes)),
        reserve: Arc::new(Semaphore::new(RESERVED_BYTES)),
        shared: Arc::clone(shared),
        export: Arc::clone(&session.export),
        style: session.style,
        ahead: RefCell::default(),
        preparing: Arc::default(),
    });
    tokio::select! {
        () = link.take_requests(input, session) => {}
        () = shared.reached(Stage::Closing) => {}
    }
    finish(&channel, link, writer, shared).await;
}

/// Lets what is in flight finish and its replies go out; bounded once the grace time is over.
async fn finish(channel: &Channel, link: Rc<Link>, mut writer: JoinHandle<()>, shared: &Shared) {
    let last_words = async {
        shared.reached(Stage::Closing).await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    let drained = async {
        // Every request in flight holds the link: the writer ends when the last of them is done.
        drop(link);
        let _ = (&mut writer).await;
        // A client that takes nothing does not hold up the end of its connection either.
        let _ = timeout(LAST_WORDS, channel.finish()).await;
    };
    tokio::select! {
        () = drained => {}
        () = last_words => channel.shut_down(),
    }
}

impl Link {
    /// All requests in flight have handed their replies to the writer.
    async fn drained(&self) {
        let all = u32::try_from(self.shared.limits.in_flight).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let _ = self.slots.acquire_many(all).await;
    }

    /// On shutdown a connection is done when nothing has been in flight for a moment: requests
    /// that are on their way shall get their answer.
    async fn dismissed(&self) {
        self.shared.reached(Stage::Draining).await;
        self.drained().await;
        tokio::time::sleep(LINGER).await;
    }

    /// Takes requests until the client leaves, breaks the protocol, or the server shuts down.
    async fn take_requests(self: &Rc<Self>, mut input: Input, session: &Session) {
        let mut machine = Transmission::new(session, &self.shared.limits);
        let mut batch = None;
        let dismissed = self.dismissed();
        tokio::pin!(dismissed);
        loop {
            if self.replies.is_closed() {
                // The client is gone: nobody waits for its replies.
                return;
            }
            if self.shared.is_draining() {
                machine.drain();
            }
            let continues = match input.feed(|bytes| machine.advance(bytes)) {
                Event::Read => {
                    // Nobody waits for a reply that is ready.
                    self.post(&mut batch).await
                        && tokio::select! {
                            more = input.fill() => more,
                            () = &mut dismissed => false,
                        }
                }
                Event::Reply(bytes) => self.post(&mut batch).await && self.send(Outgoing::small(bytes)).await,
                Event::Execute(operation) => self.start(operation, &mut batch).await,
                Event::Receive(operation) => {
                    self.post(&mut batch).await && self.receive(operation, &mut input).await
                }
                Event::Disconnect => {
                    self.export.leave();
                    false
                }
                Event::Broken(why) => {
                    tracing::info!(why, "dropping a client that broke the protocol");
                    false
                }
            };
            if !continues {
                self.post(&mut batch).await;
                return;
            }
        }
    }

    /// Sends a reply: directly what the socket takes now, if the writer has nothing to write, and the rest through
    /// the writer. False if the writer has ended.
    async fn send(&self, mut reply: Outgoing) -> bool {
        if self.unwritten.get() == 0 {
            reply.sent = self.channel.try_send(reply.bytes.filled());
            if reply.sent == reply.bytes.len() {
                self.shared.spares.give(reply.bytes.into_parts().0);
                return true;
            }
        }
        self.unwritten.set(self.unwritten.get() + 1);
        // A reply that was begun goes to the writer without waiting: there is room, because the writer has nothing.
        match self.replies.try_send(reply) {
            Ok(()) => true,
            Err(TrySendError::Full(reply)) => self.replies.send(reply).await.is_ok(),
            Err(TrySendError::Closed(_)) => false,
        }
    }

    /// Sends the replies that are ready.
    async fn post(&self, batch: &mut Option<Batch>) -> bool {
        match batch.take() {
            None => true,
            Some(Batch { bytes, memory }) => self.send(Outgoing::new(bytes, Some(memory))).await,
        }
    }

    /// Answers a request here if that needs no waiting, otherwise in a slot.
    async fn start(self: &Rc<Self>, operation: Operation, batch: &mut Option<Batch>) -> bool {
        if let OperationKind::Read { .. } = operation.kind {
            self.look_ahead(&operation);
            if operation.length <= SHORT_BYTES && self.try_read(&operation, batch) {
                let full = batch
                    .as_ref()
                    .is_some_and(|batch| batch.bytes.len() >= BATCH_BYTES);
                return !full || self.post(batch).await;
            }
        }
        self.post(batch).await && self.begin(operation).await
    }

    fn try_read(&self, operation: &Operation, batch: &mut Option<Batch>) -> bool {
        if operation.length == 0 {
            return false;
        }
        if batch.is_none() {
            let Some(memory) = self.try_grant(BATCH_ROOM) else {
                return false;
            };
            let bytes = self.shared.spares.take();
            *batch = Some(Batch { bytes, memory });
        }
        let Some(Batch { bytes, .. }) = batch else {
            return false;
        };
        let done = execute::try_read(&*self.export, self.style, operation, bytes);
        if bytes.is_empty()
            && let Some(Batch { bytes, .. }) = batch.take()
        {
            self.shared.spares.give(bytes.into_parts().0);
        }
        done
    }

    /// Has the export prepare what a sequential client will read next, one range at a time.
    fn look_ahead(&self, operation: &Operation) {
        let size = self.export.size_bytes();
        let range = self
            .ahead
            .borrow_mut()
            .observe(operation.offset, operation.length, size);
        let Some(range) = range else { return };
        if self.preparing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (export, preparing) = (Arc::clone(&self.export), Arc::clone(&self.preparing));
        self.shared.pool.submit(move || {
            let _done = Cleared(preparing);
            // The client that reads it gets any error.
            let _ = export.cache(range.start, range.end - range.start);
        });
    }

    /// Waits for a free slot and runs a request in it.
    async fn begin(self: &Rc<Self>, operation: Operation) -> bool {
        let execution = Execution::new(Arc::clone(&self.export), self.style, operation);
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            return false;
        };
        let tag = execution.tag();
        let refusal = self
            .style
            .error(tag, Errno::Shutdown, "the server is shutting down");
        let link = Rc::clone(self);
        driver::spawn(async move {
            tokio::select! {
                () = link.execute(execution) => {}
                () = link.shared.reached(Stage::Closing) => {
                    link.send(Outgoing::small(refusal)).await;
                }
            }
            drop(slot);
        });
        true
    }

    /// Executes a request step by step. Each step's memory is granted before it and released when its
    /// bytes are written.
    async fn execute(&self, mut execution: Execution) {
        while !execution.is_finished() {
            let wanted = execution.step_bytes();
            let granted = self.grant_some(execution.least_bytes(), wanted).await;
            let Some((memory, room)) = granted else {
                return;
            };
            if self.replies.is_closed() {
                // The client has gone while this waited.
                return;
            }
            execution.set_room(room);
            let mut bytes = self.shared.spares.take();
            let stepped = self.shared.pool.run(move || {
                execution.step(&mut bytes);
                (execution, bytes)
            });
            let Some((rest, bytes)) = stepped.await else {
                return;
            };
            execution = rest;
            if !self.send(Outgoing::new(bytes, Some(memory))).await {
                return;
            }
        }
    }

    /// Receives a write's data and writes it piece by piece; the reply follows when all pieces are
    /// written. False if the stream ended before.
    async fn receive(self: &Rc<Self>, operation: Operation, input: &mut Input) -> bool {
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            return false;
        };
        let mut pieces = JoinSet::new();
        let mut taken = 0;
        while taken < operation.length {
            let left = operation.length - taken;
            let piece = |most: u64| usize::try_from(most.min(left)).unwrap_or(usize::MAX);
            let granted = self.grant_some(piece(SHORT_BYTES), piece(PIECE_BYTES)).await;
            let Some((memory, length)) = granted else {
                return false;
            };
            let target = self.shared.spares.take();
            let Ok(data) = timeout(self.shared.limits.stall, input.take(length, target)).await else {
                tracing::info!("dropped a client that does not send the data of its write");
                return false;
            };
            let Some(data) = data else { return false };
            let written = Rc::clone(self).write(operation.offset + taken, data);
            pieces.spawn_local(async move {
                let written = written.await;
                drop(memory);
                written
            });
            taken += length as u64;
        }
        let link = Rc::clone(self);
        driver::spawn(async move {
            link.conclude(operation, pieces).await;
            drop(slot);
        });
        true
    }

    /// Writes one piece.
    async fn write(self: Rc<Self>, offset: u64, data: ReplyBuffer) -> Result<(), ExportError> {
        let export = Arc::clone(&self.export);
        let spares = Arc::clone(&self.shared.spares);
        let written = self.shared.pool.run(move || {
            let written = execute::guarded(offset, || export.write_at(offset, data.filled()));
            spares.give(data.into_parts().0);
            written
        });
        written
            .await
            .unwrap_or_else(|| Err(execute::server_failure(offset)))
    }

    /// Replies to a write once all its pieces are written: with the failure at the lowest offset, if any.
    async fn conclude(&self, operation: Operation, mut pieces: JoinSet<Result<(), ExportError>>) {
        let tag = operation.tag();
        let written = async {
            let mut first: Option<ExportError> = None;
            while let Some(piece) = pieces.join_next().await {
                let failed = piece
                    .unwrap_or_else(|_| Err(execute::server_failure(tag.offset)))
                    .err();
                if let Some(error) = failed
                    && first.as_ref().is_none_or(|first| error.offset < first.offset)
                {
                    first = Some(error);
                }
            }
            match first {
                Some(error) => Err(error),
                None if operation.durable => self.flush(tag.offset).await,
                None => Ok(()),
            }
        };
        let reply = tokio::select! {
            done = written => execute::conclusion(self.style, tag, operation.length, done),
            () = self.shared.reached(Stage::Closing) => {
                self.style.error(tag, Errno::Shutdown, "the server is shutting down")
            }
        };
        self.send(Outgoing::small(reply)).await;
    }

    async fn flush(&self, offset: u64) -> Result<(), ExportError> {
        let export = Arc::clone(&self.export);
        let flushed = self
            .shared
            .pool
            .run(move || execute::guarded(offset, || export.flush()));
        flushed
            .await
            .unwrap_or_else(|| Err(execute::server_failure(offset)))
    }

    /// How much of `bytes` is asked for: more than a whole budget would never be granted, and each budget holds
    /// at least one maximum payload.
    fn permits(&self, bytes: usize) -> u32 {
        let limits = &self.shared.limits;
        let bytes = bytes.min(limits.memory_bytes).min(limits.connection_memory_bytes);
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// Grants `most` bytes if they are there, and otherwise `least` as soon as they are. Returns which of both.
    async fn grant_some(&self, least: usize, most: usize) -> Option<(Grant, usize)> {
        if let Some(grant) = self.try_grant(most) {
            return Some((grant, most));
        }
        Some((self.grant(least).await?, least))
    }

    async fn grant(&self, bytes: usize) -> Option<Grant> {
        let permits = self.permits(bytes);
        let own = Arc::clone(&self.memory).acquire_many_owned(permits).await.ok()?;
        let of_all = Arc::clone(&self.shared.memory).acquire_many_owned(permits);
        if bytes > RESERVED_BYTES {
            return Some((own, of_all.await.ok()?));
        }
        let reserved = Arc::clone(&self.reserve).acquire_many_owned(permits);
        let granted = tokio::select! {
            granted = reserved => granted,
            granted = of_all => granted,
        };
        Some((own, granted.ok()?))
    }

    fn try_grant(&self, bytes: usize) -> Option<Grant> {
        let permits = self.permits(bytes);
        let of = |memory: &Arc<Semaphore>| Arc::clone(memory).try_acquire_many_owned(permits).ok();
        let own = of(&self.memory)?;
        // More than is reserved in all is never granted of it.
        let granted = of(&self.reserve).or_else(|| of(&self.shared.memory))?;
        Some((own, granted))
    }
}

/// Clears a flag when it is dropped, by a panic too.
struct Cleared(Arc<AtomicBool>);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Writes a connection's replies one after another.
struct Writer {
    channel: Rc<Channel>,
    unwritten: Rc<Cell<usize>>,
    spares: Arc<Spares>,
    stall: Duration,
}

impl Writer {
    /// A client that is gone, or takes nothing for too long, ends the connection: the reader then
    /// finds its end of stream.
    async fn write(self, mut outgoing: mpsc::Receiver<Outgoing>) {
        while let Some(mut reply) = outgoing.recv().await {
            // Other replies that are ready go with it. Their memory is held until then.
            let mut grants = vec![reply.memory.take()];
            while reply.bytes.len() < BATCH_BYTES
                && let Ok(next) = outgoing.try_recv()
            {
                reply.bytes.push(next.bytes.filled());
                self.spares.give(next.bytes.into_parts().0);
                grants.push(next.memory);
            }
            if !self.write_in_time(reply).await {
                self.channel.shut_down();
                return;
            }
            self.unwritten.set(self.unwritten.get() - grants.len());
        }
    }

    async fn write_in_time(&self, reply: Outgoing) -> bool {
        let mut start = reply.sent;
        let (mut bytes, used) = reply.bytes.into_parts();
        while start < used {
            let end = used.min(start + WRITE_BYTES);
            let Ok((result, buffer)) = timeout(self.stall, self.channel.write(bytes, start..end)).await
            else {
                tracing::info!("dropped a client that does not take its replies");
                return false;
            };
            if result.is_err() {
                return false;
            }
            (bytes, start) = (buffer, end);
        }
        self.spares.give(bytes);
        true
    }
}
