//! Who a chain belongs to: two that write to one chain delete each other's images.

use crate::format::id::Uuid;
use crate::format::name::{SHOWN_MAX, printable};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A job of a machine, to which a chain belongs: the one that began the chain, or has taken it over.
///
/// Displayed as `job web01 of machine 3f… (web01.example.com)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The machine's id, made for smc: it does not tell the machine's other ids.
    pub machine: Uuid,
    /// The machine's host name, for people.
    #[serde(default)]
    pub host: String,
    /// Name of the job.
    pub job: String,
    /// The job's random id. Absent for syncs that no service runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<Uuid>,
}

impl Owner {
    /// Whether both are the same job of the same machine. The host name may have changed.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.machine, &self.job, self.job_id) == (other.machine, &other.job, other.job_id)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = printable(&self.job, SHOWN_MAX);
        write!(f, "job {job} of machine {}", self.machine)?;
        if self.host.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", printable(&self.host, SHOWN_MAX))
    }
}

/// Whose chain a writer may take over.
#[derive(Debug, Clone, Default)]
pub enum TakeOver {
    /// None: the chain must be the writer's own, or have no owner.
    #[default]
    Never,
    /// That of this owner, which does not write any more.
    From(Owner),
    /// That of any owner: the user has decided that.
    Always,
}

impl TakeOver {
    /// Whether the chain of `owner` may be taken over.
    pub(crate) fn allows(&self, owner: &Owner) -> bool {
        match self {
            Self::Never => false,
            Self::From(former) => former.is_same(owner),
            Self::Always => true,
        }
    }
}
