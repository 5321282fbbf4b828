//! Characters ↔ token ids. The engine sees only ids and `http` only text; this folder is the border.
//!
//! - [`tokenizer`]: text → ids, and the bytes of every id.
//! - [`decoder`]: ids → text as they arrive, never splitting a character.
//! - [`samples`]: texts to evaluate and calibrate on.
//! - [`stop`]: stop strings, wherever the token boundaries fall.

pub mod decoder;
pub mod samples;
pub mod stop;
pub mod tokenizer;

pub use decoder::Decoder;
pub use stop::StopStrings;
pub use tokenizer::Tokenizer;
