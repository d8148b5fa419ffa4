//! Damage in what a sync builds on, known or found: the source still has the bytes, so the new image is whole.

use super::model::Model;
use super::support::*;
use crate::format::node::NodeId;
use crate::format::pointer::Place;
use crate::format::sealed;
use crate::storage::memory::MemoryStorage;
use crate::{
    ClusterSize, Codec, Consistency, DiskId, ErrorKind, ImageWriter, Manifest, Pointer, Result, Store,
    Verdict, VerdictState, Verifier, VerifyPlan,
};
use std::ops::ControlFlow;

const CLUSTER: u64 = 16384;
/// Three leaves below a root; the last cluster is short.
const SIZE: u64 = 599 * CLUSTER + 5000;

/// A source in which two clusters of three hold something.
pub(super) fn source() -> Model {
    let mut model = Model::new(SIZE, ClusterSize::K16);
    for index in (0..model.cluster_count()).filter(|index| index % 3 != 0) {
        let len = model.cluster_len(index);
        let bytes = if index % 2 == 0 {
            text_bytes(index, len)
        } else {
            random_bytes(index, len)
        };
        model.set(index, bytes);
    }
    model
}

/// A source, and a store with one image of it.
pub(super) fn one_image() -> (MemoryStorage, Store, Model) {
    let (storage, store) = memory_store();
    let model = source();
    sync(&store, &model).unwrap();
    (storage, store, model)
}

pub(super) fn begin(store: &Store, model: &Model) -> Result<(ImageWriter, DiskId)> {
    let mut writer = store.begin("job", Some(ClusterSize::K16), &["vda".to_owned()])?;
    let disk = writer.disk(meta("vda", model.size))?;
    Ok((writer, disk))
}

pub(super) fn sync(store: &Store, model: &Model) -> Result<Manifest> {
    let (mut writer, disk) = begin(store, model)?;
    pass(&mut writer, disk, model);
    writer.commit(Consistency::Crash, "test")
}

pub(super) fn cluster(store: &Store, sequence: u64, index: u64) -> Pointer {
    let image = open_image(store, "job", sequence).unwrap();
    image.disks()[0].tree().cluster(index).unwrap()
}

/// Where a node of an image is stored.
pub(super) fn node(store: &Store, sequence: u64, id: NodeId) -> Place {
    let image = open_image(store, "job", sequence).unwrap();
    let tree = image.disks()[0].tree();
    if id == tree.root_id() {
        return tree.root().place;
    }
    let level = id.level + 1;
    let index = id.index / 256;
    tree.node(NodeId { level, index }).unwrap().child(id.index).place
}

pub(super) fn leaf(index: u64) -> NodeId {
    NodeId { level: 0, index }
}

/// An image is good, says so once it is verified, and holds what the source held.
#[track_caller]
pub(super) fn assert_good(store: &Store, sequence: u64, model: &Model) {
    let image = open_image(store, "job", sequence).unwrap();
    assert!(known(store, &image).is_none(), "damage is not inherited");
    assert_eq!(findings(store, "job", sequence), NOTHING);
    assert!(matches!(verify(store, sequence), VerdictState::Good(_)));
    let disk = &image.disks()[0];
    assert_eq!(disk.digest().to_string(), model.digest());
    assert!(read_all(disk).unwrap() == model.read(0, model.size as usize));
}

/// A good image stays good when all others are deleted and whatever nothing needs is freed.
#[track_caller]
pub(super) fn assert_survives(store: &Store, sequence: u64) {
    for other in store.sequences("job").unwrap() {
        if other != sequence {
            store.delete(&store.image_id("job", other)).unwrap();
        }
    }
    store.gc("job").unwrap();
    assert_eq!(findings(store, "job", sequence), NOTHING);
    assert_eq!(store.gc("job").unwrap().freed_bytes, 0);
}

#[test]
fn a_damaged_cluster_that_is_known_is_stored_anew_once() {
    let (storage, store, model) = one_image();
    flip_stored(&storage, &cluster(&store, 1, 7).place);
    let unknown = sync(&store, &model).unwrap();
    assert_eq!(unknown.repaired_clusters(), 0, "a sync does not read clusters");
    assert!(matches!(verify(&store, 1), VerdictState::Damaged(_)));
    // Image 2 was never verified, but shares what is damaged in image 1.
    let manifest = sync(&store, &model).unwrap();
    assert_eq!((manifest.sequence, manifest.repaired_clusters()), (3, 1));
    assert_eq!(manifest.disks[0].dirty_bytes, 0, "the source has not changed");
    assert_good(&store, 3, &model);
    // It is still damaged in earlier images, and that is no reason to store it once more.
    let next = sync(&store, &model).unwrap();
    assert_eq!((next.repaired_clusters(), next.disks[0].stored_bytes), (0, 0));
    assert_good(&store, 4, &model);
    assert_survives(&store, 4);
}

#[test]
fn all_of_many_damaged_clusters_are_known() {
    let (storage, store, model) = one_image();
    // Some hundred findings, of which the record keeps a few in words.
    let damaged: Vec<u64> = model.data().filter(|index| index % 5 == 1).collect();
    for &index in &damaged {
        flip_stored(&storage, &cluster(&store, 1, index).place);
    }
    verify(&store, 1);
    let image = open_image(&store, "job", 1).unwrap();
    let found = known(&store, &image).unwrap().damage.unwrap();
    assert!(found.findings.len() < damaged.len() && found.findings_count > 20);
    let manifest = sync(&store, &model).unwrap();
    assert_eq!(manifest.repaired_clusters(), damaged.len() as u64);
    assert_good(&store, 2, &model);
    assert_survives(&store, 2);
}

/// A record of an earlier smc does not say which clusters all findings are about.
#[test]
fn if_not_all_damage_is_known_everything_is_stored_anew() {
    let (storage, store, model) = one_image();
    for index in model.data().filter(|index| index % 5 == 1) {
        flip_stored(&storage, &cluster(&store, 1, index).place);
    }
    verify(&store, 1);
    let image = open_image(&store, "job", 1).unwrap();
    let mut verdict = known(&store, &image).unwrap();
    verdict.damage.as_mut().unwrap().clusters = None;
    store.keep_verdict(&image, &verdict).unwrap();
    let manifest = sync(&store, &model).unwrap();
    assert_eq!(manifest.repaired_clusters(), model.data().count() as u64);
    assert_good(&store, 2, &model);
    assert_eq!(sync(&store, &model).unwrap().repaired_clusters(), 0);
}

#[test]
fn a_verification_that_was_stopped_counts_too() {
    let (storage, store, model) = one_image();
    flip_stored(&storage, &cluster(&store, 1, 7).place);
    let image = open_image(&store, "job", 1).unwrap();
    let plan = VerifyPlan::default();
    let verified = Verifier::new().verify(&image, &plan, &mut |now| {
        // Behind the first leaf.
        if now.checked_bytes > 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(verified.stopped.is_some() && verified.findings.len() == 1);
    let mut verdict = Verdict::new(image.manifest());
    verdict.add(&plan, span(), &[SIZE], &verified);
    store.keep_verdict(&image, &verdict).unwrap();
    assert_eq!(sync(&store, &model).unwrap().repaired_clusters(), 1);
    assert_good(&store, 2, &model);
}

#[test]
fn a_damaged_node_is_rebuilt_from_the_source() {
    let root = NodeId { level: 1, index: 0 };
    for (id, clusters) in [(leaf(0), 256), (leaf(2), 600 - 512), (root, 600)] {
        let (storage, store, mut model) = one_image();
        flip_stored(&storage, &node(&store, 1, id));
        // What changed meanwhile comes along, and what became zero.
        model.set(1, random_bytes(1000, CLUSTER as usize));
        model.set(2, vec![0; CLUSTER as usize]);
        let manifest = sync(&store, &model).unwrap();
        assert_eq!(manifest.repaired_clusters(), clusters, "{id:?}");
        assert_good(&store, 2, &model);
        assert_eq!(sync(&store, &model).unwrap().repaired_clusters(), 0);
        assert_survives(&store, 3);
    }
}

/// Below the root are two nodes, each with leaves below.
#[test]
fn a_damaged_inner_node_costs_what_is_below() {
    let (storage, store) = memory_store();
    let mut model = Model::new(70_000 * CLUSTER, ClusterSize::K16);
    for index in [0, 300, 65_535, 65_536, 69_999] {
        model.set(index, random_bytes(index, CLUSTER as usize));
    }
    sync(&store, &model).unwrap();
    flip_stored(&storage, &node(&store, 1, NodeId { level: 1, index: 1 }));
    let manifest = sync(&store, &model).unwrap();
    assert_eq!(manifest.repaired_clusters(), 70_000 - 65_536);
    assert_eq!(findings(&store, "job", 2), NOTHING);
    let kept = [0, 300, 65_535];
    assert!(
        kept.iter()
            .all(|&index| cluster(&store, 1, index) == cluster(&store, 2, index))
    );
    flip_stored(&storage, &node(&store, 2, NodeId { level: 2, index: 0 }));
    assert_eq!(sync(&store, &model).unwrap().repaired_clusters(), 70_000);
    let image = open_image(&store, "job", 3).unwrap();
    assert_eq!(image.disks()[0].digest().to_string(), model.digest());
    assert_survives(&store, 3);
}

#[test]
fn a_leaf_that_holds_nothing_any_more_is_rebuilt_as_nothing() {
    let (storage, store, mut model) = one_image();
    flip_stored(&storage, &node(&store, 1, leaf(1)));
    for index in 256..512 {
        model.set(index, vec![0; CLUSTER as usize]);
    }
    sync(&store, &model).unwrap();
    assert_good(&store, 2, &model);
    assert!(
        open_image(&store, "job", 2).unwrap().disks()[0]
            .tree()
            .leaf(1)
            .unwrap()
            .children()
            .iter()
            .all(Pointer::is_null)
    );
    assert_survives(&store, 2);
}

#[test]
fn a_disk_that_grew_over_a_damaged_last_leaf_is_whole() {
    for damaged in [leaf(2), NodeId { level: 1, index: 0 }] {
        for size in [SIZE + 1, 600 * CLUSTER, 900 * CLUSTER, 70_000 * CLUSTER] {
            let (storage, store, mut model) = one_image();
            flip_stored(&storage, &node(&store, 1, damaged));
            model.grow(size);
            sync(&store, &model).unwrap();
            assert_eq!(findings(&store, "job", 2), NOTHING);
            let image = open_image(&store, "job", 2).unwrap();
            assert_eq!(image.disks()[0].digest().to_string(), model.digest());
            drop(image);
            assert_survives(&store, 2);
        }
    }
}

/// What a later image stored lies in a layer of its own: the sync finds that it is gone without reading it.
#[test]
fn clusters_of_a_missing_layer_are_stored_anew() {
    let (storage, store, mut model) = one_image();
    let changed = [4, 5, 300];
    for index in changed {
        model.set(index, random_bytes(1000 + index, CLUSTER as usize));
    }
    sync(&store, &model).unwrap();
    // Other leaves, so that nothing of image 3 but the clusters is in the layer that goes.
    model.set(7, random_bytes(7000, CLUSTER as usize));
    model.set(301, random_bytes(7001, CLUSTER as usize));
    sync(&store, &model).unwrap();
    let layer = cluster(&store, 3, 4).place.layer;
    storage
        .files
        .lock()
        .unwrap()
        .remove(&format!("job/layers/{layer:08x}.layer"));
    let manifest = sync(&store, &model).unwrap();
    assert_eq!(manifest.repaired_clusters(), 3);
    assert!(manifest.layers.iter().all(|listed| listed.id != layer));
    assert_good(&store, 4, &model);
    assert_survives(&store, 4);
}

#[test]
fn clusters_of_a_truncated_layer_are_stored_anew_once_verified() {
    let (storage, store, model) = one_image();
    let place = cluster(&store, 1, 400).place;
    let path = format!("job/layers/{:08x}.layer", place.layer);
    storage
        .files
        .lock()
        .unwrap()
        .get_mut(&path)
        .unwrap()
        .truncate(place.offset as usize + 100);
    verify(&store, 1);
    let manifest = sync(&store, &model).unwrap();
    assert!(manifest.repaired_clusters() > 100);
    assert_good(&store, 2, &model);
    assert_survives(&store, 2);
}

/// The layers of an unfinished sync.
pub(super) fn unfinished(store: &Store) -> Manifest {
    store.unfinished("job").unwrap().unwrap()
}

/// Does a part of a sync, up to cluster `end`, and leaves a checkpoint of it.
pub(super) fn leave_unfinished(store: &Store, model: &Model, end: u64) -> Manifest {
    let (mut writer, disk) = begin(store, model).unwrap();
    writer.begin_pass(disk, crate::Method::Scan, "test").unwrap();
    for index in differing(&writer, disk, model)
        .into_iter()
        .filter(|&index| index < end)
    {
        push_plain(&mut writer, disk, model, index);
    }
    assert!(writer.checkpoint().unwrap());
    drop(writer);
    unfinished(store)
}

#[test]
fn damage_of_the_parent_costs_an_unfinished_sync_nothing() {
    for known in [false, true] {
        let (storage, store, mut model) = one_image();
        for index in 0..250 {
            model.set(index, random_bytes(5000 + index, CLUSTER as usize));
        }
        let stored = leave_unfinished(&store, &model, 200);
        // One cluster that the checkpoint shares with the parent, and one of its leaves.
        flip_stored(&storage, &cluster(&store, 1, 301).place);
        flip_stored(&storage, &node(&store, 1, leaf(2)));
        if known {
            verify(&store, 1);
        }
        let (writer, disk) = begin(&store, &model).unwrap();
        assert!(writer.resumed().is_some() && writer.warnings().is_empty());
        let left = differing(&writer, disk, &model);
        let expected = (200..250).chain(known.then_some(301)).chain(512..600);
        assert_eq!(left, expected.collect::<Vec<u64>>());
        drop(writer);
        let manifest = sync(&store, &model).unwrap();
        assert_eq!(manifest.repaired_clusters(), 88 + u64::from(known));
        let layer = stored.layers.last().unwrap().id;
        assert!(
            manifest.layers.iter().any(|listed| listed.id == layer),
            "what it stored is used"
        );
        if known {
            assert_good(&store, manifest.sequence, &model);
            assert_survives(&store, manifest.sequence);
        }
    }
}

#[test]
fn damage_in_what_an_unfinished_sync_stored_is_repaired_like_any_other() {
    let (storage, store, mut model) = one_image();
    for index in (0..250).chain(256..300) {
        model.set(index, random_bytes(5000 + index, CLUSTER as usize));
    }
    leave_unfinished(&store, &model, 280);
    let (writer, _) = begin(&store, &model).unwrap();
    let root = writer.resumed().unwrap().disks()[0]
        .tree()
        .node(NodeId { level: 1, index: 0 })
        .unwrap();
    drop(writer);
    flip_stored(&storage, &root.child(0).place);
    let (writer, disk) = begin(&store, &model).unwrap();
    let left = differing(&writer, disk, &model);
    assert_eq!(left, (0..256).chain(280..300).collect::<Vec<u64>>());
    drop(writer);
    let manifest = sync(&store, &model).unwrap();
    assert_eq!(manifest.repaired_clusters(), 256);
    assert_good(&store, manifest.sequence, &model);
    assert_survives(&store, manifest.sequence);
}

/// What a checkpoint counts in each layer may be too much where a leaf was lost: the resumed sync counts anew.
#[test]
fn a_repair_that_is_cut_short_is_resumed() {
    for end in [100, 300, 590] {
        let (storage, store, model) = one_image();
        flip_stored(&storage, &node(&store, 1, leaf(0)));
        flip_stored(&storage, &node(&store, 1, leaf(2)));
        let half = leave_unfinished(&store, &model, end);
        assert!(half.repaired_clusters() > 0);
        let manifest = sync(&store, &model).unwrap();
        assert!(manifest.repaired_clusters() >= half.repaired_clusters());
        assert_good(&store, manifest.sequence, &model);
        assert_survives(&store, manifest.sequence);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_read_is_said_and_left() {
    let (storage, store, mut model) = one_image();
    model.set(1, random_bytes(1000, CLUSTER as usize));
    leave_unfinished(&store, &model, 2);
    storage
        .files
        .lock()
        .unwrap()
        .get_mut("job/checkpoint.json")
        .unwrap()[40] ^= 1;
    let (writer, _) = begin(&store, &model).unwrap();
    assert!(writer.resumed().is_none());
    let [warning] = writer.warnings() else {
        panic!("{:?}", writer.warnings())
    };
    assert!(warning.contains("job/checkpoint.json"), "{warning}");
    drop(writer);
    let manifest = sync(&store, &model).unwrap();
    assert_good(&store, manifest.sequence, &model);
}

/// Between two checkpoints a leaf that this sync wrote itself is damaged: what it held is not taken for zeros.
#[test]
fn damage_of_what_the_same_sync_stored_is_not_committed() {
    let (storage, store, mut model) = one_image();
    (0..250).for_each(|index| model.set(index, random_bytes(5000 + index, CLUSTER as usize)));
    let (mut writer, disk) = begin(&store, &model).unwrap();
    writer.begin_pass(disk, crate::Method::Scan, "test").unwrap();
    (0..200).for_each(|index| push_plain(&mut writer, disk, &model, index));
    writer.checkpoint().unwrap();
    let saved = unfinished(&store);
    let image = store
        .chain("job")
        .unwrap()
        .open(saved.into(), crate::Lock::new(()))
        .unwrap();
    flip_stored(
        &storage,
        &image.disks()[0]
            .tree()
            .node(NodeId { level: 1, index: 0 })
            .unwrap()
            .child(0)
            .place,
    );
    (200..250).for_each(|index| push_plain(&mut writer, disk, &model, index));
    writer.end_pass(disk, SIZE).unwrap();
    let error = writer.commit(Consistency::Crash, "test").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    let manifest = sync(&store, &model).unwrap();
    assert_good(&store, manifest.sequence, &model);
}

/// A pass that does not cover what cannot be read makes no image.
#[test]
fn an_image_is_not_made_without_what_must_be_stored_anew() {
    let (storage, store, mut model) = one_image();
    flip_stored(&storage, &cluster(&store, 1, 7).place);
    verify(&store, 1);
    flip_stored(&storage, &node(&store, 1, leaf(1)));
    model.set(300, random_bytes(1000, CLUSTER as usize));
    for pushed in [vec![7, 300], (256..512).collect()] {
        let (mut writer, disk) = begin(&store, &model).unwrap();
        writer.begin_pass(disk, crate::Method::Tracked, "test").unwrap();
        pushed
            .iter()
            .for_each(|&index| push_plain(&mut writer, disk, &model, index));
        writer.end_pass(disk, SIZE).unwrap();
        let error = writer.commit(Consistency::Crash, "test").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    }
    // A second pass sees what the first one left out.
    let (mut writer, disk) = begin(&store, &model).unwrap();
    writer.begin_pass(disk, crate::Method::Tracked, "test").unwrap();
    push_plain(&mut writer, disk, &model, 300);
    writer.end_pass(disk, SIZE).unwrap();
    pass(&mut writer, disk, &model);
    let manifest = writer.commit(Consistency::Crash, "test").unwrap();
    assert_good(&store, manifest.sequence, &model);
    assert_survives(&store, manifest.sequence);
}

#[test]
fn damage_that_a_verification_cannot_remember_is_said() {
    let (storage, store, model) = one_image();
    flip_stored(&storage, &cluster(&store, 1, 7).place);
    verify(&store, 1);
    storage
        .files
        .lock()
        .unwrap()
        .get_mut("job/images/000001.verified")
        .unwrap()[40] ^= 1;
    let (writer, _) = begin(&store, &model).unwrap();
    let [warning] = writer.warnings() else {
        panic!("{:?}", writer.warnings())
    };
    assert!(warning.contains("job/1"), "{warning}");
}

#[test]
fn a_chain_of_which_no_image_can_be_opened_goes_on_with_a_full_one() {
    let (storage, store, model) = one_image();
    sync(&store, &model).unwrap();
    for sequence in [1, 2] {
        let path = format!("job/images/{sequence:06}.json");
        storage.files.lock().unwrap().get_mut(&path).unwrap()[40] ^= 1;
    }
    let (writer, _) = begin(&store, &model).unwrap();
    assert!(writer.parent().is_none());
    assert_eq!(writer.skipped_images().len(), 2);
    drop(writer);
    let manifest = sync(&store, &model).unwrap();
    assert_eq!((manifest.sequence, manifest.kind), (4, crate::Kind::Full));
    assert_good(&store, manifest.sequence, &model);
    assert_survives(&store, manifest.sequence);
}

#[test]
fn content_of_equal_digest_that_is_held_otherwise_is_not_the_same() {
    let digest = crate::Digest::of_cluster(b"content");
    let pointer = |codec| Pointer {
        digest,
        codec,
        ..Pointer::NULL
    };
    for (held, codec, same) in [
        (Codec::Raw, Codec::Zstd, true),
        (Codec::Zstd, Codec::Raw, true),
        (Codec::Damaged, Codec::Raw, false),
        (Codec::Zstd, Codec::Damaged, false),
        (Codec::Damaged, Codec::Damaged, true),
    ] {
        assert_eq!(pointer(held).holds(&digest, codec), same, "{held:?} {codec:?}");
    }
}

/// Of an image that was repaired as well: only what is not finished has yet to be counted.
#[test]
fn a_count_that_is_too_high_is_found_in_a_repaired_image() {
    let (storage, store, model) = one_image();
    flip_stored(&storage, &node(&store, 1, leaf(0)));
    let mut manifest = sync(&store, &model).unwrap();
    assert_eq!(manifest.repaired_clusters(), 256);
    manifest.layers[0].referenced += 4096;
    sealed::replace(&storage, "job/images", "job/images/000002.json", &manifest).unwrap();
    let found = findings(&store, "job", 2);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("the manifest counts"), "{found:?}");
}
