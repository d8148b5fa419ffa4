//! A store that an earlier build wrote, in `fixtures/v1`: every later version must read it as it was.

use super::model::Model;
use super::support::*;
use crate::{
    ClusterEncoder, ClusterSize, ClusterUpdate, Codec, Consistency, Digest, Disk, Error, ErrorKind, Extent,
    SECTOR_LEN, Span, Store, Verdict, VerdictState, Verifier, VerifyPlan,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const CLUSTER: u64 = 16384;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1")
}

/// A disk, and which of its sectors could not be read at the source.
#[derive(Clone)]
struct Source {
    model: Model,
    unreadable: BTreeSet<u64>,
}

impl Source {
    fn new(size: u64) -> Self {
        Self {
            model: Model::new(size, ClusterSize::K16),
            unreadable: BTreeSet::new(),
        }
    }

    fn raw(&mut self, index: u64) {
        self.model
            .set(index, random_bytes(index, self.model.cluster_len(index)));
    }

    fn text(&mut self, index: u64, seed: u64) {
        self.model
            .set(index, text_bytes(seed, self.model.cluster_len(index)));
    }

    /// Makes sectors of a cluster unreadable; their bytes are zero, as a writer has to store them.
    fn damage(&mut self, index: u64, sectors: &[usize]) {
        let mut bytes = random_bytes(index + 1000, self.model.cluster_len(index));
        for &sector in sectors {
            let end = ((sector + 1) * SECTOR_LEN).min(bytes.len());
            bytes[sector * SECTOR_LEN..end].fill(0);
            self.unreadable
                .insert(index * (CLUSTER / SECTOR_LEN as u64) + sector as u64);
        }
        self.model.set(index, bytes);
    }

    /// The bitmap of a cluster's unreadable sectors; none if there are none.
    fn bitmap(&self, index: u64) -> Option<Vec<u8>> {
        let per_cluster = CLUSTER / SECTOR_LEN as u64;
        let first = index * per_cluster;
        let bits = self.model.cluster_len(index).div_ceil(SECTOR_LEN);
        let mut bitmap = vec![0; bits.div_ceil(8)];
        for sector in self.unreadable.range(first..first + per_cluster) {
            let bit = (sector - first) as usize;
            bitmap[bit / 8] |= 1 << (bit % 8);
        }
        bitmap.iter().any(|&byte| byte != 0).then_some(bitmap)
    }

    fn sector(&self, number: u64) -> std::ops::Range<u64> {
        let start = number * SECTOR_LEN as u64;
        start..(start + SECTOR_LEN as u64).min(self.model.size)
    }

    /// What a reader must find, by the model alone.
    fn expected(&self) -> Value {
        let mut hasher = blake3::Hasher::new();
        let bytes = self.model.read(0, self.model.size as usize);
        for (number, sector) in bytes.chunks(SECTOR_LEN).enumerate() {
            if !self.unreadable.contains(&(number as u64)) {
                hasher.update(sector);
            }
        }
        let unreadable: Vec<_> = self
            .unreadable
            .iter()
            .map(|&number| [self.sector(number).start, self.sector(number).end])
            .collect();
        json!({
            "size_bytes": self.model.size,
            "extents": shown(&self.model.extents(0, self.model.size)),
            "unreadable": unreadable,
            "blake3": hasher.finalize().to_string(),
        })
    }
}

fn shown(extents: &[Extent]) -> Value {
    let one = |extent: &Extent| {
        json!([
            extent.offset,
            extent.length,
            if extent.data { "data" } else { "hole" }
        ])
    };
    extents.iter().map(one).collect()
}

/// Writes an image and notes what it must be read as.
fn write(store: &Store, expected: &mut Value, job: &str, disks: &[(&str, &Source)]) {
    let names: Vec<String> = disks.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut writer = store.begin(job, Some(ClusterSize::K16), &names).unwrap();
    for (name, source) in disks {
        let written = pass_over::<Error>(&mut writer, meta(name, source.model.size), |pass| {
            let mut encoder = ClusterEncoder::new(4);
            for index in 0..source.model.cluster_count() {
                let plain = source.model.get(index);
                let digest = encoder.digest(&plain);
                pass.push(&match source.bitmap(index) {
                    Some(bitmap) => encoder.encode_damaged(index, &plain, &bitmap),
                    None => encoder.encode(index, digest, &plain),
                })?;
            }
            Ok(())
        });
        written.unwrap();
    }
    let manifest = writer.commit(Consistency::Crash, "fixture").unwrap();
    for ((name, source), record) in disks.iter().zip(&manifest.disks) {
        let mut disk = source.expected();
        let digest = record.disk_digest(ClusterSize::K16).unwrap().to_string();
        // A damaged cluster's digest is not one of its content alone, which is all that a model knows.
        assert!(!source.unreadable.is_empty() || digest == source.model.digest());
        disk["digest"] = digest.into();
        expected[job][manifest.sequence.to_string()][*name] = disk;
    }
}

/// Two images of job `web`: a disk of two levels, mostly holes, and one that grows, with a short last cluster.
fn write_web(store: &Store, expected: &mut Value) {
    let mut vda = Source::new(257 * CLUSTER + 1000);
    vda.raw(0);
    vda.text(1, 1);
    vda.text(255, 2);
    vda.raw(256);
    vda.text(257, 3);
    let mut vdb = Source::new(3 * CLUSTER + 300);
    vdb.text(0, 4);
    vdb.damage(1, &[0, 7, 31]);
    vdb.text(3, 5);
    write(store, expected, "web", &[("vda", &vda), ("vdb", &vdb)]);
    vda.text(1, 6);
    vda.model.set(255, vec![0; CLUSTER as usize]);
    vdb.model.grow(5 * CLUSTER + 77);
    vdb.text(5, 7);
    write(store, expected, "web", &[("vda", &vda), ("vdb", &vdb)]);
}

/// Three images of job `db`: one disk, all zero, then with a short last cluster that is damaged, then repaired.
fn write_db(store: &Store, expected: &mut Value) {
    let mut sda = Source::new(2 * CLUSTER + 1300);
    write(store, expected, "db", &[("sda", &sda)]);
    sda.raw(1);
    sda.damage(2, &[2]);
    write(store, expected, "db", &[("sda", &sda)]);
    sda.unreadable.clear();
    sda.text(2, 8);
    write(store, expected, "db", &[("sda", &sda)]);
}

/// Makes the fixture anew. It is meant to be kept: the README beside it says when this may run.
/// Job `log`: image 2 of 3 is deleted, 3 is pinned and was verified, and a sync after it was not finished.
fn write_log(store: &Store, expected: &mut Value) {
    let mut disk = Source::new(6 * CLUSTER);
    for round in 0..3 {
        (0..3).for_each(|index| disk.text(index + round, 50 + index + 10 * round));
        disk.raw(5 - round);
        write(store, expected, "log", &[("sda", &disk)]);
    }
    store.delete(&store.image_id("log", 2)).unwrap();
    expected["log"].as_object_mut().unwrap().remove("2");
    store.pin(&store.image_id("log", 3), "audit").unwrap();
    let image = open_image(store, "log", 3).unwrap();
    let mut verdict = Verdict::new(image.manifest());
    let verified = Verifier::new().verify(&image, &VerifyPlan::default(), &mut |_| ControlFlow::Continue(()));
    let now = jiff::Timestamp::now();
    let span = Span {
        run: now,
        started: now,
        finished: now,
    };
    verdict.add(&VerifyPlan::default(), span, &[disk.model.size], &verified);
    store.keep_verdict(&image, &verdict).unwrap();

    let mut writer = store.begin("log", None, &["sda".to_owned()]).unwrap();
    let stopped = pass_over::<Error>(&mut writer, meta("sda", disk.model.size), |pass| {
        let plain = unfinished_cluster();
        pass.push(&ClusterUpdate {
            index: 1,
            digest: Digest::of_cluster(&plain),
            codec: Codec::Raw,
            stored: &plain,
        })?;
        pass.checkpoint()?;
        Err(Error::new(ErrorKind::Busy, "stopped"))
    });
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Busy);
}

/// What the unfinished sync of job `log` has stored of cluster 1.
fn unfinished_cluster() -> Vec<u8> {
    random_bytes(77, CLUSTER as usize)
}

#[test]
#[ignore = "writes fixtures/v1 anew"]
fn write_the_fixture() {
    let path = fixture().join("store");
    if path.exists() {
        fs::remove_dir_all(&path).unwrap();
    }
    let store = Store::open_or_create(&path, true).unwrap();
    let mut expected = json!({});
    write_web(&store, &mut expected);
    write_db(&store, &mut expected);
    write_log(&store, &mut expected);
    let text = serde_json::to_string_pretty(&expected).unwrap() + "\n";
    fs::write(fixture().join("expected.json"), text).unwrap();
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(fixture().join("expected.json")).unwrap()).unwrap()
}

/// Every file and directory, with what would change were it written to.
fn state(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        if path.is_dir() {
            found.extend(state(&path));
            found.insert(path, (modified, Vec::new()));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, (modified, bytes));
        }
    }
    found
}

/// What a disk is read as, in the words of `expected.json`.
fn found(disk: &Disk) -> Value {
    let (mut hasher, mut unreadable) = (blake3::Hasher::new(), Vec::new());
    for offset in (0..disk.size_bytes()).step_by(SECTOR_LEN) {
        let end = (offset + SECTOR_LEN as u64).min(disk.size_bytes());
        let mut sector = vec![0xaa; (end - offset) as usize];
        match disk.read_at(offset, &mut sector) {
            Ok(()) => drop(hasher.update(&sector)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unreadable, "{error}");
                unreadable.push([offset, end]);
            }
        }
    }
    json!({
        "size_bytes": disk.size_bytes(),
        "extents": shown(&disk.extents(0, u64::MAX, usize::MAX).unwrap()),
        "unreadable": unreadable,
        "blake3": hasher.finalize().to_string(),
        "digest": disk.digest().to_string(),
    })
}

#[test]
fn the_fixture_of_version_1_is_read_as_it_was_written() {
    let path = fixture().join("store");
    let before = state(&path);
    let store = Store::open(&path).unwrap();
    let mut all = json!({});
    for chain in store.chains().unwrap().names {
        for sequence in store.sequences(&chain).unwrap() {
            assert_eq!(findings(&store, &chain, sequence), NOTHING, "{chain}/{sequence}");
            for disk in open_image(&store, &chain, sequence).unwrap().disks() {
                all[&chain][sequence.to_string()][disk.name()] = found(disk);
            }
        }
    }
    let expected = expected();
    assert_eq!(
        all,
        expected,
        "found: {}",
        serde_json::to_string_pretty(&all).unwrap()
    );
    assert!(
        before == state(&path),
        "reading changed something in {}",
        path.display()
    );
}

/// The fixture is worth something only if it holds every way of storing, and little only if it is small.
#[test]
fn the_fixture_holds_every_codec_and_is_small() {
    let store = Store::open(&fixture().join("store")).unwrap();
    let mut codecs = BTreeSet::new();
    let mut heights = BTreeSet::new();
    for chain in store.chains().unwrap().names {
        for sequence in store.sequences(&chain).unwrap() {
            for disk in open_image(&store, &chain, sequence).unwrap().disks() {
                heights.insert(disk.geometry().height());
                for index in 0..disk.geometry().cluster_count() {
                    codecs.insert(disk.tree().cluster(index).unwrap().codec as u8);
                }
            }
        }
    }
    assert_eq!(codecs, BTreeSet::from([0, 1, 2, 3]));
    assert_eq!(heights, BTreeSet::from([1, 2]));
    let len: usize = state(&fixture()).values().map(|(_, bytes)| bytes.len()).sum();
    assert!(len < 300_000, "{len} bytes");
}

#[test]
fn what_is_said_beside_images_and_an_unfinished_sync_are_read() {
    let store = Store::open(&fixture().join("store")).unwrap();
    assert_eq!(store.sequences("log").unwrap(), [1, 3], "image 2 is deleted");
    let pins = store.pins(&store.image_id("log", 3)).unwrap();
    assert_eq!(
        pins.iter().map(|pin| pin.name.as_str()).collect::<Vec<_>>(),
        ["audit"]
    );
    let manifest = store.manifest(&store.image_id("log", 3)).unwrap();
    let verdict = store
        .verdict(&store.image_id("log", 3), &manifest)
        .unwrap()
        .unwrap();
    assert!(matches!(verdict.state(), VerdictState::Good(_)));

    let unfinished = store.unfinished("log").unwrap().unwrap();
    assert_eq!(unfinished.parent.as_ref().unwrap().id, manifest.id);
    let unfinished = store
        .chain("log")
        .unwrap()
        .open(unfinished.into(), crate::Lock::new(()))
        .unwrap();
    let image = open_image(&store, "log", 3).unwrap();
    let (now, before) = (&unfinished.disks()[0], &image.disks()[0]);
    let mut differing = Vec::new();
    now.tree()
        .diff(before.tree(), &mut |range| differing.push(range))
        .unwrap();
    assert_eq!(differing, vec![1..2; 1]);
    let mut stored = vec![0; CLUSTER as usize];
    now.read_at(CLUSTER, &mut stored).unwrap();
    assert!(stored == unfinished_cluster());
}
