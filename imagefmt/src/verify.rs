//! Reads everything that an image holds and says what is not as it was written.

use crate::error::{Error, Result};
use crate::geometry::{Geometry, child_index};
use crate::image::{Disk, Image};
use crate::layer::HEADER_LEN;
use crate::manifest::Manifest;
use crate::node::{Node, NodeId};
use crate::pointer::{Place, Pointer};
use crate::tree::Tree;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The image, as people write it: `web01/7`.
    pub image: String,
    /// The disk, where one is concerned.
    pub disk: Option<String>,
    /// The clusters that cannot be read because of it; empty where content is not concerned.
    pub clusters: Range<u64>,
    /// Byte offset of the first of them on the disk.
    pub offset: u64,
    /// What is wrong, and where it is stored; of several clusters, the first one's.
    pub what: String,
    /// What is wrong, without where.
    pub cause: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.image)?;
        if let Some(disk) = &self.disk {
            write!(f, ":{disk}")?;
        }
        match self.clusters.end - self.clusters.start {
            0 => {}
            1 => write!(f, " cluster {} (byte {})", self.clusters.start, self.offset)?,
            _ => write!(
                f,
                " clusters {}-{} (from byte {})",
                self.clusters.start,
                self.clusters.end - 1,
                self.offset
            )?,
        }
        write!(f, ": {}", self.what)
    }
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes of the disks' content that were looked at, zeros included.
    pub checked_bytes: u64,
    /// Stored bytes that were read for it.
    pub read_bytes: u64,
}

/// Verifies images one after another. What two images share is read once.
#[derive(Debug, Default)]
pub struct Verifier {
    /// The image of each chain and disk that was verified last, and what was wrong with it.
    baselines: HashMap<(String, String), (Disk, Vec<Finding>)>,
}

impl Verifier {
    /// A verifier that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Verifies every disk of an image and returns what is wrong; nothing is a good image.
    ///
    /// Checked are: each layer's header, each node's place and digest, each cluster's digest, that digests
    /// and sizes of the disks follow from their roots, and that what no pointer covers is zero.
    pub fn verify(&mut self, image: &Image, progress: &dyn Fn(VerifyProgress)) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut seen = VerifyProgress::default();
        for disk in image.disks() {
            let key = (image.chain().to_owned(), disk.name().to_owned());
            let baseline = self
                .baselines
                .get(&key)
                .map(|(disk, findings)| (disk.tree(), findings.as_slice()));
            let report = |now: VerifyProgress| {
                progress(VerifyProgress {
                    checked_bytes: seen.checked_bytes + now.checked_bytes,
                    read_bytes: seen.read_bytes + now.read_bytes,
                });
            };
            let (found, done) = verify_disk(image, disk, baseline, &report);
            seen.checked_bytes += done.checked_bytes;
            seen.read_bytes += done.read_bytes;
            findings.extend(found.iter().cloned());
            self.baselines.insert(key, (disk.clone(), found));
        }
        findings
    }
}

/// Leaves that wait for a worker.
const LEAVES_QUEUED_MAX: usize = 16;

fn verify_disk(
    image: &Image,
    disk: &Disk,
    baseline: Option<(&Tree, &[Finding])>,
    progress: &dyn Fn(VerifyProgress),
) -> (Vec<Finding>, VerifyProgress) {
    let leaves_in_all = usize::try_from(disk.geometry().leaf_count()).unwrap_or(usize::MAX);
    let workers = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(leaves_in_all);
    let (leaf_sender, leaves) = sync_channel::<Leaf>(LEAVES_QUEUED_MAX);
    let (result_sender, results) = channel::<Vec<Problem>>();
    let leaves = Arc::new(Mutex::new(leaves));
    let mut walk = Walk::new(image.manifest(), disk, baseline, leaf_sender, progress);
    thread::scope(|scope| {
        for _ in 0..workers {
            let (leaves, results) = (leaves.clone(), result_sender.clone());
            scope.spawn(move || work(disk.tree(), &leaves, &results));
        }
        drop((leaves, result_sender));
        walk.run();
        walk.leaves = None;
    });
    walk.problems.extend(results.into_iter().flatten());
    let findings = walk.findings();
    progress(walk.progress);
    (findings, walk.progress)
}

/// Something wrong with some clusters; with none where content is not concerned.
#[derive(Debug, Clone)]
struct Problem {
    clusters: Range<u64>,
    cause: String,
    what: String,
}

impl Problem {
    fn new(clusters: Range<u64>, error: &Error) -> Self {
        Self {
            clusters,
            cause: error.cause().to_owned(),
            what: told(error),
        }
    }

    /// Takes in a neighbour of the same cause.
    fn absorbs(&mut self, next: &Self) -> bool {
        let same = self.cause == next.cause && self.clusters.end >= next.clusters.start;
        // What concerns no cluster is told one by one.
        let both = !self.clusters.is_empty() && !next.clusters.is_empty();
        if same && both {
            self.clusters.end = self.clusters.end.max(next.clusters.end);
        }
        same && (both || self.what == next.what)
    }
}

/// A leaf whose clusters are to be read, and the gaps between them that must be zero.
struct Leaf {
    clusters: Vec<(u64, Pointer)>,
    gaps: Vec<Place>,
}

fn work(tree: &Tree, leaves: &Mutex<Receiver<Leaf>>, results: &Sender<Vec<Problem>>) {
    loop {
        let leaf = leaves.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(leaf) = leaf else { return };
        let mut problems = Vec::new();
        for (index, pointer) in &leaf.clusters {
            if let Err(error) = tree.read_cluster(*index, pointer) {
                note(&mut problems, Problem::new(*index..*index + 1, &error));
            }
        }
        for gap in &leaf.gaps {
            if let Err(error) = check_gap(tree, gap) {
                problems.push(Problem::new(0..0, &error));
            }
        }
        if results.send(problems).is_err() {
            return;
        }
    }
}

/// Adds a problem, or widens the one before it: a layer that is gone hurts millions of clusters alike.
fn note(problems: &mut Vec<Problem>, problem: Problem) {
    if !problems.last_mut().is_some_and(|last| last.absorbs(&problem)) {
        problems.push(problem);
    }
}

/// An error with its causes, on one line.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Checks that bytes which nothing points to are zero.
fn check_gap(tree: &Tree, gap: &Place) -> Result<()> {
    let mut bytes = vec![0; gap.len as usize];
    tree.read_stored(gap.layer, gap.offset, &mut bytes)?;
    match bytes.iter().position(|&byte| byte != 0) {
        None => Ok(()),
        Some(at) => {
            let (layer, offset) = (gap.layer, gap.offset + at as u64);
            Err(Error::damaged(format!(
                "layer {layer:08x}, byte {offset}: padding is not zero"
            )))
        }
    }
}

/// The descent through one disk's tree, in the order in which its sync wrote it.
struct Walk<'a> {
    disk: &'a Disk,
    image: String,
    baseline: Option<(&'a Tree, &'a [Finding])>,
    leaves: Option<SyncSender<Leaf>>,
    report: &'a dyn Fn(VerifyProgress),
    progress: VerifyProgress,
    problems: Vec<Problem>,
    /// For each packed layer: up to where it is accounted for.
    cursors: BTreeMap<u32, u64>,
    gaps: Vec<Place>,
    /// Bytes pointed to in each layer; unknown once a node could not be read.
    referenced: Option<BTreeMap<u32, u64>>,
}

impl<'a> Walk<'a> {
    fn new(
        manifest: &Manifest,
        disk: &'a Disk,
        baseline: Option<(&'a Tree, &'a [Finding])>,
        leaves: SyncSender<Leaf>,
        report: &'a dyn Fn(VerifyProgress),
    ) -> Self {
        let own = manifest
            .layers
            .iter()
            .filter(|layer| layer.packed && layer.disk == disk.name());
        Self {
            disk,
            image: format!("{}/{}", manifest.job, manifest.sequence),
            baseline: baseline.filter(|(tree, _)| tree.geometry() == disk.geometry()),
            leaves: Some(leaves),
            report,
            progress: VerifyProgress::default(),
            problems: Vec::new(),
            cursors: own.map(|layer| (layer.id, HEADER_LEN as u64)).collect(),
            gaps: Vec::new(),
            referenced: Some(BTreeMap::new()),
        }
    }

    fn run(&mut self) {
        let tree = self.disk.tree();
        for (id, _) in tree.layers().iter() {
            if let Err(error) = tree.check_layer_header(id) {
                self.problems.push(Problem::new(0..0, &error));
            }
        }
        let before = self.baseline.map(|(tree, _)| tree.root());
        self.node(tree.root_id(), &tree.root(), before);
        self.tails();
        self.counts();
    }

    /// Compares what is pointed to in each layer with what the manifest says: the next sync relies on it.
    fn counts(&mut self) {
        let Some(mut referenced) = self.referenced.take() else {
            return;
        };
        let disk = self.disk;
        for (id, entry) in disk.tree().layers().iter() {
            let found = referenced.remove(&id).unwrap_or(0);
            if found != entry.referenced {
                let error = Error::damaged(format!(
                    "the manifest counts {} bytes in layer {id:08x}, but {found} are pointed to",
                    entry.referenced
                ));
                self.problems.push(Problem::new(0..0, &error));
            }
        }
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    /// Verifies a subtree; `before` is the pointer that the baseline has in its place.
    ///
    /// Nodes are read even where the baseline has the same ones: it may list layers that this image does not.
    fn node(&mut self, id: NodeId, pointer: &Pointer, before: Option<Pointer>) {
        let clusters = self.geometry().clusters_of(id.level, id.index);
        if pointer.is_null() {
            self.checked(&clusters);
            return;
        }
        let node = match self.disk.tree().load_uncached(id, pointer) {
            Ok(node) => node,
            Err(error) => return self.lost(clusters, &error),
        };
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
        self.account(&pointer.place);
        self.progress.read_bytes += u64::from(pointer.place.len);
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
        let (tree, _) = self.baseline?;
        if before? == *pointer {
            Some(node.clone())
        } else {
            tree.load(id, &before?).ok()
        }
    }

    fn leaf(
        &mut self,
        clusters: &Range<u64>,
        children: &[Pointer],
        before: impl Fn(usize) -> Option<Pointer>,
    ) {
        let mut wanted = Vec::new();
        for (slot, (index, pointer)) in clusters.clone().zip(children).enumerate() {
            if pointer.is_null() {
                continue;
            }
            self.account(&pointer.place);
            // A packed layer is read whole, whatever the baseline has.
            if before(slot) == Some(*pointer) && !self.cursors.contains_key(&pointer.place.layer) {
                self.inherit(&(index..index + 1));
                continue;
            }
            self.progress.read_bytes += u64::from(pointer.place.len);
            wanted.push((index, *pointer));
        }
        let leaf = Leaf {
            clusters: wanted,
            gaps: std::mem::take(&mut self.gaps),
        };
        if let Some(leaves) = &self.leaves {
            // Workers leave only after the sender has.
            let _ = leaves.send(leaf);
        }
        self.checked(clusters);
    }

    /// Counts a stored piece, and notes the gap, if there is one, before it in a packed layer.
    fn account(&mut self, place: &Place) {
        if let Some(referenced) = &mut self.referenced {
            *referenced.entry(place.layer).or_default() += u64::from(place.len);
        }
        if let Some(cursor) = self.cursors.get_mut(&place.layer) {
            let from = std::mem::replace(cursor, place.end());
            self.gap(place.layer, from, place.offset);
        }
    }

    fn gap(&mut self, layer: u32, from: u64, to: u64) {
        match to.checked_sub(from).map(u32::try_from) {
            Some(Ok(0)) => {}
            // Groups and raw clusters start on blocks: a gap is shorter than one.
            Some(Ok(len @ 1..4096)) => self.gaps.push(Place {
                layer,
                offset: from,
                len,
            }),
            _ => {
                let error = Error::damaged(format!(
                    "layer {layer:08x}: bytes {from} to {to} are not written in order"
                ));
                self.problems.push(Problem::new(0..0, &error));
            }
        }
    }

    /// What is left behind the last piece of each packed layer.
    fn tails(&mut self) {
        let disk = self.disk;
        for (layer, from) in std::mem::take(&mut self.cursors) {
            if let Ok(entry) = disk.tree().layers().entry(layer) {
                self.gap(layer, from, entry.len);
            }
        }
        for gap in std::mem::take(&mut self.gaps) {
            if let Err(error) = check_gap(disk.tree(), &gap) {
                self.problems.push(Problem::new(0..0, &error));
            }
        }
    }

    /// Takes over what was found wrong with these clusters in the baseline, which shares them.
    fn inherit(&mut self, clusters: &Range<u64>) {
        let Some((_, findings)) = self.baseline else {
            return;
        };
        // They are in order and do not overlap, but for those without clusters, which come first.
        let first = findings.partition_point(|finding| finding.clusters.end <= clusters.start);
        for finding in findings[first..]
            .iter()
            .take_while(|finding| finding.clusters.start < clusters.end)
        {
            let shared = finding.clusters.start.max(clusters.start)..finding.clusters.end.min(clusters.end);
            let (cause, what) = (finding.cause.clone(), finding.what.clone());
            note(
                &mut self.problems,
                Problem {
                    clusters: shared,
                    cause,
                    what,
                },
            );
        }
    }

    fn checked(&mut self, clusters: &Range<u64>) {
        let geometry = self.geometry();
        let end = geometry.cluster_offset(clusters.end).min(geometry.size_bytes());
        self.progress.checked_bytes += end.saturating_sub(geometry.cluster_offset(clusters.start));
        (self.report)(self.progress);
    }

    /// The problems, in order, with neighbours of the same cause as one.
    fn findings(&mut self) -> Vec<Finding> {
        let geometry = self.geometry();
        self.problems
            .sort_by_key(|problem| (problem.clusters.start, problem.clusters.end));
        let mut merged = Vec::new();
        self.problems
            .drain(..)
            .for_each(|problem| note(&mut merged, problem));
        let finding = |problem: Problem| Finding {
            image: self.image.clone(),
            disk: Some(self.disk.name().to_owned()),
            offset: geometry.cluster_offset(problem.clusters.start),
            clusters: problem.clusters,
            what: problem.what,
            cause: problem.cause,
        };
        merged.into_iter().map(finding).collect()
    }
}
