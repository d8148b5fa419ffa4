//! Nodes of the tree: 256 pointers, stored as a block that is bound to its place.

use crate::error::{Error, Result, Within};
use crate::format::codec;
use crate::format::digest::{DIGEST_LEN, Digest, node_digest, place_check};
use crate::format::geometry::{FANOUT, Geometry, child_index, slot};
use crate::format::layer::LayerTable;
use crate::format::pointer::{Codec, POINTER_LEN, Pointer, RawPointer};
use zerocopy::{FromBytes, IntoBytes};

/// Plain length of a node's pointers in bytes.
pub(crate) const NODE_PLAIN_LEN: usize = FANOUT * POINTER_LEN;
/// Most bytes that a stored node takes: its pointers and the check.
pub(crate) const NODE_STORED_MAX: usize = NODE_PLAIN_LEN + DIGEST_LEN;

/// Which node of a disk's tree: level 0 is a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId {
    /// Levels above the leaves.
    pub level: u8,
    /// Index among the nodes of that level.
    pub index: u64,
}

/// The 256 pointers of a node, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    children: Box<[Pointer; FANOUT]>,
}

impl Node {
    /// A node of nothing but nulls.
    pub(crate) fn null() -> Self {
        Self {
            children: Box::new([Pointer::NULL; FANOUT]),
        }
    }

    /// The pointers, one a child.
    pub fn children(&self) -> &[Pointer; FANOUT] {
        &self.children
    }

    /// The pointer to the child that has `index` among all of its level.
    pub fn child(&self, index: u64) -> &Pointer {
        &self.children[slot(index)]
    }

    pub(crate) fn child_mut(&mut self, slot: usize) -> &mut Pointer {
        &mut self.children[slot]
    }

    /// The node's digest, from its children's.
    pub(crate) fn digest(&self) -> Digest {
        let mut digests = [0; FANOUT * DIGEST_LEN];
        for (child, digest) in self.children.iter().zip(digests.chunks_exact_mut(DIGEST_LEN)) {
            digest.copy_from_slice(&child.digest.0);
        }
        node_digest(&digests)
    }

    /// The block's payload: the pointers, compressed where that is shorter (sparse disks).
    pub(crate) fn encode(&self) -> (Codec, Vec<u8>) {
        let mut plain = Vec::with_capacity(NODE_STORED_MAX);
        for child in self.children.iter() {
            plain.extend_from_slice(child.to_raw().as_bytes());
        }
        match codec::compress_node(&plain) {
            Some(mut packed) => {
                packed.reserve_exact(DIGEST_LEN);
                (Codec::Zstd, packed)
            }
            None => (Codec::Raw, plain),
        }
    }

    /// Reads a node back from its stored block.
    ///
    /// The order matters: the block is checked against its place before a single pointer in it is looked
    /// at, then each pointer by itself, against the layers, and against the disk's geometry.
    pub(crate) fn decode(
        stored: &[u8],
        pointer: &Pointer,
        id: NodeId,
        geometry: Geometry,
        layers: &LayerTable,
    ) -> Result<Self> {
        let node = Self::decode_at_place(stored, pointer, id, geometry, layers)?;
        if node.digest() != pointer.digest {
            return Err(Error::damaged(
                "node is not the one that its parent names: digests differ",
            ));
        }
        Ok(node)
    }

    /// The same without a look at digests: of a reader that only wants to know where pieces lie.
    pub(crate) fn decode_at_place(
        stored: &[u8],
        pointer: &Pointer,
        id: NodeId,
        geometry: Geometry,
        layers: &LayerTable,
    ) -> Result<Self> {
        let payload = check_place(stored, pointer, id, layers)?;
        let plain = match pointer.codec {
            Codec::Raw => payload.to_vec(),
            Codec::Zstd => codec::decompress(payload, NODE_PLAIN_LEN)?,
            Codec::Null | Codec::Damaged => {
                return Err(Error::damaged("pointer to a node has a codec that no node has"));
            }
        };
        let raw = <[RawPointer]>::ref_from_bytes(&plain)
            .ok()
            .filter(|raw| raw.len() == FANOUT)
            .ok_or_else(|| Error::damaged(format!("node block holds {} bytes of pointers", plain.len())))?;
        let mut node = Self::null();
        for (slot, raw) in raw.iter().enumerate() {
            let child = Pointer::from_raw(raw).within(|| format!("child {slot}"))?;
            check_child(&child, id, slot, geometry, layers).within(|| format!("child {slot}"))?;
            node.children[slot] = child;
        }
        Ok(node)
    }
}

/// The check that closes a block stored at `offset` of the layer `uuid`.
pub(crate) fn closing_check(payload: &[u8], uuid: &[u8; 16], offset: u64, id: NodeId) -> Digest {
    place_check(payload, uuid, offset, id.level, id.index)
}

fn check_place<'a>(stored: &'a [u8], pointer: &Pointer, id: NodeId, layers: &LayerTable) -> Result<&'a [u8]> {
    let Some((payload, check)) = stored.split_last_chunk::<DIGEST_LEN>() else {
        return Err(Error::damaged(format!(
            "node block of {} bytes is too short",
            stored.len()
        )));
    };
    let uuid = layers.entry(pointer.place.layer)?.uuid.bytes();
    if closing_check(payload, &uuid, pointer.place.offset, id).0 != *check {
        return Err(Error::damaged(
            "node block fails its check: damaged, or not the block of this place",
        ));
    }
    Ok(payload)
}

/// Checks one pointer of node `id` against the disk and the layers.
fn check_child(
    child: &Pointer,
    id: NodeId,
    slot: usize,
    geometry: Geometry,
    layers: &LayerTable,
) -> Result<()> {
    if child.is_null() {
        return Ok(());
    }
    if slot >= geometry.child_count(id.level, id.index) {
        return Err(Error::damaged("points to content beyond the end of the disk"));
    }
    layers.check(&child.place)?;
    let stored = child.place.len as usize;
    let fits = if id.level > 0 {
        node_len_fits(child.codec, stored)
    } else {
        codec::cluster_len_fits(
            child.codec,
            stored,
            geometry.cluster_len(child_index(id.index, slot)),
        )
    };
    if fits {
        Ok(())
    } else {
        Err(Error::damaged(format!(
            "stored length {stored} does not fit its codec {:?}",
            child.codec
        )))
    }
}

/// Whether a node can be stored in `stored` bytes with this codec.
pub(crate) fn node_len_fits(codec: Codec, stored: usize) -> bool {
    match codec {
        Codec::Raw => stored == NODE_STORED_MAX,
        Codec::Zstd => (DIGEST_LEN + 1..NODE_STORED_MAX).contains(&stored),
        Codec::Null | Codec::Damaged => false,
    }
}

/// A node for a message: which one it is, and where it lies.
pub(crate) fn node_name(id: NodeId, pointer: &Pointer) -> String {
    format!(
        "node {} of level {} at {}",
        id.index,
        id.level,
        place_name(pointer)
    )
}

/// A place for a message.
pub(crate) fn place_name(pointer: &Pointer) -> String {
    let place = pointer.place;
    format!(
        "layer {:08x}, byte {}, {} bytes",
        place.layer, place.offset, place.len
    )
}
