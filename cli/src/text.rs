//! Text on a terminal: what must be escaped, and counts with their nouns.

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

/// The same on one line.
pub fn printable_line(text: &str) -> String {
    printable(&text.replace(['\n', '\r', '\t'], " "))
}

/// What a sync did to have all disks at one instant: "writers were held for 41 ms; 3 passes".
pub fn writers_held(held_us: u64, passes: usize) -> String {
    let passes = match passes {
        1 => "1 pass".to_owned(),
        count => format!("{count} passes"),
    };
    match held_us {
        0 => format!("writers were not held; {passes}"),
        held => format!("writers were held for {} ms; {passes}", held.div_ceil(1000)),
    }
}

/// Control characters, and those that turn the direction of text.
pub(crate) fn is_obeyed(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The same, but sequences that only change colours are left.
pub(crate) fn printable_but_colours(text: &str) -> String {
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

/// A count with its noun: `1 image`, `2 images`.
pub fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// The rest of a list for what is rarely there: `, damaged clusters repaired: 3`, or nothing where the number is 0.
pub fn count_if_any(what: &str, number: u64) -> String {
    match number {
        0 => String::new(),
        number => format!(", {what}: {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_is_shown_in_milliseconds_and_passes() {
        assert_eq!(writers_held(40_300, 3), "writers were held for 41 ms; 3 passes");
        assert_eq!(writers_held(0, 1), "writers were not held; 1 pass");
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(printable("a\u{1b}[2J\u{9b}x\tb\n"), "a\\u{1b}[2J\\u{9b}x\tb\n");
        assert_eq!(printable_line("a\r\nb\u{7}"), "a  b\\u{7}");
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
    fn one_is_singular() {
        assert_eq!(count(1, "image"), "1 image");
        assert_eq!(count(0, "image"), "0 images");
    }
}
