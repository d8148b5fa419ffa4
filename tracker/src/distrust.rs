//! Why bits are not believed.

use std::fmt;

/// Why the bits cannot be believed to hold everything that changed. Its text is a clause that fits behind
/// "scanned: ".
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Distrust {
    /// The bits say what changed since another image than the one asked for.
    OtherImage,
    /// No sync has been completed since the disk is tracked.
    NoImage,
    /// A sync was killed before it was complete.
    Interrupted,
    /// The machine was started anew.
    OtherBoot,
    /// The machine was suspended.
    Suspended,
    /// The disk has another size, or its partition another place.
    Resized,
    /// Another disk is in its place.
    ReplacedDisk,
    /// The device is the same, but the kernel's counts of it began anew: it was set up again, with other content. zram is, after a
    /// reset.
    SetUpAgain,
    /// Clusters have another size than before.
    OtherClusters,
    /// The kernel skipped a program.
    Missed {
        /// How often.
        runs: u64,
    },
    /// Something happened that the programs do not understand.
    Counters {
        /// What, in words.
        what: &'static str,
        /// How often.
        times: u64,
    },
    /// Programs or maps were detached, removed or replaced.
    LinksChanged {
        /// Which.
        what: String,
    },
    /// The kernel wrote more than the programs saw, or writes were begun that never ended.
    Unbalanced {
        /// Sectors of 512 bytes.
        sectors: u64,
    },
    /// Writes to this disk never paused, so some that began before the tracking may have been missed.
    NeverQuiet,
    /// The kernel's statistics of the disk are switched off, and the tracker cannot be compared with them.
    NotCounting,
    /// Another version of smc began to track.
    OtherVersion,
    /// What has to be checked cannot be read.
    Unreadable {
        /// The error.
        reason: String,
    },
    /// The tracker was found to be wrong.
    Failed {
        /// By what.
        reason: String,
    },
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Distrust::OtherImage => f.write_str("the tracker knows the changes since another image"),
            Distrust::NoImage => f.write_str("the disk is tracked only since the last sync began"),
            Distrust::Interrupted => f.write_str("the last tracked sync was interrupted"),
            Distrust::OtherBoot => f.write_str("the machine was restarted"),
            Distrust::Suspended => f.write_str("the machine was suspended"),
            Distrust::Resized => f.write_str("the disk was resized or moved"),
            Distrust::ReplacedDisk => f.write_str("the disk was replaced by another one"),
            Distrust::SetUpAgain => f.write_str("the disk was reset and set up again"),
            Distrust::OtherClusters => f.write_str("the disk was tracked with another cluster size"),
            Distrust::Missed { runs } => write!(f, "the kernel skipped the tracker {runs} times"),
            Distrust::Counters { what, times } => write!(f, "the tracker saw {times} {what}"),
            Distrust::LinksChanged { what } => write!(f, "the tracker was changed: {what}"),
            Distrust::Unbalanced { sectors } => {
                write!(f, "the tracker's count of written sectors is wrong by {sectors}")
            }
            Distrust::NeverQuiet => f.write_str("the tracker was attached in the middle of writes that never paused"),
            Distrust::NotCounting => {
                f.write_str("the kernel does not count the disk's I/O (queue/iostats is 0), so the tracker cannot be checked")
            }
            Distrust::OtherVersion => f.write_str("the tracker belongs to another version of smc"),
            Distrust::Unreadable { reason } => write!(f, "the tracker cannot be checked: {reason}"),
            Distrust::Failed { reason } => write!(f, "the tracker was wrong: {reason}"),
        }
    }
}

impl Distrust {
    pub(crate) fn unreadable(error: &(dyn std::error::Error + 'static)) -> Distrust {
        Distrust::Unreadable {
            reason: crate::error::chain(error),
        }
    }
}
