//! A store in memory that can be changed anywhere, with the checks of what was changed made right again.

use super::input::Input;
use crate::format::codec::decompress;
use crate::format::digest::{DIGEST_LEN, frame_check, header_check, node_digest};
use crate::format::geometry::{ClusterSize, FANOUT, Geometry, child_index};
use crate::format::layer::HEADER_LEN;
use crate::format::node::{NODE_PLAIN_LEN, NodeId, closing_check};
use crate::format::pointer::{Pointer, RawPointer};
use crate::storage::Storage;
use crate::storage::memory::MemoryStorage;
use crate::storage::paths::{layer_path, manifest_path};
use crate::{
    Codec, Digest, Disk, DiskDigest, DiskHasher, ErrorKind, Image, Store, Verifier, VerifyPlan,
    format::sealed,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use zerocopy::{FromBytes, IntoBytes};

type Files = BTreeMap<String, Vec<u8>>;

/// The store of `fixtures/v1`: it holds every way of storing.
static GOOD: LazyLock<Files> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1/store");
    let mut files = Files::new();
    read_below(&root, "", &mut files);
    files
});

fn read_below(dir: &Path, path: &str, files: &mut Files) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{path}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read_below(&entry.path(), &format!("{path}/"), files);
        } else {
            files.insert(path, std::fs::read(entry.path()).unwrap());
        }
    }
}

/// Files of `GOOD` that belong to one chain, and edits of them.
pub(super) struct Forge {
    chain: &'static str,
    files: Files,
}

impl Forge {
    pub fn new(chain: &'static str) -> Self {
        let wanted = |path: &str| path == "store.json" || path.starts_with(&format!("{chain}/"));
        let files = GOOD.iter().filter(|(path, _)| wanted(path));
        Self {
            chain,
            files: files.map(|(path, bytes)| (path.clone(), bytes.clone())).collect(),
        }
    }

    pub fn into_storage(self) -> MemoryStorage {
        let storage = MemoryStorage::default();
        for dir in ["", "/images", "/layers"] {
            storage.create_dir(&format!("{}{dir}", self.chain)).unwrap();
        }
        *storage.files.lock().unwrap() = self.files;
        storage
    }

    /// One edit; `None` if there was nothing to edit.
    pub fn edit(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.byte() % 8 {
            0 => self.flip(input),
            1 => self.cut_or_append(input),
            2 | 3 => self.change_json(input),
            4 => self.change_header(input),
            5 => self.copy_or_remove(input),
            _ => self.change_tree(input),
        }
    }

    fn path(&self, input: &mut Input<'_>, ending: &str) -> Option<String> {
        let paths: Vec<&String> = self.files.keys().filter(|path| path.ends_with(ending)).collect();
        let path = paths.get(input.choose(paths.len()))?;
        Some((*path).clone())
    }

    fn flip(&mut self, input: &mut Input<'_>) -> Option<()> {
        let path = self.path(input, "")?;
        let bytes = self.files.get_mut(&path)?;
        let at = usize::try_from(input.long()).ok()?.checked_rem(bytes.len())?;
        bytes[at] ^= input.byte();
        Some(())
    }

    fn cut_or_append(&mut self, input: &mut Input<'_>) -> Option<()> {
        let path = self.path(input, "")?;
        let bytes = self.files.get_mut(&path)?;
        if input.byte().is_multiple_of(2) {
            bytes.truncate(usize::try_from(input.long()).ok()? % (bytes.len() + 1));
        } else {
            let len = input.byte().into();
            bytes.extend_from_slice(input.rest(len));
        }
        Some(())
    }

    fn copy_or_remove(&mut self, input: &mut Input<'_>) -> Option<()> {
        let from = self.path(input, "")?;
        let number = u32::from(input.byte() % 6);
        let to = match input.byte() % 4 {
            0 => return self.files.remove(&from).map(drop),
            1 => layer_path(self.chain, number),
            2 => manifest_path(self.chain, number.into()),
            _ => format!("{}/checkpoint.json", self.chain),
        };
        let bytes = self.files.get(&from)?.clone();
        self.files.insert(to, bytes);
        Some(())
    }

    fn json(&self, path: &str) -> Option<Value> {
        let bytes = self.files.get(path)?;
        let end = bytes.len().checked_sub("blake3:\n".len() + 64)?;
        serde_json::from_slice(&bytes[..end]).ok()
    }

    fn put_json(&mut self, path: &str, value: &Value) {
        self.files.insert(path.to_owned(), sealed::seal(value).unwrap());
    }

    /// Puts something else into one place of a sealed file, at whatever depth.
    fn change_json(&mut self, input: &mut Input<'_>) -> Option<()> {
        let path = self.path(input, ".json")?;
        let mut value = self.json(&path)?;
        let mut places = Vec::new();
        collect_places(&value, String::new(), &mut places);
        let place = &places[input.choose(places.len())];
        let new = any_value(input, &value, &places);
        *value.pointer_mut(place)? = new;
        self.put_json(&path, &value);
        Some(())
    }

    fn change_header(&mut self, input: &mut Input<'_>) -> Option<()> {
        let path = self.path(input, ".layer")?;
        let header = self.files.get_mut(&path)?.get_mut(..HEADER_LEN)?;
        // The fields are in the first 72 bytes.
        let at = usize::from(input.short()) % if input.byte() < 200 { 72 } else { HEADER_LEN };
        header[at] ^= input.byte();
        let check = header_check(&header[..HEADER_LEN - DIGEST_LEN]);
        header[HEADER_LEN - DIGEST_LEN..].copy_from_slice(&check.0);
        Some(())
    }

    /// Changes a pointer or a cluster somewhere in a tree, and stores all nodes above anew.
    fn change_tree(&mut self, input: &mut Input<'_>) -> Option<()> {
        let path = self
            .path(input, ".json")
            .filter(|path| path.contains("/images/"))?;
        let mut manifest = self.json(&path)?;
        let disks = manifest["disks"].as_array()?.len();
        let at = input.choose(disks);
        let disk = manifest["disks"].get(at)?.clone();
        let cluster_size = ClusterSize::from_bytes(manifest["cluster_size"].as_u64()?).ok()?;
        let geometry = Geometry::new(disk["size_bytes"].as_u64()?, cluster_size).ok()?;
        let layers = manifest["layers"].as_array()?;
        let layer = layers.iter().position(|layer| layer["disk"] == disk["name"])?;
        let mut uuid = [0; 16];
        hex::decode_to_slice(layers[layer]["uuid"].as_str()?, &mut uuid).ok()?;
        let mut tree = TreeEdit {
            chain: self.chain,
            files: &mut self.files,
            layer: u32::try_from(layers[layer]["id"].as_u64()?).ok()?,
            uuid,
        };
        let top = NodeId {
            level: geometry.height() - 1,
            index: 0,
        };
        let root = tree.rewrite(&raw_root(&disk["root"])?, top, geometry, input)?;
        let length = tree.files.get(&layer_path(tree.chain, tree.layer))?.len();
        let digest = Digest(root.digest);
        let [a, b, c] = root.stored_len;
        manifest["layers"][layer]["length"] = length.into();
        manifest["disks"][at]["digest"] = DiskDigest::new(geometry, digest).digest.to_string().into();
        manifest["disks"][at]["root"] = json!({
            "digest": digest.to_string(), "codec": root.codec, "layer": root.layer.get(),
            "offset": root.offset.get(), "length": u32::from_le_bytes([a, b, c, 0]),
        });
        self.put_json(&path, &manifest);
        Some(())
    }
}

fn collect_places(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, inner)| collect_places(inner, format!("{path}/{name}"), found)),
        Value::Array(list) => (0..)
            .zip(list)
            .for_each(|(at, inner): (usize, _)| collect_places(inner, format!("{path}/{at}"), found)),
        _ => {}
    }
    found.push(path);
}

fn any_value(input: &mut Input<'_>, whole: &Value, places: &[String]) -> Value {
    match input.byte() % 8 {
        0..=2 => input.number().into(),
        3 => (-1).into(),
        4 => Value::Null,
        5 => {
            let len = input.byte().into();
            String::from_utf8_lossy(input.rest(len)).into()
        }
        6 => Value::Array(Vec::new()),
        // Something that stands elsewhere in the same file: another layer's id, another disk's root.
        _ => {
            let place = &places[input.choose(places.len())];
            whole.pointer(place).cloned().unwrap_or(Value::Null)
        }
    }
}

fn raw_root(root: &Value) -> Option<RawPointer> {
    let [a, b, c, _] = u32::try_from(root["length"].as_u64()?).ok()?.to_le_bytes();
    Some(RawPointer {
        digest: Digest::from_hex(root["digest"].as_str()?)?.0,
        layer: u32::try_from(root["layer"].as_u64()?).ok()?.into(),
        stored_len: [a, b, c],
        codec: u8::try_from(root["codec"].as_u64()?).ok()?,
        offset: root["offset"].as_u64()?.into(),
    })
}

/// Digest of a node from its plain bytes, whatever they are.
pub(super) fn digest_of_children(plain: &[u8]) -> Digest {
    let mut digests = [0; FANOUT * DIGEST_LEN];
    let pointers = plain.chunks_exact(size_of::<RawPointer>());
    for (pointer, digest) in pointers.zip(digests.chunks_exact_mut(DIGEST_LEN)) {
        digest.copy_from_slice(&pointer[..DIGEST_LEN]);
    }
    node_digest(&digests)
}

/// Pointers that a node may have: raw clusters or nodes behind one another in `layer`.
pub(super) fn good_children(geometry: Geometry, id: NodeId, layer: u32) -> [RawPointer; FANOUT] {
    std::array::from_fn(|slot| {
        if slot >= geometry.child_count(id.level, id.index) {
            return Pointer::NULL.to_raw();
        }
        let len = match id.level {
            0 => geometry.cluster_len(child_index(id.index, slot)),
            _ => NODE_PLAIN_LEN + DIGEST_LEN,
        };
        let [a, b, c, ..] = len.to_le_bytes();
        RawPointer {
            digest: [u8::try_from(slot).unwrap() | 1; DIGEST_LEN],
            layer: layer.into(),
            stored_len: [a, b, c],
            codec: Codec::Raw as u8,
            offset: (4096 + slot as u64 * 0x4_0000).into(),
        }
    })
}

/// Rewrites a path of a tree, appending to one layer.
struct TreeEdit<'a> {
    chain: &'static str,
    files: &'a mut Files,
    layer: u32,
    uuid: [u8; 16],
}

impl TreeEdit<'_> {
    fn children(&self, pointer: &RawPointer) -> Option<[RawPointer; FANOUT]> {
        let file = self.files.get(&layer_path(self.chain, pointer.layer.get()))?;
        let [a, b, c] = pointer.stored_len;
        let start = usize::try_from(pointer.offset.get()).ok()?;
        let end = start.checked_add(u32::from_le_bytes([a, b, c, 0]) as usize)?;
        let payload = file.get(start..end.checked_sub(DIGEST_LEN)?)?;
        let plain = match pointer.codec {
            1 => payload.to_vec(),
            _ => decompress(payload, NODE_PLAIN_LEN).ok()?,
        };
        <[RawPointer; FANOUT]>::read_from_bytes(&plain).ok()
    }

    fn append(&mut self, digest: Digest, codec: u8, stored: &[u8]) -> Option<RawPointer> {
        let file = self.files.get_mut(&layer_path(self.chain, self.layer))?;
        let offset = file.len() as u64;
        file.extend_from_slice(stored);
        let [a, b, c, ..] = stored.len().to_le_bytes();
        Some(RawPointer {
            digest: digest.0,
            layer: self.layer.into(),
            stored_len: [a, b, c],
            codec,
            offset: offset.into(),
        })
    }

    fn rewrite(
        &mut self,
        old: &RawPointer,
        id: NodeId,
        geometry: Geometry,
        input: &mut Input<'_>,
    ) -> Option<RawPointer> {
        let mut children = self.children(old)?;
        let slot = usize::from(input.byte());
        let kind = input.byte();
        if id.level > 0 && kind < 128 {
            // Towards a child that is there, if there is one from this slot on.
            let slot = (0..FANOUT)
                .map(|step| (slot + step) % FANOUT)
                .find(|&slot| children[slot].codec != 0)?;
            let below = NodeId {
                level: id.level - 1,
                index: child_index(id.index, slot),
            };
            children[slot] = self.rewrite(&children[slot], below, geometry, input)?;
        } else if kind.is_multiple_of(4) {
            let from = usize::from(input.byte());
            children[slot] = children[from];
        } else if kind % 4 == 1 && id.level == 0 {
            children[slot] = self.cluster(geometry.cluster_len(child_index(id.index, slot)), input)?;
        } else {
            input.change_pointer(&mut children[slot]);
        }
        self.node(&children, id, input.byte().is_multiple_of(2))
    }

    fn node(&mut self, children: &[RawPointer; FANOUT], id: NodeId, packed: bool) -> Option<RawPointer> {
        let plain = children.as_bytes();
        let (codec, mut stored) = match packed {
            true => (2, zstd::bulk::compress(plain, 1).ok()?),
            false => (1, plain.to_vec()),
        };
        let offset = self.files.get(&layer_path(self.chain, self.layer))?.len() as u64;
        stored.extend_from_slice(&closing_check(&stored, &self.uuid, offset, id).0);
        self.append(digest_of_children(plain), codec, &stored)
    }

    /// A cluster of a repeated byte as a frame in which some bytes changed, with a check that fits.
    fn cluster(&mut self, len: usize, input: &mut Input<'_>) -> Option<RawPointer> {
        let plain = vec![input.byte(); len];
        let mut frame = zstd::bulk::compress(&plain, 1).ok()?;
        for _ in 0..input.byte() % 4 {
            let at = usize::from(input.byte()) % frame.len();
            frame[at] ^= input.byte();
        }
        let check = frame_check(&frame);
        frame.extend_from_slice(&check);
        self.append(Digest::of_cluster(&plain), 2, &frame)
    }
}

/// Disks up to here are read whole.
const WHOLE_MAX: u64 = 8 << 20;

/// Does everything with a store that a user can do without changing it, and then begins a sync.
pub(super) fn examine(storage: &MemoryStorage, chain: &str) {
    let Ok(store) = Store::open_on(Arc::new(storage.clone()), "fuzzed") else {
        return;
    };
    assert!(store.chains().unwrap().names.iter().all(|found| found == chain));
    let sequences = store.sequences(chain).unwrap();
    let readers = store.readers();
    let mut verifier = Verifier::new();
    let mut before: Option<Image> = None;
    for sequence in sequences {
        let image = match readers.open(&store.image_id(chain, sequence)) {
            Ok(image) => image,
            Err(error) => {
                expected_kind(error.kind());
                continue;
            }
        };
        let whole = VerifyPlan::default();
        let mut go_on = |_| ControlFlow::Continue(());
        let clean = verifier.verify(&image, &whole, &mut go_on).findings.is_empty();
        let again = Verifier::new().verify(&image, &whole, &mut go_on);
        assert!(!clean || again.findings.is_empty());
        for disk in image.disks() {
            let whole = read(disk);
            assert!(!clean || whole, "verified, but not readable");
            if let Some(old) = before
                .as_ref()
                .and_then(|image| image.disk(Some(disk.name())).ok())
            {
                let _ = old.tree().diff(disk.tree(), &mut |_| {});
            }
        }
        before = Some(image);
    }
    if let Some(image) = before {
        let disks: Vec<String> = image.disks().iter().map(|disk| disk.name().to_owned()).collect();
        drop(store.begin(chain, None, &disks));
    }
}

/// What is wrong with a store is never told as if a caller had been wrong, or a disk.
fn expected_kind(kind: ErrorKind) {
    let kinds = [
        ErrorKind::Damaged,
        ErrorKind::NotFound,
        ErrorKind::Unsupported,
        ErrorKind::Unreadable,
    ];
    assert!(kinds.contains(&kind), "{kind:?}");
}

/// Reads a disk as far as it is not too large; what was read whole has the digest that it is said to have.
/// Returns whether nothing but sectors that were unreadable at the source failed.
fn read(disk: &Disk) -> bool {
    let extents = disk.extents(0, u64::MAX, 64);
    if let Err(error) = &extents {
        expected_kind(error.kind());
    }
    let geometry = disk.geometry();
    if geometry.size_bytes() > WHOLE_MAX {
        return extents.is_ok_and(|extents| extents.iter().all(|extent| read_cluster(disk, extent.offset).1));
    }
    let mut hasher = DiskHasher::new(geometry);
    let (mut all, mut good) = (true, true);
    for index in 0..geometry.cluster_count() {
        let (digest, fine) = read_cluster(disk, geometry.cluster_offset(index));
        hasher.push(digest.unwrap_or(Digest::NULL));
        all &= digest.is_some();
        good &= fine;
    }
    assert!(
        !all || hasher.finish() == Some(disk.digest()),
        "{} has wrong bytes",
        disk.label()
    );
    good
}

/// Digest of the cluster at `offset`, if it can be read, and whether what failed may fail in a good image.
fn read_cluster(disk: &Disk, offset: u64) -> (Option<Digest>, bool) {
    let geometry = disk.geometry();
    let index = geometry.cluster_at(offset);
    let mut bytes = vec![0xaa; geometry.cluster_len(index)];
    match disk.read_at(geometry.cluster_offset(index), &mut bytes) {
        // A damaged cluster without an unreadable sector can be read, but its digest is another one.
        Ok(())
            if disk
                .tree()
                .cluster(index)
                .is_ok_and(|pointer| pointer.codec == Codec::Damaged) =>
        {
            (None, true)
        }
        Ok(()) => (Some(Digest::of_cluster(&bytes)), true),
        Err(error) => {
            expected_kind(error.kind());
            (None, error.kind() == ErrorKind::Unreadable)
        }
    }
}
