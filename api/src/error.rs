//! Answers that are no success.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// What kind of error an answer is, for programs that branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request cannot be right, in whatever state the job is (HTTP 400).
    Invalid,
    /// There is no such job or resource (HTTP 404).
    NotFound,
    /// The job's state, another job or an image in use is in the way (HTTP 409).
    Conflict,
    /// The daemon could not do it (HTTP 500).
    Failed,
    /// The daemon is shutting down (HTTP 503).
    Unavailable,
}

impl ErrorKind {
    /// The HTTP status code that goes with it.
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

/// The body of every answer that is no success: what happened, to what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The kind, to branch on.
    pub error: ErrorKind,
    /// The message, for people.
    pub message: String,
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ErrorBody {}
