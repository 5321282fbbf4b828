//! Searches for markers in a text while it arrives, such as the tag that ends a thought.

use std::mem;

/// Searches for the first of several markers, wherever the text is cut into pieces. White space before a marker belongs
/// to it.
///
/// The result depends only on the characters. Each character is examined only a few times, however long a run of white
/// space is.
#[derive(Debug, Clone, Default)]
pub struct Seek {
    markers: &'static [&'static str],
    /// White space that a marker may follow.
    space: String,
    /// Text that may be the start of a marker; it is shorter than the longest marker.
    held: String,
}

/// A marker that was found in a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The white space before the marker.
    pub space: String,
    /// The marker.
    pub marker: &'static str,
    /// The text after the marker.
    pub rest: String,
}

impl Seek {
    /// Creates a search for `markers`. No marker may begin or end with white space.
    pub const fn new(markers: &'static [&'static str]) -> Self {
        Self {
            markers,
            space: String::new(),
            held: String::new(),
        }
    }

    /// Takes the next piece of text. Returns the text that certainly precedes any marker, and the marker if a complete
    /// one was found. The caller passes the rest after the marker to a later call.
    pub fn push(&mut self, text: &str) -> (String, Option<Found>) {
        let mut text = mem::take(&mut self.held) + text;
        let places = self.markers.iter();
        let places = places.filter_map(|&marker| Some((text.find(marker)?, marker)));
        // If two markers begin at the same position, the longer one counts.
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

    /// Takes the end of the text. Returns the held-back text, which is not a marker.
    pub fn finish(&mut self) -> String {
        mem::take(&mut self.space) + &mem::take(&mut self.held)
    }

    /// Returns `text` without the white space at its end, which is held back.
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

/// The number of bytes at the end of `text` that are a proper prefix of `marker`.
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
