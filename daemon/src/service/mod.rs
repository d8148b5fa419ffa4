//! The service: jobs, their schedule and their syncs.
//!
//! ```text
//! http -> actions, create, deleting -.                    .-> runner (a thread per sync) -> engine
//! scheduler -------------------------+--> table (mutex) -+-> state (SQLite), then notes in the stores
//! startup, resume, looking ----------'                    '-> events -> scheduler, later others
//! ```
//!
//! Whatever changes a job holds the job table from looking at its state to having saved it, so of two actions that
//! exclude each other one wins and the other is refused. No disk and no store is accessed meanwhile: whoever needs a
//! store asks it by `stores`, or on a thread of its own (`background`).

mod actions;
mod background;
mod create;
mod deleting;
mod disks;
mod estimate;
mod events;
mod forecast;
mod hooks;
mod images;
mod live;
mod looking;
mod manager;
mod notes;
mod outcome;
mod owed;
mod owners;
mod precheck;
mod resume;
mod runner;
mod scheduler;
mod startup;
mod table;
#[cfg(test)]
mod tests;
mod view;
mod written;

pub use estimate::estimate;
#[cfg(test)]
pub use live::run_begun;
pub use manager::Manager;
pub use scheduler::Scheduler;
pub use startup::start;
