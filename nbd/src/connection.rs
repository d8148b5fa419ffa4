//! Drives one connection: moves bytes between its socket and the state machines, calls the
//! catalog and the export on the pool, and keeps the limits.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::timeout;

use crate::channel::Channel;
use crate::handshake::{self, Answer, Handshake, Question, Session, Step};
use crate::input::Input;
use crate::link;
use crate::listen::Accepted;
use crate::shared::{Shared, Stage};
use crate::tls::Tls;
use crate::uring::{self, Stream};
use crate::{Catalog, ErrorKind, ExportInfo, ServeError};

/// Tells a handshake whether the server is shutting down.
fn notify<'a>(shared: &Shared, machine: &'a mut Handshake) -> &'a mut Handshake {
    if shared.is_draining() {
        machine.drain();
    }
    machine
}

/// Serves one client from greeting to close. Whatever happens in it touches no other connection.
pub(crate) async fn serve(accepted: Accepted, shared: Arc<Shared>) {
    let Accepted { socket, tls } = accepted;
    let channel = Rc::new(Channel::new(Stream::new(socket)));
    let task = uring::spawn(converse(Rc::clone(&channel), tls, shared));
    if let Err(error) = task.await {
        tracing::error!(%error, "a connection failed inside the server and was dropped");
    }
    channel.shut_down();
}

async fn converse(channel: Rc<Channel>, tls: Option<Tls>, shared: Arc<Shared>) {
    let mut input = Input::new(Rc::clone(&channel));
    let negotiation = negotiate(&channel, tls.as_ref(), &mut input, &shared);
    let negotiated = tokio::select! {
        negotiated = timeout(shared.limits.handshake, negotiation) => negotiated,
        () = shared.reached(Stage::Closing) => return,
    };
    match negotiated {
        Ok(Some(session)) => {
            link::transmit(channel, input, &session, &shared).await;
            // To close an export may block as well.
            shared.pool.submit(move || drop(session));
        }
        Ok(None) => {}
        Err(_) => tracing::info!("dropped a client that did not finish its handshake in time"),
    }
}

/// The handshake; `None` if the connection is to be closed.
async fn negotiate(
    channel: &Channel,
    tls: Option<&Tls>,
    input: &mut Input,
    shared: &Arc<Shared>,
) -> Option<Session> {
    let required = match tls {
        Some(_) => handshake::Tls::Required,
        None => handshake::Tls::None,
    };
    let (mut machine, greeting) = Handshake::new(&shared.limits, required);
    let mut step = Step::Send(greeting);
    loop {
        match step {
            Step::Read => input.fill().await.then_some(())?,
            Step::Send(bytes) => send(channel, bytes).await?,
            Step::Encrypt(bytes) => {
                send(channel, bytes).await?;
                channel.encrypt(tls?).ok()?;
            }
            Step::Ask(question) => {
                let answer = ask(shared, question).await;
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

async fn send(channel: &Channel, bytes: Vec<u8>) -> Option<()> {
    let length = bytes.len();
    channel.write(bytes, 0..length).await.0.ok()
}

async fn ask(shared: &Arc<Shared>, question: Question) -> Answer {
    let catalog = Arc::clone(&shared.catalog);
    let answer = shared.pool.run(move || consult(&*catalog, &question)).await;
    let failed = || ServeError::new(ErrorKind::Io, "the server failed on this request; see its log");
    answer.unwrap_or_else(|| Answer::Failed(failed()))
}

/// Asks the catalog; blocks. Only here is an export opened.
pub(crate) fn consult(catalog: &dyn Catalog, question: &Question) -> Answer {
    let answer = match question {
        Question::List => catalog.list().map(Answer::Exports),
        Question::Describe(name) => catalog.info(name).and_then(sized).map(Answer::Described),
        Question::Contexts(name) => contexts(catalog, name),
        Question::Open(name) => open(catalog, name),
    };
    answer.unwrap_or_else(Answer::Failed)
}

fn contexts(catalog: &dyn Catalog, name: &str) -> Result<Answer, ServeError> {
    // Whether there is such an export, the catalog says here.
    catalog.info(name)?;
    catalog.contexts(name).map(Answer::Contexts)
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
