//! Files that are cut off, replaced, moved, missing or longer than they should be.

use super::model::Model;
use super::support::*;
use crate::storage::memory::MemoryStorage;
use crate::{ClusterSize, ErrorKind, Store};
use std::collections::BTreeSet;

/// Two images of one disk of two leaves: the second changes the first leaf only.
fn two_images() -> (MemoryStorage, Store, Vec<Model>) {
    let (storage, store) = memory_store();
    let mut model = Model::new(300 * 16384, ClusterSize::K16);
    for index in [0, 1, 290] {
        model.set(index, random_bytes(index, 16384));
    }
    let mut history = Vec::new();
    for number in 0..2 {
        model.set(2, text_bytes(number, 16384));
        write_image(&store, "job", &[("vda", &model)]).unwrap();
        history.push(model.clone());
    }
    (storage, store, history)
}

const LAYER: &str = "job/layers/00000001.layer";

fn file(storage: &MemoryStorage, path: &str) -> Vec<u8> {
    storage.files.lock().unwrap()[path].clone()
}

fn put(storage: &MemoryStorage, path: &str, bytes: Vec<u8>) {
    storage.files.lock().unwrap().insert(path.to_owned(), bytes);
}

/// Reads a disk cluster by cluster: each is right or an error. Returns how many are errors.
fn lost_clusters(store: &Store, sequence: u64, model: &Model) -> usize {
    let Ok(image) = open_image(store, "job", sequence) else {
        return usize::MAX;
    };
    let disk = &image.disks()[0];
    let mut lost = 0;
    for index in 0..model.cluster_count() {
        let mut bytes = vec![0xaa; model.cluster_len(index)];
        match disk.read_at(index * 16384, &mut bytes) {
            Ok(()) => assert!(bytes == model.get(index), "cluster {index} has wrong bytes"),
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound),
                    "{error:?}"
                );
                lost += 1;
            }
        }
    }
    lost
}

#[test]
fn a_manifest_cut_off_at_any_byte_is_refused() {
    let (storage, store, _) = two_images();
    let path = "job/images/000002.json";
    let whole = file(&storage, path);
    for len in 0..whole.len() {
        put(&storage, path, whole[..len].to_vec());
        let error = open_image(&store, "job", 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{len} bytes: {error:?}");
    }
    put(&storage, path, [&whole[..], b"\n"].concat());
    assert_eq!(
        open_image(&store, "job", 2).unwrap_err().kind(),
        ErrorKind::Damaged,
        "a line too many"
    );
}

#[test]
fn a_layer_cut_off_is_found_and_never_misread() {
    let (storage, store, history) = two_images();
    let whole = file(&storage, LAYER);
    let steps = [1usize, 2, 3, 5, 31, 509, 4093];
    let mut len = whole.len();
    for step in steps.into_iter().cycle() {
        let Some(less) = len.checked_sub(step) else { break };
        len = less;
        put(&storage, LAYER, whole[..len].to_vec());
        assert_ne!(findings(&store, "job", 1), NOTHING, "cut off at {len}");
        if len.is_multiple_of(7) {
            lost_clusters(&store, 1, &history[0]);
            lost_clusters(&store, 2, &history[1]);
        }
    }
}

#[test]
fn what_follows_the_committed_length_is_ignored() {
    let (storage, store, history) = two_images();
    let whole = file(&storage, LAYER);
    put(&storage, LAYER, [whole, random_bytes(7, 50_001)].concat());
    for sequence in [1, 2] {
        assert_eq!(findings(&store, "job", sequence), NOTHING);
        assert_eq!(
            lost_clusters(&store, sequence, &history[sequence as usize - 1]),
            0
        );
    }
}

#[test]
fn another_layer_in_a_layers_place_is_refused() {
    let (storage, store, history) = two_images();
    let second = file(&storage, "job/layers/00000002.layer");
    // First under the other id, then with a header that claims the right one but not the right uuid.
    put(&storage, LAYER, second);
    assert_ne!(findings(&store, "job", 1), NOTHING);
    let (twin, _, _) = two_images();
    put(&storage, LAYER, file(&twin, LAYER));
    let found = findings(&store, "job", 1);
    assert!(
        found
            .iter()
            .any(|line| line.contains("but the image was made with")),
        "{found:#?}"
    );
    assert!(lost_clusters(&store, 1, &history[0]) > 0);
}

#[test]
fn a_missing_layer_costs_only_what_is_in_it() {
    let (storage, store, history) = two_images();
    storage.files.lock().unwrap().remove("job/layers/00000002.layer");
    assert_eq!(findings(&store, "job", 1), NOTHING);
    assert_eq!(lost_clusters(&store, 1, &history[0]), 0);
    assert_ne!(findings(&store, "job", 2), NOTHING);
    storage.files.lock().unwrap().remove(LAYER);
    assert_ne!(findings(&store, "job", 1), NOTHING);
}

/// The content is right, the place is not: a block that a filesystem put somewhere else must not be followed.
#[test]
fn a_node_block_in_another_place_is_refused() {
    let (storage, store, _) = two_images();
    let image = open_image(&store, "job", 1).unwrap();
    let tree = image.disks()[0].tree();
    let root = tree.load(tree.root_id(), &tree.root()).unwrap();
    let (first, second) = (root.children()[0].place, root.children()[1].place);
    let bytes = file(&storage, LAYER);
    let block = bytes[first.offset as usize..first.end() as usize].to_vec();
    let mut moved = bytes.clone();
    moved[second.offset as usize..][..block.len()].copy_from_slice(&block);
    put(&storage, LAYER, moved);
    let found = findings(&store, "job", 1);
    assert!(
        found
            .iter()
            .any(|line| line.contains("not the block of this place")),
        "{found:#?}"
    );
}

#[test]
fn every_zeroed_block_is_found() {
    let (storage, store, history) = two_images();
    let whole = file(&storage, LAYER);
    for start in (0..whole.len()).step_by(4096) {
        let mut punched = whole.clone();
        punched[start..start + 4096].fill(0);
        put(&storage, LAYER, punched);
        assert_ne!(findings(&store, "job", 1), NOTHING, "hole at {start}");
        assert_ne!(
            lost_clusters(&store, 1, &history[0]),
            0,
            "hole at {start} reads as if nothing were wrong"
        );
    }
}

/// An image whose parent's chain was damaged is made from the newest good one, and says so.
#[test]
fn a_sync_passes_over_an_image_that_cannot_be_opened() {
    let (storage, store, mut history) = two_images();
    put(&storage, "job/images/000002.json", b"nonsense".to_vec());
    let mut model = history.remove(0);
    model.set(5, random_bytes(5, 16384));
    let writer = store.begin("job", None, &["vda".to_owned()]).unwrap();
    assert_eq!(writer.parent().unwrap().manifest().sequence, 1);
    assert_eq!(
        writer
            .skipped_images()
            .iter()
            .map(|(sequence, _)| *sequence)
            .collect::<Vec<_>>(),
        [2]
    );
    drop(writer);
    let manifest = write_image(&store, "job", &[("vda", &model)]).unwrap();
    assert_eq!((manifest.sequence, manifest.parent.unwrap().sequence), (3, 1));
    assert_eq!(findings(&store, "job", 3), NOTHING);
}

/// Layer ids come from chain.json. One that went back in time, or was lost, is repaired from what is there.
#[test]
fn a_chain_record_that_went_back_in_time_or_was_lost_is_mended() {
    let (storage, store, history) = two_images();
    let records: Vec<Option<Vec<u8>>> = {
        let (older, _, _) = two_images();
        let fresh = file(&older, "job/chain.json");
        // As it was before the second image, and not there at all.
        let text = String::from_utf8(fresh).unwrap();
        let value: serde_json::Value = serde_json::from_str(text.split("blake3:").next().unwrap()).unwrap();
        let mut value = value;
        value["next_layer"] = 1.into();
        vec![Some(crate::format::sealed::seal(&value).unwrap()), None]
    };
    let mut model = history[1].clone();
    model.set(7, random_bytes(7, 16384));
    for (round, record) in (1..).zip(records) {
        match record {
            Some(bytes) => put(&storage, "job/chain.json", bytes),
            None => drop(storage.files.lock().unwrap().remove("job/chain.json")),
        }
        model.set(7 + round, random_bytes(7, 16384));
        let manifest = write_image(&store, "job", &[("vda", &model)]).unwrap();
        assert_eq!(manifest.sequence, 2 + round);
        let layers: BTreeSet<u32> = manifest.layers.iter().map(|layer| layer.id).collect();
        assert_eq!(layers.len(), manifest.layers.len());
        assert_eq!(findings(&store, "job", 2 + round), NOTHING);
        assert_eq!(findings(&store, "job", 1), NOTHING);
        assert_eq!(findings(&store, "job", 2), NOTHING);
    }
}
