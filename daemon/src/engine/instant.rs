//! The instant: all filesystems on all disks of a job are frozen together, what was written last is read into memory, they are
//! thawed, and only then it is stored.

use super::converge::{Ended, PASSES_AFTER_HOOKS, PASSES_MAX, shown};
use super::disks::SourceDisk;
use super::error::{Result, Within};
use super::flush;
use super::held::{Held, METHOD, Read, WRITTEN};
use super::passes::{Reading, named};
use super::request::Observer;
use super::unfrozen::Unfrozen;
use changetrack::compare_read;
use freeze::{Evidence, FreezeOutcome, Holders, Kind, OnDisks, Watchdog, WatchdogProgram};
use imagefmt::{ClusterEncoder, ClusterUpdate, FrozenRecord, InstantRecord, PassRecord};
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

/// What became of the wish for one instant.
#[derive(Debug)]
pub(super) struct Instant {
    /// How the image shows one, or why it does not: clauses.
    pub reached: std::result::Result<String, String>,
    pub record: InstantRecord,
}

/// What came of one step, or why the way ends.
type Step<T> = std::result::Result<T, Ended>;

impl<O: Observer> Reading<'_, '_, O> {
    /// Brings all disks to one instant, if that is wanted. `first` is the pass that has been made.
    ///
    /// # Errors
    /// Those of a pass. That there is no instant is none.
    pub(super) fn instant(&mut self, first: PassRecord) -> Result<Option<Instant>> {
        let Some(budget) = self.job.request.freeze else {
            return Ok(None);
        };
        let mut record = InstantRecord {
            passes: std::iter::once(first).collect(),
            ..InstantRecord::default()
        };
        let reached = match self.bring_about(budget, &mut record) {
            Ok(reached) => Ok(reached),
            Err(Ended::Missed(why)) => Err(why),
            Err(Ended::Failed(error)) => return Err(error),
        };
        Ok(Some(Instant { reached, record }))
    }

    fn bring_about(&mut self, budget: Duration, record: &mut InstantRecord) -> Step<String> {
        if let Some(doubt) = self.doubt() {
            return Err(missed(doubt));
        }
        let mut held = Held::new(self.ids);
        let found = self.find()?;
        record.left_out = left_out(&found);
        self.converge(&found, budget, &mut held, &mut record.passes, PASSES_MAX)?;
        // Mounts may have come and gone during the passes.
        let found = self.find()?;
        record.left_out = left_out(&found);
        let unfrozen = Unfrozen::of(&found, self.job.disks, self.ids);
        let program = WatchdogProgram::this(&["thaw-watchdog"], Path::new(freeze::LIST_DIRECTORY));
        let mut watchdog = Watchdog::start(&program, &found).map_err(no_freeze)?;
        let ready = self.job.observer.before_freeze();
        let window = match ready {
            Ok(()) => self.hold(&found, &mut watchdog, budget, &mut held, record),
            Err(why) => Err(missed(why)),
        };
        self.job.observer.after_thaw();
        drop(watchdog);
        self.store(&held)?;
        let window = window?;
        note(&window.evidence, &found, record);
        self.conclude_window(&found, &unfrozen, &held, window, budget)
    }

    /// What lies on the disks, if all of it is accounted for.
    fn find(&self) -> Step<OnDisks> {
        let found = flush::find(self.job.disks, Holders::Find).map_err(missed)?;
        if let Some(unaccounted) = found.unaccounted.first() {
            return Err(missed(unaccounted));
        }
        let of_kind = |kind: Kind| found.filesystems.iter().find(move |one| one.kind == kind);
        if let Some(unreachable) = of_kind(Kind::Unreachable) {
            let at = unreachable.mount_point.display();
            return Err(missed(format_args!("{at} cannot be opened from here")));
        }
        if of_kind(Kind::Freezable).is_none() {
            return Err(missed(
                "no filesystem that can be frozen is mounted on the disks".to_owned(),
            ));
        }
        Ok(found)
    }

    /// What speaks against the bits of all disks being right since before the first read, as a clause.
    fn doubt(&self) -> Option<String> {
        let tracked = self.tracked();
        let mut disks = self.job.disks.iter().enumerate();
        disks.find_map(|(place, disk)| {
            // After a scan, what was written during it is enough.
            let tracking = match tracked.contains(&place) {
                true => self.trackings.vouching(place),
                false => self.trackings.watching(place),
            };
            let trusted = tracking.map_err(str::to_owned).and_then(|tracking| {
                let trusted = tracking.still_trusted();
                trusted.map_err(|doubt| doubt.to_string())
            });
            let doubt = trusted.err()?;
            Some(format!("{}: {doubt}", disk.meta.name))
        })
    }

    /// Makes the last passes, freezes, reads, and thaws.
    fn hold(
        &mut self,
        found: &OnDisks,
        watchdog: &mut Watchdog,
        budget: Duration,
        held: &mut Held,
        record: &mut InstantRecord,
    ) -> Step<Window> {
        self.converge(found, budget, held, &mut record.passes, PASSES_AFTER_HOOKS)?;
        let sources = self.job.disks;
        // Only one of both takes memory at a time.
        drop(self.pipeline.take());
        held.lock_memory()
            .map_err(|error| missed(format_args!("no memory could be locked to read into: {error}")))?;
        let mut trackings = self.all_watching()?;
        let ahead = held.read_ahead(sources, &mut trackings);
        if let Some(why) = not_whole(ahead, sources, budget) {
            return Err(missed(why));
        }
        // Freezing flushes too, with writers waiting: so once more without. What cannot be frozen is now on its disk.
        let flushed = found.flush();
        if let Some(held_back) = flush::held_back(found, &flushed) {
            return Err(missed(format_args!("not all could be flushed: {held_back}")));
        }
        if flushed.took >= budget {
            let took = shown(flushed.took);
            return Err(missed(format_args!(
                "the last flush before the freeze took {took}"
            )));
        }
        let frozen = found.freeze(watchdog, budget).map_err(no_freeze)?;
        // From here to the thaw: no allocation, no log line, no lock.
        let read = match frozen.is_holding() {
            true => held.take_and_read(sources, &mut trackings, frozen.deadline()),
            false => Read::TimeUp,
        };
        let evidence = frozen.thaw();
        // At once: what is mounted later, while all is stored, says nothing of that moment.
        let after = flush::find(sources, Holders::Find);
        let is_same = after.is_ok_and(|after| found.is_same(&after));
        Ok(Window {
            evidence,
            read,
            is_same,
        })
    }

    /// Stores what was read, and judges whether it is one instant.
    fn conclude_window(
        &mut self,
        found: &OnDisks,
        unfrozen: &Unfrozen,
        held: &Held,
        window: Window,
        budget: Duration,
    ) -> Step<String> {
        if let Some(why) = not_whole(window.read, self.job.disks, budget) {
            let why = window.evidence.doubt().unwrap_or(why);
            let what = format!("the filesystems were thawed before all was read: {why}");
            return Err(Ended::Missed(what));
        }
        let doubt = window
            .evidence
            .doubt()
            .or_else(|| {
                (!window.is_same)
                    .then(|| "what is mounted on the disks changed while they were frozen".to_owned())
            })
            .or_else(|| self.written_meanwhile(unfrozen, held))
            // The books are balanced only now.
            .or_else(|| self.doubt());
        if let Some(doubt) = doubt {
            return Err(Ended::Missed(doubt));
        }
        let points = found.filesystems.iter().filter(|one| one.kind == Kind::Freezable);
        let points: Vec<String> = points.map(|one| one.mount_point.display().to_string()).collect();
        Ok(format!(
            "frozen together for {}: {}",
            shown(window.evidence.held),
            points.join(", ")
        ))
    }

    /// What was written to a disk while its filesystems were frozen, as a clause.
    fn written_meanwhile(&self, unfrozen: &Unfrozen, held: &Held) -> Option<String> {
        let mut disks = self.job.disks.iter().enumerate();
        disks.find_map(|(place, disk)| {
            let doubt = unfrozen.doubt(place, &held.disks[place])?;
            Some(format!("{}: {doubt}", disk.meta.name))
        })
    }

    /// Stores what is in memory, as passes do.
    fn store(&mut self, held: &Held) -> Result<()> {
        let mut encoder = ClusterEncoder::new(self.job.request.compress_level);
        for (place, &id) in self.ids.iter().enumerate() {
            for pieces in held.pieces(place) {
                let disk = || named(&self.job.disks[place]);
                let bytes: u64 = pieces.iter().map(|(_, plain)| plain.len() as u64).sum();
                if bytes == 0 {
                    continue;
                }
                self.image.begin_pass(id, METHOD, WRITTEN).within(disk)?;
                let base = self.image.base(id);
                for (offset, plain) in pieces {
                    let mut push = |update: &ClusterUpdate<'_>| self.image.push(id, update);
                    compare_read(
                        &mut encoder,
                        id.geometry(),
                        base.as_ref(),
                        offset,
                        plain,
                        &mut push,
                    )
                    .within(disk)?;
                }
                self.image.end_pass(id, bytes).within(disk)?;
                self.read_bytes[place] += bytes;
            }
        }
        Ok(())
    }
}

/// What happened between freeze and thaw.
struct Window {
    evidence: Evidence,
    read: Read,
    /// Whether the same is mounted right after it as before.
    is_same: bool,
}

/// Why not all was read, if it was not.
fn not_whole(read: Read, sources: &[SourceDisk], budget: Duration) -> Option<String> {
    Some(match read {
        Read::Whole => return None,
        Read::TimeUp => {
            let budget = shown(budget);
            format!("not all could be read in the {budget} for which writers may be held")
        }
        Read::TooMuch => "too much had been written in the last moment".to_owned(),
        Read::Failed(place, offset, error) => {
            let name = &sources[place].meta.name;
            format!("{name} could not be read at byte {offset}: {error}")
        }
    })
}

fn missed(why: impl Display) -> Ended {
    Ended::Missed(format!("nothing was frozen: {why}"))
}

fn no_freeze(error: freeze::Error) -> Ended {
    missed(format_args!("{:#}", anyhow::Error::from(error)))
}

/// What is on the disks and will not be frozen.
fn left_out(found: &OnDisks) -> Vec<String> {
    let not_frozen = found.filesystems.iter().filter_map(|one| {
        let why = match one.kind {
            Kind::Freezable => return None,
            Kind::NotFreezable => "cannot be frozen",
            Kind::ReadOnly => "is mounted read-only",
            Kind::Unreachable => "cannot be opened from here",
        };
        Some(format!("{} ({}) {why}", one.mount_point.display(), one.fs_type))
    });
    let swaps = found
        .swaps
        .iter()
        .map(|swap| format!("{} is swap", swap.display()));
    not_frozen.chain(swaps).collect()
}

/// Records what was frozen, and how long.
fn note(evidence: &Evidence, found: &OnDisks, record: &mut InstantRecord) {
    let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    record.held_us = microseconds(evidence.held);
    record.freezing_us = microseconds(evidence.freezing);
    let frozen = evidence.filesystems.iter().filter_map(|of| match of.freeze {
        FreezeOutcome::Frozen(took) => Some((&of.mount_point, took)),
        _ => None,
    });
    record.filesystems = frozen
        .map(|(point, took)| {
            let known = found.filesystems.iter().find(|one| one.mount_point == *point);
            FrozenRecord {
                mount_point: point.display().to_string(),
                fs_type: known.map(|one| one.fs_type.clone()).unwrap_or_default(),
                freezing_us: microseconds(took),
            }
        })
        .collect();
}
