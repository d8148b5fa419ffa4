//! Every single bit of every file of a small store, flipped one after another.
//!
//! The images that depend on the flipped place must be found damaged, all others must stay clean, and no
//! reader may ever get a wrong byte.

use super::model::Model;
use super::support::*;
use crate::format::layer::{HEADER_LEN, LayerIdentity};
use crate::storage::memory::MemoryStorage;
use crate::{ClusterSize, ErrorKind, Store};
use std::ops::Range;
use std::sync::Arc;
use std::thread;

const DISKS: [&str; 2] = ["vda", "vdb"];

/// Three images of two disks, with clusters of every codec and layers shared by one, two and three images.
struct Small {
    storage: MemoryStorage,
    history: Vec<[Model; 2]>,
}

fn small_store() -> Small {
    let (storage, store) = memory_store();
    let size = ClusterSize::K16;
    let mut models = [Model::new(16384 + 100, size), Model::new(300, size)];
    models[0].set(
        0,
        random_bytes(9, 40)
            .into_iter()
            .chain(text_bytes(1, 16344))
            .collect(),
    );
    models[0].set(1, text_bytes(2, 100));
    models[1].set(0, random_bytes(3, 300));
    let mut history = Vec::new();
    for number in 0..3 {
        match number {
            1 => models[1].set(0, text_bytes(4, 300)),
            2 => models[0].set(0, text_bytes(5, 16384)),
            _ => {}
        }
        write_image(&store, "job", &[(DISKS[0], &models[0]), (DISKS[1], &models[1])]).unwrap();
        history.push(models.clone());
    }
    Small { storage, history }
}

impl Small {
    fn store(&self) -> crate::Result<Store> {
        Store::open_on(Arc::new(self.storage.clone()), "flipped")
    }

    fn paths(&self) -> Vec<String> {
        self.storage.files.lock().unwrap().keys().cloned().collect()
    }

    /// A copy of its own, for one thread.
    fn copy(&self) -> Self {
        let storage = MemoryStorage::default();
        let source = self.storage.files.lock().unwrap().clone();
        for dir in ["job", "job/images", "job/layers"] {
            crate::Storage::create_dir(&storage, dir).unwrap();
        }
        *storage.files.lock().unwrap() = source;
        Self {
            storage,
            history: self.history.clone(),
        }
    }

    fn flip(&self, path: &str, bit: usize) {
        self.storage.files.lock().unwrap().get_mut(path).unwrap()[bit / 8] ^= 1 << (bit % 8);
    }

    /// Every byte that every disk of image `number` (from 0) gives is right, or an error.
    fn check_reads(&self, store: &Store, number: usize, place: &str) {
        let Ok(image) = open_image(store, "job", number as u64 + 1) else {
            return;
        };
        for (disk, model) in image.disks().iter().zip(&self.history[number]) {
            if let Ok(bytes) = read_all(disk) {
                assert!(
                    bytes == model.read(0, model.size as usize),
                    "wrong bytes under a flip of {place}"
                );
            }
        }
    }
}

/// The byte ranges of one layer that an image depends on, and whether it vouches for all of it.
struct Dependence {
    ranges: Vec<Range<usize>>,
    whole: bool,
}

impl Dependence {
    fn of(store: &Store, number: usize, layer: u32) -> Self {
        let image = open_image(store, "job", number as u64 + 1).unwrap();
        let Some(record) = image.manifest().layers.iter().find(|record| record.id == layer) else {
            return Self {
                ranges: Vec::new(),
                whole: false,
            };
        };
        let places = image
            .disks()
            .iter()
            .flat_map(places)
            .filter(|place| place.layer == layer);
        let pieces = places.map(|place| place.offset as usize..place.end() as usize);
        let header = std::iter::once(0..4096);
        Self {
            ranges: header.chain(pieces).collect(),
            whole: record.packed,
        }
    }

    fn covers(&self, byte: usize) -> bool {
        self.whole || self.ranges.iter().any(|range| range.contains(&byte))
    }
}

/// Which images are looked at under a flip of this bit: of those that depend on it the first always, one of the
/// rest in its turn, so that each is looked at for every byte; and in another turn one that must stay clean.
fn looked_at(depends: &[bool], bit: usize) -> impl Iterator<Item = usize> {
    let first = depends.iter().position(|&depends| depends);
    (0..depends.len()).filter(move |&number| Some(number) == first || bit % 8 == (bit / 8 + number) % 8)
}

/// Flips the bits of a layer one after another, in a store of this thread's own. Returns those that went unseen.
fn flip_layer(small: &Small, path: &str) -> Vec<String> {
    let small = small.copy();
    let layer = u32::from_str_radix(&path["job/layers/".len()..][..8], 16).unwrap();
    let store = small.store().unwrap();
    let dependences: Vec<_> = (0..small.history.len())
        .map(|n| Dependence::of(&store, n, layer))
        .collect();
    let mut unseen = Vec::new();
    let bits = small.storage.files.lock().unwrap()[path].len() * 8;
    for bit in 0..bits {
        small.flip(path, bit);
        let place = format!("bit {} of byte {} of {path}", bit % 8, bit / 8);
        let depends: Vec<bool> = dependences
            .iter()
            .map(|dependence| dependence.covers(bit / 8))
            .collect();
        for number in looked_at(&depends, bit) {
            let found = findings(&store, "job", number as u64 + 1);
            if depends[number] && found.is_empty() {
                unseen.push(format!("{place} by image {}", number + 1));
            }
            assert!(
                depends[number] || found.is_empty(),
                "{place} hurts image {}: {found:?}",
                number + 1
            );
            small.check_reads(&store, number, &place);
        }
        small.flip(path, bit);
    }
    unseen
}

/// All of the 262,144 bits, half of which are reserved or padding. Each layer has a thread of its own.
#[test]
fn every_flipped_bit_of_every_layer_is_found() {
    let small = small_store();
    let layers: Vec<String> = small
        .paths()
        .into_iter()
        .filter(|path| path.ends_with(".layer"))
        .collect();
    assert_eq!(layers.len(), 4, "{layers:?}");
    let unseen: Vec<String> = thread::scope(|scope| {
        let small = &small;
        let threads: Vec<_> = layers
            .iter()
            .map(|path| scope.spawn(move || flip_layer(small, path)))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(unseen.is_empty(), "{} flips go unseen: {unseen:#?}", unseen.len());
}

/// Every bit of a header, looked at by itself.
#[test]
fn every_flipped_bit_of_every_header_is_found() {
    let small = small_store();
    for path in small.paths().into_iter().filter(|path| path.ends_with(".layer")) {
        let mut header: [u8; HEADER_LEN] = *small.storage.files.lock().unwrap()[&path].first_chunk().unwrap();
        LayerIdentity::from_bytes(&header).unwrap();
        for bit in 0..HEADER_LEN * 8 {
            header[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                LayerIdentity::from_bytes(&header).unwrap_err().kind(),
                ErrorKind::Damaged,
                "bit {bit}"
            );
            header[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn every_flipped_bit_of_every_manifest_is_found() {
    let small = small_store();
    let store = small.store().unwrap();
    for (number, path) in small
        .paths()
        .into_iter()
        .filter(|path| path.contains("/images/"))
        .enumerate()
    {
        let bits = small.storage.files.lock().unwrap()[&path].len() * 8;
        for bit in 0..bits {
            small.flip(&path, bit);
            let error = open_image(&store, "job", number as u64 + 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "bit {bit} of {path}: {error:?}");
            if bit % 97 == 0 {
                for other in (0..small.history.len()).filter(|&other| other != number) {
                    assert_eq!(
                        findings(&store, "job", other as u64 + 1),
                        NOTHING,
                        "bit {bit} of {path}"
                    );
                }
            }
            small.flip(&path, bit);
        }
    }
}

#[test]
fn every_flipped_bit_of_the_records_of_store_and_chain_is_found() {
    let small = small_store();
    for path in ["store.json", "job/chain.json"] {
        let bits = small.storage.files.lock().unwrap()[path].len() * 8;
        for bit in 0..bits {
            small.flip(path, bit);
            let begun = small
                .store()
                .and_then(|store| store.begin("job", None, &DISKS.map(str::to_owned)));
            assert_eq!(
                begun.unwrap_err().kind(),
                ErrorKind::Damaged,
                "bit {bit} of {path}"
            );
            small.flip(path, bit);
        }
    }
}

/// Readers do not need chain.json, so its loss must not cost an image.
#[test]
fn images_are_read_without_the_chains_record() {
    let small = small_store();
    small.storage.files.lock().unwrap().remove("job/chain.json");
    let store = small.store().unwrap();
    for number in 0..small.history.len() {
        assert_eq!(findings(&store, "job", number as u64 + 1), NOTHING);
    }
}
