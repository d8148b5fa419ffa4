//! What readers of a chain share: open layers, nodes and clusters read lately, all bounded.

use crate::codec::Content;
use crate::error::{Result, Within};
use crate::geometry::ClusterSize;
use crate::layer::LayerFiles;
use crate::node::{Node, NodeId};
use crate::pointer::Pointer;
use crate::tree::node_name;
use lru::LruCache;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Nodes kept, of 16 KiB each: the leaves of 16 GiB at 64 KiB clusters.
const NODES_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Clusters kept, in bytes.
const CLUSTERS_MAX_BYTES: usize = 16 << 20;

/// Tells the trees apart that share a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TreeId(u64);

/// The files of one chain and what was read from them lately.
#[derive(Debug)]
pub(crate) struct ChainFiles {
    layers: LayerFiles,
    null_node: Arc<Node>,
    // A node's checks depend on the disk's size and the image's layers, so each tree has nodes of its own.
    nodes: Cache<(Pointer, NodeId, TreeId), Node>,
    next_tree: AtomicU64,
    cluster_len: usize,
    clusters: Cache<(Pointer, usize), Content>,
}

impl ChainFiles {
    pub fn new(layers: LayerFiles, cluster_size: ClusterSize) -> Self {
        let clusters =
            NonZeroUsize::new(CLUSTERS_MAX_BYTES / cluster_size.byte_len()).unwrap_or(NonZeroUsize::MIN);
        Self {
            layers,
            null_node: Arc::new(Node::null()),
            nodes: Cache::new(NODES_MAX),
            next_tree: AtomicU64::new(0),
            cluster_len: cluster_size.byte_len(),
            clusters: Cache::new(clusters),
        }
    }

    pub fn layers(&self) -> &LayerFiles {
        &self.layers
    }

    /// An id that no other tree has.
    pub fn new_tree(&self) -> TreeId {
        TreeId(self.next_tree.fetch_add(1, Ordering::Relaxed))
    }

    pub fn null_node(&self) -> Arc<Node> {
        self.null_node.clone()
    }

    pub fn node(
        &self,
        pointer: &Pointer,
        id: NodeId,
        tree: TreeId,
        load: impl FnOnce() -> Result<Node>,
    ) -> Result<Arc<Node>> {
        self.nodes
            .get_or_load((*pointer, id, tree), load)
            .within(|| node_name(id, pointer))
    }

    pub fn cluster(
        &self,
        pointer: &Pointer,
        plain_len: usize,
        load: impl FnOnce() -> Result<Content>,
    ) -> Result<Arc<Content>> {
        // The bound counts clusters of the chain's size: an image that claims larger ones must not take more.
        if plain_len > self.cluster_len {
            return load().map(Arc::new);
        }
        self.clusters.get_or_load((*pointer, plain_len), load)
    }
}

#[derive(Debug)]
struct Cache<K: Hash + Eq, V>(Mutex<LruCache<K, Arc<V>>>);

impl<K: Hash + Eq, V> Cache<K, V> {
    fn new(max: NonZeroUsize) -> Self {
        Self(Mutex::new(LruCache::new(max)))
    }

    /// Loads without the lock: two threads may load the same thing, none waits for the other's disk.
    fn get_or_load(&self, key: K, load: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
        if let Some(value) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(value.clone());
        }
        let value = Arc::new(load()?);
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .put(key, value.clone());
        Ok(value)
    }
}
