//! Tool calls in the text of an answer: the formats in which models write them, and the parsers that find them as text
//! arrives.
//!
//! - [`CallSyntax`]: the format that a chat template teaches the model.
//! - `json` and `xml`: parse calls in JSON and in tags, and pass on their arguments as they arrive.

mod json;
mod xml;

use std::sync::Arc;

use serde_json::json;
use serde_json::value::RawValue;

use super::ToolCall;
use crate::text::Tokenizer;
use crate::text::grammar::{CallForm, Calls, Grammar};
use crate::text::seek::Seek;
use crate::text::values::Tools;
use json::JsonCalls;
use xml::XmlCalls;

/// The most calls in one answer. A model that writes more of them is repeating itself.
const MAX_CALLS: usize = 128;

/// The format in which a model writes tool calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallSyntax {
    /// Granite 4.0 and 4.1, and many others: `<tool_call>{"name": …, "arguments": …}</tool_call>` for each call.
    Tags,
    /// Granite 4.2, Qwen 3 Coder and Nemotron: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…` for each
    /// call.
    Xml,
    /// Granite 3: one token, then a JSON list of all calls. Granite 3.1 writes `<tool_call>` instead of the token, and
    /// sometimes neither.
    List {
        /// The token, which is special, so it must be shown explicitly in the text of the answer.
        token: u32,
    },
    /// Llama 3, and templates without a known tag: `{"name": …, "parameters": …}`, alone or after a token.
    Json {
        /// The token, if the model has it.
        token: Option<u32>,
    },
}

/// The tags of a thought within an answer. What looks like a call in it is none.
const THINK: &str = "<think>";
const END_THINK: [&str; 1] = ["</think>"];
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "<|tool_call|>";
const PYTHON: &str = "<|python_tag|>";

/// A part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Text outside of calls.
    Text(String),
    /// The start of a call of this tool. The caller chooses the id of the call.
    Begin(String),
    /// A piece of the arguments of the last call: a JSON object, as the model wrote it.
    Arguments(String),
}

/// Finds the calls in one answer. Text that may be the start of a call is held back until that is known.
///
/// The result depends only on the characters, not on how the text was cut into pieces.
pub struct CallParser {
    parser: Parser,
    /// Whether the answer ended within the last call.
    is_unfinished: bool,
}

enum Parser {
    Json(JsonCalls),
    Xml(XmlCalls),
}

impl CallParser {
    /// Creates a parser for the start of an answer, or for text after the opener if the prompt ended with it.
    pub fn new(syntax: CallSyntax, tools: &Arc<Tools>, is_inside: bool) -> Self {
        let parser = match syntax {
            CallSyntax::Xml => Parser::Xml(XmlCalls::new(Arc::clone(tools), is_inside)),
            syntax => Parser::Json(JsonCalls::new(syntax, is_inside)),
        };
        Self {
            parser,
            is_unfinished: false,
        }
    }

    /// Sets whether the model knows the tags of thoughts: then text between them has no calls, also where a thought is
    /// in the middle of an answer, or in an answer for which thinking is turned off.
    #[must_use]
    pub const fn with_thoughts(mut self, thinks: bool) -> Self {
        match &mut self.parser {
            Parser::Json(parser) => parser.thinks = thinks,
            Parser::Xml(parser) => parser.thinks = thinks,
        }
        self
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        match &mut self.parser {
            Parser::Json(parser) => parser.push(text),
            Parser::Xml(parser) => parser.push(text),
        }
    }

    /// Takes the end of the answer. `is_cut` says whether something other than the model's own end of text ended it.
    pub fn finish(&mut self, is_cut: bool) -> Vec<Part> {
        match &mut self.parser {
            Parser::Json(parser) => {
                self.is_unfinished = parser.in_arguments();
                parser.finish()
            }
            Parser::Xml(parser) => {
                self.is_unfinished = is_cut && parser.in_call();
                parser.finish(is_cut)
            }
        }
    }

    /// Whether the answer ended within the last call, so that its arguments lack their end.
    pub const fn is_unfinished(&self) -> bool {
        self.is_unfinished
    }

    /// Whether a call has been found.
    pub const fn has_calls(&self) -> bool {
        match &self.parser {
            Parser::Json(parser) => parser.calls() > 0,
            Parser::Xml(parser) => parser.calls() > 0,
        }
    }
}

impl CallSyntax {
    /// Returns the format that the chat template `source` teaches. The template must print tools.
    pub(super) fn of(source: &str, tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.added_tokens();
        let token = |text: &str| added.iter().find(|token| token.text == text);
        if source.contains(xml::FUNCTION) && source.contains(xml::PARAMETER) {
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

    /// The text that precedes the first call.
    pub(super) const fn opener(&self) -> &'static str {
        match self {
            Self::Tags | Self::Xml => "<tool_call>\n",
            Self::List { .. } => LIST,
            Self::Json { .. } => "",
        }
    }

    /// All texts that may precede a call, and the tag that opens a thought.
    const fn openers(&self) -> &'static [&'static str] {
        match self {
            Self::Tags => &[OPEN, THINK],
            Self::Xml => &xml::OPENERS,
            Self::List { .. } => &[LIST, OPEN, THINK],
            Self::Json { .. } => &[PYTHON, THINK],
        }
    }

    /// Whether an answer may begin with a call without an opener.
    const fn has_bare_calls(&self) -> bool {
        matches!(self, Self::List { .. } | Self::Json { .. })
    }

    /// The special token that must be shown in the text so that calls can be found.
    pub const fn shown_token(&self) -> Option<u32> {
        match self {
            Self::Tags | Self::Xml => None,
            Self::List { token } => Some(*token),
            Self::Json { token } => *token,
        }
    }

    /// Writes `calls` in the model's format, for templates that cannot. `guard` marks the client's text.
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

    /// The key of the arguments in the JSON of a call.
    const fn arguments_key(&self) -> &'static str {
        match self {
            Self::Tags | Self::Xml | Self::List { .. } => "arguments",
            Self::Json { .. } => "parameters",
        }
    }

    /// The grammar of the text that follows the opener in a forced call. `tools` has the names of the tools that may be
    /// called, and the schemas of their arguments.
    pub fn forced(&self, tools: Vec<(String, Option<String>)>) -> Grammar {
        let form = match self {
            Self::Tags | Self::Json { .. } => CallForm::Object,
            Self::List { .. } => CallForm::List,
            Self::Xml => CallForm::Xml,
        };
        Grammar::Calls(Calls { tools, form })
    }
}

/// Passes on `held`, the text in a thought, up to its closing tag, which `seek` searches for. Returns the text after the
/// thought if it has ended.
fn pass_thought(seek: &mut Seek, held: &str, parts: &mut Vec<Part>) -> Option<String> {
    let (mut text, found) = seek.push(held);
    let rest = found.map(|found| {
        text += &found.space;
        text += found.marker;
        found.rest
    });
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    rest
}

#[cfg(test)]
mod tests;
