//! Which chain holds the images of which job.
//!
//! A chain has the name of the job that began it. A job that continues a finished one continues its
//! chain, so the images of a job are found by what their manifests say.

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::manifest::Manifest;
use crate::format::name::{ImageId, ImageRef, Which, check_name};
use crate::format::owner::TakeOver;
use crate::parallel;
use crate::reclaim::delete::Reclaimed;
use crate::storage::paths::images_dir;
use crate::store::Store;
use crate::store::request::WriteRequest;
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

/// The job that made an image.
enum Maker {
    Known(String),
    /// The manifest cannot be read now, for this reason. It was one of these jobs, or one that has no other image.
    OneOf(Vec<String>, Error),
}

impl Maker {
    /// The maker of an image whose manifest cannot be read, between images of these jobs: those of one job follow one
    /// another. What is damaged stays so, and counts as one of the job before it, or else after it; so does what was
    /// deleted since it was listed.
    fn of_unread(chain: &str, before: Option<String>, after: Option<String>, error: Error) -> Self {
        let is_gone = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound);
        if is_gone || (before == after && before.is_some()) {
            return Self::Known(before.or(after).unwrap_or_else(|| chain.to_owned()));
        }
        let mut jobs: Vec<String> = before.into_iter().chain(after).collect();
        jobs.push(chain.to_owned());
        Self::OneOf(jobs, error)
    }

    fn known(self) -> Result<String> {
        match self {
            Self::Known(job) => Ok(job),
            Self::OneOf(_, error) => Err(error),
        }
    }

    /// The likeliest job, and why it is not certain.
    fn guess(self, chain: &str) -> (String, Option<Error>) {
        match self {
            Self::Known(job) => (job, None),
            Self::OneOf(jobs, error) => {
                let likeliest = jobs.into_iter().next();
                (likeliest.unwrap_or_else(|| chain.to_owned()), Some(error))
            }
        }
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
    /// When the store or one of its chains cannot be listed.
    pub fn jobs(&self) -> Result<BTreeMap<String, JobImages>> {
        let (jobs, unread) = self.readable_jobs()?;
        unread.into_iter().next().map_or(Ok(jobs), Err)
    }

    /// As [`jobs`](Self::jobs), of the chains that can be listed, and why the others cannot: nothing is known of the
    /// jobs whose images they hold.
    ///
    /// # Errors
    /// When the store's own directory cannot be listed.
    pub fn readable_jobs(&self) -> Result<(BTreeMap<String, JobImages>, Vec<Error>)> {
        let chains = self.chains()?;
        let mut jobs = BTreeMap::new();
        let mut unread: Vec<Error> = chains.unread.into_iter().map(|(_, error)| error).collect();
        for chain in chains.names {
            let found = self.jobs_in(&chain, &mut unread).unwrap_or_else(|error| {
                unread.push(error);
                Vec::new()
            });
            for found in found {
                // A job is looked for in the chain of its name first.
                if found.job == found.chain || !jobs.contains_key(found.job()) {
                    jobs.insert(found.job().to_owned(), found);
                }
            }
        }
        Ok((jobs, unread))
    }

    /// The jobs of a chain. `unread` gets the reason if there may be one more.
    fn jobs_in(&self, chain: &str, unread: &mut Vec<Error>) -> Result<Vec<JobImages>> {
        let mut jobs: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let sequences = self.sequences(chain)?;
        for (maker, sequence) in self.makers(chain, &sequences).into_iter().zip(sequences) {
            let (job, error) = maker.guess(chain);
            jobs.entry(job).or_default().push(sequence);
            unread.extend(error);
        }
        match self.checkpoint_job(chain) {
            Ok(Some(job)) => {
                jobs.entry(job).or_default();
            }
            Ok(None) => {}
            Err(error) => unread.push(error),
        }
        if jobs.is_empty() {
            jobs.insert(chain.to_owned(), Vec::new());
        }
        let images = |(job, sequences): (String, Vec<u64>)| JobImages::new(&job, chain, sequences);
        Ok(jobs.into_iter().map(images).collect())
    }

    /// The job of a chain's unfinished sync.
    fn checkpoint_job(&self, chain: &str) -> Result<Option<String>> {
        Ok(self.readable_checkpoint(chain)?.map(|unfinished| unfinished.job))
    }

    /// The images of a job, if the store has it: mostly in the chain of its name.
    ///
    /// # Errors
    /// When the store cannot be listed; `Invalid` for a name that no job can have.
    pub fn images_of(&self, job: &str) -> Result<Option<JobImages>> {
        self.search(job, |chain| {
            let sequences = self.sequences_of(job, chain)?;
            Ok(sequences.map(|sequences| JobImages::new(job, chain, sequences)))
        })
    }

    /// Looks for something of a job: in the chain of its name, then in all others.
    ///
    /// A chain that cannot be listed is an error as soon as what is looked for may be in it: it is never skipped.
    fn search<T>(&self, job: &str, look: impl Fn(&str) -> Result<Option<T>>) -> Result<Option<T>> {
        check_name("job", job)?;
        let mut chains = self.chains()?;
        if let Some(own) = chains.unread.iter().position(|(chain, _)| chain == job) {
            return Err(chains.unread.swap_remove(own).1);
        }
        if chains.names.iter().any(|chain| chain == job)
            && let Some(found) = look(job)?
        {
            return Ok(Some(found));
        }
        for chain in chains.all_read()?.iter().filter(|chain| *chain != job) {
            if let Some(found) = look(chain)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn sequences_of(&self, job: &str, chain: &str) -> Result<Option<Vec<u64>>> {
        let all = self.sequences(chain)?;
        if all.is_empty() && chain == job {
            return Ok(Some(all));
        }
        let mut own = Vec::new();
        for (maker, sequence) in self.makers(chain, &all).into_iter().zip(all) {
            if maker.known()? == job {
                own.push(sequence);
            }
        }
        if own.is_empty() && self.checkpoint_job(chain)?.as_deref() != Some(job) {
            return Ok(None);
        }
        Ok(Some(own))
    }

    /// The jobs that made these images, which are all of a chain.
    fn makers(&self, chain: &str, sequences: &[u64]) -> Vec<Maker> {
        let names: Vec<Result<String>> = parallel::map(sequences, |&sequence| {
            self.read_manifest(chain, sequence)
                .map(|manifest| manifest.job.clone())
        });
        let mut after: Vec<Option<String>> = Vec::new();
        let mut next = None;
        for job in names.iter().rev() {
            after.push(next.clone());
            next = job.as_ref().ok().cloned().or(next);
        }
        let mut before = None;
        let makers = names
            .into_iter()
            .zip(after.into_iter().rev())
            .map(|(job, after)| match job {
                Ok(job) => Maker::Known(before.insert(job).clone()),
                Err(error) => Maker::of_unread(chain, before.clone(), after, error),
            });
        makers.collect()
    }

    /// The job that made an image.
    fn maker(&self, chain: &str, sequence: u64) -> Result<Maker> {
        match self.read_manifest(chain, sequence) {
            Ok(manifest) => Ok(Maker::Known(manifest.job.clone())),
            Err(error) => {
                let sequences = self.sequences(chain)?;
                let found = sequences.binary_search(&sequence).ok();
                let maker = found.map(|at| self.makers(chain, &sequences).swap_remove(at));
                maker.ok_or(error)
            }
        }
    }

    /// The job that made an image. Where the image's manifest is damaged, the images beside it tell.
    ///
    /// # Errors
    /// When the manifest cannot be read now, and the images beside it are not of one job.
    pub(crate) fn job_of(&self, chain: &str, sequence: u64) -> Result<String> {
        self.maker(chain, sequence)?.known()
    }

    /// The job that writes to a chain now: the one that made its newest image, or tries to.
    pub(crate) fn owner(&self, chain: &str) -> Result<String> {
        if let Some(job) = self.checkpoint_job(chain)? {
            return Ok(job);
        }
        let Some(newest) = self.sequences(chain)?.last().copied() else {
            return Ok(chain.to_owned());
        };
        match self.read_manifest(chain, newest) {
            // It may be the only image of the job that took the chain over last.
            Err(error) if error.kind() == ErrorKind::Damaged => match self.recorded_owner(chain)? {
                Some(owner) => Ok(owner.job),
                None => self.job_of(chain, newest),
            },
            _ => self.job_of(chain, newest),
        }
    }

    /// The chain that a job writes to, where it exists, or will write to.
    pub(crate) fn chain_to_write(&self, request: &WriteRequest) -> Result<String> {
        let job = request.job.as_str();
        let chain = match self.images_of(job)? {
            Some(found) => found.chain.to_string(),
            None if !self.has_dir(&images_dir(job))? => return Ok(job.to_owned()),
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
        let sequences = self.sequences(chain)?;
        for maker in self.makers(chain, &sequences) {
            if maker.known()? == writer {
                return Ok(false);
            }
        }
        Ok(match self.chain_owner(chain)? {
            Some(owner) => request.take_over.allows(&owner),
            None => matches!(request.take_over, TakeOver::Always),
        })
    }

    /// Refuses to begin a job in a directory that is a copy of another chain.
    fn refuse_copy(&self, job: &str) -> Result<()> {
        match self
            .chains_and_copies()?
            .copies
            .iter()
            .find(|copy| copy.name == job)
        {
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
        let known: Vec<String> = match self.jobs() {
            Ok(jobs) => jobs.into_keys().collect(),
            Err(error) => return error,
        };
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
        let found = self.search(&image.job, |chain| {
            let mut sequences = self.sequences(chain)?;
            if let Which::Sequence(wanted) = image.which {
                sequences.retain(|&sequence| sequence == wanted);
            }
            for sequence in sequences.into_iter().rev() {
                let maker = match self.maker(chain, sequence) {
                    // Deleted since it was listed.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    maker => maker?,
                };
                let is_of_job = match (maker, image.which) {
                    // A number means one image, whichever of these jobs made it.
                    (Maker::OneOf(jobs, _), Which::Sequence(_)) if jobs.contains(&image.job) => true,
                    (maker, _) => maker.known()? == image.job,
                };
                if is_of_job {
                    return Ok(Some(Some(ImageId::new(chain, sequence, &image.job))));
                }
            }
            // The images of a job lie in one chain.
            Ok(self.sequences_of(&image.job, chain)?.map(|_| None))
        })?;
        match found.flatten() {
            Some(found) => Ok(found),
            None => Err(no_image(image, &self.job(&image.job)?)),
        }
    }

    /// The image that another was made from; nothing if there was none or it was deleted.
    ///
    /// # Errors
    /// When the manifest of `image` cannot be read, or that of the image of its parent's number.
    pub fn parent(&self, image: &ImageId) -> Result<Option<ImageId>> {
        let Some(parent) = self.manifest(image)?.parent.clone() else {
            return Ok(None);
        };
        match self.read_manifest(image.chain(), parent.sequence) {
            Ok(found) if found.id == parent.id => {
                Ok(Some(ImageId::new(image.chain(), parent.sequence, &found.job)))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.within(format!("parent of image {image}"))),
        }
    }

    /// What the unfinished sync of a job has stored so far, where there is one: a manifest of the disks that were
    /// begun. Its number is the one that the image would have got.
    ///
    /// # Errors
    /// `NotFound` if the store has no such job, `Damaged` where what is kept of the sync is not what was written.
    pub fn unfinished(&self, job: &str) -> Result<Option<Manifest>> {
        let found = self.unfinished_in(self.job(job)?.chain());
        let found = found.within(|| format!("unfinished sync of job {job}"))?;
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
        if self.checkpoint_job(images.chain())?.is_some_and(|of| of != job) {
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
