//! Progress bars for people, one a disk; nothing where nobody watches.

use changetrack::Progress;
use cli::units::size;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const REFRESH: Duration = Duration::from_millis(100);

/// Shows a scan's progress until it is dropped.
#[derive(Debug)]
pub struct Shown {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Shown {
    /// A bar on the terminal, or nothing where stderr is none or `quiet` is set.
    pub fn new(
        bars: &MultiProgress,
        disk: &str,
        size_bytes: u64,
        progress: Arc<Progress>,
        quiet: bool,
    ) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self {
                stop: None,
                thread: None,
            };
        }
        let bar = bars.add(ProgressBar::new(size_bytes));
        let template =
            "{prefix:>12} [{bar:30}] {percent:>3}%  {bytes}/{total_bytes}  {bytes_per_sec}  ETA {eta}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(disk.to_owned());
        let (stop, stopped) = channel();
        let spawned = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            loop {
                bar.set_position(progress.compared_bytes.load(Ordering::Relaxed));
                bar.set_message(format!(
                    "changed {}",
                    size(progress.dirty_bytes.load(Ordering::Relaxed))
                ));
                match stopped.recv_timeout(REFRESH) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            bar.finish_and_clear();
        });
        Self {
            stop: Some(stop),
            // Where there is no thread left, the sync continues without a bar.
            thread: spawned.ok(),
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Only the bar is lost if it panicked.
            let _ = thread.join();
        }
    }
}
