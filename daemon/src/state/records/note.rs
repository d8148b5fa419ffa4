//! The note that a store keeps of a job: the rows that the database has of it.

use super::{Extra, FORMAT, Version};
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
            extra: Extra::new(),
        }
    }

    /// The same with the unknown fields of the note that it replaces.
    pub fn replacing(mut self, before: Option<Self>) -> Self {
        self.extra = before.map(|before| before.extra).unwrap_or_default();
        self
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
