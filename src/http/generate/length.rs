//! The field for the most tokens of an answer, under both of its names.

use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::limits::Limits;

/// The most tokens of an answer, as the request sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxTokens {
    /// The number, if the request has one.
    pub count: Option<usize>,
    /// The name under which the field was sent, for error messages: `max_tokens`, or OpenAI's newer
    /// `max_completion_tokens`.
    pub field: &'static str,
}

impl MaxTokens {
    /// Takes the field by either name.
    ///
    /// # Errors
    /// When either is out of range, or when both are present and differ.
    pub fn take(fields: &mut Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        const OLD: &str = "max_tokens";
        const NEW: &str = "max_completion_tokens";
        let old = fields.count(OLD, 0..=limits.tokens)?;
        let new = fields.count(NEW, 0..=limits.tokens)?;
        if old.is_some() && new.is_some() && old != new {
            return Err(invalid(NEW, "the same as 'max_tokens', or left out"));
        }
        let field = match (old, new) {
            (None, Some(_)) => NEW,
            _ => OLD,
        };
        Ok(Self {
            count: old.or(new),
            field,
        })
    }

    /// Refuses a `min_tokens` above `count`, the most tokens of the answer.
    ///
    /// # Errors
    /// [`ApiError::InvalidValue`].
    pub fn check_least(self, min_tokens: usize, count: usize) -> Result<(), ApiError> {
        if min_tokens <= count {
            return Ok(());
        }
        Err(invalid("min_tokens", format!("at most '{}'", self.field)))
    }
}
