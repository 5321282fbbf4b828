//! The tags of a call: which text they may be, and where one ends a value.

use serde_json::{Map, Value};

use crate::text::chat::ToolCall;
use crate::text::chat::calls::{CLOSE, OPEN, THINK};

pub const FUNCTION: &str = "<function=";
pub const END_FUNCTION: &str = "</function>";
pub const PARAMETER: &str = "<parameter=";
pub const END_PARAMETER: &str = "</parameter>";
/// The tags that may begin a call within text, and the tag that opens a thought.
pub const OPENERS: [&str; 3] = [OPEN, FUNCTION, THINK];

/// The most bytes in the name of a tool or an argument. Tools have names of at most 64 characters.
pub const MAX_NAME: usize = 256;
/// The most white space between tags, in bytes.
const MAX_SPACE: usize = 256;

/// The meaning of a tag within a value.
pub enum Tag {
    /// The tag is a part of the value.
    Text,
    /// Unknown until more text arrives.
    Open,
    /// The tag ends the value. This number of its bytes is consumed.
    End(usize),
}

/// Determines the meaning of the `<` at `at` of `held`, which is within a value. `may_be_key` says whether another argument
/// of the call may have this key.
pub fn meaning(held: &str, at: usize, may_be_key: impl Fn(&str) -> bool) -> Tag {
    let tag = &held[at..];
    if let Some(after) = tag.strip_prefix(END_PARAMETER) {
        // `</function>` may be missing.
        let is_end = follows(after, &[PARAMETER, END_FUNCTION, CLOSE, OPEN]);
        return is_end.map_or(Tag::Open, |is_end| match is_end {
            true => Tag::End(END_PARAMETER.len()),
            false => Tag::Text,
        });
    }
    // Models sometimes leave out a closing tag, but only at the beginning of a line.
    let at_line = held[..at].ends_with('\n');
    if at_line && let Some(after) = tag.strip_prefix(PARAMETER) {
        return match after.find(['>', '\n', '<']) {
            None if after.len() < MAX_NAME => Tag::Open,
            Some(end) if end < MAX_NAME && after[end..].starts_with('>') => {
                match may_be_key(&after[..end]) {
                    true => Tag::End(0),
                    false => Tag::Text,
                }
            }
            _ => Tag::Text,
        };
    }
    if at_line && let Some(after) = tag.strip_prefix(END_FUNCTION) {
        return match follows(after, &[CLOSE, OPEN]) {
            None => Tag::Open,
            Some(true) => Tag::End(0),
            Some(false) => Tag::Text,
        };
    }
    let starts = |whole: &&str| whole.starts_with(tag);
    match [END_PARAMETER, PARAMETER, END_FUNCTION].iter().any(starts) {
        true => Tag::Open,
        false => Tag::Text,
    }
}

/// Whether the call whose unfinished first tag precedes `text` ends at once and another one follows; `None` if that is
/// not known yet.
pub fn is_retried(text: &str) -> Option<bool> {
    match follows(text, &[CLOSE]) {
        Some(true) => follows(&text.trim_start()[CLOSE.len()..], &[OPEN]),
        other => other,
    }
}

/// Whether `text` begins with white space followed by one of `tags`; `None` if that is not known yet. Too much white
/// space counts as no.
pub fn follows(text: &str, tags: &[&str]) -> Option<bool> {
    let rest = text.trim_start();
    if text.len() - rest.len() > MAX_SPACE {
        return Some(false);
    }
    if tags.iter().any(|tag| rest.starts_with(tag)) {
        return Some(true);
    }
    match tags.iter().any(|tag| tag.starts_with(rest)) {
        true => None,
        false => Some(false),
    }
}

/// Writes `call` as models do, without the `<tool_call>` tags.
pub fn write(call: &ToolCall) -> String {
    let mut written = format!("{FUNCTION}{}>\n", call.name);
    let arguments = serde_json::from_str::<Map<String, Value>>(call.arguments());
    for (key, value) in arguments.unwrap_or_default() {
        let value = match value {
            Value::String(text) => text,
            value => value.to_string(),
        };
        written += &format!("{PARAMETER}{key}>\n{value}\n{END_PARAMETER}\n");
    }
    written + END_FUNCTION
}
