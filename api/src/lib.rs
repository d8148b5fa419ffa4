//! What `smcd` and its clients say to each other, as JSON over HTTP/1.1 on a Unix socket.
//!
//! - [`Status`], [`Action`] and [`rules`]: the life of a job, which action is allowed in which state.
//! - [`limits`]: the range of every parameter, in one place.
//! - [`CreateJob`], [`ModifyJob`], [`CompleteJob`]: requests. [`JobView`], [`RunView`]: what is told of a job.
//! - [`Estimate`], [`DiskList`], [`ServiceStatus`], [`ExportView`]: the rest.
//! - [`ErrorBody`]: every answer that is no success.
//!
//! Names of fields end in their unit. Times are RFC 3339 in UTC. This crate does no I/O.

mod error;
mod estimate;
mod job;
pub mod limits;
mod precheck;
pub mod rules;
mod run;
mod service;

pub use error::{ErrorBody, ErrorKind};
pub use estimate::{DiskEstimate, Estimate, EstimateRequest, StoreEstimate};
pub use job::{
    CompleteJob, CreateJob, DiskRequest, DiskView, Event, HooksView, JobView, ModifyJob, NextEvent,
    PendingView,
};
pub use precheck::{Check, Level, Precheck};
pub use rules::{Action, Status};
pub use run::{Forecast, Phase, Progress, RunDisk, RunOutcome, RunType, RunView};
pub use service::{DiskList, ExportView, ListedDisk, ServiceStatus};

/// Where `smcd` listens unless its configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/smc/smcd.sock";

/// The path under which every resource of this version lies.
pub const PREFIX: &str = "/v1";
