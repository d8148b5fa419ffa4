//! The descent through one disk's tree, in the order in which its sync wrote it.

use super::finding::{Finding, Problem, in_order, note};
use super::reading::{Piece, Run, check_alone, runs};
use super::{Baseline, Scope, VerifyProgress};
use crate::error::Error;
use crate::format::geometry::{Geometry, child_index};
use crate::format::layer::HEADER_LEN;
use crate::format::manifest::Manifest;
use crate::format::node::{Node, NodeId};
use crate::format::pointer::{Place, Pointer};
use crate::read::image::Disk;
use blockio::AlignedBuf;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

/// What is to be verified of one disk.
pub(super) struct Task<'a> {
    pub manifest: &'a Manifest,
    pub disk: &'a Disk,
    pub scope: Scope,
    /// The first cluster that is to be read.
    pub start: u64,
    /// What was found before that one.
    pub earlier: Vec<Problem>,
    pub baseline: Option<&'a Baseline>,
    /// Whether it is of an unfinished sync, whose counts may still be too high.
    pub unfinished: bool,
}

/// Who reads what a walk finds.
pub(super) enum Readers {
    /// Nobody any more.
    None,
    /// The walk, where there is too little for a second thread.
    Itself(AlignedBuf),
    Workers(SyncSender<Run>),
}

/// The walk itself: hands what is to be read to workers, and keeps account of what it meets.
pub(super) struct Walk<'a> {
    task: Task<'a>,
    readers: Readers,
    report: &'a mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
    pub progress: VerifyProgress,
    pub problems: Vec<Problem>,
    /// For each packed layer: up to where it is accounted for.
    cursors: BTreeMap<u32, u64>,
    gaps: Vec<Place>,
    /// Bytes pointed to in each layer; unknown once a node could not be read.
    referenced: Option<BTreeMap<u32, u64>>,
    /// The first cluster that is not verified, once the workers are done.
    pub next: u64,
    stopped: bool,
}

impl<'a> Walk<'a> {
    pub fn new(
        mut task: Task<'a>,
        readers: Readers,
        report: &'a mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
    ) -> Self {
        let disk = task.disk;
        task.baseline = task
            .baseline
            .filter(|baseline| baseline.disk.geometry() == disk.geometry());
        let own = task
            .manifest
            .layers
            .iter()
            .filter(|layer| layer.packed && layer.disk == disk.name());
        Self {
            readers,
            report,
            progress: VerifyProgress {
                checked_bytes: task.scope.bytes_of(disk.geometry().cluster_offset(task.start)),
                read_bytes: 0,
            },
            problems: std::mem::take(&mut task.earlier),
            cursors: own.map(|layer| (layer.id, HEADER_LEN as u64)).collect(),
            gaps: Vec::new(),
            referenced: Some(BTreeMap::new()),
            next: task.start,
            stopped: false,
            task,
        }
    }

    /// Walks until the end, or until the caller has enough; then the workers get nothing more.
    pub fn run(&mut self) {
        let tree = self.task.disk.tree();
        for (id, _) in tree.layers().iter() {
            if let Err(error) = tree.check_layer_header(id) {
                self.problems.push(Problem::new(0..0, &error));
            }
        }
        let before = self.task.baseline.map(|baseline| baseline.disk.tree().root());
        self.node(tree.root_id(), &tree.root(), before);
        if self.is_complete() {
            self.tails();
            self.counts();
        }
        self.readers = Readers::None;
    }

    /// Whether the walk came to the end: a stop asked for there stops nothing.
    fn is_complete(&self) -> bool {
        self.next == self.geometry().cluster_count()
    }

    /// Compares what is pointed to in each layer with what the manifest says: the next sync relies on it.
    fn counts(&mut self) {
        let Some(mut referenced) = self.referenced.take() else {
            return;
        };
        let disk = self.task.disk;
        // An unfinished sync that repaired a node does not know yet what that no longer points to. When it ends, it counts.
        let record = self.task.manifest.disk(disk.name());
        let may_be_less = self.task.unfinished && record.is_some_and(|record| record.repaired_clusters > 0);
        for (id, entry) in disk.tree().layers().iter() {
            let found = referenced.remove(&id).unwrap_or(0);
            if found != entry.referenced && !(may_be_less && found < entry.referenced) {
                let error = Error::damaged(format!(
                    "the manifest counts {} bytes in layer {id:08x}, but {found} are pointed to",
                    entry.referenced
                ));
                self.problems.push(Problem::new(0..0, &error));
            }
        }
    }

    fn geometry(&self) -> Geometry {
        self.task.disk.geometry()
    }

    /// Verifies a subtree; `before` is the pointer that the baseline has in its place.
    ///
    /// Nodes are read even where the baseline has the same ones: it may list layers that this image does not.
    fn node(&mut self, id: NodeId, pointer: &Pointer, before: Option<Pointer>) {
        if self.stopped {
            return;
        }
        let clusters = self.geometry().clusters_of(id.level, id.index);
        if pointer.is_null() {
            self.checked(&clusters);
            return;
        }
        let node = match self.task.disk.tree().load_uncached(id, pointer) {
            Ok(node) => node,
            Err(error) => return self.lost(clusters, &error),
        };
        self.progress.read_bytes += u64::from(pointer.place.len);
        let old = self.old_children(id, pointer, before, &node);
        let child_of = |slot: usize| old.as_ref().map(|old| old.children()[slot]);
        if id.level == 0 {
            self.leaf(&clusters, node.children(), child_of);
        } else {
            let children = self.geometry().child_count(id.level, id.index);
            for (slot, child) in node.children().iter().enumerate().take(children) {
                let child_id = NodeId {
                    level: id.level - 1,
                    index: child_index(id.index, slot),
                };
                self.node(child_id, child, child_of(slot));
            }
        }
        if self.stopped && !self.is_complete() {
            // What comes between here and this node was not looked at.
            return;
        }
        let gap = self.account(&pointer.place);
        self.gaps.extend(gap);
    }

    /// Notes a node that cannot be read, and with it all that is below.
    fn lost(&mut self, clusters: Range<u64>, error: &Error) {
        self.checked(&clusters);
        self.problems.push(Problem::new(clusters, error));
        // What this subtree covers is not known any more, so neither is what must be zero or is pointed to.
        self.cursors.clear();
        self.gaps.clear();
        self.referenced = None;
    }

    /// The baseline's node in the same place; without it, everything below is simply read.
    fn old_children(
        &self,
        id: NodeId,
        pointer: &Pointer,
        before: Option<Pointer>,
        node: &Arc<Node>,
    ) -> Option<Arc<Node>> {
        let baseline = self.task.baseline?;
        if before? == *pointer {
            Some(node.clone())
        } else {
            baseline.disk.tree().load(id, &before?).ok()
        }
    }

    fn leaf(
        &mut self,
        clusters: &Range<u64>,
        children: &[Pointer],
        before: impl Fn(usize) -> Option<Pointer>,
    ) {
        let mut wanted: Vec<Piece> = self.gaps.drain(..).map(Piece::Gap).collect();
        for (slot, (index, pointer)) in clusters.clone().zip(children).enumerate() {
            if pointer.is_null() {
                continue;
            }
            let gap = self.account(&pointer.place);
            if index < self.task.start || !self.is_in(self.task.scope, index) {
                continue;
            }
            if before(slot) == Some(*pointer) && self.is_settled(index, pointer) {
                self.inherit(index..index + 1);
                continue;
            }
            wanted.extend(gap.map(Piece::Gap));
            wanted.push(Piece::Cluster(index, *pointer));
        }
        for run in runs(wanted) {
            self.read(run);
            if self.stopped {
                return;
            }
        }
        self.checked(clusters);
    }

    fn is_in(&self, scope: Scope, index: u64) -> bool {
        scope.has(self.geometry().cluster_offset(index))
    }

    /// Whether the baseline's verification has answered for a cluster that is the same there. A packed layer is
    /// read whole, whatever the baseline has.
    fn is_settled(&self, index: u64, pointer: &Pointer) -> bool {
        let read = self
            .task
            .baseline
            .is_some_and(|baseline| self.is_in(baseline.scope, index));
        read && !self.cursors.contains_key(&pointer.place.layer)
    }

    fn read(&mut self, run: Run) {
        self.progress.read_bytes += run.cluster_bytes();
        match &mut self.readers {
            Readers::None => {}
            // Workers leave only after the sender has.
            Readers::Workers(runs) => drop(runs.send(run)),
            Readers::Itself(buffer) => self.problems.extend(run.check(self.task.disk.tree(), buffer)),
        }
        self.report();
    }

    /// Counts a stored piece, and gives the gap, if there is one, before it in a packed layer.
    fn account(&mut self, place: &Place) -> Option<Place> {
        if let Some(referenced) = &mut self.referenced {
            *referenced.entry(place.layer).or_default() += u64::from(place.len);
        }
        let cursor = self.cursors.get_mut(&place.layer)?;
        let from = std::mem::replace(cursor, place.end());
        self.gap(place.layer, from, place.offset)
    }

    fn gap(&mut self, layer: u32, from: u64, to: u64) -> Option<Place> {
        match to.checked_sub(from).map(u32::try_from) {
            Some(Ok(0)) => None,
            // Groups and raw clusters start on blocks: a gap is shorter than one.
            Some(Ok(len @ 1..4096)) => Some(Place {
                layer,
                offset: from,
                len,
            }),
            _ => {
                let error = Error::damaged(format!(
                    "layer {layer:08x}: bytes {from} to {to} are not written in order"
                ));
                self.problems.push(Problem::new(0..0, &error));
                None
            }
        }
    }

    /// What is left behind the last piece of each packed layer.
    fn tails(&mut self) {
        let tree = self.task.disk.tree();
        let mut gaps = std::mem::take(&mut self.gaps);
        for (layer, from) in std::mem::take(&mut self.cursors) {
            if let Ok(entry) = tree.layers().entry(layer) {
                gaps.extend(self.gap(layer, from, entry.len));
            }
        }
        let problems = gaps
            .into_iter()
            .filter_map(|gap| check_alone(tree, &Piece::Gap(gap)));
        self.problems.extend(problems);
    }

    /// Takes over what was found wrong with these clusters in the baseline, which shares them.
    fn inherit(&mut self, clusters: Range<u64>) {
        let Some(Baseline { findings, .. }) = self.task.baseline else {
            return;
        };
        // They are in order and do not overlap, but for those without clusters, which come first.
        let first = findings.partition_point(|finding| finding.clusters.end <= clusters.start);
        for finding in findings[first..]
            .iter()
            .take_while(|finding| finding.clusters.start < clusters.end)
        {
            let shared = finding.clusters.start.max(clusters.start)..finding.clusters.end.min(clusters.end);
            note(&mut self.problems, Problem::of(finding, shared));
        }
    }

    fn checked(&mut self, clusters: &Range<u64>) {
        let geometry = self.geometry();
        self.next = self.next.max(clusters.end);
        let end = geometry.cluster_offset(self.next).min(geometry.size_bytes());
        self.progress.checked_bytes = self.task.scope.bytes_of(end);
        self.report();
    }

    fn report(&mut self) {
        if (self.report)(self.progress).is_break() {
            self.stopped = true;
        }
    }

    /// The problems, in order, with neighbours of the same cause as one.
    pub fn findings(&mut self) -> Vec<Finding> {
        let geometry = self.geometry();
        let (manifest, disk) = (self.task.manifest, self.task.disk);
        let image = format!("{}/{}", manifest.job, manifest.sequence);
        let finding = |problem: Problem| Finding {
            image: image.clone(),
            disk: Some(disk.name().to_owned()),
            offset: geometry.cluster_offset(problem.clusters.start),
            clusters: problem.clusters,
            what: problem.what,
            cause: problem.cause,
        };
        let problems = std::mem::take(&mut self.problems);
        in_order(problems).into_iter().map(finding).collect()
    }
}
