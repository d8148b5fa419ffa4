//! What readers share: open layers of a chain, and nodes and clusters read lately, of all chains together. All of it is
//! bounded.

use crate::error::{Result, Within};
use crate::format::codec::Content;
use crate::format::digest::Digest;
use crate::format::geometry::Geometry;
use crate::format::int::to_usize;
use crate::format::layer::{LayerFiles, LayerTable};
use crate::format::node::{Node, NodeId, node_name};
use crate::format::pointer::Pointer;
use blake3::Hasher as Blake3;
use lru::LruCache;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::IntoBytes;

/// Room for nodes and decoded clusters in bytes, unless a store is given another bound.
pub(crate) const CACHE_BYTES: usize = 64 << 20;
/// What a node takes in memory, roughly.
const NODE_BYTES: usize = 16 << 10;
/// The least that a descent through the highest tree needs, several times over.
const NODES_MIN: usize = 64;
/// Parts of a cache that are locked by themselves.
const SHARDS_MAX: usize = 8;
/// Smaller parts are not worth a lock of their own.
const SHARD_BYTES_MIN: usize = 256 << 10;

/// The time from when the first of an image's readers opens it until the last of them has closed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    number: u64,
    /// The image's number in its chain.
    sequence: u64,
}

/// Tells the trees apart that share a cache. A tree that is opened again is the same one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TreeId {
    /// Of everything on which the tree's nodes and their checks depend, and of the image that it belongs to.
    hash: [u64; 2],
    opening: Opening,
}

impl TreeId {
    /// The tree below `root` in a chain.
    pub fn new(
        chain: &str,
        opening: Opening,
        geometry: Geometry,
        root: &Pointer,
        layers: &LayerTable,
    ) -> Self {
        let mut hasher = Blake3::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(bytes);
        };
        add(&(chain.len() as u64).to_le_bytes());
        add(chain.as_bytes());
        add(&opening.sequence.to_le_bytes());
        add(&geometry.size_bytes().to_le_bytes());
        add(&geometry.cluster_size().bytes().to_le_bytes());
        add(root.to_raw().as_bytes());
        for (id, layer) in layers.iter() {
            add(&id.to_le_bytes());
            add(&layer.uuid.bytes());
            add(&layer.len.to_le_bytes());
        }
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = *hasher.finalize().as_bytes();
        let hash = [[a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]].map(u64::from_le_bytes);
        Self { hash, opening }
    }

    /// The same tree for readers that do not check digests: what they load must not be given to others.
    pub fn by_place(self) -> Self {
        let [a, b] = self.hash;
        Self {
            hash: [!a, b],
            ..self
        }
    }
}

/// Where a cache keeps something: spread evenly over all 64 bits, and quick to compute.
trait Key: Hash + Eq {
    fn spread(&self) -> u64;
}

/// A tree never changes, so the place of a node in it says which one is meant. A node's checks depend on the
/// disk's size and the image's layers, so each tree has nodes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NodeKey {
    tree: [u64; 2],
    id: NodeId,
}

impl NodeKey {
    fn new(tree: &TreeId, id: NodeId) -> Self {
        let tree = tree.hash;
        Self { tree, id }
    }
}

impl Key for NodeKey {
    fn spread(&self) -> u64 {
        // An index has at most 41 bits: 2^63 bytes are 2^49 clusters of 16 KiB.
        let node = u64::from(self.id.level) << 56 | self.id.index;
        mixed(self.tree[0].wrapping_mul(3) ^ node.rotate_left(8))
    }
}

/// A pointer names a place too, within its chain: content that is stored twice is checked twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClusterKey {
    /// Made of the chain's name. Chains that share it share contents of one digest, which are the same bytes.
    chain: u64,
    pointer: Pointer,
    plain_len: usize,
}

impl Key for ClusterKey {
    fn spread(&self) -> u64 {
        let Digest([a, b, c, d, e, f, g, h, ..]) = self.pointer.digest;
        mixed(u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ self.pointer.place.offset)
    }
}

/// Lets every bit of `value` count for the upper ones, of which a shard is chosen by.
fn mixed(value: u64) -> u64 {
    value.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Hash for NodeKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.spread());
    }
}

impl Hash for ClusterKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.spread());
    }
}

/// A node, and which of its children's bytes matched their digest when they were last looked at.
///
/// Only for clusters stored raw, which can then be read in part. It is forgotten with the node, and when nobody has the
/// image open any more.
#[derive(Debug)]
pub(crate) struct CachedNode {
    pointer: Pointer,
    node: Arc<Node>,
    opening: Option<Opening>,
    verified: [AtomicU64; 4],
}

impl CachedNode {
    fn new(pointer: Pointer, node: Arc<Node>, opening: Option<Opening>) -> Self {
        Self {
            pointer,
            node,
            opening,
            verified: Default::default(),
        }
    }

    /// Whether what is known of its children was found out while `tree` has been open.
    fn is_of(&self, tree: &TreeId) -> bool {
        self.opening == Some(tree.opening)
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Whether the bytes of the child in `slot` were read and matched its digest.
    pub fn is_verified(&self, slot: usize) -> bool {
        self.verified[slot / 64].load(Ordering::Relaxed) >> (slot % 64) & 1 == 1
    }

    /// The caller has just compared the bytes of the child in `slot` with its digest.
    pub fn set_verified(&self, slot: usize) {
        // No order is needed: the bit says something of a file, not of memory.
        self.verified[slot / 64].fetch_or(1 << (slot % 64), Ordering::Relaxed);
    }
}

/// Something that takes memory in a cache.
trait Weight {
    /// About how many bytes it takes.
    fn bytes(&self) -> usize;
}

impl Weight for CachedNode {
    fn bytes(&self) -> usize {
        NODE_BYTES
    }
}

impl Weight for Content {
    fn bytes(&self) -> usize {
        match self {
            Self::Plain(plain) => plain.len(),
            Self::Damaged { plain, unreadable } => plain.len() + unreadable.len(),
        }
    }
}

/// Nodes and decoded clusters that were read lately, of all chains that share it: bounded together.
#[derive(Debug)]
pub(crate) struct Caches {
    nodes: Cache<NodeKey, CachedNode>,
    clusters: Cache<ClusterKey, Content>,
    cluster_bytes: usize,
    openings: AtomicU64,
}

impl Caches {
    /// Keeps up to `bytes`, a third of it nodes; as many as a descent needs at least.
    pub fn new(bytes: usize) -> Self {
        let cluster_bytes = bytes - bytes / 3;
        Self {
            nodes: Cache::new((bytes / 3).max(NODES_MIN * NODE_BYTES)),
            clusters: Cache::new(cluster_bytes),
            cluster_bytes,
            openings: AtomicU64::new(0),
        }
    }

    /// An image that nobody had open is opened.
    pub fn new_opening(&self, sequence: u64) -> Opening {
        let number = self.openings.fetch_add(1, Ordering::Relaxed);
        Opening { number, sequence }
    }

    #[cfg(test)]
    pub fn cached_clusters(&self) -> usize {
        self.clusters.len()
    }

    #[cfg(test)]
    pub fn cached_nodes(&self) -> usize {
        self.nodes.len()
    }
}

/// The files of one chain, and what was read from them lately.
#[derive(Debug)]
pub(crate) struct ChainFiles {
    layers: LayerFiles,
    null_node: Arc<CachedNode>,
    caches: Arc<Caches>,
    /// The chain in keys of clusters.
    tag: u64,
}

impl ChainFiles {
    /// Keeps what is read in `caches`.
    pub fn new(layers: LayerFiles, caches: Arc<Caches>) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(layers.chain().as_bytes()).as_bytes();
        Self {
            layers,
            null_node: Arc::new(CachedNode::new(Pointer::NULL, Arc::new(Node::null()), None)),
            caches,
            tag: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        }
    }

    pub fn layers(&self) -> &LayerFiles {
        &self.layers
    }

    /// What is kept of this and other chains.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// Room for decoded clusters in bytes, which all chains with the same caches share.
    pub fn cluster_cache_bytes(&self) -> usize {
        self.caches.cluster_bytes
    }

    pub fn null_node(&self) -> &Arc<CachedNode> {
        &self.null_node
    }

    /// What `look` finds in a node, if the node is there.
    pub fn look_at_node<T>(
        &self,
        tree: &TreeId,
        id: NodeId,
        look: impl FnOnce(&CachedNode) -> T,
    ) -> Option<T> {
        let look = |found: &Arc<CachedNode>| found.is_of(tree).then(|| look(found));
        self.caches.nodes.look(&NodeKey::new(tree, id), look).flatten()
    }

    /// A node, if it is there.
    pub fn peek_node(&self, tree: &TreeId, id: NodeId) -> Option<Arc<CachedNode>> {
        let found = self.caches.nodes.look(&NodeKey::new(tree, id), Arc::clone);
        found.filter(|found| found.is_of(tree))
    }

    /// Node `id`, to which `pointer` leads in the tree.
    ///
    /// # Errors
    /// Those of `load`, with the node's name.
    pub fn node(
        &self,
        tree: &TreeId,
        id: NodeId,
        pointer: &Pointer,
        load: impl FnOnce() -> Result<Node>,
    ) -> Result<Arc<CachedNode>> {
        let key = NodeKey::new(tree, id);
        let found = self.caches.nodes.look(&key, Arc::clone);
        let node = match found.filter(|found| found.pointer == *pointer) {
            Some(found) if found.is_of(tree) => return Ok(found),
            // Read for readers that have left. What they have verified of raw clusters counts no more.
            Some(found) => found.node.clone(),
            None => Arc::new(load().within(|| node_name(id, pointer))?),
        };
        let node = Arc::new(CachedNode::new(*pointer, node, Some(tree.opening)));
        // Two may have loaded it: what the first one has verified since then is not to be lost.
        Ok(self.caches.nodes.insert(key, node, |kept| kept.is_of(tree)))
    }

    /// A decoded cluster, if it is there.
    pub fn peek_cluster(&self, pointer: &Pointer, plain_len: usize) -> Option<Arc<Content>> {
        self.caches
            .clusters
            .look(&self.cluster_key(pointer, plain_len), Arc::clone)
    }

    fn cluster_key(&self, pointer: &Pointer, plain_len: usize) -> ClusterKey {
        ClusterKey {
            chain: self.tag,
            pointer: *pointer,
            plain_len,
        }
    }

    /// A decoded cluster, loaded without a lock: two threads may load the same one, none waits for the
    /// other's disk.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn cluster(
        &self,
        pointer: &Pointer,
        plain_len: usize,
        load: impl FnOnce() -> Result<Content>,
    ) -> Result<Arc<Content>> {
        if let Some(found) = self.peek_cluster(pointer, plain_len) {
            return Ok(found);
        }
        let content = Arc::new(load()?);
        let key = self.cluster_key(pointer, plain_len);
        Ok(self.caches.clusters.insert(key, content, |_| true))
    }
}

/// What was used lately, up to a number of bytes, and one entry at least. Memory is taken as entries come.
#[derive(Debug)]
struct Cache<K: Key, V: Weight> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    bytes_per_shard: usize,
}

#[derive(Debug)]
struct Shard<K: Key, V: Weight> {
    entries: LruCache<K, Arc<V>>,
    bytes: usize,
}

impl<K: Key, V: Weight> Shard<K, V> {
    fn put(&mut self, key: K, value: Arc<V>) {
        self.bytes += value.bytes();
        if let Some(replaced) = self.entries.put(key, value) {
            self.bytes -= replaced.bytes();
        }
    }

    /// The entry that was used longest ago, if there is more than `most` bytes, and more than one.
    fn pop_beyond(&mut self, most: usize) -> Option<Arc<V>> {
        if self.bytes <= most || self.entries.len() < 2 {
            return None;
        }
        let (_, dropped) = self.entries.pop_lru()?;
        self.bytes -= dropped.bytes();
        Some(dropped)
    }
}

impl<K: Key, V: Weight> Cache<K, V> {
    /// Room for `bytes`.
    fn new(bytes: usize) -> Self {
        let shards = (bytes / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let shard = || {
            Mutex::new(Shard {
                entries: LruCache::unbounded(),
                bytes: 0,
            })
        };
        Self {
            shards: std::iter::repeat_with(shard).take(shards).collect(),
            bytes_per_shard: bytes / shards,
        }
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        // By the highest bits: the lowest choose the place within a part.
        let index = to_usize(key.spread() >> 56) % self.shards.len();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `look` runs with a lock held: it is to take no longer than a few instructions.
    fn look<T>(&self, key: &K, look: impl FnOnce(&Arc<V>) -> T) -> Option<T> {
        self.shard(key).entries.get(key).map(look)
    }

    /// Puts `value` there, unless there is one that is to be kept; returns what is there then.
    fn insert(&self, key: K, value: Arc<V>, keep: impl FnOnce(&V) -> bool) -> Arc<V> {
        let mut shard = self.shard(&key);
        if let Some(kept) = shard.entries.get(&key).filter(|kept| keep(kept)) {
            return kept.clone();
        }
        shard.put(key, value.clone());
        let dropped: Vec<Arc<V>> = std::iter::from_fn(|| shard.pop_beyond(self.bytes_per_shard)).collect();
        // Memory is freed without the lock.
        drop(shard);
        drop(dropped);
        value
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let len = |shard: &Mutex<Shard<K, V>>| shard.lock().map_or(0, |shard| shard.entries.len());
        self.shards.iter().map(len).sum()
    }
}
