//! Random chains of images, each compared with its model in every way that a reader can look at it.

use super::model::Model;
use super::support::*;
use crate::storage::memory::MemoryStorage;
use crate::{ClusterSize, Consistency, Digest, Disk, DiskHasher, Image, Kind, Manifest, Store, Verifier};
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of a cluster.
#[derive(Debug, Clone)]
enum Fill {
    Random(u64),
    Text(u64),
    Zero,
    OneBit(Index),
    /// Pushed as it is.
    Same,
    /// Its second half changes.
    Half(u64),
}

/// One image: how the two disks grow and change.
#[derive(Debug, Clone)]
struct Step {
    sizes: [Option<u64>; 2],
    changes: [Vec<(Index, Fill)>; 2],
}

#[derive(Debug, Clone)]
struct Plan {
    cluster_size: ClusterSize,
    sizes: [u64; 2],
    steps: Vec<Step>,
}

fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![
        3 => any::<u64>().prop_map(Fill::Random),
        3 => (0u64..1000).prop_map(Fill::Text),
        2 => Just(Fill::Zero),
        1 => any::<Index>().prop_map(Fill::OneBit),
        1 => Just(Fill::Same),
        1 => any::<u64>().prop_map(Fill::Half),
    ]
}

/// Sizes at which something begins or ends, for clusters of `step` bytes.
fn small_size(step: u64) -> impl Strategy<Value = u64> {
    let leaf = 256 * step;
    let edges = vec![
        1,
        511,
        512,
        step - 1,
        step,
        step + 1,
        leaf - 1,
        leaf,
        leaf + 1,
        leaf + 3 * step,
    ];
    prop_oneof![proptest::sample::select(edges), 1..leaf + leaf / 4]
}

fn huge_size(step: u64) -> impl Strategy<Value = u64> {
    let level = 256 * 256 * step;
    let edges = vec![
        1000,
        level - 1,
        level,
        level + 1,
        256 * level - 7,
        256 * level,
        256 * level + 1,
        1 << 44,
        i64::MAX as u64,
    ];
    prop_oneof![proptest::sample::select(edges), level..level * 300]
}

fn step(size: BoxedStrategy<u64>) -> impl Strategy<Value = Step> {
    let growth = proptest::option::weighted(0.25, size);
    let changes = || {
        prop_oneof![
            1 => Just(Vec::new()),
            4 => proptest::collection::vec((any::<Index>(), fill()), 1..10),
        ]
    };
    ([growth.clone(), growth], [changes(), changes()]).prop_map(|(sizes, changes)| Step { sizes, changes })
}

fn plan(cluster_size: ClusterSize, size: fn(u64) -> BoxedStrategy<u64>) -> impl Strategy<Value = Plan> {
    let size = size(cluster_size.bytes().into());
    let steps = proptest::collection::vec(step(size.clone()), 1..7);
    ([size.clone(), size], steps).prop_map(move |(sizes, steps)| Plan {
        cluster_size,
        sizes,
        steps,
    })
}

/// Changes a model by a plan and says which clusters a sync would push.
fn change(model: &mut Model, size: Option<u64>, changes: &[(Index, Fill)]) -> BTreeSet<u64> {
    let mut pushed = BTreeSet::new();
    if let Some(size) = size.filter(|&size| size > model.size) {
        pushed.insert(model.cluster_count() - 1);
        model.grow(size);
    }
    for (position, fill) in changes {
        // Clusters that hold something are often chosen again, as on a real disk.
        let old: Vec<u64> = model.data().collect();
        let seed = position.index(usize::MAX);
        let index = match old.is_empty() || seed % 2 == 0 {
            true => (position.index(usize::MAX) as u64) % model.cluster_count(),
            false => old[position.index(old.len())],
        };
        let bytes = filled(fill, model.get(index));
        model.set(index, bytes);
        pushed.insert(index);
    }
    pushed
}

fn filled(fill: &Fill, mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.len();
    match fill {
        Fill::Random(seed) => random_bytes(*seed, len),
        Fill::Text(seed) => text_bytes(*seed, len),
        Fill::Zero => vec![0; len],
        Fill::OneBit(at) => {
            let bit = at.index(len * 8);
            bytes.fill(0);
            bytes[bit / 8] = 1 << (bit % 8);
            bytes
        }
        Fill::Same => bytes,
        Fill::Half(seed) => {
            let half = random_bytes(*seed, len - len / 2);
            bytes[len / 2..].copy_from_slice(&half);
            bytes
        }
    }
}

const DISKS: [&str; 2] = ["vda", "vdb"];

/// Writes the plan's chain and compares every image with its model.
fn check_plan(plan: &Plan) {
    let (storage, store) = memory_store();
    let mut models = plan.sizes.map(|size| Model::new(size, plan.cluster_size));
    let mut history: Vec<[Model; 2]> = Vec::new();
    let disks = DISKS.map(str::to_owned);
    for (number, step) in plan.steps.iter().enumerate() {
        let before = models.clone();
        let mut writer = store.begin("job", Some(plan.cluster_size), &disks).unwrap();
        let files = layer_bytes(&storage);
        for (i, name) in DISKS.into_iter().enumerate() {
            let pushed = change(&mut models[i], step.sizes[i], &step.changes[i]);
            write_disk(&mut writer, name, &models[i], pushed).unwrap();
        }
        let manifest = writer.commit(Consistency::Crash, "test").unwrap();
        for (i, record) in manifest.disks.iter().enumerate() {
            let dirty = before[i].diff(&models[i]);
            let dirty_bytes: u64 = dirty
                .iter()
                .map(|&index| models[i].cluster_len(index) as u64)
                .sum();
            assert_eq!(record.dirty_bytes, dirty_bytes, "dirty bytes of {}", record.name);
        }
        let stored_bytes: u64 = manifest.disks.iter().map(|disk| disk.stored_bytes).sum();
        assert_eq!(stored_bytes, layer_bytes(&storage) - files);
        assert_eq!(manifest.sequence, number as u64 + 1);
        assert_eq!(
            manifest.kind,
            if number == 0 {
                Kind::Full
            } else {
                Kind::Incremental
            }
        );
        history.push(models.clone());
    }
    check_history(&store, &history);
}

fn layer_bytes(storage: &MemoryStorage) -> u64 {
    let files = storage.files.lock().unwrap();
    files
        .iter()
        .filter(|(path, _)| path.ends_with(".layer"))
        .map(|(_, bytes)| bytes.len() as u64)
        .sum()
}

fn check_history(store: &Store, history: &[[Model; 2]]) {
    let images: Vec<Image> = (1..=history.len() as u64)
        .map(|n| open_image(store, "job", n).unwrap())
        .collect();
    for (image, models) in images.iter().zip(history) {
        for (disk, model) in image.disks().iter().zip(models) {
            check_disk(disk, model);
        }
        check_referenced(image);
    }
    for (a, before) in images.iter().zip(history) {
        for (b, after) in images.iter().zip(history) {
            check_diff(a, before, b, after);
        }
    }
    let mut ascending = Verifier::new();
    let mut descending = Verifier::new();
    for (a, b) in images.iter().zip(images.iter().rev()) {
        assert_eq!(verify_all(&mut ascending, a), [], "oldest first");
        assert_eq!(verify_all(&mut descending, b), [], "newest first");
    }
}

fn check_disk(disk: &Disk, model: &Model) {
    assert_eq!(disk.size_bytes(), model.size);
    assert_eq!(
        disk.digest().to_string(),
        model.digest(),
        "digest of {}",
        disk.label()
    );
    check_reads(disk, model);
    check_extents(disk, model);
    if model.cluster_count() <= 3000 {
        let mut hasher = DiskHasher::new(disk.geometry());
        (0..model.cluster_count()).for_each(|index| hasher.push(Digest::of_cluster(&model.get(index))));
        assert_eq!(
            hasher.finish(),
            Some(disk.digest()),
            "digest computed from the front"
        );
    }
}

fn check_reads(disk: &Disk, model: &Model) {
    if model.size <= 24 << 20 {
        assert_eq!(
            read_all(disk).unwrap(),
            model.read(0, model.size as usize),
            "{} by one read",
            disk.label()
        );
    }
    let step = u64::from(model.cluster_size.bytes());
    let starts = model.data().flat_map(|index| {
        [
            index * step,
            (index * step + 513).saturating_sub(step),
            index * step + 7,
        ]
    });
    let ends = [0, model.size.saturating_sub(2 * step), model.size - 1, model.size];
    for (i, offset) in starts
        .chain(ends)
        .enumerate()
        .filter(|(_, offset)| *offset <= model.size)
    {
        let len = [1, 512, step + 1, 3 * step, 5 * step - 3][i % 5].min(model.size - offset) as usize;
        let mut bytes = vec![0xaa; len];
        disk.read_at(offset, &mut bytes).unwrap();
        assert!(
            bytes == model.read(offset, len),
            "{}: {len} bytes at {offset}",
            disk.label()
        );
    }
    assert!(disk.read_at(model.size, &mut [0]).is_err(), "read beyond the end");
    assert!(
        disk.read_at(u64::MAX, &mut [0]).is_err(),
        "read at the end of all numbers"
    );
}

fn check_extents(disk: &Disk, model: &Model) {
    assert_eq!(
        disk.extents(0, u64::MAX, usize::MAX).unwrap(),
        model.extents(0, u64::MAX)
    );
    let step = u64::from(model.cluster_size.bytes());
    for index in model.data().take(4) {
        let offset = (index * step).saturating_sub(5);
        for max in [1, 2, 5] {
            let mut expected = model.extents(offset, 3 * step);
            expected.truncate(max);
            assert_eq!(
                disk.extents(offset, 3 * step, max).unwrap(),
                expected,
                "{max} extents at {offset}"
            );
        }
    }
    assert_eq!(disk.extents(0, model.size, 0).unwrap(), []);
    assert_eq!(disk.extents(model.size, 1, 9).unwrap(), []);
}

/// Counts by hand what the manifest says of each layer.
fn check_referenced(image: &Image) {
    let mut counted: BTreeMap<u32, u64> = BTreeMap::new();
    for place in image.disks().iter().flat_map(places) {
        *counted.entry(place.layer).or_default() += u64::from(place.len);
    }
    let manifest: &Manifest = image.manifest();
    let listed: BTreeMap<u32, u64> = manifest
        .layers
        .iter()
        .map(|layer| (layer.id, layer.referenced))
        .collect();
    assert_eq!(listed, counted, "bytes referenced by {}", image.id());
}

fn check_diff(a: &Image, before: &[Model; 2], b: &Image, after: &[Model; 2]) {
    for i in 0..DISKS.len() {
        let mut found = Vec::new();
        let (old, new) = (a.disks()[i].tree(), b.disks()[i].tree());
        old.diff(new, &mut |range| found.extend(range)).unwrap();
        assert_eq!(
            found,
            before[i].diff(&after[i]),
            "diff of {} and {}",
            a.id(),
            b.id()
        );
    }
}

fn boxed_small(step: u64) -> BoxedStrategy<u64> {
    small_size(step).boxed()
}

fn boxed_huge(step: u64) -> BoxedStrategy<u64> {
    huge_size(step).boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn chains_of_small_clusters_read_as_their_models(plan in plan(ClusterSize::K16, boxed_small)) {
        check_plan(&plan);
    }

    #[test]
    fn huge_sparse_chains_read_as_their_models(plan in plan(ClusterSize::K16, boxed_huge)) {
        check_plan(&plan);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn chains_of_default_clusters_read_as_their_models(plan in plan(ClusterSize::K64, boxed_small)) {
        check_plan(&plan);
    }

    #[test]
    fn huge_sparse_chains_of_large_clusters_read_as_their_models(plan in plan(ClusterSize::K256, boxed_huge)) {
        check_plan(&plan);
    }
}

/// The first image of a chain whose second one was made on a disk that grew by several levels at once,
/// with nothing else changed.
#[test]
fn growth_by_several_levels_without_a_change_keeps_the_content() {
    let (_, store) = memory_store();
    let mut model = Model::new(100_000, ClusterSize::K16);
    model.set(0, text_bytes(1, 16384));
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    let old = model.clone();
    for size in [256 * 16384 + 1, 1 << 40, 1 << 50] {
        model.grow(size);
        let mut writer = store.begin("job", None, &["vda".to_owned()]).unwrap();
        write_disk(&mut writer, "vda", &model, []).unwrap();
        let manifest = writer.commit(Consistency::Crash, "").unwrap();
        assert_eq!(manifest.disks[0].dirty_bytes, 0);
        let latest = open_image(&store, "job", store.sequences("job").unwrap().len() as u64).unwrap();
        check_disk(&latest.disks()[0], &model);
        assert_eq!(old.diff(&model), [0; 0]);
    }
}

/// A cluster that was short and holds something must be given anew once it is long.
#[test]
fn a_short_last_cluster_that_grew_must_be_pushed() {
    let (_, store) = memory_store();
    let mut model = Model::new(1000, ClusterSize::K16);
    model.set(0, random_bytes(1, 1000));
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    model.grow(20_000);
    let mut writer = store.begin("job", None, &["vda".to_owned()]).unwrap();
    write_disk(&mut writer, "vda", &model, []).unwrap();
    let error = writer.commit(Consistency::Crash, "").unwrap_err();
    assert!(error.to_string().contains("cluster 0 grew"), "{error}");
}

/// A node above the leaves follows its last changed child in the layer, also where another one comes after it.
#[test]
fn several_nodes_of_one_level_are_written_in_order() {
    let (_, store) = memory_store();
    let per_leaf_parent = 256 * 256;
    let mut model = Model::new(3 * per_leaf_parent * 16384, ClusterSize::K16);
    for index in [
        0,
        256,
        per_leaf_parent,
        per_leaf_parent + 256,
        2 * per_leaf_parent + 1,
    ] {
        model.set(index, random_bytes(index, 16384));
    }
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    assert_eq!(findings(&store, "job", 1), NOTHING);
}
