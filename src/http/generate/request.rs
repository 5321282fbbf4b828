//! The fields of all generating routes, checked.

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::answer::Rules;
use super::length::MaxTokens;
use super::output::{MAX_LOGPROBS, OutputRequest};
use super::prompt::check_ids;
use super::sampling::{self, MAX_ENTRIES, Unset};
use super::structured::{self, FromField};
use crate::engine::{self, Generation, Sampling};
use crate::http::access::user_id;
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::limits::Limits;
use crate::sources::generation::GenerationDefaults;
use crate::text::{StopStrings, Tokenizer};

/// Bytes of all stop strings together. A stop string is usually a word or a line; a long one would only delay the text
/// of the answer.
pub const MAX_STOP_BYTES: usize = 8192;
/// Stop ids per allowed stop string. Models have a handful of stop ids of their own.
pub const STOP_IDS_PER_STOP: usize = 4;

/// The fields, checked against their ranges. [`Self::generation`] checks what depends on the model.
#[derive(Debug)]
pub struct GenerationRequest {
    /// The requested model, if the request names one.
    pub model: Option<String>,
    /// Answers to each prompt; at least 1.
    pub n: usize,
    /// The most tokens of an answer.
    pub max_tokens: MaxTokens,
    /// The number of tokens before which nothing ends the answer.
    pub min_tokens: usize,
    /// Number of alternatives for each generated token, if log-probabilities are requested; each route has its own
    /// field for it.
    pub logprobs: Option<usize>,
    /// The grammar that constrains the answer.
    pub grammar: Option<FromField>,
    /// What the response has beside the text.
    pub output: OutputRequest,
    /// Names of fields that were present but change nothing; filled in when all fields have been taken.
    pub ignored: Vec<String>,
    /// Bytes of memory for the parts of the request that its response repeats.
    pub repeated_bytes: usize,
    /// The number of the end user, if the request names one.
    pub user: Option<u64>,
    /// Requests of the same client with lower numbers are first.
    pub priority: i64,
    /// `None`: each answer draws a random seed.
    seed: Option<u64>,
    /// Stop strings; none of them is empty.
    stop: Vec<String>,
    /// Ids that end an answer, in addition to the model's own.
    stop_token_ids: Vec<u32>,
    /// Whether the stop string or id that ended the answer is part of it.
    include_stop: bool,
    ignore_eos: bool,
    bad_words: Vec<String>,
    cache_salt: u128,
    sampling: Sampling,
    /// The sampling fields that the request leaves to the model's defaults.
    unset: Unset,
}

/// The fields that some APIs have under other names or not at all.
#[derive(Debug)]
pub struct Own {
    /// Answers to each prompt; at least 1.
    pub n: usize,
    /// The most tokens of an answer.
    pub max_tokens: MaxTokens,
    /// Stop strings; none of them is empty.
    pub stop: Vec<String>,
    /// The grammar from the API's own field for it.
    pub grammar: Option<FromField>,
    /// What the response has beside the text.
    pub output: OutputRequest,
    /// Bytes of memory for the parts of the request that its response repeats.
    pub repeated_bytes: usize,
}

impl GenerationRequest {
    /// Takes the fields of completions and chat completions. `logprobs` is left to the caller.
    ///
    /// # Errors
    /// The first field that is of the wrong type or out of range.
    pub fn take(f: &mut Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let own = Own {
            max_tokens: MaxTokens::take(f, limits)?,
            n: f.count("n", 1..=limits.choices)?.unwrap_or(1),
            stop: stop(f, "stop", limits)?,
            grammar: None,
            output: OutputRequest::take(f)?,
            repeated_bytes: 0,
        };
        let mut request = Self::with(f, limits, own)?;
        let user: Option<&RawValue> = f.take("user", "a string")?;
        request.user = user.map(|user| user_id(user.get()));
        request.priority = f.integer("priority", "an integer")?.unwrap_or(0);
        take_unused(f)?;
        Ok(request)
    }

    /// Takes the fields that have the same names in all APIs. `own` are the others.
    ///
    /// # Errors
    /// The first field, in the order below, that is of the wrong type or out of range.
    pub fn with(f: &mut Fields<'_>, limits: &Limits, own: Own) -> Result<Self, ApiError> {
        let model = f.take("model", "a string")?;
        let unset = Unset::of(f);
        let sampling = sampling::take(f)?;
        let seed = f.integer("seed", "a 64-bit integer")?;
        Ok(Self {
            model,
            n: own.n,
            max_tokens: own.max_tokens,
            seed: seed.map(i64::cast_unsigned),
            stop: own.stop,
            stop_token_ids: stop_token_ids(f, limits)?,
            include_stop: f.flag("include_stop_str_in_output")?,
            min_tokens: f.count("min_tokens", 0..=usize::MAX)?.unwrap_or(0),
            logprobs: None,
            grammar: structured::grammar(f, own.grammar)?,
            output: own.output,
            ignore_eos: f.flag("ignore_eos")?,
            bad_words: strings(f, "bad_words", MAX_ENTRIES)?,
            cache_salt: cache_salt(f)?,
            sampling,
            unset,
            ignored: Vec::new(),
            repeated_bytes: own.repeated_bytes,
            user: None,
            priority: 0,
        })
    }

    /// How tokens are chosen, with the model's `defaults` for absent fields. The caller sets the seed and the banned
    /// words.
    pub fn sampling(&self, defaults: &GenerationDefaults) -> Sampling {
        let mut sampling = self.sampling.clone();
        self.unset.fill(&mut sampling, defaults);
        sampling
    }

    /// A generation with these settings, and with the model's `defaults` for absent ones, without prompt, length and
    /// grammar. Tokenizes `bad_words`, which takes time in proportion to them, so call it on a thread that may block.
    ///
    /// # Errors
    /// The first field that does not fit the model.
    pub fn generation(
        &self,
        tokenizer: &Tokenizer,
        eos_ids: &[u32],
        limits: engine::Limits,
        defaults: &GenerationDefaults,
    ) -> Result<Generation, ApiError> {
        let mut sampling = self.sampling(defaults);
        let biased: Vec<u32> = sampling.logit_bias.iter().map(|bias| bias.0).collect();
        check_ids("logit_bias", &biased, limits)?;
        check_ids("allowed_token_ids", &sampling.allowed_ids, limits)?;
        check_ids("stop_token_ids", &self.stop_token_ids, limits)?;
        check_ids("logprob_token_ids", &self.output.scored_ids, limits)?;
        for word in &self.bad_words {
            // A word has different tokens at the start of a text and after a space; both are banned.
            for text in [word.clone(), format!(" {}", word.trim_start())] {
                let ids = tokenizer.encode(&text, MAX_ENTRIES);
                let ids = ids.map_err(|_| invalid("bad_words", "words that have tokens"))?;
                if !ids.is_empty() && !sampling.banned_sequences.contains(&ids) {
                    sampling.banned_sequences.push(ids);
                }
            }
        }
        let mut stop_ids = self.stop_token_ids.clone();
        if !self.ignore_eos {
            stop_ids.extend_from_slice(eos_ids);
        }
        Ok(Generation {
            min_tokens: self.min_tokens,
            sampling,
            stop_ids,
            scores: self.logprobs.max(self.output.prompt_logprobs),
            score_ids: self.output.scored_ids.clone(),
            score_prompt: self.output.prompt_logprobs.is_some(),
            cache_salt: self.cache_salt,
            ..Generation::default()
        })
    }

    /// The ids that end an answer only because the request asks for it; `eos_ids` are the model's own.
    pub fn own_stop_ids(&self, eos_ids: &[u32]) -> Vec<u32> {
        let mut own = self.stop_token_ids.clone();
        own.retain(|id| self.ignore_eos || !eos_ids.contains(id));
        own
    }

    /// Sets [`Self::logprobs`] from the route's own field. Chosen ids (`logprob_token_ids`) imply log-probabilities.
    pub fn set_logprobs(&mut self, asked: Option<usize>) {
        let chosen = !self.output.scored_ids.is_empty();
        self.logprobs = asked.or(chosen.then_some(0));
    }

    /// The number of alternatives for each generated token.
    pub fn alternatives(&self) -> usize {
        match self.output.scored_ids.len() {
            0 => self.logprobs.unwrap_or(0),
            chosen => chosen,
        }
    }

    /// Refuses chosen ids if the answers may have too many tokens for them; `max_tokens` is the limit of each answer.
    ///
    /// # Errors
    /// [`ApiError::InvalidValue`].
    pub fn check_chosen(&self, max_tokens: usize) -> Result<(), ApiError> {
        match self.output.scored_ids.len() {
            0..=MAX_LOGPROBS => Ok(()),
            chosen => OutputRequest::check_scores("logprob_token_ids", max_tokens, chosen, self.n),
        }
    }

    /// The settings for the text of every answer of `generation`.
    pub fn rules(&self, generation: &Generation) -> Rules {
        Rules {
            stops: StopStrings::new(&self.stop),
            stop_token_ids: self.stop_token_ids.clone(),
            include_stop: self.include_stop,
            min_tokens: self.min_tokens,
            max_tokens: generation.max_tokens,
            shows_special: !self.output.skips_special,
            scores_prompt: generation.score_prompt,
            grammar: self.grammar.as_ref().map(|grammar| grammar.0),
            ..Rules::default()
        }
    }

    /// The seed of answer `choice` to a prompt: the request's seed plus `choice`. So the first of several answers is
    /// the same as a single answer, and each one can be reproduced alone.
    pub fn seed(&self, choice: usize) -> u64 {
        match self.seed {
            Some(seed) => seed.wrapping_add(choice as u64),
            None => rand::random(),
        }
    }
}

/// Takes fields that clients send but that have no effect here.
fn take_unused(f: &mut Fields<'_>) -> Result<(), ApiError> {
    // A parameter of beam search, which is not supported.
    let weight: Option<f64> = f.take("length_penalty", "a number")?;
    if weight.is_some_and(|weight| weight != 1.0) {
        f.ignore("length_penalty");
    }
    f.only("use_beam_search", "only false is accepted", |on: &bool| !on)
}

/// Takes a list of strings. A single string is accepted as a list of one.
fn strings(
    fields: &mut Fields<'_>,
    param: &'static str,
    most: usize,
) -> Result<Vec<String>, ApiError> {
    let expected = format!("a non-empty string or a list of at most {most} of them");
    let refused = || invalid(param, &*expected);
    let Some(raw) = fields.take::<&RawValue>(param, &expected)? else {
        return Ok(Vec::new());
    };
    let strings: Vec<String> = serde_json::from_str(raw.get())
        .or_else(|_| serde_json::from_str(raw.get()).map(|one| vec![one]))
        .map_err(|_| refused())?;
    if strings.len() > most || strings.iter().any(String::is_empty) {
        return Err(refused());
    }
    Ok(strings)
}

/// Takes the stop strings from the field `param`.
///
/// # Errors
/// When they are too many, too long, or empty.
pub fn stop(
    fields: &mut Fields<'_>,
    param: &'static str,
    limits: &Limits,
) -> Result<Vec<String>, ApiError> {
    let stops = strings(fields, param, limits.stops)?;
    if stops.iter().map(String::len).sum::<usize>() > MAX_STOP_BYTES {
        let expected = format!("at most {MAX_STOP_BYTES} bytes of text together");
        return Err(invalid(param, expected));
    }
    Ok(stops)
}

fn stop_token_ids(fields: &mut Fields<'_>, limits: &Limits) -> Result<Vec<u32>, ApiError> {
    let most = limits.stops.saturating_mul(STOP_IDS_PER_STOP);
    let expected = format!("a list of at most {most} token ids");
    let ids = fields.ids("stop_token_ids", &expected)?.unwrap_or_default();
    if ids.len() > most {
        return Err(invalid("stop_token_ids", expected));
    }
    Ok(ids)
}

/// The salt of the prefix cache: 128 bits of the text's SHA-256, so that collisions cannot be constructed.
fn cache_salt(f: &mut Fields<'_>) -> Result<u128, ApiError> {
    const EXPECTED: &str = "a string that is not empty";
    match f.take::<String>("cache_salt", EXPECTED)? {
        None => Ok(0),
        Some(text) if text.is_empty() => Err(invalid("cache_salt", EXPECTED)),
        Some(text) => {
            let digest = Sha256::digest(text.as_bytes());
            let first = digest.first_chunk().expect("a digest has 32 bytes");
            Ok(u128::from_le_bytes(*first))
        }
    }
}
