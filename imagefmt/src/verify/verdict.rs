//! What verifications of an image came to: a record beside its manifest.

use crate::error::{Error, ErrorKind, Result};
use crate::format::clusters::ClusterSet;
use crate::format::id::Uuid;
use crate::format::manifest::Manifest;
use crate::format::name::ImageId;
use crate::format::sealed::{self, sealed_record};
use crate::read::image::{Disk, Image};
use crate::storage::paths::{images_dir, verified_path};
use crate::store::Store;
use crate::verify::{Finding, Position, Resume, Sample, Scope, Verified, VerifyPlan};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Findings that are kept of a stopped verification: it must tell them again.
const FINDINGS_OF_STOPPED_MAX: usize = 1000;
/// Findings that are kept of what is damaged: the next verification finds them all.
const FINDINGS_OF_DAMAGE_MAX: usize = 20;
/// Ranges of damaged clusters that are kept of a disk: the next sync stores them anew.
const RANGES_OF_DAMAGE_MAX: usize = 4096;

/// When a verification took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// When the run began that verified this image and perhaps others: what one run did is known by it.
    pub run: Timestamp,
    /// When it began with this image.
    pub started: Timestamp,
    /// When it was done with it.
    pub finished: Timestamp,
}

/// All that is known of an image by verifying it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    format: u32,
    #[serde(default)]
    incompatible: Vec<String>,
    #[serde(default)]
    compatible: Vec<String>,
    /// Id of the image.
    image: Uuid,
    /// The last verification that read everything, be it at once or in samples.
    pub complete: Option<Complete>,
    /// Samples since then, or since the first.
    pub samples: Option<Samples>,
    /// A verification that was stopped and can be resumed.
    pub stopped: Option<Stopped>,
    /// What is damaged, until a verification of everything finds nothing.
    pub damage: Option<Damage>,
    /// The last comparison with a device.
    pub against: Option<Against>,
}

sealed_record!(Verdict);

/// A verification of everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// When it was; of samples, from the first to the last.
    #[serde(flatten)]
    pub span: Span,
    /// How many samples it took, if it was not done at once.
    pub samples: Option<u32>,
    /// Bytes of content, zeros included.
    pub checked_bytes: u64,
    /// Stored bytes that were read for it.
    pub read_bytes: u64,
    /// How many findings there were; of samples, those of the last.
    pub findings_count: u64,
}

/// Samples of an image, each of another part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// How many make up the whole.
    pub of: u32,
    /// How many were taken.
    pub done: u32,
    /// When the first was begun.
    pub since: Timestamp,
    /// When the last was taken.
    #[serde(flatten)]
    pub span: Span,
    /// Bytes of content that they had, zeros included.
    pub checked_bytes: u64,
    /// Stored bytes that were read for them.
    pub read_bytes: u64,
}

/// A verification that did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// From its beginning until it was stopped, the last time if it was resumed.
    #[serde(flatten)]
    pub span: Span,
    /// What it was to read.
    pub scope: Scope,
    /// Bytes of content that it had checked.
    pub checked_bytes: u64,
    /// Bytes of content that its scope has.
    pub total_bytes: u64,
    /// Stored bytes that were read for it.
    pub read_bytes: u64,
    /// Where it is to go on.
    pub positions: Vec<Position>,
    /// How many findings it had.
    pub findings_count: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

/// What is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// When it was last found.
    pub found: Timestamp,
    /// How many findings there are.
    pub findings_count: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
    /// The clusters that cannot be read because of them, of each disk, as ascending ranges. Where they are very many,
    /// good ones between them are in it too. Absent in what an earlier smc wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<BTreeMap<String, Vec<Range<u64>>>>,
}

impl Damage {
    /// The clusters of each disk that cannot be read; `None` if not all of them are known.
    fn known_clusters(&self) -> Option<BTreeMap<String, ClusterSet>> {
        if let Some(clusters) = &self.clusters {
            let set = |(disk, ranges): (&String, &Vec<Range<u64>>)| {
                (disk.clone(), ranges.iter().cloned().collect::<ClusterSet>())
            };
            return Some(clusters.iter().map(set).collect());
        }
        let all_kept = self.findings_count == self.findings.len() as u64;
        all_kept.then(|| clusters_of(&self.findings))
    }

    /// The clusters of a disk of this image that cannot be read, as ascending ranges; all of them if it is not known
    /// which.
    pub(crate) fn clusters_of(&self, disk: &Disk) -> Vec<Range<u64>> {
        match self.known_clusters() {
            Some(known) => known
                .get(disk.name())
                .into_iter()
                .flat_map(ClusterSet::runs)
                .collect(),
            None => vec![0..disk.geometry().cluster_count(); 1],
        }
    }

    /// Whether something is wrong with a disk that concerns none of its clusters.
    pub(crate) fn is_beside_clusters(&self, disk: &Disk) -> bool {
        let mut findings = self.findings.iter();
        self.findings_count > findings.len() as u64
            || findings
                .any(|finding| finding.disk.as_deref() == Some(disk.name()) && finding.clusters.is_empty())
    }
}

/// The clusters that findings are about, of each disk.
fn clusters_of(findings: &[Finding]) -> BTreeMap<String, ClusterSet> {
    let mut clusters: BTreeMap<String, ClusterSet> = BTreeMap::new();
    for finding in findings {
        if let Some(disk) = &finding.disk {
            clusters
                .entry(disk.clone())
                .or_default()
                .insert(finding.clusters.clone());
        }
    }
    clusters
}

/// A comparison of one disk with a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Against {
    /// When.
    #[serde(flatten)]
    pub span: Span,
    /// The disk of the image.
    pub disk: String,
    /// Path of the device or file.
    pub device: String,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Size of the device in bytes.
    pub device_size_bytes: u64,
    /// Whether both hold the same.
    pub equal: bool,
    /// In how many ranges they differ.
    pub ranges: u64,
    /// Bytes of these ranges.
    pub differing_bytes: u64,
}

/// What a verdict comes to, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerdictState {
    /// Something is damaged: found then.
    Damaged(Timestamp),
    /// A verification was stopped at this many percent.
    Stopped(u64),
    /// Everything was good then.
    Good(Timestamp),
    /// This many percent were good when the last sample was taken.
    Sampled(u64, Timestamp),
    /// Nothing was verified.
    Unknown,
}

impl Verdict {
    /// Nothing is known yet.
    pub fn new(manifest: &Manifest) -> Self {
        Self {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            image: manifest.id,
            complete: None,
            samples: None,
            stopped: None,
            damage: None,
            against: None,
        }
    }

    /// Whether everything was read, and nothing was found damaged since. A later verification that was stopped and had
    /// found nothing does not change that.
    pub fn is_good(&self) -> bool {
        let stopped_clean = self
            .stopped
            .as_ref()
            .is_none_or(|stopped| stopped.findings_count == 0);
        self.damage.is_none() && self.complete.is_some() && stopped_clean
    }

    /// What is most important to know of it.
    pub fn state(&self) -> VerdictState {
        if let Some(damage) = &self.damage {
            VerdictState::Damaged(damage.found)
        } else if let Some(stopped) = &self.stopped {
            VerdictState::Stopped(percent(stopped.checked_bytes, stopped.total_bytes))
        } else if let Some(complete) = &self.complete {
            VerdictState::Good(complete.span.finished)
        } else if let Some(samples) = &self.samples {
            let percent = percent(samples.done.into(), samples.of.into());
            VerdictState::Sampled(percent, samples.span.finished)
        } else {
            VerdictState::Unknown
        }
    }

    /// What to verify next: everything, or the next of `samples` that make up the whole.
    pub fn next(&self, samples: Option<u32>) -> VerifyPlan {
        let taken = self.samples.as_ref().filter(|taken| Some(taken.of) == samples);
        VerifyPlan {
            scope: Scope::slice(taken.map_or(0, |taken| taken.done), samples),
            resume: None,
        }
    }

    /// What is left to do of the verification that was stopped.
    pub fn resume(&self) -> Option<VerifyPlan> {
        let stopped = self.stopped.as_ref()?;
        Some(VerifyPlan {
            scope: stopped.scope,
            resume: Some(Resume {
                positions: stopped.positions.clone(),
                findings: stopped.findings.clone(),
                found_more: stopped.findings_count > stopped.findings.len() as u64,
            }),
        })
    }

    /// What the run of this begin has verified of the image, and all that it found, if that is known.
    pub fn done_by(&self, run: Timestamp) -> Option<(Scope, Option<&[Finding]>)> {
        let complete = self.complete.as_ref().filter(|complete| complete.span.run == run);
        let samples = self.samples.as_ref().filter(|samples| samples.span.run == run);
        let scope = match (complete, samples) {
            (_, Some(samples)) => Scope::Sample(Sample::new(samples.done.checked_sub(1)?, samples.of).ok()?),
            (Some(Complete { samples: None, .. }), None) => Scope::All,
            (
                Some(Complete {
                    samples: Some(of), ..
                }),
                None,
            ) => Scope::Sample(Sample::new(of.checked_sub(1)?, *of).ok()?),
            (None, None) => return None,
        };
        let findings = match &self.damage {
            None => Some(&[][..]),
            Some(damage) if damage.findings_count == damage.findings.len() as u64 => {
                Some(damage.findings.as_slice())
            }
            Some(_) => None,
        };
        Some((scope, findings))
    }

    /// Takes in a verification of the image, whose disks have `size_bytes` each. One that was resumed goes on
    /// with the times and counts of what was stopped.
    pub fn add(&mut self, plan: &VerifyPlan, mut span: Span, sizes_bytes: &[u64], verified: &Verified) {
        let mut read_bytes = verified.progress.read_bytes;
        let mut unseen = 0;
        if plan.resume.is_some()
            && let Some(stopped) = &self.stopped
        {
            span.started = stopped.span.started;
            read_bytes = read_bytes.saturating_add(stopped.read_bytes);
            unseen = stopped
                .findings_count
                .saturating_sub(stopped.findings.len() as u64);
        }
        let findings_count = unseen.saturating_add(verified.findings.len() as u64);
        let whole = verified.stopped.is_none() && matches!(plan.scope, Scope::All);
        self.judge(whole, span.finished, findings_count, &verified.findings);
        match (&verified.stopped, plan.scope) {
            (Some(positions), scope) => {
                let total = sizes_bytes.iter().map(|&size| scope.bytes_of(size));
                self.stopped = Some(Stopped {
                    span,
                    scope,
                    checked_bytes: verified.progress.checked_bytes,
                    total_bytes: total.fold(0, u64::saturating_add),
                    read_bytes,
                    positions: positions.clone(),
                    findings_count,
                    findings: first(&verified.findings, FINDINGS_OF_STOPPED_MAX),
                });
            }
            (None, Scope::All) => {
                self.stopped = None;
                self.samples = None;
                self.complete = Some(Complete {
                    span,
                    samples: None,
                    checked_bytes: verified.progress.checked_bytes,
                    read_bytes,
                    findings_count,
                });
            }
            (None, Scope::Sample(sample)) => {
                self.add_sample(
                    sample,
                    span,
                    verified.progress.checked_bytes,
                    read_bytes,
                    findings_count,
                );
            }
        }
    }

    fn add_sample(&mut self, sample: Sample, span: Span, checked: u64, read: u64, findings_count: u64) {
        let stopped = self.stopped.take();
        self.stopped = stopped.filter(|stopped| stopped.scope == Scope::All);
        let before = self.samples.take().filter(|samples| samples.of == sample.of());
        let mut samples = before.unwrap_or(Samples {
            of: sample.of(),
            done: 0,
            since: span.started,
            span,
            checked_bytes: 0,
            read_bytes: 0,
        });
        samples.done = sample.slice() + 1;
        samples.span = span;
        samples.checked_bytes = samples.checked_bytes.saturating_add(checked);
        samples.read_bytes = samples.read_bytes.saturating_add(read);
        if samples.done < samples.of {
            self.samples = Some(samples);
            return;
        }
        if self
            .damage
            .as_ref()
            .is_some_and(|damage| damage.found < samples.since)
        {
            self.damage = None;
        }
        self.complete = Some(Complete {
            span: Span {
                started: samples.since,
                ..span
            },
            samples: Some(samples.of),
            checked_bytes: samples.checked_bytes,
            read_bytes: samples.read_bytes,
            findings_count,
        });
    }

    /// Remembers what is damaged. Only what has read everything can say that what was damaged no longer is.
    fn judge(&mut self, whole: bool, found: Timestamp, count: u64, findings: &[Finding]) {
        let before = self.damage.take();
        if count == 0 {
            self.damage = before.filter(|_| !whole);
            return;
        }
        let untold = count.saturating_sub(findings.len() as u64);
        // A verification that was resumed does not know all that it had found: the clusters of that are kept here.
        let known = before.as_ref().filter(|_| !whole || untold > 0);
        let known = known.map_or_else(|| Some(BTreeMap::new()), Damage::known_clusters);
        let clusters = known.map(|known| kept_clusters(known, clusters_of(findings)));
        let before = before.filter(|_| !whole);
        let (before_count, mut all) =
            before.map_or((0, Vec::new()), |damage| (damage.findings_count, damage.findings));
        let unkept = before_count.saturating_sub(all.len() as u64);
        let new: Vec<Finding> = findings
            .iter()
            .filter(|finding| !all.contains(finding))
            .cloned()
            .collect();
        let findings_count = (all.len() as u64 + new.len() as u64).saturating_add(unkept.max(untold));
        all.extend(new);
        self.damage = Some(Damage {
            found,
            findings_count,
            findings: first(&all, FINDINGS_OF_DAMAGE_MAX),
            clusters,
        });
    }

    /// Takes in a comparison with a device, and what was found damaged in the image's tree.
    pub fn add_comparison(&mut self, against: Against, findings: &[Finding]) {
        let (found, count) = (against.span.finished, findings.len() as u64);
        self.judge(false, found, count, findings);
        self.against = Some(against);
    }

    /// Refuses what no verification writes.
    fn check(&self, manifest: &Manifest) -> Result<()> {
        if self.image != manifest.id {
            return Err(Error::damaged(format!(
                "is about image {}, not this one",
                self.image
            )));
        }
        let damage = self.damage.iter().flat_map(|damage| &damage.findings);
        let stopped = self.stopped.iter().flat_map(|stopped| &stopped.findings);
        if damage
            .chain(stopped)
            .any(|finding| finding.clusters.start > finding.clusters.end)
        {
            return Err(Error::damaged(
                "field findings has a range that ends before it starts",
            ));
        }
        let clusters = self.damage.iter().flat_map(|damage| &damage.clusters);
        if clusters
            .flat_map(BTreeMap::values)
            .flatten()
            .any(|range| range.start > range.end)
        {
            return Err(Error::damaged(
                "field clusters has a range that ends before it starts",
            ));
        }
        if self
            .samples
            .as_ref()
            .is_some_and(|samples| samples.done == 0 || samples.done >= samples.of)
        {
            return Err(Error::damaged("field samples counts more samples than there are"));
        }
        Ok(())
    }
}

/// Clusters of both, in so few ranges that a record has room for them.
fn kept_clusters(
    mut known: BTreeMap<String, ClusterSet>,
    found: BTreeMap<String, ClusterSet>,
) -> BTreeMap<String, Vec<Range<u64>>> {
    for (disk, found) in found {
        let known = known.entry(disk).or_default();
        found.runs().for_each(|run| known.insert(run));
    }
    let ranges = |set: ClusterSet| set.coarsened(RANGES_OF_DAMAGE_MAX).runs().collect();
    known.into_iter().map(|(disk, set)| (disk, ranges(set))).collect()
}

fn first(findings: &[Finding], max: usize) -> Vec<Finding> {
    findings.iter().take(max).cloned().collect()
}

/// So many of the whole in percent, rounded down.
fn percent(part: u64, whole: u64) -> u64 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    u64::try_from(percent).map_or(100, |percent| percent.min(100))
}

impl Store {
    /// What verifications of an image have come to; nothing if there is no record.
    ///
    /// # Errors
    /// `Damaged` for a record that is damaged or about another image, `Unsupported` for one of a newer smc:
    /// nothing depends on it, so continue without it.
    pub fn verdict(&self, image: &ImageId, manifest: &Manifest) -> Result<Option<Verdict>> {
        let path = verified_path(image.chain(), image.sequence());
        let Some(verdict) = sealed::read_if_there::<Verdict>(&**self.storage(), &path)? else {
            return Ok(None);
        };
        let checked = verdict.check(manifest);
        checked.map_err(|error| error.in_file(&path).of_image("verification of image", image))?;
        Ok(Some(verdict))
    }

    /// Puts a verdict beside its image, which is held open, so it cannot be deleted meanwhile.
    ///
    /// # Errors
    /// `Io` where the store cannot be written, or the record that is there cannot be read: it may say more than the new
    /// one. `Unsupported` where it is of a newer smc. Either is left alone; a damaged one is replaced.
    pub fn keep_verdict(&self, image: &Image, verdict: &Verdict) -> Result<()> {
        let id = image.id();
        match self.verdict(id, image.manifest()) {
            Err(error) if error.kind() != ErrorKind::Damaged => return Err(error),
            _ => {}
        }
        let path = verified_path(id.chain(), id.sequence());
        sealed::replace(&**self.storage(), &images_dir(id.chain()), &path, verdict)
            .map_err(|error| error.of_image("keep the verification of image", id))
    }
}
