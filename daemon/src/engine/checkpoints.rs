//! When a running sync makes a checkpoint: often enough that little is stored twice, seldom enough that
//! nobody notices. One waits for the writes in flight and syncs four files: some 20 ms on the disks we measured.

use changetrack::Sink;
use imagefmt::{ClusterUpdate, DiskSink};
use std::time::{Duration, Instant};

/// Stores what a scan finds, and makes a checkpoint every few seconds.
pub struct Checkpointed<'a, 'b> {
    sink: &'a mut DiskSink<'b>,
    every: Duration,
    last: Instant,
}

impl<'a, 'b> Checkpointed<'a, 'b> {
    /// Stores into `sink`.
    pub fn new(sink: &'a mut DiskSink<'b>, every: Duration) -> Self {
        Self {
            sink,
            every,
            last: Instant::now(),
        }
    }

    /// Keeps what came since the last checkpoint, as the sync ends here for now.
    pub fn suspend(&mut self) -> imagefmt::Result<bool> {
        self.sink.checkpoint()
    }
}

impl Sink for Checkpointed<'_, '_> {
    fn push(&mut self, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        self.sink.push(update)
    }

    fn chunk_done(&mut self) -> imagefmt::Result<()> {
        if self.last.elapsed() >= self.every {
            self.sink.checkpoint()?;
            self.last = Instant::now();
        }
        Ok(())
    }
}
