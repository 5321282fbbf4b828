//! The fields for what a response has beside the text, how tokens are written, and whether it is a stream.

use super::prompt::Truncation;
use super::response::{Usage, UsageField};
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};

/// Alternatives per token for which log-probabilities are given: vLLM's limit. OpenAI's limits are 5 and 20.
pub const MAX_LOGPROBS: usize = 20;

/// Log-probabilities that one request may have for all its prompts' tokens together, or for chosen ids: enough for
/// 131,072 tokens with one alternative each. They are kept until the answer is complete, and each takes some 70 bytes
/// of JSON.
pub const MAX_SCORES: usize = 1 << 18;
/// The number of ids in `logprob_token_ids`: vLLM's limit.
pub const MAX_SCORED_IDS: usize = 128;

/// The fields, checked against their ranges. Checks that depend on the model come later.
#[derive(Debug)]
pub struct OutputRequest {
    /// Whether the response has ids beside texts.
    pub token_ids: bool,
    /// Whether log-probabilities name tokens by id, not by text.
    pub names_by_id: bool,
    /// Whether special tokens are left out of the text.
    pub skips_special: bool,
    /// Number of alternatives for each of the prompt's tokens, if log-probabilities of the prompt are requested.
    pub prompt_logprobs: Option<usize>,
    /// Ids whose log-probabilities are given instead of those of the likeliest tokens.
    pub scored_ids: Vec<u32>,
    /// How prompts are truncated.
    pub truncation: Option<Truncation>,
    /// The options of a stream; `None` for a response in one body.
    pub stream: Option<StreamOptions>,
}

/// What a stream has beside the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether an event at the end has the token counts.
    pub include_usage: bool,
    /// Whether every event has the token counts so far. Has no effect without `include_usage`.
    pub continuous_usage: bool,
}

impl StreamOptions {
    /// The `usage` of an event, given the token counts so far. The rule is vLLM's: counts in every event are additional
    /// to those at the end.
    pub fn usage(self, so_far: Usage) -> UsageField {
        match (self.include_usage, self.continuous_usage) {
            (false, _) => UsageField::Absent,
            // OpenAI: with `include_usage`, every event has the field, null in all but the last.
            (true, false) => UsageField::Null,
            (true, true) => UsageField::Counts(so_far),
        }
    }
}

impl OutputRequest {
    /// Only the text, in a stream or in one body.
    pub fn only_text(is_stream: bool, truncation: Option<Truncation>) -> Self {
        Self {
            token_ids: false,
            names_by_id: false,
            skips_special: true,
            prompt_logprobs: None,
            scored_ids: Vec::new(),
            truncation,
            stream: is_stream.then(StreamOptions::default),
        }
    }

    /// Takes the fields.
    ///
    /// # Errors
    /// The first field, in the order below, that is of the wrong type or out of range.
    pub fn take(f: &mut Fields<'_>) -> Result<Self, ApiError> {
        let yes_or_no = "true or false";
        let skips_special = f.take("skip_special_tokens", yes_or_no)?.unwrap_or(true);
        // Accepted and unused: byte-level tokens are joined without anything between them.
        let _: Option<bool> = f.take("spaces_between_special_tokens", yes_or_no)?;
        let output = Self {
            token_ids: f.flag("return_token_ids")?,
            names_by_id: f.flag("return_tokens_as_token_ids")?,
            skips_special,
            prompt_logprobs: prompt_logprobs(f)?,
            scored_ids: scored_ids(f)?,
            truncation: Truncation::take(f)?,
            stream: stream_options(f)?,
        };
        if output.stream.is_some() && output.prompt_logprobs.is_some() {
            let expected = "left out of streams: it comes with whole answers";
            return Err(invalid("prompt_logprobs", expected));
        }
        Ok(output)
    }

    /// Refuses a request that needs more than [`MAX_SCORES`] log-probabilities for its prompts of `tokens` tokens
    /// together, with `answers` answers to each and `top` alternatives; `param` is the field that requests them.
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

/// vLLM's -1, which means the whole vocabulary for each token, is refused, because the response would be too large.
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

/// Takes `stream` and `stream_options`; `None` if the response is not a stream.
fn stream_options(fields: &mut Fields<'_>) -> Result<Option<StreamOptions>, ApiError> {
    const PARAM: &str = "stream_options";
    let stream = fields.flag("stream")?;
    let expected = "an object, and only together with 'stream': true";
    let Some(mut given) = fields.object(PARAM, expected)? else {
        return Ok(stream.then(StreamOptions::default));
    };
    if !stream {
        return Err(invalid(PARAM, expected));
    }
    let expected = "an object whose 'include_usage' and 'continuous_usage_stats' are true or false";
    let mut flag = |name| given.flag(name).map_err(|_| invalid(PARAM, expected));
    let options = StreamOptions {
        include_usage: flag("include_usage")?,
        continuous_usage: flag("continuous_usage_stats")?,
    };
    fields.ignore_rest(PARAM, given);
    Ok(Some(options))
}
