//! What is kept of a job, and the rules by which one is made and changed. Nothing here waits, reads disks or syncs.

mod checks;
mod create;
mod modify;
mod record;
mod refusal;

pub use checks::{Check, Checked, ImageChecks};
pub use create::{ResolvedInput, check_name, new_record, unreachable_class};
pub use modify::modify;
pub use record::{ActiveRun, DiskRecord, Ending, JobRecord, Schedule, WriteCounter};
pub use refusal::{Refusal, Refused};
