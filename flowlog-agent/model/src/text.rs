//! Words of others (customers, stores, packets of a network) on a terminal or in a log.

use std::borrow::Cow;

/// The same, with everything that would do something instead of being seen written by its number: controls (ESC, CR, LF …),
/// what turns the direction of text round, and other line ends.
#[must_use]
pub fn printable(words: &str) -> Cow<'_, str> {
    if !words.chars().any(acts) {
        return Cow::Borrowed(words);
    }
    let mut seen = String::with_capacity(words.len() + 8);
    for c in words.chars() {
        if acts(c) {
            seen.extend(c.escape_default());
        } else {
            seen.push(c);
        }
    }
    Cow::Owned(seen)
}

/// The same on a place between quotes in a sentence: what cannot be seen is written by its number as well. Quotes stay as they are.
#[must_use]
pub fn quotable(words: &str) -> String {
    let mut seen = String::with_capacity(words.len());
    for c in words.chars() {
        if matches!(c, '\'' | '"') { seen.push(c) } else { seen.extend(c.escape_debug()) }
    }
    seen
}

/// Controls of C0 and C1, and the bidirectional ones (Unicode Standard Annex 9, table 2) with line and paragraph separator.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_of_a_name_stay_and_what_cannot_be_seen_does_not() {
        assert_eq!(quotable("o'brien \"x\""), "o'brien \"x\"");
        assert_eq!(quotable("a\u{1b}\n\u{200b}"), "a\\u{1b}\\n\\u{200b}");
    }

    #[test]
    fn what_acts_on_a_terminal_is_written_by_its_number_and_all_else_stays() {
        for (words, seen) in [
            ("web-1 ünïcode 日本 `x` \"q\"", "web-1 ünïcode 日本 `x` \"q\""),
            ("a\u{1b}[31mred", "a\\u{1b}[31mred"),
            ("one\r\ntwo\ttab\u{7f}\u{9b}", "one\\r\\ntwo\\ttab\\u{7f}\\u{9b}"),
            ("\u{202e}gpj.exe\u{2066}\u{2028}", "\\u{202e}gpj.exe\\u{2066}\\u{2028}"),
        ] {
            assert_eq!(printable(words), seen);
        }
    }
}
