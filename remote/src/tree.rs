//! The digests of one disk, as the source knows them: those of what the target has, checked, and those of what it is about to have.

use crate::error::{Error, Result};
use crate::link::{Link, LinkWait};
use imagefmt::{Base, ClusterSize, Digest, Digests, Geometry, leaf_digest, root_digest};
use lru::LruCache;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::digests::{DIGESTS_MAX, Digests as Answer, Known, Level, Want};
use wire::message::BaseOf;

/// Clusters of a leaf.
pub(crate) const LEAF: u64 = 256;

/// Leaves whose digests are asked for before they are needed: at 100 ms to the target, 5 GiB of disk a second.
const AHEAD: usize = 32;

/// Leaves whose digests are kept: those that were asked for ahead, and those that all threads are at work on.
const KEPT: NonZeroUsize = match NonZeroUsize::new(128) {
    Some(kept) => kept,
    None => NonZeroUsize::MIN,
};

/// Digests of a leaf's clusters.
type Leaf = Arc<Vec<Known>>;

/// What a disk is compared with: a tree of the target, whose digests come as they are needed and are checked against its root.
pub(crate) struct RemoteBase {
    link: Arc<Link>,
    wait: Arc<dyn LinkWait>,
    disk: u32,
    /// Of what the target has; the disk may have grown since.
    geometry: Geometry,
    leaves: Vec<Known>,
    cache: Mutex<Cache>,
    /// Who waits for an answer: others that need the same leaf find it in the cache then. What comes behind was asked for by then.
    turn: Mutex<()>,
}

struct Cache {
    kept: LruCache<u64, Leaf>,
    /// Leaves that were asked for, and the questions' numbers.
    asked: HashMap<u64, u64>,
    /// Leaves that will be needed, in that order.
    expected: VecDeque<u64>,
}

impl fmt::Debug for RemoteBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBase")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl RemoteBase {
    /// The base that the target has named; its leaves are asked for and checked now. `None` where everything is compared with zeros.
    ///
    /// # Errors
    /// `Untrue` where the digests do not belong to the root; those of the link.
    pub(crate) fn open(
        link: &Arc<Link>,
        wait: &Arc<dyn LinkWait>,
        disk: u32,
        cluster_size: ClusterSize,
        base: &BaseOf,
    ) -> Result<Option<RemoteBase>> {
        let (Some(size_bytes), Some(root)) = (base.size_bytes, base.root) else {
            return Ok(None);
        };
        let geometry =
            Geometry::new(size_bytes, cluster_size).map_err(|error| Error::untrue(error.to_string()))?;
        let leaves = read_leaves(link, &**wait, disk, geometry)?;
        check_root(geometry, &leaves, Digest(root.0))?;
        Ok(Some(RemoteBase::of_leaves(link, wait, disk, geometry, leaves)))
    }

    /// A base whose leaves are known: what was sent, and the target has.
    pub(crate) fn sent(link: &Arc<Link>, wait: &Arc<dyn LinkWait>, disk: u32, tree: &NewTree) -> RemoteBase {
        let known = |digest: &Digest| Known {
            digest: digest.0,
            lost: false,
        };
        let leaves = tree.leaves.iter().map(known).collect();
        RemoteBase::of_leaves(link, wait, disk, tree.geometry, leaves)
    }

    fn of_leaves(
        link: &Arc<Link>,
        wait: &Arc<dyn LinkWait>,
        disk: u32,
        geometry: Geometry,
        leaves: Vec<Known>,
    ) -> RemoteBase {
        RemoteBase {
            link: link.clone(),
            wait: wait.clone(),
            disk,
            geometry,
            leaves,
            cache: Mutex::new(Cache {
                kept: LruCache::new(KEPT),
                asked: HashMap::new(),
                expected: VecDeque::new(),
            }),
            turn: Mutex::new(()),
        }
    }

    /// The digests of all leaves, as the target has them.
    pub(crate) fn leaf_digests(&self) -> Vec<Digest> {
        self.leaves.iter().map(|known| Digest(known.digest)).collect()
    }

    /// The digests of one leaf's clusters.
    pub(crate) fn leaf(&self, index: u64) -> Result<Leaf> {
        let clusters = self.clusters_of(index);
        let Some(known) = usize::try_from(index).ok().and_then(|at| self.leaves.get(at)) else {
            return Ok(Arc::new(Vec::new()));
        };
        if known.lost {
            let lost = Known {
                lost: true,
                ..Known::NULL
            };
            return Ok(Arc::new(vec![lost; length(&clusters)]));
        }
        if known.digest == Known::NULL.digest {
            return Ok(Arc::new(vec![Known::NULL; length(&clusters)]));
        }
        if let Some(leaf) = self.cache().kept.get(&index) {
            return Ok(leaf.clone());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let number = {
            let mut cache = self.cache();
            if let Some(leaf) = cache.kept.get(&index) {
                return Ok(leaf.clone());
            }
            self.ask_ahead(&mut cache, index);
            match cache.asked.remove(&index) {
                Some(number) => number,
                None => self.link.want(self.want(index)),
            }
        };
        let answer = self.link.digests(number, &*self.wait)?;
        let leaf = Arc::new(self.checked(index, answer)?);
        self.cache().kept.put(index, leaf.clone());
        Ok(leaf)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clusters_of(&self, leaf: u64) -> Range<u64> {
        let first = leaf.saturating_mul(LEAF).min(self.geometry.cluster_count());
        first..first.saturating_add(LEAF).min(self.geometry.cluster_count())
    }

    fn want(&self, leaf: u64) -> Want {
        let clusters = self.clusters_of(leaf);
        Want {
            disk: self.disk,
            level: Level::Clusters,
            first: clusters.start,
            // At most 256.
            count: u32::try_from(clusters.end - clusters.start).unwrap_or(DIGESTS_MAX),
        }
    }

    /// Asks for the leaves that come behind this one.
    fn ask_ahead(&self, cache: &mut Cache, index: u64) {
        if let Ok(at) = cache.expected.binary_search(&index) {
            cache.expected.drain(..=at);
        }
        while cache.asked.len() < AHEAD {
            let Some(next) = cache.expected.pop_front() else {
                break;
            };
            let known = usize::try_from(next).ok().and_then(|at| self.leaves.get(at));
            let is_stored = known.is_some_and(|known| !known.lost && known.digest != Known::NULL.digest);
            if is_stored && !cache.kept.contains(&next) && !cache.asked.contains_key(&next) {
                cache.asked.insert(next, self.link.want(self.want(next)));
            }
        }
    }

    /// The digests of an answer, if they are those that the leaf's digest is of.
    fn checked(&self, index: u64, answer: Answer) -> Result<Vec<Known>> {
        let unread = answer
            .known
            .iter()
            .any(|known| known.lost && known.digest == Known::NULL.digest);
        let digests: Vec<Digest> = answer.known.iter().map(|known| Digest(known.digest)).collect();
        let expected = usize::try_from(index).ok().and_then(|at| self.leaves.get(at));
        let is_right = expected.is_some_and(|known| known.digest == leaf_digest(&digests).0);
        // A leaf that the target cannot read is stored anew as a whole.
        if is_right || unread && answer.known.iter().all(|known| known.lost) {
            return Ok(answer.known);
        }
        Err(Error::untrue(format!(
            "the digests of clusters {} to {} that the target sends are not those of its own tree",
            index * LEAF,
            index * LEAF + LEAF - 1
        )))
    }
}

impl Digests for RemoteBase {
    fn digests(&self, clusters: Range<u64>) -> imagefmt::Result<Vec<Option<Digest>>> {
        let mut found = Vec::with_capacity(length(&clusters));
        let mut next = clusters.start;
        while next < clusters.end {
            let (index, end) = (next / LEAF, ((next / LEAF + 1) * LEAF).min(clusters.end));
            let leaf = self.leaf(index)?;
            found.extend((next..end).map(|cluster| {
                let known = usize::try_from(cluster % LEAF).ok().and_then(|at| leaf.get(at));
                let known = known.copied().unwrap_or(Known::NULL);
                (!known.lost).then_some(Digest(known.digest))
            }));
            next = end;
        }
        Ok(found)
    }

    fn expect(&self, clusters: &mut dyn Iterator<Item = Range<u64>>) {
        let mut cache = self.cache();
        cache.expected.clear();
        for range in clusters.filter(|range| !range.is_empty()) {
            let leaves = range.start / LEAF..=(range.end - 1) / LEAF;
            let last = cache.expected.back().copied();
            cache.expected.extend(leaves.filter(|leaf| Some(*leaf) != last));
        }
    }
}

fn length(clusters: &Range<u64>) -> usize {
    usize::try_from(clusters.end.saturating_sub(clusters.start)).unwrap_or(0)
}

/// Questions for leaves that are under way at once.
const LEAF_QUESTIONS: usize = 16;

/// Asks for the digests of all leaves.
fn read_leaves(link: &Link, wait: &dyn LinkWait, disk: u32, geometry: Geometry) -> Result<Vec<Known>> {
    let (mut asked, mut next) = (VecDeque::new(), 0);
    let mut leaves = Vec::new();
    while next < geometry.leaf_count() {
        if asked.len() >= LEAF_QUESTIONS
            && let Some(number) = asked.pop_front()
        {
            leaves.extend(link.digests(number, wait)?.known);
        }
        let count = u32::try_from(geometry.leaf_count() - next)
            .unwrap_or(DIGESTS_MAX)
            .min(DIGESTS_MAX);
        asked.push_back(link.want(Want {
            disk,
            level: Level::Leaves,
            first: next,
            count,
        }));
        next += u64::from(count);
    }
    for number in asked {
        leaves.extend(link.digests(number, wait)?.known);
    }
    Ok(leaves)
}

/// Checks leaves against the root that they are said to have. Where the target cannot read all of them, that cannot be done.
fn check_root(geometry: Geometry, leaves: &[Known], root: Digest) -> Result<()> {
    if leaves.iter().any(|leaf| leaf.lost) {
        return Ok(());
    }
    let digests: Vec<Digest> = leaves.iter().map(|leaf| Digest(leaf.digest)).collect();
    if root_digest(geometry, &digests) == root {
        return Ok(());
    }
    Err(Error::untrue(
        "the digests that the target sends do not belong to the root that it names",
    ))
}

/// The tree that a disk is about to have: the leaves' digests of what it is compared with, and of what was sent since.
#[derive(Debug)]
pub(crate) struct NewTree {
    geometry: Geometry,
    leaves: Vec<Digest>,
    /// The leaf that clusters are coming for.
    open: Option<(u64, Vec<Digest>)>,
}

impl NewTree {
    pub(crate) fn new(geometry: Geometry, base: Option<&RemoteBase>) -> NewTree {
        let mut leaves = base.map(RemoteBase::leaf_digests).unwrap_or_default();
        leaves.resize(
            usize::try_from(geometry.leaf_count()).unwrap_or(usize::MAX),
            Digest::NULL,
        );
        NewTree {
            geometry,
            leaves,
            open: None,
        }
    }

    /// Takes a cluster's new digest.
    pub(crate) fn set(&mut self, base: Option<&RemoteBase>, cluster: u64, digest: Digest) -> Result<()> {
        let leaf = cluster / LEAF;
        if self.open.as_ref().is_none_or(|(open, _)| *open != leaf) {
            self.close();
            let mut digests = match base {
                Some(base) => base
                    .leaf(leaf)?
                    .iter()
                    .map(|known| Digest(known.digest))
                    .collect(),
                None => Vec::new(),
            };
            digests.resize(256, Digest::NULL);
            self.open = Some((leaf, digests));
        }
        if let Some((_, digests)) = &mut self.open
            && let Some(place) = usize::try_from(cluster % LEAF)
                .ok()
                .and_then(|at| digests.get_mut(at))
        {
            *place = digest;
        }
        Ok(())
    }

    /// No more clusters come in this pass.
    pub(crate) fn close(&mut self) {
        if let Some((leaf, digests)) = self.open.take()
            && let Some(place) = usize::try_from(leaf).ok().and_then(|at| self.leaves.get_mut(at))
        {
            *place = leaf_digest(&digests);
        }
    }

    /// Digest of the root.
    pub(crate) fn root(&self) -> Digest {
        root_digest(self.geometry, &self.leaves)
    }
}

/// A base as a pass takes it.
pub(crate) fn as_base(base: &Arc<RemoteBase>) -> Base {
    let digests: Arc<dyn Digests> = base.clone();
    Base::from(digests)
}
