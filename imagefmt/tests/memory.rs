//! What opening and reading a hostile store may take of memory, measured by an allocator that counts.
//!
//! One test, because the count is of the whole process. zstd's contexts are not in it: they are allocated by C,
//! once a thread, and have a fixed size.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "what a test makes is small, it runs on 64 bits, and helpers of tests may panic"
)]

use imagefmt::{ErrorKind, Image, ImageRef, Result, Store};
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn took(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator with the layout that it came with; counting changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps what `GlobalAlloc` demands of it.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there at once while it is copied.
        took(size);
        // SAFETY: as above.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        moved
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;
/// The most that any sealed file may have.
const SEALED_MAX: usize = 64 * MIB;
/// Opening: the text itself, and what is made of it.
const OPEN_MAX: usize = 7 * SEALED_MAX;
/// What the caches may take: a quarter of what the bomb expands to.
const CACHE_BYTES: usize = 16 * MIB;
/// Reading an open image: clusters and half as much of nodes, the store's other parts, and what is being decoded.
const READ_MAX: usize = 40 * MIB;

/// Peak of what `work` takes beyond what was taken before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed) - before)
}

fn within<T>(what: &str, bound: usize, work: impl FnOnce() -> T) -> T {
    let (result, peak) = peak(work);
    println!("{what}: {} KiB of {}", peak / 1024, bound / 1024);
    assert!(peak < bound, "{what} took {peak} bytes, the bound is {bound}");
    result
}

fn hash(context: &str, bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key(&format!("smc 2026-11 {context}"), bytes)
}

fn write_sealed(path: &Path, mut text: String) {
    text.push('\n');
    let seal = hex::encode(hash("sealed text", text.as_bytes()));
    text.push_str(&format!("blake3:{seal}\n"));
    assert!(text.len() <= SEALED_MAX, "{} bytes", text.len());
    fs::write(path, text).unwrap();
}

fn new_store() -> TempDir {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    for sub in ["job", "job/images", "job/layers"] {
        fs::create_dir(dir.path().join(sub)).unwrap();
    }
    let store = json!({"format": 1, "id": "00".repeat(16)});
    write_sealed(&dir.path().join("store.json"), store.to_string());
    dir
}

fn disk_digest(size: u64, cluster_size: u32, root: &[u8]) -> String {
    hex::encode(hash(
        "disk digest",
        &[&size.to_le_bytes()[..], &cluster_size.to_le_bytes(), root].concat(),
    ))
}

fn zero_disk(name: &str, size: u64, cluster_size: u32) -> Value {
    json!({
        "name": name, "size_bytes": size, "logical_block_size": 512, "root": null,
        "digest": disk_digest(size, cluster_size, &[0; 32]), "method": "scan",
        "compared_bytes": 0, "dirty_bytes": 0, "stored_bytes": 0,
    })
}

fn manifest(sequence: u64, cluster_size: u32) -> Value {
    let time = "2026-11-24T00:00:00Z";
    json!({
        "format": 1, "chain": "11".repeat(16), "job": "job", "sequence": sequence, "id": "22".repeat(16),
        "parent": null, "started": time, "finished": time, "kind": "full", "consistency": "crash",
        "cluster_size": cluster_size, "disks": [zero_disk("vda", 1 << 20, cluster_size)], "layers": [],
    })
}

fn manifest_path(dir: &Path, sequence: u64) -> std::path::PathBuf {
    dir.join(format!("job/images/{sequence:06}.json"))
}

/// A manifest with one list made of `entry` again and again, as long as it may be.
fn filled(field: &str, entry: impl Fn(usize) -> String) -> String {
    let mut value = manifest(1, 16384);
    value[field] = "HERE".into();
    let text = value.to_string();
    let (before, after) = text.split_once("\"HERE\"").unwrap();
    let mut full = String::with_capacity(SEALED_MAX);
    full.push_str(before);
    full.push('[');
    for number in 0.. {
        let entry = entry(number);
        if full.len() + entry.len() + after.len() + 100 > SEALED_MAX {
            break;
        }
        if number > 0 {
            full.push(',');
        }
        full.push_str(&entry);
    }
    full.push(']');
    full.push_str(after);
    full
}

fn open(dir: &Path, sequence: u64) -> Result<Image> {
    Store::open(dir)?.image(&format!("job/{sequence}").parse::<ImageRef>()?)
}

/// A layer's record, shorter than a writer makes it.
fn layer(id: usize, disk: &str) -> String {
    let uuid = "33".repeat(16);
    format!("{{\"id\":{id},\"uuid\":\"{uuid}\",\"disk\":\"{disk}\",\"length\":4096,\"referenced\":1}}")
}

fn long_manifests(dir: &Path) {
    let path = manifest_path(dir, 1);
    let mut count = 0;
    write_sealed(&path, filled("layers", |id| layer(id, "vda")));
    within("a manifest of as many layers as fit", OPEN_MAX, || {
        let image = open(dir, 1).unwrap();
        count = image.manifest().layers.len();
    });
    assert!(count > 400_000, "{count} layers");

    for field in ["compatible", "incompatible"] {
        write_sealed(&path, filled(field, |_| "\"\"".to_owned()));
        let opened = within(
            &format!("a manifest full of {field} words"),
            2 * SEALED_MAX,
            || open(dir, 1).map(drop),
        );
        let unknown = opened.map_err(|error| error.kind());
        assert_eq!(
            unknown,
            if field == "compatible" {
                Ok(())
            } else {
                Err(ErrorKind::Unsupported)
            }
        );
    }

    write_sealed(&path, filled("later", |_| "[[[[[[]]]]]]".to_owned()));
    within("a manifest full of an unknown field", 2 * SEALED_MAX, || {
        open(dir, 1).unwrap();
    });
    let deep = format!(
        "{}{}",
        "[".repeat(SEALED_MAX / 2 - 1000),
        "]".repeat(SEALED_MAX / 2 - 1000)
    );
    let good = manifest(1, 16384).to_string();
    write_sealed(&path, format!("{},\"later\":{deep}}}", &good[..good.len() - 1]));
    within("a manifest 30 million deep", 3 * SEALED_MAX, || {
        open(dir, 1).unwrap();
    });
    let long = "x".repeat(SEALED_MAX - 10_000);
    write_sealed(
        &path,
        format!("{},\"consistency_reason\":\"{long}\"}}", &good[..good.len() - 1]),
    );
    within("a manifest with a reason of 64 MiB", 4 * SEALED_MAX, || {
        open(dir, 1).unwrap();
    });
}

/// As many disks as fit, and as many layers: one of each for each of the other would be ten billion steps.
fn many_disks(dir: &Path) {
    let path = manifest_path(dir, 1);
    write_sealed(
        &path,
        filled("disks", |number| {
            zero_disk(&format!("d{number}"), 1, 16384).to_string()
        }),
    );
    within("a manifest of as many disks as fit", OPEN_MAX, || {
        assert!(open(dir, 1).unwrap().disks().len() > 200_000);
    });
    let names: Vec<String> = (0..100_000).map(|number| format!("d{number}")).collect();
    let mut value = manifest(1, 16384);
    value["disks"] = names.iter().map(|name| zero_disk(name, 1, 16384)).collect();
    let text = value.to_string();
    drop(value);
    let layers: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(id, name)| layer(id, name))
        .collect();
    write_sealed(
        &path,
        text.replace("\"layers\":[]", &format!("\"layers\":[{}]", layers.join(","))),
    );
    drop((names, layers, text));
    within("a manifest of 100,000 disks and layers", OPEN_MAX, || {
        open(dir, 1).unwrap();
    });
}

fn absurd_files(dir: &Path) {
    let path = manifest_path(dir, 1);
    fs::File::create(&path).unwrap().set_len(8 << 40).unwrap();
    within("a manifest of 8 TiB", 4 * SEALED_MAX, || {
        let error = open(dir, 1).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    });
    let mut value = manifest(1, 16384);
    value["disks"] = json!([zero_disk("vda", i64::MAX as u64, 16384)]);
    write_sealed(&path, value.to_string());
    within("a disk of 8 EiB", MIB, || {
        let image = open(dir, 1).unwrap();
        let disk = &image.disks()[0];
        assert_eq!(disk.extents(0, u64::MAX, 1000).unwrap().len(), 1);
        disk.read_at(disk.size_bytes() - 4096, &mut [1; 4096]).unwrap();
    });
}

/// A disk of clusters that are frames of some 30 bytes each.
struct Bomb {
    layer: Vec<u8>,
    id: u32,
    cluster_size: u32,
}

const LEAVES: u64 = 16;
const LAYER_UUID: [u8; 16] = [0x33; 16];

impl Bomb {
    fn new(id: u32, cluster_size: u32) -> Self {
        let mut header = vec![0; 4096];
        header[..8].copy_from_slice(b"SMCLAYER");
        header[8] = 1;
        header[12..16].copy_from_slice(&4096u32.to_le_bytes());
        header[32..48].copy_from_slice(&[0x11; 16]);
        header[48..64].copy_from_slice(&LAYER_UUID);
        header[64..68].copy_from_slice(&id.to_le_bytes());
        header[68..72].copy_from_slice(&cluster_size.to_le_bytes());
        let check = hash("layer header", &header[..4064]);
        header[4064..].copy_from_slice(&check);
        Self {
            layer: header,
            id,
            cluster_size,
        }
    }

    /// Appends stored bytes and returns the pointer to them.
    fn append(&mut self, digest: &[u8], codec: u8, stored: &[u8]) -> Vec<u8> {
        let offset = self.layer.len() as u64;
        self.layer.extend(stored);
        let len = &(stored.len() as u32).to_le_bytes()[..3];
        let id = self.id.to_le_bytes();
        [digest, &id, len, &[codec], &offset.to_le_bytes()].concat()
    }

    fn node(&mut self, level: u8, index: u64, children: &[Vec<u8>]) -> Vec<u8> {
        let mut plain = children.concat();
        plain.resize(256 * 48, 0);
        let digests: Vec<u8> = plain
            .chunks(48)
            .flat_map(|pointer| pointer[..32].to_vec())
            .collect();
        let offset = self.layer.len() as u64;
        let place = [
            &plain[..],
            &LAYER_UUID,
            &offset.to_le_bytes(),
            &[level],
            &index.to_le_bytes(),
        ];
        let stored = [&plain[..], &hash("node place", &place.concat())].concat();
        self.append(&hash("node digest", &digests), 1, &stored)
    }

    /// The tree's root.
    fn fill(&mut self) -> Vec<u8> {
        let plain = vec![7u8; self.cluster_size as usize];
        let frame = zstd::bulk::compress(&plain, 1).unwrap();
        let stored = [&frame[..], &hash("zstd frame", &frame)[..8]].concat();
        let digest = hash("cluster digest", &plain);
        let leaf = |index| {
            // Each cluster is stored by itself, so that a cache takes each for another one.
            let clusters: Vec<_> = (0..256).map(|_| self.append(&digest, 2, &stored)).collect();
            self.node(0, index, &clusters)
        };
        let leaves: Vec<_> = (0..LEAVES).map(leaf).collect();
        self.node(1, 0, &leaves)
    }

    /// Writes an image of the bomb's id; `packed` is a lie that a verification finds cluster by cluster.
    fn write(mut self, dir: &Path, packed: bool) {
        let root = self.fill();
        self.layer.resize(self.layer.len().next_multiple_of(4096), 0);
        let size = LEAVES * 256 * u64::from(self.cluster_size);
        let mut value = manifest(self.id.into(), self.cluster_size);
        let disk = &mut value["disks"][0];
        disk["size_bytes"] = size.into();
        disk["digest"] = disk_digest(size, self.cluster_size, &root[..32]).into();
        let offset = u64::from_le_bytes(root[40..].try_into().unwrap());
        disk["root"] = json!({
            "digest": hex::encode(&root[..32]), "codec": 1, "layer": self.id, "length": 12320, "offset": offset,
        });
        value["layers"] = json!([{
            "id": self.id, "uuid": hex::encode(LAYER_UUID), "disk": "vda", "length": self.layer.len(),
            "referenced": 1, "packed": packed,
        }]);
        let path = dir.join(format!("job/layers/{:08x}.layer", self.id));
        fs::write(path, &self.layer).unwrap();
        write_sealed(&manifest_path(dir, self.id.into()), value.to_string());
    }
}

/// A byte of every cluster: each has to be expanded and checked for that.
fn read_a_byte_of_each(image: &Image) {
    let disk = &image.disks()[0];
    let step = u64::from(disk.geometry().cluster_size().bytes());
    for offset in (0..disk.size_bytes()).step_by(step as usize) {
        let mut byte = [0];
        disk.read_at(offset + step / 2, &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}

/// Images of one chain share their caches, also where the second claims clusters sixteen times as large.
fn bombs(dir: &Path) {
    Bomb::new(1, 16384).write(dir, true);
    Bomb::new(2, 262_144).write(dir, false);
    let store = Store::open(dir).unwrap().with_cache_bytes(CACHE_BYTES);
    let readers = store.readers();
    let images = store.job("job").unwrap();
    let open = |sequence| readers.open(&images.get(sequence).unwrap()).unwrap();
    within("a GiB from frames of 30 bytes", READ_MAX, || {
        for sequence in [1, 2] {
            read_a_byte_of_each(&open(sequence));
        }
    });
    let extents = || open(2).disks()[0].extents(0, u64::MAX, 1000);
    assert_eq!(within("their extents", MIB, extents).unwrap().len(), 1);
    for sequence in [1, 2] {
        let image = open(sequence);
        let found = within("a verification of them", READ_MAX, || {
            let mut go_on = |_| std::ops::ControlFlow::Continue(());
            let whole = imagefmt::VerifyPlan::default();
            imagefmt::Verifier::new().verify(&image, &whole, &mut go_on)
        });
        assert!(!found.findings.is_empty());
    }
}

#[test]
fn memory_is_bounded_whatever_a_store_holds() {
    let dir = new_store();
    long_manifests(dir.path());
    many_disks(dir.path());
    absurd_files(dir.path());
    bombs(dir.path());
}
