//! What is known of the journal of a filesystem.

/// Whether a journal holds changes that are not in their place yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// No: everything is in its place, or there is no journal.
    Clean,
    /// Yes: a read-only mount does not show them.
    Dirty,
    /// Its superblock does not say.
    Unknown,
}
