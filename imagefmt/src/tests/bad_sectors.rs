//! Places below a store that the medium cannot read, for good or for a moment, and a medium that does not answer at all.

use super::repair::*;
use super::support::*;
use crate::format::node::NodeId;
use crate::format::pointer::Place;
use crate::storage::memory::MemoryStorage;
use crate::{ErrorKind, VerdictState};
use std::ops::Range;

const ALWAYS: u32 = u32::MAX;

fn bad(storage: &MemoryStorage, path: &str, bytes: Range<u64>, times: u32) {
    let mut bad = storage.bad.lock().unwrap();
    bad.places.push((path.to_owned(), bytes, times));
}

fn bad_place(storage: &MemoryStorage, place: &Place, times: u32) {
    let path = format!("job/layers/{:08x}.layer", place.layer);
    bad(storage, &path, place.offset..place.end(), times);
}

fn heal(storage: &MemoryStorage) {
    *storage.bad.lock().unwrap() = Default::default();
}

#[test]
fn a_node_on_a_bad_sector_is_rebuilt_from_the_source() {
    let root = NodeId { level: 1, index: 0 };
    for (id, clusters) in [(leaf(0), 256), (leaf(2), 600 - 512), (root, 600)] {
        let (storage, store, model) = one_image();
        bad_place(&storage, &node(&store, 1, id), ALWAYS);
        let manifest = sync(&store, &model).unwrap();
        assert_eq!(manifest.repaired_clusters(), clusters, "{id:?}");
        // Not for every cluster below it does somebody wait for the medium.
        let failed = storage.bad.lock().unwrap().failed;
        assert!((2..20).contains(&failed), "{id:?}: {failed} reads failed");
        assert_good(&store, 2, &model);
        assert_eq!(sync(&store, &model).unwrap().repaired_clusters(), 0);
        heal(&storage);
        assert_survives(&store, 3);
    }
}

#[test]
fn a_sector_that_can_be_read_again_costs_nothing() {
    let (storage, store, model) = one_image();
    bad_place(&storage, &node(&store, 1, leaf(0)), 1);
    let manifest = sync(&store, &model).unwrap();
    assert_eq!((manifest.parent.unwrap().sequence, manifest.sequence), (1, 2));
    let disk = &manifest.disks[0];
    assert_eq!((disk.repaired_clusters, disk.stored_bytes), (0, 0));
    assert_eq!(storage.bad.lock().unwrap().failed, 1);
}

#[test]
fn a_store_that_does_not_answer_is_not_damaged() {
    let (storage, store, model) = one_image();
    let (mut writer, disk) = begin(&store, &model).unwrap();
    storage.bad.lock().unwrap().all = true;
    let error = writer.base(disk).unwrap().digests(0..600).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    // The cable is put back.
    heal(&storage);
    pass(&mut writer, disk, &model);
    let manifest = writer.commit(crate::Consistency::Crash, "test").unwrap();
    assert_eq!(
        (manifest.repaired_clusters(), manifest.disks[0].stored_bytes),
        (0, 0)
    );
    let left: Vec<String> = storage.files.lock().unwrap().keys().cloned().collect();
    assert!(!left.iter().any(|path| path.contains("probe")), "{left:?}");
}

#[test]
fn a_cluster_on_a_bad_sector_is_found_by_verify_and_stored_anew() {
    let (storage, store, model) = one_image();
    bad_place(&storage, &cluster(&store, 1, 7).place, ALWAYS);
    assert!(matches!(verify(&store, 1), VerdictState::Damaged(_)));
    assert_eq!(sync(&store, &model).unwrap().repaired_clusters(), 1);
    assert_good(&store, 2, &model);
}

#[test]
fn the_header_of_a_layer_on_a_bad_sector_costs_the_layer() {
    let (storage, store, model) = one_image();
    let layer = node(&store, 1, leaf(0)).layer;
    bad(&storage, &format!("job/layers/{layer:08x}.layer"), 0..512, ALWAYS);
    assert_eq!(sync(&store, &model).unwrap().repaired_clusters(), 600);
    assert_good(&store, 2, &model);
}

/// Nobody can tell what the newest image was: the source has nothing of a record.
#[test]
fn a_record_on_a_bad_sector_is_an_error_that_names_it_and_tells_what_helps() {
    for (record, images) in [("job/images/000002.json", 2), ("job/chain.json", 3)] {
        let (storage, store, model) = one_image();
        sync(&store, &model).unwrap();
        bad(&storage, record, 0..1, ALWAYS);
        let error = sync(&store, &model).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        let message = error.full_message();
        assert!(
            message.contains(record) && message.contains("check the disk") && message.contains("remove"),
            "{message}"
        );
        storage.files.lock().unwrap().remove(record);
        // A new file lies elsewhere on the medium.
        heal(&storage);
        sync(&store, &model).unwrap();
        assert_eq!(store.job("job").unwrap().sequences().len(), images, "{record}");
    }
}
