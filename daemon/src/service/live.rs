//! A sync while it runs: what is told to it, and what it tells.

use crate::engine::Control;
use crate::job::Ending;
use crate::units::rate;
use api::{Phase, Progress, RunOutcome, RunType, RunView};
use imagefmt::LockWait;
use jiff::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A running sync.
#[derive(Debug)]
pub struct LiveRun {
    /// Stops it, and paces its reading.
    pub control: Control,
    /// Its number among the job's runs.
    pub number: u64,
    /// The name of the job.
    job: String,
    begun: Instant,
    started: Timestamp,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    phase: Phase,
    image: Option<String>,
    total_bytes: u64,
    resumed: bool,
    /// The process that holds it up, and what for.
    held_up: Option<String>,
    /// The disks that are read, or were.
    disks: Vec<ReadDisk>,
    compare: Span,
    samples: VecDeque<(Instant, Counts)>,
    /// When something was last read or stored, or the sync had other things to do.
    moved: (Instant, Counts),
    /// Whether it has been told that nothing is.
    is_stuck: bool,
}

/// A disk, and how far it is.
#[derive(Debug)]
struct ReadDisk {
    name: String,
    size_bytes: u64,
    progress: Arc<changetrack::Progress>,
}

/// From the first read to the last.
#[derive(Debug, Default)]
struct Span {
    from: Option<Instant>,
    to: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    compared: u64,
    dirty: u64,
    stored: u64,
}

/// Rates are told over about this many seconds.
const WINDOW: Duration = Duration::from_secs(5);
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// How long nothing may be read or stored before this is told.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// So much may have been read at once by all readers, and is paid off before the next read.
const PAUSED_FOR_BYTES: u64 = 64 << 20;

impl LiveRun {
    /// A run that begins now.
    pub fn new(job: &str, number: u64, started: Timestamp, control: Control) -> Self {
        Self {
            control,
            number,
            job: job.to_owned(),
            begun: Instant::now(),
            started,
            seen: Mutex::new(Seen {
                phase: Phase::Preparing,
                image: None,
                total_bytes: 0,
                resumed: false,
                held_up: None,
                disks: Vec::new(),
                compare: Span::default(),
                samples: VecDeque::new(),
                moved: (Instant::now(), Counts::default()),
                is_stuck: false,
            }),
        }
    }

    pub fn phase(&self, phase: Phase) {
        let mut seen = self.seen();
        match phase {
            Phase::Comparing | Phase::Transferring => seen.compare.from = Some(Instant::now()),
            Phase::Processing => seen.compare.to = Some(Instant::now()),
            Phase::Preparing | Phase::Cleaning => {}
        }
        seen.phase = phase;
    }

    pub fn image(&self, label: &str, total_bytes: u64, resumed: bool) {
        let mut seen = self.seen();
        // A sync that starts afresh over a damaged checkpoint begins again.
        seen.disks.clear();
        seen.image = Some(label.to_owned());
        seen.total_bytes = total_bytes;
        seen.resumed = resumed;
    }

    /// So many bytes are to be read.
    pub fn planned(&self, total_bytes: u64) {
        self.seen().total_bytes = total_bytes;
    }

    pub fn disk(&self, name: &str, size_bytes: u64, progress: &Arc<changetrack::Progress>) {
        self.seen().disks.push(ReadDisk {
            name: name.to_owned(),
            size_bytes,
            progress: progress.clone(),
        });
    }

    /// How long it has been running.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Bytes a second compared while it compared `bytes`; 0 if it did not.
    pub fn compare_rate(&self, bytes: u64) -> u64 {
        let seen = self.seen();
        let Some(from) = seen.compare.from else { return 0 };
        let to = seen.compare.to.unwrap_or_else(Instant::now);
        rate(bytes, to.saturating_duration_since(from))
    }

    /// Takes a sample for the rates, if the last one is old enough.
    pub fn sample(&self) {
        let now = Instant::now();
        let mut seen = self.seen();
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < SAMPLE_EVERY;
        if seen.samples.back().is_some_and(|(at, _)| fresh(at)) {
            return;
        }
        let counts = seen.counts();
        self.watch(&mut seen, now, counts);
        seen.samples.push_back((now, counts));
        while seen
            .samples
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW)
        {
            seen.samples.pop_front();
        }
    }

    /// Notices that nothing is read or stored any more, and says so once.
    fn watch(&self, seen: &mut Seen, now: Instant, counts: Counts) {
        let reads = matches!(seen.phase, Phase::Comparing | Phase::Transferring);
        if !reads || seen.held_up.is_some() || seen.moved.1 != counts {
            if seen.is_stuck {
                tracing::info!(job = self.job, "the sync goes on");
            }
            seen.moved = (now, counts);
            seen.is_stuck = false;
        } else if !seen.is_stuck && now.saturating_duration_since(seen.moved.0) >= self.patience() {
            seen.is_stuck = true;
            tracing::warn!(job = self.job, "the sync is held up: {}", seen.stuck(now));
        }
    }

    /// How long a sync may read and store nothing. A limit of its rate makes it pause.
    fn patience(&self) -> Duration {
        let pause = match self.control.pace().limit() {
            0 => 0,
            limit => PAUSED_FOR_BYTES / limit,
        };
        STUCK_AFTER + Duration::from_secs(pause)
    }

    /// What is told of it now.
    pub fn progress(&self) -> Progress {
        let seen = self.seen();
        let counts = seen.counts();
        let (compare_rate, store_rate) = seen.rates(counts);
        let left = seen.total_bytes.saturating_sub(counts.compared);
        let reading = matches!(seen.phase, Phase::Comparing | Phase::Transferring);
        Progress {
            phase: seen.phase,
            image: seen.image.clone(),
            started: self.started,
            elapsed_seconds: self.elapsed().as_secs_f64(),
            disk: seen.being_read(),
            compared_bytes: counts.compared,
            total_bytes: seen.total_bytes,
            percent: percent(counts.compared, seen.total_bytes),
            compare_rate_bytes: compare_rate,
            dirty_bytes: counts.dirty,
            stored_bytes: counts.stored,
            store_rate_bytes: store_rate,
            eta_seconds: (reading && compare_rate > 0).then(|| left.div_ceil(compare_rate)),
            resumed: seen.resumed,
            held_up: seen.held_up_by(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LockWait for LiveRun {
    fn is_wanted(&self) -> bool {
        self.control.may_wait()
    }

    fn held_up(&self, by: Option<&str>) {
        match by {
            Some(by) => tracing::warn!(job = self.job, "the sync is held up: {by}"),
            None => tracing::info!(job = self.job, "the sync is no longer held up"),
        }
        self.seen().held_up = by.map(str::to_owned);
    }
}

impl Seen {
    /// What the sync waits for.
    fn held_up_by(&self) -> Option<String> {
        let stuck = || self.is_stuck.then(|| self.stuck(Instant::now()));
        self.held_up.clone().or_else(stuck)
    }

    /// Where the sync waits cannot be seen: for a read of a disk, or for the store that takes what was read.
    fn stuck(&self, now: Instant) -> String {
        format!(
            "nothing was read or stored for {} s: {} or the store does not answer",
            now.saturating_duration_since(self.moved.0).as_secs(),
            self.being_read().unwrap_or_else(|| "a disk".to_owned())
        )
    }

    fn counts(&self) -> Counts {
        self.disks.iter().fold(Counts::default(), |sum, disk| Counts {
            compared: sum.compared + disk.progress.compared_bytes.load(Ordering::Relaxed),
            dirty: sum.dirty + disk.progress.dirty_bytes.load(Ordering::Relaxed),
            stored: sum.stored + disk.progress.stored_bytes.load(Ordering::Relaxed),
        })
    }

    /// Names of the disks that are being read.
    fn being_read(&self) -> Option<String> {
        let is_reading =
            |disk: &&ReadDisk| disk.progress.compared_bytes.load(Ordering::Relaxed) < disk.size_bytes;
        let names: Vec<&str> = self
            .disks
            .iter()
            .filter(is_reading)
            .map(|disk| disk.name.as_str())
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Bytes a second compared and stored, over the last seconds.
    fn rates(&self, now: Counts) -> (u64, u64) {
        let Some((at, before)) = self.samples.front() else {
            return (0, 0);
        };
        let span = at.elapsed();
        (
            rate(now.compared.saturating_sub(before.compared), span),
            rate(now.stored.saturating_sub(before.stored), span),
        )
    }
}

/// Syncs by job, and why one was asked to end.
type Runs = BTreeMap<String, (Arc<LiveRun>, Option<Ending>)>;

/// The syncs that run, by job, and why one was asked to end. Whoever begins or ends one holds the job table: what the table
/// says of a job and what runs belong together.
#[derive(Debug, Default)]
pub struct LiveRuns {
    runs: Mutex<Runs>,
}

impl LiveRuns {
    /// A sync begins; one that was asked to end before the daemon ended is to end.
    pub fn begin(&self, job: &str, run: Arc<LiveRun>, ending: Option<Ending>) {
        self.runs().insert(job.to_owned(), (run, ending));
    }

    /// Whether no sync runs.
    pub fn is_empty(&self) -> bool {
        self.runs().is_empty()
    }

    /// The sync of a job is over.
    pub fn end(&self, job: &str) {
        self.runs().remove(job);
    }

    /// The sync of a job, and why it was asked to end.
    pub fn get(&self, job: &str) -> Option<(Arc<LiveRun>, Option<Ending>)> {
        self.runs().get(job).cloned()
    }

    /// Whether a sync of the job runs.
    pub fn contains(&self, job: &str) -> bool {
        self.runs().contains_key(job)
    }

    /// Asks the sync of a job to end.
    pub fn ask(&self, job: &str, ending: Ending) {
        if let Some((run, asked)) = self.runs().get_mut(job) {
            *asked = Some(ending);
            run.control.stop();
        }
    }

    /// Asks every sync to end that was not asked before.
    pub fn ask_all(&self, ending: Ending) {
        for (run, asked) in self.runs().values_mut() {
            asked.get_or_insert(ending);
            run.control.stop();
        }
    }

    /// All that run.
    pub fn all(&self) -> Vec<Arc<LiveRun>> {
        self.runs().values().map(|(run, _)| run.clone()).collect()
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From 0 to 100, with a tenth.
fn percent(done: u64, total: u64) -> f64 {
    if total == 0 {
        return 0.0;
    }
    let tenths = u128::from(done.min(total)) * 1000 / u128::from(total);
    f64::from(u32::try_from(tenths).unwrap_or(1000)) / 10.0
}

/// A run of which nothing is known yet but that it began.
pub fn run_begun(number: u64, run_type: RunType, started: Timestamp) -> RunView {
    RunView {
        number,
        run_type,
        started,
        finished: None,
        seconds: None,
        outcome: RunOutcome::Running,
        image: None,
        kind: None,
        method: None,
        consistency: None,
        consistency_reason: None,
        verified: None,
        instant: None,
        resumed: false,
        compared_bytes: 0,
        dirty_bytes: 0,
        stored_bytes: 0,
        compare_rate_bytes: 0,
        disks: Vec::new(),
        deleted: Vec::new(),
        error: None,
        warnings: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(compared: u64, dirty: u64, stored: u64) -> Arc<changetrack::Progress> {
        let progress = changetrack::Progress::default();
        progress.compared_bytes.store(compared, Ordering::Relaxed);
        progress.dirty_bytes.store(dirty, Ordering::Relaxed);
        progress.stored_bytes.store(stored, Ordering::Relaxed);
        Arc::new(progress)
    }

    #[test]
    fn a_sync_that_reads_nothing_any_more_says_so_until_it_goes_on() {
        let live = LiveRun::new("web01", 1, Timestamp::UNIX_EPOCH, Control::default());
        live.phase(Phase::Comparing);
        let disk = progress(10, 0, 0);
        live.disk("vda", 100, &disk);
        let look = |after: Duration| {
            let (mut seen, now) = (live.seen(), live.begun + after);
            let counts = seen.counts();
            live.watch(&mut seen, now, counts);
            seen.held_up_by()
        };
        assert_eq!(look(Duration::ZERO), None);
        assert_eq!(look(STUCK_AFTER / 2), None);
        let said = look(STUCK_AFTER).unwrap();
        assert!(said.ends_with("s: vda or the store does not answer"), "{said}");
        disk.compared_bytes.store(20, Ordering::Relaxed);
        assert_eq!(look(STUCK_AFTER), None);
        live.control.pace().set_limit(1 << 20);
        assert_eq!(look(2 * STUCK_AFTER), None, "it pauses for its limit");
        assert!(look(10 * STUCK_AFTER).is_some());
        live.phase(Phase::Processing);
        assert_eq!(look(11 * STUCK_AFTER), None, "it has other things to do");
    }

    #[test]
    fn disks_add_up() {
        let live = LiveRun::new("web01", 1, Timestamp::UNIX_EPOCH, Control::default());
        live.image("web01/1", 400, false);
        live.phase(Phase::Comparing);
        live.disk("vda", 100, &progress(100, 50, 20));
        live.disk("vdb", 300, &progress(200, 10, 5));
        let told = live.progress();
        assert_eq!(
            (told.compared_bytes, told.dirty_bytes, told.stored_bytes),
            (300, 60, 25)
        );
        assert!((told.percent - 75.0).abs() < 0.01);
        assert_eq!(told.disk.as_deref(), Some("vdb"));
        live.disk("vdc", 50, &progress(0, 0, 0));
        assert_eq!(
            live.progress().disk.as_deref(),
            Some("vdb, vdc"),
            "both are read at the same time"
        );
        live.phase(Phase::Processing);
        assert_eq!(live.progress().compared_bytes, 300);
        assert_eq!(live.progress().eta_seconds, None);
    }

    #[test]
    fn shares_of_nothing_are_nothing() {
        assert!(percent(5, 0).abs() < 0.01);
        assert!((percent(7, 5) - 100.0).abs() < 0.01);
    }
}
