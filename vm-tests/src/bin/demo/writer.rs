//! A server that goes on working while it is imaged: a thread that appends to a log and syncs it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use testkit::process::{self, PATIENCE};

const CHUNK_BYTES: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(5);
/// The log starts over here, so that a slow sync does not fill the disk.
const LOG_CHUNKS: u64 = 512;

/// A running writer; stopped when dropped.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    written_bytes: AtomicU64,
}

impl Writer {
    /// Starts writing to `log` and returns when the first chunk is on the disk.
    pub fn start(log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let shared = Arc::new(Shared::default());
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || append(file, &shared)
        });
        let writer = Self {
            shared,
            thread: Some(thread),
        };
        process::wait_until(PATIENCE, || writer.written_bytes() > 0).context("the writer wrote nothing")?;
        Ok(writer)
    }

    /// Bytes written and synced so far.
    pub fn written_bytes(&self) -> u64 {
        self.shared.written_bytes.load(Ordering::Relaxed)
    }

    /// Stops, and says how much was written.
    pub fn stop(mut self) -> Result<u64> {
        self.join().context("write to the source's log")?;
        Ok(self.written_bytes())
    }

    fn join(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Only on the way out of a failure that is reported already.
        let _ = self.join();
    }
}

fn append(mut file: File, shared: &Shared) -> io::Result<()> {
    let mut round: u64 = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        if round > 0 && round.is_multiple_of(LOG_CHUNKS) {
            io::Seek::rewind(&mut file)?;
        }
        let line = format!("request {round} served\n");
        let chunk: Vec<u8> = line.bytes().cycle().take(CHUNK_BYTES).collect();
        file.write_all(&chunk)?;
        file.sync_data()?;
        shared
            .written_bytes
            .fetch_add(CHUNK_BYTES as u64, Ordering::Relaxed);
        round += 1;
        thread::sleep(PAUSE);
    }
    Ok(())
}
