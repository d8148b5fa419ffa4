//! Several passes over the disks of one image, in any order: what they leave, and what they cost.

use super::model::Model;
use super::support::*;
use crate::{ClusterEncoder, ClusterSize, Consistency, DiskId, ErrorKind, ImageWriter, Method, Store};
use proptest::prelude::*;

const CLUSTER: u64 = 16384;
const JOB: &str = "job";
const DISKS: [&str; 2] = ["vda", "vdb"];

/// Two leaves and a short last cluster; one leaf.
const SIZES: [u64; 2] = [260 * CLUSTER + 5000, 20 * CLUSTER];

fn models() -> [Model; 2] {
    SIZES.map(|size| Model::new(size, ClusterSize::K16))
}

fn begin(store: &Store) -> (ImageWriter, [DiskId; 2]) {
    let names = DISKS.map(str::to_owned);
    let mut writer = store.begin(JOB, Some(ClusterSize::K16), &names).unwrap();
    let disks = [0, 1].map(|i| writer.disk(meta(DISKS[i], SIZES[i])).unwrap());
    (writer, disks)
}

/// As two passes at the same time: clusters of both disks come in turn.
fn pass_both(writer: &mut ImageWriter, disks: [DiskId; 2], models: &[Model; 2]) {
    for disk in disks {
        writer.begin_pass(disk, Method::Scan, "test").unwrap();
    }
    let differing = [0, 1].map(|i| differing(writer, disks[i], &models[i]));
    for turn in 0..differing[0].len().max(differing[1].len()) {
        for i in [0, 1] {
            if let Some(&index) = differing[i].get(turn) {
                push_plain(writer, disks[i], &models[i], index);
            }
        }
    }
    for i in [1, 0] {
        writer.end_pass(disks[i], models[i].size).unwrap();
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Cluster of a disk, and what it holds from now on.
    Change(usize, u64, u8),
    Pass(usize),
    Both,
    Checkpoint,
    /// The sync is killed behind a checkpoint, or without one, and begun again.
    Restart(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..2_usize, 0..261_u64, any::<u8>()).prop_map(|(disk, index, content)| {
            let count = SIZES[disk].div_ceil(CLUSTER);
            Step::Change(disk, index % count, content)
        }),
        3 => (0..2_usize).prop_map(Step::Pass),
        1 => Just(Step::Both),
        2 => Just(Step::Checkpoint),
        1 => any::<bool>().prop_map(Step::Restart),
    ]
}

/// Zeros, text and noise, so that clusters come and go.
fn content(kind: u8, len: usize) -> Vec<u8> {
    match kind % 4 {
        0 => vec![0; len],
        1 => text_bytes(kind.into(), len),
        _ => random_bytes(kind.into(), len),
    }
}

/// Does the steps and commits; returns the number of the image.
fn run(store: &Store, models: &mut [Model; 2], steps: &[Step]) -> u64 {
    let (mut writer, mut disks) = begin(store);
    for step in steps {
        match *step {
            Step::Change(disk, index, kind) => {
                let len = models[disk].cluster_len(index);
                models[disk].set(index, content(kind, len));
            }
            Step::Pass(disk) => {
                pass(&mut writer, disks[disk], &models[disk]);
            }
            Step::Both => pass_both(&mut writer, disks, models),
            Step::Checkpoint => {
                writer.checkpoint().unwrap();
            }
            Step::Restart(saved) => {
                let is_saved = saved && writer.checkpoint().unwrap();
                drop(writer);
                (writer, disks) = begin(store);
                assert!(!is_saved || writer.resumed().is_some());
            }
        }
    }
    // The last pass sees all of it, as one scan at the end would.
    pass_both(&mut writer, disks, models);
    writer.commit(Consistency::Crash, "test").unwrap().sequence
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_in_any_order_equal_one_scan_at_the_end(
        images in prop::collection::vec(prop::collection::vec(step(), 0..24), 1..4),
    ) {
        let (_, store) = memory_store();
        let mut models = models();
        for steps in &images {
            let sequence = run(&store, &mut models, steps);
            let image = open_image(&store, JOB, sequence).unwrap();
            for (disk, model) in image.disks().iter().zip(&models) {
                prop_assert_eq!(disk.digest().to_string(), model.digest());
            }
            prop_assert_eq!(findings(&store, JOB, sequence), NOTHING);
            drop(image);
            // What one pass stored and a later one superseded was freed: nothing is left for gc.
            prop_assert_eq!(store.gc(JOB).unwrap().freed_bytes, 0);
        }
    }
}

#[test]
fn a_second_pass_stores_only_what_changed_since() {
    let (_, store) = memory_store();
    let mut models = models();
    for index in 0..250 {
        models[0].set(index, random_bytes(index, CLUSTER as usize));
    }
    let (mut writer, [vda, vdb]) = begin(&store);
    assert_eq!(pass(&mut writer, vda, &models[0]), 250);
    assert_eq!(pass(&mut writer, vdb, &models[1]), 0);
    for index in [3, 100] {
        models[0].set(index, random_bytes(1000 + index, CLUSTER as usize));
    }
    models[0].set(258, random_bytes(7, CLUSTER as usize));
    assert_eq!(pass(&mut writer, vda, &models[0]), 3);
    assert_eq!(pass(&mut writer, vda, &models[0]), 0);
    let manifest = writer.commit(Consistency::Crash, "test").unwrap();
    let record = &manifest.disks[0];
    assert_eq!(
        record.dirty_bytes,
        251 * CLUSTER,
        "a cluster that came twice counts once"
    );
    assert_eq!(record.compared_bytes, 3 * SIZES[0]);
    let (stored, data) = (record.stored_bytes, 253 * CLUSTER);
    assert!(
        (data..data + 40 * CLUSTER).contains(&stored),
        "{stored} for {data}"
    );
    assert_eq!(findings(&store, JOB, 1), NOTHING);
}

#[test]
fn the_record_names_how_the_first_pass_found_changes() {
    let (_, store) = memory_store();
    let (mut writer, [vda, vdb]) = begin(&store);
    for (disk, method) in [
        (vda, Method::Scan),
        (vdb, Method::Tracked),
        (vda, Method::Tracked),
    ] {
        writer.begin_pass(disk, method, "as the test says").unwrap();
        writer.end_pass(disk, 0).unwrap();
    }
    let manifest = writer.commit(Consistency::Crash, "test").unwrap();
    assert_eq!(manifest.disks[0].method, Method::Scan);
    assert_eq!(manifest.disks[1].method, Method::Tracked);
    assert_eq!(manifest.method(), Method::Scan, "one disk was scanned");
}

#[test]
fn a_checkpoint_covers_all_disks_in_the_state_they_are_in() {
    let (_, store) = memory_store();
    let mut models = models();
    let (mut writer, disks) = begin(&store);
    for (model, disk) in models.iter_mut().zip(disks) {
        (0..12).for_each(|index| model.set(index, random_bytes(index + model.size, CLUSTER as usize)));
        writer.begin_pass(disk, Method::Full, "test").unwrap();
    }
    // Neither pass has ended, and they are not equally far.
    (0..9).for_each(|index| push_plain(&mut writer, disks[0], &models[0], index));
    (0..4).for_each(|index| push_plain(&mut writer, disks[1], &models[1], index));
    assert!(writer.checkpoint().unwrap());
    push_plain(&mut writer, disks[0], &models[0], 9);
    drop(writer);
    let unfinished = store.unfinished(JOB).unwrap().unwrap();
    let dirty: Vec<u64> = unfinished.disks.iter().map(|disk| disk.dirty_bytes).collect();
    assert_eq!(dirty, [9 * CLUSTER, 4 * CLUSTER]);
    assert!(unfinished.disks.iter().all(|disk| disk.method == Method::Full));

    let (mut writer, disks) = begin(&store);
    assert!(writer.resumed().is_some());
    assert_eq!(pass(&mut writer, disks[0], &models[0]), 3);
    assert_eq!(pass(&mut writer, disks[1], &models[1]), 8);
    let manifest = writer.commit(Consistency::Crash, "test").unwrap();
    assert_eq!(findings(&store, JOB, manifest.sequence), NOTHING);
    assert_eq!(store.gc(JOB).unwrap().freed_bytes, 0);
}

/// The second checkpoint lists no layer of this sync; the file that the first one listed is freed with it, so it must
/// not be written further.
#[test]
fn a_layer_that_nothing_points_to_any_more_is_not_continued() {
    let (_, store) = memory_store();
    let mut models = models();
    models[1].set(3, random_bytes(3, CLUSTER as usize));
    models[1].set(5, random_bytes(5, CLUSTER as usize));
    let (mut writer, disks) = begin(&store);
    pass_both(&mut writer, disks, &models);
    writer.commit(Consistency::Crash, "test").unwrap();

    let (mut writer, [vda, vdb]) = begin(&store);
    pass(&mut writer, vda, &models[0]);
    writer.begin_pass(vdb, Method::Scan, "test").unwrap();
    for index in [3, 5] {
        models[1].set(index, vec![0; CLUSTER as usize]);
        push_plain(&mut writer, vdb, &models[1], index);
        assert!(writer.checkpoint().unwrap());
    }
    models[1].set(7, random_bytes(7, CLUSTER as usize));
    push_plain(&mut writer, vdb, &models[1], 7);
    writer.end_pass(vdb, SIZES[1]).unwrap();
    writer.commit(Consistency::Crash, "test").unwrap();

    let image = open_image(&store, JOB, 2).unwrap();
    assert_eq!(image.disks()[1].digest().to_string(), models[1].digest());
    assert_eq!(findings(&store, JOB, 2), NOTHING);
    assert_eq!(store.gc(JOB).unwrap().freed_bytes, 0);
}

#[test]
fn passes_that_do_not_fit_are_refused() {
    let (_, store) = memory_store();
    let models = models();
    let (mut writer, [vda, vdb]) = begin(&store);
    let mut encoder = ClusterEncoder::new(0);
    let plain = random_bytes(1, CLUSTER as usize);
    let digest = encoder.digest(&plain);
    let outside = writer.push(vda, &encoder.encode(0, digest, &plain)).unwrap_err();
    assert_eq!(outside.kind(), ErrorKind::Invalid);
    assert_eq!(writer.end_pass(vda, 0).unwrap_err().kind(), ErrorKind::Invalid);
    writer.begin_pass(vda, Method::Scan, "").unwrap();
    let twice = writer.begin_pass(vda, Method::Scan, "").unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Invalid);
    pass(&mut writer, vdb, &models[1]);
    let open = writer.commit(Consistency::Crash, "").unwrap_err();
    assert!(
        open.to_string().contains("vda: a pass over it has not ended"),
        "{open}"
    );
    let (writer, _) = begin(&store);
    let none = writer.commit(Consistency::Crash, "").unwrap_err();
    assert!(
        none.to_string().contains("vda: no pass over it was made"),
        "{none}"
    );
}

/// A job of many disks keeps only a few layers open between its passes.
#[test]
fn few_layers_stay_open_between_passes() {
    let (storage, store) = memory_store();
    let names: Vec<String> = (0..7).map(|i| format!("vd{i}")).collect();
    let mut writer = store.begin(JOB, Some(ClusterSize::K16), &names).unwrap();
    let mut model = Model::new(3 * CLUSTER, ClusterSize::K16);
    let mut disks = Vec::new();
    for name in &names {
        disks.push(writer.disk(meta(name, model.size)).unwrap());
    }
    for round in 0..2 {
        model.set(1, random_bytes(round, CLUSTER as usize));
        for &disk in &disks {
            assert_eq!(pass(&mut writer, disk, &model), 1);
        }
    }
    // Four disks went on in the layers of their first pass, three needed new ones.
    let is_there = |id: u32| {
        let path = format!("{JOB}/layers/{id:08x}.layer");
        storage.files.lock().unwrap().contains_key(&path)
    };
    assert!(is_there(7 + 3) && !is_there(7 + 3 + 1));
    let manifest = writer.commit(Consistency::Crash, "test").unwrap();
    assert!(manifest.disks.iter().all(|disk| disk.dirty_bytes == CLUSTER));
    let image = open_image(&store, JOB, 1).unwrap();
    for disk in image.disks() {
        assert_eq!(disk.digest().to_string(), model.digest());
    }
    assert_eq!(findings(&store, JOB, 1), NOTHING);
}
