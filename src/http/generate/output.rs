//! What comes beside the text of an answer, how tokens are written, and whether it all comes in events.

use super::prompt::Truncation;
use super::response::{Usage, UsageField};
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};

/// Log-probabilities of alternatives per token: vLLM's limit; OpenAI's are 5 and 20.
pub const MAX_LOGPROBS: usize = 20;

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
    /// Whether and how to answer in events.
    pub stream: Option<StreamOptions>,
}

/// What a stream carries beside the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// The token counts, in an event of their own at the end.
    pub include_usage: bool,
    /// The token counts so far, in every event; nothing without the other.
    pub continuous_usage: bool,
}

impl StreamOptions {
    /// What an event says of the token counts so far. The rule is vLLM's: counts in every event come in addition to
    /// those at the end.
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
    /// Takes the fields.
    ///
    /// # Errors
    /// The first field, in the order below, that is of the wrong type or out of range.
    pub fn take(f: &mut Fields<'_>) -> Result<Self, ApiError> {
        let yes_or_no = "true or false";
        let skips_special = f.take("skip_special_tokens", yes_or_no)?.unwrap_or(true);
        // Tokens of bytes are put together without anything between them, whatever this says.
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

/// Takes `stream` and `stream_options`; `None` when no stream is wanted.
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
