//! Colours for people, where a terminal shows them and nobody objects.

use clap::ColorChoice;
use clap::builder::styling::{AnsiColor, Effects, Style};
use std::env;
use std::io::{self, IsTerminal};

/// What a word in colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Going on.
    Busy,
    /// Somebody should look at it.
    Warning,
    /// Wrong.
    Bad,
    /// Beside the point.
    Faint,
    /// What the rest is about.
    Strong,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Good => AnsiColor::Green.on_default(),
            Self::Busy => AnsiColor::Cyan.on_default(),
            Self::Warning => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Faint => Style::new().effects(Effects::DIMMED),
            Self::Strong => Style::new().bold(),
        }
    }
}

/// Whether words are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// For stdout: as asked, or where it is a terminal that shows colours, unless NO_COLOR is set.
    pub fn for_stdout(choice: ColorChoice) -> Self {
        Self(match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => io::stdout().is_terminal() && !is_refused(),
        })
    }

    /// Plain text.
    pub fn none() -> Self {
        Self(false)
    }

    /// The text, coloured if that is wanted.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.0 || text.is_empty() {
            return text.to_owned();
        }
        let style = tone.style();
        format!("{style}{text}{style:#}")
    }
}

/// no-color.org: any value but an empty one.
fn is_refused() -> bool {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    is_set("NO_COLOR") || env::var_os("TERM").is_none_or(|terminal| terminal == "dumb")
}
