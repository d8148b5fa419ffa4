//! Compares everything after a sync: all of the disks with the new image, and then all that the image has stored with its digests.

use super::disks::SourceDisk;
use super::error::{Result, Within};
use super::request::{Job, Observer};
use changetrack::{Pass, Pipeline, PipelineOptions, Plan, Progress, Sink};
use cli::text::count;
use cli::units::size;
use imagefmt::{Base, ClusterUpdate, Disk, Image, Span, Verdict, Verifier, VerifyPlan};
use jiff::Timestamp;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// What a comparison came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Whether all of it was compared and is the same.
    pub is_equal: bool,
    /// What is not, each in a sentence without its end.
    pub problems: Vec<String>,
}

impl Compared {
    /// Nothing could be compared.
    pub(super) fn impossible(error: &imagefmt::Error) -> Self {
        Self {
            is_equal: false,
            problems: vec![format!("nothing was compared: {}", error.full_message())],
        }
    }
}

/// What was found of one disk.
#[derive(Debug, Default)]
struct Finding {
    /// Clusters that differ, and the first of them.
    differing: u64,
    first: Option<u64>,
    /// Bytes that could not be read from the disk.
    unread_bytes: u64,
}

impl<O: Observer> Job<'_, O> {
    /// Compares the disks with an image that was made of them. Gives the places of the disks that are not the same, too.
    ///
    /// What keeps it from comparing is a finding like others: the image is there.
    pub(super) fn compare(&self, image: &Image) -> (Compared, Vec<usize>) {
        let mut findings: Vec<Finding> = self.disks.iter().map(|_| Finding::default()).collect();
        let mut problems = Vec::new();
        if let Err(error) = self.compare_disks(image, &mut findings) {
            problems.push(format!("not everything was compared: {}", error.full_message()));
        }
        let found = || self.disks.iter().zip(&findings);
        problems.extend(found().filter_map(|(disk, finding)| described(disk, finding)));
        problems.extend(self.read_stored(image));
        let differing = (0..findings.len()).filter(|&disk| findings[disk].differing > 0);
        let compared = Compared {
            is_equal: problems.is_empty(),
            problems,
        };
        (compared, differing.collect())
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
        if let Err(error) = self.store.keep_verdict(image, &verdict) {
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
    let differs = finding.first.map(|first| {
        let clusters = count(
            usize::try_from(finding.differing).unwrap_or(usize::MAX),
            "cluster",
        );
        format!("{name} differs from the image: {clusters}, the first at byte {first}")
    });
    let unread = (finding.unread_bytes > 0).then(|| {
        let bytes = size(finding.unread_bytes);
        format!("{bytes} of {name} could not be read to be compared")
    });
    let all: Vec<String> = differs.into_iter().chain(unread).collect();
    (!all.is_empty()).then(|| all.join("; "))
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
        let finding = &mut self.findings[pass];
        finding.differing += 1;
        let offset = self.passes[pass].geometry.cluster_offset(update.index);
        finding.first.get_or_insert(offset);
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
