//! A session with a target: one thread that keeps its connections, and what the threads of a sync put into it and wait for.
//!
//! ```text
//! sync's threads --> window (numbered, held until applied) --> control connection, data connections --> target
//!       ^--------------- answers, digests, how far it has come <-- control connection <------------------'
//! ```
//!
//! A connection that is lost is made again, for as long as the session's patience lasts. What was given to it and not applied is sent again.

use crate::checked;
use crate::error::{Error, ErrorKind, Result};
use crate::files::TargetFiles;
use crate::http::{self, CONNECT_PATIENCE, FrameReader, FrameWriter};
use crate::meter::Meter;
use crate::rate::Rate;
use crate::stall::{self, Signs, Stall};
use crate::stream::{or_lost, send};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use wire::digests::{Digests, Want};
use wire::message::{Hello, Nothing, Refusal};
use wire::{Id128, Message, VERSION, Window};

/// How a session is kept.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// Data connections. Several of them fill a long or lossy path that one does not.
    pub lanes: u32,
    /// How long the target may be away before the sync ends. It resumes later from what the target has made durable.
    pub patience: Duration,
    /// How many bytes a second are sent at most. It may change meanwhile.
    pub rate: Arc<Rate>,
    /// Counts what is sent.
    pub meter: Arc<Meter>,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            lanes: 4,
            patience: Duration::from_secs(600),
            rate: Arc::new(Rate::default()),
            meter: Arc::default(),
        }
    }
}

/// Something is sent at least so often, and one that hears nothing for three times as long takes the other side for gone.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Between two attempts to reach the target.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often is looked whether what waits moves.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How often a thread that waits looks whether it is still wanted.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How much was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of numbered messages that the target has applied or that wait for it.
    pub sent_bytes: u64,
    /// Bytes among them that were given to a connection which was lost: the most that was sent twice.
    pub again_bytes: u64,
    /// How often the control connection was lost.
    pub interruptions: u64,
}

/// Whether somebody who waits should go on waiting, and who hears why it takes so long.
pub trait LinkWait: Send + Sync {
    /// Whether what is waited for is still wanted.
    fn is_wanted(&self) -> bool;
    /// The target cannot be reached, or says that nothing moves, and why; `None` when that is over.
    fn held_up(&self, why: Option<&str>);
    /// The target has done something beside what it was asked for; a sentence.
    fn warn(&self, text: &str) {
        tracing::warn!("{text}");
    }
}

/// A session.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The state has changed: for the sync's threads.
    changed: Condvar,
    meter: Arc<Meter>,
    /// The same for the connections' tasks.
    wake: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    window: Window,
    session: Option<Id128>,
    /// Numbered messages that are questions, by number, and their answers. What was not asked for is not kept.
    answers: HashMap<u64, Option<Message>>,
    /// Questions for digests that have no answer, by number, and whether they were sent on the present connection.
    wants: BTreeMap<u64, (Want, bool)>,
    next_want: u64,
    digests: HashMap<u64, Digests>,
    durable: u64,
    /// Checkpoints that are not known to be durable: the number of each, and the bytes that were pushed before it.
    checkpoints: VecDeque<(u64, u64)>,
    /// Bytes pushed before the last checkpoint that is durable.
    durable_bytes: u64,
    /// Since when, and why, there is no control connection, or the target takes nothing.
    held_up: Option<(Instant, String)>,
    /// Since when, and why, nothing moves although there is one.
    stalled: Option<(Instant, String)>,
    /// Data connections that there are.
    lanes: u32,
    /// Why one was lost, or not made.
    lane_lost: Option<String>,
    /// How often a data connection has waited for the limit.
    limited: u64,
    is_told: bool,
    interruptions: u64,
    /// The session is over: why, or because nobody wants it any more.
    ended: Option<End>,
}

#[derive(Debug)]
enum End {
    Closed,
    Failed { kind: ErrorKind, text: String },
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        self.changed.notify_all();
        self.wake.send_replace(());
    }

    fn end(&self, error: &Error) {
        let mut state = self.state();
        if state.ended.is_none() {
            state.ended = Some(End::Failed {
                kind: error.kind(),
                text: error.full_message(),
            });
        }
        drop(state);
        self.notify();
    }

    fn is_over(&self) -> bool {
        self.state().ended.is_some()
    }

    /// A connection is lost: what it had is sent again.
    fn count_again(&self, state: &mut State, lane: u32) {
        let before = state.window.again_bytes();
        state.window.lost(lane);
        self.meter.add_again(state.window.again_bytes() - before);
    }

    /// A data connection is lost, or was not made.
    fn lose_lane(&self, lane: u32, was_joined: bool, error: &Error) {
        let mut state = self.state();
        self.count_again(&mut state, lane);
        state.lanes -= u32::from(was_joined);
        state.lane_lost = Some(error.full_message());
    }

    /// The control connection is lost, or was not made. Returns since when there is none, and whether there was one.
    fn lose_control(&self, error: &Error) -> (Instant, bool) {
        let mut state = self.state();
        self.count_again(&mut state, CONTROL);
        state.wants.values_mut().for_each(|(_, is_sent)| *is_sent = false);
        let was_connected = state.held_up.is_none();
        state.interruptions += u64::from(was_connected);
        let since = state.held_up.take().map_or_else(Instant::now, |(since, _)| since);
        state.held_up = Some((since, error.full_message()));
        (since, was_connected)
    }
}

impl State {
    /// What came up to this number is durable. Returns how many bytes more that are.
    fn settle(&mut self, seq: u64) -> u64 {
        let before = self.durable_bytes;
        while let Some((_, bytes)) = self
            .checkpoints
            .front()
            .filter(|(checkpoint, _)| *checkpoint <= seq)
        {
            self.durable_bytes = *bytes;
            self.checkpoints.pop_front();
        }
        self.durable_bytes - before
    }
}

impl Link {
    /// Begins a session with a target. It returns at once; what is asked first waits for the connection. Each connection is made as
    /// the target's files say then: another sync may renew the key meanwhile.
    ///
    /// # Errors
    /// `Io` where no thread can be started.
    pub fn begin(files: &TargetFiles, options: LinkOptions) -> Result<Link> {
        let address = &files.record.address;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                window: Window::new(wire::CREDIT_BYTES),
                session: None,
                answers: HashMap::new(),
                wants: BTreeMap::new(),
                next_want: 1,
                digests: HashMap::new(),
                durable: 0,
                checkpoints: VecDeque::new(),
                durable_bytes: 0,
                held_up: Some((Instant::now(), format!("the target at {address} is being called"))),
                stalled: None,
                lanes: 0,
                lane_lost: None,
                limited: 0,
                is_told: false,
                interruptions: 0,
                ended: None,
            }),
            changed: Condvar::new(),
            meter: options.meter.clone(),
            wake: watch::Sender::new(()),
        });
        let caller = Caller {
            shared: shared.clone(),
            files: files.clone(),
            address: address.clone(),
            options,
        };
        let started = std::thread::Builder::new()
            .name("target".to_owned())
            .spawn(move || caller.run());
        let thread = started.map_err(|error| Error::io("cannot start the thread of a connection", error))?;
        Ok(Link {
            shared,
            thread: Some(thread),
        })
    }

    /// Sends a numbered message, as soon as there is credit for it. Returns its number.
    ///
    /// # Errors
    /// Why the session is over; `Unreachable` where `wait` does not want it any more.
    pub fn send(&self, message: Message, wait: &dyn LinkWait) -> Result<u64> {
        self.number(message, false, wait)
    }

    fn number(&self, message: Message, is_question: bool, wait: &dyn LinkWait) -> Result<u64> {
        let mut state = self
            .wait_until(wait, |state| state.window.has_room().then_some(()))?
            .1;
        let is_checkpoint = matches!(message, Message::Checkpoint(_) | Message::Commit(_));
        let seq = state.window.push(message)?;
        if is_checkpoint {
            let pushed_bytes = state.window.pushed_bytes();
            state.checkpoints.push_back((seq, pushed_bytes));
        }
        if is_question {
            state.answers.insert(seq, None);
        }
        drop(state);
        self.shared.notify();
        Ok(seq)
    }

    /// Sends a numbered message and waits for its answer.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn ask(&self, message: Message, wait: &dyn LinkWait) -> Result<Message> {
        let seq = self.number(message, true, wait)?;
        let answered = |state: &mut State| {
            let answer = state.answers.get_mut(&seq)?.take();
            answer.inspect(|_| drop(state.answers.remove(&seq)))
        };
        Ok(self.wait_until(wait, answered)?.0)
    }

    /// Waits until what came up to a message survives a power cut at the target.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn wait_durable(&self, seq: u64, wait: &dyn LinkWait) -> Result<()> {
        self.wait_until(wait, |state| (state.durable >= seq).then_some(()))
            .map(|_| ())
    }

    /// Asks for digests, and does not wait. Returns the question's number.
    pub fn want(&self, want: Want) -> u64 {
        let mut state = self.shared.state();
        let number = state.next_want;
        state.next_want += 1;
        state.wants.insert(number, (want, false));
        drop(state);
        self.shared.notify();
        number
    }

    /// Waits for the answer to a question.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn digests(&self, number: u64, wait: &dyn LinkWait) -> Result<Digests> {
        Ok(self.wait_until(wait, |state| state.digests.remove(&number))?.0)
    }

    /// Number of the last message up to which everything survives a power cut at the target; 0 if nothing does.
    pub fn durable(&self) -> u64 {
        self.shared.state().durable
    }

    /// How much was sent.
    pub fn traffic(&self) -> Traffic {
        let state = self.shared.state();
        Traffic {
            sent_bytes: state.window.pushed_bytes(),
            again_bytes: state.window.again_bytes(),
            interruptions: state.interruptions,
        }
    }

    /// Waits until `found` finds something in the state.
    fn wait_until<T>(
        &self,
        wait: &dyn LinkWait,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<(T, MutexGuard<'_, State>)> {
        let mut state = self.shared.state();
        loop {
            match &state.ended {
                Some(End::Failed { kind, text }) => return Err(Error::new(*kind, text.clone())),
                Some(End::Closed) => {
                    return Err(Error::unreachable("the session with the target was closed"));
                }
                None => {}
            }
            if let Some(value) = found(&mut state) {
                if std::mem::take(&mut state.is_told) {
                    wait.held_up(None);
                }
                return Ok((value, state));
            }
            if !wait.is_wanted() {
                return Err(Error::unreachable(
                    "the sync was stopped while it waited for the target",
                ));
            }
            state = self.tell(state, wait);
            let waited = self.shared.changed.wait_timeout(state, POLL_INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Says once why it takes so long.
    fn tell<'a>(&'a self, mut state: MutexGuard<'a, State>, wait: &dyn LinkWait) -> MutexGuard<'a, State> {
        const LONG: Duration = Duration::from_secs(5);
        let why = state.held_up.as_ref().or(state.stalled.as_ref());
        let long = why.filter(|(since, _)| since.elapsed() > LONG);
        if let (Some((_, why)), false) = (long, state.is_told) {
            wait.held_up(Some(why));
            state.is_told = true;
        }
        state
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.ended.get_or_insert(End::Closed);
        drop(state);
        self.shared.notify();
        if let Some(thread) = self.thread.take() {
            // It ends within a moment: nothing in it waits longer than for a connection to be closed.
            let _ = thread.join();
        }
    }
}

/// Keeps the connections of a session.
struct Caller {
    shared: Arc<Shared>,
    files: TargetFiles,
    /// For people.
    address: String,
    options: LinkOptions,
}

/// The numbers of the connections' tasks in the window: 0 is the control connection.
const CONTROL: u32 = 0;

impl Caller {
    fn run(&self) {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                runtime.block_on(self.keep());
                // A name that is being looked up is not waited for.
                runtime.shutdown_background();
            }
            Err(error) => self
                .shared
                .end(&Error::io("cannot start a thread's runtime", error)),
        }
    }

    /// Keeps all connections until the session is over.
    async fn keep(&self) {
        let mut over = self.shared.wake.subscribe();
        let lanes = (1..=self.options.lanes.min(wire::LANES_MAX)).map(|lane| self.keep_lane(lane));
        let mut lanes = lanes.map(Box::pin).collect::<Vec<_>>();
        let all_lanes = std::future::poll_fn(|context| {
            for lane in &mut lanes {
                let _ = std::future::Future::poll(lane.as_mut(), context);
            }
            std::task::Poll::<()>::Pending
        });
        tokio::select! {
            () = self.keep_control() => {}
            () = all_lanes => {}
            error = self.watch() => self.shared.end(&error),
            () = async { while !self.shared.is_over() { let _ = over.changed().await; } } => {}
        }
    }

    async fn keep_control(&self) {
        let mut pause = PAUSE_MIN;
        loop {
            let Err(error) = self.control().await else { return };
            let (since, was_connected) = self.shared.lose_control(&error);
            if was_connected {
                pause = PAUSE_MIN;
            }
            if !may_work_later(&error) || since.elapsed() > self.options.patience {
                self.shared.end(&error);
                return;
            }
            self.shared.notify();
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One control connection, until it is lost.
    async fn control(&self) -> Result<()> {
        let (mut reader, mut writer) = self.hello(None).await?;
        let welcome = self.welcome(&mut reader).await?;
        {
            let mut state = self.shared.state();
            state.session = Some(welcome.session);
            state
                .window
                .set_credit(welcome.credit_bytes.min(wire::CREDIT_MAX_BYTES));
            state.window.received(welcome.received)?;
            state.held_up = None;
        }
        self.shared.notify();
        tokio::select! {
            done = self.read_control(&mut reader) => done,
            done = self.write_control(&mut writer) => done,
        }
    }

    async fn hello(&self, lane: Option<u32>) -> Result<(FrameReader, FrameWriter)> {
        let session = self.shared.state().session;
        let hello = Hello {
            versions: vec![VERSION],
            software: concat!("smc ", env!("CARGO_PKG_VERSION")).to_owned(),
            session,
            lane,
        };
        let upgraded = http::as_known(&self.files, |address, config| async move {
            http::upgrade(&address, config).await
        });
        let (reader, mut writer) = upgraded.await?;
        or_lost(send(&mut writer, 0, Message::Hello(hello)).await)?;
        Ok((reader, writer))
    }

    async fn welcome(&self, reader: &mut FrameReader) -> Result<wire::message::Welcome> {
        let late = |_| Error::unreachable(format!("{} does not answer", self.address));
        let first = timeout(CONNECT_PATIENCE, reader.message()).await.map_err(late)?;
        match or_lost(first)? {
            Some((_, Message::Welcome(welcome))) => Ok(welcome),
            Some((_, Message::Refuse(refuse))) => Err(Error::from(&refuse)),
            Some(_) => Err(Error::untrue(
                "the target begins with a message that is no welcome",
            )),
            None => Err(Error::unreachable("the target closed the connection")),
        }
    }

    async fn read_control(&self, reader: &mut FrameReader) -> Result<()> {
        loop {
            let late = |_| Error::unreachable(format!("nothing was heard of {} for a while", self.address));
            let next = timeout(PING_EVERY * 3, reader.message()).await.map_err(late)?;
            let Some((seq, message)) = or_lost(next)? else {
                return Err(Error::unreachable("the target closed the connection"));
            };
            self.take(seq, message)?;
            self.shared.notify();
        }
    }

    fn take(&self, seq: u64, message: Message) -> Result<()> {
        let mut state = self.shared.state();
        match message {
            Message::Received(upto) => state.window.received(upto.seq)?,
            Message::Durable(upto) if upto.seq > state.window.last_seq() => {
                return Err(Error::untrue("the target has made durable what was not sent"));
            }
            Message::Durable(upto) => {
                state.durable = state.durable.max(upto.seq);
                self.shared.meter.add_durable(state.settle(upto.seq));
            }
            Message::Credit(credit) => state.window.set_credit(credit.bytes.min(wire::CREDIT_MAX_BYTES)),
            Message::Pause(pause) => {
                let reason = pause.reason.as_deref().map(checked::text);
                state.held_up = reason.map(|reason| (Instant::now(), reason));
            }
            Message::Refuse(refuse) => return Err(Error::from(&refuse)),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Digests(digests) => {
                let Some((want, _)) = state.wants.remove(&seq) else {
                    return Ok(());
                };
                if want != digests.want {
                    return Err(Error::untrue("the target answers another question"));
                }
                state.digests.insert(seq, digests);
            }
            answer @ (Message::Begun(_)
            | Message::PassBegun(_)
            | Message::Told(_)
            | Message::Committed(_)
            | Message::Left(_)) => {
                // An answer may come again when nobody waits for it any more.
                if let Some(place) = state.answers.get_mut(&seq) {
                    let is_commit = matches!(answer, Message::Committed(_));
                    *place = Some(answer);
                    if is_commit {
                        self.shared.meter.add_durable(state.settle(seq));
                    }
                }
            }
            _ => {
                return Err(Error::untrue(
                    "the target sends a message that only a source sends",
                ));
            }
        }
        Ok(())
    }

    async fn write_control(&self, writer: &mut FrameWriter) -> Result<()> {
        let mut wake = self.shared.wake.subscribe();
        loop {
            while let Some(bytes) = self.next_for_control()? {
                or_lost(writer.write_all(&bytes).await)?;
                self.shared.meter.add_sent(bytes.len());
            }
            or_lost(writer.flush().await)?;
            if timeout(PING_EVERY, wake.changed()).await.is_err() {
                or_lost(send(writer, 0, Message::Ping(Nothing {})).await)?;
            }
        }
    }

    fn next_for_control(&self) -> Result<Option<Vec<u8>>> {
        let mut state = self.shared.state();
        let unsent = state.wants.iter_mut().find(|(_, (_, is_sent))| !is_sent);
        if let Some((number, (want, is_sent))) = unsent {
            *is_sent = true;
            let frame = Message::Want(*want).into_frame(*number)?;
            return Ok(Some(frame.encode()));
        }
        // Where there are no data connections, everything goes this way.
        let takes_clusters = self.options.lanes == 0;
        Ok(state
            .window
            .next_for(CONTROL, takes_clusters)
            .map(|sent| sent.bytes.to_vec()))
    }

    async fn keep_lane(&self, lane: u32) {
        let mut wake = self.shared.wake.subscribe();
        let mut pause = PAUSE_MIN;
        loop {
            if self.is_ready() {
                let mut was_joined = false;
                if let Err(error) = self.lane(lane, &mut was_joined).await {
                    tracing::debug!("data connection {lane} was lost: {}", error.full_message());
                    self.shared.lose_lane(lane, was_joined, &error);
                    if !may_lane_work_later(&error) {
                        self.shared.end(&error);
                        return std::future::pending().await;
                    }
                }
                self.shared.notify();
                pause = match was_joined {
                    true => PAUSE_MIN,
                    false => (pause * 2).min(PAUSE_MAX),
                };
                sleep(pause).await;
            } else {
                let _ = wake.changed().await;
            }
        }
    }

    /// Whether there is a session that data connections can join.
    fn is_ready(&self) -> bool {
        let state = self.shared.state();
        state.session.is_some() && state.held_up.is_none() && state.window.has_clusters()
    }

    /// One data connection, until it is lost.
    async fn lane(&self, lane: u32, was_joined: &mut bool) -> Result<()> {
        let (mut reader, mut writer) = self.hello(Some(lane)).await?;
        self.welcome(&mut reader).await?;
        *was_joined = true;
        self.shared.state().lanes += 1;
        tokio::select! {
            done = self.read_lane(&mut reader) => done,
            done = self.write_lane(lane, &mut writer) => done,
        }
    }

    async fn read_lane(&self, reader: &mut FrameReader) -> Result<()> {
        loop {
            match or_lost(reader.message().await)? {
                Some((_, Message::Refuse(refuse))) => return Err(Error::from(&refuse)),
                Some(_) => {}
                None => return Err(Error::unreachable("the target closed the connection")),
            }
        }
    }

    async fn write_lane(&self, lane: u32, writer: &mut FrameWriter) -> Result<()> {
        let mut wake = self.shared.wake.subscribe();
        loop {
            while let Some(sent) = self.next_for_lane(lane) {
                self.wait_for_limit(sent.bytes.len(), writer).await?;
                or_lost(writer.write_all(&sent.bytes).await)?;
                self.shared.meter.add_sent(sent.bytes.len());
            }
            or_lost(writer.flush().await)?;
            if timeout(PING_EVERY, wake.changed()).await.is_err() {
                or_lost(send(writer, 0, Message::Ping(Nothing {})).await)?;
            }
        }
    }

    /// Waits until so many bytes may be sent, and says meanwhile that it is there.
    async fn wait_for_limit(&self, bytes: usize, writer: &mut FrameWriter) -> Result<()> {
        let mut taken = std::pin::pin!(self.options.rate.take(bytes as u64));
        while timeout(PING_EVERY, &mut taken).await.is_err() {
            self.shared.state().limited += 1;
            or_lost(send(writer, 0, Message::Ping(Nothing {})).await)?;
        }
        Ok(())
    }

    /// Looks again and again whether what waits moves. Returns why the session is over when it has not moved for too long: as if the
    /// control connection had been lost for so long.
    async fn watch(&self) -> Error {
        let mut stall = Stall::default();
        loop {
            sleep(WATCH_EVERY).await;
            let mut state = self.shared.state();
            let waits = state.held_up.is_none() && state.window.has_clusters();
            let signs = Signs {
                received: state.window.received_seq(),
                limited: state.limited,
            };
            let since = stall.look(waits, signs, Instant::now());
            let lanes = state.lanes;
            state.stalled = since.and_then(|since| {
                let why = stall::reason(since.elapsed(), lanes, state.lane_lost.as_deref())?;
                Some((since, why))
            });
            if let Some((since, why)) = &state.stalled
                && since.elapsed() > stall::patience(self.options.patience, lanes)
            {
                return Error::unreachable(why.clone());
            }
        }
    }

    fn next_for_lane(&self, lane: u32) -> Option<wire::Sent> {
        self.shared.state().window.next_for(lane, true)
    }
}

/// Whether the target may do later what it does not do now, within one session: while it restarts, for one.
fn may_work_later(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unreachable | ErrorKind::Refused(Refusal::Closing)
    )
}

/// The same for a data connection. Why there is no session any more is said on the control connection.
fn may_lane_work_later(error: &Error) -> bool {
    may_work_later(error) || matches!(error.kind(), ErrorKind::Refused(Refusal::NoSession))
}
