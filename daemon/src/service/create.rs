//! New jobs.

use super::disks;
use super::manager::Manager;
use super::table::Locked;
use crate::job::{self, DiskRecord, JobRecord, Refusal, Refused, ResolvedInput};
use crate::state::Unreadable;
use api::{Action, CreateJob, rules};
use imagefmt::{Manifest, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long the store of a new job is waited for: making one tries what it can do.
const CREATE_PATIENCE: Duration = Duration::from_secs(60);

impl Manager {
    /// Makes a job. A request that was made before with the same token is answered with the job that it made:
    /// then the second value is false.
    pub fn create(self: &Arc<Self>, request: &CreateJob) -> Refused<(String, bool)> {
        job::check_name(&request.name)?;
        if let Some(name) = self.repeated(&self.table.lock(), request)? {
            return Ok((name, false));
        }
        // What a name or range forbids is found before a disk is opened or a store made.
        let dry = ResolvedInput {
            store: PathBuf::new(),
            disks: Vec::new(),
        };
        job::new_record(request, dry, &self.config, &self.now())?;
        let store = self.store_of(request)?;
        let chosen = self.chosen(&request.disks, request.all_disks, &store)?;
        let given = ResolvedInput {
            disks: disks::describe(&chosen, &store)?,
            store,
        };
        let record = job::new_record(request, given, &self.config, &self.now())?;
        {
            // Looked at before a store is made for nothing, and again when it counts.
            let table = self.table.lock();
            check_disks(&table, &record)?;
            self.check_take_up(&table, &record)?;
        }
        self.check_store(&record, request.allow_network_fs)?;
        let name = record.name.clone();
        {
            let mut table = self.table.lock();
            if let Some(name) = self.repeated(&table, request)? {
                return Ok((name, false));
            }
            if table.is_closing() {
                return Err(Refusal::shutting_down());
            }
            check_disks(&table, &record)?;
            self.check_take_up(&table, &record)?;
            let store = record.store.clone();
            table.remember_store(&store);
            table.insert(record)?;
            self.queue_note(&store, &name);
        }
        tracing::info!(job = name, "job created");
        Ok((name, true))
    }

    /// Makes the store where there is none, and looks at what it holds of the job's name.
    fn check_store(&self, record: &JobRecord, allow_network_fs: bool) -> Refused<()> {
        let new = record.clone();
        let checked = self.stores.run(&record.store, move || {
            let store = imagefmt::open_or_create_store(&new.store, allow_network_fs)?;
            Ok(check_images(&store, &new))
        });
        let checked = checked.wait(CREATE_PATIENCE);
        checked.map_err(|error| Refusal::conflict(error.full_message()))?
    }

    fn store_of(&self, request: &CreateJob) -> Refused<PathBuf> {
        let Some(store) = &request.store else {
            return Ok(self.config.store.clone());
        };
        if !Path::new(store).is_absolute() {
            return Err(Refusal::invalid(format!(
                "store must be an absolute path, but it is \"{}\"",
                store.escape_debug()
            )));
        }
        Ok(store.into())
    }

    /// The job that the same request made before.
    fn repeated(&self, table: &Locked<'_>, request: &CreateJob) -> Refused<Option<String>> {
        if let Some(token) = &request.client_token {
            let same = |job: &&JobRecord| job.request.client_token.as_ref() == Some(token);
            let has_token = |job: &&Unreadable| job.client_token.as_ref() == Some(token);
            if let Some(job) = table.unreadable().values().find(has_token) {
                return Err(Refusal::unreadable(job.warning()));
            }
            if let Some(job) = table.jobs().values().find(same) {
                if job.request == *request {
                    return Ok(Some(job.name.clone()));
                }
                return Err(Refusal::conflict(format!(
                    "client_token {token} was already used to create job {} with other parameters: use a new token for a new job",
                    job.name
                )));
            }
        }
        if let Some(job) = table.unreadable().get(&request.name) {
            return Err(Refusal::unreadable(job.warning()));
        }
        match table.jobs().get(&request.name) {
            None => Ok(None),
            Some(job) => Err(Refusal::conflict(format!(
                "job {} already exists ({}): choose another name, or delete it first",
                job.name, job.status
            ))),
        }
    }

    /// The job to continue is finished, and no other job has continued it.
    fn check_take_up(&self, table: &Locked<'_>, new: &JobRecord) -> Refused<()> {
        let Some(from) = &new.take_up else { return Ok(()) };
        let is_successor = |job: &&JobRecord| {
            job.take_up.as_ref() == Some(from)
                && job.store == new.store
                && job.name != new.name
                && job.name != *from
        };
        if let Some(successor) = table.jobs().values().find(is_successor) {
            return Err(Refusal::conflict(format!(
                "job {from} was already continued by job {}: continue that one instead",
                successor.name
            )));
        }
        let unreadable = |job: &&Unreadable| job.name == *from || job.take_up.as_ref() == Some(from);
        if let Some(job) = table.unreadable().values().find(unreadable) {
            return Err(Refusal::unreadable(job.warning()));
        }
        let Some(old) = table.jobs().get(from) else {
            // Its images may be in the store all the same: made by `smcd sync`, or by a job that was deleted.
            return Ok(());
        };
        if !rules::allowed(old.status, Action::TakeUp) {
            return Err(Refusal::state(from, old.status, Action::TakeUp));
        }
        if old.store != new.store {
            return Err(Refusal::invalid(format!(
                "the images of job {from} are in {}: a job that continues them must use the same store",
                old.store.display()
            )));
        }
        Ok(())
    }
}

/// Checks the images in the store with this name, and those of the job to continue.
fn check_images(store: &Store, new: &JobRecord) -> Refused<()> {
    if let Some(from) = &new.take_up {
        let images = store
            .job(from)
            .map_err(|error| Refusal::conflict(error.full_message()))?;
        let Some(newest) = images.latest() else {
            return Err(Refusal::conflict(format!(
                "job {from} has no images to continue: create a job without --take-up"
            )));
        };
        let manifest = store.manifest(&newest);
        check_disk_names(
            new,
            &*manifest.map_err(|error| Refusal::conflict(error.full_message()))?,
        )?;
        return if *from == new.name {
            Ok(())
        } else {
            check_unused(store, &new.name)
        };
    }
    check_unused(store, &new.name)
}

/// Images of an unknown job of that name are not taken over by chance.
fn check_unused(store: &Store, name: &str) -> Refused<()> {
    let jobs = store
        .jobs()
        .map_err(|error| Refusal::conflict(error.full_message()))?;
    if let Some((successor, _)) = jobs
        .iter()
        .find(|(job, images)| images.chain() == name && *job != name)
    {
        return Err(Refusal::conflict(format!(
            "the images of job {successor} continue a chain that is named after an earlier job {name}: choose another name"
        )));
    }
    if jobs.get(name).is_none_or(|images| images.sequences().is_empty()) {
        return Ok(());
    }
    Err(Refusal::conflict(format!(
        "store {} has images of a job {name} that this smcd does not know: continue them with --take-up {name}, \
         or choose another name",
        store.label()
    )))
}

/// Every image of a chain has the same disks.
fn check_disk_names(new: &JobRecord, newest: &Manifest) -> Refused<()> {
    let names = |names: Vec<&String>| {
        let mut names: Vec<String> = names.into_iter().cloned().collect();
        names.sort();
        names.join(", ")
    };
    let theirs = names(newest.disks.iter().map(|disk| &disk.name).collect());
    let ours = names(new.disks.iter().map(|disk| &disk.name).collect());
    if ours == theirs {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "the images of job {} have the disks {theirs}, but the request has {ours}: a job that continues them must have \
         the same disk names (--disk NAME=DEV)",
        newest.job
    )))
}

/// The disk of a new job that is the one at a path, or a part of it.
fn disk_on<'a>(new: &'a JobRecord, path: &Path) -> Refused<Option<&'a DiskRecord>> {
    for disk in &new.disks {
        let overlap = disks::overlap(&disk.path, path);
        if overlap.map_err(|error| Refusal::failed(&error.into()))? {
            return Ok(Some(disk));
        }
    }
    Ok(None)
}

/// A disk belongs to one unfinished job, and one whose record cannot be read may be unfinished.
fn check_disks(table: &Locked<'_>, new: &JobRecord) -> Refused<()> {
    for job in table.unreadable().values() {
        for theirs in &job.disks {
            if disk_on(new, theirs)?.is_some() {
                return Err(Refusal::unreadable(job.warning()));
            }
        }
    }
    for job in table.jobs().values().filter(|job| job.status.is_unfinished()) {
        for theirs in &job.disks {
            if let Some(ours) = disk_on(new, &theirs.path)? {
                return Err(Refusal::conflict(format!(
                    "disk {} ({}) belongs to job {}, which is {}: a disk can have only one unfinished job. Complete or \
                     cancel that one first",
                    ours.name,
                    ours.path.display(),
                    job.name,
                    job.status
                )));
            }
        }
    }
    Ok(())
}
