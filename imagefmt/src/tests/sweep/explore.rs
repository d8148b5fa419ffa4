//! Cuts the power at every operation of a workload, in every way that a model allows, and again while
//! somebody recovers from it.

use super::driver::{Driver, Trouble};
use super::oracle::{self, Since};
use super::place::{Code, Cut, Place};
use super::workload::{Step, Workload};
use super::world::World;
use crate::tests::sim::{Failure, Fault, FsModel, Lies, Op, Random, SimDisk, Snapshot, corners};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Whether all corner cases are tried.
    pub corners: bool,
    /// Random outcomes at each place and model, beside the corner cases.
    pub seeds: usize,
    /// One of so many states is recovered from with more power cuts on the way.
    pub nest_one_in: u64,
    /// Outcomes at each operation of such a recovery.
    pub nested_outcomes: usize,
    /// Which random outcomes: other runs try others.
    pub seed: u64,
    /// Syncs that are left out on purpose, to see that it is found.
    pub lies: Option<Lies>,
}

/// What was tried, and what was found.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Operations at which the power was cut.
    pub points: usize,
    /// Points, times models, times outcomes.
    pub cases: usize,
    /// Cases that differ in what is found on the disk or in what must be there; each was gone on from.
    pub states: usize,
    /// The same of power cuts during a recovery, and during the recovery from that.
    pub nested: [usize; 2],
    pub violations: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.points += other.points;
        self.cases += other.cases;
        self.states += other.states;
        self.nested[0] += other.nested[0];
        self.nested[1] += other.nested[1];
        self.violations.extend(other.violations.iter().cloned());
    }
}

/// A run of a workload without a fault: every disk and every state of knowledge on its way.
#[derive(Default)]
struct Recorded {
    snapshots: Vec<Snapshot>,
    worlds: Vec<World>,
}

/// Where all that is known of a workload and of what was found is kept.
pub struct Explorer<'a> {
    workload: &'a Workload,
    effort: Effort,
    recorded: Recorded,
    /// What was looked at already: the disk's content and what must be there.
    seen: Mutex<HashSet<(usize, [u8; 32])>>,
    tally: Mutex<Tally>,
    /// Where it begins.
    place: Place,
}

/// A store at the first step of a workload.
#[derive(Debug)]
pub struct Prepared<'a> {
    pub workload: &'a Workload,
    pub disk: SimDisk,
    world: World,
}

impl<'a> Prepared<'a> {
    pub fn new(workload: &'a Workload, lies: Option<Lies>) -> Self {
        let disk = SimDisk::new();
        disk.skip_syncs(lies);
        let mut driver = Driver::new(disk.clone(), World::default(), workload, true);
        if let Err(violation) = driver.steps(&workload.before) {
            panic!("{}: before its first step: {violation}", workload.name);
        }
        let world = driver.world;
        Self {
            workload,
            disk,
            world,
        }
    }

    /// Does the steps on a disk of their own.
    fn run(&self, fault: Option<Fault>) -> (Driver<'a>, Result<(), String>) {
        let disk = self.disk.fork();
        let healthy = fault.is_none();
        let mut driver = Driver::new(disk.clone(), self.world.clone(), self.workload, healthy);
        disk.record();
        disk.fail(fault);
        let ended = if healthy {
            driver.steps(&self.workload.steps)
        } else {
            let mut steps = self.workload.steps.iter();
            steps.try_for_each(|step| match driver.step(step) {
                Err(Trouble::Violation(violation)) => Err(violation),
                _ => Ok(()),
            })
        };
        disk.fail(None);
        (driver, ended)
    }

    /// What is done on a disk, from the first step of its preparation on.
    pub fn ops(&self, fault: Option<Fault>) -> Vec<Op> {
        self.run(fault).0.disk.ops()
    }
}

impl<'a> Explorer<'a> {
    pub fn new(workload: &'a Workload, effort: Effort) -> Self {
        Self::with_fault(&Prepared::new(workload, effort.lies), effort, None)
    }

    /// A run in which an operation fails; those who were panic_message of it go on as far as they can.
    pub fn with_fault(prepared: &Prepared<'a>, effort: Effort, fault: Option<Fault>) -> Self {
        let workload = prepared.workload;
        let run = || {
            let (mut driver, ended) = prepared.run(fault);
            let snapshots = driver.disk.take_snapshots();
            let worlds = std::mem::take(&mut driver.worlds);
            (Recorded { snapshots, worlds }, ended.map(|()| driver))
        };
        let place = Place {
            workload: workload.name.clone(),
            fault,
            cuts: Vec::new(),
        };
        let (recorded, ended) = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(run) => run,
            Err(panic) => (Recorded::default(), Err(panic_message(&*panic))),
        };
        let explorer = Self {
            workload,
            effort,
            tally: Mutex::new(Tally {
                points: recorded.snapshots.len(),
                ..Tally::default()
            }),
            recorded,
            seen: Mutex::default(),
            place,
        };
        let alive = fault.is_none_or(|fault| fault.failure != Failure::PowerOff);
        match ended {
            Err(violation) => explorer.report(&violation, &explorer.place),
            Ok(driver) if alive => explorer.live_on(driver),
            Ok(_) => {}
        }
        explorer
    }

    /// The same process goes on, now that nothing fails any more.
    fn live_on(&self, mut driver: Driver<'a>) {
        let work = || {
            oracle::check(&driver.disk, &mut driver.world, Since::Errors)?;
            let steps = oracle::next_steps(&driver.world, self.workload, &mut self.random_at(&self.place));
            oracle::resume(&mut driver, &steps, true)
        };
        let lived = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panic_message(&*panic)));
        if let Err(violation) = lived {
            self.report(&violation, &self.place);
        }
    }

    /// Cuts the power at some places after the fault.
    pub fn explore_some(&self, count: usize) {
        let mut random = self.random_at(&self.place);
        let fault = self.place.fault.map_or(0, |fault| fault.at);
        let after: Vec<&Snapshot> = self
            .recorded
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.op > fault)
            .collect();
        for _ in 0..count {
            // Half of them at the end, where everything that was panic_message of has been acted upon.
            let Some(last) = after.len().checked_sub(1) else {
                return;
            };
            let at = if random.below(2) == 0 {
                last as u64
            } else {
                random.below(after.len() as u64)
            };
            let snapshot = after[at as usize];
            let cut = any_cut(snapshot, &mut random);
            self.count(|tally| tally.cases += 1);
            self.cut(snapshot, cut);
        }
    }

    /// A place for a power cut, the same in every run.
    pub fn any_place(&self) -> Option<Place> {
        let mut random = self.random_at(&self.place);
        let at = random.below(self.recorded.snapshots.len() as u64) as usize;
        let snapshot = self.recorded.snapshots.get(at)?;
        Some(self.place.and_then(any_cut(snapshot, &mut random)))
    }

    pub fn points(&self) -> usize {
        self.recorded.snapshots.len()
    }

    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Cuts the power at one point in every way.
    pub fn explore(&self, point: usize) {
        let snapshot = &self.recorded.snapshots[point];
        for model in FsModel::ALL {
            for outcome in self.outcomes(snapshot, model) {
                self.count(|tally| tally.cases += 1);
                let op = snapshot.op;
                self.cut(snapshot, Cut { model, op, outcome });
            }
        }
    }

    fn cut(&self, snapshot: &Snapshot, cut: Cut) {
        let media = snapshot.media(cut.model);
        let Some(outcome) = cut.outcome.outcome(media) else {
            return;
        };
        let found = outcome.found(media);
        let state = (snapshot.mark, found.digest());
        let is_new = self
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(state);
        if is_new {
            self.count(|tally| tally.states += 1);
            let world = &self.recorded.worlds[snapshot.mark];
            self.found(&SimDisk::holding(found), world, &self.place.and_then(cut));
        }
    }

    fn outcomes(&self, snapshot: &Snapshot, model: FsModel) -> Vec<Code> {
        let media = snapshot.media(model);
        let mut codes = Vec::new();
        if self.effort.corners {
            codes.extend((0..corners(media).len()).map(Code::Corner));
        }
        if media.pending.len() > 1 || !self.effort.corners {
            let place = format!("{}/{}/{}", self.workload.name, model.name(), snapshot.op);
            let mut random = Random::new(Random::seed_of(&place) ^ self.effort.seed);
            codes.extend((0..self.effort.seeds).map(|_| Code::Seed(random.next())));
        }
        codes
    }

    /// Looks at a disk as it was found, and continues with it.
    fn found(&self, disk: &SimDisk, world: &World, place: &Place) {
        match self.recovery(disk, world, place, self.is_nested(place)) {
            Ok(recovery) => self.nest(&recovery, place),
            Err(violation) => self.report(&violation, place),
        }
    }

    fn report(&self, violation: &str, place: &Place) {
        let what = format!(
            "{place}: {violation}\n    SMC_SWEEP='{place}' cargo test -p imagefmt --locked sweep::reproduce -- --nocapture"
        );
        self.count(|tally| tally.violations.push(what));
    }

    /// Checks a disk as it was found, and recovers: what is recorded on the way is empty if nobody wants it.
    fn recovery(
        &self,
        disk: &SimDisk,
        world: &World,
        place: &Place,
        wanted: bool,
    ) -> Result<Recorded, String> {
        let mut random = self.random_at(place);
        disk.skip_syncs(self.effort.lies);
        let work = || {
            let mut world = world.clone();
            oracle::check(disk, &mut world, Since::Crash)?;
            let steps: Vec<Step> = oracle::next_steps(&world, self.workload, &mut random);
            let mut driver = Driver::new(disk.clone(), world, self.workload, true);
            if wanted {
                disk.record();
            }
            oracle::resume(&mut driver, &steps, random.below(4) == 0)?;
            Ok(driver.worlds)
        };
        let worlds =
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panic_message(&*panic)))?;
        let snapshots = if wanted { disk.take_snapshots() } else { Vec::new() };
        Ok(Recorded { snapshots, worlds })
    }

    /// What follows from a place: the same in every run.
    fn random_at(&self, place: &Place) -> Random {
        Random::new(Random::seed_of(&place.to_string()))
    }

    fn is_nested(&self, place: &Place) -> bool {
        let one_in = match place.cuts.len() {
            1 => self.effort.nest_one_in,
            // Each recovery has many operations, so few of those below are enough.
            2 => self.effort.nest_one_in * 16,
            _ => return false,
        };
        let chosen = Random::seed_of(&format!("nest {place}")) ^ self.effort.seed;
        Random::new(chosen).below(one_in) == 0
    }

    /// Cuts the power at every operation of a recovery.
    fn nest(&self, recovery: &Recorded, place: &Place) {
        let mut random = self.random_at(place);
        for snapshot in &recovery.snapshots {
            for _ in 0..self.effort.nested_outcomes {
                let cut = any_cut(snapshot, &mut random);
                let media = snapshot.media(cut.model);
                let Some(outcome) = cut.outcome.outcome(media) else {
                    continue;
                };
                self.count(|tally| tally.nested[place.cuts.len() - 1] += 1);
                let disk = SimDisk::holding(outcome.found(media));
                self.found(&disk, &recovery.worlds[snapshot.mark], &place.and_then(cut));
            }
        }
    }

    /// Goes to a place again, and says what is wrong there.
    pub fn reproduce(&self, place: &Place) -> Result<(), String> {
        if let Some(violation) = self.tally().violations.first() {
            return Err(violation.clone());
        }
        let mut here = self.place.clone();
        let mut recorded = &self.recorded;
        let mut below;
        for (number, &cut) in (1..).zip(&place.cuts) {
            let (disk, world) = recorded.cut(cut)?;
            here = here.and_then(cut);
            below = self.recovery(&disk, world, &here, number < place.cuts.len())?;
            recorded = &below;
        }
        Ok(())
    }
}

impl Recorded {
    /// The disk after a power cut, and what was known before it.
    fn cut(&self, cut: Cut) -> Result<(SimDisk, &World), String> {
        let snapshot = self.snapshots.iter().find(|snapshot| snapshot.op == cut.op);
        let snapshot = snapshot.ok_or_else(|| format!("nothing is changed by operation {}", cut.op))?;
        let media = snapshot.media(cut.model);
        let outcome = cut.outcome.outcome(media);
        let outcome = outcome.ok_or_else(|| format!("{cut} has no such outcome"))?;
        Ok((
            SimDisk::holding(outcome.found(media)),
            &self.worlds[snapshot.mark],
        ))
    }
}

/// A power cut under any model, with any outcome.
fn any_cut(snapshot: &Snapshot, random: &mut Random) -> Cut {
    let model = FsModel::ALL[random.below(3) as usize];
    let corners = corners(snapshot.media(model)).len();
    let outcome = match random.below(2) {
        0 => Code::Corner(random.below(corners as u64) as usize),
        _ => Code::Seed(random.next()),
    };
    let op = snapshot.op;
    Cut { model, op, outcome }
}

/// What a panic said.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_default())
}
