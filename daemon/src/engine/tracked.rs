//! A sync's use of the tracker: which disks it watches, and whether it vouches for what is not read.

use super::disks::SourceDisk;
use super::request::{Job, Observer, TrackMode, UseTracker};
use blockio::DeviceKind;
use hostdev::Root;
use imagefmt::{DiskId, Manifest, Uuid, WriteImage};
use tracker::{ImageMark, Target, Tracker, Tracking};

/// The disks of a sync, each with its tracking or the reason for none.
///
/// Dropped without [`commit`](Self::commit), it leaves the bits as they are, for the next sync.
#[derive(Debug)]
pub(super) struct Trackings {
    disks: Vec<Disk>,
}

#[derive(Debug)]
struct Disk {
    tracking: Result<Tracking, String>,
    /// Why the tracker does not vouch for the disk; absent where it does.
    doubt: Option<String>,
}

impl Trackings {
    /// Begins to use the tracker, before the first read.
    pub fn begin<O: Observer>(job: &Job<'_, O>, image: &dyn WriteImage, ids: &[DiskId]) -> Self {
        let used = &job.request.tracker;
        let cluster_bytes = image.cluster_size().bytes();
        let targets: Vec<_> = job.disks.iter().map(|disk| target(disk, cluster_bytes)).collect();
        // Nothing is put into the kernel for disks that cannot be tracked.
        let found = match targets.iter().any(Result::is_ok) {
            true => find(used),
            false => Err(NOT_WATCHED.to_owned()),
        };
        let begin = |((disk, &id), target): ((&SourceDisk, &DiskId), Result<Target, String>)| {
            let parent = parent_mark(image, disk, id);
            let tracking = target.and_then(|target| {
                let tracker = found.as_ref().map_err(Clone::clone)?;
                begin_one(tracker, used.mode, &target, parent.as_ref())
            });
            let doubt = match &tracking {
                Ok(tracking) => doubt(tracking, parent.as_ref()),
                Err(reason) => Some(reason.clone()),
            };
            Disk { tracking, doubt }
        };
        Self {
            disks: job.disks.iter().zip(ids).zip(targets).map(begin).collect(),
        }
    }

    /// The tracking of a disk for whose unread clusters the tracker vouches, or the reason why it does not.
    pub fn vouching(&self, disk: usize) -> Result<&Tracking, &str> {
        match (&self.disks[disk].tracking, &self.disks[disk].doubt) {
            (Ok(tracking), None) => Ok(tracking),
            (_, Some(doubt)) => Err(doubt),
            (Err(reason), None) => Err(reason),
        }
    }

    /// The tracking of a disk, which has seen what was written since before the first read of this sync, or the reason why there is
    /// none.
    pub fn watching(&self, disk: usize) -> Result<&Tracking, &str> {
        self.disks[disk].tracking.as_ref().map_err(String::as_str)
    }

    /// As [`watching`](Self::watching), to ask what was written since the last read. `None` if there is no tracking.
    ///
    /// # Errors
    /// Why it cannot be believed, as a clause.
    pub fn believed(&mut self, disk: usize) -> Result<Option<&mut Tracking>, String> {
        match &mut self.disks[disk].tracking {
            Ok(tracking) => match tracking.still_trusted() {
                Ok(()) => Ok(Some(tracking)),
                Err(doubt) => Err(doubt.to_string()),
            },
            Err(_) => Ok(None),
        }
    }

    /// As [`watching`](Self::watching), of each disk, to take from it. None if one of them is not watched.
    pub fn all_watching(&mut self) -> Option<Vec<&mut Tracking>> {
        let disks = self.disks.iter_mut();
        disks.map(|disk| disk.tracking.as_mut().ok()).collect()
    }

    /// The tracker does not vouch for a disk after all.
    pub fn doubt(&mut self, disk: usize, reason: String) {
        self.disks[disk].doubt = Some(reason);
    }

    /// The tracker of a disk is not believed any more: the next sync reads all of it.
    pub fn give_up(&mut self, disk: usize) {
        let reason = Err("a comparison found differences".to_owned());
        let given_up = std::mem::replace(&mut self.disks[disk].tracking, reason);
        abandon(given_up);
    }

    /// The image exists: what is written from now on is relative to it. Where that fails, the next sync reads the whole
    /// disk.
    pub fn commit(&mut self, manifest: &Manifest, disks: &[SourceDisk]) {
        for (used, disk) in std::mem::take(&mut self.disks).into_iter().zip(disks) {
            let Ok(tracking) = used.tracking else { continue };
            let mark = mark(manifest.chain, manifest.id, &disk.meta.name);
            if let Err(error) = tracking.commit(&mark) {
                let error = error.full_message();
                tracing::warn!(disk = disk.meta.name, "the next sync reads all of it: {error}");
            }
        }
    }
}

impl Drop for Trackings {
    fn drop(&mut self) {
        for disk in std::mem::take(&mut self.disks) {
            abandon(disk.tracking);
        }
    }
}

/// Leaves the bits as they are.
fn abandon(tracking: Result<Tracking, String>) {
    if let Ok(Err(error)) = tracking.map(Tracking::abandon) {
        tracing::warn!("the next sync reads a whole disk: {}", error.full_message());
    }
}

/// Which image the bits of a disk are relative to.
fn mark(chain: Uuid, image: Uuid, disk: &str) -> ImageMark {
    let mut hasher = blake3::Hasher::new_derive_key("smc 2026-11 tracker image mark");
    hasher.update(&chain.bytes());
    hasher.update(&image.bytes());
    hasher.update(disk.as_bytes());
    ImageMark(*hasher.finalize().as_bytes())
}

fn find(used: &UseTracker) -> Result<Tracker, String> {
    let found = match used.mode {
        TrackMode::Off => return Err("tracking is switched off".to_owned()),
        TrackMode::IfWatched => Tracker::find(&used.directory),
        TrackMode::Start => Tracker::start(&used.directory).map(Some),
    };
    match found {
        Ok(found) => found.ok_or_else(|| NOT_WATCHED.to_owned()),
        Err(error) => Err(error.full_message()),
    }
}

const NOT_WATCHED: &str = "no tracker watched the disk";

const OTHER_BASE: &str =
    "it has another size than in the image before, or the sync that is resumed repaired damage in the store";

fn begin_one(
    tracker: &Tracker,
    mode: TrackMode,
    target: &Target,
    parent: Option<&ImageMark>,
) -> Result<Tracking, String> {
    let watch = match mode {
        TrackMode::Start => tracker.watch(target).map_err(|error| error.full_message())?,
        _ => {
            let watch = tracker.watched(target).map_err(|error| error.full_message())?;
            let watch = watch.ok_or_else(|| NOT_WATCHED.to_owned())?;
            // It is another job's, which goes on using it.
            let known = watch.status().map_err(|error| error.full_message())?.image;
            if known.is_some() && known.as_ref() != parent {
                return Err("the tracker watches the disk for other images".to_owned());
            }
            watch
        }
    };
    watch.begin().map_err(|error| error.full_message())
}

fn target(disk: &SourceDisk, cluster_bytes: u32) -> Result<Target, String> {
    match (disk.device.kind(), disk.device.device_number()) {
        (DeviceKind::Block, Some(number)) => {
            Target::of(&Root::system(), number, cluster_bytes).map_err(|error| error.full_message())
        }
        _ => Err("it is a file, and only block devices can be tracked".to_owned()),
    }
}

/// Why the tracker does not vouch for a disk, if it does not.
fn doubt(tracking: &Tracking, parent: Option<&ImageMark>) -> Option<String> {
    match parent {
        Some(parent) => tracking.trust(parent).err().map(|doubt| doubt.to_string()),
        None => Some(OTHER_BASE.to_owned()),
    }
}

/// The image to which all must be relative that was tracked.
fn parent_mark(image: &dyn WriteImage, disk: &SourceDisk, id: DiskId) -> Option<ImageMark> {
    let parent = image.tracked_from(id)?;
    Some(mark(image.chain_id(), parent, &disk.meta.name))
}
