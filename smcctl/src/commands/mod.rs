//! One module per command: its arguments, what it asks of smcd, and what it prints.

pub mod disks;
pub mod estimate;
pub mod exports;
pub mod job;
pub mod precheck;
pub mod status;
pub mod target;
pub mod tracker;
