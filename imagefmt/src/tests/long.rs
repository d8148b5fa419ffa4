//! A layer that reaches its greatest length, without the bytes.

use super::support::*;
use crate::format::layer::{LAYER_LEN_MAX, LayerFiles, LayerIdentity, LayerWriter};
use crate::read::cache::{Caches, ChainFiles};
use crate::storage::memory::MemoryStorage;
use crate::storage::{LayerAppend, LayerRead, Lock, LockMode, Storage};
use crate::write::builder::Builder;
use crate::write::known::Suspects;
use crate::write::new_layers::LayerSource;
use crate::{ClusterSize, ClusterUpdate, Codec, Digest, Geometry, Result, Uuid};
use std::ops::Range;
use std::sync::Arc;

/// Forgets what is appended to layers.
#[derive(Debug, Default)]
struct Forgetful(MemoryStorage);

#[derive(Debug)]
struct Nowhere;

impl LayerAppend for Nowhere {
    fn append(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Storage for Forgetful {
    fn read(&self, path: &str, max_len: u64) -> Result<Vec<u8>> {
        self.0.read(path, max_len)
    }
    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.0.list(dir)
    }
    fn create_dir(&self, dir: &str) -> Result<()> {
        self.0.create_dir(dir)
    }
    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.0.write(path, bytes)
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &str) -> Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.0.sync_dir(dir)
    }
    fn open_layer(&self, path: &str) -> Result<Box<dyn LayerRead>> {
        self.0.open_layer(path)
    }
    fn create_layer(&self, _path: &str) -> Result<Box<dyn LayerAppend>> {
        Ok(Box::new(Nowhere))
    }
    fn reclaim(&self, path: &str, dead: &[Range<u64>]) -> Result<()> {
        self.0.reclaim(path, dead)
    }
    fn allocated(&self, path: &str) -> Result<u64> {
        self.0.allocated(path)
    }
    fn lock(&self, path: &str, mode: LockMode) -> Result<Lock> {
        self.0.lock(path, mode)
    }
    fn holders(&self, path: &str) -> Vec<String> {
        self.0.holders(path)
    }
}

#[derive(Debug)]
struct Numbered {
    storage: Forgetful,
    next: u32,
}

impl LayerSource for Numbered {
    fn create(&mut self) -> Result<LayerWriter> {
        let layer = self.next;
        self.next += 1;
        let (chain, uuid) = (Uuid::random()?, Uuid::random()?);
        let identity = LayerIdentity {
            chain,
            uuid,
            layer,
            cluster_size: ClusterSize::K256,
        };
        LayerWriter::create(&self.storage, "job", identity)
    }
}

#[test]
fn a_layer_of_16_gib_is_continued_in_a_new_one() {
    let geometry = Geometry::new(40 << 30, ClusterSize::K256).unwrap();
    let source = Numbered {
        storage: Forgetful::default(),
        next: 1,
    };
    let layers = LayerFiles::new(Arc::new(MemoryStorage::default()), "job");
    let files = Arc::new(ChainFiles::new(layers, Arc::new(Caches::new(1 << 20))));
    let mut builder = Builder::new(geometry, None, Suspects::default(), files, Box::new(source)).unwrap();
    let plain = random_bytes(1, 256 << 10);
    for index in 0..geometry.cluster_count() {
        let update = ClusterUpdate {
            index,
            digest: Digest([1; 32]),
            codec: Codec::Raw,
            stored: &plain,
        };
        builder.push(&update).unwrap();
    }
    let built = builder.finish().unwrap();
    assert_eq!(built.packed, [1, 2, 3]);
    let lengths: Vec<u64> = built.layers.iter().map(|(_, entry)| entry.len).collect();
    // A group is 64 MiB of clusters and their leaf; nodes above it follow.
    let longest = LAYER_LEN_MAX + (64 << 20) + (1 << 20);
    assert!(
        lengths[..2]
            .iter()
            .all(|len| (LAYER_LEN_MAX..longest).contains(len)),
        "{lengths:?}"
    );
    assert_eq!(lengths.iter().sum::<u64>(), built.stats.stored_bytes);
    assert_eq!(built.stats.dirty_bytes, 40 << 30);
}
