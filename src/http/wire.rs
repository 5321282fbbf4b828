//! The JSON of `POST /v1/completions`: what may be asked, checked, and what comes back.
//!
//! Nothing is clamped: a value out of range is refused with the field's name. `null` is the same as absent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error_body::ApiError;

/// OpenAI's default, and every peer's that does not run to the end of the context.
const DEFAULT_MAX_TOKENS: u64 = 16;
/// Prompts in one request: as many as the default batch holds. More in one body would let one client fill the queue
/// at the price of one request, and two requests do the same work.
pub const MAX_PROMPTS: usize = 16;
/// OpenAI's limit.
pub const MAX_STOP_STRINGS: usize = 4;

/// A completion request whose every field is in range. What depends on the model (ids, context) is checked later.
#[derive(Debug)]
pub struct CompletionRequest {
    /// The model asked for, if the client cares.
    pub model: Option<String>,
    /// One answer is made for each; between 1 and [`MAX_PROMPTS`], none empty.
    pub prompts: Vec<Prompt>,
    /// At least 1.
    pub max_tokens: usize,
    /// 0…2; 0 is greedy.
    pub temperature: f32,
    /// Above 0, at most 1.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: usize,
    /// 0…1.
    pub min_p: f32,
    /// Absent: another one for every prompt.
    pub seed: Option<u64>,
    /// At most [`MAX_STOP_STRINGS`], none empty.
    pub stop: Vec<String>,
    /// Whether to answer in events.
    pub stream: bool,
    /// Whether a stream ends with the token counts.
    pub include_usage: bool,
    /// Names of fields that were there and mean nothing to us.
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

/// The fields of a JSON object that have not been looked at; each is parsed as what it should be, when it is taken,
/// so that an error can name it.
struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    fn take<T: Deserialize<'a>>(
        &mut self,
        param: &'static str,
        expected: &str,
    ) -> Result<Option<T>, ApiError> {
        match self.0.remove(param) {
            None => Ok(None),
            Some(raw) => {
                serde_json::from_str(raw.get()).map_err(|_problem| invalid(param, expected))
            }
        }
    }

    fn number(
        &mut self,
        param: &'static str,
        default: f64,
        expected: &str,
        is_valid: impl Fn(f64) -> bool,
    ) -> Result<f32, ApiError> {
        let value: f64 = self.take(param, expected)?.unwrap_or(default);
        if is_valid(value) {
            Ok(value as f32)
        } else {
            Err(invalid(param, expected))
        }
    }

    /// Refuses any value but the ones that change nothing.
    fn only<T: Deserialize<'a>>(
        &mut self,
        param: &'static str,
        neutral: &'static str,
        is_neutral: impl Fn(&T) -> bool,
    ) -> Result<(), ApiError> {
        match self.take::<T>(param, neutral) {
            Ok(None) => Ok(()),
            Ok(Some(value)) if is_neutral(&value) => Ok(()),
            _ => Err(ApiError::Unsupported { param, neutral }),
        }
    }
}

impl CompletionRequest {
    /// Reads and checks a request body.
    ///
    /// # Errors
    /// The first field, in the order below, that is absent, of the wrong type, out of range or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        // Raw values are only delimited here, not built: a deep or long body costs no more memory than itself.
        let mut fields = Fields(
            serde_json::from_slice(body)
                .map_err(|problem| ApiError::InvalidJson(problem.to_string()))?,
        );
        let f = &mut fields;

        let model = f.take("model", "a string")?;
        let prompts = prompts(f)?;
        let max_tokens = max_tokens(f)?;

        let temperature = f.number("temperature", 1.0, "a number from 0 to 2", |t| {
            (0.0..=2.0).contains(&t)
        })?;
        let expected = "a number above 0 and at most 1";
        let top_p = f.number("top_p", 1.0, expected, |p| p > 0.0 && p <= 1.0)?;
        let expected = "an integer of at least 1, or 0 or -1 for no limit";
        let top_k: i64 = f.take("top_k", expected)?.unwrap_or(0);
        if top_k < -1 {
            return Err(invalid("top_k", expected));
        }
        let min_p = f.number("min_p", 0.0, "a number from 0 to 1", |p| {
            (0.0..=1.0).contains(&p)
        })?;
        let seed: Option<i64> = f.take("seed", "a 64-bit integer")?;
        let stop = stop(f)?;
        let stream = f.take("stream", "true or false")?.unwrap_or(false);
        let (include_usage, mut ignored) = stream_options(f, stream)?;

        let one = |n: &u64| *n == 1;
        f.only("n", "only 1 is accepted", one)?;
        f.only("best_of", "only 1 is accepted", one)?;
        f.only("echo", "only false is accepted", |echo: &bool| !echo)?;
        f.only("logprobs", "only false is accepted", |on: &bool| !on)?;
        f.only("suffix", "leave it out", |suffix: &String| {
            suffix.is_empty()
        })?;
        let zero = |penalty: &f64| *penalty == 0.0;
        f.only("presence_penalty", "only 0 is accepted", zero)?;
        f.only("frequency_penalty", "only 0 is accepted", zero)?;
        f.only(
            "logit_bias",
            "only {} is accepted",
            |bias: &BTreeMap<String, &RawValue>| bias.is_empty(),
        )?;
        // Names the end user for the provider's abuse checks; nothing here depends on it.
        fields.0.remove("user");

        ignored.extend(fields.0.into_keys());
        Ok(Self {
            model,
            prompts,
            max_tokens,
            temperature,
            // A value too small for f32 still has to keep one token.
            top_p: top_p.max(f32::MIN_POSITIVE),
            top_k: usize::try_from(top_k).unwrap_or(0),
            min_p,
            seed: seed.map(i64::cast_unsigned),
            stop,
            stream,
            include_usage,
            ignored,
        })
    }
}

/// The four forms: a string, strings, ids, lists of ids.
fn prompts(fields: &mut Fields<'_>) -> Result<Vec<Prompt>, ApiError> {
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
    if prompts.len() > MAX_PROMPTS {
        return Err(invalid("prompt", format!("at most {MAX_PROMPTS} prompts")));
    }
    Ok(prompts)
}

/// `max_tokens`, or its newer name.
fn max_tokens(fields: &mut Fields<'_>) -> Result<usize, ApiError> {
    const EXPECTED: &str = "an integer of at least 1";
    let old: Option<u64> = fields.take("max_tokens", EXPECTED)?;
    let new: Option<u64> = fields.take("max_completion_tokens", EXPECTED)?;
    if old == Some(0) {
        return Err(invalid("max_tokens", EXPECTED));
    }
    if new == Some(0) {
        return Err(invalid("max_completion_tokens", EXPECTED));
    }
    if old.is_some() && new.is_some() && old != new {
        let expected = "the same as 'max_tokens', or left out";
        return Err(invalid("max_completion_tokens", expected));
    }
    let value = old.or(new).unwrap_or(DEFAULT_MAX_TOKENS);
    // On a 32-bit machine a larger number means "no limit" just as well: the context check refuses both.
    Ok(usize::try_from(value).unwrap_or(usize::MAX))
}

fn stop(fields: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    let expected = format!("a non-empty string or a list of at most {MAX_STOP_STRINGS} of them");
    let refused = || invalid("stop", &*expected);
    let Some(raw) = fields.take::<&RawValue>("stop", &expected)? else {
        return Ok(Vec::new());
    };
    let stop: Vec<String> = serde_json::from_str(raw.get())
        .or_else(|_| serde_json::from_str(raw.get()).map(|one| vec![one]))
        .map_err(|_| refused())?;
    if stop.len() > MAX_STOP_STRINGS || stop.iter().any(String::is_empty) {
        return Err(refused());
    }
    Ok(stop)
}

/// `include_usage`, and the names of options we do not know.
fn stream_options(fields: &mut Fields<'_>, stream: bool) -> Result<(bool, Vec<String>), ApiError> {
    const PARAM: &str = "stream_options";
    let expected = "an object, and only together with 'stream': true";
    let Some(options) = fields.take::<BTreeMap<String, &RawValue>>(PARAM, expected)? else {
        return Ok((false, Vec::new()));
    };
    if !stream {
        return Err(invalid(PARAM, expected));
    }
    let mut options = Fields(options);
    let include_usage: Option<bool> = options
        .take("include_usage", "")
        .map_err(|_| invalid(PARAM, "an object whose 'include_usage' is true or false"))?;
    let ignored = options.0.into_keys().map(|name| format!("{PARAM}.{name}"));
    Ok((include_usage.unwrap_or(false), ignored.collect()))
}

fn invalid(param: &'static str, expected: impl Into<String>) -> ApiError {
    ApiError::InvalidValue {
        param,
        expected: expected.into(),
    }
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
    /// What else decides the bytes of an answer: build, scheme, instruction set.
    pub system_fingerprint: &'a str,
    /// One per prompt; in a stream one, or none beside the usage.
    pub choices: Vec<Choice<'a>>,
    /// Left out of streams that did not ask; `null` in all events but the last of those that did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// The answer to one prompt, or a piece of it.
#[derive(Serialize)]
pub struct Choice<'a> {
    /// Which prompt.
    pub index: usize,
    /// The text, without the prompt.
    pub text: &'a str,
    /// Always `null`: log-probabilities are not offered yet.
    pub logprobs: (),
    /// `stop` or `length`; `null` while more is to come.
    pub finish_reason: Option<&'static str>,
}

/// Token counts over all prompts of a request.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    /// Of all prompts.
    pub prompt_tokens: usize,
    /// Of all answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
}
