//! What a chain remembers for its next writer: which numbers were never used, and whose the chain is.

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::geometry::ClusterSize;
use crate::format::id::Uuid;
use crate::format::manifest::Manifest;
use crate::format::name::check_name;
use crate::format::owner::Owner;
use crate::format::sealed::{self, Features, Sealed};
use crate::storage::Storage;
use crate::storage::paths::{chain_path, image_file, images_dir, layer_of, layers_dir};
use crate::store::Store;
use crate::store::request::WriteRequest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What helps against a record of a chain that is damaged or cannot be read.
const MAKE_ANEW: &str = "remove the file, and the next sync makes it anew from the images";
/// What helps first against a medium that fails.
pub(crate) const CHECK_DISK: &str = "check the disk that the store is on";

/// chain.json. Readers do not need it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ChainRecord {
    format: u32,
    #[serde(default, deserialize_with = "sealed::words")]
    incompatible: Vec<String>,
    #[serde(default, deserialize_with = "sealed::words")]
    compatible: Vec<String>,
    pub id: Uuid,
    cluster_size: u32,
    pub disks: Vec<String>,
    pub next_sequence: u64,
    pub next_layer: u32,
    /// Who may write to the chain; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// A chain as its next writer finds it.
#[derive(Debug)]
pub(crate) struct Found {
    pub record: ChainRecord,
    /// Whether there is an unfinished first sync that this writer cannot resume.
    pub unfit: bool,
}

sealed::sealed_record!(ChainRecord);

impl ChainRecord {
    /// The record of a chain; a new one where there is none; made anew from the images where it was lost.
    ///
    /// The caller holds the chain's writer lock, or only wants to know what a writer would find.
    ///
    /// # Errors
    /// When the chain cannot be read; `Damaged` when its record or every image is.
    pub fn load(store: &Store, chain: &str, request: &WriteRequest) -> Result<Found> {
        let newest = newest_manifest(store, chain);
        let listed = newest.as_ref().ok().and_then(Option::clone);
        let kept = Self::read(store, chain)?;
        if kept.is_none() {
            // The process that created the directories may not have lived to make their names durable.
            store.storage().sync_dir(chain)?;
            store.storage().sync_dir("")?;
        }
        let mut found = match (kept, newest) {
            // The caller finds out what is damaged: the record says all that it is asked for.
            (Some(record), Err(error)) if error.kind() == ErrorKind::Damaged => Found::fit(record),
            (None, Err(error)) if error.kind() == ErrorKind::Damaged => {
                return Err(error.within(
                    "chain.json is missing and every image is damaged: put a copy of chain.json back, or delete the images",
                ));
            }
            (_, Err(error)) => return Err(error),
            (kept, Ok(None)) => Self::without_images(store, chain, kept, request)?,
            (Some(record), Ok(Some(newest))) => Found::fit(Self {
                owner: record.owner.clone().or_else(|| newest.owner.clone()),
                ..record
            }),
            (None, Ok(Some(newest))) => Found::fit(Self::from_image(&newest)?),
        };
        let record = &mut found.record;
        record.check_names(chain)?;
        record.skip_used(store, chain, listed.as_deref())?;
        Ok(found)
    }

    /// chain.json, where there is one.
    fn read(store: &Store, chain: &str) -> Result<Option<Self>> {
        match read_record::<Self>(store, chain) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == ErrorKind::Damaged => Err(error.within(MAKE_ANEW)),
            Err(error) => Err(error),
        }
    }

    /// Without an image, only the numbers count and what an unfinished first sync has stored, if this writer can resume
    /// it: what a first sync was given that failed binds nobody.
    fn without_images(
        store: &Store,
        chain: &str,
        kept: Option<Self>,
        request: &WriteRequest,
    ) -> Result<Found> {
        let (unfinished, readable) = match store.read_checkpoint(chain) {
            Ok(unfinished) => (unfinished, true),
            Err(error) if error.kind() == ErrorKind::Damaged => (None, false),
            Err(error) => return Err(error),
        };
        let fits = unfinished.as_ref().is_none_or(|found| request.fits(found));
        let cluster_size = match &unfinished {
            Some(found) if fits => found.cluster_size()?,
            _ => request.cluster_size.unwrap_or(ClusterSize::K64),
        };
        let mut record = Self::new(cluster_size, &request.disks)?;
        if let Some(kept) = &kept {
            record.next_sequence = kept.next_sequence;
            record.next_layer = kept.next_layer;
            record.id = kept.id;
        } else if let Some(found) = &unfinished {
            record.id = found.chain;
        }
        if unfinished.is_some() || !readable {
            let of_unfinished = unfinished.and_then(|found| found.owner);
            record.owner = kept.and_then(|kept| kept.owner).or(of_unfinished);
        }
        Ok(Found { record, unfit: !fits })
    }

    /// Refuses a writer that the chain does not belong to, or whose disks or cluster size are not the chain's.
    ///
    /// # Errors
    /// `Invalid`, with what to do.
    pub fn check(&self, request: &WriteRequest) -> Result<()> {
        self.check_owner(request)?;
        let (job, own) = (&request.job, self.cluster_size()?);
        if let Some(wanted) = request.cluster_size.filter(|&wanted| wanted != own) {
            return Err(Error::invalid(format!(
                "job {job} has clusters of {own}, fixed with its first image, not of {wanted}: \
                 leave --cluster-size out, or sync to a new job"
            )));
        }
        check_disks(job, &self.disks, &request.disks)
    }

    fn check_owner(&self, request: &WriteRequest) -> Result<()> {
        let Some(owner) = &self.owner else { return Ok(()) };
        let is_ours = request.owner.as_ref().is_some_and(|ours| ours.is_same(owner));
        if is_ours || request.take_over.allows(owner) {
            return Ok(());
        }
        let writer = match &request.owner {
            Some(ours) => ours.to_string(),
            None => format!("job {} of a machine without an id", request.job),
        };
        Err(Error::invalid(format!(
            "the chain of job {} belongs to {owner}, and this is {writer}: two that write to one chain delete each \
             other's images. Give the job another name; or, if that one will not write any more, take its images over \
             with --take-over",
            request.take_up.as_ref().unwrap_or(&request.job)
        )))
    }

    fn check_names(&self, chain: &str) -> Result<()> {
        let mut checked = self.disks.iter().map(|name| check_name("disk", name));
        checked.try_for_each(|checked| {
            checked
                .map_err(Error::into_damage)
                .within(|| format!("{}: field disks", chain_path(chain)))
        })
    }

    fn new(cluster_size: ClusterSize, disks: &[String]) -> Result<Self> {
        Ok(Self {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            id: Uuid::random()?,
            cluster_size: cluster_size.bytes(),
            disks: disks.to_vec(),
            next_sequence: 1,
            next_layer: 1,
            owner: None,
        })
    }

    fn from_image(manifest: &Manifest) -> Result<Self> {
        let disks: Vec<String> = manifest.disks.iter().map(|disk| disk.name.clone()).collect();
        let mut record = Self::new(manifest.cluster_size()?, &disks)?;
        record.id = manifest.chain;
        record.owner.clone_from(&manifest.owner);
        let listed = manifest.layers.iter().map(|layer| layer.id);
        record.next_layer = listed.max().unwrap_or(0).saturating_add(1);
        Ok(record)
    }

    /// A record that was lost, or put back from an old copy, must not make numbers come twice. `newest` is the newest
    /// manifest; where every image is damaged, the files tell which ids were used.
    fn skip_used(&mut self, store: &Store, chain: &str, newest: Option<&Manifest>) -> Result<()> {
        let names = store.storage().list(&images_dir(chain))?;
        let numbers = names
            .iter()
            .filter_map(|name| image_file(name))
            .map(|(sequence, _)| sequence);
        let unfinished = store.readable_checkpoint(chain)?;
        let unfinished = unfinished.map(|manifest| manifest.sequence);
        if let Some(newest) = numbers.chain(unfinished).max() {
            self.next_sequence = self.next_sequence.max(newest.saturating_add(1));
        }
        let names = store.storage().list(&layers_dir(chain))?;
        let listed = newest
            .iter()
            .flat_map(|manifest| &manifest.layers)
            .map(|layer| layer.id);
        let found = names.iter().filter_map(|name| layer_of(name));
        if let Some(newest) = found.chain(listed).max() {
            self.next_layer = self.next_layer.max(newest.saturating_add(1));
        }
        Ok(())
    }

    /// The chain's cluster size.
    ///
    /// # Errors
    /// `Damaged` for one that no chain has.
    pub fn cluster_size(&self) -> Result<ClusterSize> {
        ClusterSize::from_bytes(self.cluster_size.into()).map_err(Error::into_damage)
    }

    /// Makes the record durable: before a number in it is used.
    ///
    /// # Errors
    /// When the store cannot be written; either record may then be found.
    pub fn save(&self, storage: &dyn Storage, chain: &str) -> Result<()> {
        sealed::replace(storage, chain, &chain_path(chain), self).within(|| format!("update chain {chain}"))
    }
}

impl Found {
    fn fit(record: ChainRecord) -> Self {
        Self { record, unfit: false }
    }
}

/// Refuses a sync of other disks than the job's.
fn check_disks(job: &str, of_job: &[String], given: &[String]) -> Result<()> {
    if let Some(unknown) = given.iter().find(|name| !of_job.contains(name)) {
        return Err(Error::invalid(format!(
            "job {job} is of disk {}, and {unknown} is not among them: \
             name it as the job does (--disk NAME=DEV), or give --job another name",
            of_job.join(", ")
        )));
    }
    match of_job.iter().find(|name| !given.contains(name)) {
        None => Ok(()),
        Some(missing) => Err(Error::invalid(format!(
            "job {job} also has disk {missing}: every image holds all disks of its job, so give it with --disk too"
        ))),
    }
}

impl Store {
    /// Who the chain belongs to that holds the images of `job`; nobody where there is no such chain, or nothing is
    /// stored in it, or it does not say.
    ///
    /// # Errors
    /// When the chain cannot be read.
    pub fn owner_of(&self, job: &str) -> Result<Option<Owner>> {
        match self.images_of(job)? {
            Some(images) => self.chain_owner(images.chain()),
            None => Ok(None),
        }
    }

    /// Refuses to change a chain that needs features of writers which this smc does not know. They are in chain.json, which
    /// may be lost, or an old copy, and in every manifest: what either says counts.
    ///
    /// # Errors
    /// `Unsupported`, with their names; otherwise when this cannot be found out.
    pub(crate) fn check_writable(&self, chain: &str) -> Result<()> {
        self.check_store_writable()?;
        let kept = match read_record::<Features>(self, chain) {
            Ok(features) => Some(features.read_only_compatible),
            Err(error) if is_absent_or_lost(&error) => None,
            Err(error) => return Err(error),
        };
        let listed = match newest_manifest(self, chain) {
            Ok(newest) => newest.map_or_else(Vec::new, |newest| newest.read_only_compatible.clone()),
            // An image whose manifest cannot be read must be deletable: then chain.json is believed.
            Err(error) if kept.is_some() || is_absent_or_lost(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        let needed: BTreeSet<String> = kept.into_iter().chain([listed]).flatten().collect();
        let needed = Vec::from_iter(needed);
        sealed::check_writable(&needed).within(|| format!("chain {chain}"))
    }

    /// The id that chain.json gives a chain, after a look at all of it; nothing where the file is missing.
    ///
    /// # Errors
    /// `Damaged` when the file is; otherwise when it cannot be read.
    pub(crate) fn chain_id(&self, chain: &str) -> Result<Option<Uuid>> {
        let Some(record) = ChainRecord::read(self, chain)? else {
            return Ok(None);
        };
        let checked = record.cluster_size().and_then(|_| record.check_names(chain));
        checked.map_err(|error| error.in_file(&chain_path(chain)))?;
        Ok(Some(record.id))
    }

    /// The owner that chain.json tells; nothing where it is damaged.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn recorded_owner(&self, chain: &str) -> Result<Option<Owner>> {
        Ok(unless_damaged(ChainRecord::read(self, chain))?.and_then(|record| record.owner))
    }

    /// Who a chain belongs to; nobody where nothing is stored in it, or what is not damaged of it does not say.
    ///
    /// # Errors
    /// When the chain cannot be read. What is damaged in it is no error.
    pub(crate) fn chain_owner(&self, chain: &str) -> Result<Option<Owner>> {
        let has_images = !self.sequences(chain)?.is_empty();
        let unfinished = self.read_checkpoint(chain);
        if !has_images && matches!(unfinished, Ok(None)) {
            return Ok(None);
        }
        let unfinished = unless_damaged(unfinished)?;
        let newest = unless_damaged(newest_manifest(self, chain))?;
        Ok(self
            .recorded_owner(chain)?
            .or_else(|| newest.and_then(|newest| newest.owner.clone()))
            .or_else(|| unfinished.and_then(|unfinished| unfinished.owner)))
    }
}

fn is_absent_or_lost(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damaged)
}

/// Nothing of what is damaged.
pub(crate) fn unless_damaged<T>(found: Result<Option<T>>) -> Result<Option<T>> {
    match found {
        Err(error) if error.kind() == ErrorKind::Damaged => Ok(None),
        found => found,
    }
}

/// The newest manifest that is not damaged; an error if there are some but all are.
fn newest_manifest(store: &Store, chain: &str) -> Result<Option<Arc<Manifest>>> {
    let mut damaged = None;
    for sequence in store.sequences(chain)?.into_iter().rev() {
        match store.read_manifest(chain, sequence) {
            Ok(manifest) => return Ok(Some(manifest)),
            Err(error) if error.kind() == ErrorKind::Damaged => damaged = Some(error),
            // Deleted since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // One that cannot be read now may say more than the one before it.
            Err(error) => return Err(error),
        }
    }
    damaged.map_or(Ok(None), Err)
}

/// Reads what a chain.json says, or a part of it.
fn read_record<T: Sealed>(store: &Store, chain: &str) -> Result<T> {
    sealed::read(&**store.storage(), &chain_path(chain)).map_err(|error| match error.is_of_medium() {
        true => error.within(format!("{CHECK_DISK}; {MAKE_ANEW}")),
        false => error,
    })
}

/// Makes the directories of a chain, those that are missing.
///
/// # Errors
/// When one cannot be made, or its name not be made durable.
pub(crate) fn create_dirs(storage: &dyn Storage, chain: &str) -> Result<()> {
    for dir in [chain.to_owned(), layers_dir(chain), images_dir(chain)] {
        match storage.create_dir(&dir) {
            Err(error) if error.kind() != ErrorKind::Exists => return Err(error),
            _ => {}
        }
    }
    storage.sync_dir(chain)?;
    storage.sync_dir("")
}
