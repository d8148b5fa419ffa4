//! What commands print: tables and sizes for people, JSON lines for programs, progress while they wait.

use crate::paint::{Paint, Tone};
use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::fmt::{self, Write as _};
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
    write_line(&printable(&text.to_string()))
}

/// Prints a line that may hold colours: whatever a terminal would obey beside them is escaped, as in [`line`].
pub fn painted(text: &str) -> anyhow::Result<()> {
    write_line(&printable_but_colours(text))
}

/// Prints a line on stderr; one that nobody can read is no failure.
pub fn complain(text: impl fmt::Display) {
    let text = printable(&text.to_string());
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Prints an object as one line of JSON on stdout.
pub fn json(object: &impl Serialize) -> anyhow::Result<()> {
    json_text(&serde_json::to_string(object).context("write JSON")?)
}

/// Prints JSON that is text already as one line on stdout, with the same meaning.
pub fn json_text(json: &str) -> anyhow::Result<()> {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            // In a string these are always escaped: here they only part words.
            '\n' | '\r' | '\t' => text.push(' '),
            letter if is_obeyed(letter) => write!(text, "\\u{:04x}", u32::from(letter))?,
            letter => text.push(letter),
        }
    }
    write_line(&text)
}

fn write_line(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClosedOutput.into()),
        written => written.context("write to stdout"),
    }
}

/// Text in which nothing is left that a terminal would obey: names and reasons come from the store, or from others.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_obeyed(letter) && !matches!(letter, '\n' | '\t') {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Control characters, and those that turn the direction of text.
fn is_obeyed(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The same, but sequences that only change colours are left.
fn printable_but_colours(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\u{1b}[") {
        let (before, sequence) = rest.split_at(start);
        let parameters = &sequence[2..];
        let end = parameters.find(|letter: char| !letter.is_ascii_digit() && letter != ';');
        let is_colour = end.is_some_and(|end| parameters[end..].starts_with('m'));
        let taken = if is_colour {
            end.map_or(2, |end| end + 3)
        } else {
            2
        };
        shown.push_str(&printable(before));
        if is_colour {
            shown.push_str(&sequence[..taken]);
        } else {
            shown.push_str(&printable(&sequence[..taken]));
        }
        rest = &sequence[taken..];
    }
    shown.push_str(&printable(rest));
    shown
}

/// How a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A cell of a [`Table`].
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// Text in a colour, where the table is printed with colours.
    pub fn painted(tone: Tone, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            tone: Some(tone),
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, tone: None }
    }
}

/// Rows in aligned columns, without lines.
#[derive(Debug)]
pub struct Table {
    rows: comfy_table::Table,
    /// The cells of each row, for their colours.
    cells: Vec<Vec<Cell>>,
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
            cells: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a row; what it lacks in cells is left empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<Cell>>) {
        let cells: Vec<Cell> = cells.into_iter().map(Into::into).collect();
        self.rows.add_row(cells.iter().map(|cell| &cell.text));
        self.cells.push(cells);
    }

    /// Adds a line that belongs to no column.
    pub fn note(&mut self, text: String) {
        self.notes.push((self.rows.row_count(), text));
    }

    /// Prints heading, rows and notes on stdout.
    pub fn print(&self) -> anyhow::Result<()> {
        self.lines(Paint::none()).iter().try_for_each(line)
    }

    /// Heading, rows and notes, for [`painted`].
    pub fn lines(&self, paint: Paint) -> Vec<String> {
        let mut notes = self.notes.iter().peekable();
        let mut lines = Vec::new();
        for (above, row) in self.rows.lines().enumerate() {
            let cells = above.checked_sub(1).and_then(|row| self.cells.get(row));
            lines.push(painted_row(
                row.trim_end(),
                cells.map_or(&[], Vec::as_slice),
                paint,
            ));
            while let Some((_, text)) = notes.next_if(|(rows, _)| *rows == above) {
                lines.push(text.clone());
            }
        }
        lines
    }
}

/// A row with its cells in their colours: they stand in it one after the other, with only blanks between.
fn painted_row(row: &str, cells: &[Cell], paint: Paint) -> String {
    let mut shown = String::with_capacity(row.len());
    let mut rest = row;
    for cell in cells {
        let text = cell.text.trim();
        let Some(start) = rest.find(text) else { break };
        shown.push_str(&rest[..start]);
        match cell.tone {
            Some(tone) => shown.push_str(&paint.paint(tone, text)),
            None => shown.push_str(text),
        }
        rest = &rest[start + text.len()..];
    }
    shown + rest
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
    fn only_colours_pass_where_colours_may() {
        let text = "\u{1b}[1;31mred\u{1b}[0m \u{1b}[2J \u{1b}]0;title\u{7} \u{1b}[ \u{1b}[31";
        let shown = printable_but_colours(text);
        assert_eq!(
            shown,
            "\u{1b}[1;31mred\u{1b}[0m \\u{1b}[2J \\u{1b}]0;title\\u{7} \\u{1b}[ \\u{1b}[31"
        );
        assert_eq!(printable_but_colours("\u{1b}"), "\\u{1b}");
        assert_eq!(printable_but_colours("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn cells_are_painted_where_they_stand() {
        let paint = Paint::for_stdout(clap::ColorChoice::Always);
        let mut table = Table::new(&[("NAME", Align::Left), ("N", Align::Right), ("STATE", Align::Left)]);
        let plain = |text: &str| Cell::from(text.to_owned());
        table.row([plain("good"), plain(""), Cell::painted(Tone::Good, "good")]);
        table.row([plain("b"), plain("12"), Cell::painted(Tone::Bad, "")]);
        table.note("  why".to_owned());
        assert_eq!(
            table.lines(Paint::none()),
            ["NAME   N  STATE", "good      good", "b     12", "  why"]
        );
        assert_eq!(table.lines(paint)[1], "good      \u{1b}[32mgood\u{1b}[0m");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(count(1, "image"), "1 image");
        assert_eq!(count(0, "image"), "0 images");
    }
}
