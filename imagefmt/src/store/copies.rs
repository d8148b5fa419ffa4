//! Copies of chains: a directory that somebody copied within the store holds the same images once more.
//!
//! A chain has an id, which each of its images says, so a copy is recognized. Only one of the directories counts.
//! The others are left out of everything, as if they were not there: else an image would be there twice under one
//! name, and whichever was found first would be read, deleted or continued.

use crate::error::{Result, Within};
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

impl Store {
    /// Names of all chains, ascending, and the directories that are copies of one.
    pub(crate) fn chains_and_copies(&self) -> Result<(Vec<String>, Vec<Copy>)> {
        let mut names = self.storage().list("").within(|| self.label().to_owned())?;
        names.retain(|name| check_name("chain", name).is_ok());
        names.retain(|name| self.storage().list(&images_dir(name)).is_ok());
        names.sort();
        let mut copies = Vec::new();
        if names.len() > 1 {
            copies = self.copies_among(&names);
            names.retain(|name| copies.iter().all(|copy| copy.name != *name));
        }
        Ok((names, copies))
    }

    /// Of the directories that hold one chain, the one that is named like the job which began it counts, and the
    /// first one where none is or several are.
    fn copies_among(&self, names: &[String]) -> Vec<Copy> {
        let mut found: BTreeMap<Uuid, Vec<(bool, &str)>> = BTreeMap::new();
        for name in names {
            if let Some((id, job)) = self.origin_of(name) {
                found.entry(id).or_default().push((job != *name, name));
            }
        }
        let mut copies = Vec::new();
        for mut directories in found.into_values() {
            directories.sort_unstable();
            let mut directories = directories.into_iter().map(|(_, name)| name);
            let Some(original) = directories.next() else {
                continue;
            };
            copies.extend(directories.map(|name| Copy {
                name: name.to_owned(),
                of: original.to_owned(),
            }));
        }
        copies
    }

    /// The id of a chain, and the job that made its earliest image that can be read; nothing of a chain that has
    /// none, of which there is nothing to mistake.
    fn origin_of(&self, chain: &str) -> Option<(Uuid, String)> {
        let sequences = self.sequences(chain).ok()?;
        let mut readable = sequences
            .into_iter()
            .filter_map(|sequence| self.read_manifest(chain, sequence).ok());
        readable
            .next()
            .map(|earliest| (earliest.chain, earliest.job.clone()))
    }
}
