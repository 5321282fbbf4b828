//! Ensures that text from a client never becomes a control token.
//!
//! A chat template joins control tokens (`<|end_of_role|>`) and text from the client into one string. Before that,
//! marks are inserted into the client's text wherever it could be taken for a control token, alone or joined with the
//! text beside it. The marks prevent such matches when the string is split into tokens, and are then removed.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};
use minijinja::value::{Value, ValueKind};

use super::super::tokenizer::{EncodeError, Tokenizer};

/// Begins a mark. Unicode guarantees that this code point is not a character, so hardly any text contains it; if one
/// does, it is escaped.
const MARK: char = '\u{FDD0}';
/// After [`MARK`]: no token may span this position.
const BREAK: char = '\u{FDD1}';
/// After [`MARK`]: the original text has a [`MARK`] here.
const ESCAPED: char = '\u{FDD2}';
/// The position where a conversation is cut off so that the model continues it. Text from a client cannot contain it,
/// because its [`MARK`] would be escaped.
pub(super) const CUT: &str = "\u{FDD0}\u{FDD3}";

/// The added tokens, for which a tokenizer searches before anything else, and those among them that a client must not
/// write.
pub struct ControlTokens {
    /// Finds every added token, the longest one first if several begin at the same position. It splits a rendered
    /// conversation.
    added: AhoCorasick,
    added_ids: Vec<u32>,
    /// Finds, overlaps included, every token that only the template may write.
    control: AhoCorasick,
    control_texts: Vec<String>,
}

impl ControlTokens {
    /// Collects the added tokens of `tokenizer`.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.added_tokens();
        // Models declare the tags of tools and thoughts as ordinary tokens, so that they appear in answers; in a prompt
        // they still act as control tokens. Some tokenizers also add runs of spaces, which clients may write.
        let control_texts: Vec<String> = added
            .iter()
            .filter(|token| token.special || is_tag(&token.text))
            // A break cannot be inserted into a single character.
            .filter(|token| token.text.chars().nth(1).is_some())
            .map(|token| token.text.clone())
            .collect();
        let find = |kind, texts: Vec<&String>| {
            AhoCorasick::builder()
                .match_kind(kind)
                .build(texts)
                .expect("a few hundred short patterns fit any automaton")
        };
        Self {
            added: find(
                MatchKind::LeftmostLongest,
                added.iter().map(|token| &token.text).collect(),
            ),
            added_ids: added.iter().map(|token| token.id).collect(),
            control: find(MatchKind::Standard, control_texts.iter().collect()),
            control_texts,
        }
    }

    /// Returns `text` with marks, so that no control token is found within it or across its ends.
    pub fn guard<'a>(&self, text: &'a str) -> Cow<'a, str> {
        // A break after the first character of every control token in the text, overlapping ones included.
        let mut breaks: Vec<usize> = self
            .control
            .find_overlapping_iter(text)
            .map(|found| found.start() + first_length(&text[found.start()..]))
            .collect();
        // Templates may trim the text, so the breaks are inside of the white space at its ends.
        let start = text.len() - text.trim_start().len();
        let end = text.trim_end().len().max(start);
        let core = &text[start..end];
        let breaks_at = |is_found: bool, at| is_found.then_some(at);
        breaks.extend(breaks_at(self.may_end_a_token(core), start));
        breaks.extend(breaks_at(self.may_start_a_token(core), end));
        if breaks.is_empty() && !text.contains(MARK) {
            return Cow::Borrowed(text);
        }
        breaks.sort_unstable();
        breaks.dedup();
        let mut guarded = String::with_capacity(text.len() + 8 * breaks.len());
        let mut written = 0;
        for at in breaks {
            guarded += &escape(&text[written..at]);
            guarded.extend([MARK, BREAK]);
            written = at;
        }
        guarded += &escape(&text[written..]);
        Cow::Owned(guarded)
    }

    /// Returns `value` with marks in every text, including the keys of objects.
    pub fn guard_value(&self, value: &Value) -> Value {
        match value.kind() {
            ValueKind::String => Value::from(&*self.guard(value.as_str().unwrap_or_default())),
            ValueKind::Seq => items(value).map(|item| self.guard_value(&item)).collect(),
            ValueKind::Map => {
                let pairs = items(value).map(|key| {
                    let item = value.get_item(&key).unwrap_or_default();
                    (self.guard_value(&key), self.guard_value(&item))
                });
                Value::from_pairs(pairs)
            }
            _ => value.clone(),
        }
    }

    /// Tokenizes a rendered conversation: control tokens where the template wrote them, ordinary text elsewhere.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        rendered: &str,
        max_tokens: usize,
    ) -> Result<Vec<u32>, EncodeError> {
        tokenizer.check_length(rendered, max_tokens)?;
        let mut ids = Vec::new();
        let mut done = 0;
        for found in self.added.find_iter(rendered) {
            ids.extend(tokenizer.encode_text(&unmark(&rendered[done..found.start()]))?);
            ids.push(self.added_ids[found.pattern().as_usize()]);
            done = found.end();
        }
        ids.extend(tokenizer.encode_text(&unmark(&rendered[done..]))?);
        Ok(ids)
    }

    /// Whether `text` begins with the end of a control token, of which the template may write the start.
    fn may_end_a_token(&self, text: &str) -> bool {
        let ends = |token: &String| {
            let mut starts = token.char_indices().skip(1);
            starts.any(|(at, _)| text.starts_with(&token[at..]))
        };
        !text.is_empty() && self.control_texts.iter().any(ends)
    }

    /// Whether `text` ends with the start of a control token, which the template may complete.
    fn may_start_a_token(&self, text: &str) -> bool {
        let starts = |token: &String| {
            let mut ends = token.char_indices().skip(1);
            ends.any(|(at, _)| text.ends_with(&token[..at]))
        };
        !text.is_empty() && self.control_texts.iter().any(starts)
    }
}

/// Removes the marks from `rendered`.
pub fn unmark(rendered: &str) -> Cow<'_, str> {
    if !rendered.contains(MARK) {
        return Cow::Borrowed(rendered);
    }
    let mut text = String::with_capacity(rendered.len());
    let mut characters = rendered.chars().peekable();
    while let Some(character) = characters.next() {
        if character != MARK {
            text.push(character);
            continue;
        }
        match characters.peek() {
            Some(&BREAK) => {
                characters.next();
            }
            Some(&ESCAPED) => {
                characters.next();
                text.push(MARK);
            }
            // The template cut the text between the two characters of a mark.
            _ => text.push(MARK),
        }
    }
    Cow::Owned(text)
}

fn escape(text: &str) -> Cow<'_, str> {
    if text.contains(MARK) {
        let escaped = String::from_iter([MARK, ESCAPED]);
        Cow::Owned(text.replace(MARK, &escaped))
    } else {
        Cow::Borrowed(text)
    }
}

fn is_tag(token: &str) -> bool {
    token.starts_with('<') && token.ends_with('>')
}

fn first_length(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

fn items(value: &Value) -> impl Iterator<Item = Value> {
    value.try_iter().into_iter().flatten()
}
