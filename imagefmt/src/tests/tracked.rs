//! What a sync asks that reads only a part of a disk: since which image the tracker must have seen every write, and which
//! clusters have to be read besides.

use super::repair::{begin, cluster, leaf, node, one_image, source, sync};
use super::support::*;
use crate::{DiskId, ImageWriter, Method, Store};
use std::ops::Range;

/// The number of the image since which a sync's tracker must have seen every write.
fn tracked_from(store: &Store, disk_bytes: u64) -> Option<u64> {
    let mut writer = store.begin("job", None, &["vda".to_owned()]).unwrap();
    let disk = writer.disk(meta("vda", disk_bytes)).unwrap();
    let id = writer.tracked_from(disk)?;
    let numbers = store.sequences("job").unwrap();
    let is = |number: &u64| open_image(store, "job", *number).unwrap().manifest().id == id;
    Some(numbers.into_iter().find(is).unwrap())
}

/// Stores a cluster and ends like a sync that was killed behind a checkpoint.
fn leave_unfinished(mut writer: ImageWriter, disk: DiskId, index: u64) {
    writer.begin_pass(disk, Method::Tracked, "test").unwrap();
    let mut model = source();
    model.set(index, random_bytes(77, model.cluster_len(index)));
    push_plain(&mut writer, disk, &model, index);
    writer.end_pass(disk, 0).unwrap();
    assert!(writer.checkpoint().unwrap());
}

/// That exactly these clusters are to be stored anew, as far as a look at some leaves tells.
#[track_caller]
fn assert_anew(writer: &ImageWriter, disk: DiskId, leaves: Range<u64>, clusters: impl Iterator<Item = u64>) {
    let anew = writer.to_store_anew(disk, leaves.clone()).unwrap();
    let (found, expected): (Vec<u64>, Vec<u64>) = (anew.into_iter().flatten().collect(), clusters.collect());
    assert_eq!(found, expected, "leaves {leaves:?}");
}

#[test]
fn a_tracker_must_know_all_since_the_parent_image() {
    let (_, store) = memory_store();
    let model = source();
    let (writer, disk) = begin(&store, &model).unwrap();
    assert_eq!(writer.tracked_from(disk), None, "there is no image");
    leave_unfinished(writer, disk, 3);
    assert_eq!(
        tracked_from(&store, model.size),
        None,
        "an unfinished first sync is no image"
    );
    sync(&store, &model).unwrap();
    sync(&store, &model).unwrap();
    let newest = store.sequences("job").unwrap().pop();
    assert_eq!(tracked_from(&store, model.size), newest);
    assert_eq!(
        tracked_from(&store, model.size + 16384),
        None,
        "what was added has no bits"
    );
}

#[test]
fn a_resumed_sync_has_its_own_parent_and_no_other() {
    let (_, store, model) = one_image();
    let (writer, disk) = begin(&store, &model).unwrap();
    leave_unfinished(writer, disk, 3);
    assert_eq!(tracked_from(&store, model.size), Some(1));
    store.delete(&store.image_id("job", 1)).unwrap();
    assert_eq!(
        tracked_from(&store, model.size),
        None,
        "the image is gone that the unfinished sync was made from"
    );
}

#[test]
fn after_a_repair_an_unfinished_sync_does_not_say_what_has_come() {
    let (storage, store, model) = one_image();
    flip_stored(&storage, &cluster(&store, 1, 7).place);
    verify(&store, 1);
    let (writer, disk) = begin(&store, &model).unwrap();
    assert_anew(&writer, disk, 0..3, 7..8);
    leave_unfinished(writer, disk, 7);
    assert_eq!(tracked_from(&store, model.size), None);
}

#[test]
fn a_whole_store_has_nothing_to_store_anew() {
    let (_, store, model) = one_image();
    let (writer, disk) = begin(&store, &model).unwrap();
    for leaves in [0..0, 0..1, 0..3, 7..9] {
        assert_anew(&writer, disk, leaves, 0..0);
    }
}

#[test]
fn damage_above_the_leaves_that_are_looked_at_is_found() {
    let (storage, store, model) = one_image();
    flip_stored(&storage, &node(&store, 1, leaf(1)));
    let (writer, disk) = begin(&store, &model).unwrap();
    for leaves in [0..0, 0..1, 2..3] {
        assert_anew(&writer, disk, leaves, 0..0);
    }
    assert_anew(&writer, disk, 1..2, 256..512);
    assert_anew(&writer, disk, 0..3, 256..512);
}

#[test]
fn any_damage_leads_to_a_look_at_all_leaves() {
    let (storage, store, model) = one_image();
    for index in [0, 2] {
        flip_stored(&storage, &node(&store, 1, leaf(index)));
    }
    let (writer, disk) = begin(&store, &model).unwrap();
    assert_anew(&writer, disk, 0..1, (0..256).chain(512..model.cluster_count()));
    // The clusters that a verification knows are reason enough.
    let (storage, store, model) = one_image();
    flip_stored(&storage, &cluster(&store, 1, 301).place);
    verify(&store, 1);
    flip_stored(&storage, &node(&store, 1, leaf(0)));
    let (writer, disk) = begin(&store, &model).unwrap();
    assert_anew(&writer, disk, 0..0, (0..256).chain(301..302));
}
