//! Which chain holds the images of which job.
//!
//! A chain has the name of the job that began it. A job that is taken up from a finished one continues its
//! chain, so the images of a job are found by what their manifests say.

use crate::error::{Error, ErrorKind, Result};
use crate::format::name::{ImageRef, Which, check_name};
use crate::reclaim::roots::read_checkpoint;
use crate::storage::paths::images_dir;
use crate::store::Store;
use std::collections::BTreeMap;

/// The images of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobImages {
    /// The chain that holds them.
    pub chain: String,
    /// Their numbers, ascending.
    pub sequences: Vec<u64>,
}

impl Store {
    /// The images of a job.
    ///
    /// # Errors
    /// Of kind `NotFound` if the store has no such job.
    pub fn job(&self, job: &str) -> Result<JobImages> {
        self.find_job(job)?.ok_or_else(|| self.no_job(job))
    }

    /// Every job that has images, by name.
    pub fn jobs(&self) -> Result<BTreeMap<String, JobImages>> {
        let mut jobs = BTreeMap::new();
        for chain in self.chains()? {
            for sequence in self.sequences(&chain)? {
                let new = || JobImages {
                    chain: chain.clone(),
                    sequences: Vec::new(),
                };
                let job: &mut JobImages = jobs.entry(self.job_of(&chain, sequence)).or_insert_with(new);
                job.sequences.push(sequence);
            }
        }
        Ok(jobs)
    }

    /// The images of a job, if the store has it: mostly in the chain of its name.
    pub(crate) fn find_job(&self, job: &str) -> Result<Option<JobImages>> {
        check_name("job", job)?;
        let mut chains = self.chains()?;
        chains.sort_by_key(|chain| chain != job);
        for chain in chains {
            if let Some(sequences) = self.images_of(job, &chain)? {
                return Ok(Some(JobImages { chain, sequences }));
            }
        }
        Ok(None)
    }

    fn images_of(&self, job: &str, chain: &str) -> Result<Option<Vec<u64>>> {
        let mut sequences = self.sequences(chain)?;
        if sequences.is_empty() && chain == job {
            return Ok(Some(sequences));
        }
        sequences.retain(|&sequence| self.job_of(chain, sequence) == job);
        let unfinished = || matches!(read_checkpoint(self, chain), Ok(Some(found)) if found.job == job);
        Ok((!sequences.is_empty() || unfinished()).then_some(sequences))
    }

    /// The job that made an image; that of the chain's name where the manifest cannot be read.
    fn job_of(&self, chain: &str, sequence: u64) -> String {
        self.manifest(chain, sequence)
            .map_or_else(|_| chain.to_owned(), |manifest| manifest.job)
    }

    /// The job that writes to a chain now: the one that made its newest image, or tries to.
    pub(crate) fn owner(&self, chain: &str) -> Result<String> {
        if let Ok(Some(unfinished)) = read_checkpoint(self, chain) {
            return Ok(unfinished.job);
        }
        let newest = self.sequences(chain)?.last().copied();
        Ok(newest.map_or_else(|| chain.to_owned(), |sequence| self.job_of(chain, sequence)))
    }

    /// The chain that `job` writes to, where it exists, or will write to.
    pub(crate) fn chain_to_write(&self, job: &str) -> Result<String> {
        let chain = match self.find_job(job)? {
            Some(found) => found.chain,
            None if self.storage().list(&images_dir(job)).is_err() => return Ok(job.to_owned()),
            None => job.to_owned(),
        };
        let owner = self.owner(&chain)?;
        if owner == job {
            return Ok(chain);
        }
        Err(Error::invalid(format!(
            "job {job} is finished: job {owner} has taken it up and continues its chain; sync {owner}, or give \
             --job another name"
        )))
    }

    /// The chain of `from`, for a job of another name to continue.
    pub(crate) fn chain_to_take_up(&self, job: &str, from: &str) -> Result<String> {
        check_name("job", job)?;
        if let Some(found) = self.find_job(job)? {
            // The second and later syncs of the job are given the same words as the first. By then, the images
            // of the other job may be gone.
            let elsewhere = self
                .find_job(from)?
                .is_some_and(|other| other.chain != found.chain);
            if !elsewhere && found.chain != job && self.owner(&found.chain)? == job {
                return Ok(found.chain);
            }
            return Err(Error::invalid(format!(
                "there is a job {job} already: a job that takes up another one is a new one"
            )));
        }
        let chain = self.job(from)?.chain;
        let owner = self.owner(&chain)?;
        if owner == from {
            return Ok(chain);
        }
        Err(Error::invalid(format!(
            "job {from} was taken up before, by job {owner}: take up that one"
        )))
    }

    fn no_job(&self, job: &str) -> Error {
        let known = self.chains().unwrap_or_default();
        let known = if known.is_empty() {
            "none yet".to_owned()
        } else {
            known.join(", ")
        };
        let what = format!("store {} has no job {job}; it has: {known}", self.label());
        Error::new(ErrorKind::NotFound, what)
    }

    /// Chain and number of the image that a reference names.
    pub fn resolve(&self, image: &ImageRef) -> Result<(String, u64)> {
        let JobImages { chain, sequences } = self.job(&image.job)?;
        let found = match image.which {
            Which::Latest => sequences.last().copied(),
            Which::Sequence(wanted) => sequences.contains(&wanted).then_some(wanted),
        };
        match found {
            Some(sequence) => Ok((chain, sequence)),
            None => Err(no_image(image, &sequences)),
        }
    }
}

fn no_image(image: &ImageRef, known: &[u64]) -> Error {
    let numbers: Vec<String> = known.iter().map(u64::to_string).collect();
    let known = if numbers.is_empty() {
        "none".to_owned()
    } else {
        numbers.join(", ")
    };
    let what = format!("there is no image {image}; images of {}: {known}", image.job);
    Error::new(ErrorKind::NotFound, what)
}
