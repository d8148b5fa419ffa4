//! What is written to the database and to the notes in the stores: structs of their own, so that neither a change of the
//! API nor one of the daemon's own types changes what lies on a disk.
//!
//! The rules for changing a record:
//!
//! - Every record says which format wrote it (`format`) and which format a reader must know at least (`min_reader`).
//!   [`FORMAT`] is raised with every field or value that is added, [`MIN_READER`] only when a reader of an earlier format
//!   would do the wrong thing. A record without these numbers was written before there were any: format 0.
//! - A field that is added has a default, so that records of earlier formats can be read.
//! - A field that this version does not know is kept when the record is written again, so a downgrade followed by an
//!   upgrade loses nothing: every object collects such fields in `extra`, and `inherit` takes them over as long as the
//!   object is the same thing (the job, its disk of that name, its run of that number).
//! - A value that this version does not know makes the record [`Unreadable`], which is no damage: nobody writes it, and
//!   nothing is done for its job, until a version that knows it runs.

mod checks;
mod image_checks;
mod instant;
mod job;
mod note;
mod request;
mod run;
mod unreadable;

pub use checks::Checked;
pub use instant::instant_view;
pub use job::StoredJob;
pub use note::StoredNote;
pub use run::StoredRun;
pub use unreadable::Unreadable;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The format of the records that this version writes.
pub const FORMAT: u32 = 8;

/// The earliest format whose readers do the right thing with them.
pub const MIN_READER: u32 = 0;

/// Fields that this version does not know.
type Extra = Map<String, Value>;

/// What every record says of itself, in every format. Zeros are of what was written before records had versions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Version {
    format: u32,
    min_reader: u32,
}

impl Version {
    /// Of what is written now.
    const CURRENT: Self = Self {
        format: FORMAT,
        min_reader: MIN_READER,
    };

    /// Of what readers of formats before this one would handle wrongly.
    const fn not_before(min_reader: u32) -> Self {
        Self {
            format: FORMAT,
            min_reader,
        }
    }

    fn too_new(self) -> String {
        format!(
            "it has format {} and needs a reader of format {} or later; this smcd knows formats up to {FORMAT}",
            self.format, self.min_reader
        )
    }
}

/// Reads a record.
///
/// # Errors
/// In words, why this version cannot read it: it is damaged, or a newer version wrote what this one does not know.
pub fn parse<T: DeserializeOwned + Checked>(text: &[u8]) -> Result<T, String> {
    // The version first: a newer format may have other fields.
    let version: Version = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if version.min_reader > FORMAT {
        return Err(version.too_new());
    }
    let record: T = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    record.check()?;
    Ok(record)
}

#[cfg(test)]
mod tests;
