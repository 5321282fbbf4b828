//! Stop strings, wherever the token boundaries fall.

use std::sync::Arc;

/// Searches one generation's text for its stop strings, and holds back what may be the beginning of one.
///
/// The stop string that is completed first ends the text; of two completed by the same character, the longer. This
/// depends on the characters alone, so the boundaries between pieces change nothing. Each character takes constant
/// time, however long the strings are (Knuth, Morris and Pratt's search).
///
/// Clones share the strings.
#[derive(Clone, Default)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
    /// For each pattern, the length of its longest prefix that the text ends with, in bytes.
    matched: Vec<usize>,
    /// Text held back because it may be the beginning of a stop string.
    held: String,
}

struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: after `n + 1` matching bytes, how many still match when the next one does not.
    fallback: Vec<usize>,
}

/// The result of [`StopStrings::push`].
#[derive(Debug, PartialEq, Eq)]
pub enum Scan {
    /// No stop string yet: this text certainly belongs to the answer.
    Continue(String),
    /// A stop string was completed: the rest of the answer before it, and the string. Nothing follows.
    Stop(String, String),
}

impl StopStrings {
    /// Searches for `strings`, none of which is empty; without any, text passes through.
    pub fn new(strings: &[String]) -> Self {
        Self {
            patterns: strings.iter().map(|string| Pattern::new(string)).collect(),
            matched: vec![0; strings.len()],
            held: String::new(),
        }
    }

    /// Adds the next piece of text.
    pub fn push(&mut self, text: &str) -> Scan {
        if self.patterns.is_empty() {
            return Scan::Continue(text.to_owned());
        }
        for (at, &byte) in text.as_bytes().iter().enumerate() {
            let mut stop_length = 0;
            for (pattern, matched) in self.patterns.iter().zip(&mut self.matched) {
                *matched = pattern.matched_after(*matched, byte);
                if *matched == pattern.bytes.len() {
                    stop_length = stop_length.max(pattern.bytes.len());
                }
            }
            if stop_length > 0 {
                self.held.push_str(&text[..=at]);
                let stop = self.held.split_off(self.held.len() - stop_length);
                return Scan::Stop(std::mem::take(&mut self.held), stop);
            }
        }
        self.held.push_str(text);
        // Every match begins at a character boundary, so the text is cut between characters.
        let matched = self.matched.iter().max().copied();
        let keep_from = self.held.len() - matched.unwrap_or(0);
        let keep = self.held.split_off(keep_from);
        Scan::Continue(std::mem::replace(&mut self.held, keep))
    }

    /// Ends the text: what was held back belongs to the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

impl Pattern {
    fn new(string: &str) -> Self {
        let bytes = string.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = fallback[matched - 1];
            }
            if bytes[at] == bytes[matched] {
                matched += 1;
            }
            fallback[at] = matched;
        }
        Self { bytes, fallback }
    }

    /// How many bytes of the pattern match after `byte`, if `matched` of them, but not all, matched before.
    fn matched_after(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes[matched] != byte {
            matched = self.fallback[matched - 1];
        }
        matched + usize::from(self.bytes[matched] == byte)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pushes `pieces` and returns the text and whether a stop string ended it.
    fn run<'a>(stops: &[&str], pieces: impl IntoIterator<Item = &'a str>) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut watch = StopStrings::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            match watch.push(piece) {
                Scan::Continue(more) => text += &more,
                Scan::Stop(more, _) => return (text + &more, true),
            }
        }
        (text + &watch.finish(), false)
    }

    #[test]
    fn a_stop_string_across_pieces_ends_the_text_before_it() {
        let pieces = ["The answer", " is 4.\n", "\nQ", "uestion: "];
        assert_eq!(run(&["\n\nQ"], pieces), ("The answer is 4.".into(), true));
    }

    #[test]
    fn text_that_only_starts_like_a_stop_string_is_released() {
        assert_eq!(
            run(&["ENDE"], ["a EN", "D", " b E"]),
            ("a END b E".into(), false)
        );
        assert_eq!(run(&["aab"], ["aaa", "b!"]), ("a".into(), true));
    }

    #[test]
    fn nothing_certain_is_held_back() {
        let mut watch = StopStrings::new(&["é!".to_owned()]);
        assert_eq!(watch.push("caf"), Scan::Continue("caf".into()));
        // `è` starts with the same byte as `é`.
        assert_eq!(watch.push("è"), Scan::Continue("è".into()));
        assert_eq!(watch.push("né"), Scan::Continue("n".into()));
        assert_eq!(watch.push("e"), Scan::Continue("ée".into()));
    }

    #[test]
    fn the_string_completed_first_wins_and_then_the_longer() {
        assert_eq!(run(&["abcd", "bc"], ["xabcd"]), ("xa".into(), true));
        assert_eq!(run(&["c", "abc"], ["xabcd"]), ("x".into(), true));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "[abé]{0,40}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<bool>(), 41),
        ) {
            // A slow reference: the first end of any stop string, and the longest string that ends there.
            let expected = (0..=text.len())
                .filter(|&end| text.is_char_boundary(end))
                .find_map(|end| {
                    let found = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
                    found.map(String::len).max().map(|length| (text[..end - length].to_owned(), true))
                })
                .unwrap_or_else(|| (text.clone(), false));
            let mut pieces = vec![String::new()];
            for (character, &cut) in text.chars().zip(&cuts) {
                if cut {
                    pieces.push(String::new());
                }
                pieces.last_mut().expect("never empty").push(character);
            }
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stops, pieces.iter().map(String::as_str)), expected);
        }
    }
}
