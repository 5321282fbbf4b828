//! The text of an answer → what the assistant says and which tools it calls.

use super::request::ChatRequest;
use super::shapes::{Function, ToolCall};
use crate::http::generate::answer::Finish;
use crate::text::chat::calls::{CallParser, CallSyntax, Part};

/// One answer in the making: its text so far undecided, and how many calls have been found.
pub struct Turn {
    parser: Option<CallParser>,
    parallel_calls: bool,
    calls: usize,
}

impl Turn {
    /// An answer to `request`, in which calls are written as `calls` says, if there may be any.
    pub fn new(request: &ChatRequest, calls: Option<&CallSyntax>) -> Self {
        let parser = calls.map(|syntax| CallParser::new(syntax.clone(), request.must_call));
        Self {
            parser,
            parallel_calls: request.parallel_calls,
            calls: 0,
        }
    }

    /// The text and the calls that a piece decides.
    pub fn push(&mut self, text: &str, is_last: bool) -> (String, Vec<ToolCall>) {
        let Some(parser) = &mut self.parser else {
            return (text.to_owned(), Vec::new());
        };
        let mut parts = parser.push(text);
        if is_last {
            parts.extend(parser.finish());
        }
        let (mut text, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(more) => text += &more,
                Part::Call { .. } if self.calls > 0 && !self.parallel_calls => {}
                Part::Call { name, arguments } => {
                    calls.push(ToolCall {
                        index: Some(self.calls),
                        id: format!("call_{:024x}", rand::random::<u128>() >> 32),
                        r#type: "function",
                        function: Function { name, arguments },
                    });
                    self.calls += 1;
                }
            }
        }
        (text, calls)
    }

    /// OpenAI's word for how the answer ended.
    pub const fn reason(&self, finish: &Finish) -> &'static str {
        match finish {
            Finish::Stop(_) if self.calls > 0 => "tool_calls",
            finish => finish.reason(),
        }
    }
}
