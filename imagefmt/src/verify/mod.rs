//! Reads what images hold and says what is not as it was written.

pub(crate) mod boot;
mod finding;
mod inspect;
mod reading;
mod scope;
pub(crate) mod verdict;
mod walk;

pub use finding::Finding;
pub use inspect::Inspection;
pub use scope::{Sample, Scope};

use crate::error::Result;
use crate::read::image::{Disk, Image};
use crate::storage::Lock;
use crate::store::Store;
use blockio::AlignedBuf;
use finding::Problem;
use reading::{RUN_BYTES_MAX, Run, work};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use walk::{Readers, Task, Walk};

/// How far a verification is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes of the disks' content that were looked at, zeros included; of a sample, those that it has.
    pub checked_bytes: u64,
    /// Stored bytes that were read for it.
    pub read_bytes: u64,
}

impl std::ops::Add for VerifyProgress {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            checked_bytes: self.checked_bytes + other.checked_bytes,
            read_bytes: self.read_bytes + other.read_bytes,
        }
    }
}

/// What is to be verified of an image.
#[derive(Debug, Clone, Default)]
pub struct VerifyPlan {
    /// Which clusters are read.
    pub(crate) scope: Scope,
    /// Where an earlier verification of the same scope was stopped.
    pub resume: Option<Resume>,
}

/// Where a verification was stopped, and what it had found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// Of each disk; one that is missing is begun anew.
    pub positions: Vec<Position>,
    /// What it had found: reported again.
    pub findings: Vec<Finding>,
    /// Whether it had found more than that.
    pub found_more: bool,
}

/// Up to where a disk is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The disk's name.
    pub disk: String,
    /// The first cluster that is not verified; the number of its clusters when the disk is done.
    pub next_cluster: u64,
}

impl VerifyPlan {
    /// To verify everything, or the first of `samples` that make up the whole.
    pub fn first(samples: Option<u32>) -> Self {
        Self {
            scope: Scope::slice(0, samples),
            resume: None,
        }
    }

    /// How many bytes of a disk of `size_bytes` are to be verified.
    pub fn bytes_of(&self, size_bytes: u64) -> u64 {
        self.scope.bytes_of(size_bytes)
    }
}

/// What a verification came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// All that is wrong; nothing is a good image, or the good part of one.
    pub findings: Vec<Finding>,
    /// What was done for it. A resumed one counts what it checked before, but not what it read.
    pub progress: VerifyProgress,
    /// Where it was stopped, if it was.
    pub stopped: Option<Vec<Position>>,
}

/// Verifies images one after another. What two images share is read once.
#[derive(Debug, Default)]
pub struct Verifier {
    /// The image of each chain and disk that was verified last.
    baselines: HashMap<(String, String), Baseline>,
    /// Whether what is verified now is an unfinished sync.
    unfinished: bool,
}

/// A disk that was verified.
#[derive(Debug)]
struct Baseline {
    disk: Disk,
    scope: Scope,
    findings: Vec<Finding>,
}

impl Verifier {
    /// A verifier that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Verifies every disk of an image, until `progress` breaks.
    ///
    /// Checked are: each layer's header, each node's place and digest, the digest of each cluster that the
    /// plan's scope has, that digests and sizes of the disks follow from their roots, that the manifest counts
    /// what is pointed to, and that padding before these clusters and before nodes is zero.
    ///
    /// `progress` is called after each read that is begun, of 1 MiB at most; a few of them wait for a worker at
    /// a time. So a caller that sleeps in it slows reading down. What was begun when it breaks is finished.
    pub fn verify(
        &mut self,
        image: &Image,
        plan: &VerifyPlan,
        progress: &mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
    ) -> Verified {
        let mut verified = Verified::default();
        let mut positions = Vec::new();
        let stop = Cell::new(false);
        for disk in image.disks() {
            let so_far = verified.progress;
            let mut report = |now| {
                let flow = progress(so_far + now);
                stop.set(stop.get() || flow.is_break());
                flow
            };
            let done = if stop.get() {
                DiskVerified::not_begun(disk, plan)
            } else {
                self.disk(image, disk, plan, &mut report)
            };
            verified.progress = verified.progress + done.progress;
            verified.findings.extend(done.findings);
            positions.push(Position {
                disk: disk.name().to_owned(),
                next_cluster: done.next_cluster,
            });
        }
        let ends = image.disks().iter().map(|disk| disk.geometry().cluster_count());
        let complete = positions
            .iter()
            .zip(ends)
            .all(|(position, end)| position.next_cluster == end);
        verified.stopped = (!complete).then_some(positions);
        verified
    }

    fn disk(
        &mut self,
        image: &Image,
        disk: &Disk,
        plan: &VerifyPlan,
        report: &mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
    ) -> DiskVerified {
        let key = key(image, disk);
        let before = DiskVerified::not_begun(disk, plan);
        let done = if before.is_complete(disk) {
            let _ = report(before.progress);
            before
        } else {
            let problem = |finding: &Finding| Problem::of(finding, finding.clusters.clone());
            verify_disk(
                Task {
                    manifest: image.manifest(),
                    disk,
                    scope: plan.scope,
                    start: before.next_cluster,
                    earlier: before.findings.iter().map(problem).collect(),
                    baseline: self.baselines.get(&key),
                    unfinished: self.unfinished,
                },
                report,
            )
        };
        // A disk of which not every finding is known must not answer for others.
        let found_more = plan.resume.as_ref().is_some_and(|resume| resume.found_more);
        if done.is_complete(disk) && !found_more {
            let baseline = Baseline {
                disk: disk.clone(),
                scope: plan.scope,
                findings: done.findings.clone(),
            };
            self.baselines.insert(key, baseline);
        }
        done
    }

    /// Verifies what the unfinished sync of a chain has stored so far, as if it were an image. Nothing where there is none,
    /// or where a running sync has replaced it meanwhile: then it has freed what was being read.
    ///
    /// # Errors
    /// When what is kept of the sync cannot be read, for the reason that [`Store::inspect_chain`] tells too.
    pub fn verify_unfinished(
        &mut self,
        store: &Store,
        chain: &str,
        plan: &VerifyPlan,
        progress: &mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
    ) -> Result<Option<Verified>> {
        let Some(manifest) = store.unfinished_in(chain)? else {
            return Ok(None);
        };
        let (id, label) = (manifest.id, format!("{}/unfinished", manifest.job));
        let image = store.chain(chain)?.open(manifest.into(), Lock::new(()))?;
        self.unfinished = true;
        let mut verified = self.verify(&image, plan, progress);
        self.unfinished = false;
        // An image of the chain that is verified later is not to inherit what is no image's.
        self.baselines.retain(|(of, _), _| of != chain);
        if store.read_checkpoint(chain)?.is_none_or(|now| now.id != id) {
            return Ok(None);
        }
        for finding in &mut verified.findings {
            finding.image.clone_from(&label);
        }
        Ok(Some(verified))
    }

    /// Takes an image as verified by an earlier run, which found exactly this: what it shares with others is
    /// not read again.
    pub fn remember(&mut self, image: &Image, scope: Scope, findings: &[Finding]) {
        for disk in image.disks() {
            let baseline = Baseline {
                disk: disk.clone(),
                scope,
                findings: of_disk(findings, disk),
            };
            self.baselines.insert(key(image, disk), baseline);
        }
    }
}

fn key(image: &Image, disk: &Disk) -> (String, String) {
    (image.id().chain().to_owned(), disk.name().to_owned())
}

fn of_disk(findings: &[Finding], disk: &Disk) -> Vec<Finding> {
    let own = findings
        .iter()
        .filter(|finding| finding.disk.as_deref() == Some(disk.name()));
    own.cloned().collect()
}

/// What the verification of one disk came to.
#[derive(Debug)]
struct DiskVerified {
    findings: Vec<Finding>,
    progress: VerifyProgress,
    next_cluster: u64,
}

impl DiskVerified {
    /// A disk as an earlier run left it, or with nothing verified.
    fn not_begun(disk: &Disk, plan: &VerifyPlan) -> Self {
        let geometry = disk.geometry();
        let resume = plan.resume.as_ref();
        let position = resume.and_then(|resume| {
            let mut positions = resume.positions.iter();
            positions.find(|position| position.disk == disk.name())
        });
        let next = position.map_or(0, |position| position.next_cluster);
        let next_cluster = next.min(geometry.cluster_count());
        let checked = geometry.cluster_offset(next_cluster).min(geometry.size_bytes());
        Self {
            findings: resume.map_or_else(Vec::new, |resume| of_disk(&resume.findings, disk)),
            progress: VerifyProgress {
                checked_bytes: plan.scope.bytes_of(checked),
                read_bytes: 0,
            },
            next_cluster,
        }
    }

    fn is_complete(&self, disk: &Disk) -> bool {
        self.next_cluster == disk.geometry().cluster_count()
    }
}

/// Runs that wait for a worker.
const RUNS_QUEUED_MAX: usize = 16;

fn verify_disk(task: Task<'_>, report: &mut dyn FnMut(VerifyProgress) -> ControlFlow<()>) -> DiskVerified {
    let disk = task.disk;
    let workers = workers(disk);
    if workers <= 1 {
        let mut walk = Walk::new(task, Readers::Itself(AlignedBuf::new(0)), report);
        walk.run();
        return walk.into_verified();
    }
    let (run_sender, runs) = sync_channel::<Run>(RUNS_QUEUED_MAX);
    let (problem_sender, problems) = channel::<Vec<Problem>>();
    let runs = Arc::new(Mutex::new(runs));
    let mut walk = Walk::new(task, Readers::Workers(run_sender), report);
    thread::scope(|scope| {
        for _ in 0..workers {
            let (runs, problems) = (runs.clone(), problem_sender.clone());
            scope.spawn(move || work(disk.tree(), &runs, &problems));
        }
        drop((runs, problem_sender));
        walk.run();
    });
    walk.problems.extend(problems.into_iter().flatten());
    walk.into_verified()
}

impl Walk<'_> {
    fn into_verified(mut self) -> DiskVerified {
        DiskVerified {
            findings: self.findings(),
            progress: self.progress,
            next_cluster: self.next,
        }
    }
}

/// Reads of a run that are in flight while every core checks another one. With two threads for each core, a disk that was
/// read at full speed by 16 reads at a time gave half of it.
const READS_IN_FLIGHT: usize = 16;

/// Threads that read and check, if there is work for them.
fn workers(disk: &Disk) -> usize {
    let runs = usize::try_from(disk.size_bytes().div_ceil(RUN_BYTES_MAX)).unwrap_or(usize::MAX);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    runs.min(cores + READS_IN_FLIGHT)
}
