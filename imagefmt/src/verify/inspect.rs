//! What a store holds beside the content of its images: records, layers that nothing lists, and what belongs to nothing.

use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::Manifest;
use crate::format::name::{SHOWN_MAX, check_name, printable};
use crate::format::sealed;
use crate::parallel;
use crate::storage::paths::{
    Beside, CHAIN_FILE, DROPPED_CHECKPOINT, OF_CHAIN, TEMPORARY, beside_of, chain_path, image_file,
    images_dir, is_manifest, layer_of, layer_path, layers_dir, pins_path, sequence_of, writer_lock_path,
};
use crate::store::notes::{NOTES_DIR, note_of};
use crate::store::pins::PinsRecord;
use crate::store::{STORE_FILE, Store};
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What was found beside the content of images.
#[derive(Debug, Default)]
pub struct Inspection {
    /// What is not as it was written, of kind `Damaged`, and what cannot be read, of other kinds.
    pub errors: Vec<Error>,
    /// What is missing or left over and harms no image.
    pub remarks: Vec<String>,
}

impl Inspection {
    fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    /// A name that docs/format.md does not have.
    fn unknown(&mut self, dir: &str, name: &str) {
        let name = printable(name, SHOWN_MAX);
        self.remark(format!(
            "{dir}{name} is not known to this smc and was not looked at"
        ));
    }

    fn left_over(&mut self, dir: &str, name: &str) {
        let name = printable(name, SHOWN_MAX);
        self.remark(format!(
            "{dir}{name} was never finished: the next sync or gc removes it"
        ));
    }

    fn note<T>(&mut self, found: Result<T>) -> Option<T> {
        found.map_err(|error| self.errors.push(error)).ok()
    }
}

impl Store {
    /// Looks at what lies in the store beside its chains: notes, copies of chains and what belongs to nothing.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn inspect(&self) -> Result<Inspection> {
        let mut found = Inspection::default();
        let chains = self.chains_and_copies()?;
        found
            .remarks
            .extend(chains.copies.iter().map(ToString::to_string));
        let mut known: BTreeSet<&str> = chains.names.iter().map(String::as_str).collect();
        known.extend(chains.copies.iter().map(|copy| copy.name.as_str()));
        known.extend(chains.unread.iter().map(|(name, _)| name.as_str()));
        known.extend([STORE_FILE, NOTES_DIR, "lost+found"]);
        let mut names = self.storage().list("")?;
        names.sort();
        for name in names.iter().filter(|name| !known.contains(name.as_str())) {
            let is_dir = check_name("chain", name).is_ok() && self.storage().list(name).is_ok();
            match name {
                name if name.ends_with(TEMPORARY) => found.left_over("", name),
                name if is_dir => found.remark(format!("directory {name} holds no images and is no chain")),
                name => found.unknown("", name),
            }
        }
        self.inspect_notes(&mut found);
        Ok(found)
    }

    fn inspect_notes(&self, found: &mut Inspection) {
        let names = match self.storage().list(NOTES_DIR) {
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            names => found.note(names).unwrap_or_default(),
        };
        for note in found.note(self.notes()).unwrap_or_default() {
            found.note(self.note::<IgnoredAny>(&note));
        }
        let dir = format!("{NOTES_DIR}/");
        for name in names.iter().filter(|name| note_of(name).is_none()) {
            if name.ends_with(TEMPORARY) {
                found.left_over(&dir, name);
            } else {
                found.unknown(&dir, name);
            }
        }
    }

    /// Looks at everything that a chain holds beside the content of its images: its record, its unfinished sync's, what is
    /// said about images, layers that nothing lists, and what belongs to nothing. Manifests that cannot be read are left
    /// to the verification of their images.
    ///
    /// What a sync writes at the same time is not looked at, as far as it can be known that one runs.
    pub fn inspect_chain(&self, chain: &str) -> Inspection {
        let mut found = Inspection::default();
        // First the layers: one that is there now is listed by what is read later, unless nothing lists it.
        let layers = match self.storage().list(&layers_dir(chain)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                found.remark("directory layers is missing: the next sync creates it");
                Vec::new()
            }
            layers => found.note(layers).unwrap_or_default(),
        };
        let names = self.storage().list(&images_dir(chain));
        let names = found.note(names).unwrap_or_default();
        let is_written_to = !self.storage().holders(&writer_lock_path(chain)).is_empty();
        let manifests = self.manifests_of(chain, &names);
        self.inspect_record(chain, &manifests, &mut found);
        let unfinished = found.note(self.read_checkpoint(chain));
        self.inspect_images(chain, &names, &manifests, &mut found);
        if is_written_to {
            found.remark("a sync or gc is running: what it writes or removes was not looked at");
            return found;
        }
        self.inspect_left_over(chain, &names, &mut found);
        let unread = manifests.values().any(Option::is_none);
        match unfinished {
            Some(unfinished) if !unread => {
                let manifests = manifests.values().flatten().map(|manifest| &**manifest);
                let listed = listed_lengths(manifests.chain(unfinished.as_ref()));
                self.inspect_layers(chain, &layers, &listed, &mut found);
            }
            _ => found.remark(
                "whether there are layers that nothing lists cannot be known while a manifest cannot be read",
            ),
        }
        found
    }

    /// The manifests of a chain; nothing for one that cannot be read.
    fn manifests_of(&self, chain: &str, names: &[String]) -> BTreeMap<u64, Option<Arc<Manifest>>> {
        let sequences: Vec<u64> = names.iter().filter_map(|name| sequence_of(name)).collect();
        let read = parallel::map(&sequences, |&sequence| self.read_manifest(chain, sequence).ok());
        sequences.into_iter().zip(read).collect()
    }

    fn inspect_record(
        &self,
        chain: &str,
        manifests: &BTreeMap<u64, Option<Arc<Manifest>>>,
        found: &mut Inspection,
    ) {
        let newest = manifests.values().rev().flatten().next();
        match (self.chain_id(chain), newest) {
            (Err(error), _) => found.errors.push(error),
            (Ok(None), Some(_)) => found.remark(format!(
                "{CHAIN_FILE} is missing: the next sync makes it anew from the images"
            )),
            (Ok(Some(id)), Some(newest)) if id != newest.chain => {
                let what = format!(
                    "field id is {id}, but the newest image is of chain {}",
                    newest.chain
                );
                found
                    .errors
                    .push(Error::damaged(what).in_file(&chain_path(chain)));
            }
            _ => {}
        }
    }

    /// What lies beside manifests.
    fn inspect_images(
        &self,
        chain: &str,
        names: &[String],
        manifests: &BTreeMap<u64, Option<Arc<Manifest>>>,
        found: &mut Inspection,
    ) {
        let dir = format!("{}/", images_dir(chain));
        let deleting: BTreeSet<u64> = names
            .iter()
            .filter_map(|name| image_file(name))
            .filter(|(_, extension)| is_manifest(extension))
            .map(|(sequence, _)| sequence)
            .collect();
        for name in names.iter().filter(|name| !name.ends_with(TEMPORARY)) {
            let Some((sequence, extension)) = image_file(name) else {
                found.unknown(&dir, name);
                continue;
            };
            if !deleting.contains(&sequence) {
                found.remark(format!("{dir}{} belongs to no image", printable(name, SHOWN_MAX)));
            }
            let manifest = manifests.get(&sequence).and_then(Option::as_deref);
            match (beside_of(extension), manifest) {
                (Beside::Pins, _) => self.inspect_pins(chain, sequence, manifest, found),
                (Beside::Verified, Some(manifest)) => {
                    let image = self.image_id(chain, sequence);
                    found.note(self.verdict(&image, manifest));
                }
                (Beside::Boot, Some(manifest)) => {
                    let image = self.image_id(chain, sequence);
                    found.note(self.boot_verdict(&image, manifest));
                }
                (Beside::Unknown, _) => found.unknown(&dir, name),
                // Without its manifest, a record cannot be told from another image's.
                (Beside::Manifest | Beside::Deleting | Beside::Verified | Beside::Boot, _) => {}
            }
        }
    }

    fn inspect_pins(&self, chain: &str, sequence: u64, manifest: Option<&Manifest>, found: &mut Inspection) {
        let path = pins_path(chain, sequence);
        let record = match sealed::read::<PinsRecord>(&**self.storage(), &path) {
            // Somebody took the last one away.
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            record => found.note(record),
        };
        let other = |record: &PinsRecord| manifest.is_some_and(|manifest| manifest.id != record.image);
        if record.as_ref().is_some_and(other) {
            found
                .errors
                .push(Error::damaged("the pins are of another image").in_file(&path));
        }
    }

    /// What crashes left, and what belongs to nothing.
    fn inspect_left_over(&self, chain: &str, names: &[String], found: &mut Inspection) {
        let dir = format!("{}/", images_dir(chain));
        for name in names {
            match image_file(name).map(|(sequence, extension)| (sequence, beside_of(extension))) {
                _ if name.ends_with(TEMPORARY) => found.left_over(&dir, name),
                Some((sequence, Beside::Deleting)) => found.remark(format!(
                    "image {sequence} is deleted, but its space is not free yet: the next sync or gc continues"
                )),
                _ => {}
            }
        }
        let of_chain = found.note(self.storage().list(chain)).unwrap_or_default();
        for name in of_chain.iter().filter(|name| !OF_CHAIN.contains(&name.as_str())) {
            match name.as_str() {
                DROPPED_CHECKPOINT => found.remark(
                    "an unfinished sync is discarded, but its space is not free yet: the next sync or gc continues",
                ),
                name if name.ends_with(TEMPORARY) => found.left_over(&format!("{chain}/"), name),
                name => found.unknown(&format!("{chain}/"), name),
            }
        }
    }

    fn inspect_layers(
        &self,
        chain: &str,
        names: &[String],
        listed: &BTreeMap<u32, u64>,
        found: &mut Inspection,
    ) {
        let dir = format!("{}/", layers_dir(chain));
        for name in names {
            match layer_of(name) {
                None => found.unknown(&dir, name),
                Some(id) => match listed.get(&id) {
                    None => found.remark(format!(
                        "{dir}{name} is listed by no image: the next sync or gc removes it"
                    )),
                    Some(&length) if self.is_longer(&layer_path(chain, id), length) => {
                        found.remark(format!(
                            "{dir}{name} is longer than the {length} bytes that belong to it"
                        ));
                    }
                    Some(_) => {}
                },
            }
        }
    }

    /// Whether a layer has bytes behind its committed length. What is wrong with one that cannot be read is found by the
    /// verification of its images.
    fn is_longer(&self, path: &str, length: u64) -> bool {
        let opened = self.storage().open_layer(path);
        opened.is_ok_and(|layer| layer.read_at(length, &mut [0]).is_ok())
    }
}

/// Every layer that one of these lists, with the greatest length that it has in one.
fn listed_lengths<'a>(manifests: impl Iterator<Item = &'a Manifest>) -> BTreeMap<u32, u64> {
    let mut listed: BTreeMap<u32, u64> = BTreeMap::new();
    for layer in manifests.flat_map(|manifest| &manifest.layers) {
        let length = listed.entry(layer.id).or_default();
        *length = layer.length.max(*length);
    }
    listed
}
