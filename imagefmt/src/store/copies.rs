//! Copies of chains: a directory that somebody copied within the store holds the same images once more.
//!
//! A chain has an id, which each of its images says, so a copy is recognized. Only one of the directories counts.
//! The others are left out of everything, as if they were not there: else an image would be there twice under one
//! name, and whichever was found first would be read, deleted or continued.

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::id::Uuid;
use crate::format::name::check_name;
use crate::storage::paths::images_dir;
use crate::store::Store;
use std::collections::BTreeMap;
use std::fmt;

/// A directory that is a copy of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    /// Name of the directory.
    pub name: String,
    /// The chain that it is a copy of.
    pub of: String,
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, of } = self;
        write!(
            f,
            "directory {name} is a copy of chain {of} and is ignored: move it out of the store, or remove it"
        )
    }
}

/// The directories of a store that hold chains.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    /// Names of all chains that can be listed, ascending.
    pub names: Vec<String>,
    /// The directories that are copies of one.
    pub copies: Vec<Copy>,
    /// Chains that cannot be listed, by name, and why: nothing is known of what they hold.
    pub unread: Vec<(String, Error)>,
}

impl Chains {
    /// An error if a chain cannot be listed.
    ///
    /// # Errors
    /// That of the first chain that cannot be read.
    pub fn all_read(self) -> Result<Vec<String>> {
        self.unread
            .into_iter()
            .next()
            .map_or(Ok(self.names), |(_, error)| Err(error))
    }
}

impl Store {
    /// All chains, and the directories that are copies of one.
    ///
    /// # Errors
    /// When the store's own directory cannot be listed, or it cannot be known which of two directories is the copy.
    pub(crate) fn chains_and_copies(&self) -> Result<Chains> {
        let mut found = Chains::default();
        let mut names = self.storage().list("").within(|| self.label().to_owned())?;
        names.retain(|name| check_name("chain", name).is_ok());
        names.sort();
        for name in names {
            match self.is_chain(&name) {
                Ok(true) => found.names.push(name),
                Ok(false) => {}
                Err(error) => {
                    let error =
                        error.within(format!("chain {name} of store {} cannot be listed", self.label()));
                    found.unread.push((name, error));
                }
            }
        }
        if found.names.len() > 1 {
            found.copies = self.copies_among(&found.names)?;
            let copies = &found.copies;
            found
                .names
                .retain(|name| copies.iter().all(|copy| copy.name != *name));
        }
        Ok(found)
    }

    /// Whether an entry of the store is a chain: a directory with a directory of images.
    fn is_chain(&self, name: &str) -> Result<bool> {
        match self.storage().list(&images_dir(name)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            // A file of any name may lie in a store; but in a chain, `images` is a directory.
            Err(error) if error.is_not_a_directory() => match self.storage().list(name) {
                Err(found) if found.is_not_a_directory() || found.kind() == ErrorKind::NotFound => Ok(false),
                Err(found) => Err(found),
                Ok(_) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Of the directories that hold one chain, the one that is named like the job which began it counts, and the
    /// first one where none is or several are.
    fn copies_among(&self, names: &[String]) -> Result<Vec<Copy>> {
        let mut found: BTreeMap<Uuid, Vec<(&str, Origin)>> = BTreeMap::new();
        for name in names {
            if let Some(origin) = self.origin_of(name)? {
                found.entry(origin.chain).or_default().push((name, origin));
            }
        }
        let mut copies = Vec::new();
        for mut directories in found.into_values().filter(|same| same.len() > 1) {
            if let Some(error) = directories
                .iter_mut()
                .find_map(|(_, origin)| origin.unread.take())
            {
                let names: Vec<&str> = directories.iter().map(|(name, _)| *name).collect();
                return Err(error.within(format!(
                    "which of the directories {} is the copy of the others cannot be known",
                    names.join(", ")
                )));
            }
            directories.sort_by_key(|(name, origin)| (origin.job != *name, *name));
            let mut directories = directories.into_iter().map(|(name, _)| name);
            let Some(original) = directories.next() else {
                continue;
            };
            copies.extend(directories.map(|name| Copy {
                name: name.to_owned(),
                of: original.to_owned(),
            }));
        }
        Ok(copies)
    }

    /// What the earliest image of a chain says that can be read; nothing of a chain that has none, of which there is
    /// nothing to mistake.
    fn origin_of(&self, chain: &str) -> Result<Option<Origin>> {
        let mut unread = None;
        for sequence in self.sequences(chain)? {
            match self.read_manifest(chain, sequence) {
                Ok(earliest) => {
                    return Ok(Some(Origin {
                        chain: earliest.chain,
                        job: earliest.job.clone(),
                        unread,
                    }));
                }
                // What is damaged stays so: the next one is the earliest that there is.
                Err(error) if error.kind() == ErrorKind::Damaged => {}
                Err(error) => {
                    unread.get_or_insert(error);
                }
            }
        }
        Ok(None)
    }
}

/// Where a directory's images come from.
struct Origin {
    /// Id of the chain.
    chain: Uuid,
    /// The job that made its earliest image that can be read.
    job: String,
    /// Why an earlier one cannot be read now, which may have been made by another job.
    unread: Option<Error>,
}
