//! Tables for people.

use crate::output::line;
use crate::paint::{Paint, Tone};
use comfy_table::{CellAlignment, ContentArrangement, presets};

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
    ///
    /// # Errors
    /// As for [`output::line`](crate::output::line).
    pub fn print(&self) -> anyhow::Result<()> {
        self.lines(Paint::none()).iter().try_for_each(line)
    }

    /// Heading, rows and notes, for [`output::painted`](crate::output::painted).
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
