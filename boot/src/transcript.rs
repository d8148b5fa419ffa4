//! A console's text as it grows, with its last line while that is unfinished: a prompt has no end of line.

use crate::console::Console;

/// Longer lines are cut into several.
const LONGEST_LINE: usize = 64 << 10;

/// The text of a console: whole lines, of a very long one the end, and the line that is being written.
#[derive(Debug, Default)]
pub struct Transcript {
    whole: Console,
    /// Bytes of the unfinished line, without escape sequences.
    line: Vec<u8>,
    escape: Escape,
}

/// Where in an escape sequence the console is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    Outside,
    /// Behind ESC.
    Begun,
    /// In a control sequence, which a letter ends.
    Control,
    /// In a title, which BEL or the next ESC ends.
    Title,
}

impl Transcript {
    /// Takes what the console has written, and calls `on_line` with each line that this has finished.
    pub fn push(&mut self, bytes: &[u8], mut on_line: impl FnMut(&str)) {
        for &byte in bytes {
            if self.takes(byte) || self.line.len() >= LONGEST_LINE {
                self.finish_line(&mut on_line);
            }
        }
    }

    /// The unfinished line.
    pub fn unfinished(&self) -> String {
        String::from_utf8_lossy(&self.line).into_owned()
    }

    /// The last lines, at most `lines` of them and none that is empty.
    pub fn tail(&self, lines: usize) -> Vec<String> {
        let unfinished = self.unfinished();
        let all = self.whole.text().lines().chain([unfinished.as_str()]);
        let said: Vec<&str> = all.filter(|line| !line.trim().is_empty()).collect();
        let last = &said[said.len().saturating_sub(lines)..];
        last.iter().map(|line| line.trim_end().to_owned()).collect()
    }

    /// All of it.
    pub fn text(&self) -> String {
        format!("{}{}", self.whole.text(), self.unfinished())
    }

    /// Adds a byte, and says whether it ends the line.
    fn takes(&mut self, byte: u8) -> bool {
        match (self.escape, byte) {
            (_, 0x1b) => self.escape = Escape::Begun,
            (Escape::Begun, b'[') => self.escape = Escape::Control,
            (Escape::Begun, b']') => self.escape = Escape::Title,
            (Escape::Title, 0x07) | (Escape::Begun, _) => self.escape = Escape::Outside,
            (Escape::Control, 0x40..=0x7e) => {
                self.escape = Escape::Outside;
                // It goes somewhere else on the screen, or wipes it: what follows does not belong to what was there.
                return matches!(byte, b'H' | b'J' | b'f') && !self.line.is_empty();
            }
            (Escape::Control | Escape::Title, _) => {}
            (Escape::Outside, b'\n') => return true,
            (Escape::Outside, byte) if byte == b'\t' || !byte.is_ascii_control() => self.line.push(byte),
            (Escape::Outside, _) => {}
        }
        false
    }

    fn finish_line(&mut self, on_line: &mut impl FnMut(&str)) {
        let line = self.unfinished();
        self.line.clear();
        on_line(&line);
        self.whole.push(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> (Vec<String>, Transcript) {
        let (mut lines, mut transcript) = (Vec::new(), Transcript::default());
        // However it arrives.
        for byte in bytes {
            transcript.push(&[*byte], |line| lines.push(line.to_owned()));
        }
        (lines, transcript)
    }

    #[test]
    fn a_prompt_is_seen_before_its_line_ends() {
        let (lines, transcript) = said(b"Debian 12 web01 ttyS0\r\n\r\nweb01 login: ");
        assert_eq!(lines, ["Debian 12 web01 ttyS0", ""]);
        assert_eq!(transcript.unfinished(), "web01 login: ");
        assert_eq!(transcript.tail(2), ["Debian 12 web01 ttyS0", "web01 login:"]);
    }

    #[test]
    fn colours_and_titles_go_and_a_jump_of_the_cursor_ends_a_line() {
        let (lines, _) =
            said(b"\x1b]0;web01\x07[\x1b[0;1;31m TIME \x1b[0m] Timed out\nGRUB\x1b[2J\x1b[01;01Hboot\n");
        assert_eq!(lines, ["[ TIME ] Timed out", "GRUB", "boot"]);
        let (lines, _) = said("caf\u{e9}\n".as_bytes());
        assert_eq!(lines, ["caf\u{e9}"]);
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let (lines, transcript) = said(&vec![b'x'; LONGEST_LINE + 3]);
        assert_eq!((lines.len(), transcript.unfinished().len()), (1, 3));
    }
}
