//! Questions to people on a terminal.

use crate::text::printable;
use anyhow::Context;
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Whether somebody is there to be asked: questions go to stderr, answers come from stdin.
pub fn is_possible() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks, and says whether the answer is `yes`.
///
/// # Errors
/// A question that cannot be shown, and an answer that cannot be read.
pub fn is_confirmed(question: impl fmt::Display) -> anyhow::Result<bool> {
    let question = printable(&format!("{question} Type yes: "));
    let asked = io::stderr().lock().write_all(question.as_bytes());
    asked.context("ask on the terminal")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(answer.trim() == "yes")
}
