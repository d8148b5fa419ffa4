//! Labels on the left, what they mean on the right.

use cli::paint::{Paint, Tone};

/// Width of the labels, with the blanks on both sides.
const LABEL: usize = 15;

/// Lines, most of them below a headline.
#[derive(Debug)]
pub struct Fields {
    paint: Paint,
    lines: Vec<String>,
}

impl Fields {
    /// No line yet.
    pub fn new(paint: Paint) -> Self {
        Self {
            paint,
            lines: Vec::new(),
        }
    }

    /// Nothing but the headline.
    pub fn under(paint: Paint, headline: String) -> Self {
        Self {
            paint,
            lines: vec![headline],
        }
    }

    /// One line with a label.
    pub fn field(&mut self, label: &str, value: impl AsRef<str>) {
        self.push(label, None, value.as_ref());
    }

    /// The same with the value in a colour.
    pub fn painted(&mut self, label: &str, tone: Tone, value: &str) {
        self.push(label, Some(tone), value);
    }

    /// A line for each value, the first with the label; none where there is no value.
    pub fn list(&mut self, label: &str, values: impl IntoIterator<Item = String>) {
        let labels = std::iter::once(label).chain(std::iter::repeat(""));
        for (label, value) in labels.zip(values) {
            self.field(label, value);
        }
    }

    /// The lines.
    pub fn lines(self) -> Vec<String> {
        self.lines
    }

    fn push(&mut self, label: &str, tone: Option<Tone>, value: &str) {
        let value = tone.map_or_else(|| value.to_owned(), |tone| self.paint.paint(tone, value));
        let label = format!("{:<LABEL$}", format!("  {label}"));
        self.lines.push(self.paint.paint(Tone::Faint, &label) + &value);
    }
}
