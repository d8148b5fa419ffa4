//! The note that a store keeps of a job: the rows that the database has of it.

use super::{Extra, FORMAT, StoredJob, Version, parse};
use crate::state::NoteKey;
use imagefmt::{Owner, Uuid};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a store keeps of a job. Its records are the database's own, word for word, so that what this version does not
/// know of them is kept here too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredNote {
    #[serde(flatten)]
    version: Version,
    /// The machine whose job it is.
    pub host: String,
    /// The record of the job.
    pub job: Value,
    /// Records of its newest runs, newest first.
    pub runs: Vec<Value>,
    /// The job as the owner of a chain; absent in notes of earlier versions, and where the machine has no id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Shows that this machine wrote `host` and `job`: see [`NoteKey`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
    #[serde(flatten)]
    extra: Extra,
}

impl StoredNote {
    /// A note of the records of a job.
    pub fn new(host: String, job: Value, runs: Vec<Value>) -> Self {
        Self {
            version: Version::CURRENT,
            host,
            job,
            runs,
            owner: None,
            seal: None,
            extra: Extra::new(),
        }
    }

    /// The same, of the job that owns its chain as `owner`.
    pub fn of(self, owner: Option<Owner>) -> Self {
        Self { owner, ..self }
    }

    /// The same, sealed as this machine's.
    pub fn sealed_by(mut self, key: &NoteKey) -> Self {
        self.seal = Some(key.seal(&self.host, &self.job));
        self
    }

    /// Whether the machine that has this key wrote the note's job.
    pub fn is_sealed_by(&self, key: &NoteKey) -> bool {
        let seal = self.seal.as_deref();
        seal.is_some_and(|seal| key.made(seal, &self.host, &self.job))
    }

    /// The same with the unknown fields of the note that it replaces.
    pub fn replacing(mut self, before: Option<Self>) -> Self {
        self.extra = before.map(|before| before.extra).unwrap_or_default();
        self
    }

    /// Whether the job of this id is over; `None` if it is of another job.
    pub fn job_is_over(&self, id: Uuid) -> Option<bool> {
        let job: StoredJob = parse(self.job.to_string().as_bytes()).ok()?;
        (job.id == Some(id)).then(|| job.is_over())
    }

    /// Whether this version may go by what it says.
    ///
    /// # Errors
    /// In words, why not.
    pub fn check(&self) -> Result<(), String> {
        if self.version.min_reader <= FORMAT {
            return Ok(());
        }
        Err(self.version.too_new())
    }
}
