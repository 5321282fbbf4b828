//! The fields that every route that generates has, checked.

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::answer::Rules;
use super::length::MaxTokens;
use super::output::{MAX_LOGPROBS, OutputRequest};
use super::prompt::check_ids;
use super::sampling::{self, MAX_ENTRIES, Unset};
use super::structured::{self, FromField};
use crate::engine::{self, Generation, Sampling};
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::limits::Limits;
use crate::sources::generation::GenerationDefaults;
use crate::text::{StopStrings, Tokenizer};

/// Bytes of all stop strings together. A stop string is a line or a word; a long one would only hold the answer back.
pub const MAX_STOP_BYTES: usize = 8192;
/// Stop ids for each stop string that is allowed: models name a handful of their own.
pub const STOP_IDS_PER_STOP: usize = 4;

/// What to generate, in range. What depends on the model is checked by [`Self::generation`].
#[derive(Debug)]
pub struct GenerationRequest {
    /// The model asked for, if the client cares.
    pub model: Option<String>,
    /// Answers to each prompt; at least 1.
    pub n: usize,
    /// The most tokens of an answer.
    pub max_tokens: MaxTokens,
    /// Tokens before which nothing ends the answer.
    pub min_tokens: usize,
    /// Log-probabilities of generated tokens, with so many alternatives; each route has its own field for it.
    pub logprobs: Option<usize>,
    /// What the answer must be.
    pub grammar: Option<FromField>,
    /// What comes beside the text.
    pub output: OutputRequest,
    /// Names of fields that were there and change nothing; known when all have been taken.
    pub ignored: Vec<String>,
    /// Absent: each answer draws its own.
    seed: Option<u64>,
    /// None is empty.
    stop: Vec<String>,
    /// Ids that end an answer beside the model's own.
    stop_token_ids: Vec<u32>,
    /// Whether what ended the answer is part of it.
    include_stop: bool,
    ignore_eos: bool,
    bad_words: Vec<String>,
    cache_salt: u128,
    sampling: Sampling,
    /// What of it is left to the model.
    unset: Unset,
}

impl GenerationRequest {
    /// Takes the fields. `logprobs` is left to the caller.
    ///
    /// # Errors
    /// The first field, in the order below, that is of the wrong type or out of range.
    pub fn take(f: &mut Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let model = f.take("model", "a string")?;
        let max_tokens = MaxTokens::take(f, limits)?;
        let unset = Unset::of(f);
        let sampling = sampling::take(f)?;
        let seed = f.integer("seed", "a 64-bit integer")?;
        let request = Self {
            model,
            n: f.count("n", 1..=limits.choices)?.unwrap_or(1),
            max_tokens,
            seed: seed.map(i64::cast_unsigned),
            stop: stop(f, limits)?,
            stop_token_ids: stop_token_ids(f, limits)?,
            include_stop: f.flag("include_stop_str_in_output")?,
            min_tokens: f.count("min_tokens", 0..=usize::MAX)?.unwrap_or(0),
            logprobs: None,
            grammar: structured::grammar(f)?,
            output: OutputRequest::take(f)?,
            ignore_eos: f.flag("ignore_eos")?,
            bad_words: strings(f, "bad_words", MAX_ENTRIES)?,
            cache_salt: cache_salt(f)?,
            sampling,
            unset,
            ignored: Vec::new(),
        };
        take_unused(f)?;
        Ok(request)
    }

    /// A generation by these fields and, where they say nothing, the model's `defaults`, without prompt, length and grammar. Tokenizes words: takes time in proportion to
    /// them, so call it where blocking is fine.
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
        let mut sampling = self.sampling.clone();
        self.unset.fill(&mut sampling, defaults);
        let biased: Vec<u32> = sampling.logit_bias.iter().map(|bias| bias.0).collect();
        check_ids("logit_bias", &biased, limits)?;
        check_ids("allowed_token_ids", &sampling.allowed_ids, limits)?;
        check_ids("stop_token_ids", &self.stop_token_ids, limits)?;
        check_ids("logprob_token_ids", &self.output.scored_ids, limits)?;
        for word in &self.bad_words {
            // At the start of a text, and after a space.
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

    /// Sets what `logprobs` says, in whatever form the route has it. Chosen ids mean that they are wanted.
    pub fn set_logprobs(&mut self, asked: Option<usize>) {
        let chosen = !self.output.scored_ids.is_empty();
        self.logprobs = asked.or(chosen.then_some(0));
    }

    /// How many alternatives each generated token has.
    pub fn alternatives(&self) -> usize {
        match self.output.scored_ids.len() {
            0 => self.logprobs.unwrap_or(0),
            chosen => chosen,
        }
    }

    /// Refuses chosen ids for more tokens than one answer should carry them for; `max_tokens` is what all answers have.
    ///
    /// # Errors
    /// [`ApiError::InvalidValue`].
    pub fn check_chosen(&self, max_tokens: usize) -> Result<(), ApiError> {
        match self.output.scored_ids.len() {
            0..=MAX_LOGPROBS => Ok(()),
            chosen => OutputRequest::check_scores("logprob_token_ids", max_tokens, chosen, self.n),
        }
    }

    /// What holds for the text of every answer of `generation`.
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

    /// The seed of one of the answers to a prompt: the request's plus `choice`, so that the first answer of many is the
    /// one that is given alone, and each can be had again alone.
    pub fn seed(&self, choice: usize) -> u64 {
        match self.seed {
            Some(seed) => seed.wrapping_add(choice as u64),
            None => rand::random(),
        }
    }
}

/// Takes what clients send and nothing here depends on.
fn take_unused(f: &mut Fields<'_>) -> Result<(), ApiError> {
    // Names the end user for the provider's abuse checks.
    let _: Option<&RawValue> = f.take("user", "a string")?;
    // Requests are served in the order in which they come, whatever they say of themselves.
    if f.integer("priority", "an integer")?.unwrap_or(0) != 0 {
        f.ignore("priority");
    }
    // It weighs the beams of a beam search, which there is none of.
    let weight: Option<f64> = f.take("length_penalty", "a number")?;
    if weight.is_some_and(|weight| weight != 1.0) {
        f.ignore("length_penalty");
    }
    f.only("use_beam_search", "only false is accepted", |on: &bool| !on)
}

/// Values may be words where a list of one is meant.
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

fn stop(fields: &mut Fields<'_>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let stops = strings(fields, "stop", limits.stops)?;
    if stops.iter().map(String::len).sum::<usize>() > MAX_STOP_BYTES {
        let expected = format!("at most {MAX_STOP_BYTES} bytes of text together");
        return Err(invalid("stop", expected));
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

/// The salt of the prefix cache, as a number that nobody can choose another text for.
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
