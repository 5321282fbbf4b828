//! Splits the text of an answer into the assistant's text and its tool calls.

use std::sync::Arc;

use super::request::ChatRequest;
use super::response::Start;
use super::shapes::ToolCall;
use crate::http::generate::answer::Finish;
use crate::text::chat::calls::{CallParser, CallSyntax, Part};
use crate::text::values::Tools;

/// An answer while it is generated: the parser with text that is not parsed yet, and the number of calls so far.
pub struct Turn {
    parser: Option<CallParser>,
    parallel_calls: bool,
    calls: usize,
}

impl Turn {
    /// Creates the state for an answer to `request`. If the answer may have calls, `calls` is their format; `tools` has
    /// the types of their arguments. `start` describes the end of the prompt.
    pub fn new(
        request: &ChatRequest,
        calls: Option<&CallSyntax>,
        tools: &Arc<Tools>,
        start: Start,
    ) -> Self {
        let parser = calls.map(|syntax| {
            CallParser::new(syntax.clone(), tools, start.in_call).with_thoughts(start.thinks)
        });
        Self {
            parser,
            parallel_calls: request.parallel_calls,
            calls: 0,
        }
    }

    /// Returns the text and the parts of calls that are known after `text`. In the last piece, `finish` says how the
    /// answer ended.
    pub fn push(&mut self, text: &str, finish: Option<&Finish>) -> (String, Vec<ToolCall>) {
        let Some(parser) = &mut self.parser else {
            return (text.to_owned(), Vec::new());
        };
        let mut parts = parser.push(text);
        if let Some(finish) = finish {
            let is_cut = !matches!(finish, Finish::Stop(None));
            parts.extend(parser.finish(is_cut));
        }
        let (mut text, mut calls) = (String::new(), Vec::<ToolCall>::new());
        for part in parts {
            match part {
                Part::Text(more) => text += &more,
                Part::Begin(name) => {
                    self.calls += 1;
                    if self.is_wanted() {
                        calls.push(ToolCall::begin(self.calls - 1, name));
                    }
                }
                Part::Arguments(more) if self.is_wanted() => match calls.last_mut() {
                    Some(call) => call.function.arguments += &more,
                    None => calls.push(ToolCall::more(self.calls - 1, more)),
                },
                Part::Arguments(_) => {}
            }
        }
        (text, calls)
    }

    /// Whether the response contains the call that began last.
    const fn is_wanted(&self) -> bool {
        self.calls == 1 || self.parallel_calls
    }

    /// The `finish_reason` of OpenAI's API for the finish that was passed to [`Self::push`]. A client runs calls when it
    /// reads `tool_calls`, so the last call must be complete.
    pub fn reason(&self, finish: &Finish) -> &'static str {
        let is_unfinished = self.parser.as_ref().is_some_and(CallParser::is_unfinished);
        match finish {
            Finish::Stop(_) if self.calls > 0 && !(is_unfinished && self.is_wanted()) => {
                "tool_calls"
            }
            finish => finish.reason(),
        }
    }
}
