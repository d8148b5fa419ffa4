//! Progress while people wait.

use crate::text::printable_line;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar over bytes, with rate and time left; shown only where stderr is a terminal, gone when dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar that says what is being done; a terminal obeys nothing of it.
    pub fn bytes(total: u64, what: impl AsRef<str>) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left";
        // The template is a constant, and a bar in the default style still does its work.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        Self(bar.with_message(printable_line(what.as_ref())))
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// So many bytes are done in all.
    pub fn set(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    /// Takes the bar off the terminal.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
