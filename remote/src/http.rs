//! Connections to a target: requests, and what they become when both sides change to frames.

use crate::checked;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Credentials, TargetFiles, TargetRecord};
use crate::invitation::Invitation;
use crate::stream::{Reader, buffered};
use crate::tls;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{BufReader, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a target may take to answer, until a connection is there.
pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// The longest answer to a request.
const ANSWER_MAX_BYTES: usize = 8 << 20;

/// A connection that requests are sent on.
pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// A connection that has changed to another protocol.
pub(crate) type Changed = TokioIo<Upgraded>;

/// Frames to and from a target.
pub(crate) type FrameReader = Reader<ReadHalf<Changed>>;
pub(crate) type FrameWriter = WriteHalf<Changed>;

/// Asks to be enrolled.
#[derive(Debug, Serialize, Deserialize)]
pub struct Enrol {
    /// The secret of the invitation, in hexadecimal digits.
    pub secret: String,
    /// The request for a certificate, PEM.
    pub request: String,
}

/// Asks for a new certificate.
#[derive(Debug, Serialize, Deserialize)]
pub struct Renew {
    /// The request for a certificate, PEM.
    pub request: String,
}

/// The answer to both.
#[derive(Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// The certificate, PEM.
    pub certificate: String,
    /// That of the authority, PEM.
    pub authority: String,
    /// The source's name.
    pub source: String,
    /// What it may do.
    pub role: String,
}

/// The most that one test of the line may send.
pub const TEST_MAX_BYTES: u64 = 4 << 30;

/// The answer to a test of the line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tested {
    /// Bytes of the request's body.
    pub received_bytes: u64,
}

/// What a target says when it does not do what a request wants.
#[derive(Debug, Serialize, Deserialize)]
pub struct Problem {
    /// For people.
    pub error: String,
}

/// Opens a TCP and a TLS connection.
async fn connect(
    address: &str,
    config: Arc<rustls::ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<BufReader<TcpStream>>> {
    let reach = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    };
    let late = |_| Error::unreachable(format!("{address} does not answer"));
    let stream = timeout(CONNECT_PATIENCE, reach).await.map_err(late)?;
    let stream = stream.map_err(|error| {
        Error::unreachable(format!("the target at {address} cannot be reached")).caused_by(error)
    })?;
    let handshake = TlsConnector::from(config).connect(tls::target_name(), buffered(stream));
    let done = timeout(CONNECT_PATIENCE, handshake).await.map_err(late)?;
    done.map_err(|error| handshake_failed(address, error))
}

fn handshake_failed(address: &str, error: std::io::Error) -> Error {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(_)) => Error::untrue(format!(
            "{address} is not the target that this machine knows: its certificate is not signed by the target's authority"
        )),
        _ => Error::unreachable(format!("no encrypted connection to {address}"))
            .caused_by(error)
            .hung_up(),
    }
}

/// Opens a connection for requests.
pub(crate) async fn open<B>(address: &str, config: Arc<rustls::ClientConfig>) -> Result<SendRequest<B>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = connect(address, config).await?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| no_answer(address, error))?;
    tokio::spawn(async move {
        // Whoever waits for an answer learns of an error himself.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

/// A connection that ended before the answer.
pub(crate) fn no_answer(address: &str, error: hyper::Error) -> Error {
    Error::unreachable(format!("the target at {address} gave no answer"))
        .caused_by(error)
        .hung_up()
}

/// A request.
pub(crate) fn request<B>(address: &str, method: Method, path: &str, body: B) -> Result<Request<B>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address)
        .body(body)
        .map_err(|error| Error::invalid(format!("{address} cannot be asked for {path}")).caused_by(error))
}

/// Sends a request and reads the answer, as a JSON object.
async fn ask<T: for<'de> Deserialize<'de>>(
    address: &str,
    config: Arc<rustls::ClientConfig>,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<T> {
    let talk = async {
        let sender = open(address, config).await?;
        let body = Full::new(Bytes::from(body));
        send(sender, address.to_owned(), method, path, body).await
    };
    let late = |_| Error::unreachable(format!("{address} does not answer"));
    timeout(CONNECT_PATIENCE * 2, talk).await.map_err(late)?
}

/// Asks a target that knows this machine, as its files say now.
fn ask_known<T: for<'de> Deserialize<'de>>(
    files: &TargetFiles,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Result<T> {
    let talk = as_known(files, |address, config| {
        let method = method.clone();
        async move { ask(&address, config, method, path, body.to_owned()).await }
    });
    runtime()?.block_on(talk)
}

/// Connects to a target by the address, and with the key, that its files have now. Others may renew the key at any time, and those of
/// before are of no use then.
pub(crate) async fn as_known<T, F: Future<Output = Result<T>>>(
    files: &TargetFiles,
    mut connect: impl FnMut(String, Arc<rustls::ClientConfig>) -> F,
) -> Result<T> {
    let mut credentials = files.credentials()?;
    loop {
        match connect(files.again()?.record.address, credentials.tls()?).await {
            Err(error) if error.is_about_rights() => {
                let now = files.credentials()?;
                if now == credentials {
                    return Err(error);
                }
                credentials = now;
            }
            done => return done,
        }
    }
}

/// Sends a request by a connection and reads the answer, as a JSON object.
pub(crate) async fn send<B, T>(
    mut sender: SendRequest<B>,
    address: String,
    method: Method,
    path: &str,
    body: B,
) -> Result<T>
where
    B: Body<Data = Bytes> + Send + 'static,
    T: for<'de> Deserialize<'de>,
{
    let answer = sender.send_request(request(&address, method, path, body)?).await;
    let answer = answer.map_err(|error| no_answer(&address, error))?;
    let status = answer.status();
    let bytes = body_of(&address, answer).await?;
    if status.is_success() {
        let read = serde_json::from_slice(&bytes);
        return read.map_err(|error| {
            Error::untrue(format!("the answer of the target at {address} cannot be read")).caused_by(error)
        });
    }
    Err(problem(status, &bytes))
}

/// The body of an answer, as far as it is not longer than any is.
pub(crate) async fn body_of(address: &str, answer: Response<hyper::body::Incoming>) -> Result<Bytes> {
    let limited = Limited::new(answer.into_body(), ANSWER_MAX_BYTES).collect().await;
    let collected = limited.map_err(|error| {
        Error::unreachable(format!("the answer of the target at {address} was cut off")).caused_by(error)
    })?;
    Ok(collected.to_bytes())
}

/// What a refused request says.
pub(crate) fn problem(status: StatusCode, bytes: &[u8]) -> Error {
    let text = match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) => checked::text(&problem.error),
        Err(_) => format!("it answers {status}"),
    };
    let kind = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ErrorKind::Refused(wire::message::Refusal::Rights)
        }
        StatusCode::CONFLICT => ErrorKind::Refused(wire::message::Refusal::Busy),
        status if status.is_server_error() => ErrorKind::Unreachable,
        _ => ErrorKind::Invalid,
    };
    Error::new(kind, format!("the target refuses: {text}"))
}

/// Changes to frames.
///
/// # Errors
/// `Unreachable` without an answer; `Refused` where the target does not know this machine (any more).
pub(crate) async fn upgrade(
    address: &str,
    config: Arc<rustls::ClientConfig>,
) -> Result<(FrameReader, FrameWriter)> {
    let changed = change(address, config, "/v1/push", wire::PROTOCOL).await?;
    let (reader, writer) = tokio::io::split(changed);
    Ok((Reader::new(reader), writer))
}

/// Changes to another protocol.
///
/// # Errors
/// As for [`upgrade`].
pub(crate) async fn change(
    address: &str,
    config: Arc<rustls::ClientConfig>,
    path: &str,
    protocol: &'static str,
) -> Result<Changed> {
    let mut sender = open(address, config).await?;
    let mut asked = request(address, Method::GET, path, Full::<Bytes>::default())?;
    let headers = asked.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    let talk = async {
        let answer = sender
            .send_request(asked)
            .await
            .map_err(|error| no_answer(address, error))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = answer.status();
            return Err(problem(status, &body_of(address, answer).await?));
        }
        hyper::upgrade::on(answer)
            .await
            .map_err(|error| no_answer(address, error))
    };
    let late = |_| Error::unreachable(format!("{address} does not answer"));
    let upgraded = timeout(CONNECT_PATIENCE, talk).await.map_err(late)??;
    Ok(TokioIo::new(upgraded))
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
    made.map_err(|error| Error::io("cannot start a thread's runtime", error))
}

/// Makes a key and has the target sign it. The key never leaves this machine.
///
/// # Errors
/// `Unreachable`; `Untrue` where somebody else answers; `Refused` for an invitation that was used, or is too old.
pub fn enrol(invitation: &Invitation) -> Result<(TargetRecord, Credentials)> {
    let key = new_key()?;
    let asked = Enrol {
        secret: hex::encode(invitation.secret),
        request: signing_request(&key)?,
    };
    let config = tls::of_invited(invitation.authority)?;
    let talk = ask(
        &invitation.address,
        config,
        Method::POST,
        "/v1/enrol",
        json(&asked)?,
    );
    let enrolled: Enrolled = runtime()?.block_on(talk)?;
    if tls::key_hash_of_pem(&enrolled.authority)? != invitation.authority {
        return Err(Error::untrue(
            "the target names another authority than the invitation",
        ));
    }
    let credentials = accepted(&enrolled, &key)?;
    let record = TargetRecord {
        address: invitation.address.clone(),
        source: enrolled.source,
        role: enrolled.role,
    };
    Ok((record, credentials))
}

/// Has the target sign a new key, in place of the one that this machine has.
///
/// # Errors
/// As [`enrol`], and for files that cannot be read or written.
pub fn renew(files: &TargetFiles) -> Result<()> {
    let _turn = files.lock_identity()?;
    renew_in_turn(files)
}

/// A certificate that is good for less than this is renewed.
pub const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 30);

/// The same where the certificate is good for less than [`RENEW_BEFORE`]. Where several threads or processes want that, one does it.
///
/// # Errors
/// As [`renew`].
pub fn renew_if_old(files: &TargetFiles) -> Result<()> {
    let is_old = || -> Result<bool> {
        let until = files.credentials()?.valid_until()?;
        Ok(until.duration_since(Timestamp::now()) < RENEW_BEFORE)
    };
    if !is_old()? {
        return Ok(());
    }
    let _turn = files.lock_identity()?;
    match is_old()? {
        true => renew_in_turn(files),
        false => Ok(()),
    }
}

fn renew_in_turn(files: &TargetFiles) -> Result<()> {
    let key = new_key()?;
    let asked = Renew {
        request: signing_request(&key)?,
    };
    let enrolled: Enrolled = ask_known(files, &Method::POST, "/v1/renew", &json(&asked)?)?;
    files.write_credentials(&accepted(&enrolled, &key)?)
}

/// What the target knows of a source's jobs.
///
/// # Errors
/// As [`enrol`].
pub fn status(files: &TargetFiles) -> Result<Status> {
    ask_known(files, &Method::GET, "/v1/status", &[])
}

/// The newest image of a job, without its layers, or of its unfinished sync.
///
/// # Errors
/// As [`enrol`].
pub fn newest(files: &TargetFiles, job: &str) -> Result<Option<imagefmt::Manifest>> {
    let path = format!("/v1/jobs/{job}/newest");
    let newest: Option<imagefmt::Manifest> = ask_known(files, &Method::GET, &path, &[])?;
    newest.map(checked::manifest).transpose()
}

/// Numbers of the images of a job, ascending; none where the target does not know the job.
///
/// # Errors
/// As [`enrol`].
pub fn images(files: &TargetFiles, job: &str) -> Result<Vec<u64>> {
    let path = format!("/v1/jobs/{job}/images");
    checked::sequences(ask_known(files, &Method::GET, &path, &[])?)
}

/// Has the target drop what the unfinished sync of a job has stored. Says whether there was one.
///
/// # Errors
/// As [`enrol`]; `Refused` with `Busy` where another sync of the job runs.
pub fn discard(files: &TargetFiles, job: &str) -> Result<bool> {
    let path = format!("/v1/jobs/{job}/discard");
    ask_known(files, &Method::POST, &path, &[])
}

/// A source's share of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The source's name there.
    pub source: String,
    /// The target's program and its version.
    pub software: String,
    /// The target's clock, in seconds since 1970: only to be shown beside one's own.
    pub clock_s: i64,
    /// Bytes that are free for this source.
    pub free_bytes: u64,
    /// Why another sync would not be let in now; absent where it would, and from a target of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy: Option<String>,
    /// Names of the jobs that have images, and the newest image of each.
    pub jobs: std::collections::BTreeMap<String, u64>,
}

fn accepted(enrolled: &Enrolled, key: &KeyPair) -> Result<Credentials> {
    let credentials = Credentials {
        key: key.serialize_pem(),
        certificate: enrolled.certificate.clone(),
        authority: enrolled.authority.clone(),
    };
    // It fails now, and not at the next sync, if they do not fit.
    credentials.tls()?;
    Ok(credentials)
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate().map_err(|error| Error::invalid("cannot make a key").caused_by(error))
}

fn signing_request(key: &KeyPair) -> Result<String> {
    let failed =
        |error: rcgen::Error| Error::invalid("cannot make a request for a certificate").caused_by(error);
    let params = CertificateParams::new(Vec::<String>::new()).map_err(failed)?;
    let request = params.serialize_request(key).map_err(failed)?;
    request.pem().map_err(failed)
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::invalid("a request cannot be written").caused_by(error))
}
