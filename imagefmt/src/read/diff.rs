//! Where two disks differ, found by descending only where digests do.

use crate::error::{Error, Result, Within};
use crate::format::geometry::{Geometry, child_index, slot};
use crate::format::node::NodeId;
use crate::read::image::Disk;
use crate::read::tree::{Children, Side, Tree};
use std::ops::{ControlFlow, Range};

/// A piece of a disk that differs from another disk, or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Whether the clusters that it lies in have other content than there.
    pub changed: bool,
}

impl Disk {
    /// Calls `visit` with the byte ranges of clusters whose content is not the same in both disks, in ascending order, until
    /// it breaks. The last range may end behind the larger disk, whose last cluster may be short.
    ///
    /// # Errors
    /// `Invalid` for disks of different cluster sizes; `Damaged` and `Io` where a map cannot be read.
    pub fn each_difference(
        &self,
        other: &Self,
        visit: &mut dyn FnMut(Range<u64>) -> ControlFlow<()>,
    ) -> Result<()> {
        let cluster_bytes = u64::from(self.geometry().cluster_size().bytes());
        let mut visit = |clusters: Range<u64>| {
            visit(clusters.start * cluster_bytes..clusters.end.saturating_mul(cluster_bytes))
        };
        let compared = self.tree().diff_within(other.tree(), 0..u64::MAX, &mut visit);
        let _stopped = compared.within(|| format!("compare {} with {}", self.label(), other.label()))?;
        Ok(())
    }

    /// Which of `length` bytes from `offset` on lie in clusters whose content is another than in `other`: at
    /// most `max` consecutive pieces from `offset` on, which may end early.
    ///
    /// What lies beyond the end of `other` differs where this disk stores anything. A short last cluster that
    /// holds something differs from a longer one. The cost follows the nodes within the range that differ.
    /// Disks of different cluster sizes are an error of kind `Invalid`.
    ///
    /// # Errors
    /// `Invalid` for disks of different cluster sizes; `Damaged` and `Io` where a node of the tree cannot be read.
    pub fn changed(&self, other: &Self, offset: u64, length: u64, max: usize) -> Result<Vec<Change>> {
        let end = offset.saturating_add(length).min(self.size_bytes());
        let geometry = self.geometry();
        let mut changes = Changes {
            pieces: Vec::new(),
            at: offset,
            max,
        };
        if offset < end && max > 0 {
            let clusters = geometry.cluster_at(offset)..geometry.cluster_at(end - 1) + 1;
            let flow = self.tree().diff_within(other.tree(), clusters, &mut |cluster| {
                let start = geometry.cluster_offset(cluster.start).max(offset);
                let stop = geometry.cluster_offset(cluster.end).min(end);
                changes.put(start, false)?;
                changes.put(stop, true)
            });
            let flow = flow.within(|| format!("compare {} with {}", self.label(), other.label()))?;
            if flow.is_continue() {
                let _full = changes.put(end, false);
            }
        } else {
            self.tree().check_comparable(other.tree())?;
        }
        Ok(changes.pieces)
    }
}

struct Changes {
    pieces: Vec<Change>,
    /// Where the next piece begins.
    at: u64,
    max: usize,
}

impl Changes {
    /// Says what is up to `end`; breaks where there is no room for it.
    fn put(&mut self, end: u64, changed: bool) -> ControlFlow<()> {
        let length = end - self.at;
        if length == 0 {
            return ControlFlow::Continue(());
        }
        let full = self.pieces.len() == self.max;
        match self.pieces.last_mut() {
            Some(last) if last.changed == changed => last.length += length,
            _ if full => return ControlFlow::Break(()),
            _ => self.pieces.push(Change {
                offset: self.at,
                length,
                changed,
            }),
        }
        self.at = end;
        ControlFlow::Continue(())
    }
}

impl Tree {
    /// Clusters of `range` whose content differs between `self` and `other`, as ascending ranges, until `visit` breaks; says
    /// whether it did.
    ///
    /// Descends only where digests differ, so the cost follows the difference. Clusters beyond the end of
    /// the smaller disk differ where they are not zero.
    ///
    /// # Errors
    /// `Invalid` where the cluster sizes differ; `Damaged` and `Io` where a node cannot be read.
    pub fn diff_within(
        &self,
        other: &Self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        self.check_comparable(other)?;
        let height = self.geometry().height().max(other.geometry().height());
        let top = NodeId {
            level: height - 1,
            index: 0,
        };
        let sides = [self, other].map(|tree| {
            if tree.geometry().height() == height {
                Side::At(tree.root())
            } else {
                Side::Below
            }
        });
        Difference {
            trees: [self, other],
            visit,
        }
        .descend(top, sides, &range)
    }

    /// The same of all clusters.
    ///
    /// # Errors
    /// As [`diff_within`](Self::diff_within).
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn diff(&self, other: &Self, visit: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        let mut each = |clusters| {
            visit(clusters);
            ControlFlow::Continue(())
        };
        self.diff_within(other, 0..u64::MAX, &mut each).map(drop)
    }

    fn check_comparable(&self, other: &Self) -> Result<()> {
        if self.geometry().cluster_size() == other.geometry().cluster_size() {
            return Ok(());
        }
        Err(Error::invalid(
            "disks of different cluster sizes cannot be compared by their trees",
        ))
    }
}

struct Difference<'a> {
    trees: [&'a Tree; 2],
    visit: &'a mut dyn FnMut(Range<u64>) -> ControlFlow<()>,
}

impl Difference<'_> {
    fn descend(&mut self, id: NodeId, sides: [Side; 2], range: &Range<u64>) -> Result<ControlFlow<()>> {
        if let [Side::At(a), Side::At(b)] = sides
            && a.digest == b.digest
        {
            return Ok(ControlFlow::Continue(()));
        }
        let slots = slots_within(id, range);
        if slots.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let [a, b] = self.trees;
        let children = [a.children(id, sides[0])?, b.children(id, sides[1])?];
        for slot in slots {
            if self.child(id, slot, &children, range)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn child(
        &mut self,
        id: NodeId,
        slot: usize,
        children: &[Children; 2],
        range: &Range<u64>,
    ) -> Result<ControlFlow<()>> {
        let index = child_index(id.index, slot);
        let pair = [children[0].side(slot), children[1].side(slot)];
        match (id.level.checked_sub(1), pair) {
            (Some(level), _) => self.descend(NodeId { level, index }, pair, range),
            (None, [Side::At(a), Side::At(b)]) if a.digest != b.digest => Ok((self.visit)(index..index + 1)),
            (None, _) => Ok(ControlFlow::Continue(())),
        }
    }
}

/// The children of node `id` that have clusters in `range`, wherever a disk ends.
fn slots_within(id: NodeId, range: &Range<u64>) -> Range<usize> {
    let span = Geometry::clusters_below(id.level);
    let per_child = id.level.checked_sub(1).map_or(1, Geometry::clusters_below);
    let start = id.index.saturating_mul(span);
    let wanted = range.start.max(start)..range.end.min(start.saturating_add(span));
    if wanted.is_empty() {
        return 0..0;
    }
    slot(wanted.start / per_child)..slot((wanted.end - 1) / per_child) + 1
}
