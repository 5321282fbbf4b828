//! Grammars: what a text must be, as a constraint on its tokens.
//!
//! A grammar comes from a client, so it is hostile until shown otherwise. `schema` and `regex` refuse what is
//! obviously too much; [`trial`] compiles it in a process that may die of it; then `compile` makes the constraint, on the
//! thread that `worker` keeps for it. [`Grammars`] puts this together, with a queue, a deadline and a cache. `watch` ends what takes too
//! long once the engine uses it.

mod cache;
mod compile;
mod grammars;
mod lark;
mod references;
mod regex;
mod schema;
pub mod trial;
mod watch;
mod worker;
mod xml;

use serde::{Deserialize, Serialize};

pub use grammars::{Constraints, Grammars, Problem, Settings};

/// Bytes of a grammar's text. The largest schemas in use have a few tens of thousands.
pub const MAX_BYTES: usize = 128 << 10;

/// What a text must be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema, given as its text, describes.
    JsonSchema(String),
    /// A call of a tool.
    Calls(Calls),
    /// What a regular expression matches from start to end.
    Regex(String),
    /// One of these, none of which is empty.
    Choice(Vec<String>),
    /// What a grammar in llguidance's dialect of Lark describes.
    Lark(String),
}

/// A call as it is written behind the opener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// The names that may be called, and the schemas of their arguments.
    pub tools: Vec<(String, Option<String>)>,
    /// How it is written.
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
    /// Bytes of the text that a client sent for it.
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
