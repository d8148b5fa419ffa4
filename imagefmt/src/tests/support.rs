//! Stores in memory, and images written into them from models.

use super::model::Model;
use crate::format::pointer::Place;
use crate::storage::memory::MemoryStorage;
use crate::{
    Base, ClusterEncoder, ClusterUpdate, Consistency, Disk, DiskId, DiskIdentity, DiskMeta, Error, Finding,
    Image, ImageWriter, Manifest, Method, Result, Span, Store, Verdict, VerdictState, Verifier, VerifyPlan,
};
use jiff::Timestamp;
use std::ops::ControlFlow;
use std::sync::Arc;

/// To compare lists with.
pub(super) const NOTHING: [&str; 0] = [];

/// An empty store, and the files that it is made of.
pub(super) fn memory_store() -> (MemoryStorage, Store) {
    let storage = MemoryStorage::default();
    let store = Store::create(Arc::new(storage.clone()), "memory").unwrap();
    (storage, store)
}

/// Bytes that look random, the same for the same seed.
pub(super) fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Bytes that compress well, the same for the same seed.
pub(super) fn text_bytes(seed: u64, len: usize) -> Vec<u8> {
    format!("line {seed} of a log file\n")
        .into_bytes()
        .into_iter()
        .cycle()
        .take(len)
        .collect()
}

pub(super) fn names(disks: &[(&str, &Model)]) -> Vec<String> {
    disks.iter().map(|(name, _)| (*name).to_owned()).collect()
}

pub(super) fn meta(name: &str, size_bytes: u64) -> DiskMeta {
    DiskMeta {
        name: name.to_owned(),
        size_bytes,
        logical_block_size: 512,
        identity: DiskIdentity::default(),
    }
}

/// A disk in the only pass over it.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub image: &'a mut ImageWriter,
    pub disk: DiskId,
}

impl Pass<'_> {
    pub fn push(&mut self, update: &ClusterUpdate<'_>) -> Result<()> {
        self.image.push(self.disk, update)
    }

    /// Pushes a cluster, compressed where that is shorter.
    pub fn push_plain(&mut self, index: u64, plain: &[u8]) -> Result<()> {
        let mut encoder = ClusterEncoder::new(1);
        let digest = encoder.digest(plain);
        self.push(&encoder.encode(index, digest, plain))
    }

    pub fn checkpoint(&mut self) -> Result<bool> {
        self.image.checkpoint()
    }

    pub fn base(&self) -> Option<&Base> {
        self.image.base(self.disk)
    }
}

/// Adds a disk and passes over it once: `fill` pushes what changed.
pub(super) fn pass_over<E: From<Error>>(
    image: &mut ImageWriter,
    meta: DiskMeta,
    fill: impl FnOnce(&mut Pass<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let disk = image.disk(meta)?;
    image.begin_pass(disk, Method::Scan, "test")?;
    fill(&mut Pass { image, disk })?;
    Ok(image.end_pass(disk, 0)?)
}

/// Writes one disk: pushes the clusters `pushed` as the model has them.
pub(super) fn write_disk(
    writer: &mut ImageWriter,
    name: &str,
    model: &Model,
    pushed: impl IntoIterator<Item = u64>,
) -> Result<()> {
    pass_over(writer, meta(name, model.size), |pass| {
        pushed
            .into_iter()
            .try_for_each(|index| pass.push_plain(index, &model.get(index)))
    })
}

/// Writes an image of `disks`, pushing every cluster that the disk or its parent has something in.
pub(super) fn write_image(store: &Store, job: &str, disks: &[(&str, &Model)]) -> Result<Manifest> {
    let mut writer = store.begin(job, Some(disks[0].1.cluster_size), &names(disks))?;
    for (name, model) in disks {
        // What the model lacks may have been there before: then it has to be pushed as zeros.
        let count = model.cluster_count().min(4096);
        let sparse = model.data().filter(|&index| index >= count);
        write_disk(&mut writer, name, model, (0..count).chain(sparse))?;
    }
    writer.commit(Consistency::Crash, "test")
}

/// Opens an image by its chain, whichever job made it.
pub(super) fn open_image(store: &Store, chain: &str, sequence: u64) -> Result<Image> {
    store.open_image(&store.image_id(chain, sequence))
}

/// Everything that is wrong with an image.
pub(super) fn verify_all(verifier: &mut Verifier, image: &Image) -> Vec<Finding> {
    verifier
        .verify(image, &VerifyPlan::default(), &mut |_| ControlFlow::Continue(()))
        .findings
}

/// Opens and verifies an image afresh; an image that cannot be opened is found as well.
pub(super) fn findings(store: &Store, job: &str, sequence: u64) -> Vec<String> {
    match open_image(store, job, sequence) {
        Err(error) => vec![format!("{error:?}")],
        Ok(image) => verify_all(&mut Verifier::new(), &image)
            .iter()
            .map(Finding::to_string)
            .collect(),
    }
}

/// The whole disk by one read.
pub(super) fn read_all(disk: &Disk) -> Result<Vec<u8>> {
    let mut bytes = vec![0xaa; disk.size_bytes() as usize];
    disk.read_at(0, &mut bytes).map(|()| bytes)
}

/// Every stored piece that a disk's tree points to: nodes and clusters, in no order.
pub(super) fn places(disk: &Disk) -> Vec<Place> {
    let mut places = Vec::new();
    disk.tree().each_place(&mut |place| places.push(*place)).unwrap();
    places
}

/// The clusters in which a disk differs from what its pass is compared with, or that cannot be read there.
pub(super) fn differing(writer: &ImageWriter, disk: DiskId, model: &Model) -> Vec<u64> {
    let encoder = ClusterEncoder::new(1);
    let count = model.cluster_count();
    let base = writer.base(disk).map(|base| base.digests(0..count).unwrap());
    (0..count)
        .filter(|&index| {
            let digest = encoder.digest(&model.get(index));
            base.as_ref()
                .map_or(!digest.is_null(), |base| base[index as usize] != Some(digest))
        })
        .collect()
}

pub(super) fn push_plain(writer: &mut ImageWriter, disk: DiskId, model: &Model, index: u64) {
    let mut encoder = ClusterEncoder::new(1);
    let plain = model.get(index);
    let digest = encoder.digest(&plain);
    writer.push(disk, &encoder.encode(index, digest, &plain)).unwrap();
}

/// Compares a disk with its base and stores what differs; returns how many clusters that were.
pub(super) fn pass(writer: &mut ImageWriter, disk: DiskId, model: &Model) -> usize {
    writer.begin_pass(disk, Method::Scan, "test").unwrap();
    let differing = differing(writer, disk, model);
    for &index in &differing {
        push_plain(writer, disk, model, index);
    }
    writer.end_pass(disk, model.size).unwrap();
    differing.len()
}

/// A verification that takes no time.
pub(super) fn span() -> Span {
    let now = Timestamp::now();
    Span {
        run: now,
        started: now,
        finished: now,
    }
}

/// Verifies an image, and keeps what was found beside it.
pub(super) fn verify(store: &Store, sequence: u64) -> VerdictState {
    let image = open_image(store, "job", sequence).unwrap();
    let plan = VerifyPlan::default();
    let verified = Verifier::new().verify(&image, &plan, &mut |_| ControlFlow::Continue(()));
    let sizes: Vec<u64> = image.disks().iter().map(Disk::size_bytes).collect();
    let mut verdict = known(store, &image).unwrap_or_else(|| Verdict::new(image.manifest()));
    verdict.add(&plan, span(), &sizes, &verified);
    store.keep_verdict(&image, &verdict).unwrap();
    verdict.state()
}

pub(super) fn known(store: &Store, image: &Image) -> Option<Verdict> {
    // One that is damaged is replaced.
    store.verdict(image.id(), image.manifest()).ok().flatten()
}

/// Changes a byte in the middle of what is stored at a place of the chain `job`.
pub(super) fn flip_stored(storage: &MemoryStorage, place: &Place) {
    let path = format!("job/layers/{:08x}.layer", place.layer);
    let at = place.offset as usize + place.len as usize / 2;
    storage.files.lock().unwrap().get_mut(&path).unwrap()[at] ^= 4;
}
