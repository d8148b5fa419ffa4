//! The service: jobs, their schedule and their syncs.
//!
//! ```text
//! api -> actions -.                      .-> runner (a thread a sync) -> engine
//!                  Manager (one mutex) --+
//! scheduler ------'                      '-> state (SQLite), notes in the stores
//! ```
//!
//! Whatever changes a job holds the manager's mutex from looking at its state to having written it down, so of two
//! actions that exclude each other one wins and the other is told. Nothing that waits for a disk being imaged
//! holds it.

mod actions;
mod create;
mod deleting;
mod disks;
mod estimate;
mod forecast;
mod hooks;
mod live;
mod manager;
mod outcome;
mod precheck;
mod recover;
mod runner;
mod scheduler;
#[cfg(test)]
mod tests;
mod view;
mod written;

pub use estimate::estimate;
#[cfg(test)]
pub use live::run_begun;
pub use manager::Manager;
pub use recover::start;
pub use scheduler::Scheduler;
