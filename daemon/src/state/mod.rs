//! What the daemon knows across restarts: jobs and their runs, in SQLite, and how it is found again when it is lost.

mod database;
mod known;
mod rebuild;

pub use database::{Opened, State};
pub use known::KnownStores;
pub use rebuild::{JobNote, NOTE_RUNS, host, rebuild};
