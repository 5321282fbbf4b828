//! The JSON of `POST /v1/completions`: what may be asked, checked, and what comes back.
//!
//! Nothing is clamped: a value out of range is refused with the field's name. `null` is the same as absent.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::answer::StopReason;
use super::error_body::ApiError;
use super::fields::{Fields, Id, invalid};
use super::limits::Limits;
use super::logprobs::{Logprobs, PromptLogprobs};
use super::output::completion_logprobs;
use super::sampling::SamplingRequest;

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
    /// Whether answers begin with their prompts.
    pub echo: bool,
    /// How many answers are generated, of which the likeliest `sampling.n` are given.
    pub best_of: usize,
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

impl CompletionRequest {
    /// Reads and checks a request body.
    ///
    /// # Errors
    /// The first field that is absent, of the wrong type, out of range or not supported.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut request = Self::take(&mut fields, limits)?;
        request.ignored = fields.finish(limits.strict)?;
        Ok(request)
    }

    /// Takes every field of the API.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn take(f: &mut Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
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
        let mut sampling = SamplingRequest::take(f, limits)?;
        if sampling.min_tokens > max_tokens {
            return Err(invalid("min_tokens", "at most 'max_tokens'"));
        }
        sampling.set_logprobs(completion_logprobs(f)?);
        sampling.check_chosen(max_tokens)?;
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
        if stream.is_some() && sampling.output.prompt_logprobs.is_some() {
            let expected = "left out of streams: it comes with whole answers";
            return Err(invalid("prompt_logprobs", expected));
        }
        Ok(Self {
            model,
            prompts,
            suffix,
            max_tokens,
            echo,
            best_of,
            sampling,
            stream,
            ignored: Vec::new(),
        })
    }
}

impl CompletionRequest {
    /// Whether the prompts' tokens are scored for `logprobs`, as part of the text.
    pub const fn scores_echo(&self) -> bool {
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
    } else if let Ok(ids) = serde_json::from_str::<Vec<Id>>(json) {
        vec![Prompt::of(ids)]
    } else if let Ok(texts) = serde_json::from_str::<Vec<String>>(json) {
        texts.into_iter().map(Prompt::Text).collect()
    } else if let Ok(lists) = serde_json::from_str::<Vec<Vec<Id>>>(json) {
        lists.into_iter().map(Prompt::of).collect()
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
    fn of(ids: Vec<Id>) -> Self {
        Self::Ids(ids.into_iter().map(|id| id.0).collect())
    }

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
    /// The token counts.
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    pub usage: UsageField,
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
    /// Log-probabilities of the prompt's tokens, if asked for by that name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// The field `usage` of a response or an event.
#[derive(Debug, Clone, Copy)]
pub enum UsageField {
    /// Left out.
    Absent,
    /// `null`: the counts come later.
    Null,
    /// The counts.
    Counts(Usage),
}

impl UsageField {
    /// Whether the field is left out.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl Serialize for UsageField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent | Self::Null => serializer.serialize_none(),
            Self::Counts(usage) => usage.serialize(serializer),
        }
    }
}

/// Token counts of a request.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    /// Of all prompts, each counted once.
    pub prompt_tokens: usize,
    /// Of all answers, those included that `best_of` dropped, and the ids that ended them.
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
