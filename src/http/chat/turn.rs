//! Splits the pieces of an answer into what each adds to it: thoughts, text and tool calls. The APIs only differ in how
//! they write this down.

use std::sync::Arc;

use super::request::ChatRequest;
use crate::http::generate::answer::{Finish, Piece};
use crate::http::generate::response::Counts;
use crate::text::chat::calls::{CallParser, CallSyntax, Part};
use crate::text::thoughts::Shown;
use crate::text::values::Tools;

/// The state at the end of a rendered conversation, where the answers begin.
#[derive(Debug)]
pub struct Start {
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Whether the prompt ends with the start of a call.
    pub in_call: bool,
    /// Whether the model may think.
    pub thinks: bool,
    /// The format of calls, if the answers may have any.
    pub calls: Option<CallSyntax>,
    /// The types of the arguments of calls.
    pub tools: Arc<Tools>,
}

/// What a piece adds to an answer. None of the texts is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// More of the thought.
    Thought(String),
    /// More text of the answer.
    Text(String),
    /// The start of a call.
    Call {
        /// The position of the call among the answer's calls.
        index: usize,
        /// The name of the tool.
        name: String,
    },
    /// More of the arguments of the call that began last.
    Arguments {
        /// The position of the call among the answer's calls.
        index: usize,
        /// A piece of a JSON object.
        text: String,
    },
}

/// An answer while it is generated: the parser with text that is not parsed yet, and the number of calls so far.
pub struct Turn {
    parser: Option<CallParser>,
    parallel_calls: bool,
    /// How the response shows thoughts.
    shown_thoughts: Shown,
    calls: usize,
}

impl Start {
    /// New token counts for `answers` answers.
    pub const fn counts(&self, answers: usize) -> Counts {
        let mut counts = Counts::new(self.prompt_tokens, answers);
        if self.thinks {
            counts.count_thoughts();
        }
        counts
    }
}

impl Turn {
    /// Creates the state for an answer to `request` that begins at `start`.
    pub fn new(request: &ChatRequest, start: &Start) -> Self {
        let parser = start.calls.clone().map(|syntax| {
            CallParser::new(syntax, &start.tools, start.in_call).with_thoughts(start.thinks)
        });
        Self {
            parser,
            parallel_calls: request.parallel_calls,
            shown_thoughts: request.thinking.shown(),
            calls: 0,
        }
    }

    /// Returns what is known after `piece`, in the order in which the model wrote it.
    pub fn push(&mut self, piece: &Piece) -> Vec<Added> {
        let mut added = Vec::new();
        match self.shown_thoughts {
            Shown::Apart => add(&mut added, Added::Thought(piece.thought.clone())),
            Shown::InText => add(&mut added, Added::Text(piece.thought.clone())),
            Shown::Not => {}
        }
        let Some(parser) = &mut self.parser else {
            add(&mut added, Added::Text(piece.text.clone()));
            return added;
        };
        let mut parts = parser.push(&piece.text);
        if let Some(finish) = &piece.finish {
            let is_cut = !matches!(finish, Finish::Stop(None));
            parts.extend(parser.finish(is_cut));
        }
        for part in parts {
            match part {
                Part::Text(text) => add(&mut added, Added::Text(text)),
                Part::Begin(name) => {
                    self.calls += 1;
                    if self.is_wanted() {
                        let index = self.calls - 1;
                        added.push(Added::Call { index, name });
                    }
                }
                Part::Arguments(text) if self.is_wanted() => {
                    let index = self.calls - 1;
                    add(&mut added, Added::Arguments { index, text });
                }
                Part::Arguments(_) => {}
            }
        }
        added
    }

    /// Whether the response contains the call that began last.
    const fn is_wanted(&self) -> bool {
        self.calls == 1 || self.parallel_calls
    }

    /// Whether the answer ended within the last call of the response, so that its arguments lack their end.
    pub fn is_unfinished(&self) -> bool {
        let is_unfinished = self.parser.as_ref().is_some_and(CallParser::is_unfinished);
        is_unfinished && self.is_wanted()
    }

    /// Whether the answer that ended with `finish` asks the client to run its calls. The last call must then be
    /// complete.
    pub fn wants_calls(&self, finish: &Finish) -> bool {
        matches!(finish, Finish::Stop(_)) && self.calls > 0 && !self.is_unfinished()
    }
}

/// A new id of a call, in the form of OpenAI's APIs.
pub fn new_call_id() -> String {
    format!("call_{:024x}", rand::random::<u128>() >> 32)
}

/// Appends `more`, joined with the last entry if that is of the same kind. Empty texts are left out.
fn add(added: &mut Vec<Added>, more: Added) {
    let (Added::Thought(text) | Added::Text(text) | Added::Arguments { text, .. }) = &more else {
        added.push(more);
        return;
    };
    if text.is_empty() {
        return;
    }
    match (added.last_mut(), &more) {
        (Some(Added::Thought(last)), Added::Thought(text))
        | (Some(Added::Text(last)), Added::Text(text))
        | (Some(Added::Arguments { text: last, .. }), Added::Arguments { text, .. }) => {
            last.push_str(text);
        }
        _ => added.push(more),
    }
}
