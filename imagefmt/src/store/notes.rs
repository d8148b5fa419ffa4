//! Notes: small records that those who use a store keep in it, so that they are found again where the images are.
//!
//! The format knows nothing of what they say. They lie in `.notes/`, which is no name of a chain.

use crate::error::{ErrorKind, Result, Within};
use crate::format::name::check_name;
use crate::format::sealed::{self, Sealed};
use crate::store::Store;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) const NOTES_DIR: &str = ".notes";
const EXTENSION: &str = ".json";

/// A note as it is stored: sealed files say their format first.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    format: u32,
    #[serde(default, deserialize_with = "sealed::words")]
    incompatible: Vec<String>,
    #[serde(default, deserialize_with = "sealed::words")]
    compatible: Vec<String>,
    note: T,
}

impl<T: DeserializeOwned> Sealed for Envelope<T> {
    fn check_format(&self) -> Result<()> {
        sealed::check_format(self.format, &self.incompatible)
    }
}

impl Store {
    /// Keeps a note, in place of what had its name. When this returns, it survives a power cut.
    ///
    /// # Errors
    /// `Invalid` for a name that a note cannot have; `NoSpace` and `Io` from the storage.
    pub fn put_note<T: Serialize>(&self, name: &str, note: &T) -> Result<()> {
        check_name("note", name)?;
        let storage = self.storage();
        match storage.create_dir(NOTES_DIR) {
            Ok(()) => storage.sync_dir("")?,
            Err(error) if error.kind() == ErrorKind::Exists => {}
            Err(error) => return Err(error),
        }
        let envelope = Envelope {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            note,
        };
        sealed::replace(&**storage, NOTES_DIR, &path(name), &envelope).within(|| format!("keep note {name}"))
    }

    /// Reads a note.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Damaged` when it is not what was kept.
    pub fn note<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        check_name("note", name)?;
        let envelope: Envelope<T> =
            sealed::read(&**self.storage(), &path(name)).within(|| format!("read note {name}"))?;
        Ok(envelope.note)
    }

    /// Names of all notes, ascending.
    ///
    /// # Errors
    /// `Io` from the storage.
    pub fn notes(&self) -> Result<Vec<String>> {
        let names = match self.storage().list(NOTES_DIR) {
            Ok(names) => names,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut notes: Vec<String> = names
            .iter()
            .filter_map(|name| note_of(name))
            .map(str::to_owned)
            .collect();
        notes.sort();
        Ok(notes)
    }

    /// Removes a note; one that is not there is gone already.
    ///
    /// # Errors
    /// `Invalid` for a name that a note cannot have; `Io` from the storage.
    pub fn remove_note(&self, name: &str) -> Result<()> {
        check_name("note", name)?;
        match self.storage().remove(&path(name)) {
            Ok(()) => self.storage().sync_dir(NOTES_DIR),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.within(format!("remove note {name}"))),
        }
    }
}

/// The name of the note that a file of this name holds.
pub(crate) fn note_of(file: &str) -> Option<&str> {
    let name = file.strip_suffix(EXTENSION)?;
    check_name("note", name).is_ok().then_some(name)
}

fn path(name: &str) -> String {
    format!("{NOTES_DIR}/{name}{EXTENSION}")
}
