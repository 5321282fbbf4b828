//! Tool calls in the text of an answer: how the model writes them, and how they are found as the text arrives.
//!
//! - [`CallSyntax`]: what a chat template teaches.
//! - `json` and `xml`: find calls in JSON and in tags, and pass their arguments on as they come.

mod json;
mod xml;

use std::sync::Arc;

use serde_json::json;
use serde_json::value::RawValue;

use super::ToolCall;
use crate::text::Tokenizer;
use crate::text::grammar::{CallForm, Calls, Grammar};
use crate::text::values::Tools;
use json::JsonCalls;
use xml::XmlCalls;

/// Calls in one answer; more of them is a model that repeats itself.
const MAX_CALLS: usize = 128;

/// How a model writes tool calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallSyntax {
    /// Granite 4.0 and 4.1, and many others: `<tool_call>{"name": …, "arguments": …}</tool_call>`, once for each call.
    Tags,
    /// Granite 4.2, Qwen 3 Coder and Nemotron: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…`, once for
    /// each call.
    Xml,
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
    /// A call of this tool begins; its id is for the caller to choose.
    Begin(String),
    /// A piece of the arguments of the call that began last: a JSON object, as the model wrote it.
    Arguments(String),
}

/// Finds the calls in one answer. Text that may be the start of a call is held back until it is known.
///
/// What comes depends on the characters alone, not on how they were cut into pieces.
pub struct CallParser(Parser);

enum Parser {
    Json(JsonCalls),
    Xml(XmlCalls),
}

impl CallParser {
    /// A parser at the start of an answer, or behind the opener if the prompt ended with it.
    pub fn new(syntax: CallSyntax, tools: &Arc<Tools>, is_inside: bool) -> Self {
        Self(match syntax {
            CallSyntax::Xml => Parser::Xml(XmlCalls::new(Arc::clone(tools), is_inside)),
            syntax => Parser::Json(JsonCalls::new(syntax, is_inside)),
        })
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        match &mut self.0 {
            Parser::Json(parser) => parser.push(text),
            Parser::Xml(parser) => parser.push(text),
        }
    }

    /// The end of the answer, which may have come before the model meant it to.
    pub fn finish(&mut self, is_cut: bool) -> Vec<Part> {
        match &mut self.0 {
            Parser::Json(parser) => parser.finish(),
            Parser::Xml(parser) => parser.finish(is_cut),
        }
    }

    /// Whether a call has been found.
    pub const fn has_calls(&self) -> bool {
        match &self.0 {
            Parser::Json(parser) => parser.calls() > 0,
            Parser::Xml(parser) => parser.calls() > 0,
        }
    }
}

impl CallSyntax {
    /// What the chat template `source`, which takes tools, teaches.
    pub(super) fn of(source: &str, tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.added_tokens();
        let token = |text: &str| added.iter().find(|token| token.text == text);
        if source.contains(xml::OPENERS[1]) && source.contains("<parameter=") {
            return Self::Xml;
        }
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
            Self::Tags | Self::Xml => "<tool_call>\n",
            Self::List { .. } => LIST,
            Self::Json { .. } => "",
        }
    }

    /// All that may stand before a call.
    const fn openers(&self) -> &'static [&'static str] {
        match self {
            Self::Tags => &[OPEN],
            Self::Xml => &xml::OPENERS,
            Self::List { .. } => &[LIST, OPEN],
            Self::Json { .. } => &[PYTHON],
        }
    }

    /// Whether an answer may begin with a call that nothing stands before.
    const fn has_bare_calls(&self) -> bool {
        matches!(self, Self::List { .. } | Self::Json { .. })
    }

    /// The special token that has to show for calls to be found.
    pub const fn shown_token(&self) -> Option<u32> {
        match self {
            Self::Tags | Self::Xml => None,
            Self::List { token } => Some(*token),
            Self::Json { token } => *token,
        }
    }

    /// `calls` as the model writes them, for templates that cannot; `guard` marks what a client wrote.
    pub(super) fn write(&self, calls: &[ToolCall], guard: impl Fn(&str) -> String) -> String {
        let written = calls.iter().map(|call| match self {
            Self::Xml => guard(&xml::write(call)),
            _ => {
                let name = json!(call.name);
                let arguments = match serde_json::from_str::<&RawValue>(call.arguments()) {
                    Ok(_is_json) => call.arguments().to_owned(),
                    Err(_) => json!(call.arguments).to_string(),
                };
                let key = self.arguments_key();
                guard(&format!("{{\"name\": {name}, \"{key}\": {arguments}}}"))
            }
        });
        let written: Vec<String> = written.collect();
        match self {
            Self::Tags | Self::Xml => written
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
            Self::Tags | Self::Xml | Self::List { .. } => "arguments",
            Self::Json { .. } => "parameters",
        }
    }

    /// What follows the opener when a call is forced. `tools` are the names that may be called and the schemas of their
    /// arguments.
    pub fn forced(&self, tools: Vec<(String, Option<String>)>) -> Grammar {
        let form = match self {
            Self::Tags | Self::Json { .. } => CallForm::Object,
            Self::List { .. } => CallForm::List,
            Self::Xml => CallForm::Xml,
        };
        Grammar::Calls(Calls { tools, form })
    }
}

#[cfg(test)]
mod tests;
