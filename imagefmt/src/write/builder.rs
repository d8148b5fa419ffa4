//! The one writing operation: (parent root, clusters in ascending order) to new root, once or in several passes.
//!
//! Groups go to the layer as they come: the changed clusters of a leaf, then the leaf; a higher node
//! follows its last changed child. Subtrees without a change are referenced, never rewritten.

use crate::error::{Error, Result};
use crate::format::clusters::ClusterSet;
use crate::format::digest::Digest;
use crate::format::geometry::{Geometry, parent_index, slot};
use crate::format::layer::{LAYER_LEN_MAX, LayerEntry, LayerTable, LayerWriter};
use crate::format::node::{Node, NodeId, closing_check};
use crate::format::pointer::{Codec, Place, Pointer};
use crate::read::cache::ChainFiles;
use crate::read::tree::{Tree, Unread};
use crate::write::known::Suspects;
use crate::write::new_layers::LayerSource;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A changed cluster as the builder stores it.
#[derive(Debug, Clone, Copy)]
pub struct ClusterUpdate<'a> {
    /// Index of the cluster on the disk.
    pub index: u64,
    /// Digest of its content.
    pub digest: Digest,
    /// How `stored` stands for it.
    pub codec: Codec,
    /// The bytes to store; empty when the codec is null.
    pub stored: &'a [u8],
}

impl ClusterUpdate<'_> {
    /// Checks what comes from another machine: whether the stored bytes, of a cluster of so many plain bytes, are those of the digest.
    ///
    /// # Errors
    /// `Damaged` if they are not.
    pub fn check(&self, plain_bytes: usize) -> Result<()> {
        if !crate::format::codec::cluster_len_fits(self.codec, self.stored.len(), plain_bytes) {
            return Err(Error::damaged(format!(
                "cluster {} has a length that does not fit it",
                self.index
            )));
        }
        crate::format::codec::check_cluster(self.codec, self.stored, plain_bytes, self.digest)
    }
}

/// What a build changed and wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BuildStats {
    /// Plain bytes of the clusters whose content is new. One that several passes store counts once, unless one of
    /// them found it zero.
    pub dirty_bytes: u64,
    /// Bytes written to layers, headers, nodes and padding included.
    pub stored_bytes: u64,
    /// Clusters that could not be read in the parent and came anew.
    pub repaired_clusters: u64,
}

/// A finished tree.
#[derive(Debug)]
pub(crate) struct Built {
    pub root: Pointer,
    pub layers: LayerTable,
    /// Ids of the layers that this build wrote and in which nothing it wrote is superseded.
    pub packed: Vec<u32>,
    pub stats: BuildStats,
}

#[derive(Debug)]
struct OpenNode {
    index: u64,
    node: Node,
}

/// Builds a disk's tree on top of its parent's.
#[derive(Debug)]
pub(crate) struct Builder {
    geometry: Geometry,
    /// The tree as it was at the start, or at the last checkpoint.
    parent: Option<Tree>,
    files: Arc<ChainFiles>,
    source: Box<dyn LayerSource>,
    writer: Option<LayerWriter>,
    /// The changed node being filled, for each level.
    open: Vec<Option<OpenNode>>,
    root: Pointer,
    layers: LayerTable,
    /// Ids of the layers that this build wrote.
    own: Vec<u32>,
    /// Those of them in which nothing is superseded.
    packed: Vec<u32>,
    /// The lowest index that may come next.
    next: u64,
    /// Clusters that have to come, whatever the tree says of them: it has nothing for them that can be read.
    due: ClusterSet,
    /// What lies below nodes of `parent` that cannot be read.
    lost: ClusterSet,
    /// Whether `layers` says exactly how much is pointed to. If not, no layer is dropped for lack of pointers.
    is_counted: bool,
    /// The parent's short last cluster: on a disk that grew it holds more than before.
    outgrown: Option<u64>,
    stats: BuildStats,
}

impl Builder {
    /// A builder for a disk of `geometry`, on top of `parent` or of nothing, in which `suspects` is known to be damaged.
    /// `files` are the chain's; the layers come from `source`.
    ///
    /// # Errors
    /// `Invalid` when the parent does not fit; otherwise when it cannot be read.
    pub fn new(
        geometry: Geometry,
        parent: Option<Tree>,
        suspects: Suspects,
        files: Arc<ChainFiles>,
        source: Box<dyn LayerSource>,
    ) -> Result<Self> {
        let mut builder = Self {
            geometry,
            parent: None,
            files,
            source,
            writer: None,
            open: (0..geometry.height()).map(|_| None).collect(),
            root: Pointer::NULL,
            layers: LayerTable::default(),
            own: Vec::new(),
            packed: Vec::new(),
            next: 0,
            due: suspects.clusters,
            lost: ClusterSet::default(),
            is_counted: !suspects.counts,
            outgrown: None,
            stats: BuildStats::default(),
        };
        if let Some(parent) = parent {
            builder.start_from(parent)?;
        }
        Ok(builder)
    }

    fn start_from(&mut self, parent: Tree) -> Result<()> {
        let old = parent.geometry();
        if old.cluster_size() != self.geometry.cluster_size() {
            return Err(Error::invalid("the parent image has another cluster size"));
        }
        if old.size_bytes() > self.geometry.size_bytes() {
            return Err(Error::invalid("the disk is smaller than in the parent image"));
        }
        self.layers = parent.layers().clone();
        self.root = parent.root();
        if old.size_bytes() < self.geometry.size_bytes() {
            let last = old.cluster_count() - 1;
            let short = old.cluster_len(last) < self.geometry.cluster_len(last);
            let is_null = match parent.cluster(last) {
                Ok(pointer) => pointer.is_null(),
                Err(error) if error.is_lost() => false,
                Err(error) => return Err(error),
            };
            if short && !is_null {
                self.outgrown = Some(last);
            }
        }
        if old.height() < self.geometry.height() && !self.root.is_null() {
            // The old root becomes child 0 of a new node above it, whether or not anything changes.
            let mut node = Node::null();
            *node.child_mut(0) = self.root;
            self.open[usize::from(old.height())] = Some(OpenNode { index: 0, node });
            self.root = Pointer::NULL;
        }
        self.parent = Some(parent);
        Ok(())
    }

    /// Takes the next cluster; indices ascend within a pass. One that is as in the tree so far is not stored again,
    /// unless it cannot be read there.
    ///
    /// # Errors
    /// `Invalid` for a cluster out of order or whose stored bytes do not fit; otherwise when the parent cannot be read
    /// or the layer not written.
    pub fn push(&mut self, update: &ClusterUpdate<'_>) -> Result<()> {
        self.check(update)?;
        self.next = update.index + 1;
        if self.outgrown == Some(update.index) {
            self.outgrown = None;
        }
        let old = self.current(update.index)?;
        let is_due = self.due.remove(update.index);
        if !is_due && old.holds(&update.digest, update.codec) {
            return Ok(());
        }
        self.open_leaf_of(update.index)?;
        let new = self.store_cluster(update)?;
        self.count(update, &old, is_due);
        self.set_child(0, update.index, new)
    }

    fn count(&mut self, update: &ClusterUpdate<'_>, old: &Pointer, is_due: bool) {
        self.stats.repaired_clusters += u64::from(is_due);
        // What is below a node that cannot be read may be as before.
        let is_new = old.digest != update.digest && !(is_due && old.is_null());
        if is_new && (old.is_null() || !self.own.contains(&old.place.layer)) {
            self.stats.dirty_bytes += self.geometry.cluster_len(update.index) as u64;
        }
    }

    /// The pointer of a cluster that has not come in this pass; null where it cannot be read.
    fn current(&mut self, index: u64) -> Result<Pointer> {
        match &self.open[0] {
            Some(open) if open.index == parent_index(index) => Ok(open.node.children()[slot(index)]),
            _ => self.parent_cluster(index),
        }
    }

    fn open_leaf_of(&mut self, cluster: u64) -> Result<()> {
        let leaf = parent_index(cluster);
        self.close_nodes_before(leaf)?;
        self.open_node(0, leaf)
    }

    fn check(&self, update: &ClusterUpdate<'_>) -> Result<()> {
        let plain_len = self.geometry.cluster_len(update.index);
        if update.index < self.next || plain_len == 0 {
            let (index, next) = (update.index, self.next);
            return Err(Error::invalid(format!(
                "cluster {index} comes where {next} or a later one is due"
            )));
        }
        let fits = crate::format::codec::cluster_len_fits(update.codec, update.stored.len(), plain_len);
        if !fits || update.digest.is_null() != (update.codec == Codec::Null) {
            return Err(Error::invalid(format!(
                "cluster {} has a codec that does not fit it",
                update.index
            )));
        }
        Ok(())
    }

    fn parent_cluster(&mut self, index: u64) -> Result<Pointer> {
        let id = NodeId {
            level: 0,
            index: parent_index(index),
        };
        let leaf = self.parent_node(id)?;
        Ok(leaf.map_or(Pointer::NULL, |leaf| *leaf.child(index)))
    }

    /// The parent's node; `None` where it has none, or one that cannot be read.
    fn parent_node(&mut self, id: NodeId) -> Result<Option<Arc<Node>>> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        if id.level >= parent.geometry().height() {
            return Ok(None);
        }
        match parent.find_node(id) {
            Ok(node) => Ok(Some(node)),
            Err(Unread { id, error }) if error.is_lost() => {
                let clusters = parent.geometry().clusters_of(id.level, id.index);
                let written: Vec<u32> = parent.layers().iter().map(|(id, _)| id).collect();
                self.lose(clusters, &written);
                Ok(None)
            }
            Err(Unread { error, .. }) => Err(error),
        }
    }

    /// Takes clusters below a node that cannot be read as due. `written` are the layers that they may lie in.
    fn lose(&mut self, clusters: Range<u64>, written: &[u32]) {
        if self.lost.covers(&clusters) {
            return;
        }
        self.lost.insert(clusters.clone());
        // Those that have come already as well: what came of them was compared with something else.
        self.due.insert(clusters);
        // What they pointed to is not known.
        self.is_counted = false;
        self.packed.retain(|id| !written.contains(id));
    }

    fn store_cluster(&mut self, update: &ClusterUpdate<'_>) -> Result<Pointer> {
        if update.codec == Codec::Null {
            return Ok(Pointer::NULL);
        }
        let writer = self.writer()?;
        writer.begin_piece()?;
        if update.codec == Codec::Raw {
            writer.align()?;
        }
        let place = writer.append(update.stored)?;
        Ok(Pointer {
            digest: update.digest,
            codec: update.codec,
            place,
        })
    }

    /// Makes node `index` of `level` the open one, closing the one that was.
    fn open_node(&mut self, level: u8, index: u64) -> Result<()> {
        if self.open[usize::from(level)]
            .as_ref()
            .is_some_and(|open| open.index == index)
        {
            return Ok(());
        }
        self.close_node(level)?;
        let node = self.parent_node(NodeId { level, index })?;
        let node = node.map_or_else(Node::null, |node| (*node).clone());
        self.open[usize::from(level)] = Some(OpenNode { index, node });
        if level == 0 {
            self.start_group()?;
        }
        Ok(())
    }

    /// A group lies in one layer and starts on a block.
    fn start_group(&mut self) -> Result<()> {
        if self
            .writer
            .as_ref()
            .is_some_and(|writer| writer.position() >= LAYER_LEN_MAX)
        {
            self.close_layer()?;
        }
        // A layer that is yet to be created starts with a whole block, its header.
        self.writer.as_mut().map_or(Ok(()), LayerWriter::align)
    }

    /// Stores the open nodes that `leaf` is not below, lowest first: each follows its last changed child.
    fn close_nodes_before(&mut self, leaf: u64) -> Result<()> {
        let mut index = leaf;
        for level in 0..self.geometry.height() {
            if self.open[usize::from(level)]
                .as_ref()
                .is_some_and(|open| open.index != index)
            {
                self.close_node(level)?;
            }
            index = parent_index(index);
        }
        Ok(())
    }

    /// Stores the open node of `level` and points its parent node to it.
    fn close_node(&mut self, level: u8) -> Result<()> {
        let Some(open) = self.open[usize::from(level)].take() else {
            return Ok(());
        };
        let new = self.store_node(
            NodeId {
                level,
                index: open.index,
            },
            &open.node,
        )?;
        if level + 1 == self.geometry.height() {
            let old = std::mem::replace(&mut self.root, new);
            return self.account(&old, &new);
        }
        self.open_node(level + 1, parent_index(open.index))?;
        self.set_child(level + 1, open.index, new)
    }

    fn store_node(&mut self, id: NodeId, node: &Node) -> Result<Pointer> {
        let digest = node.digest();
        if digest.is_null() {
            return Ok(Pointer::NULL);
        }
        let (codec, mut block) = node.encode();
        let writer = self.writer()?;
        writer.begin_piece()?;
        let check = closing_check(&block, &writer.uuid().bytes(), writer.position(), id);
        block.extend_from_slice(&check.0);
        Ok(Pointer {
            digest,
            codec,
            place: writer.append(&block)?,
        })
    }

    /// Points the open node of `level` to a new child.
    fn set_child(&mut self, level: u8, index: u64, new: Pointer) -> Result<()> {
        let Some(open) = &mut self.open[usize::from(level)] else {
            return Err(Error::invalid("a child was set in a node that is not open"));
        };
        let old = std::mem::replace(open.node.child_mut(slot(index)), new);
        self.account(&old, &new)
    }

    /// Keeps count of the bytes that the image points to in each layer.
    fn account(&mut self, old: &Pointer, new: &Pointer) -> Result<()> {
        if !old.is_null() {
            let Place { layer, len, .. } = old.place;
            self.packed.retain(|&id| id != layer);
            let entry = self.layers.entry_mut(layer)?;
            match entry.referenced.checked_sub(len.into()) {
                Some(left) => entry.referenced = left,
                // The parent's manifest counts too few.
                None => self.is_counted = false,
            }
        }
        if !new.is_null() {
            self.layers.entry_mut(new.place.layer)?.referenced += u64::from(new.place.len);
        }
        Ok(())
    }

    /// The layer being written; the first is created when there is something to write.
    fn writer(&mut self) -> Result<&mut LayerWriter> {
        if self.writer.is_none() {
            let writer = self.source.create()?;
            let entry = LayerEntry {
                uuid: writer.uuid(),
                len: 0,
                referenced: 0,
            };
            self.layers.insert(writer.id(), entry);
            self.own.push(writer.id());
            self.packed.push(writer.id());
            self.writer = Some(writer);
        }
        self.writer
            .as_mut()
            .ok_or_else(|| Error::invalid("no layer is open"))
    }

    fn close_layer(&mut self) -> Result<()> {
        let Some(mut writer) = self.writer.take() else {
            return Ok(());
        };
        writer.sync()?;
        self.layers.entry_mut(writer.id())?.len = writer.position();
        self.stats.stored_bytes += writer.position();
        Ok(())
    }

    /// Stores what is open and makes it durable, so that what came so far can be found again by its root; the build
    /// continues from there.
    ///
    /// On a disk that grew, the cluster that was its short last one is zero in it until it has come: what the parent
    /// holds of it is shorter than a cluster of this disk. So are those beside others that came in place of a leaf that
    /// cannot be read.
    ///
    /// # Errors
    /// When the layer cannot be written, or the parent not be read.
    pub fn checkpoint(&mut self) -> Result<Built> {
        if let Some(index) = self.outgrown
            && !self.current(index)?.is_null()
        {
            self.open_leaf_of(index)?;
            self.set_child(0, index, Pointer::NULL)?;
        }
        self.close_nodes()?;
        if let Some(writer) = &mut self.writer {
            writer.sync()?;
            self.layers.entry_mut(writer.id())?.len = writer.position();
            // The nodes just stored will be superseded: not every byte of this layer will be pointed to.
            self.packed.retain(|&id| id != writer.id());
        }
        self.leave_unreferenced_layer()?;
        self.continue_from_here()?;
        Ok(self.built())
    }

    /// Closes the layer being written if nothing points into it any more: the checkpoint does not list it, so the
    /// file goes with the checkpoint before, and what was appended to it later would be lost.
    fn leave_unreferenced_layer(&mut self) -> Result<()> {
        match &self.writer {
            Some(writer) if self.layers.entry(writer.id())?.referenced == 0 => self.close_layer(),
            _ => Ok(()),
        }
    }

    /// Closes the layer being written and frees its buffers. What comes later gets a new layer.
    ///
    /// # Errors
    /// As for [`checkpoint`](Self::checkpoint).
    pub fn release(&mut self) -> Result<()> {
        self.close_nodes()?;
        self.close_layer()?;
        self.continue_from_here()
    }

    /// Whether a layer is open, with the buffers that it takes.
    pub fn holds_layer(&self) -> bool {
        self.writer.is_some()
    }

    /// Begins another pass: clusters may come again. The caller has made a checkpoint of what came before.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// The tree as it was at the start, at the last checkpoint or at the last release.
    pub fn tree(&self) -> Option<&Tree> {
        self.parent.as_ref()
    }

    /// The tree as stored, of an image that is not there yet.
    fn tree_of(&self, layers: Arc<LayerTable>) -> Result<Tree> {
        let opening = self.files.caches().new_opening(0);
        Tree::new(self.geometry, self.root, layers, self.files.clone(), opening)
    }

    /// Takes the tree as stored for the one to build upon; nothing is open.
    fn continue_from_here(&mut self) -> Result<()> {
        let layers = Arc::new(self.layers.clone());
        self.parent = Some(self.tree_of(layers)?);
        // What cannot be read in this tree is another matter, even in the same place.
        self.lost = ClusterSet::default();
        Ok(())
    }

    fn close_nodes(&mut self) -> Result<()> {
        (0..self.geometry.height()).try_for_each(|level| self.close_node(level))
    }

    /// The tree as stored; nothing is open.
    pub fn built(&self) -> Built {
        let mut built = Built {
            root: self.root,
            layers: self.layers.clone(),
            packed: self.packed.clone(),
            stats: self.stats,
        };
        built.stats.stored_bytes += self.writer.as_ref().map_or(0, LayerWriter::position);
        if self.is_counted {
            built.layers.drop_unreferenced();
        }
        built.packed.retain(|&id| built.layers.entry(id).is_ok());
        built
    }

    /// Clusters that have to come, as the tree has nothing for them that can be read.
    pub fn due(&self) -> &ClusterSet {
        &self.due
    }

    /// What lies below nodes of [`tree`](Self::tree) that cannot be read, as far as is known: it came anew, or is due.
    pub fn lost(&self) -> &ClusterSet {
        &self.lost
    }

    /// Whether it is known how much the tree points to in each layer. If not, all nodes are read at the end.
    pub fn is_counted(&self) -> bool {
        self.is_counted
    }

    /// Counts what the tree points to in each layer.
    fn recount(&mut self) -> Result<()> {
        let tree = self.tree_of(self.layers.clone().into())?;
        let mut counts = BTreeMap::new();
        tree.each_place(&mut |place| *counts.entry(place.layer).or_default() += u64::from(place.len))?;
        self.layers.set_referenced(&counts);
        self.is_counted = true;
        Ok(())
    }

    /// Stores what is still open and makes all layers durable.
    ///
    /// # Errors
    /// `Invalid` when a cluster that grew with the disk did not come, `Damaged` when one that cannot be read in the
    /// parent did not, or a node of the tree cannot be read; otherwise when the layer cannot be written.
    pub fn finish(&mut self) -> Result<Built> {
        if let Some(index) = self.outgrown {
            return Err(Error::invalid(format!(
                "cluster {index} grew with the disk but was not given anew"
            )));
        }
        self.close_nodes()?;
        self.close_layer()?;
        if let Some(index) = self.due.first() {
            return Err(Error::damaged(format!(
                "cluster {index} cannot be read in the store and was not stored anew"
            )));
        }
        if !self.is_counted {
            self.recount()?;
        }
        Ok(self.built())
    }
}
