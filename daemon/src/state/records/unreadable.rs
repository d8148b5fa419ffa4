//! Jobs whose record this version cannot read.

use jiff::Timestamp;
use std::path::PathBuf;

/// A job whose record cannot be read: a newer version wrote it, or it is damaged. The record stays as it is, and what it
/// names stays the job's: its name, its disks and its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its name, which is not a part of the record.
    pub name: String,
    /// Why its record cannot be read, in words.
    pub reason: String,
    /// Its store, where the record still shows it.
    pub store: Option<PathBuf>,
    /// Devices and files of its disks, as far as the record shows them.
    pub disks: Vec<PathBuf>,
    /// The job that it continues.
    pub take_up: Option<String>,
    /// The token of the request that made it.
    pub client_token: Option<String>,
    /// When it was created.
    pub created: Option<Timestamp>,
}

impl Unreadable {
    /// Finds what a record still shows, however damaged it is.
    pub fn new(name: String, reason: String, record: &[u8]) -> Self {
        let text = String::from_utf8_lossy(record);
        let one = |key: &str| strings(&text, key).into_iter().next();
        let mut disks: Vec<PathBuf> = strings(&text, "path").into_iter().map(PathBuf::from).collect();
        disks.sort();
        disks.dedup();
        Self {
            name,
            reason,
            store: one("store").filter(|store| !store.is_empty()).map(PathBuf::from),
            disks,
            take_up: one("take_up"),
            client_token: one("client_token"),
            created: one("created").and_then(|created| created.parse().ok()),
        }
    }

    /// The message for the user.
    pub fn warning(&self) -> String {
        format!(
            "the record of job {} cannot be read ({}): the job does nothing, and its record, its name and its disks are \
             left as they are. Run the smcd that wrote it, or forget the job with `smcctl job delete {}`: its images stay",
            self.name, self.reason, self.name
        )
    }
}

/// The strings that stand behind a key, in a text that need not be whole.
fn strings(text: &str, key: &str) -> Vec<String> {
    let key = format!("\"{key}\":");
    let value = |at: usize| {
        let rest = text.get(at + key.len()..)?;
        serde_json::Deserializer::from_str(rest)
            .into_iter::<String>()
            .next()?
            .ok()
    };
    text.match_indices(&key).filter_map(|(at, _)| value(at)).collect()
}
