//! The one oracle: what was acknowledged is there, what was not is absent or whole, what was deleted stays
//! deleted, nothing leaks, and the next sync works.

use super::driver::Driver;
use super::workload::{Edit, Pick, Run, Step, What, Workload};
use super::world::{ImageModel, Job, World};
use crate::storage::{BLOCK_LEN, Lock};
use crate::tests::sim::{Random, SimDisk};
use crate::tests::support::{findings, places, read_all};
use crate::{ErrorKind, Image, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Whether those who worked on the store may still be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Nobody is: what is there now stays, and what is absent never comes.
    Crash,
    /// It is the same process, which was panic_message of errors.
    Errors,
}

/// Compares a store with what is known of it, and notes what was not known.
pub fn check(disk: &SimDisk, world: &mut World, since: Since) -> Result<(), String> {
    let changes = disk.changes();
    let checked = check_store(disk, world, since);
    if disk.changes() != changes {
        return Err("reading the store wrote to it".to_owned());
    }
    checked
}

fn check_store(disk: &SimDisk, world: &mut World, since: Since) -> Result<(), String> {
    let store = match Store::open_on(Arc::new(disk.clone()), "sim") {
        Ok(store) => store,
        Err(error) if error.kind() == ErrorKind::NotAStore && !world.created => return Ok(()),
        Err(error) => return Err(format!("the store cannot be opened: {error:?}")),
    };
    world.created |= since == Since::Crash;
    for (name, job) in &mut world.jobs {
        check_job(&store, name, job, since).map_err(|violation| format!("job {name}: {violation}"))?;
    }
    Ok(())
}

fn check_job(store: &Store, name: &str, job: &mut Job, since: Since) -> Result<(), String> {
    let found: BTreeSet<u64> = match store.sequences(name) {
        Ok(sequences) => sequences.into_iter().collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => BTreeSet::new(),
        Err(error) => return Err(format!("its images cannot be listed: {error:?}")),
    };
    if let Some(lost) = job.images.keys().find(|sequence| !found.contains(sequence)) {
        return Err(format!("image {lost} was acknowledged and is not there"));
    }
    for &sequence in &found {
        check_image(store, name, job, sequence).map_err(|what| format!("image {sequence}: {what}"))?;
    }
    if since == Since::Crash {
        settle(job, &found);
    }
    check_unfinished(store, name, job, since)
}

/// After a crash, what is there stays, and what is absent never comes.
fn settle(job: &mut Job, found: &BTreeSet<u64>) {
    for (sequence, image) in std::mem::take(&mut job.unsure) {
        if found.contains(&sequence) {
            job.images.insert(sequence, image);
        } else {
            job.gone.insert(sequence);
        }
    }
    job.begun.clear();
}

fn check_image(store: &Store, name: &str, job: &mut Job, sequence: u64) -> Result<(), String> {
    if job.gone.contains(&sequence) {
        return Err("was deleted, and is there".to_owned());
    }
    let opened = store.open_image(&store.image_id(name, sequence));
    let image = opened.map_err(|error| format!("cannot be opened: {error:?}"))?;
    job.see(image.manifest())?;
    if let Some(model) = job.images.get(&sequence).or_else(|| job.unsure.get(&sequence)) {
        return compare(&image, model);
    }
    let Some(model) = job.take_begun(|begun| compare(&image, begun).is_ok()) else {
        return Err("is none that was ever made, or is not whole".to_owned());
    };
    job.unsure.insert(sequence, model);
    Ok(())
}

/// Compares an image with its model byte for byte.
fn compare(image: &Image, model: &ImageModel) -> Result<(), String> {
    if image.disks().len() != model.disks.len() {
        return Err(format!("has {} disks", image.disks().len()));
    }
    for (disk, model) in image.disks().iter().zip(&model.disks) {
        if disk.name() != model.name || disk.size_bytes() != model.model.size {
            return Err(format!("disk {} is not {} as it was", disk.name(), model.name));
        }
        if disk.digest().to_string() != model.digest {
            return Err(format!("disk {} has another digest", model.name));
        }
        match read_all(disk) {
            Ok(bytes) if bytes == model.bytes => {}
            Ok(_) => return Err(format!("disk {} has other bytes", model.name)),
            Err(error) => return Err(format!("disk {} cannot be read: {error:?}", model.name)),
        }
    }
    Ok(())
}

/// The unfinished sync of a job, opened like an image.
fn unfinished(store: &Store, name: &str) -> Result<Option<Image>, String> {
    let found = match store.unfinished_in(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        found => found.map_err(|error| format!("the unfinished sync cannot be read: {error:?}"))?,
    };
    let opened = found.map(|manifest| store.chain(name)?.open(manifest.into(), Lock::new(())));
    opened
        .transpose()
        .map_err(|error| format!("the unfinished sync cannot be opened: {error:?}"))
}

fn check_unfinished(store: &Store, name: &str, job: &mut Job, since: Since) -> Result<(), String> {
    let found = unfinished(store, name)?;
    if let Some(found) = &found {
        job.see_layers(found.manifest())?;
    }
    let fits = |model: &Option<Arc<ImageModel>>| match (&found, model) {
        (None, None) => Ok(()),
        (Some(found), Some(model)) => compare(found, model),
        (Some(_), None) => Err("is there".to_owned()),
        (None, Some(_)) => Err("is absent".to_owned()),
    };
    let misfits: Vec<String> = job
        .unfinished
        .iter()
        .filter_map(|model| fits(model).err())
        .collect();
    if misfits.len() == job.unfinished.len() {
        return Err(format!("the unfinished sync {}", misfits.join("; or it ")));
    }
    if since == Since::Crash {
        job.unfinished.retain(|model| fits(model).is_ok());
        job.unfinished.truncate(1);
    }
    Ok(())
}

/// Nothing takes space but what an image or the unfinished sync of a job holds.
pub fn check_no_leaks(disk: &SimDisk) -> Result<(), String> {
    let store = Store::open_on(Arc::new(disk.clone()), "sim").map_err(|error| format!("{error:?}"))?;
    for chain in store.chains().map_err(|error| format!("{error:?}"))?.names {
        no_leaks(disk, &store, &chain).map_err(|leak| format!("after gc, chain {chain}: {leak}"))?;
    }
    Ok(())
}

fn no_leaks(disk: &SimDisk, store: &Store, chain: &str) -> Result<(), String> {
    let error = |error: crate::Error| format!("{error:?}");
    let sequences = store.sequences(chain).map_err(error)?;
    let mut names: BTreeSet<String> = ["chain.json", "reclaim.lock", "writer.lock"]
        .map(str::to_owned)
        .into();
    let mut roots = Vec::new();
    if let Some(unfinished) = unfinished(store, chain)? {
        roots.push(unfinished);
        names.insert("checkpoint.json".to_owned());
    }
    for &sequence in &sequences {
        roots.push(
            store
                .open_image(&store.image_id(chain, sequence))
                .map_err(error)?,
        );
    }
    let expected: BTreeMap<String, Vec<u64>> = live_blocks(&roots);
    let layers = disk.blocks_in(&format!("{chain}/layers"));
    if layers != expected {
        return Err(format!("layers take blocks {layers:?}, live are {expected:?}"));
    }
    let images: Vec<String> = disk.blocks_in(&format!("{chain}/images")).into_keys().collect();
    let manifests: Vec<String> = sequences
        .iter()
        .map(|number| format!("{number:06}.json"))
        .collect();
    if images != manifests {
        return Err(format!("images/ holds {images:?}, and there are {manifests:?}"));
    }
    let left = disk
        .blocks_in(chain)
        .into_keys()
        .find(|name| !names.contains(name));
    left.map_or(Ok(()), |left| Err(format!("{left} is left")))
}

/// The blocks of each layer that a root has a byte in, and its header.
fn live_blocks(roots: &[Image]) -> BTreeMap<String, Vec<u64>> {
    let mut live: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for disk in roots.iter().flat_map(Image::disks) {
        for place in places(disk) {
            let blocks = live.entry(format!("{:08x}.layer", place.layer)).or_default();
            blocks.insert(0);
            blocks.extend(place.offset / BLOCK_LEN..place.end().div_ceil(BLOCK_LEN));
        }
    }
    live.into_iter()
        .map(|(name, blocks)| (name, blocks.into_iter().collect()))
        .collect()
}

/// What whoever comes next does to a store: it must work whatever is found.
pub fn next_steps(world: &World, workload: &Workload, random: &mut Random) -> Vec<Step> {
    let mut steps = Vec::new();
    if !world.created {
        steps.push(Step::CreateStore);
    }
    let jobs = world.jobs.iter();
    let mut known: Vec<(&'static str, &Job)> = jobs.map(|(name, job)| (*name, job)).collect();
    let none = Job::default();
    if known.is_empty() {
        known.push(("web", &none));
    }
    for (name, job) in known {
        let sync = Step::Sync(next_run(name, workload, random));
        let has_images = !job.images.is_empty();
        match random.below(4) {
            0 if has_images => steps.extend([Step::Gc(name), sync]),
            1 if has_images => steps.extend([Step::Delete(name, Pick::Oldest), sync]),
            2 if job.unfinished.iter().all(Option::is_some) => steps.extend([Step::Cancel(name), sync]),
            _ => steps.push(sync),
        }
        steps.push(Step::Gc(name));
    }
    steps
}

fn next_run(job: &'static str, workload: &Workload, random: &mut Random) -> Run {
    let disk = random.below(workload.disks.len() as u64) as usize;
    let mut edit = |what: fn(u64, u64) -> What| {
        // Two disks at most have three clusters each.
        let what = what(random.below(3), random.next());
        Edit { disk, what }
    };
    let edits = vec![edit(What::Noise), edit(What::Text)];
    let checkpoints = if random.below(3) == 0 { vec![1] } else { vec![] };
    Run {
        job,
        edits,
        checkpoints,
        ..Run::default()
    }
}

/// Goes on with a store as whoever comes next does, and looks at all of it again.
pub fn resume(driver: &mut Driver<'_>, steps: &[Step], verify: bool) -> Result<(), String> {
    driver
        .steps(steps)
        .map_err(|violation| format!("continuing with {steps:?}: {violation}"))?;
    check(&driver.disk, &mut driver.world, Since::Errors)
        .map_err(|violation| format!("after going on: {violation}"))?;
    check_no_leaks(&driver.disk)?;
    if !verify {
        return Ok(());
    }
    let store = driver.store().map_err(|error| format!("{error:?}"))?;
    let jobs = driver.world.jobs.iter();
    let mut found = jobs.flat_map(|(name, job)| job.images.keys().map(move |&sequence| (name, sequence)));
    found.try_for_each(|(name, sequence)| match findings(&store, name, sequence) {
        found if found.is_empty() => Ok(()),
        found => Err(format!("verification of {name}/{sequence}: {found:?}")),
    })
}
