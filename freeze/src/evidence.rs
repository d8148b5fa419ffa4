//! What a freeze was: how long it took, and what became of each filesystem.

use nix::errno::Errno;
use std::path::PathBuf;
use std::time::Duration;

/// What a freeze was. All of it is noted while it lasts, and put together after the last thaw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// From before the first FIFREEZE to after the last FITHAW: how long writers waited at most.
    pub held: Duration,
    /// From before the first FIFREEZE to after the last one.
    pub freezing: Duration,
    /// The filesystems in the order in which they were frozen; those that cannot be are not among them.
    pub filesystems: Vec<OfFilesystem>,
    /// Whether the budget was used up before all were frozen: then they were thawed at once.
    pub is_over_budget: bool,
    /// Whether the watchdog has thawed one of them.
    pub is_thawed_by_watchdog: bool,
}

/// What became of one filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfFilesystem {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// How freezing it ended.
    pub freeze: FreezeOutcome,
    /// How thawing it ended.
    pub thaw: ThawOutcome,
}

/// How freezing a filesystem ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeOutcome {
    /// It was not tried: another one could not be frozen, or the budget was used up.
    NotTried,
    /// It was frozen after this time.
    Frozen(Duration),
    /// The kernel refused.
    Failed(Errno),
}

/// How thawing a filesystem ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThawOutcome {
    /// It was not frozen by us.
    NotFrozen,
    /// It was frozen until we thawed it.
    Thawed,
    /// Somebody else had thawed it before: nobody knows when.
    ThawedBefore,
    /// The kernel refused; the watchdog goes on trying.
    Failed(Errno),
}

impl Evidence {
    /// What speaks against all of them having been frozen from the last freeze to the first thaw, as a sentence without a full stop;
    /// `None` if nothing does.
    pub fn doubt(&self) -> Option<String> {
        if self.is_over_budget {
            return Some("freezing took longer than it may".to_owned());
        }
        let one = self.filesystems.iter().find_map(OfFilesystem::doubt);
        one.or_else(|| {
            self.is_thawed_by_watchdog
                .then(|| "the watchdog thawed a filesystem".to_owned())
        })
    }
}

impl OfFilesystem {
    fn doubt(&self) -> Option<String> {
        let at = self.mount_point.display();
        match (self.freeze, self.thaw) {
            (FreezeOutcome::Frozen(_), ThawOutcome::Thawed) => None,
            (FreezeOutcome::Failed(Errno::EBUSY), _) => {
                Some(format!("{at} was frozen by somebody else already"))
            }
            (FreezeOutcome::Failed(errno), _) => Some(format!("{at} could not be frozen: {errno}")),
            (FreezeOutcome::NotTried, _) => Some(format!("{at} was not frozen")),
            (_, ThawOutcome::Failed(errno)) => Some(format!("{at} could not be thawed: {errno}")),
            (_, _) => Some(format!("{at} was thawed by somebody else in between")),
        }
    }
}
