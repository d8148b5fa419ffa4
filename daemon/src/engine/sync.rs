//! A sync: all disks of a job into one image.

use super::activity::Watch;
use super::compare::Compared;
use super::control::Control;
use super::destination::Destination;
use super::disks::SourceDisk;
use super::error::{Result, Within};
use super::exclusive::Exclusive;
use super::flush;
use super::identity::{self, KnownFrom};
use super::passes::{self, WasRead};
use super::request::{ImageBegun, Job, Observer, Request};
use super::tracked::Trackings;
use api::Phase;
use imagefmt::{Consistency, ImageRef, Manifest, WriteImage};
use std::time::{Duration, Instant};

/// A sync that made an image.
#[derive(Debug)]
pub struct Synced {
    /// The image's manifest.
    pub manifest: Manifest,
    /// Whether it resumed an unfinished sync.
    pub resumed: bool,
    /// How long it took to check the tracker.
    pub audit_took: Duration,
    /// What the comparison after the sync came to, where there was one.
    pub compared: Option<Compared>,
}

/// Makes an image. Resumes an unfinished sync, and stores anew what is damaged in what it builds on.
///
/// # Errors
/// Of every kind but `Other`; the message says what of the sync is kept. `Busy` and `Refused` come before anything
/// is written.
pub fn run<O: Observer>(
    destination: Destination<'_>,
    request: &Request,
    disks: &[SourceDisk],
    control: &Control,
    observer: &O,
) -> Result<Synced> {
    let disks = &identity::name_disks(destination, request, disks)?;
    let exclusive = request.offline.then(|| Exclusive::take(disks)).transpose()?;
    let job = Job {
        destination,
        request,
        disks,
        control,
        observer,
        exclusive,
        begun: Instant::now(),
    };
    let image = job.begin()?;
    let resumed = image.resumed().is_some();
    let synced = job.make_image(image)?;
    Ok(Synced { resumed, ..synced })
}

impl<O: Observer> Job<'_, O> {
    /// Becomes the job's writer and refuses what does not fit the job, before anything is written.
    fn begin(&self) -> Result<Box<dyn WriteImage>> {
        let request = self.request;
        let image = self.destination.begin(request, self.disks)?;
        let instead = match image.parent() {
            Some(_) => "compares with an earlier image",
            None => "stores everything anew",
        };
        for (sequence, error) in image.skipped_images() {
            self.observer.warn(&format!(
                "image {}/{sequence} is damaged, so the sync {instead}: {error}",
                request.job
            ));
        }
        image.warnings().iter().for_each(|text| self.observer.warn(text));
        self.check_disks(&*image)?;
        let stored = |unfinished: &Manifest| unfinished.disks.iter().map(|disk| disk.stored_bytes).sum();
        self.observer.image(&ImageBegun {
            sequence: image.sequence(),
            label: image.label(),
            total_bytes: self.disks.iter().map(|disk| disk.meta.size_bytes).sum(),
            resumed_bytes: image.resumed().map(stored),
        });
        Ok(image)
    }

    /// Refuses disks that are not those of the image before, or are not where they were.
    fn check_disks(&self, image: &dyn WriteImage) -> Result<()> {
        // An unfinished first sync of another job binds nobody.
        let own = |unfinished: &&Manifest| match (&unfinished.owner, &self.request.owner) {
            (Some(theirs), Some(ours)) => theirs.is_same(ours),
            (theirs, ours) => theirs.is_none() && ours.is_none(),
        };
        let known = image.parent().or_else(|| image.resumed().filter(own));
        let Some(known) = known else { return Ok(()) };
        let given: Vec<_> = self.disks.iter().map(SourceDisk::given).collect();
        let mut records = identity::known_disks(known);
        if image.parent().is_none() {
            // What has become smaller since is compared with nothing.
            for record in &mut records {
                let now = given.iter().find(|disk| disk.name == record.name);
                record.size_bytes = now.map_or(0, |now| now.size_bytes.min(record.size_bytes));
            }
        }
        let from = KnownFrom::Image(identity::label(known));
        let warnings = identity::check_known(&from, &records, &given, self.request.accept_changed_disk)?;
        warnings.iter().for_each(|warning| self.observer.warn(warning));
        let priority = self.control.pace().priority();
        let warnings =
            priority.within(|| identity::check_content(known, &|name| image.known_disk(name), self.disks))?;
        warnings.iter().for_each(|warning| self.observer.warn(warning));
        Ok(())
    }

    /// Reads the disks and makes the image, which is not said to be resumed.
    fn make_image(&self, mut image: Box<dyn WriteImage>) -> Result<Synced> {
        let ids = passes::add_disks(&mut *image, self.disks).within(|| what_is_left(&*image))?;
        // Before the tracker's bits are taken: a write that the flush causes is one of those that this sync reads.
        let flushed = flush::flush(self.disks);
        if let Some(held_back) = &flushed.held_back {
            self.observer.warn(&format!(
                "the image may be without what was written last: {held_back}"
            ));
        }
        let mut trackings = Trackings::begin(self, &*image, &ids);
        if !self.request.tracker.may_scan {
            passes::refuse_scans(self, &*image, &trackings)?;
        }
        let disks = self.disks.iter();
        let watch = Watch::start(disks.map(|disk| (disk.meta.name.as_str(), &disk.device)));
        self.observer.phase(if image.parent().is_some() {
            Phase::Comparing
        } else {
            Phase::Transferring
        });
        let read = passes::read_all(self, &mut *image, &ids, &mut trackings, flushed.took);
        let read = read.within(|| what_is_left(&*image))?;
        self.observer.phase(Phase::Processing);
        let held_back = flushed.held_back.as_deref();
        let earned = class(&read, &watch, held_back);
        let (consistency, reason) = match held_back {
            None => self.or_offline(earned, &watch),
            Some(_) => earned,
        };
        let before = image.parent().cloned();
        let left = what_is_left(&*image);
        let manifest = image.commit(consistency, &reason).within(|| left)?;
        let compared = self.compare_if_asked(&manifest, &mut trackings, &watch);
        trackings.commit(&manifest, self.disks);
        let changed = before.map(|before| identity::changed_nearly_all(&before, &manifest));
        let warnings = changed.unwrap_or_default();
        warnings.iter().for_each(|warning| self.observer.warn(warning));
        self.report_repairs(&manifest);
        Ok(Synced {
            manifest,
            resumed: false,
            audit_took: read.audit_took,
            compared,
        })
    }

    /// The class of disks that nobody else could use: better than `earned` if that is `crash`.
    fn or_offline(&self, earned: (Consistency, String), watch: &Watch) -> (Consistency, String) {
        if self.exclusive.is_none() || earned.0 != Consistency::Crash {
            return earned;
        }
        // What somebody has written through the page cache shows only when it reaches the disk.
        let flushed = flush::flush(self.disks);
        match flushed.held_back.or_else(|| watch.written()) {
            None => (Consistency::Offline, OFFLINE.to_owned()),
            Some(doubt) => (Consistency::Fuzzy, format!("during the sync, {doubt}")),
        }
    }

    /// Compares everything with the new image where that was asked for.
    fn compare_if_asked(
        &self,
        manifest: &Manifest,
        trackings: &mut Trackings,
        watch: &Watch,
    ) -> Option<Compared> {
        if !self.request.verify {
            return None;
        }
        let label = format!("{}/{}", manifest.job, manifest.sequence);
        let image = label
            .parse()
            .and_then(|image: ImageRef| self.destination.image(&image));
        let mut compared = match image {
            Ok(image) => self.compare(&image, trackings),
            Err(error) => Compared::impossible(&error),
        };
        compared.written.iter().for_each(|text| self.observer.warn(text));
        if !compared.is_equal
            && let Some(written) = watch.written()
        {
            compared.problems.push(format!("since the sync began, {written}"));
        }
        Some(compared)
    }

    /// Warns of what was damaged before: earlier images still are.
    fn report_repairs(&self, manifest: &Manifest) {
        for disk in manifest.disks.iter().filter(|disk| disk.repaired_clusters > 0) {
            let (name, count) = (&disk.name, disk.repaired_clusters);
            let clusters = if count == 1 { "cluster" } else { "clusters" };
            self.observer.warn(&format!(
                "{count} {clusters} of {name} could not be read in the store and were stored anew from the disk: image \
                 {}/{} has them, earlier images remain damaged. `smc-image verify` shows which; check the store's disk",
                manifest.job, manifest.sequence
            ));
        }
    }
}

/// The class that the image earns, and why it is no better.
fn class(read: &WasRead, watch: &Watch, held_back: Option<&str>) -> (Consistency, String) {
    if let Some(Ok(reason)) = &read.instant {
        return (Consistency::Filesystem, reason.clone());
    }
    let (consistency, reason) = watch.finish(&read.bytes, held_back);
    let reason = match &read.instant {
        Some(Err(missed)) => format!("{missed}; {reason}"),
        _ if consistency == Consistency::Crash => format!("{reason}; nothing was frozen"),
        _ => reason,
    };
    (consistency, reason)
}

const OFFLINE: &str =
    "every disk was held exclusively, all was flushed, and no disk was written to during the sync";

/// Describes what a sync that failed leaves behind.
fn what_is_left(image: &dyn WriteImage) -> String {
    let label = image.label();
    if image.has_checkpoint() {
        format!(
            "image {label} is unfinished; earlier images are unchanged, and the next sync resumes this one"
        )
    } else {
        format!("image {label} was discarded; earlier images are unchanged")
    }
}
