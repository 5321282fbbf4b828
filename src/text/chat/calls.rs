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
    let Some(first) = object.chars().next() else {
        return None;
    };
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
    fn granite_3_calls_are_found_in_every_form_with_the_text_around_them() {
        let list = CallSyntax::List { token: 7 };
        let both = vec![call("a", "{}"), call("b", "{\"x\": \"]}\\\"\"}")];
        let json = "[{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"b\", \"arguments\": {\"x\": \"]}\\\"\"}}]";
        for (answer, text) in [
            (json.to_owned(), ""),
            (format!(" \n{json}\n"), ""),
            (format!("<|tool_call|>{json}"), ""),
            (format!("<tool_call> {json}"), ""),
            (format!("<tool_call>{json}</tool_call>"), ""),
            (format!("<|tool_call|>{json} Done."), " Done."),
            (format!("{json}\nDone."), "\nDone."),
            (
                format!("Let me see.\n<tool_call>{json}\n\nDone."),
                "Let me see.\n\nDone.",
            ),
            (format!("One <|tool_call|>{json}"), "One"),
        ] {
            let expected = (text.to_owned(), both.clone());
            assert_eq!(parse(&list, [&*answer]), expected, "{answer}");
        }
        for answer in [
            "[1] says so, and [2] too",
            "[{\"name\": \"a\"}]",
            "[{\"name\": 1, \"arguments\": {}}]",
            "See [{\"name\": \"a\", \"arguments\": {}}]",
            "[]",
            "{\"x\": 1} and more",
            "<|tool_call|>none",
            "<|tool_call|>[{\"name\": \"a\", ",
            "[",
            " [ {",
        ] {
            let expected = (answer.to_owned(), vec![]);
            assert_eq!(parse(&list, [answer]), expected, "{answer}");
        }
    }

    #[test]
    fn llamas_calls_are_json_with_parameters() {
        let json = CallSyntax::Json { token: Some(7) };
        let a = "{\"name\": \"a\", \"parameters\": {\"x\": 1}}";
        let one = call("a", "{\"x\": 1}");
        for (answer, count, text) in [
            (a.to_owned(), 1, ""),
            (format!("<|python_tag|>{a}"), 1, ""),
            (format!("{a}; {a}\n;{a}"), 3, ""),
            (format!("{a}\n{a}"), 2, ""),
            (format!("<|python_tag|>{a}; {a}"), 2, ""),
            (format!("{a}; then"), 1, "; then"),
            (format!("Sure: <|python_tag|>{a}."), 1, "Sure:."),
            (format!("[{a}, {a}]"), 2, ""),
            (
                "{\"name\": \"Bob\", \"age\": 3}".into(),
                0,
                "{\"name\": \"Bob\", \"age\": 3}",
            ),
            ("{ no }".into(), 0, "{ no }"),
            ("<|python_tag|>f.call()".into(), 0, "<|python_tag|>f.call()"),
        ] {
            let expected = (text.to_owned(), vec![one.clone(); count]);
            assert_eq!(parse(&json, [&*answer]), expected, "{answer}");
        }
    }

    #[test]
    fn an_opener_in_an_argument_is_a_part_of_it() {
        let answer = "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"</tool_call><tool_call>\"}}</tool_call>";
        let expected = call("a", "{\"x\": \"</tool_call><tool_call>\"}");
        assert_eq!(
            parse(&CallSyntax::Tags, [answer]),
            (String::new(), vec![expected])
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
        let expected = Part::Call {
            name: "a".into(),
            arguments: "{}".into(),
        };
        assert_eq!(parser.push("\"arguments\": {}}"), [expected]);
        assert_eq!(parser.finish(), []);
        assert!(parser.has_calls());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            parts in prop::collection::vec(prop_oneof![
                Just("<tool_call>"), Just("</tool_call>"), Just("{\"name\": \"é\", \"arguments\": {}}"),
                Just("[{\"name\": \"f\", \"parameters\": {\"x\": \"}\\\"\"}}]"), Just("<|python_tag|>"), Just("; "),
                Just("\n"), Just("<tool"), Just("é "), Just("<|tool_call|>"), Just("[]"), Just("{\""), Just("[{"), Just("\\"),
            ], 0..8),
            cuts in prop::collection::vec(any::<bool>(), 200),
            which in 0..3,
        ) {
            let syntax = match which {
                0 => CallSyntax::Tags,
                1 => CallSyntax::List { token: 7 },
                _ => CallSyntax::Json { token: None },
            };
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
