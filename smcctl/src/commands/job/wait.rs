//! Waiting for the end of a sync.

use crate::client::{Answer, Request, job};
use crate::commands::job::screen::{POLL, Screen};
use crate::context::Context;
use anyhow::{anyhow, bail};
use api::{JobView, RunOutcome, Status};
use cli::exit::Advise;

/// Waits until no sync of the job runs, from what was answered on.
///
/// # Errors
/// When smcd does not answer, the output cannot be written, or the user interrupts.
pub fn until_idle(context: &mut Context, name: &str, mut answer: Answer) -> anyhow::Result<Answer> {
    context.client.catch_interrupts()?;
    let mut screen = Screen::live_only(context);
    loop {
        let view: JobView = answer.view()?;
        if view.status != Status::Running {
            screen.clear()?;
            return Ok(answer);
        }
        screen.show(&[(view, answer)])?;
        let waited = context.client.pause(POLL);
        let asked = waited.and_then(|()| context.client.send(&Request::get(job(name, None))));
        answer = asked.advise(format!(
            "no longer waiting: smcd continues with the request, `smcctl job watch {name}` shows it"
        ))?;
    }
}

/// What was to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// A sync, to its end.
    Synced,
    /// A stop.
    Stopped,
    /// The job is given up.
    Canceled,
    /// The job is complete.
    Finished,
}

impl Goal {
    /// An error if the job is elsewhere.
    ///
    /// # Errors
    /// Where the job is, and why, with what to do.
    pub fn judge(self, job: &JobView) -> anyhow::Result<()> {
        let JobView { name, status, .. } = job;
        if *status == Status::InError {
            let why = job.error.as_deref().unwrap_or("smcd does not say why");
            return Err(anyhow!("{name}: the sync failed: {why}"))
                .advise(format!("then `smcctl job start {name}` resumes it"));
        }
        let last = job.last_run.as_ref().map(|run| run.outcome);
        let reached = match self {
            Self::Synced => last == Some(RunOutcome::Succeeded),
            Self::Stopped => *status == Status::Stopped,
            Self::Canceled => *status == Status::Canceled,
            Self::Finished => *status == Status::Finished,
        };
        if !reached {
            let ended = last.map(|outcome| format!(", its last run {outcome}"));
            bail!(
                "{name} is {status}{}: which is not the requested state",
                ended.unwrap_or_default()
            );
        }
        Ok(())
    }
}
