//! The body of every answer that reports an error.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// The kind of an error, for programs that branch on it.
///
/// - `invalid` (HTTP 400): the request itself is wrong, whatever state the job is in.
/// - `not_found` (404): there is no such job or resource.
/// - `conflict` (409): the job's state, another job, or an image in use prevents the action.
/// - `failed` (500): the daemon could not carry out the request.
/// - `unavailable` (503): the daemon is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong, whatever state the job is in (HTTP 400).
    Invalid,
    /// There is no such job or resource (HTTP 404).
    NotFound,
    /// The job's state, another job, or an image in use prevents the action (HTTP 409).
    Conflict,
    /// The daemon could not carry out the request (HTTP 500).
    Failed,
    /// The daemon is shutting down (HTTP 503).
    Unavailable,
}

impl ErrorKind {
    /// The HTTP status code of an answer with this kind.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Failed => 500,
            Self::Unavailable => 503,
        }
    }
}

/// The body of every answer that reports an error. If an action is refused, nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The kind of the error, for programs that branch on it.
    pub error: ErrorKind,
    /// A message for people: what happened, to what, and what to do about it.
    pub message: String,
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ErrorBody {}
