//! What a sync keeps in memory while filesystems are frozen, and the reading then.
//!
//! All memory is made and locked before that. Between the first freeze and the last thaw nothing is allocated, logged or waited for
//! here: any of it may need a filesystem that is frozen.

use super::disks::SourceDisk;
use super::passes::Planned;
use blockio::{AlignedBuf, BLOCK_BYTES, LockedBuf};
use changetrack::Plan;
use imagefmt::{DiskId, Geometry, Method};
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};
use tracker::{Bitmap, Tracking};

/// What is left to be read fits this before anything is frozen.
pub(super) const AHEAD_BYTES: u64 = 128 << 20;

/// What is written between that and the freeze fits this.
const WINDOW_BYTES: u64 = 32 << 20;

/// Bytes that are read before the clock is looked at again.
const STEP_BYTES: u64 = 1 << 20;

/// Clusters of each disk that are read to find out how long one takes.
const PROBES: u64 = 16;

/// As large as a cluster can be.
const PROBE_BYTES: usize = 256 << 10;

/// How the reading ended. It is noted without an allocation.
#[derive(Debug)]
pub(super) enum Read {
    /// All of it was read.
    Whole,
    /// The time was up.
    TimeUp,
    /// More had been written than there is memory for.
    TooMuch,
    /// A disk, by its place in the job, could not be read at this byte.
    Failed(usize, u64, io::Error),
}

/// A piece of a disk in memory.
#[derive(Debug, Clone, Copy, Default)]
struct Piece {
    offset: u64,
    len: usize,
    /// Where it is in the memory.
    at: usize,
}

/// The memory for one disk.
#[derive(Debug)]
pub(super) struct HeldDisk {
    geometry: Geometry,
    /// Written, and to be read before the freeze.
    pub taken: Bitmap,
    /// Written since that was taken, and read while all is frozen.
    pub in_window: Bitmap,
    /// Written after that.
    pub after: Bitmap,
    pieces: Vec<Piece>,
    /// How many of the pieces were read before the freeze.
    ahead: usize,
}

/// The memory for all disks.
#[derive(Debug)]
pub(super) struct Held {
    /// Absent until what is to be read is known to fit.
    memory: Option<LockedBuf>,
    used: usize,
    pub disks: Vec<HeldDisk>,
    /// Which clusters are probed next.
    probe: u64,
}

impl Held {
    /// Of the disks of a job, with no memory to read into yet.
    pub fn new(ids: &[DiskId]) -> Self {
        let disk = |id: &DiskId| {
            let geometry = id.geometry();
            let clusters = geometry.cluster_count();
            let pieces = (AHEAD_BYTES + WINDOW_BYTES) / u64::from(geometry.cluster_size().bytes());
            HeldDisk {
                geometry,
                taken: Bitmap::in_memory(clusters),
                in_window: Bitmap::in_memory(clusters),
                after: Bitmap::in_memory(clusters),
                pieces: in_memory(to_usize(pieces)),
                ahead: 0,
            }
        };
        Self {
            memory: None,
            used: 0,
            disks: ids.iter().map(disk).collect(),
            probe: 1,
        }
    }

    /// Makes the memory for what was taken, and for what is written until the freeze.
    ///
    /// # Errors
    /// When the kernel does not lock so much.
    pub fn lock_memory(&mut self) -> io::Result<()> {
        let of = |disk: &HeldDisk| disk.taken.count() * u64::from(disk.geometry.cluster_size().bytes());
        let ahead: u64 = self.disks.iter().map(of).sum();
        self.memory = Some(LockedBuf::new(to_usize(ahead + WINDOW_BYTES))?);
        Ok(())
    }

    /// Clusters of all disks that were taken and are to be read.
    pub fn left_clusters(&self) -> u64 {
        self.disks.iter().map(|disk| disk.taken.count()).sum()
    }

    /// The passes that read what was taken, which is then no longer to be read from here.
    pub fn plans(&self) -> Vec<Planned> {
        let plan = |(place, disk): (usize, &HeldDisk)| {
            let plan = Plan::tracked(disk.geometry, &disk.taken.ranges(0), &[], WRITTEN);
            (place, plan)
        };
        let plans = self.disks.iter().enumerate().map(plan);
        plans.filter(|(_, plan)| plan.bytes() > 0).collect()
    }

    /// What was taken has been read by a pass.
    pub fn clear(&mut self) {
        self.disks.iter_mut().for_each(|disk| disk.taken.clear());
    }

    /// How long it takes to read a cluster somewhere: the mean of a few on each disk, as they are read while filesystems are frozen.
    ///
    /// # Errors
    /// A disk that cannot be read there.
    pub fn read_time(&mut self, sources: &[SourceDisk]) -> io::Result<Duration> {
        let begun = Instant::now();
        let mut clusters = 0;
        let mut memory = AlignedBuf::new(PROBE_BYTES);
        for (disk, source) in self.disks.iter().zip(sources) {
            let count = disk.geometry.cluster_count();
            for _ in 0..PROBES.min(count) {
                self.probe = self
                    .probe
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let cluster = (self.probe >> 16) % count;
                let len = disk.geometry.cluster_len(cluster);
                source
                    .device
                    .read_aligned_at(disk.geometry.cluster_offset(cluster), &mut memory[..len])?;
                clusters += 1;
            }
        }
        Ok(begun.elapsed() / clusters.max(1))
    }

    /// Reads what was taken, before anything is frozen. It has to be stored then, whatever comes of the freeze.
    pub fn read_ahead(&mut self, sources: &[SourceDisk], trackings: &mut [&mut Tracking]) -> Read {
        let read = self.read(sources, None);
        for (disk, tracking) in self.disks.iter_mut().zip(trackings) {
            if matches!(read, Read::Whole) {
                tracking.has_read(&disk.taken);
                disk.ahead = disk.pieces.len();
            }
            disk.pieces.truncate(disk.ahead);
        }
        read
    }

    /// Takes what was written since and reads it, while all is frozen. What is written after that is noted.
    pub fn take_and_read(
        &mut self,
        sources: &[SourceDisk],
        trackings: &mut [&mut Tracking],
        deadline: Instant,
    ) -> Read {
        for (disk, tracking) in self.disks.iter_mut().zip(trackings.iter_mut()) {
            tracking.take_into(&mut disk.in_window);
        }
        let read = self.read(sources, Some(deadline));
        for (disk, tracking) in self.disks.iter_mut().zip(trackings) {
            // What was not read stays for the next sync.
            match read {
                Read::Whole => tracking.has_read(&disk.in_window),
                _ => disk.pieces.truncate(disk.ahead),
            }
            tracking.take_into(&mut disk.after);
        }
        read
    }

    /// Reads what was taken before a freeze, or, until the deadline of one, what was taken in it.
    fn read(&mut self, sources: &[SourceDisk], deadline: Option<Instant>) -> Read {
        for (place, source) in sources.iter().enumerate() {
            let HeldDisk {
                geometry,
                taken,
                in_window,
                pieces,
                ..
            } = &mut self.disks[place];
            let set = if deadline.is_some() { in_window } else { taken };
            for clusters in set.ranges(0) {
                for bytes in steps(*geometry, clusters) {
                    if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                        return Read::TimeUp;
                    }
                    let len = to_usize(bytes.end - bytes.start);
                    let memory = self.memory.as_mut();
                    let memory = memory.and_then(|memory| memory.get_mut(self.used..self.used + len));
                    let (Some(memory), true) = (memory, pieces.len() < pieces.capacity()) else {
                        return Read::TooMuch;
                    };
                    if let Err(error) = source.device.read_aligned_at(bytes.start, memory) {
                        return Read::Failed(place, bytes.start, error);
                    }
                    pieces.push(Piece {
                        offset: bytes.start,
                        len,
                        at: self.used,
                    });
                    self.used += len.next_multiple_of(BLOCK_BYTES);
                }
            }
        }
        Read::Whole
    }

    /// What was read of a disk, before the freeze and during it, each in ascending order: where a piece begins, and its bytes.
    pub fn pieces(&self, place: usize) -> [Vec<(u64, &[u8])>; 2] {
        let disk = &self.disks[place];
        let (ahead, in_window) = disk.pieces.split_at(disk.ahead);
        [ahead, in_window].map(|pieces| {
            let bytes = |piece: &Piece| {
                let memory = self.memory.as_ref()?.get(piece.at..piece.at + piece.len)?;
                Some((piece.offset, memory))
            };
            pieces.iter().filter_map(bytes).collect()
        })
    }
}

/// Room for so many pieces, of which the kernel has given all pages.
fn in_memory(pieces: usize) -> Vec<Piece> {
    let mut room = vec![
        Piece {
            len: 1,
            ..Piece::default()
        };
        pieces
    ];
    room.clear();
    room
}

/// Why the clusters of a later pass are read.
pub(super) const WRITTEN: &str = "it was written to during the sync";

/// The bytes of clusters, in steps of whole clusters.
fn steps(geometry: Geometry, clusters: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = geometry.cluster_offset(clusters.end).min(geometry.size_bytes());
    let first = geometry.cluster_offset(clusters.start);
    let starts = (0..).map(move |step| first + step * STEP_BYTES);
    starts
        .take_while(move |start| *start < end)
        .map(move |start| start..(start + STEP_BYTES).min(end))
}

/// All lengths here are below that of the memory.
fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// As the passes of an image name how they found what to read.
pub(super) const METHOD: Method = Method::Tracked;
