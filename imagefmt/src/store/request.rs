//! What a writer asks of a store when it begins an image.

use crate::format::geometry::ClusterSize;
use crate::format::manifest::Manifest;
use crate::format::owner::{Owner, TakeOver};

/// An image to be begun: what of, and by whom.
#[derive(Debug, Clone, Default)]
pub struct WriteRequest {
    /// The job.
    pub job: String,
    /// The finished job whose chain this one continues.
    pub take_up: Option<String>,
    /// Of a new chain (default 64 KiB); an existing one keeps its own.
    pub cluster_size: Option<ClusterSize>,
    /// Names of all disks of the job.
    pub disks: Vec<String>,
    /// Who writes; nobody that the chain could belong to if absent.
    pub owner: Option<Owner>,
    /// Whose chain it may be otherwise.
    pub take_over: TakeOver,
    /// Whether a disk may be smaller than in the image before. It is then stored anew.
    pub may_shrink: bool,
}

impl WriteRequest {
    /// Whether an unfinished first sync can be resumed for it.
    pub(crate) fn fits(&self, unfinished: &Manifest) -> bool {
        let size = self
            .cluster_size
            .is_none_or(|wanted| wanted.bytes() == unfinished.cluster_size);
        size && unfinished
            .disks
            .iter()
            .all(|disk| self.disks.contains(&disk.name))
    }
}
