//! Stores that somebody made to hurt: every check holds, only the content is impossible.

use super::model::Model;
use super::support::*;
use crate::format::codec::compress_cluster;
use crate::format::layer::HEADER_LEN;
use crate::format::node::{Node, closing_check};
use crate::format::pointer::{Place, RawPointer};
use crate::format::sealed;
use crate::storage::memory::MemoryStorage;
use crate::{
    ClusterSize, Codec, Digest, DiskDigest, Error, ErrorKind, Geometry, Image, NodeId, Pointer, Result,
    Store, Uuid,
};
use serde_json::{Value, json};
use zerocopy::IntoBytes;

pub(super) const MANIFEST: &str = "job/images/000001.json";
pub(super) const LAYER: &str = "job/layers/00000001.layer";
/// Four clusters, the last one short.
pub(super) const SIZE: u64 = 3 * 16384 + 1000;

/// A store with one good image, the parts of which can be replaced.
pub(super) struct Forge {
    pub storage: MemoryStorage,
    pub store: Store,
    pub manifest: Value,
}

impl Forge {
    pub fn new() -> Self {
        let (storage, store) = memory_store();
        let mut model = Model::new(SIZE, ClusterSize::K16);
        model.set(0, random_bytes(1, 16384));
        let manifest = write_image(&store, "job", &[("vda", &model)]).unwrap();
        Self {
            storage,
            store,
            manifest: serde_json::to_value(manifest).unwrap(),
        }
    }

    pub fn open(&self) -> Result<Image> {
        let text = sealed::seal(&self.manifest).unwrap();
        self.storage
            .files
            .lock()
            .unwrap()
            .insert(MANIFEST.to_owned(), text);
        open_image(&self.store, "job", 1)
    }

    /// Appends to the layer, behind all that is there.
    pub fn append(&mut self, bytes: &[u8]) -> Place {
        let mut files = self.storage.files.lock().unwrap();
        let layer = files.get_mut(LAYER).unwrap();
        let place = Place {
            layer: 1,
            offset: layer.len() as u64,
            len: bytes.len() as u32,
        };
        layer.extend_from_slice(bytes);
        self.manifest["layers"][0]["length"] = (layer.len() as u64).into();
        self.manifest["layers"][0]["referenced"] = 1.into();
        place
    }

    /// Makes a node of these raw bytes the root of a disk of `size` bytes, with every check right.
    pub fn set_root(&mut self, size: u64, codec: Codec, payload: &[u8], digest: Digest) {
        let geometry = Geometry::new(size, ClusterSize::K16).unwrap();
        let id = NodeId {
            level: geometry.height() - 1,
            index: 0,
        };
        let uuid: Uuid = serde_json::from_value(self.manifest["layers"][0]["uuid"].clone()).unwrap();
        let offset = self.storage.files.lock().unwrap()[LAYER].len() as u64;
        let check = closing_check(payload, &uuid.bytes(), offset, id);
        let place = self.append(&[payload, &check.0].concat());
        let disk = &mut self.manifest["disks"][0];
        disk["size_bytes"] = size.into();
        disk["digest"] = DiskDigest::new(geometry, digest).digest.to_string().into();
        disk["root"] = json!({
            "digest": digest.to_string(), "codec": codec as u8, "layer": 1,
            "offset": place.offset, "length": place.len,
        });
    }

    /// A root of these raw pointers, whatever they say.
    pub fn set_raw_root(&mut self, size: u64, children: &[(usize, RawPointer)]) {
        let mut raw = [Pointer::NULL.to_raw(); 256];
        children.iter().for_each(|(slot, child)| raw[*slot] = *child);
        let digests: Vec<u8> = raw.iter().flat_map(|child| child.digest).collect();
        let digest = Digest(blake3::derive_key("smc 2026-11 node digest", &digests));
        self.set_root(size, Codec::Raw, raw.as_bytes(), digest);
    }
}

type Change = fn(&mut Value);
type Damage = fn(&mut RawPointer);

#[test]
fn impossible_manifests_are_refused_as_damage() {
    let changes: [(&str, Change); 30] = [
        ("disks is empty", |m| m["disks"] = json!([])),
        ("vda twice", |m| {
            let disk = m["disks"][0].clone();
            m["disks"].as_array_mut().unwrap().push(disk);
        }),
        ("disk size 0", |m| m["disks"][0]["size_bytes"] = 0.into()),
        ("disk size 9223372036854775808", |m| {
            m["disks"][0]["size_bytes"] = (1u64 << 63).into()
        }),
        ("does not follow", |m| {
            m["disks"][0]["size_bytes"] = (SIZE + 1).into()
        }),
        ("does not follow", |m| {
            m["disks"][0]["digest"] = "0".repeat(64).into()
        }),
        ("no digest", |m| m["disks"][0]["digest"] = "12".into()),
        ("no digest", |m| {
            m["disks"][0]["root"]["digest"] = "zz".repeat(32).into()
        }),
        ("does not follow", |m| m["disks"][0]["root"] = Value::Null),
        ("root.codec is 0", |m| m["disks"][0]["root"]["codec"] = 0.into()),
        ("root.codec is 3", |m| m["disks"][0]["root"]["codec"] = 3.into()),
        ("parse JSON", |m| m["disks"][0]["root"]["codec"] = 256.into()),
        ("out of range", |m| {
            m["disks"][0]["root"]["offset"] = u64::MAX.into()
        }),
        ("points to bytes", |m| {
            m["disks"][0]["root"]["offset"] = (i64::MAX as u64 / 2).into()
        }),
        ("points to bytes", |m| m["disks"][0]["root"]["offset"] = 0.into()),
        ("out of range", |m| m["disks"][0]["root"]["length"] = 0.into()),
        ("out of range", |m| {
            m["disks"][0]["root"]["length"] = u32::MAX.into()
        }),
        ("does not list", |m| m["disks"][0]["root"]["layer"] = 2.into()),
        ("does not list", |m| m["layers"] = json!([])),
        ("listed twice", |m| {
            let layer = m["layers"][0].clone();
            m["layers"].as_array_mut().unwrap().push(layer);
        }),
        ("does not have", |m| m["layers"][0]["disk"] = "vdb".into()),
        ("impossible length", |m| m["layers"][0]["length"] = 0.into()),
        ("impossible length", |m| {
            m["layers"][0]["length"] = u64::MAX.into()
        }),
        ("more bytes than it has", |m| {
            m["layers"][0]["referenced"] = u64::MAX.into()
        }),
        ("does not fit", |m| m["job"] = "../../etc".into()),
        ("does not fit", |m| {
            m["disks"][0]["name"] = "../vda".into();
            m["layers"][0]["disk"] = "../vda".into();
        }),
        ("cluster size 4096", |m| m["cluster_size"] = 4096.into()),
        ("another image", |m| m["sequence"] = 2.into()),
        ("parse JSON", |m| m["id"] = "12".into()),
        ("parse JSON", |m| *m = json!([1, 2, 3])),
    ];
    for (told, change) in changes {
        let mut forge = Forge::new();
        change(&mut forge.manifest);
        let error = forge.open().unwrap_err();
        let text = full_text(&error);
        assert!(text.contains(told), "expected \"{told}\" in: {text}");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{text}");
    }
}

pub(super) fn full_text(error: &Error) -> String {
    format!("{error:?}")
}

#[test]
fn newer_formats_are_refused_by_name() {
    let changes: [(&str, Change); 2] = [
        ("version 2", |m| m["format"] = 2.into()),
        ("time-travel, encryption", |m| {
            m["incompatible"] = json!(["time-travel", "encryption"])
        }),
    ];
    for (told, change) in changes {
        let mut forge = Forge::new();
        change(&mut forge.manifest);
        let error = forge.open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[test]
fn what_may_be_ignored_is_ignored() {
    let mut forge = Forge::new();
    forge.manifest["compatible"] = json!(["colours"]);
    forge.manifest["a_field_of_later"] = json!({"x": 1});
    forge.open().unwrap();
    assert_eq!(findings(&forge.store, "job", 1), NOTHING);
}

/// A disk of zeros needs no layers, however large it claims to be: nothing is allocated for its size.
#[test]
fn a_disk_of_zeros_can_be_as_large_as_it_likes() {
    let mut forge = Forge::new();
    let size = i64::MAX as u64;
    let geometry = Geometry::new(size, ClusterSize::K16).unwrap();
    forge.manifest["layers"] = json!([]);
    let disk = &mut forge.manifest["disks"][0];
    disk["size_bytes"] = size.into();
    disk["root"] = Value::Null;
    disk["digest"] = DiskDigest::new(geometry, Digest::NULL).digest.to_string().into();
    let image = forge.open().unwrap();
    let mut bytes = [7; 512];
    image.disks()[0].read_at(size - 512, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 512]);
    assert_eq!(image.disks()[0].extents(0, u64::MAX, 9).unwrap().len(), 1);
    assert_eq!(findings(&forge.store, "job", 1), NOTHING);
}

pub(super) fn pointer(place: Place, codec: Codec, digest: Digest) -> Pointer {
    Pointer { digest, codec, place }
}

#[test]
fn impossible_pointers_in_a_node_are_refused() {
    let good = pointer(
        Place {
            layer: 1,
            offset: 4096,
            len: 16384,
        },
        Codec::Raw,
        Digest([7; 32]),
    )
    .to_raw();
    let changes: [(&str, usize, Damage); 11] = [
        ("beyond any file", 0, |p| p.offset = u64::MAX.into()),
        ("beyond any file", 0, |p| p.offset = (i64::MAX as u64).into()),
        ("points to bytes", 0, |p| p.offset = (1u64 << 62).into()),
        ("points to bytes", 0, |p| p.offset = 0.into()),
        ("length is 0", 0, |p| p.stored_len = [0; 3]),
        ("does not fit", 0, |p| p.stored_len = [1, 0, 0]),
        ("does not list", 0, |p| p.layer = 9.into()),
        ("codec is 200", 0, |p| p.codec = 200),
        ("not all zero", 0, |p| p.codec = 0),
        ("beyond the end", 4, |_| {}),
        ("beyond the end", 255, |_| {}),
    ];
    for (told, slot, change) in changes {
        let mut forge = Forge::new();
        let mut child = good;
        change(&mut child);
        // Room behind the pieces, so that only what is changed here is wrong.
        forge.append(&[0; 32768]);
        forge.set_raw_root(SIZE, &[(slot, child)]);
        let error = forge.open().unwrap().disks()[0].read_at(0, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(
            error.to_string().contains(told),
            "expected \"{told}\" in: {error}"
        );
        assert_ne!(findings(&forge.store, "job", 1), NOTHING);
    }
}

#[test]
fn nodes_that_are_none_are_refused() {
    let digest = Digest([9; 32]);
    let payloads: [(&str, Codec, Vec<u8>); 5] = [
        ("does not fit", Codec::Raw, vec![0; 100]),
        ("digests differ", Codec::Raw, vec![0; 12288]),
        ("frame", Codec::Zstd, random_bytes(1, 500)),
        (
            "instead of 12288",
            Codec::Zstd,
            zstd::bulk::compress(&vec![0; 1 << 26], 1).unwrap(),
        ),
        (
            "digests differ",
            Codec::Zstd,
            zstd::bulk::compress(&[0; 12288], 1).unwrap(),
        ),
    ];
    for (told, codec, payload) in payloads {
        let mut forge = Forge::new();
        // A frame of 64 MiB takes more than a node may, so it is cut off: its claim comes first.
        forge.set_root(SIZE, codec, &payload[..payload.len().min(12288)], digest);
        let read = forge
            .open()
            .and_then(|image| image.disks()[0].read_at(0, &mut [0]));
        let error = read.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(
            error.to_string().contains(told),
            "expected \"{told}\" in: {error}"
        );
    }
}

/// The same stored frame as a short cluster and as a whole one: it is the one, and damage as the other.
#[test]
fn a_cluster_of_another_length_is_refused_from_the_cache_too() {
    let mut forge = Forge::new();
    let plain = text_bytes(1, 1000);
    let mut packed = Vec::new();
    assert_eq!(compress_cluster(&plain, 1, &mut packed), Codec::Zstd);
    let place = forge.append(&packed);
    let child = pointer(place, Codec::Zstd, Digest::of_cluster(&plain)).to_raw();
    forge.set_raw_root(SIZE, &[(0, child), (3, child)]);
    let image = forge.open().unwrap();
    let mut bytes = vec![0; 1000];
    image.disks()[0].read_at(3 * 16384, &mut bytes).unwrap();
    assert_eq!(bytes, plain);
    for offset in [0, 2000, 16000] {
        let error = image.disks()[0].read_at(offset, &mut [0; 50]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }
}

/// A tree whose nodes are found in two places at once costs no more than one walk through it.
#[test]
fn a_leaf_is_no_inner_node() {
    let mut forge = Forge::new();
    let node = Node::null();
    assert!(node.digest().is_null());
    let size = 257 * 16384;
    // The inner node's child is the image's own leaf, stored as leaf 0 of another level and offset.
    let root = &forge.manifest["disks"][0]["root"];
    let digest = Digest::from_hex(root["digest"].as_str().unwrap()).unwrap();
    let place = Place {
        layer: 1,
        offset: root["offset"].as_u64().unwrap(),
        len: root["length"].as_u64().unwrap() as u32,
    };
    let child = pointer(place, Codec::Zstd, digest).to_raw();
    forge.set_raw_root(size, &[(1, child)]);
    let error = forge.open().unwrap().disks()[0]
        .read_at(256 * 16384, &mut [0])
        .unwrap_err();
    assert!(
        error.to_string().contains("not the block of this place"),
        "{error}"
    );
    assert!(place.offset >= HEADER_LEN as u64);
}
