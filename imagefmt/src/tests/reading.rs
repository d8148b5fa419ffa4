//! Reading through what is remembered: verified clusters, the cluster cache, and reads that must not wait.

use super::model::Model;
use super::support::*;
use crate::storage::memory::MemoryStorage;
use crate::{
    ClusterEncoder, ClusterSize, Codec, Consistency, Disk, Error, ErrorKind, Readers, Store, TryRead,
};
use proptest::prelude::*;
use proptest::sample::Index;

const STEP: u64 = 16384;

/// One of each in turn: stored raw, compressed, nothing.
fn mixed_model(clusters: u64, last: u64) -> Model {
    let mut model = Model::new((clusters - 1) * STEP + last, ClusterSize::K16);
    for index in (0..clusters).filter(|index| index % 5 != 4) {
        let len = model.cluster_len(index);
        let plain = match index / 2 % 2 {
            0 => random_bytes(index + 1, len),
            _ => text_bytes(index, len),
        };
        model.set(index, plain);
    }
    model
}

fn written(models: &[&Model]) -> (MemoryStorage, Store) {
    let (storage, store) = memory_store();
    for model in models {
        write_image(&store, "job", &[("vda", model)]).unwrap();
    }
    (storage, store)
}

fn disk(store: &Store, sequence: u64) -> Disk {
    open_image(store, "job", sequence).unwrap().disks()[0].clone()
}

fn pointer_of(disk: &Disk, codec: Codec) -> (u64, crate::Pointer) {
    (0..disk.geometry().cluster_count())
        .map(|index| (index, disk.tree().cluster(index).unwrap()))
        .find(|(_, pointer)| pointer.codec == codec)
        .unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Read,
    Try,
    Cache,
    /// Opens the image anew: nothing is known of it any more.
    Reopen,
}

fn check_step(step: &Step, disk: &Disk, model: &Model, offset: u64, len: usize) {
    let mut bytes = vec![0xaa; len];
    let expected = model.read(offset, len);
    match step {
        Step::Read => {
            disk.read_at(offset, &mut bytes).unwrap();
            assert!(bytes == expected, "{len} bytes at {offset}");
        }
        Step::Try => match disk.try_read_at(offset, &mut bytes) {
            TryRead::Data => assert!(bytes == expected, "{len} bytes at {offset}, without waiting"),
            TryRead::Zeros => {
                assert!(expected.iter().all(|&byte| byte == 0), "{len} zeros at {offset}");
                assert!(bytes.iter().all(|&byte| byte == 0xaa), "the target was touched");
            }
            TryRead::Wait => {}
        },
        Step::Cache => disk.cache(offset, len as u64).unwrap(),
        Step::Reopen => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn reads_of_all_kinds_in_any_order_see_the_same_bytes(
        last in 1..=STEP,
        cache_clusters in 0usize..40,
        steps in proptest::collection::vec((
            prop_oneof![
                6 => Just(Step::Read),
                6 => Just(Step::Try),
                2 => Just(Step::Cache),
                1 => Just(Step::Reopen),
            ],
            any::<Index>(),
            prop_oneof![1usize..600, 4096usize..20_000, 60_000usize..400_000],
        ), 1..60),
    ) {
        let model = mixed_model(269, last);
        let (_, store) = written(&[&model]);
        let store = store.with_cache_bytes(cache_clusters * STEP as usize);
        let mut disk = disk(&store, 1);
        for (step, at, len) in steps {
            let offset = at.index(model.size as usize) as u64;
            let len = len.min((model.size - offset) as usize);
            if matches!(step, Step::Reopen) {
                disk = self::disk(&store, 1);
            }
            check_step(&step, &disk, &model, offset, len);
        }
    }
}

#[test]
fn what_was_read_or_cached_is_there_without_waiting() {
    let model = mixed_model(269, 100);
    let (_, store) = written(&[&model]);
    let by_reading = disk(&store, 1);
    let by_caching = disk(&store, 1);
    by_caching.cache(0, u64::MAX).unwrap();
    for index in 0..model.cluster_count() {
        let (offset, len) = (index * STEP + 7, model.cluster_len(index).min(3000) - 7);
        by_reading.read_at(offset, &mut vec![0; len]).unwrap();
        let expected = match index % 5 {
            4 => TryRead::Zeros,
            _ => TryRead::Data,
        };
        for disk in [&by_reading, &by_caching] {
            let mut bytes = vec![0; len];
            assert_eq!(disk.try_read_at(offset, &mut bytes), expected, "cluster {index}");
            assert!(bytes == model.read(offset, len), "cluster {index}");
        }
    }
}

#[test]
fn nothing_is_handed_out_without_waiting_before_it_was_verified() {
    let model = mixed_model(269, 100);
    let (_, store) = written(&[&model]);
    let disk = disk(&store, 1);
    let mut bytes = [0; 512];
    assert_eq!(disk.try_read_at(0, &mut bytes), TryRead::Wait, "no node is known");
    disk.tree().leaf(0).unwrap();
    for index in [0, 1, 2, 3] {
        let tried = disk.try_read_at(index * STEP, &mut bytes);
        assert_eq!(tried, TryRead::Wait, "cluster {index} was not read yet");
    }
    assert_eq!(disk.try_read_at(4 * STEP, &mut bytes), TryRead::Zeros);
}

#[test]
fn reads_without_waiting_stay_within_one_cluster_and_the_disk() {
    let model = mixed_model(269, 100);
    let (_, store) = written(&[&model]);
    let disk = disk(&store, 1);
    disk.cache(0, u64::MAX).unwrap();
    let end = model.size;
    let beyond = [
        (STEP - 1, 2),
        (0, 0),
        (4 * STEP - 1, 2),
        (end - 1, 2),
        (end, 1),
        (u64::MAX, 1),
        (end, 0),
    ];
    for (offset, len) in beyond {
        let tried = disk.try_read_at(offset, &mut vec![0; len]);
        assert_eq!(tried, TryRead::Wait, "{len} bytes at {offset}");
    }
    assert_eq!(disk.try_read_at(end - 1, &mut [0]), TryRead::Data);
    assert_eq!(disk.try_read_at(0, &mut vec![0; STEP as usize]), TryRead::Data);
}

#[test]
fn a_cluster_damaged_before_its_first_read_is_an_error_however_it_is_read() {
    for codec in [Codec::Raw, Codec::Zstd] {
        let (storage, store) = written(&[&mixed_model(39, STEP)]);
        let (index, pointer) = pointer_of(&disk(&store, 1), codec);
        flip_stored(&storage, &pointer.place);
        let disk = disk(&store, 1);
        let offset = index * STEP;
        let check = |read: Result<(), Error>, what: &str| {
            let error = read.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{what}");
            let text = format!("{error}");
            let named =
                text.contains("job/1:vda") && text.contains(&format!("cluster {index} (byte {offset})"));
            assert!(named, "{what}: {text}");
            let tried = disk.try_read_at(offset + 9, &mut [0; 99]);
            assert_eq!(tried, TryRead::Wait, "after {what}");
        };
        for _ in 0..2 {
            check(disk.read_at(offset + 9, &mut [0; 99]), "a partial read");
            check(disk.read_at(offset, &mut vec![0; STEP as usize]), "a whole read");
            check(disk.read_at(0, &mut vec![0; 20 * STEP as usize]), "a long read");
            check(disk.cache(0, 20 * STEP), "caching");
        }
    }
}

/// What the format promises is that content is checked before it is handed out, not each time: the page cache
/// is trusted as memory is.
#[test]
fn a_raw_cluster_is_checked_once_while_it_is_open() {
    let model = mixed_model(39, STEP);
    let (storage, store) = written(&[&model]);
    let first = disk(&store, 1);
    let (index, pointer) = pointer_of(&first, Codec::Raw);
    first.read_at(index * STEP + 1, &mut [0; 1]).unwrap();
    flip_stored(&storage, &pointer.place);
    first.read_at(index * STEP, &mut vec![0; STEP as usize]).unwrap();
    let second = disk(&store, 1);
    let read = second.read_at(index * STEP + 1, &mut [0; 1]);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn sectors_unreadable_at_the_source_are_never_handed_out_without_waiting() {
    let (_, store) = memory_store();
    let mut writer = store
        .begin("job", Some(ClusterSize::K16), &["vda".to_owned()])
        .unwrap();
    let mut unreadable = vec![0; STEP as usize / 512 / 8];
    unreadable[0] = 0b10;
    let mut encoder = ClusterEncoder::new(1);
    let update = encoder.encode_damaged(0, &random_bytes(1, STEP as usize), &unreadable);
    pass_over::<Error>(&mut writer, meta("vda", STEP), |pass| pass.push(&update)).unwrap();
    writer.commit(Consistency::Crash, "test").unwrap();
    let disk = disk(&store, 1);
    let mut sector = [0; 512];
    disk.read_at(0, &mut sector).unwrap();
    assert_eq!(disk.try_read_at(1024, &mut sector), TryRead::Data);
    assert_eq!(disk.try_read_at(512, &mut sector), TryRead::Wait);
    assert_eq!(
        disk.read_at(512, &mut sector).unwrap_err().kind(),
        ErrorKind::Unreadable
    );
}

#[test]
fn the_caches_keep_no_more_than_they_may() {
    let mut texts = Model::new(70 * 256 * STEP, ClusterSize::K16);
    (0..70).for_each(|leaf| texts.set(leaf * 256, text_bytes(leaf, STEP as usize)));
    (0..100).for_each(|index| texts.set(index, text_bytes(index, STEP as usize)));
    let (_, store) = written(&[&texts]);
    let room = 40;
    let store = store.with_cache_bytes(room * STEP as usize);
    let disk = disk(&store, 1);
    disk.cache(0, u64::MAX).unwrap();
    let files = disk.tree().files();
    assert!(
        (1..=room / 2).contains(&files.caches().cached_clusters()),
        "one call takes half"
    );
    for index in texts.data() {
        disk.read_at(index * STEP, &mut [0; 9]).unwrap();
        assert!(files.caches().cached_clusters() <= room);
        assert!(files.caches().cached_nodes() <= 64);
    }
    assert!(files.caches().cached_clusters() > room / 2);
}

fn open_disk(readers: &Readers, store: &Store, job: &str, sequence: u64) -> Disk {
    let id = store.job(job).unwrap().get(sequence).unwrap();
    readers.open(&id).unwrap().disks()[0].clone()
}

#[test]
fn readers_in_turn_find_what_earlier_ones_read_and_leave_nothing_more() {
    let model = mixed_model(600, 100);
    let (_, store) = written(&[&model, &model]);
    let readers = store.readers();
    let read = |sequence| {
        let disk = open_disk(&readers, &store, "job", sequence);
        read_all(&disk).unwrap();
        let caches = disk.tree().files().caches();
        (caches.cached_nodes(), caches.cached_clusters())
    };
    let kept = read(1);
    assert!(kept.0 >= 3, "{kept:?}");
    assert!((0..50).all(|_| read(1) == kept));
    // Another image's nodes are checked against its own layers.
    assert_eq!(read(2).0, 2 * kept.0);
}

#[test]
fn one_bound_holds_for_all_chains_together() {
    let mut texts = Model::new(60 * STEP, ClusterSize::K16);
    (0..60).for_each(|index| texts.set(index, text_bytes(index, STEP as usize)));
    let room = 60;
    let (_, store) = memory_store();
    let store = store.with_cache_bytes(room * STEP as usize);
    let jobs = ["a", "b", "c", "d"];
    for job in jobs {
        write_image(&store, job, &[("vda", &texts)]).unwrap();
    }
    let readers = store.readers();
    // All of them stay open.
    let disks = jobs.map(|job| open_disk(&readers, &store, job, 1));
    for disk in &disks {
        for index in 0..60 {
            disk.read_at(index * STEP, &mut [0; 9]).unwrap();
        }
        let kept = disk.tree().files().caches().cached_clusters();
        assert!((room / 3..=room * 2 / 3).contains(&kept), "{kept}");
    }
}

/// Of clusters stored raw it is known that they were verified, which must not be believed for ever.
#[test]
fn what_was_verified_for_readers_that_left_is_verified_again() {
    let model = mixed_model(20, STEP);
    let (storage, store) = written(&[&model]);
    let readers = store.readers();
    let open = || open_disk(&readers, &store, "job", 1);
    let first = open();
    let (index, pointer) = pointer_of(&first, Codec::Raw);
    let mut bytes = [0; 100];
    first.read_at(index * STEP, &mut bytes).unwrap();
    let beside = open();
    assert_eq!(beside.try_read_at(index * STEP, &mut bytes), TryRead::Data);
    drop((first, beside));
    flip_stored(&storage, &pointer.place);
    let later = open();
    assert_eq!(later.try_read_at(index * STEP, &mut bytes), TryRead::Wait);
    let refused = later.read_at(index * STEP, &mut bytes).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Damaged);
}

/// A deleted layer's space is free only when its file is open nowhere.
#[test]
fn layers_are_closed_when_no_image_of_their_chain_is_open() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = Store::open_or_create(dir.path(), false).unwrap();
    write_image(&store, "job", &[("vda", &mixed_model(20, STEP))]).unwrap();
    let readers = store.readers();
    let open_layers = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        let is_layer = |path: &std::path::PathBuf| {
            path.starts_with(dir.path()) && path.extension().is_some_and(|extension| extension == "layer")
        };
        targets.filter(is_layer).count()
    };
    for _ in 0..2 {
        let disk = open_disk(&readers, &store, "job", 1);
        read_all(&disk).unwrap();
        assert_eq!(open_layers(), 1);
        drop(disk);
        assert_eq!(open_layers(), 0);
    }
}

#[test]
fn raw_clusters_take_no_room_in_the_cluster_cache() {
    let mut model = Model::new(20 * STEP, ClusterSize::K16);
    (0..20).for_each(|index| model.set(index, random_bytes(index, STEP as usize)));
    let (_, store) = written(&[&model]);
    let disk = disk(&store, 1);
    disk.read_at(5, &mut [0; 100]).unwrap();
    disk.cache(0, model.size).unwrap();
    read_all(&disk).unwrap();
    assert_eq!(disk.tree().files().caches().cached_clusters(), 0);
}

/// On a real filesystem: the kernel is asked for what its page cache holds.
#[test]
fn a_verified_raw_cluster_is_read_from_the_page_cache() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = Store::open_or_create(dir.path(), false).unwrap();
    let model = mixed_model(39, 5000);
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    let disk = disk(&store, 1);
    let (index, _) = pointer_of(&disk, Codec::Raw);
    let mut bytes = [0; 4096];
    // Somebody may need the memory of the page cache just now.
    let found = (0..1000).any(|_| {
        disk.cache(0, u64::MAX).unwrap();
        disk.try_read_at(index * STEP + 8192, &mut bytes) == TryRead::Data
    });
    assert!(found, "the page cache never had it");
    assert!(bytes[..] == model.read(index * STEP + 8192, 4096));
    assert!(read_all(&disk).unwrap() == model.read(0, model.size as usize));
}
