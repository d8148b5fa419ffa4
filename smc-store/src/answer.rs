//! Bodies of requests, and what requests are answered with; the test of the line, which is about a body alone.

use crate::serve::HANDSHAKE;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode};
use remote::http::{Problem, TEST_MAX_BYTES, Tested};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::{timeout, timeout_at};

/// The longest body of a request.
const BODY_MAX_BYTES: usize = 64 << 10;
/// How long a test of the line may take.
const TEST_PATIENCE: Duration = Duration::from_secs(60);

/// What every request is answered with.
pub type Answer = Response<Full<Bytes>>;

/// A request's body, as a JSON object.
///
/// # Errors
/// What is wrong with it, for its sender.
pub async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> std::result::Result<T, String> {
    let collected = Limited::new(request.into_body(), BODY_MAX_BYTES).collect();
    let bytes = match timeout(HANDSHAKE, collected).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) => return Err(format!("the request cannot be read: {error}")),
        Err(_) => return Err("the request did not arrive".to_owned()),
    };
    serde_json::from_slice(&bytes).map_err(|error| format!("the request cannot be read: {error}"))
}

/// The answer behind which a connection speaks another protocol.
pub fn upgraded(protocol: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    answer
}

/// An answer in JSON.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut answer = Response::new(Full::new(Bytes::from(bytes)));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// Why a request is refused.
pub fn problem(status: StatusCode, text: &str) -> Answer {
    json(
        status,
        &Problem {
            error: text.to_owned(),
        },
    )
}

/// Why something is not done, in words that are for the one who asked for it.
#[derive(Debug)]
pub struct Refused {
    /// What kind of reason it is.
    pub status: StatusCode,
    /// The reason.
    pub text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

/// A [`Refused`] is passed on. What else went wrong is for this machine's administrator; the source only hears that it did.
pub fn failed(error: &anyhow::Error) -> Answer {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return problem(refused.status, &refused.text);
    }
    tracing::error!("a request could not be answered: {error:#}");
    problem(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the target could not read or write its own files: its log says why",
    )
}

/// The target cannot do its work; why is for its administrator.
pub fn unhealthy(error: &anyhow::Error) -> Answer {
    tracing::error!("the target is not healthy: {error:#}");
    json(
        StatusCode::SERVICE_UNAVAILABLE,
        &serde_json::json!({ "healthy": false }),
    )
}

/// A test of the line: what comes is counted, and nothing of it is kept.
pub async fn test(request: Request<Incoming>) -> Answer {
    let (mut body, mut received_bytes) = (request.into_body(), 0);
    let end = tokio::time::Instant::now() + TEST_PATIENCE;
    loop {
        match timeout_at(end, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                received_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                if received_bytes > TEST_MAX_BYTES {
                    return problem(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "a test of the line is not longer than 4 GiB",
                    );
                }
            }
            Ok(Some(Err(error))) => {
                return problem(
                    StatusCode::BAD_REQUEST,
                    &format!("the test cannot be read: {error}"),
                );
            }
            Ok(None) => return json(StatusCode::OK, &Tested { received_bytes }),
            Err(_) => {
                return problem(
                    StatusCode::REQUEST_TIMEOUT,
                    "a test of the line takes at most a minute",
                );
            }
        }
    }
}
