//! From a request's text to the ids that the engine is given: tokenized, cut down if that was asked for, and checked
//! against the model. The same for every route that has a prompt.

use crate::engine::Limits;
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::values::Whole;
use crate::text::Tokenizer;
use crate::text::tokenizer::EncodeError;

/// How much is kept of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// So many tokens at most, or what fits the context beside the answer.
    count: Option<usize>,
    /// Whether that is the prompt's beginning, not its end.
    keeps_beginning: bool,
}

impl Truncation {
    /// Takes `truncate_prompt_tokens` and `truncation_side`.
    ///
    /// # Errors
    /// When either is not one of its values.
    pub fn take(fields: &mut Fields<'_>) -> Result<Option<Self>, ApiError> {
        const COUNT: &str = "truncate_prompt_tokens";
        const EXPECTED: &str = "an integer of at least 1, or -1 for what fits the context";
        let count = match fields.take(COUNT, EXPECTED)? {
            None => None,
            Some(Whole(-1)) => Some(None),
            Some(Whole(count @ 1..)) => Some(Some(usize::try_from(count).unwrap_or(usize::MAX))),
            Some(_) => return Err(invalid(COUNT, EXPECTED)),
        };
        const SIDE: &str = "truncation_side";
        let expected = "\"left\", which cuts off the beginning, or \"right\"";
        let keeps_beginning = match fields.take::<String>(SIDE, expected)?.as_deref() {
            None | Some("left") => false,
            Some("right") => true,
            Some(_) => return Err(invalid(SIDE, expected)),
        };
        Ok(count.map(|count| Self {
            count,
            keeps_beginning,
        }))
    }

    /// Cuts off what is not kept of `ids`; `room` is what fits the context.
    pub fn apply(self, ids: &mut Vec<u32>, room: usize) {
        // A prompt has at least one token; if there is no room for it, the check that follows says so.
        let keep = self.count.unwrap_or(room).max(1);
        if self.keeps_beginning {
            ids.truncate(keep);
        } else {
            ids.drain(..ids.len().saturating_sub(keep));
        }
    }
}

/// The ids of a text that comes from the field `param`.
///
/// # Errors
/// When it has none, or cannot fit `context`.
pub fn encode(
    tokenizer: &Tokenizer,
    param: &'static str,
    text: &str,
    context: usize,
) -> Result<Vec<u32>, ApiError> {
    match tokenizer.encode(text, context) {
        Ok(ids) if ids.is_empty() => Err(invalid(param, "a text of at least one token")),
        Ok(ids) => Ok(ids),
        Err(problem) => Err(encode_error(param, problem, context)),
    }
}

/// What it is to a client that the text of the field `param` has no ids.
pub fn encode_error(param: &'static str, problem: EncodeError, context: usize) -> ApiError {
    match problem {
        EncodeError::TooLong { bytes, .. } => ApiError::ContextLength {
            param,
            message: format!(
                "{}. However, the {bytes} bytes of '{param}' are more. Please reduce the length of '{param}'.",
                limit(context)
            ),
        },
        EncodeError::TooUniform => {
            let expected = "text without such long runs of one kind of character";
            invalid(param, expected)
        }
        error @ EncodeError::Failed(_) => {
            tracing::error!(%error, "tokenizing failed");
            ApiError::Internal
        }
    }
}

/// Refuses a prompt that the model does not know, or has no room for beside the answer. `param` is the field it comes
/// from; `answer` has how many tokens the answer may have, and the field that says so.
///
/// # Errors
/// [`ApiError::InvalidValue`] for an id that the model has no row for, which a tokenizer can have that is larger than
/// the model; [`ApiError::ContextLength`].
pub fn check(
    param: &'static str,
    ids: &[u32],
    (answer, answer_field): (usize, &'static str),
    limits: Limits,
) -> Result<(), ApiError> {
    check_ids(param, ids, limits)?;
    let (prompt, context) = (ids.len(), limits.context_length);
    if prompt.saturating_add(answer) <= context {
        return Ok(());
    }
    Err(ApiError::ContextLength {
        // A shorter answer helps only where the prompt leaves room for one.
        param: if prompt < context {
            answer_field
        } else {
            param
        },
        message: format!(
            "{}. However, you requested {} tokens ({prompt} in the {param}, {answer} in the completion). \
             Please reduce the length of the {param} or the completion.",
            limit(context),
            prompt.saturating_add(answer),
        ),
    })
}

/// Refuses ids that the model does not know.
///
/// # Errors
/// [`ApiError::InvalidValue`].
pub fn check_ids(param: &'static str, ids: &[u32], limits: Limits) -> Result<(), ApiError> {
    if ids.iter().all(|&id| (id as usize) < limits.vocab_size) {
        return Ok(());
    }
    let expected = format!("made of token ids below {}", limits.vocab_size);
    Err(invalid(param, expected))
}

/// Refuses a list of ids that is longer than the context.
///
/// # Errors
/// [`ApiError::ContextLength`].
pub fn check_count(param: &'static str, count: usize, context: usize) -> Result<(), ApiError> {
    if count <= context {
        return Ok(());
    }
    Err(ApiError::ContextLength {
        param,
        message: format!("{}. However, you sent {count} tokens.", limit(context)),
    })
}

/// The beginning of every message about the context, in the words that clients look for: they shorten a conversation
/// where they find OpenAI's phrase.
fn limit(context: usize) -> String {
    format!("This model's maximum context length is {context} tokens")
}
