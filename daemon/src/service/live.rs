//! A sync while it runs: what is told to it, and what it tells.

use crate::engine::Control;
use crate::job::Ending;
use crate::units::rate;
use api::{Phase, Progress, RunOutcome, RunTransfer, RunType, RunView, TargetWait, Transfer};
use imagefmt::LockWait;
use jiff::Timestamp;
use remote::{Meter, Rate};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A running sync.
#[derive(Debug)]
pub struct LiveRun {
    /// Stops it, and paces its reading.
    pub control: Control,
    /// Paces what it sends to a target.
    pub send_rate: Arc<Rate>,
    /// Its number among the job's runs.
    pub number: u64,
    /// The name of the job.
    job: String,
    /// What was sent; nothing where the images go into a store.
    meter: OnceLock<Arc<Meter>>,
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
    /// Its target cannot be reached, or takes nothing.
    away: Option<Away>,
    /// How long it has waited for its target, without the wait that goes on.
    waited: Duration,
    /// The disks that are read, or were.
    disks: Vec<ReadDisk>,
    compare: Span,
    samples: VecDeque<(Instant, Counts)>,
    /// When something was last read or stored, or the sync had other things to do.
    moved: (Instant, Counts),
    /// Whether it has been told that nothing is.
    is_stuck: bool,
}

/// A target that is waited for.
#[derive(Debug)]
struct Away {
    since: Instant,
    since_wall: Timestamp,
    reason: String,
    next_try: Option<Timestamp>,
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
    /// How long the sync had waited for its target before, and until the last read.
    waited_before: Duration,
    waited_until: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    compared: u64,
    dirty: u64,
    stored: u64,
    sent: u64,
}

/// What a sync does in a second.
#[derive(Debug, Clone, Copy, Default)]
struct Rates {
    compare: u64,
    store: u64,
    send: u64,
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
            send_rate: Arc::default(),
            number,
            job: job.to_owned(),
            meter: OnceLock::new(),
            begun: Instant::now(),
            started,
            seen: Mutex::new(Seen {
                phase: Phase::Preparing,
                image: None,
                total_bytes: 0,
                resumed: false,
                held_up: None,
                away: None,
                waited: Duration::ZERO,
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
            Phase::Comparing | Phase::Transferring => {
                seen.compare = Span {
                    from: Some(Instant::now()),
                    waited_before: seen.waited(),
                    ..Span::default()
                };
            }
            Phase::Processing => {
                seen.compare.to = Some(Instant::now());
                seen.compare.waited_until = Some(seen.waited());
            }
            Phase::Preparing | Phase::Cleaning => {}
        }
        seen.phase = phase;
    }

    pub fn image(&self, label: &str, total_bytes: u64, resumed: bool) {
        // A target that has begun an image answers.
        self.target_is_there();
        let mut seen = self.seen();
        // A sync that starts afresh over a damaged checkpoint begins again.
        seen.disks.clear();
        seen.image = Some(label.to_owned());
        seen.total_bytes = total_bytes;
        seen.resumed = resumed;
    }

    /// The target cannot be reached, or takes nothing, for this reason. It is tried again after a pause, if there is one.
    pub fn target_is_away(&self, reason: &str, pause: Option<Duration>) {
        let mut seen = self.seen();
        let now = Timestamp::now();
        let is_new = seen.away.is_none();
        let away = seen.away.get_or_insert_with(|| Away {
            since: Instant::now(),
            since_wall: now,
            reason: String::new(),
            next_try: None,
        });
        reason.clone_into(&mut away.reason);
        away.next_try = pause.and_then(|pause| now.checked_add(pause).ok());
        if is_new {
            tracing::warn!(job = self.job, "the sync waits for its target: {reason}");
        }
    }

    /// The target takes what is sent again.
    pub fn target_is_there(&self) {
        let mut seen = self.seen();
        if let Some(away) = seen.away.take() {
            seen.waited += away.since.elapsed();
            tracing::info!(job = self.job, "the target answers again");
        }
    }

    /// Whether the target cannot be reached, or takes nothing.
    pub fn waits_for_target(&self) -> bool {
        self.seen().away.is_some()
    }

    /// How long it has waited for its target, in all.
    pub fn waited(&self) -> Duration {
        self.seen().waited()
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
        let waited = seen.compare.waited_until.unwrap_or_else(|| seen.waited());
        let waited = waited.saturating_sub(seen.compare.waited_before);
        rate(bytes, to.saturating_duration_since(from).saturating_sub(waited))
    }

    /// Takes a sample for the rates, if the last one is old enough.
    pub fn sample(&self) {
        let now = Instant::now();
        let mut seen = self.seen();
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < SAMPLE_EVERY;
        if seen.samples.back().is_some_and(|(at, _)| fresh(at)) {
            return;
        }
        let counts = self.counts(&seen);
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
        if !reads || seen.held_up.is_some() || seen.away.is_some() || seen.moved.1 != counts {
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
        let counts = self.counts(&seen);
        let rates = seen.rates(counts);
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
            compare_rate_bytes: rates.compare,
            dirty_bytes: counts.dirty,
            stored_bytes: counts.stored,
            store_rate_bytes: rates.store,
            eta_seconds: (reading && rates.compare > 0).then(|| left.div_ceil(rates.compare)),
            resumed: seen.resumed,
            held_up: seen.held_up_by(),
            waiting_for_target: seen.away.as_ref().map(Away::view),
            transfer: self.meter.get().map(|meter| Transfer {
                sent_bytes: meter.sent_bytes(),
                send_rate_bytes: rates.send,
                durable_bytes: meter.durable_bytes(),
            }),
        }
    }

    /// What counts what is sent: from now on it is a sync to a target.
    pub fn meter(&self) -> Arc<Meter> {
        self.meter.get_or_init(Arc::default).clone()
    }

    /// What was sent to a target, if it is a sync to one.
    pub fn transferred(&self) -> Option<RunTransfer> {
        let meter = self.meter.get()?;
        Some(RunTransfer {
            sent_bytes: meter.sent_bytes(),
            sent_again_bytes: meter.again_bytes(),
            waited_seconds: self.waited().as_secs_f64(),
        })
    }

    fn counts(&self, seen: &Seen) -> Counts {
        Counts {
            sent: self.meter.get().map_or(0, |meter| meter.sent_bytes()),
            ..seen.counts()
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

impl Away {
    fn view(&self) -> TargetWait {
        TargetWait {
            since: self.since_wall,
            reason: self.reason.clone(),
            next_try: self.next_try,
        }
    }
}

impl Seen {
    /// How long the sync has waited for its target.
    fn waited(&self) -> Duration {
        let now = self.away.as_ref().map(|away| away.since.elapsed());
        self.waited + now.unwrap_or_default()
    }

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
            sent: 0,
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

    /// Bytes a second, over the last seconds.
    fn rates(&self, now: Counts) -> Rates {
        let Some((at, before)) = self.samples.front() else {
            return Rates::default();
        };
        let span = at.elapsed();
        Rates {
            compare: rate(now.compared.saturating_sub(before.compared), span),
            store: rate(now.stored.saturating_sub(before.stored), span),
            send: rate(now.sent.saturating_sub(before.sent), span),
        }
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
        transfer: None,
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
