//! What the daemon knows across restarts: jobs and their runs, in SQLite, and how it is found again when it is lost.

mod database;
mod known;
mod rebuild;
mod records;
mod salvage;
mod seal;

pub use database::{Jobs, Opened, Runs, State};
pub use known::KnownStores;
pub use rebuild::{FoundJob, NOTE_RUNS, Rebuilt, host, rebuild};
pub use records::{StoredNote, Unreadable, instant_view};
pub use salvage::salvage;
pub use seal::NoteKey;
