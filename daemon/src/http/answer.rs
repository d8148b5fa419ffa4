//! Answers: results as JSON, errors as an [`ErrorBody`].

use super::Service;
use crate::job::{Refusal, Refused};
use api::{ErrorBody, ErrorKind};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// What a handler returns.
pub type Answer<T> = Result<Json<T>, Failure>;

/// An answer that reports an error.
#[derive(Debug)]
pub struct Failure(Refusal);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if self.0.kind == ErrorKind::Failed {
            tracing::error!("{}", self.0);
        }
        (status, Json(self.0.body())).into_response()
    }
}

/// Runs work that may wait for a disk on a thread of its own.
///
/// # Errors
/// What the work refuses, and a panic in it.
pub async fn on_thread<T: Send + 'static>(
    service: Service,
    work: impl FnOnce(&Service) -> Refused<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(move || work(&service)).await;
    let done = done.unwrap_or_else(|_| {
        Err(Refusal::failed(&anyhow::anyhow!(
            "the request failed because of a bug in smcd; see its log (journalctl -u smcd). Other requests are not affected"
        )))
    });
    Ok(done?)
}

/// Like [`on_thread`], with the result as JSON.
///
/// # Errors
/// As that one.
pub async fn answer<T: Serialize + Send + 'static>(
    service: Service,
    work: impl FnOnce(&Service) -> Refused<T> + Send + 'static,
) -> Answer<T> {
    on_thread(service, work).await.map(Json)
}

/// A JSON body; a malformed one is reported as an [`ErrorBody`].
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let wrong = |error: JsonRejection| invalid(error.body_text());
        let read = in_time(Json::from_request(request, state)).await?;
        let Json(body) = read.map_err(wrong)?;
        Ok(Self(body))
    }
}

/// Like [`Body`], but the body is optional.
#[derive(Debug)]
pub struct OptionalBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = in_time(Bytes::from_request(request, state)).await?;
        let bytes = bytes.map_err(|error| invalid(error.body_text()))?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        if !matches!(bytes.first(), Some(b'{' | b'n')) {
            return Err(invalid("the request body must be a JSON object".to_owned()));
        }
        let body: Option<T> = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        Ok(Self(body.unwrap_or_default()))
    }
}

/// How long the body of a request may take.
const BODY_PATIENCE: Duration = if cfg!(test) {
    // It is waited for, and long enough for a body that comes, on a busy machine.
    Duration::from_secs(3)
} else {
    Duration::from_secs(30)
};

/// Waits for a request's body, but not for ever.
async fn in_time<T>(reading: impl Future<Output = T>) -> Result<T, Failure> {
    let read = tokio::time::timeout(BODY_PATIENCE, reading).await;
    read.map_err(|_| {
        invalid(format!(
            "the body of the request did not arrive within {} s",
            BODY_PATIENCE.as_secs()
        ))
    })
}

/// Query parameters; wrong ones are reported as an [`ErrorBody`].
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let wrong = |error: QueryRejection| invalid(error.body_text());
        let axum::extract::Query(query) = axum::extract::Query::from_request_parts(parts, state)
            .await
            .map_err(wrong)?;
        Ok(Self(query))
    }
}

fn invalid(text: String) -> Failure {
    Failure(Refusal::invalid(text))
}

/// Answers a request for a path that does not exist.
pub async fn no_such_path(uri: Uri) -> Response {
    let message = format!(
        "there is no resource at {}; {}/openapi.json lists all of them",
        uri.path().escape_debug(),
        api::PREFIX
    );
    let body = ErrorBody {
        error: ErrorKind::NotFound,
        message,
    };
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// Answers a request whose method the path does not support.
pub async fn no_such_method(method: Method, uri: Uri) -> Response {
    let message = format!(
        "{} does not support the method {method}",
        uri.path().escape_debug()
    );
    let body = ErrorBody {
        error: ErrorKind::Invalid,
        message,
    };
    (StatusCode::METHOD_NOT_ALLOWED, Json(body)).into_response()
}
