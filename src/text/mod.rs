//! Characters ↔ token ids. The engine sees only ids and `http` only text; this folder is the border.
//!
//! - [`tokenizer`]: text → ids, and the bytes of every id.
//! - [`decoder`]: ids → text as they arrive, never splitting a character.
//! - [`grammar`]: constraints on the text of an answer, applied to its tokens.
//! - [`samples`]: texts to evaluate and calibrate on.
//! - [`stop`]: stop strings, wherever the token boundaries fall.
//! - [`thoughts`]: what a model thinks before it answers, told from its answer.
//! - [`values`]: arguments that were written as text, by the schemas of the tools.
//! - [`chat`]: conversations → ids through the model's template, and tool calls in answers.

pub mod chat;
pub mod decoder;
pub mod grammar;
pub mod samples;
mod seek;
pub mod stop;
pub mod thoughts;
pub mod tokenizer;
pub mod values;

pub use decoder::Decoder;
pub use grammar::{Grammar, Grammars};
pub use stop::StopStrings;
pub use tokenizer::Tokenizer;
