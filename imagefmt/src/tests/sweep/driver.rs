//! Does the steps of a workload and keeps the books: what was acknowledged, and what may have happened.

use super::workload::{Pick, Run, Step, Workload};
use super::world::{DiskModel, ImageModel, Job, World};
use crate::tests::model::Model;
use crate::tests::sim::{Alone, SimDisk};
use crate::tests::support::{Pass, meta, pass_over, read_all};
use crate::{
    ClusterSize, Consistency, Digest, Disk, Error, ErrorKind, ImageWriter, Manifest, Pointer, Reclaimed,
    Store,
};
use std::sync::Arc;

/// Why a step did not get to its end.
#[derive(Debug)]
pub enum Trouble {
    /// The store said so.
    Store(Error),
    /// The store did what it must not do.
    Violation(String),
    /// The workload wanted it.
    GivenUp,
    /// The workload wanted it, and nothing could be cleared away.
    Killed,
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<String> for Trouble {
    fn from(violation: String) -> Self {
        Self::Violation(violation)
    }
}

/// Works on a store on a simulated disk.
#[derive(Debug)]
pub struct Driver<'a> {
    pub disk: SimDisk,
    pub world: World,
    /// What was known at each mark that the disk was given.
    pub worlds: Vec<World>,
    workload: &'a Workload,
    /// Whether nothing fails: then nothing may be left undone.
    healthy: bool,
}

/// How far a sync is.
#[derive(Debug, Default)]
struct Progress {
    /// Clusters that differed.
    dirty: usize,
    /// Disks that are whole.
    disks: Vec<(String, Model)>,
    /// What the base held already: disk, cluster, pointer.
    held: Vec<(String, u64, Pointer)>,
    /// What the unfinished sync that is resumed has of each disk: its checkpoints keep that of disks that have not begun.
    resumed: Vec<(String, Model)>,
}

impl<'a> Driver<'a> {
    pub fn new(disk: SimDisk, world: World, workload: &'a Workload, healthy: bool) -> Self {
        let mut driver = Self {
            disk,
            world,
            worlds: Vec::new(),
            workload,
            healthy,
        };
        driver.note();
        driver
    }

    /// From here on, what is known is what the books say now.
    fn note(&mut self) {
        self.disk.mark(self.worlds.len());
        self.worlds.push(self.world.clone());
    }

    pub fn store(&self) -> crate::Result<Store> {
        let store = Store::open_on(Arc::new(self.disk.clone()), "sim")?;
        Ok(store.with_lock_wait(Arc::new(Alone)))
    }

    /// Does steps that must succeed.
    pub fn steps(&mut self, steps: &[Step]) -> Result<(), String> {
        steps.iter().try_for_each(|step| match self.step(step) {
            Ok(()) => Ok(()),
            Err(Trouble::Violation(violation)) => Err(violation),
            Err(Trouble::Store(error)) => Err(format!("{step:?} failed: {error:?}")),
            Err(Trouble::GivenUp | Trouble::Killed) => Err(format!("{step:?} was given up")),
        })
    }

    pub fn step(&mut self, step: &Step) -> Result<(), Trouble> {
        match step {
            Step::CreateStore => self.create(),
            Step::Sync(run) => match self.sync(run) {
                Err(Trouble::Killed) => {
                    self.disk.fail(None);
                    Ok(())
                }
                Err(Trouble::GivenUp) => Ok(()),
                ended => ended,
            },
            Step::Delete(job, pick) => self.delete(job, *pick),
            Step::Gc(job) => self.gc(job),
            Step::Cancel(job) => self.cancel(job),
        }
    }

    fn create(&mut self) -> Result<(), Trouble> {
        match self.store() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotAStore => {
                Store::create(Arc::new(self.disk.clone()), "sim")?;
            }
            Err(error) => return Err(error.into()),
        }
        self.world.created = true;
        self.note();
        Ok(())
    }

    fn edit(&mut self, run: &Run) -> Arc<ImageModel> {
        let workload = self.workload;
        let job = self.world.job(run.job);
        let source = Arc::make_mut(&mut job.source);
        if source.is_empty() {
            let disk =
                |&(name, size): &(&str, u64)| (name.to_owned(), Model::new(size, workload.cluster_size));
            source.extend(workload.disks.iter().map(disk));
        }
        run.edits.iter().for_each(|edit| edit.apply(source));
        ImageModel::new(source)
    }

    fn sync(&mut self, run: &Run) -> Result<(), Trouble> {
        let store = self.store()?;
        let target = self.edit(run);
        self.world.job(run.job).begun.push(target.clone());
        self.note();
        let ended = self.make_image(&store, run, &target);
        if matches!(ended, Err(Trouble::GivenUp | Trouble::Killed)) {
            // It never came to the image's name.
            self.world
                .job(run.job)
                .begun
                .retain(|begun| !Arc::ptr_eq(begun, &target));
            self.note();
        }
        ended
    }

    fn make_image(&mut self, store: &Store, run: &Run, target: &Arc<ImageModel>) -> Result<(), Trouble> {
        let names: Vec<String> = target.disks.iter().map(|disk| disk.name.clone()).collect();
        let mut writer = store.begin(run.job, Some(self.workload.cluster_size), &names)?;
        let must_resume = !self.world.job(run.job).unfinished.contains_none();
        if self.healthy && must_resume && writer.resumed().is_none() {
            return Err("the sync does not resume the unfinished one".to_owned().into());
        }
        let mut progress = Progress {
            resumed: resumed_disks(&writer, run, self.workload.cluster_size)?,
            ..Progress::default()
        };
        for disk in &target.disks {
            self.write_disk(&mut writer, run, disk, &mut progress)?;
            if let Some(pick) = run.delete.filter(|_| progress.disks.len() == 1) {
                self.delete_in_sync(run.job, pick, &writer)?;
            }
        }
        self.world.job(run.job).unfinished.push(None);
        self.note();
        let manifest = writer.commit(Consistency::Crash, "test")?;
        self.acknowledge(run.job, &manifest, target)?;
        if self.healthy {
            check_not_stored_again(store, run.job, &manifest, &progress)?;
        }
        Ok(())
    }

    fn acknowledge(
        &mut self,
        job: &'static str,
        manifest: &Manifest,
        image: &Arc<ImageModel>,
    ) -> Result<(), Trouble> {
        let sequence = manifest.sequence;
        let job = self.world.job(job);
        if sequence <= job.highest() {
            let highest = job.highest();
            return Err(format!("image {sequence} was made when there had been image {highest}").into());
        }
        job.see(manifest)?;
        job.begun.retain(|begun| !Arc::ptr_eq(begun, image));
        job.images.insert(sequence, image.clone());
        job.unfinished = vec![None];
        self.note();
        Ok(())
    }

    fn write_disk(
        &mut self,
        writer: &mut ImageWriter,
        run: &Run,
        disk: &DiskModel,
        progress: &mut Progress,
    ) -> Result<(), Trouble> {
        pass_over::<Trouble>(writer, meta(&disk.name, disk.model.size), |pass| {
            let base = pass.base().and_then(|base| base.disk().cloned());
            // What a checkpoint made now would hold: what came so far, and else what the base has.
            let mut so_far = match &base {
                Some(base) if !run.checkpoints.is_empty() => content_of(base, &disk.model)?,
                _ => Model::new(disk.model.size, disk.model.cluster_size),
            };
            for index in 0..disk.model.cluster_count() {
                let held = held(base.as_ref(), index)?;
                let plain = disk.model.get(index);
                let digest = Digest::of_cluster(&plain);
                if held.digest == digest {
                    progress.held.push((disk.name.clone(), index, held));
                    continue;
                }
                pass.push_plain(index, &plain)?;
                so_far.set(index, plain);
                progress.dirty += 1;
                if run.checkpoints.contains(&progress.dirty) {
                    self.checkpoint(pass, run, &disk.name, &so_far, progress)?;
                }
                if run.kill == Some(progress.dirty) {
                    self.disk.kill();
                    return Err(Trouble::Killed);
                }
                if run.stop == Some(progress.dirty) {
                    return Err(Trouble::GivenUp);
                }
            }
            Ok(())
        })?;
        progress.disks.push((disk.name.clone(), disk.model.clone()));
        Ok(())
    }

    fn checkpoint(
        &mut self,
        pass: &mut Pass<'_>,
        run: &Run,
        name: &str,
        so_far: &Model,
        progress: &Progress,
    ) -> Result<(), Trouble> {
        let mut disks = progress.disks.clone();
        disks.push((name.to_owned(), so_far.clone()));
        for resumed in &progress.resumed {
            if disks.iter().all(|(begun, _)| *begun != resumed.0) {
                disks.push(resumed.clone());
            }
        }
        let saved = Some(ImageModel::new(&disks));
        self.world.job(run.job).unfinished.push(saved.clone());
        self.note();
        if !pass.checkpoint()? {
            return Err("there is no checkpoint of what came".to_owned().into());
        }
        self.world.job(run.job).unfinished = vec![saved];
        self.note();
        Ok(())
    }

    fn delete(&mut self, name: &'static str, pick: Pick) -> Result<(), Trouble> {
        let job = self.world.job(name);
        let sequences: Vec<u64> = job.images.keys().copied().collect();
        let Some(sequence) = pick.of(&sequences) else {
            return Ok(());
        };
        if let Some(image) = job.images.remove(&sequence) {
            job.unsure.insert(sequence, image);
        }
        self.note();
        let store = self.store()?;
        let reclaimed = store.delete(&store.image_id(name, sequence))?;
        let job = self.world.job(name);
        job.unsure.remove(&sequence);
        job.gone.insert(sequence);
        self.note();
        self.check_done(&reclaimed)
    }

    /// Deletes what the sync that goes on does not need; what it does is refused, and stays as it is.
    fn delete_in_sync(
        &mut self,
        name: &'static str,
        pick: Pick,
        writer: &ImageWriter,
    ) -> Result<(), Trouble> {
        let sequences: Vec<u64> = self.world.job(name).images.keys().copied().collect();
        let parent = writer.parent().map(|parent| parent.manifest().sequence);
        if pick.of(&sequences) != parent {
            return self.delete(name, pick);
        }
        let Some(sequence) = parent else { return Ok(()) };
        let store = self.store()?;
        match store.delete(&store.image_id(name, sequence)) {
            Err(error) if error.kind() == ErrorKind::InUse => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err("the parent was deleted under its sync".to_owned().into()),
        }
    }

    fn gc(&mut self, job: &'static str) -> Result<(), Trouble> {
        let reclaimed = self.store()?.gc(job)?;
        self.check_done(&reclaimed)
    }

    fn cancel(&mut self, name: &'static str) -> Result<(), Trouble> {
        let unfinished = &mut self.world.job(name).unfinished;
        let may_be_none = unfinished.contains_none();
        if !may_be_none {
            unfinished.push(None);
        }
        self.note();
        match self.store()?.discard_unfinished(name) {
            Ok(reclaimed) => self.check_done(&reclaimed)?,
            Err(error) if error.kind() == ErrorKind::NotFound && may_be_none => {}
            Err(error) => return Err(error.into()),
        }
        self.world.job(name).unfinished = vec![None];
        self.note();
        Ok(())
    }

    fn check_done(&self, reclaimed: &Reclaimed) -> Result<(), Trouble> {
        if self.healthy && !(reclaimed.kept.is_empty() && reclaimed.unfinished.is_none()) {
            return Err(format!("space was not freed: {reclaimed:?}").into());
        }
        Ok(())
    }
}

trait ContainsNone {
    fn contains_none(&self) -> bool;
}

impl<T> ContainsNone for Vec<Option<T>> {
    fn contains_none(&self) -> bool {
        self.iter().any(Option::is_none)
    }
}

impl Job {
    /// An image of this content whose sync was not acknowledged.
    pub fn take_begun(&mut self, matches: impl Fn(&ImageModel) -> bool) -> Option<Arc<ImageModel>> {
        let at = self.begun.iter().position(|begun| matches(begun))?;
        Some(self.begun.remove(at))
    }
}

fn held(base: Option<&Disk>, index: u64) -> crate::Result<Pointer> {
    match base {
        Some(base) if index < base.geometry().cluster_count() => base.tree().cluster(index),
        _ => Ok(Pointer::NULL),
    }
}

/// What the unfinished sync that is resumed holds of its disks, for a run that makes checkpoints.
fn resumed_disks(
    writer: &ImageWriter,
    run: &Run,
    cluster_size: ClusterSize,
) -> crate::Result<Vec<(String, Model)>> {
    let resumed = writer.resumed().filter(|_| !run.checkpoints.is_empty());
    let disks = resumed.map_or(&[][..], |resumed| resumed.disks());
    let content = |disk: &Disk| {
        let as_large = Model::new(disk.size_bytes(), cluster_size);
        Ok((disk.name().to_owned(), content_of(disk, &as_large)?))
    };
    disks.iter().map(content).collect()
}

/// What `base` holds, on a disk as large as `model`.
fn content_of(base: &Disk, model: &Model) -> crate::Result<Model> {
    let bytes = read_all(base)?;
    let mut content = Model::new(base.size_bytes(), model.cluster_size);
    let len = model.cluster_size.byte_len();
    for (index, cluster) in (0..).zip(bytes.chunks(len)) {
        // A short last cluster that grew is left out until it comes.
        if cluster.len() == len || base.size_bytes() == model.size {
            content.set(index, cluster.to_vec());
        }
    }
    content.grow(model.size);
    Ok(content)
}

/// What the base held is where it was: nothing was stored a second time.
fn check_not_stored_again(
    store: &Store,
    job: &str,
    manifest: &Manifest,
    progress: &Progress,
) -> Result<(), Trouble> {
    let image = store.open_image(&store.image_id(job, manifest.sequence))?;
    for (name, index, held) in &progress.held {
        let now = image.disk(Some(name))?.tree().cluster(*index)?;
        if now != *held {
            return Err(
                format!("cluster {index} of {name} was stored again: {held:?} became {now:?}").into(),
            );
        }
    }
    Ok(())
}
