//! What commands print: tables and sizes for people, JSON lines for programs, progress while they wait.

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::fmt;
use std::io::{self, Write};

/// Whoever read our output does not any more.
#[derive(Debug)]
pub struct ClosedOutput;

impl fmt::Display for ClosedOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for ClosedOutput {}

/// Prints a line on stdout at once. A closed pipe is a [`ClosedOutput`], never a panic.
pub fn line(text: impl fmt::Display) -> anyhow::Result<()> {
    let text = printable(&text.to_string());
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClosedOutput.into()),
        written => written.context("write to stdout"),
    }
}

/// Text in which nothing is left that a terminal would obey: names and reasons come from the store.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && !matches!(letter, '\n' | '\t') {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Prints an object as one line of JSON on stdout.
pub fn json(object: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string(object).context("write JSON")?)
}

/// How a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows in aligned columns, without lines.
#[derive(Debug)]
pub struct Table {
    rows: comfy_table::Table,
    /// Text between the rows, each with the number of rows above it.
    notes: Vec<(usize, String)>,
}

impl Table {
    /// A table with these column headings.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let mut table = comfy_table::Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|(heading, _)| heading));
        for (column, (_, align)) in table.column_iter_mut().zip(columns) {
            column.set_padding((0, 2));
            if *align == Align::Right {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self {
            rows: table,
            notes: Vec::new(),
        }
    }

    /// Adds a row; what it lacks in cells is left empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.add_row(cells);
    }

    /// Adds a line that belongs to no column.
    pub fn note(&mut self, text: String) {
        self.notes.push((self.rows.row_count(), text));
    }

    /// Prints heading, rows and notes on stdout.
    pub fn print(&self) -> anyhow::Result<()> {
        let mut notes = self.notes.iter().peekable();
        for (above, row) in self.rows.lines().enumerate() {
            line(row.trim_end())?;
            while let Some((_, text)) = notes.next_if(|(rows, _)| *rows == above) {
                line(text)?;
            }
        }
        Ok(())
    }
}

/// A number of bytes as people write it: `64 MiB`, `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = |unit: usize| 1u64 << (10 * (unit + 1));
    let Some(unit) = (0..UNITS.len()).rev().find(|&unit| bytes >= step(unit)) else {
        return format!("{bytes} B");
    };
    let (whole, rest) = (bytes / step(unit), bytes % step(unit));
    if rest == 0 {
        return format!("{whole} {}", UNITS[unit]);
    }
    // In 128 bits, since ten times an EiB is more than 64 hold.
    let tenths = u128::from(bytes) * 10 / u128::from(step(unit));
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A point in time in the local time zone, to the second.
pub fn local_time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// A day in the local time zone.
pub fn local_date(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d").to_string()
}

/// A count with its noun: `1 image`, `2 images`.
pub fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// A progress bar over bytes, with rate and time left; shown only where stderr is a terminal, gone when dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar that says what is being done.
    pub fn bytes(total: u64, what: impl Into<String>) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left";
        // The template is a constant, and a bar in the default style still does its work.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        Self(bar.with_message(what.into()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_people_write_them() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(printable("a\u{1b}[2J\u{9b}x\tb\n"), "a\\u{1b}[2J\\u{9b}x\tb\n");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(count(1, "image"), "1 image");
        assert_eq!(count(0, "image"), "0 images");
    }
}
