//! The oracle of the fuzzers in `fuzz_targets/`. Each public function takes any bytes; a panic in one is a finding. What an
//! attacker can recompute (checksums, seals) is recomputed here, so that mutated bytes get past those checks.
//!
//! It is a module of the crate `imagefmt` (`src/lib.rs` names this path), because it needs the format's structures, which
//! are not public; it is compiled for tests and for the fuzzers only. `src/tests/fuzz.rs` runs a short version of every
//! target in the suite.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzzer looks for"
)]

mod forge;
mod input;

use crate::Digest;
use crate::format::codec::{cluster_len_fits, decode_cluster, decompress};
use crate::format::digest::{DIGEST_LEN, damaged_digest, frame_check, header_check, seal_check};
use crate::format::geometry::{ClusterSize, Geometry};
use crate::format::id::Uuid;
use crate::format::layer::{HEADER_LEN, LayerEntry, LayerIdentity, LayerTable};
use crate::format::manifest::Manifest;
use crate::format::name::{ImageRef, check_name};
use crate::format::node::{NODE_PLAIN_LEN, Node, NodeId, closing_check};
use crate::format::pointer::{Codec, Place, Pointer};
use crate::format::sealed;
use forge::{Forge, digest_of_children, examine};
use input::Input;
use zerocopy::IntoBytes;

/// A target's name, as in `fuzz/fuzz_targets`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [
    ("manifest", manifest),
    ("header", header),
    ("node", node),
    ("cluster", cluster),
    ("store", store),
];

/// A manifest's text, as it is and with a seal that fits.
pub fn manifest(data: &[u8]) {
    check_manifest(data);
    let mut text = data.to_vec();
    text.extend_from_slice(format!("blake3:{}\n", seal_check(data)).as_bytes());
    check_manifest(&text);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(reference) = text.parse::<ImageRef>() {
        assert_eq!(reference.to_string().parse::<ImageRef>().unwrap(), reference);
        assert!(check_name("job", &reference.job).is_ok());
    }
}

fn check_manifest(text: &[u8]) {
    let Ok(manifest) = sealed::unseal::<Manifest>(text) else {
        return;
    };
    if manifest.check(manifest.sequence).is_err() {
        return;
    }
    let layers: usize = manifest
        .layer_tables()
        .values()
        .map(|table| table.iter().count())
        .sum();
    assert_eq!(layers, manifest.layers.len());
    let again: Manifest = sealed::unseal(&sealed::seal(&manifest).unwrap()).unwrap();
    assert_eq!(again, manifest);
}

/// A layer's header, as it is and with a check that fits.
pub fn header(data: &[u8]) {
    let mut bytes = [0; HEADER_LEN];
    let good = LayerIdentity {
        chain: Uuid::from_bytes([1; 16]),
        uuid: Uuid::from_bytes([2; 16]),
        layer: 3,
        cluster_size: ClusterSize::K64,
    };
    bytes.copy_from_slice(good.to_raw().as_bytes());
    let mut input = Input(data);
    let changes = input.byte() % 8;
    for _ in 0..changes {
        let at = usize::from(input.short()) % HEADER_LEN;
        bytes[at] ^= input.byte();
    }
    let rest = input.rest(HEADER_LEN);
    bytes[..rest.len()].copy_from_slice(rest);
    check_header(&bytes);
    let check = header_check(&bytes[..HEADER_LEN - DIGEST_LEN]);
    bytes[HEADER_LEN - DIGEST_LEN..].copy_from_slice(&check.0);
    check_header(&bytes);
}

fn check_header(bytes: &[u8; HEADER_LEN]) {
    if let Ok(found) = LayerIdentity::from_bytes(bytes) {
        let again = found.to_raw();
        assert_eq!(again.as_bytes()[32..72], bytes[32..72]);
        assert_eq!(
            LayerIdentity::from_bytes(again.as_bytes().try_into().unwrap()).unwrap(),
            found
        );
    }
}

const LAYER_UUID: [u8; 16] = [7; 16];
const LAYERS: [(u32, u64); 3] = [(1, 1 << 20), (2, 1 << 40), (u32::MAX, i64::MAX as u64)];

fn layer_table() -> LayerTable {
    let mut table = LayerTable::default();
    for (id, len) in LAYERS {
        let entry = LayerEntry {
            uuid: Uuid::from_bytes(LAYER_UUID),
            len,
            referenced: 1,
        };
        table.insert(id, entry);
    }
    table
}

fn any_geometry(input: &mut Input<'_>) -> Option<Geometry> {
    let cluster_size = [ClusterSize::K16, ClusterSize::K64, ClusterSize::K256][usize::from(input.byte() % 3)];
    Geometry::new(input.number(), cluster_size).ok()
}

/// A node: pointers that were good before some of their fields changed, or a payload of any bytes.
pub fn node(data: &[u8]) {
    let mut input = Input(data);
    let Some(geometry) = any_geometry(&mut input) else {
        return;
    };
    let id = NodeId {
        level: input.byte() % geometry.height(),
        index: input.number() % (1 << 50),
    };
    let codec = [Codec::Raw, Codec::Zstd][usize::from(input.byte() % 2)];
    let packed = |plain: &[u8]| match codec {
        Codec::Zstd => zstd::bulk::compress(plain, 1).unwrap(),
        _ => plain.to_vec(),
    };
    let (plain, payload) = if input.byte().is_multiple_of(4) {
        let payload = input.rest(NODE_PLAIN_LEN).to_vec();
        let plain = match codec {
            Codec::Zstd => decompress(&payload, NODE_PLAIN_LEN).unwrap_or_default(),
            _ => payload.clone(),
        };
        (plain, payload)
    } else {
        let mut children = forge::good_children(geometry, id, LAYERS[1].0);
        while !input.is_empty() {
            let slot = usize::from(input.byte());
            input.change_pointer(&mut children[slot]);
        }
        let plain = children.as_bytes().to_vec();
        let payload = packed(&plain);
        (plain, payload)
    };
    check_node(&plain, &payload, codec, id, geometry);
}

fn check_node(plain: &[u8], payload: &[u8], codec: Codec, id: NodeId, geometry: Geometry) {
    let place = Place {
        layer: 1,
        offset: 8192,
        len: u32::try_from(payload.len() + DIGEST_LEN).unwrap(),
    };
    let pointer = Pointer {
        digest: digest_of_children(plain),
        codec,
        place,
    };
    let check = closing_check(payload, &LAYER_UUID, place.offset, id);
    let stored = [payload, &check.0].concat();
    let Ok(node) = Node::decode(&stored, &pointer, id, geometry, &layer_table()) else {
        return;
    };
    assert_eq!(node.digest(), pointer.digest);
    for (slot, child) in node
        .children()
        .iter()
        .enumerate()
        .filter(|(_, child)| !child.is_null())
    {
        assert!(slot < geometry.child_count(id.level, id.index));
        let (_, len) = LAYERS
            .into_iter()
            .find(|(id, _)| *id == child.place.layer)
            .unwrap();
        let end = u128::from(child.place.offset) + u128::from(child.place.len);
        assert!(child.place.offset >= HEADER_LEN as u64 && end <= u128::from(len));
    }
}

/// A stored cluster, with a check and a digest that fit wherever its frame can be expanded.
pub fn cluster(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.byte();
    let plain_len = usize::try_from(input.long() % 0x4_0000).unwrap() + 1;
    let bytes = input.rest(0x4_1000);
    let codec = match kind % 4 {
        0 => return round_trip(bytes, i32::from(kind >> 2) % 20),
        1 => Codec::Raw,
        2 => Codec::Zstd,
        _ => Codec::Damaged,
    };
    let mut stored = bytes.to_vec();
    let digest = match codec {
        Codec::Zstd => {
            stored.extend_from_slice(&frame_check(bytes));
            decompress(bytes, plain_len).map_or(Digest([1; DIGEST_LEN]), |plain| {
                assert_eq!(plain.len(), plain_len);
                Digest::of_cluster(&plain)
            })
        }
        Codec::Damaged => damaged_digest(bytes),
        _ => Digest::of_cluster(bytes),
    };
    // Readers look at the length before they read, so nothing else ever gets here.
    if !cluster_len_fits(codec, stored.len(), plain_len) {
        return;
    }
    if let Ok(content) = decode_cluster(codec, stored, plain_len, digest) {
        let whole = content.readable(0..plain_len);
        assert!(codec == Codec::Damaged || whole.unwrap().len() == plain_len);
        let _ = content.readable(plain_len / 2..plain_len);
        let _ = content.readable(plain_len..plain_len);
    }
}

fn round_trip(plain: &[u8], level: i32) {
    let mut packed = Vec::new();
    let codec = crate::format::codec::compress_cluster(plain, level, &mut packed);
    let stored = if codec == Codec::Raw {
        plain.to_vec()
    } else {
        packed
    };
    if plain.is_empty() || Digest::of_cluster(plain).is_null() {
        return;
    }
    assert!(cluster_len_fits(codec, stored.len(), plain.len()));
    let content = decode_cluster(codec, stored, plain.len(), Digest::of_cluster(plain)).unwrap();
    assert_eq!(content.readable(0..plain.len()).unwrap(), plain);
}

/// Changes in one edit after another.
const EDITS_MAX: usize = 16;

/// A good store, changed by a list of edits with the seals and checks made right again, and then opened, listed,
/// read, verified, compared and written to.
pub fn store(data: &[u8]) {
    let mut input = Input(data);
    let chain = ["web", "db"][usize::from(input.byte() % 2)];
    let mut forge = Forge::new(chain);
    for _ in 0..EDITS_MAX {
        if input.is_empty() {
            break;
        }
        // An edit that finds nothing to change is none.
        let _ = forge.edit(&mut input);
    }
    examine(&forge.into_storage(), chain);
}
