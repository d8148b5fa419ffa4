//! What readers of a chain share: open layers, nodes and clusters read lately, all bounded.

use crate::error::{Result, Within};
use crate::format::codec::Content;
use crate::format::digest::Digest;
use crate::format::geometry::ClusterSize;
use crate::format::int::to_usize;
use crate::format::layer::LayerFiles;
use crate::format::node::{Node, NodeId};
use crate::format::pointer::Pointer;
use crate::read::tree::node_name;
use lru::LruCache;
use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Room for decoded clusters of one chain in bytes, unless a store is told otherwise.
pub(crate) const CACHE_BYTES: usize = 64 << 20;
/// What a node takes in memory, roughly.
const NODE_BYTES: usize = 16 << 10;
/// The least that a descent through the highest tree needs, several times over.
const NODES_MIN: usize = 64;
/// Parts of a cache that are locked by themselves.
const SHARDS: usize = 8;

/// Tells the trees apart that share a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TreeId(u64);

/// Where a cache keeps something: spread evenly over all 64 bits, and quick to compute.
trait Key: Hash + Eq {
    fn spread(&self) -> u64;
}

/// A tree never changes, so the place of a node in it says which one is meant. A node's checks depend on the
/// disk's size and the image's layers, so each tree has nodes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NodeKey {
    tree: TreeId,
    id: NodeId,
}

impl Key for NodeKey {
    fn spread(&self) -> u64 {
        // An index has at most 41 bits: 2^63 bytes are 2^49 clusters of 16 KiB.
        let node = u64::from(self.id.level) << 56 | self.id.index;
        mixed(self.tree.0.wrapping_mul(3) ^ node.rotate_left(8))
    }
}

/// A pointer names a place too: content that is stored twice is checked twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClusterKey {
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
/// Only for clusters stored raw, which can then be read in part. It is forgotten with the node.
#[derive(Debug)]
pub(crate) struct CachedNode {
    pointer: Pointer,
    node: Arc<Node>,
    verified: [AtomicU64; 4],
}

impl CachedNode {
    fn new(pointer: Pointer, node: Arc<Node>) -> Self {
        Self {
            pointer,
            node,
            verified: Default::default(),
        }
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

/// The files of one chain and what was read from them lately.
#[derive(Debug)]
pub(crate) struct ChainFiles {
    layers: LayerFiles,
    null_node: Arc<CachedNode>,
    nodes: Cache<NodeKey, CachedNode>,
    next_tree: AtomicU64,
    cluster_len: usize,
    cache_bytes: usize,
    clusters: Cache<ClusterKey, Content>,
}

impl ChainFiles {
    /// Keeps decoded clusters of up to `cache_bytes`, and nodes of up to half of that.
    pub fn new(layers: LayerFiles, cluster_size: ClusterSize, cache_bytes: usize) -> Self {
        let cluster_len = cluster_size.byte_len();
        Self {
            layers,
            null_node: Arc::new(CachedNode::new(Pointer::NULL, Arc::new(Node::null()))),
            nodes: Cache::new((cache_bytes / 2 / NODE_BYTES).max(NODES_MIN)),
            next_tree: AtomicU64::new(0),
            cluster_len,
            cache_bytes,
            clusters: Cache::new(cache_bytes / cluster_len),
        }
    }

    pub fn layers(&self) -> &LayerFiles {
        &self.layers
    }

    /// Room for decoded clusters in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// An id that no other tree has.
    pub fn new_tree(&self) -> TreeId {
        TreeId(self.next_tree.fetch_add(1, Ordering::Relaxed))
    }

    pub fn null_node(&self) -> &Arc<CachedNode> {
        &self.null_node
    }

    /// What `look` finds in a node, if the node is there.
    pub fn look_at_node<T>(
        &self,
        tree: TreeId,
        id: NodeId,
        look: impl FnOnce(&CachedNode) -> T,
    ) -> Option<T> {
        self.nodes.look(&NodeKey { tree, id }, |found| look(found))
    }

    /// A node, if it is there.
    pub fn peek_node(&self, tree: TreeId, id: NodeId) -> Option<Arc<CachedNode>> {
        self.nodes.look(&NodeKey { tree, id }, Arc::clone)
    }

    /// Node `id`, to which `pointer` leads in the tree.
    pub fn node(
        &self,
        tree: TreeId,
        id: NodeId,
        pointer: &Pointer,
        load: impl FnOnce() -> Result<Node>,
    ) -> Result<Arc<CachedNode>> {
        let key = NodeKey { tree, id };
        let found = self.nodes.look(&key, Arc::clone);
        if let Some(found) = found.filter(|found| found.pointer == *pointer) {
            return Ok(found);
        }
        let node = Arc::new(load().within(|| node_name(id, pointer))?);
        // Two may have loaded it: what the first one has verified since then is not to be lost.
        Ok(self.nodes.insert(key, Arc::new(CachedNode::new(*pointer, node))))
    }

    /// A decoded cluster, if it is there.
    pub fn peek_cluster(&self, pointer: &Pointer, plain_len: usize) -> Option<Arc<Content>> {
        let pointer = *pointer;
        self.clusters.look(&ClusterKey { pointer, plain_len }, Arc::clone)
    }

    /// A decoded cluster, loaded without a lock: two threads may load the same one, none waits for the
    /// other's disk.
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
        // The bound counts clusters of the chain's size: an image that claims larger ones must not take more.
        if plain_len > self.cluster_len {
            return Ok(content);
        }
        let pointer = *pointer;
        Ok(self.clusters.insert(ClusterKey { pointer, plain_len }, content))
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

type Shard<K, V> = Mutex<LruCache<K, Arc<V>>>;

/// What was used lately, up to a number of entries. Memory is taken as entries come.
#[derive(Debug)]
struct Cache<K: Key, V> {
    shards: Box<[Shard<K, V>]>,
    per_shard: NonZeroUsize,
}

impl<K: Key, V> Cache<K, V> {
    /// Room for `max` entries, at least one.
    fn new(max: usize) -> Self {
        let shards = max.clamp(1, SHARDS);
        Self {
            shards: (0..shards).map(|_| Mutex::new(LruCache::unbounded())).collect(),
            per_shard: NonZeroUsize::new(max / shards).unwrap_or(NonZeroUsize::MIN),
        }
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, LruCache<K, Arc<V>>> {
        // By the highest bits: the lowest choose the place within a part.
        let index = to_usize(key.spread() >> 56) % self.shards.len();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `look` runs with a lock held: it is to take no longer than a few instructions.
    fn look<T>(&self, key: &K, look: impl FnOnce(&Arc<V>) -> T) -> Option<T> {
        self.shard(key).get(key).map(look)
    }

    /// Keeps `value`, unless there is one already; returns what is kept.
    fn insert(&self, key: K, value: Arc<V>) -> Arc<V> {
        let mut shard = self.shard(&key);
        let kept = shard.get_or_insert(key, || value).clone();
        let dropped = (shard.len() > self.per_shard.get())
            .then(|| shard.pop_lru())
            .flatten();
        // Memory is freed without the lock.
        drop(shard);
        drop(dropped);
        kept
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let len = |shard: &Mutex<LruCache<K, Arc<V>>>| shard.lock().map_or(0, |shard| shard.len());
        self.shards.iter().map(len).sum()
    }
}
