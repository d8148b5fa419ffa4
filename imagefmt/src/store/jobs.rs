//! Which chain holds the images of which job.
//!
//! A chain has the name of the job that began it. A job that continues a finished one continues its
//! chain, so the images of a job are found by what their manifests say.

use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::Manifest;
use crate::format::name::{ImageId, ImageRef, Which, check_name};
use crate::format::owner::TakeOver;
use crate::reclaim::delete::Reclaimed;
use crate::storage::paths::images_dir;
use crate::store::Store;
use crate::write::sync::WriteRequest;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The images of one job, as they were when they were looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobImages {
    job: Arc<str>,
    chain: Arc<str>,
    sequences: Vec<u64>,
}

impl JobImages {
    fn new(job: &str, chain: &str, sequences: Vec<u64>) -> Self {
        Self {
            job: job.into(),
            chain: chain.into(),
            sequences,
        }
    }

    /// The job.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The chain that holds them, maybe among images of other jobs.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// Their numbers, ascending.
    pub fn sequences(&self) -> &[u64] {
        &self.sequences
    }

    /// The images, ascending.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = ImageId> + '_ {
        self.sequences.iter().map(|&sequence| self.id(sequence))
    }

    /// The newest image.
    pub fn latest(&self) -> Option<ImageId> {
        self.sequences.last().map(|&sequence| self.id(sequence))
    }

    /// The image of this number.
    pub fn get(&self, sequence: u64) -> Option<ImageId> {
        let found = self.sequences.binary_search(&sequence);
        found.is_ok().then(|| self.id(sequence))
    }

    fn id(&self, sequence: u64) -> ImageId {
        ImageId::new(&self.chain, sequence, &self.job)
    }
}

impl Store {
    /// The images of a job.
    ///
    /// # Errors
    /// `NotFound` if the store has no such job, `Invalid` for a name that no job can have.
    pub fn job(&self, job: &str) -> Result<JobImages> {
        self.images_of(job)?.ok_or_else(|| self.no_job(job))
    }

    /// Every job that has images or an unfinished sync, by name.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn jobs(&self) -> Result<BTreeMap<String, JobImages>> {
        let mut jobs = BTreeMap::new();
        for chain in self.chains()? {
            for found in self.jobs_in(&chain)? {
                // A job is looked for in the chain of its name first.
                if found.job == found.chain || !jobs.contains_key(found.job()) {
                    jobs.insert(found.job().to_owned(), found);
                }
            }
        }
        Ok(jobs)
    }

    fn jobs_in(&self, chain: &str) -> Result<Vec<JobImages>> {
        let mut jobs: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for sequence in self.sequences(chain)? {
            jobs.entry(self.job_of(chain, sequence))
                .or_default()
                .push(sequence);
        }
        if let Ok(Some(unfinished)) = self.read_checkpoint(chain) {
            jobs.entry(unfinished.job).or_default();
        }
        if jobs.is_empty() {
            jobs.insert(chain.to_owned(), Vec::new());
        }
        let images = |(job, sequences): (String, Vec<u64>)| JobImages::new(&job, chain, sequences);
        Ok(jobs.into_iter().map(images).collect())
    }

    /// The images of a job, if the store has it: mostly in the chain of its name.
    ///
    /// # Errors
    /// When the store cannot be listed; `Invalid` for a name that no job can have.
    pub fn images_of(&self, job: &str) -> Result<Option<JobImages>> {
        for chain in self.chains_for(job)? {
            if let Some(sequences) = self.sequences_of(job, &chain)? {
                return Ok(Some(JobImages::new(job, &chain, sequences)));
            }
        }
        Ok(None)
    }

    /// All chains, that of the job's name first.
    fn chains_for(&self, job: &str) -> Result<Vec<String>> {
        check_name("job", job)?;
        let mut chains = self.chains()?;
        chains.sort_by_key(|chain| chain != job);
        Ok(chains)
    }

    fn sequences_of(&self, job: &str, chain: &str) -> Result<Option<Vec<u64>>> {
        let mut sequences = self.sequences(chain)?;
        if sequences.is_empty() && chain == job {
            return Ok(Some(sequences));
        }
        sequences.retain(|&sequence| self.job_of(chain, sequence) == job);
        let unfinished = || matches!(self.read_checkpoint(chain), Ok(Some(found)) if found.job == job);
        Ok((!sequences.is_empty() || unfinished()).then_some(sequences))
    }

    /// The job that made an image; that of the chain's name where the manifest cannot be read.
    pub(crate) fn job_of(&self, chain: &str, sequence: u64) -> String {
        self.read_manifest(chain, sequence)
            .map_or_else(|_| chain.to_owned(), |manifest| manifest.job.clone())
    }

    /// The job that writes to a chain now: the one that made its newest image, or tries to.
    pub(crate) fn owner(&self, chain: &str) -> Result<String> {
        if let Ok(Some(unfinished)) = self.read_checkpoint(chain) {
            return Ok(unfinished.job);
        }
        let newest = self.sequences(chain)?.last().copied();
        Ok(newest.map_or_else(|| chain.to_owned(), |sequence| self.job_of(chain, sequence)))
    }

    /// The chain that a job writes to, where it exists, or will write to.
    pub(crate) fn chain_to_write(&self, request: &WriteRequest) -> Result<String> {
        let job = request.job.as_str();
        let chain = match self.images_of(job)? {
            Some(found) => found.chain.to_string(),
            None if self.storage().list(&images_dir(job)).is_err() => return Ok(job.to_owned()),
            None => {
                self.refuse_copy(job)?;
                job.to_owned()
            }
        };
        let owner = self.owner(&chain)?;
        if owner == job || self.gives_way(&chain, &owner, request)? {
            return Ok(chain);
        }
        Err(Error::invalid(format!(
            "job {job} is finished: job {owner} has taken it up and continues its chain; sync {owner}, or give \
             --job another name"
        )))
    }

    /// Whether the job that writes to a chain has no image in it, only an unfinished sync, and may be replaced.
    fn gives_way(&self, chain: &str, writer: &str, request: &WriteRequest) -> Result<bool> {
        let mut sequences = self.sequences(chain)?.into_iter();
        if sequences.any(|sequence| self.job_of(chain, sequence) == writer) {
            return Ok(false);
        }
        Ok(match self.chain_owner(chain)? {
            Some(owner) => request.take_over.allows(&owner),
            None => matches!(request.take_over, TakeOver::Always),
        })
    }

    /// Refuses to begin a job in a directory that is a copy of another chain.
    fn refuse_copy(&self, job: &str) -> Result<()> {
        let (_, copies) = self.chains_and_copies()?;
        match copies.iter().find(|copy| copy.name == job) {
            None => Ok(()),
            Some(copy) => Err(Error::invalid(format!(
                "{copy}; or give --job another name, as the new job's chain would have this one"
            ))),
        }
    }

    /// The chain of `from`, for a job of another name to continue.
    pub(crate) fn chain_to_take_up(&self, request: &WriteRequest, from: &str) -> Result<String> {
        let job = request.job.as_str();
        check_name("job", job)?;
        if let Some(found) = self.images_of(job)? {
            // The second and later syncs of the job are given the same words as the first. By then, the images
            // of the other job may be gone.
            let elsewhere = self
                .images_of(from)?
                .is_some_and(|other| other.chain != found.chain);
            if !elsewhere && found.chain() != job && self.owner(&found.chain)? == job {
                return Ok(found.chain.to_string());
            }
            return Err(Error::invalid(format!(
                "job {job} already exists: a job that continues another one must be new"
            )));
        }
        let chain = self.job(from)?.chain;
        let owner = self.owner(&chain)?;
        if owner == from || self.gives_way(&chain, &owner, request)? {
            return Ok(chain.to_string());
        }
        Err(Error::invalid(format!(
            "job {from} was already continued by job {owner}: continue that one instead"
        )))
    }

    fn no_job(&self, job: &str) -> Error {
        let known: Vec<String> = self.jobs().unwrap_or_default().into_keys().collect();
        let known = if known.is_empty() {
            "none yet".to_owned()
        } else {
            known.join(", ")
        };
        let what = format!("store {} has no job {job}; it has: {known}", self.label());
        Error::new(ErrorKind::NotFound, what)
    }

    /// The image that a reference names.
    ///
    /// # Errors
    /// `NotFound` where there is no such job or image.
    pub fn resolve(&self, image: &ImageRef) -> Result<ImageId> {
        for chain in self.chains_for(&image.job)? {
            let mut sequences = self.sequences(&chain)?;
            if let Which::Sequence(wanted) = image.which {
                sequences.retain(|&sequence| sequence == wanted);
            }
            let is_of_job = |sequence: &u64| self.job_of(&chain, *sequence) == image.job;
            if let Some(found) = sequences.into_iter().rev().find(is_of_job) {
                return Ok(ImageId::new(&chain, found, &image.job));
            }
            // The images of a job lie in one chain.
            if self.sequences_of(&image.job, &chain)?.is_some() {
                break;
            }
        }
        Err(no_image(image, &self.job(&image.job)?))
    }

    /// The image that another was made from; nothing if there was none or it was deleted.
    ///
    /// # Errors
    /// When the manifest of `image` cannot be read.
    pub fn parent(&self, image: &ImageId) -> Result<Option<ImageId>> {
        let Some(parent) = self.manifest(image)?.parent.clone() else {
            return Ok(None);
        };
        let found = self.read_manifest(image.chain(), parent.sequence);
        let found = found.ok().filter(|found| found.id == parent.id);
        Ok(found.map(|found| ImageId::new(image.chain(), parent.sequence, &found.job)))
    }

    /// What the unfinished sync of a job has stored so far, where there is one: a manifest of the disks that were
    /// begun. Its number is the one that the image would have got.
    ///
    /// # Errors
    /// `NotFound` if the store has no such job, `Damaged` where what is kept of the sync is not what was written.
    pub fn unfinished(&self, job: &str) -> Result<Option<Manifest>> {
        let found = self.unfinished_in(self.job(job)?.chain());
        let found = found.map_err(|error| error.within(format!("unfinished sync of job {job}")))?;
        Ok(found.filter(|manifest| manifest.job == job))
    }

    /// Discards what the unfinished sync of a job has stored, and frees its space. One that cannot be read is
    /// discarded whichever job of the chain is named.
    ///
    /// # Errors
    /// `Busy` while a sync runs, `NotFound` when the job has no unfinished sync.
    pub fn discard_unfinished(&self, job: &str) -> Result<Reclaimed> {
        let nothing = || Error::new(ErrorKind::NotFound, format!("job {job} has no unfinished sync"));
        let Some(images) = self.images_of(job)? else {
            return Err(nothing());
        };
        if matches!(self.read_checkpoint(images.chain()), Ok(Some(found)) if found.job != job) {
            return Err(nothing());
        }
        self.discard_checkpoint(images.chain(), job)?.ok_or_else(nothing)
    }

    /// Frees what no image of a job's chain needs, whatever left it there, and finishes what crashes cut short.
    ///
    /// # Errors
    /// `Busy` while a sync runs, `NotFound` if the store has no such job.
    pub fn gc(&self, job: &str) -> Result<Reclaimed> {
        self.gc_chain(self.job(job)?.chain(), job)
    }
}

fn no_image(image: &ImageRef, known: &JobImages) -> Error {
    let numbers: Vec<String> = known.sequences.iter().map(u64::to_string).collect();
    let known = if numbers.is_empty() {
        "none".to_owned()
    } else {
        numbers.join(", ")
    };
    let what = format!("there is no image {image}; images of {}: {known}", image.job);
    Error::new(ErrorKind::NotFound, what)
}
