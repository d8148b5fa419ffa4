//! Why an action is not done, for people and for programs.

use super::JobRecord;
use api::{Action, ErrorBody, ErrorKind, Status};
use std::fmt;

/// The result of an action.
pub type Refused<T> = Result<T, Refusal>;

/// An action that was not done; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind, to branch on.
    pub kind: ErrorKind,
    /// What happened, to what, and what to do.
    pub message: String,
}

impl Refusal {
    /// Words or values that can never be right.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Something is in the way.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// There is nothing of that name.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// The daemon could not do it.
    pub fn failed(error: &anyhow::Error) -> Self {
        Self::new(ErrorKind::Failed, format!("{error:#}"))
    }

    /// The daemon ends, and nothing begins any more.
    pub fn shutting_down() -> Self {
        Self::new(
            ErrorKind::Unavailable,
            "smcd is shutting down: try again when it is running again",
        )
    }

    /// No such job.
    pub fn no_job<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Self {
        let known: Vec<&str> = known.map(String::as_str).collect();
        let known = if known.is_empty() {
            "there are no jobs yet".to_owned()
        } else {
            format!("existing jobs: {}", known.join(", "))
        };
        let name = name.escape_debug();
        Self::not_found(format!("there is no job {name}; {known}"))
    }

    /// The job's record cannot be read, so nothing is done with it.
    pub fn unreadable(warning: String) -> Self {
        Self::conflict(warning)
    }

    /// The job was found in a store, and root has not confirmed it.
    pub fn unconfirmed(job: &JobRecord) -> Self {
        let disks: Vec<String> = job
            .disks
            .iter()
            .map(|disk| format!("{} ({})", disk.name, disk.path.display()))
            .collect();
        let hooks: Vec<&str> = [&job.hooks.pre, &job.hooks.post]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let hooks = if hooks.is_empty() {
            "no hooks".to_owned()
        } else {
            format!("the hooks {}", hooks.join(", "))
        };
        Self::conflict(format!(
            "job {name} was found in {} and is not confirmed: anybody who can write there may have changed it. It would read \
             {} and run {hooks}. Check `smcctl job show {name}`, then run `smcctl job confirm {name}`",
            job.place,
            disks.join(", "),
            name = job.name
        ))
    }

    /// The job's state does not allow the action.
    pub fn state(name: &str, status: Status, action: Action) -> Self {
        let states: Vec<String> = action.allowed_from().iter().map(Status::to_string).collect();
        let hint = match (status, action) {
            (Status::Finished | Status::Canceled | Status::Expired, Action::Start | Action::Sync) => {
                ". A new job can continue its images: `smcctl job create NAME --take-up JOB`"
            }
            (Status::Running, _) => ". Stop the job, or wait until the sync has ended",
            (Status::Stopped | Status::InError, Action::Sync | Action::Complete) => {
                ". Resume it with `smcctl job start`"
            }
            (Status::Ready, Action::Sync | Action::Complete) => ". Start it with `smcctl job start`",
            _ => "",
        };
        Self::conflict(format!(
            "job {name} is {status}, but {} is only possible in {}{hint}",
            action.label(),
            list(&states)
        ))
    }

    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// As the API answers it.
    pub fn body(self) -> ErrorBody {
        ErrorBody {
            error: self.kind,
            message: self.message,
        }
    }
}

/// `a`, `a or b`, `a, b or c`.
fn list(words: &[String]) -> String {
    match words {
        [] => "no state".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_state_the_action_and_where_it_is_possible() {
        let refusal = Refusal::state("web01", Status::Finished, Action::Sync);
        assert_eq!(refusal.kind, ErrorKind::Conflict);
        assert!(
            refusal
                .message
                .starts_with("job web01 is Finished, but sync is only possible in Waiting")
        );
        assert!(refusal.message.contains("--take-up"));
        let refusal = Refusal::state("web01", Status::Running, Action::Start);
        assert!(refusal.message.contains("Ready, Stopped or InError"), "{refusal}");
    }
}
