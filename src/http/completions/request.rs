//! The fields of `POST /v1/completions`, checked.
//!
//! Nothing is clamped: a value out of range is refused with the field's name. `null` is the same as absent.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::generate::output::MAX_LOGPROBS;
use crate::http::generate::request::GenerationRequest;
use crate::http::limits::Limits;
use crate::http::values::{Id, Whole};

/// OpenAI's default, and that of all other servers that do not generate to the end of the context.
pub const DEFAULT_MAX_TOKENS: usize = 16;

/// A completion request whose fields are all in range. Checks that depend on the model (ids, context) come later.
#[derive(Debug)]
pub struct CompletionRequest {
    /// At least one prompt; none of them is empty.
    pub prompts: Vec<Prompt>,
    /// The text that follows the answer.
    pub suffix: Option<String>,
    /// 0 only together with `echo`.
    pub max_tokens: usize,
    /// Whether answers begin with their prompts.
    pub echo: bool,
    /// The number of answers that are generated; the response has the `n` likeliest.
    pub best_of: usize,
    /// The fields of all generating routes.
    pub common: GenerationRequest,
}

/// A text, or ids from the client.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// To be tokenized.
    Text(String),
    /// Used unchanged: no begin-of-text token is added.
    Ids(Vec<u32>),
}

impl CompletionRequest {
    /// Reads and checks a request body.
    ///
    /// # Errors
    /// The first field that is absent, of the wrong type, out of range or not supported.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut request = Self::take(&mut fields, limits)?;
        request.common.ignored = fields.finish(limits.strict)?;
        Ok(request)
    }

    /// Takes every field of the API.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn take(f: &mut Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let prompts = prompts(f, limits)?;
        let echo = f.flag("echo")?;
        let mut common = GenerationRequest::take(f, limits)?;
        let max_tokens = common.max_tokens.count.unwrap_or(DEFAULT_MAX_TOKENS);
        if max_tokens == 0 && !echo {
            let expected = "at least 1, or 0 together with 'echo': true to score the prompt";
            return Err(invalid(common.max_tokens.field, expected));
        }
        common
            .max_tokens
            .check_least(common.min_tokens, max_tokens)?;
        let suffix: Option<String> = f.take("suffix", "a string")?;
        let suffix = suffix.filter(|suffix| !suffix.is_empty());
        if echo && suffix.is_some() {
            return Err(invalid("suffix", "left out where 'echo' is true"));
        }
        common.set_logprobs(logprobs(f)?);
        common.check_chosen(max_tokens)?;
        let best_of = f.count("best_of", 1..=limits.choices)?.unwrap_or(common.n);
        if best_of < common.n {
            return Err(invalid("best_of", "at least 'n'"));
        }
        if best_of > common.n && common.output.stream.is_some() {
            let expected = "equal to 'n' in a stream: which are best is known at the end";
            return Err(invalid("best_of", expected));
        }
        Ok(Self {
            prompts,
            suffix,
            max_tokens,
            echo,
            best_of,
            common,
        })
    }

    /// Whether the prompts' tokens are scored for `logprobs`, as part of the text.
    pub const fn scores_echo(&self) -> bool {
        self.echo && self.common.logprobs.is_some()
    }
}

/// Takes `prompt` in its four forms: a string, a list of strings, a list of ids, or a list of lists of ids.
fn prompts(fields: &mut Fields<'_>, limits: &Limits) -> Result<Vec<Prompt>, ApiError> {
    const FORMS: &str =
        "a non-empty string, list of strings, list of token ids or list of lists of token ids";
    let refused = || invalid("prompt", FORMS);
    let raw: &RawValue = fields
        .take("prompt", FORMS)?
        .ok_or(ApiError::Missing { param: "prompt" })?;
    // Each attempt to parse stops at the first element of another type, so attempts that fail are cheap.
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

/// Takes `logprobs` in the form of completions: a number of alternatives, or `false` for none.
fn logprobs(f: &mut Fields<'_>) -> Result<Option<usize>, ApiError> {
    #[derive(Deserialize)]
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
