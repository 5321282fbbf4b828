//! Markers in a text as it arrives, such as the tag that ends a thought.

use std::mem;

/// Looks for the first of some markers, wherever the pieces are cut. White space before a marker belongs to it.
///
/// What comes out depends on the characters alone. Each is looked at a few times at most, however long a run of white
/// space is.
#[derive(Debug, Clone, Default)]
pub struct Seek {
    markers: &'static [&'static str],
    /// White space that a marker may follow.
    space: String,
    /// The start of a marker so far; shorter than the longest of them.
    held: String,
}

/// A marker in a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// White space that stood before it.
    pub space: String,
    /// Which one.
    pub marker: &'static str,
    /// The text behind it.
    pub rest: String,
}

impl Seek {
    /// Looks for `markers`, none of which begins or ends with white space.
    pub const fn new(markers: &'static [&'static str]) -> Self {
        Self {
            markers,
            space: String::new(),
            held: String::new(),
        }
    }

    /// Takes the next piece of text. Returns the text that is certain to stand before any marker, and the marker if one
    /// is complete; it is the caller's to begin anew behind it.
    pub fn push(&mut self, text: &str) -> (String, Option<Found>) {
        let mut text = mem::take(&mut self.held) + text;
        let places = self.markers.iter();
        let places = places.filter_map(|&marker| Some((text.find(marker)?, marker)));
        // Of two at one place the longer.
        let first = places.min_by_key(|&(at, marker)| (at, usize::MAX - marker.len()));
        if let Some((at, marker)) = first {
            let rest = text.split_off(at + marker.len());
            text.truncate(at);
            let before = self.without_end(&text);
            let space = mem::take(&mut self.space);
            let found = Found {
                space,
                marker,
                rest,
            };
            return (before, Some(found));
        }
        let starts = self
            .markers
            .iter()
            .map(|marker| start_at_end(&text, marker));
        self.held = text.split_off(text.len() - starts.max().unwrap_or(0));
        (self.without_end(&text), None)
    }

    /// The end of the text: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        mem::take(&mut self.space) + &mem::take(&mut self.held)
    }

    /// What is certain of `text`: all but the white space at its end, which is kept.
    fn without_end(&mut self, text: &str) -> String {
        let (certain, space) = text.split_at(text.trim_end().len());
        let before = match certain {
            "" => String::new(),
            certain => mem::take(&mut self.space) + certain,
        };
        self.space += space;
        before
    }
}

/// How many bytes at the end of `text` are a start of `marker`, all of it excepted.
pub fn start_at_end(text: &str, marker: &str) -> usize {
    let starts = marker.char_indices().skip(1).map(|(at, _)| at);
    let starts = starts.filter(|&length| text.ends_with(&marker[..length]));
    starts.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_belong_to_a_marker_is_held_back() {
        let mut seek = Seek::new(&["</think>", "</tool>"]);
        assert_eq!(seek.push("a \n"), ("a".into(), None));
        assert_eq!(seek.push(" b</t"), (" \n b".into(), None));
        assert_eq!(seek.push("his"), ("</this".into(), None));
        assert_eq!(seek.push(" </thi"), (String::new(), None));
        let found = Found {
            space: " ".into(),
            marker: "</think>",
            rest: "\nc".into(),
        };
        assert_eq!(seek.push("nk>\nc"), (String::new(), Some(found)));
        assert_eq!(seek.push("d <"), ("d".into(), None));
        assert_eq!(seek.finish(), " <");
    }
}
