//! New jobs.

use super::disks::{self, Located};
use super::note_writer;
use super::owners;
use super::parts::Parts;
use super::table::Locked;
use super::targets;
use super::tracking;
use crate::engine::{self, KnownFrom, Place};
use crate::job::{self, DiskRecord, JobRecord, Refusal, Refused, ResolvedInput};
use crate::state::Unreadable;
use crate::stores::{ACTION_PATIENCE, CREATE_PATIENCE};
use api::{Action, CreateJob, rules};
use imagefmt::{ErrorKind, Manifest, Store};
use remote::TargetFiles;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Makes a job. A request that was made before with the same token is answered with the job that it made:
/// then the second value is false.
///
/// # Errors
/// When a value is out of range, a disk or the name is taken, disks or store cannot be used, or it cannot be saved:
/// then there is no new job.
pub fn create(parts: &Arc<Parts>, request: &CreateJob) -> Refused<(String, bool)> {
    job::check_name(&request.name)?;
    if let Some(name) = repeated(&parts.table.lock(), request)? {
        return Ok((name, false));
    }
    // What a name or range forbids is found before a disk is opened or a store made.
    let dry = ResolvedInput {
        place: place_of(parts, request.store.as_deref(), request.target.as_deref())?,
        disks: Vec::new(),
    };
    job::new_record(request, dry, &parts.config, &parts.now())?;
    let given = resolve(parts, request)?;
    let record = job::new_record(request, given, &parts.config, &parts.now())?;
    tracking::check_intervals(parts, &record)?;
    // Looked at before a store is made for nothing, and again when it counts.
    let mut located = locate_all(parts, &record)?;
    {
        let table = parts.table.lock();
        check_disks(&table, &record, &located)?;
        check_take_up(&table, &record)?;
    }
    check_place(parts, &record, request.allow_network_fs)?;
    loop {
        let mut table = parts.table.lock();
        if let Some(name) = repeated(&table, request)? {
            return Ok((name, false));
        }
        if table.is_closing() {
            return Err(Refusal::shutting_down());
        }
        if let Seen::Anew = check_disks(&table, &record, &located)? {
            // Another job was created meanwhile.
            drop(table);
            located = locate_all(parts, &record)?;
            continue;
        }
        check_take_up(&table, &record)?;
        let (place, name) = (record.place.clone(), record.name.clone());
        if let Place::Store(store) = &place {
            table.remember_store(store);
        }
        table.insert(record)?;
        note_writer::queue(parts, &place, &name);
        tracing::info!(job = name, "job created");
        return Ok((name, true));
    }
}

/// Where the images are to go, and the disks that a request means.
fn resolve(parts: &Arc<Parts>, request: &CreateJob) -> Refused<ResolvedInput> {
    let place = place_of(parts, request.store.as_deref(), request.target.as_deref())?;
    let what = format!("the {place} or a disk");
    let (named, all, take_up) = (request.disks.clone(), request.all_disks, request.take_up.clone());
    let patience = patience_for(&place, ACTION_PATIENCE);
    parts.within(&place.clone(), patience, &what, move |parts| {
        let chosen = disks::chosen(&named, all, &place)?;
        let continued = match take_up {
            Some(from) => continued(parts, &from, &place)?,
            None => None,
        };
        Ok(ResolvedInput {
            disks: disks::describe(&chosen, &place, continued.as_deref())?,
            place,
        })
    })
}

/// How long what a request is about is waited for: a target says itself that it does not answer.
fn patience_for(place: &Place, of_store: Duration) -> Duration {
    match place {
        Place::Store(_) => of_store,
        Place::Target(_) => targets::PATIENCE,
    }
}

/// Looks up the disks of a new job and of all that may be its neighbours. Nobody holds the table meanwhile.
fn locate_all(parts: &Arc<Parts>, new: &JobRecord) -> Refused<Located> {
    let mut paths: BTreeSet<PathBuf> = new.disks.iter().map(|disk| disk.path.clone()).collect();
    let table = parts.table.lock();
    paths.extend(taken_disks(&table).map(|(path, _)| path.to_owned()));
    drop(table);
    disks::locate(&parts.stores, paths)
}

/// The newest image that a new job is to continue: it tells which of its disks is which. Waits for the store or target.
fn continued(parts: &Parts, from: &str, place: &Place) -> Refused<Option<Arc<Manifest>>> {
    let store = match place {
        Place::Store(store) => store,
        Place::Target(name) => {
            let found = targets::open(parts, name).and_then(|files| remote::newest(&files, from));
            return found
                .map(|newest| newest.map(Arc::new))
                .map_err(|error| targets::refusal(&error));
        }
    };
    let found = parts
        .stores
        .get(store)
        .and_then(|store| engine::newest(&store, &[from]));
    match found {
        Ok(newest) => Ok(newest),
        // It is made when everything else is found to be right.
        Err(error) if error.kind() == ErrorKind::NotAStore => Ok(None),
        Err(error) => Err(Refusal::conflict(error.full_message())),
    }
}

/// Looks at what the store or target holds of the job's name.
fn check_place(parts: &Arc<Parts>, record: &JobRecord, allow_network_fs: bool) -> Refused<()> {
    match &record.place {
        Place::Store(store) => check_store(parts, record, store, allow_network_fs),
        Place::Target(name) => {
            let (new, target) = (record.clone(), name.clone());
            let what = format!("the {}", record.place);
            parts.within(&record.place, targets::PATIENCE, &what, move |parts| {
                let files = targets::open(parts, &target).map_err(|error| targets::refusal(&error))?;
                check_target(&files, &new)
            })
        }
    }
}

/// Refuses at once what the first sync to a target would refuse for ever, or would continue by chance.
fn check_target(files: &TargetFiles, new: &JobRecord) -> Refused<()> {
    let refused = |error: remote::Error| targets::refusal(&error);
    let continued = new.take_up.as_deref().filter(|from| *from != new.name);
    let own = remote::images(files, &new.name).map_err(refused)?;
    if !own.is_empty() && (continued.is_some() || new.take_up.is_none()) {
        return Err(unknown_images(&new.place, &new.name));
    }
    let Some(from) = &new.take_up else { return Ok(()) };
    if remote::images(files, from).map_err(refused)?.is_empty() {
        return Err(nothing_to_continue(from));
    }
    match remote::newest(files, from).map_err(refused)? {
        Some(newest) => check_disk_names(new, &newest).and_then(|()| check_known_disks(new, &newest)),
        None => Err(nothing_to_continue(from)),
    }
}

/// Makes the store where there is none, and looks at what it holds of the job's name.
fn check_store(parts: &Arc<Parts>, record: &JobRecord, path: &Path, allow_network_fs: bool) -> Refused<()> {
    let (shared, new, path) = (parts.clone(), record.clone(), path.to_owned());
    let checked = parts.stores.run(&path.clone(), move || {
        let store = imagefmt::Store::open_or_create(&path, allow_network_fs)?;
        Ok(check_images(&store, &new).and_then(|()| check_first_sync(&shared, &store, &new)))
    });
    let checked = checked.wait(CREATE_PATIENCE);
    checked.map_err(|error| Refusal::conflict(error.full_message()))?
}

/// Refuses at once what the first sync of a job would refuse for ever.
fn check_first_sync(parts: &Parts, store: &Store, new: &JobRecord) -> Refused<()> {
    let conflict = |error: imagefmt::Error| Refusal::conflict(error.full_message());
    let mut request = owners::sync_request(&parts.machine, &parts.config, new);
    owners::check_note(store, &request).map_err(conflict)?;
    owners::allow_former_owner(&parts.table, store, &mut request).map_err(conflict)?;
    let names = new.disks.iter().map(|disk| disk.name.clone());
    let newest = store
        .check_write(&request.to_write(names.collect()))
        .map_err(conflict)?;
    let Some(newest) = newest else { return Ok(()) };
    check_known_disks(new, &*store.manifest(&newest).map_err(conflict)?)
}

/// Refuses disks that are not those of an image that the first sync continues.
fn check_known_disks(new: &JobRecord, newest: &Manifest) -> Refused<()> {
    let given: Vec<_> = new.disks.iter().map(DiskRecord::given).collect();
    let from = KnownFrom::Image(format!("{}/{}", newest.job, newest.sequence));
    let known = engine::known_disks(newest);
    engine::check_known(&from, &known, &given, new.accept_changed_disk)
        .map(drop)
        .map_err(|error| Refusal::conflict(error.full_message()))
}

/// Where images are to go: to the target or into the store that a request names, or else into the configured store.
///
/// # Errors
/// `Invalid` for both, for a path that is not absolute, and for a target that this machine does not know.
pub fn place_of(parts: &Parts, store: Option<&str>, target: Option<&str>) -> Refused<Place> {
    match (store, target) {
        (Some(_), Some(_)) => Err(Refusal::invalid(
            "give either store or target: the images go into a store of this machine, or to a target",
        )),
        (None, Some(name)) => {
            targets::open(parts, name).map_err(|error| targets::refusal(&error))?;
            Ok(Place::Target(name.to_owned()))
        }
        (None, None) => Ok(Place::Store(parts.config.store.clone())),
        (Some(store), None) if Path::new(store).is_absolute() => Ok(Place::Store(store.into())),
        (Some(store), None) => Err(Refusal::invalid(format!(
            "store must be an absolute path, but it is \"{}\"",
            store.escape_debug()
        ))),
    }
}

/// The job that the same request made before.
fn repeated(table: &Locked<'_>, request: &CreateJob) -> Refused<Option<String>> {
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

/// The job to continue is finished, and no other job has continued it or is going to: one that ended before its first
/// image has not.
fn check_take_up(table: &Locked<'_>, new: &JobRecord) -> Refused<()> {
    let Some(from) = &new.take_up else { return Ok(()) };
    let is_successor = |job: &&JobRecord| {
        job.take_up.as_ref() == Some(from)
            && job.place == new.place
            && job.name != new.name
            && job.name != *from
            && (job.synced || job.status.is_unfinished())
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
    if old.place != new.place {
        return Err(Refusal::invalid(format!(
            "the images of job {from} are in {}: a job that continues them must use the same store or target",
            old.place
        )));
    }
    Ok(())
}

/// Checks the images in the store with this name, and those of the job to continue.
fn check_images(store: &Store, new: &JobRecord) -> Refused<()> {
    if let Some(from) = &new.take_up {
        let images = store
            .job(from)
            .map_err(|error| Refusal::conflict(error.full_message()))?;
        let Some(newest) = images.latest() else {
            return Err(nothing_to_continue(from));
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
    Err(unknown_images(&format_args!("store {}", store.label()), name))
}

fn unknown_images(place: &dyn Display, name: &str) -> Refusal {
    Refusal::conflict(format!(
        "{place} has images of a job {name} that this smcd does not know: continue them with --take-up {name}, \
         or choose another name"
    ))
}

fn nothing_to_continue(from: &str) -> Refusal {
    Refusal::conflict(format!(
        "job {from} has no images to continue: create a job without --take-up"
    ))
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

/// Why a disk is taken.
enum Taken<'a> {
    /// By an unfinished job.
    Job(&'a JobRecord),
    /// By a job whose record cannot be read: it may be unfinished.
    Unreadable(&'a Unreadable),
}

/// The disks that belong to jobs.
fn taken_disks<'a>(table: &'a Locked<'_>) -> impl Iterator<Item = (&'a Path, Taken<'a>)> {
    let unreadable = table.unreadable().values();
    let unreadable =
        unreadable.flat_map(|job| job.disks.iter().map(move |path| (path, Taken::Unreadable(job))));
    let unfinished = table.jobs().values().filter(|job| job.status.is_unfinished());
    let of_jobs = unfinished.flat_map(|job| job.disks.iter().map(move |disk| (&disk.path, Taken::Job(job))));
    unreadable.chain(of_jobs).map(|(path, by)| (path.as_path(), by))
}

/// Whether all disks that belong to jobs were looked up.
#[derive(PartialEq, Eq)]
enum Seen {
    All,
    /// Some are to be looked up anew.
    Anew,
}

/// A disk belongs to one unfinished job.
fn check_disks(table: &Locked<'_>, new: &JobRecord, located: &Located) -> Refused<Seen> {
    for (path, by) in taken_disks(table) {
        if !located.knows(path) {
            return Ok(Seen::Anew);
        }
        let Some(ours) = new.disks.iter().find(|ours| located.overlap(&ours.path, path)) else {
            continue;
        };
        return Err(match by {
            Taken::Unreadable(job) => Refusal::unreadable(job.warning()),
            Taken::Job(job) => Refusal::conflict(format!(
                "disk {} ({}) belongs to job {}, which is {}: a disk can have only one unfinished job. Complete or \
                 cancel that one first",
                ours.name,
                ours.path.display(),
                job.name,
                job.status
            )),
        });
    }
    Ok(Seen::All)
}
