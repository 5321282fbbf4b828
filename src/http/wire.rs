//! The JSON of `POST /v1/completions`: what may be asked, checked, and what comes back.
//!
//! Nothing is clamped: a value out of range is refused with the field's name. `null` is the same as absent.

use serde::Serialize;
use serde_json::value::RawValue;

use super::answer::StopReason;
use super::error_body::ApiError;
use super::fields::{Fields, invalid};
use super::limits::Limits;
use super::logprobs::Logprobs;
use super::sampling::{MAX_LOGPROBS, SamplingRequest};

/// OpenAI's default, and every peer's that does not run to the end of the context.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A completion request whose every field is in range. What depends on the model (ids, context) is checked later.
#[derive(Debug)]
pub struct CompletionRequest {
    /// The model asked for, if the client cares.
    pub model: Option<String>,
    /// None is empty, and there is at least one.
    pub prompts: Vec<Prompt>,
    /// What comes after the answer.
    pub suffix: Option<String>,
    /// 0 only together with `echo`.
    pub max_tokens: usize,
    /// Keep only a part of a prompt's tokens.
    pub truncate_prompt: Option<Truncation>,
    /// Whether that is their beginning, not their end.
    pub keep_beginning: bool,
    /// Whether answers begin with their prompts.
    pub echo: bool,
    /// How many answers are generated, of which the likeliest `sampling.n` are given.
    pub best_of: usize,
    /// Whether ids are given beside texts.
    pub return_token_ids: bool,
    /// Whether log-probabilities name tokens by id, not by text.
    pub name_tokens_by_id: bool,
    /// How answers are generated.
    pub sampling: SamplingRequest,
    /// Whether and how to answer in events.
    pub stream: Option<StreamOptions>,
    /// Names of fields that were there and change nothing.
    pub ignored: Vec<String>,
}

/// Text, or ids that the client made itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// To be tokenized.
    Text(String),
    /// Taken as they are: no begin-of-text token is added.
    Ids(Vec<u32>),
}

/// How much is kept of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncation {
    /// So many tokens.
    Tokens(usize),
    /// What fits the context beside `max_tokens`.
    Fitting,
}

/// What a stream carries beside the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// The token counts, in an event of their own at the end.
    pub include_usage: bool,
    /// The token counts so far, in every event.
    pub continuous_usage: bool,
}

impl CompletionRequest {
    /// Reads and checks a request body.
    ///
    /// # Errors
    /// The first field that is absent, of the wrong type, out of range or not supported.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let f = &mut fields;
        let model = f.take("model", "a string")?;
        let prompts = prompts(f, limits)?;
        let echo = f.flag("echo")?;
        let max_tokens = max_tokens(f, limits)?.unwrap_or(DEFAULT_MAX_TOKENS);
        if max_tokens == 0 && !echo {
            let expected = "at least 1, or 0 together with 'echo': true to score the prompt";
            return Err(invalid("max_tokens", expected));
        }
        let suffix: Option<String> = f.take("suffix", "a string")?;
        let suffix = suffix.filter(|suffix| !suffix.is_empty());
        if echo && suffix.is_some() {
            return Err(invalid("suffix", "left out where 'echo' is true"));
        }
        let truncate_prompt = truncation(f)?;
        let expected = "\"left\", which cuts off the beginning, or \"right\"";
        let keep_beginning = match f.take::<String>("truncation_side", expected)?.as_deref() {
            None | Some("left") => false,
            Some("right") => true,
            Some(_) => return Err(invalid("truncation_side", expected)),
        };
        let mut sampling = SamplingRequest::take(f, limits)?;
        if sampling.min_tokens > max_tokens {
            return Err(invalid("min_tokens", "at most 'max_tokens'"));
        }
        sampling.logprobs = f.count("logprobs", 0..=MAX_LOGPROBS)?;
        let stream = stream_options(f)?;
        let best_of = f
            .count("best_of", 1..=limits.choices)?
            .unwrap_or(sampling.n);
        if best_of < sampling.n {
            return Err(invalid("best_of", "at least 'n'"));
        }
        if best_of > sampling.n && stream.is_some() {
            let expected = "equal to 'n' in a stream: which are best is known at the end";
            return Err(invalid("best_of", expected));
        }
        Ok(Self {
            model,
            prompts,
            suffix,
            max_tokens,
            truncate_prompt,
            keep_beginning,
            echo,
            best_of,
            return_token_ids: f.flag("return_token_ids")?,
            name_tokens_by_id: f.flag("return_tokens_as_token_ids")?,
            sampling,
            stream,
            ignored: fields.finish(limits.strict)?,
        })
    }
}

impl CompletionRequest {
    /// Whether the log-probabilities of the prompts' tokens are wanted too.
    pub const fn scores_prompt(&self) -> bool {
        self.echo && self.sampling.logprobs.is_some()
    }
}

/// The four forms: a string, strings, ids, lists of ids.
fn prompts(fields: &mut Fields<'_>, limits: &Limits) -> Result<Vec<Prompt>, ApiError> {
    const FORMS: &str =
        "a non-empty string, list of strings, list of token ids or list of lists of token ids";
    let refused = || invalid("prompt", FORMS);
    let raw: &RawValue = fields
        .take("prompt", FORMS)?
        .ok_or(ApiError::Missing { param: "prompt" })?;
    // Each attempt stops at the first element that does not fit, so the wrong ones cost nothing.
    let json = raw.get();
    let prompts: Vec<Prompt> = if let Ok(text) = serde_json::from_str(json) {
        vec![Prompt::Text(text)]
    } else if let Ok(ids) = serde_json::from_str::<Vec<u32>>(json) {
        vec![Prompt::Ids(ids)]
    } else if let Ok(texts) = serde_json::from_str::<Vec<String>>(json) {
        texts.into_iter().map(Prompt::Text).collect()
    } else if let Ok(lists) = serde_json::from_str::<Vec<Vec<u32>>>(json) {
        lists.into_iter().map(Prompt::Ids).collect()
    } else {
        return Err(refused());
    };
    if prompts.is_empty() || prompts.iter().any(Prompt::is_empty) {
        return Err(refused());
    }
    if prompts.len() > limits.prompts {
        return Err(invalid(
            "prompt",
            format!("at most {} prompts", limits.prompts),
        ));
    }
    Ok(prompts)
}

/// `max_tokens`, or its newer name.
///
/// # Errors
/// When either is out of range, or they differ.
pub fn max_tokens(fields: &mut Fields<'_>, limits: &Limits) -> Result<Option<usize>, ApiError> {
    let old = fields.count("max_tokens", 0..=limits.tokens)?;
    let new = fields.count("max_completion_tokens", 0..=limits.tokens)?;
    if old.is_some() && new.is_some() && old != new {
        let expected = "the same as 'max_tokens', or left out";
        return Err(invalid("max_completion_tokens", expected));
    }
    Ok(old.or(new))
}

fn truncation(fields: &mut Fields<'_>) -> Result<Option<Truncation>, ApiError> {
    const PARAM: &str = "truncate_prompt_tokens";
    const EXPECTED: &str = "an integer of at least 1, or -1 for what fits the context";
    match fields.take::<i64>(PARAM, EXPECTED)? {
        None => Ok(None),
        Some(-1) => Ok(Some(Truncation::Fitting)),
        Some(count @ 1..) => Ok(Some(Truncation::Tokens(
            usize::try_from(count).unwrap_or(usize::MAX),
        ))),
        Some(_) => Err(invalid(PARAM, EXPECTED)),
    }
}

/// Takes `stream` and `stream_options`; `None` when no stream is wanted.
///
/// # Errors
/// When either is of the wrong type, or there are options without a stream.
pub fn stream_options(fields: &mut Fields<'_>) -> Result<Option<StreamOptions>, ApiError> {
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

impl Prompt {
    const fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Ids(ids) => ids.is_empty(),
        }
    }
}

/// A whole answer, or one event of a stream.
#[derive(Serialize)]
pub struct Completion<'a> {
    /// `cmpl-…`, the same in all events of a stream.
    pub id: &'a str,
    /// Always `text_completion`.
    pub object: &'static str,
    /// When the request came, in seconds since the Unix epoch.
    pub created: u64,
    /// The served name.
    pub model: &'a str,
    /// What else decides the bytes of an answer: weights, scheme, build, instruction set.
    pub system_fingerprint: &'a str,
    /// All of them; in a stream one, or none beside the usage.
    pub choices: Vec<Choice<'a>>,
    /// Left out of streams that did not ask; `null` in all events but the last of those that did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One answer to one prompt, or a piece of it.
#[derive(Serialize)]
pub struct Choice<'a> {
    /// The prompt's place times `n`, plus the answer's.
    pub index: usize,
    /// The text; after the prompt's, if that was asked for.
    pub text: &'a str,
    /// Of the tokens of the text, if asked for.
    pub logprobs: Option<Logprobs>,
    /// `stop` or `length`; `null` while more is to come.
    pub finish_reason: Option<&'static str>,
    /// The string or id of the request that ended the answer.
    pub stop_reason: Option<StopReason>,
    /// The prompt's ids, if asked for; in a stream with the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    /// The generated ids, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// Token counts of a request.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    /// Of all prompts, each counted once.
    pub prompt_tokens: usize,
    /// Of all answers, those included that `best_of` dropped.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More about the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What became of prompt tokens.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PromptTokensDetails {
    /// Taken from the cache instead of being computed.
    pub cached_tokens: usize,
}

impl Usage {
    /// The sums.
    pub const fn new(prompt_tokens: usize, completion_tokens: usize, cached_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}
