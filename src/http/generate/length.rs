//! How long an answer may be, under both names that the field has.

use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::limits::Limits;

/// The most tokens of an answer, if the request says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxTokens {
    /// The number.
    pub count: Option<usize>,
    /// The field that was sent, which refusals name: `max_tokens`, or OpenAI's newer `max_completion_tokens`.
    pub field: &'static str,
}

impl MaxTokens {
    /// Takes the field by either name.
    ///
    /// # Errors
    /// When either is out of range, or they differ.
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

    /// Refuses a request that wants at least `min_tokens`, but has at most `count`.
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
