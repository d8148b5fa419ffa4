//! The service: accepts connections, knows who they are, and gives frames to sessions.

use crate::answer::{Answer, Refused, body, failed, json, problem, test, unhealthy, upgraded};
use crate::authority::{Identity, SOURCE_DAYS};
use crate::config::Config;
use crate::metrics::{self, Counters, Reason};
use crate::registry::{Registry, Role, Source};
use crate::session::{OUTGOING_MAX, Outgoing, Session, Worker, stripped};
use crate::sessions::{Counted, Counts, Sessions};
use crate::space::Space;
use admission::{Admission, Bounds, Place};
use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::header::UPGRADE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use imagefmt::ErrorKind;
use jiff::Timestamp;
use remote::http::{Enrol, Enrolled, Renew, Status};
use remote::stream::{Reader, buffered, send};
use remote::tls;
use serde::Serialize;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use wire::message::{Hello, Nothing, Refusal, Refuse, Welcome};
use wire::{Id128, Message, VERSION};

/// How long a client may take to show who it is, and to ask for something.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Who may be connected. Who has shown no certificate that is known waits in places of its own, and a new one takes the
/// place of the one that has waited longest there: a source that means it is through in a moment.
const BOUNDS: Bounds = Bounds {
    connections: 512,
    handshakes: 128,
    handshakes_per_network: 32,
};
/// A connection that is silent for so long is closed: a source says something every ten seconds.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Questions of one connection that are being answered; further ones wait in the socket.
const ANSWERS_MAX: usize = 64;
/// Connections of one source at the same time: four syncs with all that they may have.
const CONNECTIONS_OF_SOURCE: usize = 64;
/// How long the session of a sync that is given up is waited for.
const DISCARD_PATIENCE: Duration = Duration::from_secs(10);
/// How often is looked whether the sources of running syncs still have rights.
const RIGHTS_INTERVAL: Duration = Duration::from_secs(2);
/// Syncs of one source at the same time.
const PER_SOURCE: usize = 4;

const TURNED_OUT: &str = "closed before it had shown who it is, because too many such clients are connected";

/// Why somebody whose key is not known (any more) gets nothing.
pub const NOT_ENROLLED: &str = "this machine is not enrolled here (any more)";

const SOFTWARE: &str = concat!("smc-store ", env!("CARGO_PKG_VERSION"));

/// What all connections share.
pub struct Target {
    /// Its settings.
    pub config: Arc<Config>,
    /// Who may do what.
    pub registry: Registry,
    /// What is counted.
    pub counters: Counters,
    identity: Identity,
    sessions: Arc<Sessions>,
    connections_of: Arc<Counts>,
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its name, if it has shown a certificate that is known here.
    pub source: Option<String>,
    /// What it may do.
    pub role: Option<Role>,
    /// The source whose store it is about: itself, or the one that it may read.
    pub of: String,
    /// SHA-256 of the key that it has shown.
    pub key: Option<[u8; 32]>,
    enrolled: Option<Timestamp>,
    held: Arc<Held>,
}

impl Peer {
    fn new(connection: Connection, known: Option<(String, Source)>) -> Peer {
        let Connection { key, held, .. } = connection;
        let (source, known) = known.unzip();
        let of = known
            .as_ref()
            .and_then(|known| known.of.clone())
            .or(source.clone());
        Peer {
            role: known.as_ref().map(|known| known.role),
            enrolled: known.map(|known| known.enrolled),
            of: of.unwrap_or_default(),
            source,
            key,
            held,
        }
    }
}

/// What stays the same as long as a connection lasts.
#[derive(Debug, Clone)]
struct Connection {
    /// SHA-256 of the key that was shown.
    key: Option<[u8; 32]>,
    /// Whose that was at the beginning.
    source: Option<String>,
    held: Arc<Held>,
}

/// What a connection occupies until it ends, frames included.
#[derive(Debug)]
struct Held {
    _place: Arc<Place>,
    _of_source: Option<Counted>,
}

impl Target {
    /// Opens what the service needs.
    ///
    /// # Errors
    /// A state directory that cannot be used.
    pub fn open(config: Config) -> Result<Arc<Target>> {
        Ok(Arc::new(Target {
            registry: Registry::in_directory(&config.state_dir),
            identity: Identity::open(&config.state_dir)?,
            config: Arc::new(config),
            counters: Counters::default(),
            sessions: Arc::default(),
            connections_of: Arc::default(),
        }))
    }

    /// How many syncs each source has.
    pub fn syncs_by_source(&self) -> std::collections::BTreeMap<String, usize> {
        self.sessions.by_source()
    }

    /// Connections of sources.
    pub fn connection_count(&self) -> usize {
        self.connections_of.count_all()
    }

    /// Ends all sessions with a checkpoint, and waits for that.
    pub async fn close(&self) {
        self.sessions.close();
        while !self.sessions.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Accepts connections for ever.
    ///
    /// # Errors
    /// When TLS cannot be used.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> Result<()> {
        let acceptor = TlsAcceptor::from(self.identity.tls()?);
        let admission = Admission::new(BOUNDS, None);
        tokio::spawn(self.clone().watch_rights());
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    let (place, evicted) = admission.wait(Some(admission::network(address.ip())));
                    let place = Arc::new(place);
                    let talk = self.clone().connection(stream, acceptor.clone(), place.clone());
                    let target = self.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            talked = talk => if let Err(error) = talked {
                                tracing::debug!("connection of {address}: {error:#}");
                            },
                            () = place.lost(evicted) => {
                                target.counters.refuse(Reason::Busy);
                                place.warn(&address, format_args!("{TURNED_OUT}"));
                            }
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        place: Arc<Place>,
    ) -> Result<()> {
        stream.set_nodelay(true)?;
        let encrypted = match timeout(HANDSHAKE, acceptor.accept(buffered(stream))).await {
            Ok(Ok(encrypted)) => encrypted,
            failed => {
                self.counters.refuse(Reason::Handshake);
                return failed?.map(drop).map_err(Into::into);
            }
        };
        let shown = encrypted
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|shown| shown.first());
        let key = shown.map(|certificate| tls::key_hash(certificate)).transpose()?;
        let connection = self.admit(key, place).await?;
        let service = service_fn(move |request| {
            let (target, connection) = (self.clone(), connection.clone());
            async move { Ok::<_, Infallible>(target.answer(connection, request).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE)
            .serve_connection(TokioIo::new(encrypted), service)
            .with_upgrades();
        Ok(served.await?)
    }

    /// Who has shown this key now, and what it may do: rights may have been taken, and keys replaced, since the connection was made.
    async fn known(self: &Arc<Self>, key: Option<[u8; 32]>) -> Result<Option<(String, Source)>> {
        let Some(key) = key else { return Ok(None) };
        let target = self.clone();
        tokio::task::spawn_blocking(move || target.registry.with_key(&key)).await?
    }

    /// A source gets a place of its own, as far as there is one.
    async fn admit(self: &Arc<Self>, key: Option<[u8; 32]>, place: Arc<Place>) -> Result<Connection> {
        let known = self.known(key).await?;
        let of_source = match &known {
            Some((source, _)) => {
                let busy = |what| self.refused(Reason::Busy, what);
                let counted = self.connections_of.count(source, CONNECTIONS_OF_SOURCE);
                let counted = counted.ok_or_else(|| busy("it has too many connections"))?;
                if !place.admit(source) {
                    return Err(busy("there are too many connections"));
                }
                Some(counted)
            }
            None => None,
        };
        Ok(Connection {
            key,
            source: known.map(|(source, _)| source),
            held: Arc::new(Held {
                _place: place,
                _of_source: of_source,
            }),
        })
    }

    /// Who asks: the source that the connection was let in for, if that may still show its key.
    async fn peer(self: &Arc<Self>, connection: Connection) -> Result<Peer> {
        let known = self.known(connection.key).await?;
        let known = known.filter(|(name, _)| connection.source.as_ref() == Some(name));
        Ok(Peer::new(connection, known))
    }

    async fn answer(self: Arc<Self>, connection: Connection, mut request: Request<Incoming>) -> Answer {
        let peer = match self.peer(connection).await {
            Ok(peer) => peer,
            Err(error) => return failed(&error),
        };
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (&method, parts.as_slice()) {
            (&Method::GET, ["v1", "health"]) => {
                json(StatusCode::OK, &serde_json::json!({ "software": SOFTWARE }))
            }
            (&Method::POST, ["v1", "enrol"]) => self.enrol(request).await,
            (&Method::GET, ["healthz"]) => self.health().await,
            (&Method::GET | &Method::POST, ["v1", ..]) if peer.source.is_none() => {
                self.counters.refuse(Reason::Unknown);
                problem(StatusCode::UNAUTHORIZED, NOT_ENROLLED)
            }
            (&Method::POST, ["v1", "renew"]) => self.renew(&peer, request).await,
            (&Method::GET, ["v1", "status"]) => {
                let of = peer.of.clone();
                self.blocking(peer, move |target, source| target.status(source, &of))
                    .await
            }
            (&Method::GET, ["v1", "store" | "hold", ..]) if peer.role == Some(Role::Pull) => {
                self.pull(peer, &mut request).await
            }
            (_, ["v1", "store" | "hold", ..]) => {
                self.no_rights("this machine may not read images here: it has not the role pull")
            }
            (_, ["v1", ..]) if peer.role != Some(Role::Push) => {
                self.no_rights("this machine may only read images here: it has the role pull")
            }
            (&Method::POST, ["v1", "test"]) => test(request).await,
            (&Method::GET, ["v1", "jobs", job, "newest"]) => {
                let job = (*job).to_owned();
                self.blocking(peer, move |target, source| target.newest(source, &job))
                    .await
            }
            (&Method::GET, ["v1", "jobs", job, "images"]) => {
                let job = (*job).to_owned();
                self.blocking(peer, move |target, source| target.images(source, &job))
                    .await
            }
            (&Method::POST, ["v1", "jobs", job, "discard"]) => {
                let job = (*job).to_owned();
                self.blocking(peer, move |target, source| target.discard(source, &job))
                    .await
            }
            (&Method::GET, ["v1", "push"]) => self.push(peer, &mut request),
            _ => problem(StatusCode::NOT_FOUND, "there is nothing of this name here"),
        }
    }

    fn no_rights(&self, text: &str) -> Answer {
        self.counters.refuse(Reason::Rights);
        problem(StatusCode::FORBIDDEN, text)
    }

    fn refused(&self, reason: Reason, text: &'static str) -> anyhow::Error {
        self.counters.refuse(reason);
        anyhow::anyhow!(text)
    }

    /// Clients without a certificate do not learn what is wrong.
    async fn health(self: Arc<Self>) -> Answer {
        let checked =
            tokio::task::spawn_blocking(move || metrics::check_health(&self.config, &self.registry)).await;
        match checked {
            Ok(Ok(())) => json(StatusCode::OK, &serde_json::json!({ "healthy": true })),
            Ok(Err(error)) => unhealthy(&error),
            Err(error) => unhealthy(&error.into()),
        }
    }

    /// Answers from the store, on a thread that may wait for it.
    async fn blocking<T: Serialize + Send + 'static>(
        self: Arc<Self>,
        peer: Peer,
        ask: impl FnOnce(&Target, &str) -> Result<T> + Send + 'static,
    ) -> Answer {
        let asked =
            tokio::task::spawn_blocking(move || ask(&self, peer.source.as_deref().unwrap_or_default()));
        match asked.await {
            Ok(Ok(answer)) => json(StatusCode::OK, &answer),
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error.into()),
        }
    }

    async fn enrol(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let asked: Enrol = match body(request).await {
            Ok(asked) => asked,
            Err(error) => return problem(StatusCode::BAD_REQUEST, &error),
        };
        let Ok(secret) = hex::decode(&asked.secret) else {
            return problem(StatusCode::BAD_REQUEST, "the secret is not one");
        };
        let enrolled = tokio::task::spawn_blocking(move || {
            self.registry.enrol(&secret, Timestamp::now(), |source, role| {
                let (certificate, key) = self.sign(source, &asked.request)?;
                tracing::info!("source {source} is enrolled");
                Ok((self.enrolled(certificate, source, &role.to_string()), key))
            })
        });
        match enrolled.await {
            Ok(Ok(Some(enrolled))) => json(StatusCode::OK, &enrolled),
            Ok(Ok(None)) => problem(
                StatusCode::FORBIDDEN,
                "the invitation was used already, or is older than an hour: `smc-store enrol SOURCE` prints another one",
            ),
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error.into()),
        }
    }

    async fn renew(self: Arc<Self>, peer: &Peer, request: Request<Incoming>) -> Answer {
        let asked: Renew = match body(request).await {
            Ok(asked) => asked,
            Err(error) => return problem(StatusCode::BAD_REQUEST, &error),
        };
        let Some(shown) = peer.key else {
            return problem(StatusCode::UNAUTHORIZED, "this machine has shown no key");
        };
        self.blocking(peer.clone(), move |target, source| {
            let (certificate, key) = target.sign(source, &asked.request)?;
            let role = target.registry.add_key(source, &shown, &key)?;
            let role = role.ok_or_else(|| Refused {
                status: StatusCode::UNAUTHORIZED,
                text: NOT_ENROLLED.to_owned(),
            })?;
            Ok(target.enrolled(certificate, source, &role.to_string()))
        })
        .await
    }

    fn sign(&self, source: &str, request: &str) -> Result<(String, [u8; 32])> {
        let certificate = self.identity.authority.sign(source, request, SOURCE_DAYS)?;
        let key = tls::key_hash_of_pem(&certificate)?;
        Ok((certificate, key))
    }

    fn enrolled(&self, certificate: String, source: &str, role: &str) -> Enrolled {
        Enrolled {
            certificate,
            authority: self.identity.authority.certificate().to_owned(),
            source: source.to_owned(),
            role: role.to_owned(),
        }
    }

    fn status(&self, source: &str, of: &str) -> Result<Status> {
        let space = Space::of(&self.config.store_of(of), self.config.quota)?;
        let mut jobs = std::collections::BTreeMap::new();
        if let Some(store) = self.config.open_store(of)? {
            for (job, images) in store.jobs()? {
                if let Some(latest) = images.latest() {
                    jobs.insert(job, latest.sequence());
                }
            }
        }
        Ok(Status {
            source: source.to_owned(),
            software: SOFTWARE.to_owned(),
            clock_s: Timestamp::now().as_second(),
            free_bytes: space.left_bytes(),
            busy: (!self.sessions.has_room(source, self.config.max_syncs, PER_SOURCE))
                .then(|| self.too_many_syncs()),
            jobs,
        })
    }

    fn newest(&self, source: &str, job: &str) -> Result<Option<imagefmt::Manifest>> {
        check_job(job)?;
        let Some(store) = self.config.open_store(source)? else {
            return Ok(None);
        };
        let Some(images) = store.images_of(job)? else {
            return Ok(None);
        };
        let found = match images.latest() {
            Some(latest) => Some(stripped(&*store.manifest(&latest)?)),
            None => store.unfinished(job)?.as_ref().map(stripped),
        };
        Ok(found)
    }

    fn images(&self, source: &str, job: &str) -> Result<Vec<u64>> {
        check_job(job)?;
        let Some(store) = self.config.open_store(source)? else {
            return Ok(Vec::new());
        };
        let images = store.images_of(job)?;
        Ok(images
            .map(|images| images.sequences().to_vec())
            .unwrap_or_default())
    }

    /// Drops what the unfinished sync of a job has stored, also of a session that its source has lost. Says whether there was one.
    fn discard(&self, source: &str, job: &str) -> Result<bool> {
        check_job(job)?;
        let Some(store) = self.config.open_store(source)? else {
            return Ok(false);
        };
        let end = Instant::now() + DISCARD_PATIENCE;
        loop {
            match store.discard_unfinished(job) {
                Ok(_) => {
                    tracing::info!("source {source} has given up the unfinished sync of {job}");
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < end => {
                    self.sessions.end_lost(source, job);
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(error) if error.kind() == ErrorKind::Busy => {
                    let text =
                        format!("the unfinished sync of {job} is not dropped: another sync of it runs");
                    let status = StatusCode::CONFLICT;
                    return Err(Refused { status, text }.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn too_many_syncs(&self) -> String {
        format!(
            "there are as many syncs at once as there may be: {PER_SOURCE} of a source, {} in all",
            self.config.max_syncs
        )
    }

    /// Ends the sessions of sources that are not enrolled any more, or were enrolled again: with another key.
    async fn watch_rights(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RIGHTS_INTERVAL).await;
            if self.sessions.is_empty() {
                continue;
            }
            let target = self.clone();
            match tokio::task::spawn_blocking(move || target.registry.sources()).await {
                Ok(Ok(sources)) => self.sessions.end_others(|source, enrolled| {
                    let known = sources.get(source);
                    known.is_some_and(|known| known.role == Role::Push && known.enrolled == enrolled)
                }),
                Ok(Err(error)) => tracing::error!("it is not known who may continue a sync: {error:#}"),
                Err(error) => tracing::error!("it is not known who may continue a sync: {error}"),
            }
        }
    }

    /// Changes to frames.
    fn push(self: Arc<Self>, peer: Peer, request: &mut Request<Incoming>) -> Answer {
        let wanted = request
            .headers()
            .get(UPGRADE)
            .is_some_and(|wanted| wanted == wire::PROTOCOL);
        let Some(source) = peer.source.zip(peer.enrolled).filter(|_| wanted) else {
            return problem(StatusCode::UPGRADE_REQUIRED, "this is only for smc-push/1");
        };
        let upgrade = hyper::upgrade::on(request);
        let held = peer.held;
        tokio::spawn(async move {
            let _held = held;
            let talked = match upgrade.await {
                Ok(upgraded) => self.talk(source, upgraded).await,
                Err(error) => Err(io::Error::other(error)),
            };
            if let Err(error) = talked {
                tracing::debug!("a connection has ended: {error}");
            }
        });
        upgraded(wire::PROTOCOL)
    }

    /// One connection of frames.
    async fn talk(self: Arc<Self>, source: (String, Timestamp), upgraded: Upgraded) -> io::Result<()> {
        let (reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
        let mut reader = Reader::of_source(reader);
        let first = timeout(HANDSHAKE, reader.message()).await??;
        let Some((_, Message::Hello(hello))) = first else {
            return refuse(&mut writer, Refusal::Protocol, "the first message is no hello").await;
        };
        let session = match self.session_for(&source, &hello) {
            Ok(session) => session,
            Err((code, text)) => return refuse(&mut writer, code, &text).await,
        };
        match hello.lane {
            None => control(&session, reader, writer).await,
            Some(_) => lane(&session, reader, writer).await,
        }
    }

    /// The session that a connection joins, or a new one.
    fn session_for(
        &self,
        (source, enrolled): &(String, Timestamp),
        hello: &Hello,
    ) -> std::result::Result<Arc<Session>, (Refusal, String)> {
        if !hello.versions.contains(&VERSION) {
            return Err((
                Refusal::Version,
                format!("version {VERSION} of the protocol is spoken here"),
            ));
        }
        if let Some(id) = hello.session {
            let lost = || {
                (
                    Refusal::NoSession,
                    "the target does not have this session any more".to_owned(),
                )
            };
            return self.sessions.find(source, *enrolled, id).ok_or_else(lost);
        }
        if hello.lane.is_some() {
            return Err((
                Refusal::Protocol,
                "a data connection belongs to a session".to_owned(),
            ));
        }
        let failed = |error: String| (Refusal::Failed, error);
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| failed(error.to_string()))?;
        let session = Arc::new(Session::new(Id128(id), source, *enrolled));
        if !self.sessions.add(&session, self.config.max_syncs, PER_SOURCE) {
            self.counters.refuse(Reason::Busy);
            return Err((Refusal::Busy, self.too_many_syncs()));
        }
        let (own, sessions) = (session.clone(), self.sessions.clone());
        let (config, registry) = (self.config.clone(), self.registry.clone());
        let started = std::thread::Builder::new()
            .name(format!("sync {source}").chars().take(15).collect())
            .spawn(move || Worker::new(own, sessions, config, registry).run());
        if let Err(error) = started {
            session.abandon();
            return Err(failed(error.to_string()));
        }
        Ok(session)
    }
}

/// Refuses what cannot be the name of a job.
fn check_job(job: &str) -> Result<()> {
    imagefmt::check_name("job", job).map_err(|error| {
        let (status, text) = (StatusCode::BAD_REQUEST, error.to_string());
        Refused { status, text }.into()
    })
}

type FrameReader = Reader<tokio::io::ReadHalf<TokioIo<Upgraded>>>;
type FrameWriter = WriteHalf<TokioIo<Upgraded>>;

async fn refuse(writer: &mut FrameWriter, code: Refusal, text: &str) -> io::Result<()> {
    let refuse = Refuse {
        code,
        text: text.to_owned(),
        retry_after_s: None,
    };
    send(writer, 0, Message::Refuse(refuse)).await?;
    writer.shutdown().await
}

/// A control connection: numbered messages and questions in, answers out.
async fn control(session: &Arc<Session>, mut reader: FrameReader, mut writer: FrameWriter) -> io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<Outgoing>(OUTGOING_MAX);
    // What has been refused, and answers that were not heard, come behind the welcome.
    let received = session.join(sender);
    welcome(session, received, &mut writer).await?;
    let writing = async {
        while let Some(Outgoing { bytes, permit }) = receiver.recv().await {
            // A source that takes nothing is no source any more.
            timeout(SILENCE, writer.write_all(&bytes)).await??;
            drop(permit);
            if receiver.is_empty() {
                writer.flush().await?;
            }
        }
        // Another control connection has taken its place.
        Ok::<_, io::Error>(())
    };
    tokio::select! {
        done = writing => done,
        done = read_control(session, &mut reader) => done,
    }
}

async fn welcome(session: &Session, received: u64, writer: &mut FrameWriter) -> io::Result<()> {
    let welcome = Welcome {
        version: VERSION,
        software: SOFTWARE.to_owned(),
        session: session.id,
        received,
        credit_bytes: session.credit_bytes,
    };
    send(writer, 0, Message::Welcome(welcome)).await
}

async fn read_control(session: &Arc<Session>, reader: &mut FrameReader) -> io::Result<()> {
    let answers = Arc::new(Semaphore::new(ANSWERS_MAX));
    while let Some(frame) = timeout(SILENCE, reader.next()).await?? {
        if frame.seq > 0 && !frame.is_question() {
            session.push(frame);
            continue;
        }
        session.hear();
        let number = frame.seq;
        let permit = answers.clone().acquire_owned().await.map_err(io::Error::other)?;
        match Message::from_frame(frame).map_err(io::Error::other)? {
            Message::Ping(_) => session.say(0, Message::Pong(Nothing {}), permit),
            Message::Want(want) => answer_want(session.clone(), number, want, permit),
            _ => return Err(io::Error::other("a message came without its number")),
        }
    }
    Ok(())
}

fn answer_want(session: Arc<Session>, number: u64, want: wire::digests::Want, permit: OwnedSemaphorePermit) {
    tokio::task::spawn_blocking(move || match session.digests(want) {
        Ok(digests) => session.say(number, Message::Digests(digests), permit),
        Err(error) => {
            let refuse = Refuse {
                code: Refusal::Failed,
                text: error.full_message(),
                retry_after_s: None,
            };
            session.say(0, Message::Refuse(refuse), permit);
        }
    });
}

/// A data connection: clusters in, nothing out.
async fn lane(session: &Arc<Session>, mut reader: FrameReader, mut writer: FrameWriter) -> io::Result<()> {
    welcome(session, 0, &mut writer).await?;
    while let Some(frame) = timeout(SILENCE, reader.next()).await?? {
        match frame.seq {
            0 => session.hear(),
            _ => session.push(frame),
        }
        if session.is_over() {
            break;
        }
    }
    Ok(())
}

/// Runs the service until it is asked to stop.
///
/// # Errors
/// Settings that cannot be used, an address that is taken.
pub fn run(config: Config) -> Result<()> {
    for directory in [&config.state_dir, &config.stores] {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    let (listen, metrics) = (config.listen.clone(), config.metrics.clone());
    let target = Target::open(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start threads")?;
    let stopped = stop_signal()?;
    let served = runtime.block_on(async {
        let listener = TcpListener::bind(&listen)
            .await
            .with_context(|| format!("listen at {listen}"))?;
        tracing::info!("listening at {}", listener.local_addr()?);
        if let Some(place) = &metrics {
            tokio::spawn(metrics::Listener::bind(place).await?.serve(target.clone()));
            tracing::info!("metrics are at {place}");
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let served = tokio::select! {
            done = target.clone().serve(listener) => done,
            _ = stopped => Ok(()),
        };
        target.close().await;
        served
    });
    // A request that waits for a store is not waited for: what it reads is not changed by that.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Becomes ready at SIGTERM or SIGINT.
fn stop_signal() -> Result<tokio::sync::oneshot::Receiver<()>> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])
            .context("watch for signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if signals.forever().next().is_some() {
                let _ = sender.send(());
            }
        })
        .context("start a thread")?;
    Ok(receiver)
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
