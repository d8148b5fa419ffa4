//! What a guest writes to its serial line, as text of bounded length.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::SyncSender;

/// Longer lines are cut into several.
const LONGEST_LINE: u64 = 64 << 10;
/// Of a console that is longer, the end is kept.
const KEPT_BYTES: usize = 8 << 20;
const TAIL_LINES: usize = 25;

/// The lines of a console, the last 8 MiB at least half of them.
#[derive(Debug, Default)]
pub(crate) struct Console {
    text: String,
}

impl Console {
    pub(crate) fn push(&mut self, line: &str) {
        self.text += line;
        self.text.push('\n');
        if self.text.len() > KEPT_BYTES {
            let half = &self.text.as_bytes()[KEPT_BYTES / 2..];
            // A line ends with a byte that is no part of another character.
            let end = half.iter().position(|&byte| byte == b'\n');
            let end = end.map_or(self.text.len(), |at| KEPT_BYTES / 2 + at + 1);
            self.text.drain(..end);
        }
    }

    /// Its last lines, for an error's message.
    pub(crate) fn tail(&self) -> String {
        let lines: Vec<&str> = self.text.trim_end().lines().collect();
        match &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            [] => "it wrote nothing to its console".to_owned(),
            last => format!("its console ended with:\n{}", last.join("\n")),
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

/// Sends each line that comes through `pipe`, until it is closed or nobody listens.
pub(crate) fn send_lines(pipe: impl Read, lines: &SyncSender<String>) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if lines.send(printable(&line)).is_err() {
            return;
        }
    }
}

/// A line as text, without carriage returns, escape sequences and other control characters.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut printable = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // A control sequence ends with its first letter.
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else if c == '\t' || !c.is_control() {
            printable.push(c);
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn console_text_loses_its_control_characters() {
        assert_eq!(printable(b"\x1b[2J\x1b[01;01Hboot:\r"), "boot:");
    }

    #[test]
    fn a_long_line_comes_in_pieces_and_the_last_one_needs_no_end() {
        let long = usize::try_from(LONGEST_LINE).unwrap() + 10;
        let text = [&vec![b'a'; long][..], b"\nlast"].concat();
        let (sender, receiver) = sync_channel(8);
        send_lines(&text[..], &sender);
        drop(sender);
        let lengths: Vec<usize> = receiver.iter().map(|line| line.len()).collect();
        assert_eq!(lengths, [long - 10, 10, 4]);
    }

    #[test]
    fn of_an_endless_console_the_end_is_kept_in_whole_lines() {
        let mut console = Console::default();
        for number in 0..2_000_000 {
            console.push(&format!("line {number} é"));
        }
        let text = console.into_text();
        assert!(text.len() <= KEPT_BYTES);
        assert!(text.starts_with("line ") && text.ends_with("line 1999999 é\n"));
    }

    #[test]
    fn a_tail_has_the_last_lines() {
        let mut console = Console::default();
        assert!(console.tail().contains("nothing"));
        (0..100).for_each(|number| console.push(&number.to_string()));
        assert!(
            console.tail().starts_with("its console ended with:\n75\n"),
            "{}",
            console.tail()
        );
    }
}
