//! The parts of the service. The modules beside this one are functions over them; each takes the parts that it needs, and all
//! of them only where it hands work to another thread or looks at several.

use super::background::{Background, Task};
use super::events::Listener;
use super::live::LiveRuns;
use super::notes::Notes;
use super::seen::Seen;
use super::table::{JobTable, Locked};
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::engine::Place;
use crate::job::{JobRecord, Refusal, Refused};
use crate::owner;
use crate::stores::{Stores, Unanswered};
use api::{Action, rules};
use hostdev::Machine;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// The service's parts, each of which guards itself. The lock order is the table, then any other.
#[derive(Debug)]
pub struct Parts {
    pub(super) config: Config,
    /// This machine, to which its jobs' chains belong.
    pub(super) machine: Machine,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) started: Timestamp,
    /// The jobs.
    pub(super) table: JobTable,
    /// The syncs that run.
    pub(super) live: LiveRuns,
    /// Other work on threads.
    pub(super) background: Arc<Background>,
    /// Copies of jobs in their stores.
    pub(super) notes: Notes,
    /// The stores of all jobs.
    pub(super) stores: Arc<Stores>,
    /// What was seen of the tracker.
    pub(super) tracker: Seen,
}

impl Parts {
    pub(super) fn new(config: Config, clock: Arc<dyn Clock>, stores: Arc<Stores>, table: JobTable) -> Self {
        Self {
            started: clock.now().wall,
            table,
            live: LiveRuns::default(),
            background: Arc::default(),
            notes: Notes::default(),
            stores,
            tracker: Seen::default(),
            machine: owner::machine(&config.root),
            config,
            clock,
        }
    }

    /// Now.
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Listens to what changes from now on.
    pub fn listen(&self) -> Listener {
        self.table.listen()
    }

    /// How long the clock lets the scheduler sleep.
    pub fn poll_interval(&self) -> Duration {
        self.clock.poll_interval()
    }

    /// A job that allows an action.
    pub(super) fn job_for(&self, table: &Locked<'_>, name: &str, action: Action) -> Refused<JobRecord> {
        if table.is_closing() {
            return Err(Refusal::shutting_down());
        }
        let job = table.job(name)?;
        if !rules::allowed(job.status, action) {
            return Err(Refusal::state(name, job.status, action));
        }
        let begins = matches!(action, Action::Start | Action::Sync | Action::Complete);
        if begins && job.unconfirmed {
            return Err(Refusal::unconfirmed(job));
        }
        if let Some(run) = job.hooks_owed.filter(|_| begins && !self.live.contains(name)) {
            return Err(Refusal::conflict(format!(
                "the post hooks of run {run} of job {name}, which was interrupted, have not ended yet: repeat the request \
                 when they have"
            )));
        }
        if let Some((_, Some(ending))) = self.live.get(name) {
            return Err(Refusal::conflict(format!(
                "the sync of job {name} is ending ({}): wait until that is done",
                ending.label()
            )));
        }
        Ok(job.clone())
    }

    /// Does some work in the background, unless it is being done already.
    pub(super) fn in_background(
        self: &Arc<Self>,
        task: Task,
        work: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        let parts = self.clone();
        self.background.begin(task, move || work(&parts));
    }

    /// Does some work that may wait for a store or a target, or for disks whose paths are on filesystems of others, on a thread of
    /// the store or target. `what` says what is looked at, as the subject of a sentence.
    pub(super) fn within<T: Send + 'static>(
        self: &Arc<Self>,
        place: &Place,
        patience: Duration,
        what: &str,
        work: impl FnOnce(&Arc<Self>) -> Refused<T> + Send + 'static,
    ) -> Refused<T> {
        let parts = self.clone();
        let path = match place {
            Place::Store(store) => store.clone(),
            Place::Target(name) => self.config.targets().join(name),
        };
        let asked = self.stores.run(&path, move || Ok(work(&parts)));
        asked.wait(patience).map_err(|error| match error {
            Unanswered::Late(_) => Refusal::conflict(format!(
                "{what} did not answer within {} s: check its disk, or the server that it is on",
                patience.as_secs()
            )),
            error => Refusal::conflict(error.full_message()),
        })?
    }
}
