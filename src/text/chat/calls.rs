//! Tool calls in the text of an answer: how the model writes them, and how they are found as the text arrives.

use std::mem;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::ToolCall;
use crate::text::Tokenizer;
use crate::text::grammar::{Calls, Grammar};

/// Calls in one answer; more of them is a model that repeats itself.
const MAX_CALLS: usize = 128;

/// How a model writes tool calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallSyntax {
    /// Granite 4, and many others: `<tool_call>{"name": …, "arguments": …}</tool_call>`, once for each call.
    Tags,
    /// Granite 3: one token, then a JSON list of all calls until the end of the answer.
    List {
        /// The token, which is special and would not show in the answer otherwise.
        token: u32,
    },
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "<|tool_call|>";

/// What the text of an answer turns out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Text for the reader.
    Text(String),
    /// A call; its id is for the caller to choose.
    Call {
        /// The tool.
        name: String,
        /// A JSON object, as the model wrote it.
        arguments: String,
    },
}

/// Finds the calls in one answer. Text that may be the start of a call is held back until it is known.
pub struct CallParser {
    syntax: CallSyntax,
    /// Not decided yet: while `is_inside`, the start of a call.
    held: String,
    is_inside: bool,
    /// What stood before the call that `held` is inside of, in case it is none: white space and the opener.
    opened: String,
    calls: usize,
}

/// A call as models write it.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

impl CallSyntax {
    /// What the chat template `source` teaches.
    pub(super) fn of(source: &str, tokenizer: &Tokenizer) -> Option<Self> {
        if !source.contains("tools") {
            return None;
        }
        if source.contains(OPEN) {
            return Some(Self::Tags);
        }
        let mut added = tokenizer.added_tokens().into_iter();
        let token = added.find(|token| token.text == LIST && source.contains(LIST))?;
        Some(Self::List { token: token.id })
    }

    /// What stands before the first call.
    pub(super) const fn opener(&self) -> &'static str {
        match self {
            Self::Tags => "<tool_call>\n",
            Self::List { .. } => LIST,
        }
    }

    /// The special token that has to show for calls to be found.
    pub const fn shown_token(&self) -> Option<u32> {
        match self {
            Self::Tags => None,
            Self::List { token } => Some(*token),
        }
    }

    /// `calls` as the model writes them, for templates that cannot; `guard` marks what a client wrote.
    pub(super) fn write(&self, calls: &[ToolCall], guard: impl Fn(&str) -> String) -> String {
        let written = calls.iter().map(|call| {
            let name = json!(call.name);
            let arguments = match serde_json::from_str::<&RawValue>(&call.arguments) {
                Ok(_is_json) => call.arguments.clone(),
                Err(_) => json!(call.arguments).to_string(),
            };
            guard(&format!("{{\"name\": {name}, \"arguments\": {arguments}}}"))
        });
        let written: Vec<String> = written.collect();
        match self {
            Self::Tags => written
                .iter()
                .map(|call| format!("{OPEN}\n{call}\n{CLOSE}"))
                .collect::<Vec<_>>()
                .join("\n"),
            Self::List { .. } => format!("{LIST}[{}]", written.join(", ")),
        }
    }

    /// What follows the opener when a call is forced. `tools` are the names that may be called and the schemas of their
    /// arguments.
    pub fn forced(&self, tools: Vec<(String, Option<String>)>) -> Grammar {
        let is_list = matches!(self, Self::List { .. });
        Grammar::Calls(Calls { tools, is_list })
    }
}

impl CallParser {
    /// A parser at the start of an answer, or behind the opener if the prompt ended with it.
    pub const fn new(syntax: CallSyntax, is_inside: bool) -> Self {
        Self {
            syntax,
            held: String::new(),
            is_inside,
            opened: String::new(),
            calls: 0,
        }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held += text;
        let mut parts = Vec::new();
        loop {
            let (opener, closer) = match self.syntax {
                CallSyntax::Tags => (OPEN, Some(CLOSE)),
                CallSyntax::List { .. } => (LIST, None),
            };
            if self.is_inside {
                // A list ends with the answer.
                let Some(end) = closer.and_then(|closer| self.held.find(closer)) else {
                    return parts;
                };
                let rest = self.held.split_off(end + CLOSE.len());
                let call = mem::replace(&mut self.held, rest);
                self.is_inside = false;
                let text = mem::take(&mut self.opened) + &call;
                self.read(&call[..end], &text, &mut parts);
            } else if let Some(at) = self.held.find(opener) {
                let rest = self.held.split_off(at + opener.len());
                let mut before = mem::replace(&mut self.held, rest);
                self.is_inside = true;
                self.opened = before.split_off(before[..at].trim_end().len());
                self.text(&before, &mut parts);
            } else {
                let undecided = undecided(&self.held, opener);
                let rest = self.held.split_off(self.held.len() - undecided);
                let text = mem::replace(&mut self.held, rest);
                self.text(&text, &mut parts);
                return parts;
            }
        }
    }

    /// The end of the answer.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let held = mem::take(&mut self.held);
        if mem::take(&mut self.is_inside) {
            let text = mem::take(&mut self.opened) + &held;
            self.read(&held, &text, &mut parts);
        } else {
            self.text(&held, &mut parts);
        }
        parts
    }

    /// Whether a call has been found.
    pub const fn has_calls(&self) -> bool {
        self.calls > 0
    }

    fn text(&mut self, text: &str, parts: &mut Vec<Part>) {
        // White space between calls is layout.
        if !(text.is_empty() || self.calls > 0 && text.trim().is_empty()) {
            parts.push(Part::Text(text.to_owned()));
        }
    }

    /// The calls in `json`; if that is none, the whole is `text`.
    fn read(&mut self, json: &str, text: &str, parts: &mut Vec<Part>) {
        let json = json.trim();
        let calls = serde_json::from_str::<Vec<Written<'_>>>(json)
            .or_else(|_not_a_list| serde_json::from_str(json).map(|call| vec![call]));
        match calls {
            Ok(calls) if !calls.is_empty() && self.calls + calls.len() <= MAX_CALLS => {
                self.calls += calls.len();
                parts.extend(calls.into_iter().map(Written::part));
            }
            _ => self.text(text, parts),
        }
    }
}

impl Written<'_> {
    fn part(self) -> Part {
        let arguments = match self.arguments.map(RawValue::get) {
            None | Some("null") => "{}".to_owned(),
            // Some answers hold the object as a text.
            Some(json) => serde_json::from_str(json).unwrap_or_else(|_no_text| json.to_owned()),
        };
        Part::Call {
            name: self.name,
            arguments,
        }
    }
}

/// How many bytes at the end of `text` may belong to a call: the start of `opener` and the white space before it.
fn undecided(text: &str, opener: &str) -> usize {
    let starts = (1..opener.len()).rev();
    let start = starts.filter(|&length| text.ends_with(&opener[..length]));
    let start = start.max().unwrap_or(0);
    let before = &text[..text.len() - start];
    start + (before.len() - before.trim_end().len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse<'a>(
        syntax: &CallSyntax,
        pieces: impl IntoIterator<Item = &'a str>,
    ) -> (String, Vec<(String, String)>) {
        let mut parser = CallParser::new(syntax.clone(), false);
        let mut parts: Vec<Part> = pieces
            .into_iter()
            .flat_map(|piece| parser.push(piece))
            .collect();
        parts.extend(parser.finish());
        let (mut text, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(more) => text += &more,
                Part::Call { name, arguments } => calls.push((name, arguments)),
            }
        }
        (text, calls)
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn calls_are_taken_out_of_the_text() {
        let answer = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": [1]}}\n</tool_call>\n<tool_call>{\"name\":\"b\"}</tool_call>\n";
        assert_eq!(
            parse(&CallSyntax::Tags, [answer]),
            (
                "Let me see.".into(),
                vec![call("a", "{\"x\": [1]}"), call("b", "{}")]
            )
        );
        let list = CallSyntax::List { token: 7 };
        let answer = "<|tool_call|>[{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"b\", \"arguments\": \"{\\\"y\\\": 2}\"}]";
        assert_eq!(
            parse(&list, [answer]),
            (
                String::new(),
                vec![call("a", "{}"), call("b", "{\"y\": 2}")]
            )
        );
    }

    #[test]
    fn what_is_no_call_is_text() {
        for answer in [
            "a <tool_ca b",
            "trailing \n",
            "a \n<tool_call>\nnot json\n</tool_call> more",
            "<tool_call>\n{\"name\": \"cut off",
            "</tool_call>",
        ] {
            let expected = (answer.to_owned(), vec![]);
            assert_eq!(parse(&CallSyntax::Tags, [answer]), expected, "{answer}");
        }
    }

    #[test]
    fn behind_the_opener_of_the_prompt_all_is_a_call() {
        let mut parser = CallParser::new(CallSyntax::Tags, true);
        assert_eq!(parser.push("{\"name\": \"a\", "), []);
        assert_eq!(parser.push("\"arguments\": {}}"), []);
        let expected = Part::Call {
            name: "a".into(),
            arguments: "{}".into(),
        };
        assert_eq!(parser.finish(), [expected]);
        assert!(parser.has_calls());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            parts in prop::collection::vec(prop_oneof![
                Just("<tool_call>"), Just("</tool_call>"), Just("{\"name\": \"é\", \"arguments\": {}}"),
                Just("\n"), Just("<tool"), Just("é "), Just("<|tool_call|>"), Just("[]"),
            ], 0..8),
            cuts in prop::collection::vec(any::<bool>(), 200),
            tags in any::<bool>(),
        ) {
            let syntax = if tags { CallSyntax::Tags } else { CallSyntax::List { token: 7 } };
            let text = parts.concat();
            let mut pieces = vec![String::new()];
            for (character, &cut) in text.chars().zip(cuts.iter().cycle()) {
                if cut {
                    pieces.push(String::new());
                }
                pieces.last_mut().expect("never empty").push(character);
            }
            let whole = parse(&syntax, [text.as_str()]);
            prop_assert_eq!(parse(&syntax, pieces.iter().map(String::as_str)), whole);
        }
    }
}
