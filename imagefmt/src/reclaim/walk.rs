//! Frees what only one root pointed to.
//!
//! The dead root's tree is walked against all surviving ones at the same positions. What counts is the place
//! of a piece, not its digest. Only where the dead root has a piece of its own does the walk descend, so its
//! cost follows the difference.
//!
//! A block is freed when no surviving piece has a byte in it. All pieces in a block belong to the path
//! of one leaf (docs/format.md, "Groups"): clusters of that leaf, the leaf, nodes above it. Hence a dead
//! cluster shares its blocks with clusters in other versions of its own leaf and with nodes on its own path,
//! and a dead node's first block holds nothing but what is below that very node. Nodes *behind* a dead node
//! in its last block contain it, so they are dead too.

use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::child_index;
use crate::format::layer::{LayerFiles, LayerTable};
use crate::format::node::NodeId;
use crate::format::pointer::{Place, Pointer};
use crate::read::image::Image;
use crate::read::tree::{Children, Side, Tree};
use crate::reclaim::roots::{ListedLayer, Roots};
use crate::storage::paths::layer_path;
use crate::storage::{BLOCK_LEN, Storage};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// Ranges gathered before they are freed: bounds memory, and few calls for many ranges.
const RANGES_MAX: usize = 1 << 16;

/// What freeing came to.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    /// Bytes that the layers take less than before.
    pub bytes: u64,
    /// What was kept although it may be dead, and why.
    pub kept: Vec<String>,
}

/// Frees what `dead` points to and no root does, in layers that a root lists.
///
/// First clusters, then nodes, each durable: after a crash the nodes are there to find the clusters by again.
pub(crate) fn free_shared(storage: &dyn Storage, dead: &Image, roots: &Roots) -> Result<Freed> {
    let listed = roots.layers();
    let mut freed = Freed::default();
    for disk in dead.disks() {
        let of_same_name = |image: &Image| {
            let mut disks = image.disks().iter();
            Some(disks.find(|other| other.name() == disk.name())?.tree().by_place())
        };
        let tree = disk.tree().by_place();
        let layers = tree.layers();
        let shared = |layer: u32| may_touch(layer, layers, listed);
        if layers.iter().any(|(layer, _)| shared(layer)) {
            let reclaimer = Reclaimer::new(storage, dead.id().chain(), &tree);
            let survivors: Vec<Tree> = roots.images.iter().filter_map(of_same_name).collect();
            let mut walk = Walk::new(&tree, survivors.iter().collect(), &shared, reclaimer);
            walk.run()?;
            freed.bytes += walk.reclaimer.freed_bytes;
            freed.kept.append(&mut walk.kept);
        }
    }
    Ok(freed)
}

/// Whether holes may be made in a layer of the dead root: a root lists it, and all mean the same layer.
fn may_touch(layer: u32, dead: &LayerTable, listed: &BTreeMap<u32, ListedLayer>) -> bool {
    let uuid = dead.entry(layer).map(|entry| entry.uuid);
    listed
        .get(&layer)
        .is_some_and(|listed| listed.agreed && uuid.is_ok_and(|uuid| uuid == listed.uuid))
}

/// The blocks that a piece has a byte in.
pub(crate) fn blocks(place: &Place) -> Range<u64> {
    place.offset / BLOCK_LEN..place.end().div_ceil(BLOCK_LEN)
}

/// Frees ranges of a layer, durably; returns how many bytes it takes less than before.
pub(crate) fn free_ranges(storage: &dyn Storage, path: &str, dead: &[Range<u64>]) -> Result<u64> {
    let before = storage.allocated(path)?;
    storage.reclaim(path, dead)?;
    Ok(before.saturating_sub(storage.allocated(path)?))
}

/// Frees everything in a layer from an offset on.
pub(crate) fn free_from(storage: &dyn Storage, path: &str, offset: u64) -> Result<u64> {
    free_ranges(storage, path, std::slice::from_ref(&(offset..u64::MAX)))
}

/// Blocks that are to be freed.
struct Reclaimer<'a> {
    storage: &'a dyn Storage,
    chain: &'a str,
    files: &'a LayerFiles,
    layers: &'a LayerTable,
    pending: BTreeMap<u32, Vec<Range<u64>>>,
    count: usize,
    freed_bytes: u64,
}

impl<'a> Reclaimer<'a> {
    fn new(storage: &'a dyn Storage, chain: &'a str, dead: &'a Tree) -> Self {
        Self {
            storage,
            chain,
            files: dead.layer_files(),
            layers: dead.layers(),
            pending: BTreeMap::new(),
            count: 0,
            freed_bytes: 0,
        }
    }

    fn add(&mut self, layer: u32, blocks: Range<u64>) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        self.pending
            .entry(layer)
            .or_default()
            .push(blocks.start * BLOCK_LEN..blocks.end * BLOCK_LEN);
        self.count += 1;
        if self.count >= RANGES_MAX {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// When this returns, what was added is durably free.
    fn flush(&mut self) -> Result<()> {
        self.count = 0;
        for (layer, ranges) in std::mem::take(&mut self.pending) {
            match self.flush_layer(layer, &merged(ranges)) {
                // A layer that is gone has nothing to free, and a foreign one is none of ours.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damaged) => {
                    tracing::warn!(layer, %error, "leave a layer as it is");
                }
                flushed => flushed?,
            }
        }
        Ok(())
    }

    fn flush_layer(&mut self, layer: u32, ranges: &[Range<u64>]) -> Result<()> {
        self.files.check_header(layer, self.layers)?;
        let path = layer_path(self.chain, layer);
        self.freed_bytes += free_ranges(self.storage, &path, ranges)?;
        Ok(())
    }
}

/// Sorts ranges and joins those that touch.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// A surviving tree at the position of the walk.
#[derive(Clone, Copy)]
struct Survivor {
    tree: usize,
    side: Side,
}

impl Survivor {
    fn is_at(&self, place: &Place) -> bool {
        matches!(&self.side, Side::At(pointer) if pointer.place == *place)
    }
}

/// A dead node above the position of the walk.
struct DeadNode {
    place: Place,
    /// Something below it that lives shares its first block.
    first_block_lives: bool,
}

struct Walk<'a> {
    dead: &'a Tree,
    survivors: Vec<&'a Tree>,
    /// Whether holes may be made in a layer.
    may_touch: &'a dyn Fn(u32) -> bool,
    reclaimer: Reclaimer<'a>,
    /// Dead nodes from the root to here.
    path: Vec<DeadNode>,
    /// Dead nodes' blocks: they go last.
    nodes: Vec<(u32, Range<u64>)>,
    kept: Vec<String>,
}

impl<'a> Walk<'a> {
    fn new(
        dead: &'a Tree,
        survivors: Vec<&'a Tree>,
        may_touch: &'a dyn Fn(u32) -> bool,
        reclaimer: Reclaimer<'a>,
    ) -> Self {
        Self {
            dead,
            survivors,
            may_touch,
            reclaimer,
            path: Vec::new(),
            nodes: Vec::new(),
            kept: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<()> {
        let id = self.dead.root_id();
        match self.at_root() {
            Ok(survivors) => self.node(id, &self.dead.root(), &survivors)?,
            Err(error) => self.keep(id, &error),
        }
        self.reclaimer.flush()?;
        for (layer, blocks) in std::mem::take(&mut self.nodes) {
            self.reclaimer.add(layer, blocks)?;
        }
        self.reclaimer.flush()
    }

    fn at_root(&self) -> Result<Vec<Survivor>> {
        let height = self.dead.geometry().height();
        let sides = self.survivors.iter().map(|tree| tree.side_of_root(height));
        Ok(distinct(
            sides.collect::<Result<Vec<_>>>()?.into_iter().enumerate(),
        ))
    }

    /// Walks the dead tree's node `id`; `survivors` is what the others have in its position.
    fn node(&mut self, id: NodeId, pointer: &Pointer, survivors: &[Survivor]) -> Result<()> {
        if pointer.is_null() {
            return Ok(());
        }
        if survivors.iter().any(|survivor| survivor.is_at(&pointer.place)) {
            self.lives(&pointer.place);
            return Ok(());
        }
        let node = match self.dead.load_uncached(id, pointer) {
            Ok(node) => node,
            Err(error) => {
                // Freed before a crash, or damaged: then `gc` finds what is below.
                tracing::debug!(%error, "a node of what is being deleted cannot be read");
                self.lives(&pointer.place);
                return Ok(());
            }
        };
        let below = match self.below(id, survivors) {
            Ok(below) => below,
            Err(error) => {
                self.lives(&pointer.place);
                self.keep(id, &error);
                return Ok(());
            }
        };
        self.path.push(DeadNode {
            place: pointer.place,
            first_block_lives: false,
        });
        if id.level == 0 {
            self.leaf(node.children(), &below)?;
        } else {
            for (slot, child) in node.children().iter().enumerate() {
                let sides = below.iter().map(|(tree, children)| (*tree, children.side(slot)));
                let child_id = NodeId {
                    level: id.level - 1,
                    index: child_index(id.index, slot),
                };
                self.node(child_id, child, &distinct(sides))?;
            }
        }
        self.leave_node();
        Ok(())
    }

    fn below(&self, id: NodeId, survivors: &[Survivor]) -> Result<Vec<(usize, Children)>> {
        survivors
            .iter()
            .map(|survivor| {
                let children = self.survivors[survivor.tree].children(id, survivor.side)?;
                Ok((survivor.tree, children))
            })
            .collect()
    }

    fn leaf(&mut self, clusters: &[Pointer], below: &[(usize, Children)]) -> Result<()> {
        let mut living = HashSet::new();
        let mut edges = HashSet::new();
        for (slot, (_, children)) in (0..clusters.len()).flat_map(|slot| below.iter().map(move |b| (slot, b)))
        {
            if let Side::At(pointer) = children.side(slot)
                && !pointer.is_null()
            {
                let blocks = blocks(&pointer.place);
                edges.extend([
                    (pointer.place.layer, blocks.start),
                    (pointer.place.layer, blocks.end - 1),
                ]);
                living.insert((slot, pointer.place));
            }
        }
        for (slot, cluster) in clusters
            .iter()
            .enumerate()
            .filter(|(_, cluster)| !cluster.is_null())
        {
            if living.contains(&(slot, cluster.place)) {
                self.lives(&cluster.place);
            } else if (self.may_touch)(cluster.place.layer) {
                let free = self.without_nodes(&cluster.place, trimmed(&cluster.place, &edges));
                self.reclaimer.add(cluster.place.layer, free)?;
            }
        }
        Ok(())
    }

    /// Blocks of a dead cluster without those that dead nodes above it have a byte in.
    fn without_nodes(&self, cluster: &Place, mut free: Range<u64>) -> Range<u64> {
        for node in self.path.iter().filter(|node| node.place.layer == cluster.layer) {
            let taken = blocks(&node.place);
            // A node lies behind the clusters of its group, so at most their last block is meant.
            if taken.start < free.end && free.start < taken.end {
                free.end = taken.start;
            }
        }
        free
    }

    /// Notes that something below the dead nodes of the path lives.
    fn lives(&mut self, place: &Place) {
        let blocks = blocks(place);
        for node in self
            .path
            .iter_mut()
            .filter(|node| node.place.layer == place.layer)
        {
            node.first_block_lives |= blocks.contains(&(node.place.offset / BLOCK_LEN));
        }
    }

    fn leave_node(&mut self) {
        let Some(node) = self.path.pop() else { return };
        let mut blocks = blocks(&node.place);
        if node.first_block_lives {
            blocks.start += 1;
        }
        if (self.may_touch)(node.place.layer) {
            self.nodes.push((node.place.layer, blocks));
        }
    }

    fn keep(&mut self, id: NodeId, error: &Error) {
        let clusters = self.dead.geometry().clusters_of(id.level, id.index);
        let (start, end) = (clusters.start, clusters.end);
        self.kept.push(format!(
            "clusters {start} to {end}: another image cannot be read there: {error}"
        ));
    }
}

/// The blocks of a dead piece without the first and last if a living piece has a byte there.
///
/// Blocks between the two are full of the piece's own bytes.
fn trimmed(place: &Place, living: &HashSet<(u32, u64)>) -> Range<u64> {
    let mut free = blocks(place);
    if living.contains(&(place.layer, free.start)) {
        free.start += 1;
    }
    if !free.is_empty() && living.contains(&(place.layer, free.end - 1)) {
        free.end -= 1;
    }
    free
}

/// Sides that differ, without those that hold nothing: few even where there are many images.
fn distinct(sides: impl Iterator<Item = (usize, Side)>) -> Vec<Survivor> {
    let mut distinct: Vec<Survivor> = Vec::new();
    for (tree, side) in sides {
        let known = match &side {
            Side::At(pointer) => {
                pointer.is_null() || distinct.iter().any(|known| known.is_at(&pointer.place))
            }
            Side::Below => false,
        };
        if !known {
            distinct.push(Survivor { tree, side });
        }
    }
    distinct
}
