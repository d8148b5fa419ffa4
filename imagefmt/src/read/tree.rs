//! Reading a disk through its tree.

use crate::error::{Error, Result, Within};
use crate::format::codec::{Content, decode_cluster};
use crate::format::digest::{Digest, DiskDigest};
use crate::format::geometry::{FANOUT, Geometry, child_index, parent_index, slot};
use crate::format::layer::{LayerFiles, LayerTable};
use crate::format::node::{Node, NodeId, node_len_fits, node_name, place_name};
use crate::format::pointer::{Codec, Place, Pointer};
use crate::read::cache::{CachedNode, ChainFiles, Opening, TreeId};
use blockio::AlignedBuf;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// The tree of one disk of one image. Cheap to clone; safe to read from many threads.
#[derive(Debug, Clone)]
pub struct Tree {
    id: TreeId,
    geometry: Geometry,
    root: Pointer,
    layers: Arc<LayerTable>,
    files: Arc<ChainFiles>,
    /// Whether nodes are found by their places alone.
    by_place: bool,
}

/// A piece of a disk as a walk meets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// These clusters are all zero.
    Zero(Range<u64>),
    /// This cluster holds something.
    Data(u64, Pointer),
}

/// A node that cannot be read: everything below it is out of reach.
#[derive(Debug)]
pub(crate) struct Unread {
    pub id: NodeId,
    pub error: Error,
}

impl Tree {
    /// A tree from its root pointer, which is checked like any other.
    pub(crate) fn new(
        geometry: Geometry,
        root: Pointer,
        layers: Arc<LayerTable>,
        files: Arc<ChainFiles>,
        opening: Opening,
    ) -> Result<Self> {
        if !root.is_null() {
            layers.check(&root.place).within(|| "root".to_owned())?;
            if !node_len_fits(root.codec, root.place.len as usize) {
                return Err(Error::damaged("root: stored length does not fit its codec"));
            }
        }
        Ok(Self {
            id: TreeId::new(files.layers().chain(), opening, geometry, &root, &layers),
            geometry,
            root,
            layers,
            files,
            by_place: false,
        })
    }

    /// Size and cluster size of the disk.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Pointer to the root node; null for a disk of zeros.
    pub fn root(&self) -> Pointer {
        self.root
    }

    /// The layers that the tree's image points into.
    pub fn layers(&self) -> &LayerTable {
        &self.layers
    }

    /// Digest of the disk's content.
    pub fn digest(&self) -> DiskDigest {
        DiskDigest::new(self.geometry, self.root.digest)
    }

    /// The id of the root node.
    pub(crate) fn root_id(&self) -> NodeId {
        NodeId {
            level: self.geometry.height() - 1,
            index: 0,
        }
    }

    /// The node that `pointer` leads to, from the cache or checked in full.
    pub(crate) fn load(&self, id: NodeId, pointer: &Pointer) -> Result<Arc<Node>> {
        self.load_cached(id, pointer).map(|cached| cached.node().clone())
    }

    /// As [`load`](Self::load), with what is known of the node's children.
    fn load_cached(&self, id: NodeId, pointer: &Pointer) -> Result<Arc<CachedNode>> {
        if pointer.is_null() {
            return Ok(self.files.null_node().clone());
        }
        self.files
            .node(&self.id, id, pointer, || self.read_node(id, pointer))
    }

    /// Reads a node around the cache: for `verify`, which must see what the disk holds now.
    pub(crate) fn load_uncached(&self, id: NodeId, pointer: &Pointer) -> Result<Arc<Node>> {
        let node = self.read_node(id, pointer);
        node.map(Arc::new).within(|| node_name(id, pointer))
    }

    fn read_node(&self, id: NodeId, pointer: &Pointer) -> Result<Node> {
        let stored = self.files.layers().read(&pointer.place, &self.layers)?;
        let decode = if self.by_place {
            Node::decode_at_place
        } else {
            Node::decode
        };
        decode(&stored, pointer, id, self.geometry, &self.layers)
    }

    /// The tree for those who only want to know where its pieces lie, to free or to keep them. Nodes are checked against
    /// their places, but not against digests, which say nothing of places.
    pub(crate) fn by_place(&self) -> Self {
        Self {
            id: self.id.by_place(),
            by_place: true,
            ..self.clone()
        }
    }

    /// The pointer to node `id`, found by descending from the root.
    fn pointer_to(&self, id: NodeId) -> Result<Pointer> {
        self.descend_to(id).map_err(|unread| unread.error)
    }

    fn descend_to(&self, id: NodeId) -> std::result::Result<Pointer, Unread> {
        if self.geometry.clusters_of(id.level, id.index).is_empty() {
            return Ok(Pointer::NULL);
        }
        let mut pointer = self.root;
        let mut level = self.root_id().level;
        while level > id.level && !pointer.is_null() {
            let below = FANOUT_BITS * u32::from(level - id.level);
            let above = NodeId {
                level,
                index: id.index >> below,
            };
            let node = self
                .load(above, &pointer)
                .map_err(|error| Unread { id: above, error })?;
            level -= 1;
            let index = id.index >> (FANOUT_BITS * u32::from(level - id.level));
            pointer = node.children()[slot(index)];
        }
        Ok(pointer)
    }

    /// Node `id`; a node of nulls where nothing is stored.
    ///
    /// # Errors
    /// `Damaged` and `Io` where a node of the tree cannot be read.
    pub fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.load(id, &self.pointer_to(id)?)
    }

    /// As [`node`](Self::node); where it cannot be read, the highest node on the way to it that cannot.
    pub(crate) fn find_node(&self, id: NodeId) -> std::result::Result<Arc<Node>, Unread> {
        let pointer = self.descend_to(id)?;
        self.load(id, &pointer).map_err(|error| Unread { id, error })
    }

    /// Visits the place of every piece that the tree points to, nodes included.
    ///
    /// # Errors
    /// When a node cannot be read.
    pub(crate) fn each_place(&self, visit: &mut dyn FnMut(&Place)) -> Result<()> {
        self.places_below(self.root_id(), &self.root, visit)
    }

    fn places_below(&self, id: NodeId, pointer: &Pointer, visit: &mut dyn FnMut(&Place)) -> Result<()> {
        if pointer.is_null() {
            return Ok(());
        }
        visit(&pointer.place);
        let node = self.load(id, pointer)?;
        for (slot, child) in node.children().iter().enumerate() {
            match id.level.checked_sub(1) {
                Some(level) => {
                    let index = child_index(id.index, slot);
                    self.places_below(NodeId { level, index }, child, visit)?;
                }
                None if !child.is_null() => visit(&child.place),
                None => {}
            }
        }
        Ok(())
    }

    /// Leaf `index`, with what is known of its clusters. One that was read lately is found without a descent.
    pub(crate) fn cached_leaf(&self, index: u64) -> Result<Arc<CachedNode>> {
        let id = NodeId { level: 0, index };
        // The cache holds nothing by this key but what a descent from this tree's root has led to.
        match self.files.peek_node(&self.id, id) {
            Some(leaf) => Ok(leaf),
            None => self.load_cached(id, &self.pointer_to(id)?),
        }
    }

    /// What is known without waiting of cluster `index`: its pointer, and whether its stored bytes were
    /// verified. `None` where a node would have to be read.
    pub(crate) fn known_cluster(&self, index: u64) -> Option<(Pointer, bool)> {
        if self.root.is_null() {
            return Some((Pointer::NULL, false));
        }
        let mut below = index;
        for level in 0..self.geometry.height() {
            let (index, slot) = (parent_index(below), slot(below));
            let look = |found: &CachedNode| (found.node().children()[slot], found.is_verified(slot));
            match self.files.look_at_node(&self.id, NodeId { level, index }, look) {
                Some((pointer, verified)) if level == 0 || pointer.is_null() => {
                    return Some((pointer, verified));
                }
                Some(_) => return None,
                None => below = index,
            }
        }
        None
    }

    /// The decoded cluster that `pointer` leads to, if it was decoded lately.
    pub(crate) fn known_content(&self, index: u64, pointer: &Pointer) -> Option<Arc<Content>> {
        self.files.peek_cluster(pointer, self.geometry.cluster_len(index))
    }

    /// Room for decoded clusters in bytes, which all trees with the same caches share.
    pub(crate) fn cluster_cache_bytes(&self) -> usize {
        self.files.cluster_cache_bytes()
    }

    /// Leaf `index`: the pointers of clusters `256 * index` on.
    ///
    /// # Errors
    /// `Damaged` and `Io` where a node of the tree cannot be read.
    pub fn leaf(&self, index: u64) -> Result<Arc<Node>> {
        self.node(NodeId { level: 0, index })
    }

    /// The digest of leaf `index`, as the node above it has it.
    ///
    /// # Errors
    /// `Damaged` and `Io` where a node above it cannot be read.
    pub(crate) fn leaf_digest(&self, index: u64) -> Result<Digest> {
        Ok(self.pointer_to(NodeId { level: 0, index })?.digest)
    }

    /// The pointer of cluster `index`.
    ///
    /// # Errors
    /// `Damaged` and `Io` where a node of the tree cannot be read.
    pub fn cluster(&self, index: u64) -> Result<Pointer> {
        Ok(self.leaf(parent_index(index))?.children()[slot(index)])
    }

    /// What cluster `index` holds, verified; `pointer` is its pointer.
    ///
    /// # Errors
    /// `Damaged` where it is not what was written there; `Io` from the storage. The cluster is named.
    pub fn read_cluster(&self, index: u64, pointer: &Pointer) -> Result<Content> {
        let stored = match pointer.codec {
            Codec::Null => Vec::new(),
            _ => self
                .files
                .layers()
                .read(&pointer.place, &self.layers)
                .map_err(|error| self.name_cluster(error, index))?,
        };
        decode_cluster(
            pointer.codec,
            stored,
            self.geometry.cluster_len(index),
            pointer.digest,
        )
        .map_err(|error| self.name_place(error, index, pointer))
    }

    /// As [`read_cluster`](Self::read_cluster), remembering clusters that were read lately.
    pub(crate) fn read_cluster_cached(&self, index: u64, pointer: &Pointer) -> Result<Arc<Content>> {
        self.files.cluster(pointer, self.geometry.cluster_len(index), || {
            self.read_cluster(index, pointer)
        })
    }

    /// Reads stored bytes as they are; the caller verifies them.
    pub(crate) fn read_stored(&self, layer: u32, offset: u64, target: &mut [u8]) -> Result<()> {
        self.files.layers().read_into(layer, offset, target, &self.layers)
    }

    /// Fills `target` with stored bytes, whole blocks, that are read once.
    pub(crate) fn read_stored_once(&self, layer: u32, offset: u64, target: &mut AlignedBuf) -> Result<()> {
        self.files.layers().read_once(layer, offset, target, &self.layers)
    }

    /// Fills `target` with stored bytes if that needs no waiting; only for what was verified before.
    pub(crate) fn read_stored_now(&self, layer: u32, offset: u64, target: &mut [u8]) -> bool {
        self.files.layers().read_now(layer, offset, target, &self.layers)
    }

    /// Says that stored bytes will be read soon.
    pub(crate) fn will_read(&self, place: &Place) {
        self.files.layers().will_read(place, &self.layers);
    }

    /// The files that the tree's pieces lie in.
    pub(crate) fn layer_files(&self) -> &LayerFiles {
        self.files.layers()
    }

    #[cfg(test)]
    pub(crate) fn files(&self) -> &ChainFiles {
        &self.files
    }

    /// Checks the header of a layer.
    pub(crate) fn check_layer_header(&self, id: u32) -> Result<()> {
        self.files.layers().check_header(id, &self.layers)
    }

    /// The error, with a cluster and where it is stored named in it.
    pub(crate) fn name_place(&self, error: Error, index: u64, pointer: &Pointer) -> Error {
        let name = format!("{}, {}", self.cluster_name(index), place_name(pointer));
        error.of_cluster(index, name)
    }

    /// The error, with a cluster named in it.
    pub(crate) fn name_cluster(&self, error: Error, index: u64) -> Error {
        error.of_cluster(index, self.cluster_name(index))
    }

    fn cluster_name(&self, index: u64) -> String {
        format!("cluster {index} (byte {})", self.geometry.cluster_offset(index))
    }

    /// Visits the clusters of `range` in ascending order, runs of zeros as one, until `visit` breaks.
    ///
    /// # Errors
    /// When a node that leads to them is damaged or cannot be read.
    pub fn walk(&self, range: Range<u64>, visit: &mut dyn FnMut(Run) -> ControlFlow<()>) -> Result<()> {
        let range = range.start..range.end.min(self.geometry.cluster_count());
        if range.start < range.end {
            let _stopped = self.walk_node(self.root_id(), &self.root, &range, visit)?;
        }
        Ok(())
    }

    fn walk_node(
        &self,
        id: NodeId,
        pointer: &Pointer,
        range: &Range<u64>,
        visit: &mut dyn FnMut(Run) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let covered = self.geometry.clusters_of(id.level, id.index);
        let wanted = covered.start.max(range.start)..covered.end.min(range.end);
        if wanted.start >= wanted.end {
            return Ok(ControlFlow::Continue(()));
        }
        if pointer.is_null() {
            return Ok(visit(Run::Zero(wanted)));
        }
        let node = self.load(id, pointer)?;
        let per_child = if id.level == 0 {
            1
        } else {
            Geometry::clusters_below(id.level - 1)
        };
        let first = slot(wanted.start / per_child);
        let last = slot((wanted.end - 1) / per_child);
        for slot in first..=last {
            let index = child_index(id.index, slot);
            let child = &node.children()[slot];
            let flow = match (id.level, child.is_null()) {
                (0, true) => visit(Run::Zero(index..index + 1)),
                (0, false) => visit(Run::Data(index, *child)),
                _ => self.walk_node(
                    NodeId {
                        level: id.level - 1,
                        index,
                    },
                    child,
                    &wanted,
                    visit,
                )?,
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// This tree's part in a comparison at the root of a tree of `height`.
    pub(crate) fn side_of_root(&self, height: u8) -> Result<Side> {
        if self.geometry.height() < height {
            return Ok(Side::Below);
        }
        let top = NodeId {
            level: height - 1,
            index: 0,
        };
        self.pointer_to(top).map(Side::At)
    }

    /// What is below node `id`, of which this tree has `side`.
    pub(crate) fn children(&self, id: NodeId, side: Side) -> Result<Children> {
        Ok(match side {
            Side::At(pointer) => Children::Stored(self.load(id, &pointer)?),
            Side::Below if id.level == self.geometry.height() => Children::First(Side::At(self.root)),
            Side::Below => Children::First(Side::Below),
        })
    }
}

const FANOUT_BITS: u32 = FANOUT.trailing_zeros();

/// One tree's part in a comparison of trees, at some node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    /// The tree's node here.
    At(Pointer),
    /// The tree is lower than this level: its root hangs below child 0.
    Below,
}

/// What is below a node, in one tree of a comparison.
#[derive(Debug)]
pub(crate) enum Children {
    Stored(Arc<Node>),
    /// Child 0 as given, the others null.
    First(Side),
}

impl Children {
    pub fn side(&self, slot: usize) -> Side {
        match self {
            Self::Stored(node) => Side::At(node.children()[slot]),
            Self::First(side) if slot == 0 => *side,
            Self::First(_) => Side::At(Pointer::NULL),
        }
    }
}
