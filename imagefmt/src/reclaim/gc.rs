//! Finding what crashes leaked: everything that no root points to.
//!
//! A deletion that is repeated after a crash finds what it can still reach. `gc` needs nothing but the roots:
//! it marks every block that a root has a byte in, and gives all others back. Marks take a bit a block, so
//! layers are marked in windows of a bounded number of blocks, each with a walk of its own.

use crate::error::{Error, Result};
use crate::format::geometry::child_index;
use crate::format::layer::HEADER_LEN;
use crate::format::node::NodeId;
use crate::format::pointer::{Place, Pointer};
use crate::read::image::Image;
use crate::read::tree::Tree;
use crate::reclaim::delete::Reclaimed;
use crate::reclaim::roots::{ListedLayer, Roots};
use crate::reclaim::walk::{blocks, free_ranges};
use crate::storage::BLOCK_LEN;
use crate::storage::paths::{image_file, images_dir, is_manifest, layer_path};
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Blocks marked at a time: 32 MiB of marks for 1 TiB of layers.
const WINDOW_BLOCKS: u64 = 1 << 28;

impl Store {
    /// Frees what no image of a chain needs, for `job`.
    pub(crate) fn gc_chain(&self, chain: &str, job: &str) -> Result<Reclaimed> {
        self.gc_in_windows(chain, job, WINDOW_BLOCKS)
    }

    pub(crate) fn gc_in_windows(&self, chain: &str, job: &str, window_blocks: u64) -> Result<Reclaimed> {
        self.sequences(chain)?;
        let _writer = self.lock_writer(chain, job)?;
        let _reclaim = self.lock_reclaim(chain)?;
        self.check_writable(chain)?;
        let mut reclaimed = Reclaimed::default();
        self.repair(chain, &mut reclaimed)?;
        self.remove_left_beside(chain)?;
        let readers = self.chain(chain)?;
        let roots = Roots::collect(self, &readers)?;
        if roots.unread.is_empty() {
            self.sweep(chain, &roots, window_blocks, &mut reclaimed)?;
        }
        Ok(reclaimed)
    }

    /// Removes what was said about images that are gone.
    fn remove_left_beside(&self, chain: &str) -> Result<()> {
        let dir = images_dir(chain);
        let names = self.storage().list(&dir)?;
        let files = || names.iter().filter_map(|name| Some((name, image_file(name)?)));
        let images: BTreeSet<u64> = files()
            .filter(|(_, (_, extension))| is_manifest(extension))
            .map(|(_, (sequence, _))| sequence)
            .collect();
        for (name, (sequence, _)) in files() {
            if !images.contains(&sequence) {
                self.storage().remove(&format!("{dir}/{name}"))?;
            }
        }
        Ok(())
    }

    fn sweep(&self, chain: &str, roots: &Roots, window_blocks: u64, reclaimed: &mut Reclaimed) -> Result<()> {
        let listed = roots.layers();
        let mut unknown = BTreeSet::new();
        for window in windows(listed, window_blocks) {
            let mut marks = Marks::new(&window);
            for (before, image) in std::iter::once(None)
                .chain(roots.images.iter().map(Some))
                .zip(&roots.images)
            {
                marks.image(image, before, &mut unknown, &mut reclaimed.kept);
            }
            for (id, layer) in window
                .iter()
                .filter(|(id, layer)| layer.agreed && !unknown.contains(*id))
            {
                self.sweep_layer(chain, *id, layer, &marks.dead(*id, layer.len), roots, reclaimed)?;
            }
        }
        Ok(())
    }

    fn sweep_layer(
        &self,
        chain: &str,
        id: u32,
        layer: &ListedLayer,
        dead: &[Range<u64>],
        roots: &Roots,
        reclaimed: &mut Reclaimed,
    ) -> Result<()> {
        let readers = roots.images.iter().flat_map(Image::disks).find(|disk| {
            disk.tree()
                .layers()
                .entry(id)
                .is_ok_and(|entry| entry.uuid == layer.uuid)
        });
        let Some(disk) = readers else { return Ok(()) };
        if let Err(error) = disk.tree().check_layer_header(id) {
            reclaimed
                .kept
                .push(format!("layer {id:08x}: {}", error.full_message()));
            return Ok(());
        }
        let path = layer_path(chain, id);
        reclaimed.freed_bytes += free_ranges(&**self.storage(), &path, dead)?;
        Ok(())
    }
}

/// Layers in groups of at most so many blocks; one that is larger is a group of its own.
fn windows(listed: &BTreeMap<u32, ListedLayer>, window_blocks: u64) -> Vec<BTreeMap<u32, ListedLayer>> {
    let mut windows: Vec<BTreeMap<u32, ListedLayer>> = Vec::new();
    let mut room = 0;
    for (&id, &layer) in listed {
        let blocks = layer.len.div_ceil(BLOCK_LEN);
        match windows.last_mut() {
            Some(window) if blocks <= room => {
                window.insert(id, layer);
                room -= blocks;
            }
            _ => {
                windows.push(BTreeMap::from([(id, layer)]));
                room = window_blocks.saturating_sub(blocks);
            }
        }
    }
    windows
}

/// The blocks of some layers that a root has a byte in.
struct Marks {
    layers: BTreeMap<u32, Bits>,
}

impl Marks {
    fn new(window: &BTreeMap<u32, ListedLayer>) -> Self {
        let bits = |layer: &ListedLayer| Bits::new(layer.len.div_ceil(BLOCK_LEN));
        Self {
            layers: window.iter().map(|(&id, layer)| (id, bits(layer))).collect(),
        }
    }

    /// Marks an image's pieces but for those that the image marked before it has as well.
    ///
    /// Where a node cannot be read, what is below is unknown, and so are all layers it may be in.
    fn image(
        &mut self,
        image: &Image,
        before: Option<&Image>,
        unknown: &mut BTreeSet<u32>,
        kept: &mut Vec<String>,
    ) {
        for disk in image.disks() {
            let before = before
                .and_then(|before| before.disks().iter().find(|other| other.name() == disk.name()))
                .map(|other| other.tree().by_place())
                .filter(|tree| tree.geometry() == disk.tree().geometry());
            let tree = disk.tree().by_place();
            let before = before.as_ref();
            let marked = self.subtree(
                &tree,
                tree.root_id(),
                &tree.root(),
                before.map(Tree::root),
                before,
            );
            if let Err(error) = marked {
                kept.push(format!(
                    "all that {} may hold: {}",
                    disk.label(),
                    error.full_message()
                ));
                unknown.extend(tree.layers().iter().map(|(id, _)| id));
            }
        }
    }

    fn subtree(
        &mut self,
        tree: &Tree,
        id: NodeId,
        pointer: &Pointer,
        before: Option<Pointer>,
        baseline: Option<&Tree>,
    ) -> Result<()> {
        if pointer.is_null() || before.is_some_and(|before| before.place == pointer.place) {
            return Ok(());
        }
        self.mark(&pointer.place)?;
        let node = tree.load_uncached(id, pointer)?;
        let old = match (baseline, before) {
            (Some(baseline), Some(before)) => baseline.load(id, &before).ok(),
            _ => None,
        };
        for (slot, child) in node.children().iter().enumerate() {
            let Some(level) = id.level.checked_sub(1) else {
                self.mark(&child.place)?;
                continue;
            };
            let index = child_index(id.index, slot);
            let old = old.as_ref().map(|old| old.children()[slot]);
            self.subtree(tree, NodeId { level, index }, child, old, baseline)?;
        }
        Ok(())
    }

    /// Marks a piece, where its layer is in the window; a null one has no layer.
    fn mark(&mut self, place: &Place) -> Result<()> {
        match self.layers.get_mut(&place.layer) {
            Some(bits) if place.len > 0 => bits.set(blocks(place)),
            _ => Ok(()),
        }
    }

    /// The ranges of a layer that no root has a byte in, up to its end and whatever lies behind.
    fn dead(&self, layer: u32, len: u64) -> Vec<Range<u64>> {
        let header = HEADER_LEN as u64 / BLOCK_LEN;
        let unset = self
            .layers
            .get(&layer)
            .map(|bits| bits.unset(header))
            .unwrap_or_default();
        let mut dead: Vec<Range<u64>> = unset
            .into_iter()
            .map(|run| run.start * BLOCK_LEN..run.end * BLOCK_LEN)
            .collect();
        dead.push(len.next_multiple_of(BLOCK_LEN)..u64::MAX);
        dead
    }
}

/// A bit a block.
struct Bits {
    words: Vec<u64>,
    len: u64,
}

impl Bits {
    fn new(len: u64) -> Self {
        let words = usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
            len,
        }
    }

    fn set(&mut self, run: Range<u64>) -> Result<()> {
        for block in run {
            let word = usize::try_from(block / 64)
                .ok()
                .and_then(|word| self.words.get_mut(word));
            let word = word.ok_or_else(|| Error::damaged("a pointer leads behind the end of its layer"))?;
            *word |= 1 << (block % 64);
        }
        Ok(())
    }

    /// Runs of bits that are not set, from `start` on.
    fn unset(&self, start: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (word, bits) in self
            .words
            .iter()
            .enumerate()
            .filter(|(_, bits)| **bits != u64::MAX)
        {
            let first = word as u64 * 64;
            for block in (first..(first + 64).min(self.len)).filter(|block| bits >> (block % 64) & 1 == 0) {
                match runs.last_mut() {
                    Some(last) if last.end == block => last.end += 1,
                    _ if block >= start => runs.push(block..block + 1),
                    _ => {}
                }
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_bits_are_found_as_runs() {
        let mut bits = Bits::new(200);
        bits.set(0..3).unwrap();
        bits.set(5..130).unwrap();
        bits.set(199..200).unwrap();
        assert_eq!(bits.unset(1), [3..5, 130..199]);
        assert_eq!(Bits::new(70).unset(1), vec![1..70; 1]);
        assert!(bits.set(300..301).is_err());
    }

    #[test]
    fn layers_are_grouped_by_their_blocks() {
        let layer = |blocks: u64| ListedLayer {
            uuid: crate::Uuid::from_bytes([0; 16]),
            len: blocks * BLOCK_LEN,
            agreed: true,
        };
        let listed = BTreeMap::from([
            (1, layer(5)),
            (2, layer(5)),
            (3, layer(30)),
            (4, layer(1)),
            (5, layer(9)),
        ]);
        let ids: Vec<Vec<u32>> = windows(&listed, 10)
            .iter()
            .map(|window| window.keys().copied().collect())
            .collect();
        assert_eq!(ids, [vec![1, 2], vec![3], vec![4, 5]]);
    }
}
