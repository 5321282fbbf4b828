//! One thread that owns the model. [`Engine`] is the handle that the async side holds.

pub mod request;

pub use request::{FinishReason, Generation, Sampling, TokenEvent};
