//! Keeps text that a client wrote from becoming a control token.
//!
//! A chat template puts control tokens (`<|end_of_role|>`) and the client's text into one string. Before that, every
//! text of the client is marked wherever it could read as a control token, alone or together with what stands beside
//! it. The marks keep it from being found when the string is cut into tokens, and then they are taken out.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};
use minijinja::value::{Value, ValueKind};

use super::super::tokenizer::{EncodeError, Tokenizer};

/// Starts a mark. Unicode guarantees that it is no character, so hardly any text has it; one that does is escaped.
const MARK: char = '\u{FDD0}';
/// After [`MARK`]: nothing stands here, only that no token runs across.
const BREAK: char = '\u{FDD1}';
/// After [`MARK`]: the text itself has a [`MARK`] here.
const ESCAPED: char = '\u{FDD2}';
/// Where a conversation is cut off that the model is to continue. No text of a client holds it: its [`MARK`] would be
/// escaped.
pub(super) const CUT: &str = "\u{FDD0}\u{FDD3}";

/// The tokens that a tokenizer finds in text before anything else, and those among them that a client must not write.
pub struct ControlTokens {
    /// Every added token, the longest first where several start: how a rendered conversation is cut.
    added: AhoCorasick,
    added_ids: Vec<u32>,
    /// What only the template may write, wherever it occurs, overlaps included.
    control: AhoCorasick,
    control_texts: Vec<String>,
}

impl ControlTokens {
    /// The added tokens of `tokenizer`.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.added_tokens();
        // Models mark the tags of tools and thoughts as ordinary, so that they show in answers; a tag is control all
        // the same when it stands in a prompt. Some tokenizers also add runs of spaces: those are anyone's to write.
        let control_texts: Vec<String> = added
            .iter()
            .filter(|token| token.special || is_tag(&token.text))
            // No mark fits into a single character.
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

    /// `text`, marked so that no control token is found in it or across its ends.
    pub fn guard<'a>(&self, text: &'a str) -> Cow<'a, str> {
        // After the first character of every token that stands in the text; of overlapping ones, each.
        let mut breaks: Vec<usize> = self
            .control
            .find_overlapping_iter(text)
            .map(|found| found.start() + first_length(&text[found.start()..]))
            .collect();
        // Templates trim, so the ends are those of what is left.
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

    /// Every text in `value`, keys of objects included, marked.
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

    /// The ids of a rendered conversation: control tokens where the template wrote them, and text in between.
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

    /// Whether `text` begins like the end of a control token, which the template may have begun.
    fn may_end_a_token(&self, text: &str) -> bool {
        let ends = |token: &String| {
            let mut starts = token.char_indices().skip(1);
            starts.any(|(at, _)| text.starts_with(&token[at..]))
        };
        !text.is_empty() && self.control_texts.iter().any(ends)
    }

    /// Whether `text` ends like the start of a control token, which the template may go on with.
    fn may_start_a_token(&self, text: &str) -> bool {
        let starts = |token: &String| {
            let mut ends = token.char_indices().skip(1);
            ends.any(|(at, _)| text.ends_with(&token[..at]))
        };
        !text.is_empty() && self.control_texts.iter().any(starts)
    }
}

/// `rendered` as it was meant, without marks.
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
            // A template that cut between the two.
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
