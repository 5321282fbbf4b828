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
    /// Granite 3: one token, then a JSON list of all calls. Granite 3.1 writes `<tool_call>` for the token, and now and
    /// then nothing.
    List {
        /// The token, which is special and would not show in the answer otherwise.
        token: u32,
    },
    /// Llama 3, and whatever teaches no sign of its own: `{"name": …, "parameters": …}`, alone or behind a token.
    Json {
        /// The token, where the model has it.
        token: Option<u32>,
    },
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "<|tool_call|>";
const PYTHON: &str = "<|python_tag|>";

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
///
/// What comes depends on the characters alone, not on how they were cut into pieces. Each is looked at a few times at
/// most, however long a call is.
pub struct CallParser {
    syntax: CallSyntax,
    state: State,
    /// Not decided yet.
    held: String,
    /// What stood before the JSON in `held`, in case it is no call: white space and the opener.
    opened: String,
    calls: usize,
}

/// Where in an answer a parser is.
enum State {
    /// Nothing but white space has come: a call may begin without an opener.
    Start,
    /// In text, where an opener may come.
    Text,
    /// Where the JSON of a call has to be; whether an opener came before it.
    Inside(JsonEnd, bool),
    /// Behind a call: its closer may come, and without an opener the next call.
    After,
}

/// Finds the end of a JSON object or list as it arrives.
#[derive(Default)]
struct JsonEnd {
    /// Bytes that have been looked at.
    seen: usize,
    depth: usize,
    in_text: bool,
    is_escaped: bool,
}

impl JsonEnd {
    /// The length of the JSON that `text` begins with, once it is complete. `text` has grown since the last time.
    fn find(&mut self, text: &str) -> Option<usize> {
        for &byte in &text.as_bytes()[self.seen..] {
            self.seen += 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_text => self.is_escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(self.seen);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// A call as models write it.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

impl CallSyntax {
    /// What the chat template `source`, which takes tools, teaches.
    pub(super) fn of(source: &str, tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.added_tokens();
        let token = |text: &str| added.iter().find(|token| token.text == text);
        if source.contains(OPEN) {
            return Self::Tags;
        }
        match token(LIST).filter(|_| source.contains(LIST)) {
            Some(token) => Self::List { token: token.id },
            None => Self::Json {
                token: token(PYTHON).map(|token| token.id),
            },
        }
    }

    /// What stands before the first call.
    pub(super) const fn opener(&self) -> &'static str {
        match self {
            Self::Tags => "<tool_call>\n",
            Self::List { .. } => LIST,
            Self::Json { .. } => "",
        }
    }

    /// All that may stand before a call.
    const fn openers(&self) -> &'static [&'static str] {
        match self {
            Self::Tags => &[OPEN],
            Self::List { .. } => &[LIST, OPEN],
            Self::Json { .. } => &[PYTHON],
        }
    }

    /// Whether an answer may begin with a call that nothing stands before.
    const fn has_bare_calls(&self) -> bool {
        !matches!(self, Self::Tags)
    }

    /// The special token that has to show for calls to be found.
    pub const fn shown_token(&self) -> Option<u32> {
        match self {
            Self::Tags => None,
            Self::List { token } => Some(*token),
            Self::Json { token } => *token,
        }
    }

    /// `calls` as the model writes them, for templates that cannot; `guard` marks what a client wrote.
    pub(super) fn write(&self, calls: &[ToolCall], guard: impl Fn(&str) -> String) -> String {
        let written = calls.iter().map(|call| {
            let name = json!(call.name);
            let arguments = match serde_json::from_str::<&RawValue>(call.arguments()) {
                Ok(_is_json) => call.arguments().to_owned(),
                Err(_) => json!(call.arguments).to_string(),
            };
            let key = self.arguments_key();
            guard(&format!("{{\"name\": {name}, \"{key}\": {arguments}}}"))
        });
        let written: Vec<String> = written.collect();
        match self {
            Self::Tags => written
                .iter()
                .map(|call| format!("{OPEN}\n{call}\n{CLOSE}"))
                .collect::<Vec<_>>()
                .join("\n"),
            Self::List { .. } => format!("{LIST}[{}]", written.join(", ")),
            Self::Json { .. } => written.join("; "),
        }
    }

    /// What the arguments of a call are called.
    const fn arguments_key(&self) -> &'static str {
        match self {
            Self::Tags | Self::List { .. } => "arguments",
            Self::Json { .. } => "parameters",
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
    pub fn new(syntax: CallSyntax, is_inside: bool) -> Self {
        let state = match is_inside {
            true => State::Inside(JsonEnd::default(), true),
            false => State::Start,
        };
        Self {
            syntax,
            state,
            held: String::new(),
            opened: String::new(),
            calls: 0,
        }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held += text;
        let mut parts = Vec::new();
        while match self.state {
            State::Start | State::After => self.begin(),
            State::Text => self.search(&mut parts),
            State::Inside(..) => self.read(&mut parts),
        } {}
        parts
    }

    /// The end of the answer.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let text = mem::take(&mut self.opened) + &mem::take(&mut self.held);
        self.state = State::Text;
        self.text(&text, &mut parts);
        parts
    }

    /// Where a call may begin without an opener. Returns whether it is decided what is here.
    fn begin(&mut self) -> bool {
        let is_after = matches!(self.state, State::After);
        let rest = self.held.trim_start();
        if is_after && let Some(rest) = rest.strip_prefix(CLOSE) {
            self.held = rest.to_owned();
            return true;
        }
        if rest.is_empty() || is_after && CLOSE.starts_with(rest) {
            return false;
        }
        let rest = match rest.strip_prefix(';') {
            Some(next) if is_after => next.trim_start(),
            _ => rest,
        };
        if rest.is_empty() {
            return false;
        }
        self.state = State::Text;
        if self.syntax.has_bare_calls() && rest.starts_with(['{', '[']) {
            self.state = State::Inside(JsonEnd::default(), false);
            let json = self.held.split_off(self.held.len() - rest.len());
            self.opened = mem::replace(&mut self.held, json);
        }
        true
    }

    /// In text: passes on what is certain to be text, up to an opener. Returns whether there is one.
    fn search(&mut self, parts: &mut Vec<Part>) -> bool {
        let openers = self.syntax.openers();
        let found = openers
            .iter()
            .filter_map(|opener| Some((self.held.find(opener)?, opener.len())));
        let Some((at, length)) = found.min() else {
            let undecided = openers
                .iter()
                .map(|opener| undecided(&self.held, opener))
                .max();
            let rest = self
                .held
                .split_off(self.held.len() - undecided.unwrap_or(0));
            let text = mem::replace(&mut self.held, rest);
            self.text(&text, parts);
            return false;
        };
        let rest = self.held.split_off(at + length);
        let mut before = mem::replace(&mut self.held, rest);
        self.opened = before.split_off(before[..at].trim_end().len());
        self.text(&before, parts);
        self.state = State::Inside(JsonEnd::default(), true);
        true
    }

    /// Behind an opener. Returns whether it is decided what is here.
    fn read(&mut self, parts: &mut Vec<Part>) -> bool {
        let State::Inside(json_end, is_opened) = &mut self.state else {
            return false;
        };
        if json_end.seen == 0 {
            let space = self.held.len() - self.held.trim_start().len();
            self.opened.extend(self.held.drain(..space));
        }
        let is_opened = *is_opened;
        let end = match may_be_call(&self.held) {
            None => return false,
            Some(false) => 0,
            Some(true) => match json_end.find(&self.held) {
                Some(end) => end,
                None => return false,
            },
        };
        let rest = self.held.split_off(end);
        let json = mem::replace(&mut self.held, rest);
        let opened = mem::take(&mut self.opened);
        match calls_in(&json, !is_opened) {
            Some(calls) if self.calls + calls.len() <= MAX_CALLS => {
                self.calls += calls.len();
                parts.extend(calls);
                self.state = State::After;
            }
            _ => {
                self.state = State::Text;
                self.text(&(opened + &json), parts);
            }
        }
        true
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
}

/// Whether JSON that begins like `text` can be a call or a list of them; `None` while that is open.
fn may_be_call(text: &str) -> Option<bool> {
    let object = match text.strip_prefix('[') {
        Some(items) => items.trim_start(),
        None => text,
    };
    let first = object.chars().next()?;
    let Some(fields) = object.strip_prefix('{') else {
        return Some(first == '{');
    };
    let key = fields.trim_start().chars().next();
    key.map(|first| first == '"')
}

/// The calls in `json`, which is a call or a list of them, each with arguments if it `needs_arguments`.
fn calls_in(json: &str, needs_arguments: bool) -> Option<Vec<Part>> {
    let calls = serde_json::from_str::<Vec<Written<'_>>>(json)
        .or_else(|_not_a_list| serde_json::from_str(json).map(|call| vec![call]));
    let calls = calls.ok().filter(|calls| !calls.is_empty())?;
    let is_call = |call: &Written<'_>| call.arguments.is_some() || !needs_arguments;
    calls
        .iter()
        .all(is_call)
        .then(|| calls.into_iter().map(Written::part).collect())
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
mod tests;
