//! Drives one connection: moves bytes between its socket and the state machines, calls the
//! catalog and the export on the pool, and keeps the limits.

use std::rc::Rc;
use std::sync::Arc;

use admission::{Evicted, Place};
use tokio::time::timeout;

use crate::channel::Channel;
use crate::driver::{self, Stream};
use crate::handshake::{self, Answer, Handshake, Question, Session, Step};
use crate::input::Input;
use crate::link;
use crate::listen::Accepted;
use crate::shared::{Shared, Stage};
use crate::tls::Tls;
use crate::{Catalog, Client, ErrorKind, ExportInfo, Limits, ServeError};

/// Tells a handshake whether the server is shutting down.
fn notify<'a>(shared: &Shared, machine: &'a mut Handshake) -> &'a mut Handshake {
    if shared.is_draining() {
        machine.drain();
    }
    machine
}

/// A connection on its way to a worker, and its place.
pub(crate) struct Guest {
    pub(crate) accepted: Accepted,
    pub(crate) place: Place,
    pub(crate) evicted: Evicted,
}

/// Serves one client from greeting to close. Whatever happens in it touches no other connection.
pub(crate) async fn serve(guest: Guest, shared: Arc<Shared>) {
    let Guest {
        accepted,
        place,
        evicted,
    } = guest;
    let stream = match Stream::new(accepted.socket) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "dropped a client whose socket cannot be watched"),
    };
    let channel = Rc::new(Channel::new(stream));
    let newcomer = Newcomer {
        channel: Rc::clone(&channel),
        client: accepted.client,
        tls: accepted.tls,
        place,
        shared,
    };
    let task = driver::spawn(newcomer.converse(evicted));
    if let Err(error) = task.await {
        tracing::error!(%error, "a connection failed inside the server and was dropped");
    }
    channel.shut_down();
}

/// A client that has connected.
struct Newcomer {
    channel: Rc<Channel>,
    client: Client,
    tls: Option<Tls>,
    place: Place,
    shared: Arc<Shared>,
}

impl Newcomer {
    async fn converse(self, evicted: Evicted) {
        let mut input = Input::new(Rc::clone(&self.channel));
        let negotiated = tokio::select! {
            negotiated = timeout(self.shared.limits.handshake, self.negotiate(&mut input)) => negotiated,
            () = self.place.lost(evicted) => {
                let why = "closed before it had shown who it is, because too many such clients are connected";
                return self.place.warn(&self.client, format_args!("{why}"));
            }
            () = self.shared.reached(Stage::Closing) => return,
        };
        match negotiated {
            Ok(Some(session)) => {
                link::transmit(Rc::clone(&self.channel), input, &session, &self.shared).await;
                // To close an export may block as well.
                self.shared.pool.submit(move || drop(session));
            }
            Ok(None) => self.say_why(&input),
            Err(_) => {
                let limit = self.shared.limits.handshake;
                self.place.warn(
                    &self.client,
                    format_args!("closed because it did not finish its handshake within {limit:?}"),
                );
            }
        }
    }

    /// Logs a handshake of TLS that was refused, by either side.
    fn say_why(&self, input: &Input) {
        if let Some(error) = input.refused() {
            let refused = format_args!("refused, because its TLS handshake failed: {error}");
            self.place.warn(&self.client, refused);
        }
    }

    /// The handshake; `None` if the connection is to be closed.
    async fn negotiate(&self, input: &mut Input) -> Option<Session> {
        let (channel, shared) = (&*self.channel, &*self.shared);
        let required = match self.tls {
            Some(_) => handshake::Tls::Required,
            None => handshake::Tls::None,
        };
        let (mut machine, greeting) = Handshake::new(&shared.limits, required);
        let mut step = Step::Send(greeting);
        loop {
            match step {
                Step::Read => self.read(input).await.then_some(())?,
                Step::Send(bytes) => send(channel, bytes).await?,
                Step::Encrypt(bytes) => {
                    send(channel, bytes).await?;
                    channel.encrypt(self.tls.as_ref()?).ok()?;
                }
                Step::Ask(question) => {
                    let answer = self.ask(question).await;
                    step = notify(shared, &mut machine).answer(answer);
                    continue;
                }
                Step::Enter(bytes, session) => {
                    send(channel, bytes).await?;
                    return Some(session);
                }
                Step::Close(bytes, why) => {
                    tracing::debug!(why, "closing during the handshake");
                    // H8: a client that aborts need not wait for the reply.
                    send(channel, bytes).await;
                    channel.finish().await;
                    return None;
                }
            }
            step = input.feed(|bytes| notify(shared, &mut machine).advance(bytes));
        }
    }

    /// Reads more. What has come through TLS comes from a client that has shown its certificate.
    async fn read(&self, input: &mut Input) -> bool {
        input.fill().await && (!self.channel.is_encrypted() || self.place.admit(&self.client))
    }

    async fn ask(&self, question: Question) -> Answer {
        if matches!(question, Question::Open(_)) && !self.place.admit(&self.client) {
            let text = too_many(&self.shared.limits);
            return Answer::Failed(ServeError::new(ErrorKind::Refused, text));
        }
        let catalog = Arc::clone(&self.shared.catalog);
        let client = self.client.with_certificate(self.channel.certificate());
        let asked = self
            .shared
            .pool
            .run(move || consult(&*catalog, &client, &question));
        let failed = || ServeError::new(ErrorKind::Io, "the server failed on this request; see its log");
        asked.await.unwrap_or_else(|| Answer::Failed(failed()))
    }
}

fn too_many(limits: &Limits) -> String {
    format!(
        "the server has {} connections, and takes no more at a time",
        limits.connections
    )
}

async fn send(channel: &Channel, bytes: Vec<u8>) -> Option<()> {
    let length = bytes.len();
    channel.write(bytes, 0..length).await.0.ok()
}

/// Asks the catalog; blocks. Only here is an export opened.
pub(crate) fn consult(catalog: &dyn Catalog, client: &Client, question: &Question) -> Answer {
    let answer = match question {
        Question::List => catalog.list().map(Answer::Exports),
        Question::Describe(name) => catalog.info(name, client).and_then(sized).map(Answer::Described),
        Question::Contexts(name) => contexts(catalog, client, name),
        Question::Open(name) => open(catalog, client, name),
    };
    answer.unwrap_or_else(Answer::Failed)
}

fn contexts(catalog: &dyn Catalog, client: &Client, name: &str) -> Result<Answer, ServeError> {
    // Whether there is such an export, the catalog says here.
    catalog.info(name, client)?;
    catalog.contexts(name, client).map(Answer::Contexts)
}

fn open(catalog: &dyn Catalog, client: &Client, name: &str) -> Result<Answer, ServeError> {
    let info = catalog.info(name, client)?;
    let export = catalog.open(name, client)?;
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
