//! Grammars: constraints on a text, enforced as constraints on its tokens.
//!
//! A grammar comes from a client, so it may be hostile. `schema` and `regex` refuse grammars that are obviously too
//! large; [`trial`] compiles the others in a child process with limits; then `compile` makes the constraint, on the
//! thread of `worker`. [`Grammars`] combines these steps, with a queue, a deadline and a cache. `watch` cancels steps
//! of a constraint that take too long while the engine uses it.

mod cache;
mod compile;
mod forms;
mod grammars;
mod lark;
mod options;
mod references;
mod regex;
mod schema;
pub mod trial;
mod watch;
mod worker;
mod xml;

use serde::{Deserialize, Serialize};

pub use grammars::{Constraints, Grammars, Problem, Settings};

/// The most bytes of a grammar's text. The largest schemas in use have some tens of thousands.
pub const MAX_BYTES: usize = 128 << 10;

/// A constraint on a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid by a schema, which is given as text.
    JsonSchema(String),
    /// A call of a tool.
    Calls(Calls),
    /// A text that a regular expression matches from start to end.
    Regex(String),
    /// One of these texts; none of them is empty.
    Choice(Vec<String>),
    /// A text that a grammar in llguidance's dialect of Lark generates.
    Lark(String),
}

/// A tool call, as it is written after the opener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// The names that may be called, and the schemas of their arguments.
    pub tools: Vec<(String, Option<String>)>,
    /// The notation of the call.
    pub form: CallForm,
}

/// How a call is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallForm {
    /// `{"name": …, "arguments": …}`.
    Object,
    /// The same in a list of one.
    List,
    /// `<function=…>` with a tag for each argument.
    Xml,
}

impl Grammar {
    /// The bytes of the text that the client sent for this grammar.
    fn bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(String::len).sum(),
            Self::Calls(calls) => {
                let parameters = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                let tools = calls.tools.iter();
                tools
                    .map(|(name, text)| name.len() + parameters(text))
                    .sum()
            }
        }
    }
}

#[cfg(test)]
mod tests;
