//! A naive model of a disk: its clusters that hold something, as plain bytes. Everything that the format
//! says about a disk is computed here a second time, by the document's words and without the crate's code.

use crate::{ClusterSize, Extent};
use std::collections::{BTreeMap, BTreeSet};

/// A disk as plain bytes, sparse so that one of a terabyte fits too.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub size: u64,
    pub cluster_size: ClusterSize,
    /// Clusters with a byte other than zero, at their true length.
    clusters: BTreeMap<u64, Vec<u8>>,
}

impl Model {
    pub fn new(size: u64, cluster_size: ClusterSize) -> Self {
        Self {
            size,
            cluster_size,
            clusters: BTreeMap::new(),
        }
    }

    fn step(&self) -> u64 {
        u64::from(self.cluster_size.bytes())
    }

    pub fn cluster_count(&self) -> u64 {
        self.size.div_ceil(self.step())
    }

    pub fn cluster_len(&self, index: u64) -> usize {
        (self.size - index * self.step()).min(self.step()) as usize
    }

    pub fn get(&self, index: u64) -> Vec<u8> {
        self.clusters
            .get(&index)
            .cloned()
            .unwrap_or_else(|| vec![0; self.cluster_len(index)])
    }

    pub fn set(&mut self, index: u64, bytes: Vec<u8>) {
        assert_eq!(bytes.len(), self.cluster_len(index));
        if bytes.iter().all(|&byte| byte == 0) {
            self.clusters.remove(&index);
        } else {
            self.clusters.insert(index, bytes);
        }
    }

    /// Indices of the clusters that hold something.
    pub fn data(&self) -> impl Iterator<Item = u64> {
        self.clusters.keys().copied()
    }

    /// Makes the disk longer; what is new reads as zeros.
    pub fn grow(&mut self, size: u64) {
        assert!(size >= self.size);
        self.size = size;
        if let Some((&last, _)) = self.clusters.last_key_value() {
            let len = self.cluster_len(last);
            self.clusters.entry(last).and_modify(|bytes| bytes.resize(len, 0));
        }
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let end = offset + len as u64;
        for (&index, cluster) in self.clusters.range(offset / self.step()..) {
            let start = index * self.step();
            if start >= end {
                break;
            }
            let from = start.max(offset);
            let to = (start + cluster.len() as u64).min(end);
            if from < to {
                bytes[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&cluster[(from - start) as usize..(to - start) as usize]);
            }
        }
        bytes
    }

    /// Clusters whose bytes differ between the two; beyond an end there are zeros.
    pub fn diff(&self, other: &Self) -> Vec<u64> {
        let all: BTreeSet<u64> = self.data().chain(other.data()).collect();
        all.into_iter()
            .filter(|index| self.clusters.get(index) != other.clusters.get(index))
            .collect()
    }

    /// The map of `range`, clipped to it: alternating extents that cover it.
    pub fn extents(&self, offset: u64, length: u64) -> Vec<Extent> {
        let end = offset.saturating_add(length).min(self.size);
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        let mut put = |to: u64, data: bool| {
            let to = to.min(end);
            if to > at {
                match extents.last_mut() {
                    Some(last) if last.data == data => last.length += to - at,
                    _ => extents.push(Extent {
                        offset: at,
                        length: to - at,
                        data,
                    }),
                }
                at = to;
            }
        };
        for index in self.data() {
            put(index * self.step(), false);
            put(((index + 1) * self.step()).min(self.size), true);
        }
        put(end, false);
        extents
    }

    /// The digest as docs/format.md defines it, top down.
    pub fn digest(&self) -> String {
        let mut height = 1;
        while 256u128.pow(height) < u128::from(self.cluster_count()) {
            height += 1;
        }
        let root = self.node(height - 1, 0);
        let text = [
            &self.size.to_le_bytes()[..],
            &self.cluster_size.bytes().to_le_bytes(),
            &root,
        ]
        .concat();
        let digest = blake3::derive_key("smc 2026-11 disk digest", &text);
        format!("smc1-{}k:{}", self.step() / 1024, hex::encode(digest))
    }

    fn node(&self, level: u32, index: u64) -> [u8; 32] {
        let below = 256u128.pow(level + 1);
        let bound = |index: u128| u64::try_from(index * below).unwrap_or(u64::MAX);
        if self
            .clusters
            .range(bound(index.into())..bound(u128::from(index) + 1))
            .next()
            .is_none()
        {
            return [0; 32];
        }
        let children = (index * 256..index * 256 + 256).flat_map(|child| {
            if level == 0 {
                self.cluster_digest(child)
            } else {
                self.node(level - 1, child)
            }
        });
        blake3::derive_key("smc 2026-11 node digest", &children.collect::<Vec<u8>>())
    }

    fn cluster_digest(&self, index: u64) -> [u8; 32] {
        let digest = |bytes| blake3::derive_key("smc 2026-11 cluster digest", bytes);
        self.clusters.get(&index).map_or([0; 32], |bytes| digest(bytes))
    }
}
