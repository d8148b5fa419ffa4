//! What commands print: text for people and JSON lines for programs.

use crate::text::{is_obeyed, printable, printable_but_colours};
use anyhow::Context;
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::io::{self, Write};

/// The reader of our output has gone.
#[derive(Debug)]
pub struct ClosedOutput;

impl fmt::Display for ClosedOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for ClosedOutput {}

/// Prints a line on stdout at once.
///
/// # Errors
/// [`ClosedOutput`] where a pipe is closed; anything else that keeps it from being written.
pub fn line(text: impl fmt::Display) -> anyhow::Result<()> {
    write_line(&printable(&text.to_string()))
}

/// Lets a command continue whose answer is not only what it prints, but also what it does or its exit code.
///
/// # Errors
/// That of `printed`, except for [`ClosedOutput`].
pub fn unless_closed(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if error.is::<ClosedOutput>() => Ok(()),
        printed => printed,
    }
}

/// Prints a line that may hold colours: whatever a terminal would obey beside them is escaped, as in [`line`].
///
/// # Errors
/// As for [`line`].
pub fn painted(text: &str) -> anyhow::Result<()> {
    write_line(&printable_but_colours(text))
}

/// Prints a line on stderr; one that nobody can read is no failure.
pub fn complain(text: impl fmt::Display) {
    let line = printable(&text.to_string()) + "\n";
    drop(io::stderr().lock().write_all(line.as_bytes()));
}

/// Prints an object as one line of JSON on stdout.
///
/// # Errors
/// As for [`line`]; an object that has no form in JSON.
pub fn json(object: &impl Serialize) -> anyhow::Result<()> {
    json_text(&serde_json::to_string(object).context("write JSON")?)
}

/// Prints JSON that is text already as one line on stdout, with the same meaning.
///
/// # Errors
/// As for [`line`].
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
