//! The service: jobs, their schedule and their syncs.
//!
//! ```text
//! http -> actions, create, deleting -.                    .-> runner (a thread per sync) -> engine
//! scheduler -------------------------+--> table (mutex) -+-> state (SQLite), then notes in the stores
//! startup, resume, looking ----------'                    '-> events -> scheduler, later others
//! ```
//!
//! [`Parts`] holds what the service consists of: the job table, running syncs, notes, background work, stores. The other
//! modules are functions over it; one that needs only some of the parts takes only these. A module that calls another
//! imports it, so the imports show who depends on whom; none of them form a circle.
//!
//! Whatever changes a job holds the job table from looking at its state to having saved it, so of two actions that
//! exclude each other one wins and the other is refused. No disk and no store is accessed meanwhile: whoever needs a
//! store asks it by `stores`, or on a thread of its own (`background`).

pub mod actions;
mod background;
mod checks;
pub mod create;
pub mod deleting;
pub mod disks;
pub mod estimate;
mod events;
mod forecast;
mod hooks;
mod images;
mod live;
mod looking;
mod note_writer;
mod notes;
mod outcome;
mod owed;
mod owners;
mod parts;
pub mod precheck;
mod resume;
mod runner;
mod scheduler;
mod seen;
mod sending;
mod startup;
mod table;
pub mod targets;
#[cfg(test)]
mod tests;
pub mod tracking;
pub mod view;
mod written;

#[cfg(test)]
pub use live::run_begun;
pub use parts::Parts;
pub use scheduler::Scheduler;
pub use startup::start;
