//! What every command is given: whom to ask and how to answer.

use crate::client::{Answer, Client};
use cli::output;
use cli::paint::Paint;
use serde::de::DeserializeOwned;

/// What was said before the command.
#[derive(Debug)]
pub struct Context {
    /// The daemon.
    pub client: Client,
    /// Whether to print JSON instead of text for people.
    pub json: bool,
    /// Whether text for people is coloured.
    pub paint: Paint,
}

impl Context {
    /// Prints an answer: as it came, or the lines that `view` makes of it.
    ///
    /// # Errors
    /// When the answer is not what was expected, or the output cannot be written.
    pub fn tell<T: DeserializeOwned>(
        &self,
        answer: &Answer,
        view: impl FnOnce(Paint, &T) -> Vec<String>,
    ) -> anyhow::Result<()> {
        if self.json {
            return answer.print_json();
        }
        self.print(&view(self.paint, &answer.view()?))
    }

    /// Prints lines for people.
    ///
    /// # Errors
    /// Output that cannot be written; a closed pipe is none.
    pub fn print(&self, lines: &[String]) -> anyhow::Result<()> {
        lines.iter().try_for_each(|line| output::painted(line))
    }
}
