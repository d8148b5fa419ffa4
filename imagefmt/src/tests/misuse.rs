//! Callers that get the writing order wrong are told so, and nothing is committed.

use super::model::Model;
use super::support::*;
use crate::storage::memory::MemoryStorage;
use crate::{
    ClusterSize, ClusterUpdate, Codec, Consistency, Digest, Error, ErrorKind, ImageWriter, Result, Store,
};

fn one_image() -> (MemoryStorage, Store, Model) {
    let (storage, store) = memory_store();
    let mut model = Model::new(40_000, ClusterSize::K16);
    model.set(1, random_bytes(1, 16384));
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    (storage, store, model)
}

fn begin(store: &Store) -> ImageWriter {
    store.begin("job", None, &["vda".to_owned()]).unwrap()
}

/// Pushes updates to disk vda of 40,000 bytes and returns what was said to them.
fn push_all(updates: &[ClusterUpdate<'_>]) -> Result<()> {
    let (storage, store, _) = one_image();
    let mut writer = begin(&store);
    let written = pass_over::<Error>(&mut writer, meta("vda", 40_000), |pass| {
        updates.iter().try_for_each(|update| pass.push(update))
    });
    drop(writer);
    let layers = storage
        .files
        .lock()
        .unwrap()
        .keys()
        .filter(|path| path.ends_with(".layer"))
        .count();
    assert_eq!(layers, 1, "a sync that was dropped removes its layers");
    assert_eq!(store.sequences("job").unwrap(), [1]);
    written
}

fn raw(index: u64, plain: &[u8]) -> ClusterUpdate<'_> {
    ClusterUpdate {
        index,
        digest: Digest::of_cluster(plain),
        codec: Codec::Raw,
        stored: plain,
    }
}

#[test]
fn clusters_must_ascend_and_lie_on_the_disk() {
    let plain = random_bytes(2, 16384);
    push_all(&[raw(0, &plain), raw(1, &plain)]).unwrap();
    for updates in [
        [raw(1, &plain), raw(0, &plain)],
        [raw(1, &plain), raw(1, &plain)],
        [raw(0, &plain), raw(3, &plain)],
    ] {
        assert_eq!(push_all(&updates).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(
        push_all(&[raw(u64::MAX, &plain)]).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn stored_bytes_must_fit_codec_and_digest() {
    let plain = random_bytes(2, 16384);
    let digest = Digest::of_cluster(&plain);
    let update = |index, digest, codec, stored| ClusterUpdate {
        index,
        digest,
        codec,
        stored,
    };
    let broken = [
        update(0, digest, Codec::Raw, &plain[1..]),
        update(0, digest, Codec::Raw, &[]),
        update(0, digest, Codec::Null, &[]),
        update(0, Digest::NULL, Codec::Null, &plain),
        update(0, Digest::NULL, Codec::Raw, &plain),
        update(0, digest, Codec::Zstd, &plain),
        update(0, digest, Codec::Zstd, &[]),
        update(0, digest, Codec::Damaged, &plain),
        // The last cluster of 40,000 bytes has 7,232.
        update(2, digest, Codec::Raw, &plain),
    ];
    for update in broken {
        assert_eq!(
            push_all(&[update]).unwrap_err().kind(),
            ErrorKind::Invalid,
            "{:?}",
            update.codec
        );
    }
}

#[test]
fn disks_must_be_those_of_the_job() {
    let (_, store, _) = one_image();
    let disks = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (names, told) in [
        (&["vda", "vdb"][..], "vdb"),
        (&[], "vda"),
        (&["../vda"], "does not fit"),
    ] {
        let error = store.begin("job", None, &disks(names)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(told), "{error}");
    }
    let mut writer = begin(&store);
    assert_eq!(
        writer.disk(meta("vdb", 1000)).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(
        writer.disk(meta("vda", 0)).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(
        begin(&store).commit(Consistency::Crash, "").unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn a_disk_is_added_once_and_never_shrinks() {
    let (_, store, model) = one_image();
    let mut writer = begin(&store);
    let smaller = Model::new(39_999, ClusterSize::K16);
    let error = write_disk(&mut writer, "vda", &smaller, []).unwrap_err();
    assert!(error.to_string().contains("smaller"), "{error}");
    write_disk(&mut writer, "vda", &model, []).unwrap();
    assert_eq!(
        write_disk(&mut writer, "vda", &model, []).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    writer.commit(Consistency::Crash, "").unwrap();
    assert_eq!(findings(&store, "job", 2), NOTHING);
}

#[test]
fn cluster_size_is_fixed_with_the_first_image() {
    let (_, store, _) = one_image();
    let error = store
        .begin("job", Some(ClusterSize::K64), &["vda".to_owned()])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("16k"), "{error}");
}

/// Numbers are taken before they are used, so a sync that failed leaves a gap and no reuse.
#[test]
fn numbers_of_a_dropped_sync_are_not_used_again() {
    let (storage, store, mut model) = one_image();
    model.set(0, random_bytes(8, 16384));
    let mut writer = begin(&store);
    write_disk(&mut writer, "vda", &model, [0]).unwrap();
    assert!(
        storage
            .files
            .lock()
            .unwrap()
            .contains_key("job/layers/00000002.layer")
    );
    drop(writer);
    let manifest = write_image(&store, "job", &[("vda", &model)]).unwrap();
    assert_eq!(manifest.sequence, 3);
    assert_eq!(
        manifest.layers.iter().map(|layer| layer.id).collect::<Vec<_>>(),
        [1, 3]
    );
}

/// Clearing a disk stores no cluster, so it must leave no file behind either.
#[test]
fn a_disk_that_became_zero_leaves_no_layer_unlisted() {
    let (storage, store, mut model) = one_image();
    model.set(1, vec![0; 16384]);
    let manifest = write_image(&store, "job", &[("vda", &model)]).unwrap();
    assert_eq!(manifest.layers, []);
    assert!(
        !storage
            .files
            .lock()
            .unwrap()
            .contains_key("job/layers/00000002.layer"),
        "a layer that nothing lists"
    );
}
