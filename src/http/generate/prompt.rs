//! From a request's text to ids for the engine: tokenized, truncated if requested, and checked against the model. Used
//! by all routes that have a prompt.

use crate::engine::Limits;
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::values::Whole;
use crate::text::Tokenizer;
use crate::text::tokenizer::EncodeError;

/// How prompts are truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// The number of tokens that are kept at most; `None` for as many as fit the context beside the answer.
    count: Option<usize>,
    /// Whether the beginning of the prompt is kept, not its end.
    keeps_beginning: bool,
}

impl Truncation {
    /// Removes as many tokens from the beginning of the prompt as do not fit the context.
    pub const FROM_BEGINNING: Self = Self {
        count: None,
        keeps_beginning: false,
    };

    /// Takes `truncate_prompt_tokens` and `truncation_side`.
    ///
    /// # Errors
    /// When either has an invalid value.
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

    /// Truncates `ids`; `room` is the number of tokens that fit the context beside the answer.
    pub fn apply(self, ids: &mut Vec<u32>, room: usize) {
        // A prompt keeps at least one token; if there is no room for it, the check that follows refuses it.
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
/// When the text cannot be tokenized, or has more than `context` tokens.
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

/// The error that a client gets when the text of the field `param` cannot be tokenized.
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

/// Refuses a prompt that has unknown ids or does not fit the context together with the answer. `param` is the prompt's
/// field; `answer` has the most tokens of the answer and the field that sets them.
///
/// # Errors
/// [`ApiError::InvalidValue`] for an id beyond the model's embeddings (a tokenizer can have more ids than the model);
/// [`ApiError::ContextLength`].
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
        // The field of the answer is named only if the prompt alone fits; otherwise a shorter answer would not help.
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

/// Refuses ids that are not in the model's vocabulary.
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

/// The beginning of every message about the context length. It is OpenAI's phrase, which clients search for to decide
/// that a conversation must be shortened.
fn limit(context: usize) -> String {
    format!("This model's maximum context length is {context} tokens")
}
