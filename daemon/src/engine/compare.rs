//! Compares everything after a sync: all of the disks with the new image, and then all that the image has stored with its digests.
//!
//! What the tracker has seen written since it was read cannot be compared, and is counted: a disk that is in use goes on being written
//! to. Everything else has to be the same.

use super::destination::Destination;
use super::disks::SourceDisk;
use super::error::{Result, Within};
use super::request::{Job, Observer};
use super::seen::Seen;
use super::tracked::Trackings;
use changetrack::{Pass, Pipeline, PipelineOptions, Plan, Progress, Sink};
use cli::text::count;
use cli::units::size;
use imagefmt::{Base, ClusterUpdate, Disk, Geometry, Image, Span, Verdict, Verifier, VerifyPlan};
use jiff::Timestamp;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use tracker::Bitmap;

/// What a comparison came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Whether all of it was compared and is the same, but for what was written to since.
    pub is_equal: bool,
    /// What is not, each in a sentence without its end.
    pub problems: Vec<String>,
    /// What was written to since it was read, and so not compared, each in a sentence without its end.
    pub written: Vec<String>,
}

impl Compared {
    /// Nothing could be compared.
    pub(super) fn impossible(error: &imagefmt::Error) -> Self {
        Self {
            is_equal: false,
            problems: vec![format!("nothing was compared: {}", error.full_message())],
            written: Vec::new(),
        }
    }
}

/// What was found of one disk.
#[derive(Debug)]
struct Finding {
    /// Absent of a disk that the image does not have.
    geometry: Option<Geometry>,
    /// Clusters that differ.
    differing: Bitmap,
    /// Clusters that differ and were written to since they were read.
    written: u64,
    /// Bytes that could not be read from the disk.
    unread_bytes: u64,
    /// Why it is not known what was written to.
    doubt: Option<String>,
}

impl Finding {
    fn none(disk: &SourceDisk, image: &Image) -> Self {
        let geometry = image.disk(Some(&disk.meta.name)).map(Disk::geometry).ok();
        let clusters = geometry.map_or(0, |geometry| geometry.cluster_count());
        Self {
            geometry,
            differing: Bitmap::empty(clusters),
            written: 0,
            unread_bytes: 0,
            doubt: None,
        }
    }

    /// Takes out what was written to since it was read, as the tracker of the disk says.
    fn excuse(&mut self, disk: usize, trackings: &mut Trackings) {
        if self.differing.is_empty() {
            return;
        }
        let found = self.differing.count();
        self.doubt = match trackings.believed(disk) {
            Ok(Some(tracking)) => {
                let look = |deadline| tracking.settle_since_read(deadline);
                match Seen::judge(&mut self.differing, look) {
                    Seen::All | Seen::NotAll => None,
                    Seen::Unknown(why) => Some(why),
                }
            }
            Ok(None) => Some(NOT_WATCHED.to_owned()),
            Err(doubt) => Some(format!("its tracker cannot be believed: {doubt}")),
        };
        self.written = found - self.differing.count();
    }
}

/// Why it is not known what was written to on a disk without a tracker, and what can be done.
const NOT_WATCHED: &str =
    "no tracker watches it, so what is written to after the sync cannot be told from what is wrong";

impl<O: Observer> Job<'_, O> {
    /// Compares the disks with an image that was made of them. A disk that is not the same is read completely by the next sync,
    /// whatever its tracker says.
    ///
    /// What keeps it from comparing is a finding like others: the image is there.
    pub(super) fn compare(&self, image: &Image, trackings: &mut Trackings) -> Compared {
        let none = |disk: &SourceDisk| Finding::none(disk, image);
        let mut findings: Vec<Finding> = self.disks.iter().map(none).collect();
        let mut problems = Vec::new();
        if let Err(error) = self.compare_disks(image, &mut findings) {
            problems.push(format!("not everything was compared: {}", error.full_message()));
        }
        for (disk, finding) in findings.iter_mut().enumerate() {
            finding.excuse(disk, trackings);
            if !finding.differing.is_empty() {
                trackings.give_up(disk);
            }
        }
        let found = || self.disks.iter().zip(&findings);
        problems.extend(found().filter_map(|(disk, finding)| described(disk, finding)));
        problems.extend(self.read_stored(image));
        Compared {
            is_equal: problems.is_empty(),
            problems,
            written: found()
                .filter_map(|(disk, finding)| written(disk, finding))
                .collect(),
        }
    }

    /// Reads all of all disks, and compares it with the digests in the image.
    fn compare_disks(&self, image: &Image, findings: &mut [Finding]) -> Result<()> {
        let of_image = |disk: &SourceDisk| image.disk(Some(&disk.meta.name)).within(|| named(disk));
        let stored = self.disks.iter().map(of_image).collect::<Result<Vec<&Disk>>>()?;
        let plans: Vec<Plan> = stored
            .iter()
            .map(|disk| Plan::scan(disk.geometry(), true).because("compared after the sync"))
            .collect();
        let passes: Vec<Pass<'_>> = self
            .disks
            .iter()
            .zip(stored)
            .zip(&plans)
            .map(|((disk, stored), plan)| Pass {
                device: &disk.device,
                geometry: stored.geometry(),
                plan,
                base: Some(Base::from(stored.clone())),
                pace: Some(self.control.pace().clone()),
                on_read_error: blockio::OnReadError::Defer,
                progress: Arc::new(Progress::default()),
            })
            .collect();
        let options = PipelineOptions {
            compress_level: 0,
            ..PipelineOptions::for_disks(passes.len())
        };
        let mut comparing = Comparing {
            job: self,
            passes: &passes,
            shown: passes.iter().map(|_| None).collect(),
            findings,
        };
        let stop = self.control.stop_flag();
        Pipeline::new(&options)?.run(&passes, stop, &mut comparing)?;
        Ok(())
    }

    /// Reads all that the image has stored; gives what of it is damaged. The result is kept beside the image, as that of
    /// `smc-image verify` is: the next sync stores anew what is damaged.
    fn read_stored(&self, image: &Image) -> Vec<String> {
        let mut look = |_| match self.control.is_stopped() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let (plan, started) = (VerifyPlan::default(), Timestamp::now());
        let verified = Verifier::new().verify(image, &plan, &mut look);
        let span = Span {
            run: started,
            started,
            finished: Timestamp::now(),
        };
        let sizes: Vec<u64> = image.disks().iter().map(Disk::size_bytes).collect();
        // The image is new: nothing was known of it.
        let mut verdict = Verdict::new(image.manifest());
        verdict.add(&plan, span, &sizes, &verified);
        if let Destination::Store(store) = self.destination
            && let Err(error) = store.keep_verdict(image, &verdict)
        {
            let error = error.full_message();
            self.observer.warn(&format!(
                "the result of the comparison cannot be kept beside the image: {error}"
            ));
        }
        let damage = verified
            .findings
            .iter()
            .take(DAMAGE_NAMED)
            .map(ToString::to_string);
        let stopped = verified
            .stopped
            .map(|_| "not all of what is stored was read: the sync was stopped".to_owned());
        damage.chain(stopped).collect()
    }
}

/// Damaged places that are named one by one; `smc-image verify` names all.
const DAMAGE_NAMED: usize = 5;

fn named(disk: &SourceDisk) -> String {
    format!("compare {} ({})", disk.meta.name, disk.device.path().display())
}

/// What is wrong with a disk, if anything is.
fn described(disk: &SourceDisk, finding: &Finding) -> Option<String> {
    let name = &disk.meta.name;
    let first = finding.differing.ranges(0).next();
    let differs = first.map(|first| {
        let clusters = clusters(finding.differing.count());
        let first = finding
            .geometry
            .map_or(0, |geometry| geometry.cluster_offset(first.start));
        let doubt = finding.doubt.as_ref();
        let doubt = doubt.map_or_else(String::new, |doubt| format!(" ({doubt})"));
        format!("{name} differs from the image: {clusters}, the first at byte {first}{doubt}")
    });
    let unread = (finding.unread_bytes > 0).then(|| {
        let bytes = size(finding.unread_bytes);
        format!("{bytes} of {name} could not be read to be compared")
    });
    let all: Vec<String> = differs.into_iter().chain(unread).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// What of a disk was not compared.
fn written(disk: &SourceDisk, finding: &Finding) -> Option<String> {
    let (name, number) = (&disk.meta.name, finding.written);
    let were = if number == 1 { "was" } else { "were" };
    (number > 0).then(|| {
        let clusters = clusters(number);
        format!("{clusters} of {name} {were} written to since the image's moment and not compared")
    })
}

fn clusters(number: u64) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), "cluster")
}

/// Takes what differs, and stores nothing.
struct Comparing<'a, 'j, O: Observer> {
    job: &'a Job<'j, O>,
    passes: &'a [Pass<'a>],
    shown: Vec<Option<O::Shown>>,
    findings: &'a mut [Finding],
}

impl<O: Observer> Sink for Comparing<'_, '_, O> {
    fn begin(&mut self, pass: usize) {
        let (disk, at) = (&self.job.disks[pass], &self.passes[pass]);
        let name = &disk.meta.name;
        self.shown[pass] = Some(self.job.observer.disk(name, at.plan.bytes(), &at.progress));
    }

    fn push(&mut self, pass: usize, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        self.findings[pass].differing.insert(update.index);
        Ok(())
    }

    fn unread(&mut self, pass: usize, bytes: Range<u64>) {
        self.findings[pass].unread_bytes += bytes.end - bytes.start;
    }

    fn end(&mut self, pass: usize, _compared_bytes: u64) -> imagefmt::Result<()> {
        self.shown[pass] = None;
        Ok(())
    }
}
