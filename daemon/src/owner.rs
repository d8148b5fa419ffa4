//! This machine, and its jobs as the owners of chains.

use hostdev::{Machine, Root};
use imagefmt::{Owner, Uuid};

/// A job of this machine, as the owner of a chain; nobody on a machine that nothing tells from others.
pub fn owner(machine: &Machine, job: &str, job_id: Option<Uuid>) -> Option<Owner> {
    machine.id.map(|id| Owner {
        machine: Uuid::from_bytes(id),
        host: machine.host_name.clone(),
        job: job.to_owned(),
        job_id,
    })
}

/// The machine that files below `root` describe. If that cannot be read, its chains have no owner; this is logged.
pub fn machine(root: &Root) -> Machine {
    Machine::read(root).unwrap_or_else(|error| {
        tracing::warn!(
            "which machine this is cannot be read: {:#}",
            anyhow::Error::from(error)
        );
        Machine::default()
    })
}
