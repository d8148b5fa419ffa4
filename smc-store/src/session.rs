//! A session: the sync of one source, whatever connections it comes by. One thread applies its messages to an image, in order.

use crate::config::Config;
use crate::registry::Registry;
use crate::retention;
use crate::sessions::Sessions;
use crate::space::Space;
use imagefmt::{
    Base, ClusterSize, ClusterUpdate, Codec, Consistency, Digest, DiskId, DiskMeta, Error, ErrorKind,
    ImageWriter, Manifest, Method, Store, StoredDigest, TakeOver, Uuid, WriteRequest,
};
use jiff::Timestamp;
use remote::{BYTES_MAX, DISKS_MAX, PushNote, PushRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Sender;
use wire::digests::{Digests, Known, Level, Want};
use wire::message::{
    Ask, Asked, BaseOf, Begin, BeginPass, Begun, Commit, Committed, EndPass, Note, Nothing, PassBegun,
    Refusal, Refuse, Told, Upto,
};
use wire::{Frame, Id128, Message, Order, Put, Root};

/// Answers that are kept for a source whose connection was lost before it had them: it asks one question at a time.
const ANSWERS_KEPT: usize = 16;

/// The source hears how far the image has come at least each time that so many bytes were applied.
const ACKNOWLEDGE_BYTES: u64 = 1 << 20;

/// How often the thread of a session looks whether it is still wanted.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long a sync waits for another one of its job that is just ending.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// What the connections put in and take out.
#[derive(Debug)]
pub struct Session {
    /// Its id, which connections name to join it.
    pub id: Id128,
    /// Whose it is: only connections of the same source join it.
    pub source: String,
    /// When that was enrolled: after it was enrolled again, those that have the key of before do not join.
    pub enrolled: Timestamp,
    /// Bytes of numbered messages that the source may have under way.
    pub credit_bytes: u64,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    outbox: Mutex<Outbox>,
    /// The job, once that is known.
    job: OnceLock<String>,
    is_over: AtomicBool,
}

#[derive(Debug)]
struct Inbox {
    order: Order,
    /// When something came last.
    heard: Instant,
    /// The source has broken the rules.
    broken: Option<wire::Error>,
    /// Why it is to end.
    end: Option<Ended>,
}

#[derive(Debug, Default)]
struct Outbox {
    control: Option<Sender<Outgoing>>,
    answers: VecDeque<(u64, Message)>,
    received: u64,
    durable: u64,
    refused: Option<Refuse>,
    /// What each disk is compared with.
    bases: Vec<Option<Base>>,
}

/// A frame on its way to the source, and what bounds how many answers are.
#[derive(Debug)]
pub struct Outgoing {
    /// The frame.
    pub bytes: Vec<u8>,
    /// Free again once it was sent.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Frames that wait to be sent on a control connection. A source that takes none of so many loses it.
pub const OUTGOING_MAX: usize = 1024;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// A session that nobody has joined yet.
    pub fn new(id: Id128, source: &str, enrolled: Timestamp) -> Session {
        let credit_bytes = wire::CREDIT_BYTES;
        Session {
            id,
            source: source.to_owned(),
            enrolled,
            credit_bytes,
            inbox: Mutex::new(Inbox {
                order: Order::new(credit_bytes),
                heard: Instant::now(),
                broken: None,
                end: None,
            }),
            arrived: Condvar::new(),
            outbox: Mutex::new(Outbox::default()),
            job: OnceLock::new(),
            is_over: AtomicBool::new(false),
        }
    }

    /// Takes a numbered message from any connection.
    pub fn push(&self, frame: Frame) {
        let mut inbox = lock(&self.inbox);
        inbox.heard = Instant::now();
        if let Err(error) = inbox.order.push(frame) {
            inbox.broken.get_or_insert(error);
        }
        drop(inbox);
        self.arrived.notify_all();
    }

    /// Something else came from the source: it is there.
    pub fn hear(&self) {
        lock(&self.inbox).heard = Instant::now();
    }

    /// The target goes down: the session ends with a checkpoint.
    pub fn close(&self) {
        self.end(
            Refusal::Closing,
            "the target goes down; the next sync resumes this one",
        );
    }

    /// The session ends with a checkpoint, for this reason.
    pub fn end(&self, code: Refusal, text: &str) {
        let text = text.to_owned();
        lock(&self.inbox).end.get_or_insert(Ended { code, text });
        self.arrived.notify_all();
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Nobody will apply its messages.
    pub fn abandon(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Whether it is a sync of this job.
    pub fn is_of(&self, job: &str) -> bool {
        self.job.get().is_some_and(|own| own == job)
    }

    /// Whether the source has a control connection.
    pub fn is_connected(&self) -> bool {
        lock(&self.outbox)
            .control
            .as_ref()
            .is_some_and(|control| !control.is_closed())
    }

    /// A control connection joins: what the source may not have got goes there, and all that follows. Returns the number of
    /// the last message that was applied.
    pub fn join(&self, control: Sender<Outgoing>) -> u64 {
        let mut outbox = lock(&self.outbox);
        outbox.control = Some(control);
        let answers: Vec<_> = outbox.answers.iter().cloned().collect();
        for (seq, answer) in answers {
            outbox.send(seq, answer, None);
        }
        if outbox.durable > 0 {
            let durable = Upto { seq: outbox.durable };
            outbox.send(0, Message::Durable(durable), None);
        }
        if let Some(refused) = outbox.refused.clone() {
            outbox.send(0, Message::Refuse(refused), None);
        }
        outbox.received
    }

    /// Digests that the source asks for.
    ///
    /// # Errors
    /// `Invalid` for a disk that there is not; otherwise where the store cannot be read.
    pub fn digests(&self, want: Want) -> Result<Digests, Error> {
        let base = lock(&self.outbox).bases.get(want.disk as usize).cloned();
        let Some(Some(base)) = base else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "digests of a disk are asked for that is compared with nothing",
            ));
        };
        let (first, end) = (want.first, want.first + u64::from(want.count));
        let stored = match want.level {
            Level::Clusters => base.stored_clusters(first..end)?,
            Level::Leaves => base.stored_leaves(first..end)?,
        };
        let known = |stored: StoredDigest| Known {
            digest: stored.digest.0,
            lost: stored.is_lost,
        };
        Ok(Digests {
            want,
            known: stored.into_iter().map(known).collect(),
        })
    }

    /// Sends what has no place in the order. The permit bounds how much of that waits to be sent.
    pub fn say(&self, seq: u64, message: Message, permit: OwnedSemaphorePermit) {
        lock(&self.outbox).send(seq, message, Some(permit));
    }

    /// The next message, when it has come; `None` when there will be none.
    fn next(&self, timeout: Duration) -> Next {
        let mut inbox = lock(&self.inbox);
        loop {
            if let Some(error) = inbox.broken.take() {
                return Next::Broken(error);
            }
            if let Some(ended) = inbox.end.take_if(|ended| ended.code == Refusal::Rights) {
                return Next::End(ended);
            }
            if let Some(taken) = inbox.order.take() {
                return Next::Message(taken.seq, taken.frame);
            }
            if let Some(ended) = inbox.end.take() {
                return Next::End(ended);
            }
            if inbox.heard.elapsed() > timeout {
                return Next::Silent;
            }
            let waited = self.arrived.wait_timeout(inbox, POLL_INTERVAL);
            inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn has_more(&self) -> bool {
        lock(&self.inbox).order.has_next()
    }

    fn answer(&self, seq: u64, answer: Message) {
        let mut outbox = lock(&self.outbox);
        outbox.answers.push_back((seq, answer.clone()));
        while outbox.answers.len() > ANSWERS_KEPT {
            outbox.answers.pop_front();
        }
        outbox.send(seq, answer, None);
    }

    fn received(&self, seq: u64) {
        let mut outbox = lock(&self.outbox);
        outbox.received = seq;
        outbox.send(0, Message::Received(Upto { seq }), None);
    }

    fn note_received(&self, seq: u64) {
        lock(&self.outbox).received = seq;
    }

    fn durable(&self, seq: u64) {
        let mut outbox = lock(&self.outbox);
        outbox.durable = seq;
        outbox.send(0, Message::Durable(Upto { seq }), None);
    }

    fn refuse(&self, code: Refusal, text: String) {
        let refuse = Refuse {
            code,
            text,
            retry_after_s: None,
        };
        let mut outbox = lock(&self.outbox);
        outbox.refused = Some(refuse.clone());
        outbox.send(0, Message::Refuse(refuse), None);
    }

    /// The images that the disks were compared with are held no more.
    fn forget_bases(&self) {
        lock(&self.outbox).bases.clear();
    }

    fn set_base(&self, disk: usize, base: Option<Base>) {
        let mut outbox = lock(&self.outbox);
        if outbox.bases.len() <= disk {
            outbox.bases.resize(disk + 1, None);
        }
        outbox.bases[disk] = base;
    }
}

impl Outbox {
    /// Sends to the control connection there is. One that is lost is joined again, and what matters comes again then.
    fn send(&mut self, seq: u64, message: Message, permit: Option<OwnedSemaphorePermit>) {
        let Some(control) = &self.control else { return };
        match message.into_frame(seq) {
            Ok(frame) => {
                let bytes = frame.encode();
                if control.try_send(Outgoing { bytes, permit }).is_err() {
                    self.control = None;
                }
            }
            Err(error) => tracing::error!("a message cannot be sent: {error}"),
        }
    }
}

enum Next {
    Message(u64, Frame),
    Broken(wire::Error),
    End(Ended),
    Silent,
}

/// Why a session ends that has not come to its end.
#[derive(Debug)]
struct Ended {
    code: Refusal,
    text: String,
}

impl Ended {
    fn protocol(text: impl Into<String>) -> Ended {
        Ended {
            code: Refusal::Protocol,
            text: text.into(),
        }
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        let code = match error.kind() {
            ErrorKind::Busy => Refusal::Busy,
            ErrorKind::Damaged | ErrorKind::Unsupported => Refusal::Damaged,
            ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Exists => Refusal::Invalid,
            _ => Refusal::Failed,
        };
        Ended {
            code,
            text: error.full_message(),
        }
    }
}

impl From<wire::Error> for Ended {
    fn from(error: wire::Error) -> Ended {
        Ended::protocol(error.to_string())
    }
}

/// Applies a session's messages to an image.
pub struct Worker {
    session: Arc<Session>,
    sessions: Arc<Sessions>,
    config: Arc<Config>,
    registry: Registry,
    writing: Option<Writing>,
    is_done: bool,
}

/// An image being written.
struct Writing {
    image: ImageWriter,
    disks: Vec<DiskId>,
    job: String,
    run: Id128,
    space: Space,
}

impl Worker {
    /// For a session that begins.
    pub fn new(
        session: Arc<Session>,
        sessions: Arc<Sessions>,
        config: Arc<Config>,
        registry: Registry,
    ) -> Worker {
        Worker {
            session,
            sessions,
            config,
            registry,
            writing: None,
            is_done: false,
        }
    }

    /// Applies messages until the session is over. What is not committed then is kept for the next sync to resume.
    pub fn run(mut self) {
        let session = self.session.clone();
        match self.apply_all() {
            Ok(()) => {}
            Err(ended) => {
                tracing::warn!("the sync of source {} has ended: {}", session.source, ended.text);
                self.keep();
                session.refuse(ended.code, ended.text);
            }
        }
        drop(self.writing.take());
        session.forget_bases();
        session.is_over.store(true, Ordering::Release);
    }

    fn apply_all(&mut self) -> Result<(), Ended> {
        let mut unsaid_bytes = 0;
        while !self.is_done {
            let (seq, frame) = match self.session.next(self.config.session_timeout) {
                Next::Message(seq, frame) => (seq, frame),
                Next::Broken(error) => return Err(error.into()),
                Next::End(ended) => return Err(ended),
                Next::Silent => {
                    let text = "nothing was heard of the source for too long; its next sync resumes this one"
                        .to_owned();
                    return Err(Ended {
                        code: Refusal::NoSession,
                        text,
                    });
                }
            };
            let length_bytes = frame.len_bytes();
            let message = Message::from_frame(frame)?;
            // What is no cluster may take its time: the source is not left to wait for what was applied before it.
            if unsaid_bytes > 0 && !matches!(message, Message::Put(_)) {
                self.session.received(seq - 1);
                unsaid_bytes = 0;
            }
            unsaid_bytes += length_bytes;
            self.apply(seq, message)?;
            if unsaid_bytes >= ACKNOWLEDGE_BYTES || !self.session.has_more() {
                self.session.received(seq);
                unsaid_bytes = 0;
            } else {
                self.session.note_received(seq);
            }
        }
        Ok(())
    }

    fn apply(&mut self, seq: u64, message: Message) -> Result<(), Ended> {
        match message {
            Message::Begin(begin) if self.writing.is_none() => self.begin(seq, &begin),
            Message::BeginPass(begin) => self.begin_pass(seq, &begin),
            Message::Put(put) => self.put(&put),
            Message::EndPass(end) => self.end_pass(&end),
            Message::Checkpoint(Nothing {}) => self.checkpoint(seq),
            Message::Note(note) => self.note(&note),
            Message::Ask(ask) => self.told(seq, &ask),
            Message::Commit(commit) => self.commit(seq, &commit),
            Message::Leave(Nothing {}) => self.leave(seq),
            _ => Err(Ended::protocol("a message came that has no place there")),
        }
    }

    fn begin(&mut self, seq: u64, begin: &Begin) -> Result<(), Ended> {
        let request: PushRequest = read(&begin.request)?;
        let metas: Vec<DiskMeta> = begin.disks.iter().map(read).collect::<Result<_, _>>()?;
        check_disks(&metas)?;
        let directory = self.config.store_of(&self.session.source);
        let mut space = Space::of(&directory, self.config.quota)?;
        space.check()?;
        let store = Store::open_or_create(&directory, self.config.allow_network_fs)?;
        let cluster_size = request.cluster_bytes.map(ClusterSize::from_bytes).transpose()?;
        let mut image = self.become_writer(
            &store,
            &WriteRequest {
                job: request.job.clone(),
                take_up: request.take_up.clone(),
                cluster_size,
                disks: metas.iter().map(|meta| meta.name.clone()).collect(),
                owner: request.owner.clone(),
                // The store is the source's own: nobody else writes there.
                take_over: TakeOver::Always,
                may_shrink: request.may_shrink,
            },
        )?;
        let _ = self.session.job.set(request.job.clone());
        let mut disks = Vec::new();
        for meta in metas {
            disks.push(image.disk(meta)?);
        }
        tracing::info!("source {} begins {}", self.session.source, image.label());
        let begun = self.begun(&image, &disks)?;
        self.writing = Some(Writing {
            image,
            disks,
            job: request.job,
            run: begin.run,
            space,
        });
        self.session.answer(seq, Message::Begun(begun));
        Ok(())
    }

    /// Becomes the chain's writer, in place of a session that its source has lost.
    fn become_writer(&self, store: &Store, request: &WriteRequest) -> Result<ImageWriter, Error> {
        let end = Instant::now() + BUSY_PATIENCE;
        loop {
            match store.begin_write(request) {
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < end => {
                    self.sessions.end_lost(&self.session.source, &request.job);
                    std::thread::sleep(POLL_INTERVAL);
                }
                begun => return begun,
            }
        }
    }

    fn begun(&self, image: &ImageWriter, disks: &[DiskId]) -> Result<Begun, Ended> {
        let skipped = image.skipped_images().iter();
        let skipped = skipped.map(|(sequence, error)| {
            format!(
                "image {sequence} on the target is damaged and was not used: {}",
                error.full_message()
            )
        });
        Ok(Begun {
            sequence: image.sequence(),
            label: image.label(),
            chain: Id128(image.chain_id().bytes()),
            cluster_bytes: image.cluster_size().bytes(),
            parent: image
                .parent()
                .map(|parent| without_layers(parent.manifest()))
                .transpose()?,
            unfinished: image
                .resumed()
                .map(|resumed| without_layers(resumed.manifest()))
                .transpose()?,
            warnings: skipped.chain(image.warnings().iter().cloned()).collect(),
            bases: disks
                .iter()
                .map(|disk| self.base_of(image, *disk))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Makes the base of a disk known to its connections, and describes it.
    fn base_of(&self, image: &ImageWriter, disk: DiskId) -> Result<BaseOf, Ended> {
        let base = image.base(disk).cloned();
        self.session.set_base(disk.index(), base.clone());
        let stored = base.as_ref().and_then(Base::disk);
        Ok(BaseOf {
            size_bytes: stored.map(imagefmt::Disk::size_bytes),
            root: stored.map(|stored| Root(stored.root_digest().0)),
            tracked_from: image.tracked_from(disk).map(|id: Uuid| Id128(id.bytes())),
        })
    }

    fn writing(&mut self) -> Result<&mut Writing, Ended> {
        self.writing
            .as_mut()
            .ok_or_else(|| Ended::protocol("nothing has begun"))
    }

    fn begin_pass(&mut self, seq: u64, begin: &BeginPass) -> Result<(), Ended> {
        let method: Method = read(&begin.method)?;
        let writing = self.writing()?;
        let disk = writing.disk(begin.disk)?;
        writing.image.begin_pass(disk, method, &begin.reason)?;
        let Some(writing) = &self.writing else {
            return Ok(());
        };
        let base = self.base_of(&writing.image, disk)?;
        self.session.answer(seq, Message::PassBegun(PassBegun { base }));
        Ok(())
    }

    fn put(&mut self, put: &Put) -> Result<(), Ended> {
        let writing = self.writing()?;
        let disk = writing.disk(put.disk())?;
        for piece in put.pieces() {
            let update = ClusterUpdate {
                index: piece.cluster,
                digest: Digest(piece.digest),
                codec: Codec::from_byte(piece.codec)?,
                stored: piece.stored,
            };
            update.check(disk.geometry().cluster_len(piece.cluster))?;
            writing.image.push(disk, &update)?;
            writing.space.used(piece.stored.len() as u64);
        }
        Ok(writing.space.check()?)
    }

    fn end_pass(&mut self, end: &EndPass) -> Result<(), Ended> {
        let writing = self.writing()?;
        let disk = writing.disk(end.disk)?;
        Ok(writing.image.end_pass(disk, end.compared_bytes)?)
    }

    fn checkpoint(&mut self, seq: u64) -> Result<(), Ended> {
        self.writing()?.image.checkpoint()?;
        self.session.durable(seq);
        Ok(())
    }

    fn note(&mut self, note: &Note) -> Result<(), Ended> {
        let writing = self.writing()?;
        match (read(&note.note)?, note.disk) {
            (PushNote::Audit(audited), Some(disk)) => {
                let disk = writing.disk(disk)?;
                writing.image.note_audit(disk, audited)?;
            }
            (PushNote::Instant(instant), None) => writing.image.note_instant(instant),
            _ => return Err(Ended::protocol("a note belongs to no disk, or to one")),
        }
        Ok(())
    }

    fn told(&mut self, seq: u64, ask: &Ask) -> Result<(), Ended> {
        let writing = self.writing()?;
        let disk = writing.disk(ask.disk)?;
        let clusters = match ask.what {
            Asked::Anew { first, end } => Some(writing.image.to_store_anew(disk, first..end)?),
            Asked::Unreadable => writing.image.unreadable(disk),
        };
        self.session.answer(seq, Message::Told(Told { clusters }));
        Ok(())
    }

    fn commit(&mut self, seq: u64, commit: &Commit) -> Result<(), Ended> {
        let consistency: Consistency = read(&commit.consistency)?;
        let writing = self
            .writing
            .take()
            .ok_or_else(|| Ended::protocol("nothing has begun"))?;
        if writing.run != commit.run {
            return Err(Ended::protocol("the commit is one of another run"));
        }
        let (label, job) = (writing.image.label(), writing.job);
        let mut mismatch = None;
        let committed = writing
            .image
            .commit_if(consistency, &commit.reason, &mut |disks| {
                let expected = commit.disks.iter().map(|root| Some(Digest(root.0)));
                let found = disks.iter().map(|disk| Digest::from_hex(&disk.digest));
                if expected.eq(found) {
                    return Ok(());
                }
                let text =
                    "source and target have computed different digests of the disks: nothing is committed";
                mismatch = Some(text);
                Err(Error::damaged(text))
            });
        let manifest = committed.map_err(|error| match mismatch {
            Some(text) => Ended {
                code: Refusal::Mismatch,
                text: format!("{label}: {text}"),
            },
            None => Ended::from(error),
        })?;
        tracing::info!("source {} has committed {label}", self.session.source);
        if let Err(error) = self.registry.has_image(&self.session.source, Timestamp::now()) {
            tracing::warn!(
                "that source {} has images is not written down: {error:#}",
                self.session.source
            );
        }
        let warnings = retention::after_commit(
            &self.config,
            &self.registry,
            &self.session.source,
            &job,
            &manifest,
        );
        warnings
            .iter()
            .for_each(|warning| tracing::warn!("source {}: {warning}", self.session.source));
        let image = without_layers(&manifest)?;
        self.session
            .answer(seq, Message::Committed(Committed { image, warnings }));
        self.is_done = true;
        Ok(())
    }

    fn leave(&mut self, seq: u64) -> Result<(), Ended> {
        self.writing()?.image.checkpoint()?;
        self.session.durable(seq);
        self.session.answer(seq, Message::Left(Nothing {}));
        self.is_done = true;
        Ok(())
    }

    /// Keeps what came, as far as the store lets it.
    fn keep(&mut self) {
        if let Some(writing) = &mut self.writing
            && let Err(error) = writing.image.checkpoint()
        {
            tracing::warn!(
                "what {} has sent last is not kept: {}",
                self.session.source,
                error.full_message()
            );
        }
    }
}

impl Writing {
    fn disk(&self, number: u32) -> Result<DiskId, Ended> {
        let disk = self.disks.get(number as usize).copied();
        disk.ok_or_else(|| Ended::protocol(format!("there is no disk {number}")))
    }
}

/// Refuses disks that nobody has: sums over the disks of an image cannot overflow then.
fn check_disks(metas: &[DiskMeta]) -> Result<(), Ended> {
    if metas.len() > DISKS_MAX {
        return Err(Ended {
            code: Refusal::Invalid,
            text: format!("an image has at most {DISKS_MAX} disks, not {}", metas.len()),
        });
    }
    match metas.iter().find(|meta| meta.size_bytes > BYTES_MAX) {
        Some(meta) => Err(Ended {
            code: Refusal::Invalid,
            text: format!(
                "disk {} has more bytes than any disk: {}",
                meta.name, meta.size_bytes
            ),
        }),
        None => Ok(()),
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Ended> {
    T::deserialize(value).map_err(|error| Ended::protocol(format!("a record cannot be read: {error}")))
}

fn write<T: Serialize>(value: &T) -> Result<Value, Ended> {
    serde_json::to_value(value).map_err(|error| Ended {
        code: Refusal::Failed,
        text: format!("a record cannot be written: {error}"),
    })
}

/// An image's record as it is sent: where its clusters lie is the target's own affair.
pub fn stripped(manifest: &Manifest) -> Manifest {
    Manifest {
        layers: Vec::new(),
        ..manifest.clone()
    }
}

fn without_layers(manifest: &Manifest) -> Result<Value, Ended> {
    write(&stripped(manifest))
}
