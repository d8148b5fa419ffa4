//! Which ranges of a disk differ from another one, against the models' bytes.

use super::model::Model;
use super::support::*;
use crate::{Change, ClusterSize, Disk, ErrorKind, Store};
use proptest::prelude::*;
use proptest::sample::Index;

const STEP: u64 = 16384;
const LEAF: u64 = 256 * STEP;

/// What [`Disk::changed`] is to say of all of a range.
fn expected(a: &Model, b: &Model, offset: u64, length: u64) -> Vec<Change> {
    let end = offset.saturating_add(length).min(a.size);
    let mut pieces: Vec<Change> = Vec::new();
    let mut at = offset;
    let mut put = |to: u64, changed: bool| {
        let to = to.min(end);
        if to > at {
            match pieces.last_mut() {
                Some(last) if last.changed == changed => last.length += to - at,
                _ => pieces.push(Change {
                    offset: at,
                    length: to - at,
                    changed,
                }),
            }
            at = to;
        }
    };
    for index in a.diff(b) {
        put(index * STEP, false);
        put((index + 1) * STEP, true);
    }
    put(end, false);
    pieces
}

fn image_of(store: &Store, job: &str, model: &Model) -> Disk {
    write_image(store, job, &[("vda", model)]).unwrap();
    let sequence = store.sequences(job).unwrap().into_iter().max().unwrap();
    open_image(store, job, sequence).unwrap().disks()[0].clone()
}

fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![
        proptest::sample::select(vec![
            1,
            STEP,
            LEAF - 1,
            LEAF,
            LEAF + 1,
            256 * LEAF,
            256 * LEAF + 1,
            1 << 50
        ]),
        1..3 * LEAF,
    ]
}

fn fill(model: &mut Model, changes: &[(Index, u64)]) {
    for (at, seed) in changes {
        let near = model.cluster_count().min(600);
        let index = match seed % 4 {
            0 => model.cluster_count() - 1 - at.index(near as usize) as u64,
            _ => at.index(near as usize) as u64,
        };
        let len = model.cluster_len(index);
        model.set(
            index,
            match seed % 3 {
                0 => vec![0; len],
                _ => text_bytes(*seed, len),
            },
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn changed_ranges_are_those_of_the_models(
        sizes in (sizes(), proptest::option::of(sizes())),
        base in proptest::collection::vec((any::<Index>(), any::<u64>()), 0..12),
        changes in proptest::collection::vec((any::<Index>(), any::<u64>()), 0..12),
        ranges in proptest::collection::vec((any::<Index>(), any::<Index>(), 0usize..5), 1..12),
    ) {
        let (_, store) = memory_store();
        let mut before = Model::new(sizes.0, ClusterSize::K16);
        fill(&mut before, &base);
        let mut after = before.clone();
        sizes.1.filter(|&size| size > sizes.0).into_iter().for_each(|size| after.grow(size));
        fill(&mut after, &changes);
        let old = image_of(&store, "old", &before);
        let new = image_of(&store, "new", &after);
        for (a, b, disk, other) in [(&after, &before, &new, &old), (&before, &after, &old, &new)] {
            prop_assert_eq!(disk.changed(other, 0, u64::MAX, usize::MAX).unwrap(), expected(a, b, 0, u64::MAX));
            for (start, length, max) in &ranges {
                let near = a.size.min(700 * STEP) as usize;
                let offset = start.index(near) as u64;
                let length = length.index(near) as u64;
                let mut pieces = expected(a, b, offset, length);
                pieces.truncate(*max);
                prop_assert_eq!(disk.changed(other, offset, length, *max).unwrap(), pieces);
            }
        }
    }
}

#[test]
fn there_is_nothing_to_say_of_nothing() {
    let (_, store) = memory_store();
    let model = Model::new(3 * STEP, ClusterSize::K16);
    let disk = image_of(&store, "job", &model);
    for (offset, length, max) in [(0, 0, 9), (0, STEP, 0), (model.size, 1, 9), (u64::MAX, 1, 9)] {
        assert_eq!(disk.changed(&disk, offset, length, max).unwrap(), []);
    }
}

#[test]
fn disks_of_different_cluster_sizes_are_not_compared() {
    let (_, store) = memory_store();
    let small = image_of(&store, "small", &Model::new(1 << 20, ClusterSize::K16));
    let large = image_of(&store, "large", &Model::new(1 << 20, ClusterSize::K64));
    for length in [0, 1] {
        let error = small.changed(&large, 0, length, 9).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

/// Every leaf of the disk differs, and a comparison of little reads little.
#[test]
fn a_comparison_reads_the_nodes_of_its_range_only() {
    let (_, store) = memory_store();
    let mut model = Model::new(60 * LEAF, ClusterSize::K16);
    (0..60).for_each(|leaf| model.set(leaf * 256, text_bytes(leaf, STEP as usize)));
    let old = image_of(&store, "old", &Model::new(60 * LEAF, ClusterSize::K16));
    let new = image_of(&store, "new", &model);
    let nodes = || new.tree().files().caches().cached_nodes();
    let changed = new.changed(&old, 7 * LEAF + 5, 10, 9).unwrap();
    assert_eq!(
        changed,
        [Change {
            offset: 7 * LEAF + 5,
            length: 10,
            changed: true
        }]
    );
    assert_eq!(nodes(), 2, "the root and a leaf");
    let changed = new.changed(&old, 0, u64::MAX, 2).unwrap();
    assert_eq!(changed.len(), 2);
    assert!(
        nodes() <= 4,
        "it stopped when it was full, after {} nodes",
        nodes()
    );
}
