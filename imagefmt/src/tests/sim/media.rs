//! What survives a power cut, and what a filesystem may do with the rest: three models of it.

use super::fs::{Change, Fs, Ino, Node};
use std::sync::Arc;

/// What a filesystem promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FsModel {
    /// ext4 with data=ordered: changes of names, space and length get durable in their order, and every sync
    /// takes all earlier ones along. A file is never longer than what was written of it.
    Ext4,
    /// xfs: the same order, but a length can be durable without the data, which then are zeros.
    Xfs,
    /// No more than POSIX promises: every change stands for itself, and a sync covers only its own file's
    /// content or its own directory's names.
    Posix,
}

impl FsModel {
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Posix];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Posix => "posix",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|model| model.name() == name)
    }

    /// Whether a change waits in the one journal that is written in order.
    pub fn is_journaled(self, change: &Change) -> bool {
        self != Self::Posix && !change.is_write()
    }
}

/// The durable state under one model, and the changes that are on their way to it, in the order they came.
#[derive(Debug, Clone)]
pub struct Media {
    pub model: FsModel,
    pub durable: Fs,
    pub pending: Vec<Arc<Change>>,
}

impl Media {
    pub fn new(model: FsModel, durable: Fs) -> Self {
        Self {
            model,
            durable,
            pending: Vec::new(),
        }
    }

    pub fn add(&mut self, ino: Ino, node: Node) {
        self.durable.add(ino, node);
    }

    pub fn sync_file(&mut self, ino: Ino) {
        let model = self.model;
        self.settle(|change| change.file() == Some(ino) || model.is_journaled(change));
    }

    pub fn sync_dir(&mut self, dir: Ino) {
        let model = self.model;
        self.settle(|change| change.dir() == Some(dir) || model.is_journaled(change));
    }

    fn settle(&mut self, covered: impl Fn(&Change) -> bool) {
        let durable = &mut self.durable;
        self.pending.retain(|change| {
            let covered = covered(change);
            if covered {
                durable.apply(change);
            }
            !covered
        });
    }

    /// A sync that failed: the kernel told so once and forgets what it could not write.
    pub fn lose_file(&mut self, ino: Ino) {
        self.pending
            .retain(|change| change.file() != Some(ino) || !change.is_write());
    }
}
