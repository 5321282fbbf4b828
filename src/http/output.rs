//! What comes beside the text of an answer, and how tokens are written: the same for every route that generates.

use super::error_body::ApiError;
use super::fields::{Fields, Whole, invalid};
use super::prompt::Truncation;
use super::sampling::MAX_LOGPROBS;

/// Log-probabilities that one request may have of all its prompts' tokens together, or of chosen ids: 131,072 tokens
/// with one alternative each. They are kept until the answer is complete, and each takes some 70 bytes of JSON.
pub const MAX_SCORES: usize = 1 << 18;
/// Ids in `logprob_token_ids`: vLLM's limit.
pub const MAX_SCORED_IDS: usize = 128;

/// The fields, in range. What depends on the model is checked later.
#[derive(Debug)]
pub struct OutputRequest {
    /// Whether ids are given beside texts.
    pub token_ids: bool,
    /// Whether log-probabilities name tokens by id, not by text.
    pub names_by_id: bool,
    /// Whether special tokens are left out of the text.
    pub skips_special: bool,
    /// Log-probabilities of the prompt's tokens, with so many alternatives.
    pub prompt_logprobs: Option<usize>,
    /// Ids whose log-probabilities are given in place of the likeliest.
    pub scored_ids: Vec<u32>,
    /// How much is kept of a prompt.
    pub truncation: Option<Truncation>,
}

impl OutputRequest {
    /// Takes the fields.
    ///
    /// # Errors
    /// The first field, in the order below, that is of the wrong type or out of range.
    pub fn take(f: &mut Fields<'_>) -> Result<Self, ApiError> {
        let yes_or_no = "true or false";
        let skips_special = f.take("skip_special_tokens", yes_or_no)?.unwrap_or(true);
        // Tokens of bytes are put together without anything between them, whatever this says.
        let _: Option<bool> = f.take("spaces_between_special_tokens", yes_or_no)?;
        Ok(Self {
            token_ids: f.flag("return_token_ids")?,
            names_by_id: f.flag("return_tokens_as_token_ids")?,
            skips_special,
            prompt_logprobs: prompt_logprobs(f)?,
            scored_ids: scored_ids(f)?,
            truncation: Truncation::take(f)?,
        })
    }

    /// Refuses prompts of `tokens` tokens, to be scored for `answers` answers each, where that is too much; `top` are the
    /// alternatives of the field `param`.
    ///
    /// # Errors
    /// [`ApiError::InvalidValue`].
    pub fn check_scores(
        param: &'static str,
        tokens: usize,
        top: usize,
        answers: usize,
    ) -> Result<(), ApiError> {
        let scores = tokens.saturating_mul(top + 1).saturating_mul(answers);
        if scores <= MAX_SCORES {
            return Ok(());
        }
        let expected = format!(
            "less: {scores} log-probabilities are asked for, and one request may have {MAX_SCORES}"
        );
        Err(invalid(param, expected))
    }
}

/// vLLM's -1 asks for the whole vocabulary at each place, which no answer should carry.
fn prompt_logprobs(f: &mut Fields<'_>) -> Result<Option<usize>, ApiError> {
    f.count("prompt_logprobs", 0..=MAX_LOGPROBS)
}

fn scored_ids(f: &mut Fields<'_>) -> Result<Vec<u32>, ApiError> {
    const PARAM: &str = "logprob_token_ids";
    let expected = format!("a list of at most {MAX_SCORED_IDS} token ids");
    let mut ids = f.ids(PARAM, &expected)?.unwrap_or_default();
    if ids.len() > MAX_SCORED_IDS {
        return Err(invalid(PARAM, expected));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Takes `logprobs` as completions have it: a number of alternatives, or `false` for none.
///
/// # Errors
/// When it is neither.
pub fn completion_logprobs(f: &mut Fields<'_>) -> Result<Option<usize>, ApiError> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Given {
        Switch(bool),
        Count(Whole),
    }
    const PARAM: &str = "logprobs";
    let expected = format!("an integer from 0 to {MAX_LOGPROBS}");
    let count = match f.take(PARAM, &expected)? {
        None | Some(Given::Switch(false)) => return Ok(None),
        Some(Given::Switch(true)) => return Err(invalid(PARAM, expected)),
        Some(Given::Count(Whole(count))) => count,
    };
    match usize::try_from(count) {
        Ok(count) if count <= MAX_LOGPROBS => Ok(Some(count)),
        _ => Err(invalid(PARAM, expected)),
    }
}
