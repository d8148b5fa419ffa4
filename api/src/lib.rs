//! The types of smcd's control API: JSON over HTTP/1.1 on a Unix socket.
//!
//! - [`Status`], [`Action`] and [`rules`]: the states of a job, and the actions that each state allows.
//! - [`limits`]: the range of every parameter.
//! - [`CreateJob`], [`ModifyJob`], [`CompleteJob`]: requests. [`JobView`], [`RunView`]: the state of a job and its runs.
//! - [`Estimate`], [`Precheck`], [`DiskList`], [`ServiceStatus`], [`ExportView`], [`TrackerView`], [`TargetList`]: other answers.
//! - [`ErrorBody`]: the body of every answer that reports an error.
//!
//! Field names end in their unit. Times are RFC 3339 in UTC. The comments on fields are the descriptions in the OpenAPI
//! document: full sentences with unit, range and default. This crate does no I/O.

mod checks;
mod consistency;
mod error;
mod estimate;
mod instant;
mod job;
pub mod limits;
mod precheck;
mod priority;
pub mod rules;
mod run;
mod service;
mod target;
mod tracker;

pub use checks::{CheckView, ChecksRequest, ChecksView};
pub use consistency::LeastConsistency;
pub use error::{ErrorBody, ErrorKind};
pub use estimate::{DiskEstimate, Estimate, EstimateRequest, StoreEstimate, TargetEstimate};
pub use instant::{RunFrozen, RunInstant, RunPass};
pub use job::{
    CompleteJob, CreateJob, DiskRequest, DiskTracking, DiskView, Event, HooksView, JobView, ModifyJob,
    NextEvent, OnReadError, PendingView, Tracking,
};
pub use precheck::{Check, Level, Precheck};
pub use priority::IoPriority;
pub use rules::{Action, Status};
pub use run::{
    Forecast, Phase, Progress, RunDisk, RunOutcome, RunTransfer, RunType, RunView, TargetWait, Transfer,
};
pub use service::{DiskList, ExportView, ListedDisk, ServiceStatus};
pub use target::{AddTarget, TargetList, TargetStatus, TargetView};
pub use tracker::{TrackedDisk, TrackerView};

/// The socket of `smcd`, unless its configuration names another one.
pub const DEFAULT_SOCKET: &str = "/run/smc/smcd.sock";

/// The path prefix of every resource of this version of the API.
pub const PREFIX: &str = "/v1";
