//! Drives one connection: moves bytes between its socket and the state machines, calls the
//! catalog and the export on the pool, and keeps the limits.

use std::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::execute::Execution;
use crate::handshake::{Answer, Handshake, Question, Session, Step};
use crate::listen::Accepted;
use crate::pool::Pool;
use crate::proto::Errno;
use crate::transmission::{Event, Transmission};
use crate::uring::{self, Stream};
use crate::{Catalog, ErrorKind, ExportInfo, Limits, ServeError};

const INPUT_BYTES: usize = 64 << 10;
/// One write's worth: what must get through within [`Limits::write_stall`].
const WRITE_BYTES: usize = 1 << 20;
/// How long a connection without requests stays open on shutdown, to answer late ones.
const LINGER: Duration = Duration::from_millis(200);
/// How long a client gets to take its last replies once the grace time is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where the server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Serving,
    /// Nothing new is begun.
    Draining,
    /// The grace time is over.
    Closing,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) limits: Limits,
    pub(crate) pool: Pool,
    /// One permit for each byte of reply that may be held.
    pub(crate) memory: Arc<Semaphore>,
    pub(crate) stage: watch::Receiver<Stage>,
}

impl Shared {
    fn is_draining(&self) -> bool {
        *self.stage.borrow() >= Stage::Draining
    }

    /// Tells a handshake whether the server is going down.
    fn notify<'a>(&self, machine: &'a mut Handshake) -> &'a mut Handshake {
        if self.is_draining() {
            machine.drain();
        }
        machine
    }

    /// Waits for a stage. Never comes back if the server is gone, which ends the caller with it.
    async fn reached(&self, stage: Stage) {
        let mut watched = self.stage.clone();
        if watched.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Serves one client from greeting to close. Whatever happens in it touches no other connection.
pub(crate) async fn serve(accepted: Accepted, shared: Arc<Shared>) {
    let stream = Rc::new(Stream::new(accepted));
    let task = uring::spawn(converse(Rc::clone(&stream), shared));
    if let Err(error) = task.await {
        tracing::error!(%error, "a connection failed inside the server and was dropped");
    }
    stream.shut_down(Shutdown::Both);
}

async fn converse(stream: Rc<Stream>, shared: Arc<Shared>) {
    let mut input = Input::new(Rc::clone(&stream));
    let negotiated = tokio::select! {
        negotiated = timeout(shared.limits.handshake, negotiate(&stream, &mut input, &shared)) => negotiated,
        () = shared.reached(Stage::Closing) => return,
    };
    match negotiated {
        Ok(Some(session)) => {
            transmit(stream, input, &session, &shared).await;
            // To close an export may block as well.
            shared.pool.submit(move || drop(session));
        }
        Ok(None) => {}
        Err(_) => tracing::info!("dropped a client that did not finish its handshake in time"),
    }
}

/// Bytes from the socket that no state machine has eaten yet.
struct Input {
    stream: Rc<Stream>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn new(stream: Rc<Stream>) -> Self {
        Self {
            stream,
            buffer: vec![0; INPUT_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// Lets a state machine eat from the front.
    fn feed<T>(&mut self, eat: impl FnOnce(&mut &[u8]) -> T) -> T {
        let mut rest = self.buffer.get(self.start..self.end).unwrap_or_default();
        let result = eat(&mut rest);
        self.start = self.end - rest.len();
        result
    }

    /// Waits for more, once all is eaten; false at the end of the stream. A call that is dropped
    /// takes the buffer with it: after that there is nothing more to be read.
    async fn fill(&mut self) -> bool {
        let (result, buffer) = self.stream.read(std::mem::take(&mut self.buffer)).await;
        self.buffer = buffer;
        (self.start, self.end) = (0, *result.as_ref().unwrap_or(&0));
        matches!(result, Ok(1..))
    }
}

/// The handshake; `None` if the connection is to be closed.
async fn negotiate(stream: &Stream, input: &mut Input, shared: &Arc<Shared>) -> Option<Session> {
    let (mut machine, greeting) = Handshake::new(&shared.limits);
    let mut step = Step::Send(greeting);
    loop {
        match step {
            Step::Read => input.fill().await.then_some(())?,
            Step::Send(bytes) => send_now(stream, bytes).await?,
            Step::Ask(question) => {
                let answer = ask(shared, question).await;
                step = shared.notify(&mut machine).answer(answer);
                continue;
            }
            Step::Enter(bytes, session) => {
                send_now(stream, bytes).await?;
                return Some(session);
            }
            Step::Close(bytes, why) => {
                tracing::debug!(why, "closing during the handshake");
                // H8: a client that aborts need not wait for the reply.
                send_now(stream, bytes).await;
                return None;
            }
        }
        step = input.feed(|bytes| shared.notify(&mut machine).advance(bytes));
    }
}

async fn send_now(stream: &Stream, bytes: Vec<u8>) -> Option<()> {
    let length = bytes.len();
    stream.write(bytes, 0, length).await.0.ok()
}

async fn ask(shared: &Arc<Shared>, question: Question) -> Answer {
    let catalog = Arc::clone(&shared.catalog);
    let answer = shared.pool.run(move || consult(&*catalog, &question)).await;
    let failed = || ServeError::new(ErrorKind::Io, "the server failed on this request; see its log");
    answer.unwrap_or_else(|| Answer::Failed(failed()))
}

/// Asks the catalog; blocks. Only here is an export opened.
fn consult(catalog: &dyn Catalog, question: &Question) -> Answer {
    let answer = match question {
        Question::List => catalog.list().map(Answer::Exports),
        Question::Describe(name) => catalog.info(name).and_then(sized).map(Answer::Described),
        Question::Open(name) => open(catalog, name),
    };
    answer.unwrap_or_else(Answer::Failed)
}

fn open(catalog: &dyn Catalog, name: &str) -> Result<Answer, ServeError> {
    let info = catalog.info(name)?;
    let export = catalog.open(name)?;
    let info = sized(ExportInfo {
        size_bytes: export.size_bytes(),
        ..info
    })?;
    Ok(Answer::Opened(info, export))
}

/// Clients take offsets as signed (N13).
fn sized(info: ExportInfo) -> Result<ExportInfo, ServeError> {
    if i64::try_from(info.size_bytes).is_ok() {
        return Ok(info);
    }
    let text = format!(
        "the export's size of {} bytes is more than NBD can serve",
        info.size_bytes
    );
    Err(ServeError::new(ErrorKind::Refused, text))
}

/// Bytes to send, and the memory they were granted.
struct Outgoing {
    bytes: Vec<u8>,
    _memory: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Outgoing {
    fn small(bytes: Vec<u8>) -> Self {
        Self { bytes, _memory: None }
    }
}

/// One connection in the transmission phase.
struct Link {
    shared: Arc<Shared>,
    replies: mpsc::Sender<Outgoing>,
    /// One permit for each request that may be in flight.
    slots: Arc<Semaphore>,
    /// This connection's share of [`Shared::memory`].
    memory: Arc<Semaphore>,
}

async fn transmit(stream: Rc<Stream>, input: Input, session: &Session, shared: &Arc<Shared>) {
    tracing::debug!(export = %crate::error::escaped(&session.name), "transmission begins");
    let in_flight = shared.limits.in_flight;
    let (replies, outgoing) = mpsc::channel(in_flight);
    let writer = uring::spawn(write_replies(
        Rc::clone(&stream),
        outgoing,
        shared.limits.write_stall,
    ));
    let link = Rc::new(Link {
        replies,
        slots: Arc::new(Semaphore::new(in_flight)),
        memory: Arc::new(Semaphore::new(shared.limits.connection_memory_bytes)),
        shared: Arc::clone(shared),
    });
    tokio::select! {
        () = link.take_requests(input, session) => {}
        () = shared.reached(Stage::Closing) => {}
    }
    finish(&stream, link, writer, shared).await;
}

/// Lets what is in flight finish and its replies go out; bounded once the grace time is over.
async fn finish(stream: &Stream, link: Rc<Link>, mut writer: JoinHandle<()>, shared: &Shared) {
    let last_words = async {
        shared.reached(Stage::Closing).await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    let drained = async {
        // Every request in flight holds the link: the writer ends when the last of them is done.
        drop(link);
        let _ = (&mut writer).await;
        stream.shut_down(Shutdown::Write);
    };
    tokio::select! {
        () = drained => {}
        () = last_words => stream.shut_down(Shutdown::Both),
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

    /// Takes requests until the client leaves, gets out of step, or is dismissed.
    async fn take_requests(self: &Rc<Self>, mut input: Input, session: &Session) {
        let mut machine = Transmission::new(session, self.shared.limits.max_payload_bytes);
        loop {
            if self.shared.is_draining() {
                machine.drain();
            }
            match input.feed(|bytes| machine.advance(bytes)) {
                Event::Read => tokio::select! {
                    more = input.fill() => if !more { return },
                    () = self.dismissed() => return,
                },
                Event::Reply(bytes) => {
                    if self.replies.send(Outgoing::small(bytes)).await.is_err() {
                        return;
                    }
                }
                Event::Execute(operation) => {
                    let export = Arc::clone(&session.export);
                    self.begin(Execution::new(export, machine.style(), operation), &machine)
                        .await;
                }
                Event::Disconnect => return,
                Event::Broken(why) => {
                    tracing::info!(why, "dropping a client that broke the protocol");
                    return;
                }
            }
        }
    }

    /// Waits for a free slot and runs a request in it.
    async fn begin(self: &Rc<Self>, execution: Execution, machine: &Transmission) {
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            return;
        };
        let refusal =
            machine
                .style()
                .error(execution.cookie(), Errno::Shutdown, "the server is shutting down");
        let link = Rc::clone(self);
        uring::spawn(async move {
            tokio::select! {
                () = link.execute(execution) => {}
                () = link.shared.reached(Stage::Closing) => {
                    let _ = link.replies.send(Outgoing::small(refusal)).await;
                }
            }
            drop(slot);
        });
    }

    /// Does a request step by step. Each step's memory is granted before and given back when its
    /// bytes are written.
    async fn execute(&self, mut execution: Execution) {
        while !execution.is_finished() {
            let Some(memory) = self.grant(execution.step_bytes()).await else {
                return;
            };
            let stepped = self.shared.pool.run(move || {
                let bytes = execution.step();
                (execution, bytes)
            });
            let Some((rest, bytes)) = stepped.await else {
                return;
            };
            execution = rest;
            if self
                .replies
                .send(Outgoing {
                    bytes,
                    _memory: Some(memory),
                })
                .await
                .is_err()
            {
                return;
            }
        }
    }

    async fn grant(&self, bytes: usize) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        // A grant above a budget would never come; the budgets hold one maximum payload at least.
        let limits = &self.shared.limits;
        let bytes = bytes.min(limits.memory_bytes).min(limits.connection_memory_bytes);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let own = Arc::clone(&self.memory).acquire_many_owned(bytes).await.ok()?;
        let all = Arc::clone(&self.shared.memory)
            .acquire_many_owned(bytes)
            .await
            .ok()?;
        Some((own, all))
    }
}

/// Writes replies one after another. A client that is gone, or takes nothing for too long, ends
/// the connection: the reader then finds its end of stream.
async fn write_replies(stream: Rc<Stream>, mut outgoing: mpsc::Receiver<Outgoing>, stall: Duration) {
    while let Some(Outgoing { bytes, _memory }) = outgoing.recv().await {
        if !write_in_time(&stream, bytes, stall).await {
            stream.shut_down(Shutdown::Both);
            return;
        }
    }
}

async fn write_in_time(stream: &Stream, mut bytes: Vec<u8>, stall: Duration) -> bool {
    let mut start = 0;
    while start < bytes.len() {
        let end = bytes.len().min(start + WRITE_BYTES);
        let Ok((result, buffer)) = timeout(stall, stream.write(bytes, start, end)).await else {
            tracing::info!("dropped a client that does not take its replies");
            return false;
        };
        if result.is_err() {
            return false;
        }
        (bytes, start) = (buffer, end);
    }
    true
}
