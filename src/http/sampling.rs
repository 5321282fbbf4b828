//! The fields that say how an answer is generated, the same for every route that generates.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::ServedModel;
use super::answer::Rules;
use super::error_body::ApiError;
use super::fields::{Fields, invalid};
use super::limits::Limits;
use super::output::OutputRequest;
use super::prompt::check_ids;
use super::structured::{self, FromField};
use crate::engine::{self, Generation, Sampling};
use crate::text::{StopStrings, Tokenizer};

/// Entries of `logit_bias`, `allowed_token_ids` and `bad_words`: each costs a little time for every token.
pub const MAX_ENTRIES: usize = 1024;
/// Log-probabilities of alternatives per token: vLLM's limit; OpenAI's are 5 and 20.
pub const MAX_LOGPROBS: usize = 20;
/// Bytes of all stop strings together. A stop string is a line or a word; a long one would only hold the answer back.
pub const MAX_STOP_BYTES: usize = 8192;
/// Stop ids for each stop string that is allowed: models name a handful of their own.
pub const STOP_IDS_PER_STOP: usize = 4;

/// How to generate, in range. What depends on the model is checked by [`Self::generation`].
#[derive(Debug)]
pub struct SamplingRequest {
    /// Answers to each prompt; at least 1.
    pub n: usize,
    /// Absent: each answer draws its own.
    pub seed: Option<u64>,
    /// None is empty.
    pub stop: Vec<String>,
    /// Ids that end an answer beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Whether what ended the answer is part of it.
    pub include_stop: bool,
    /// Tokens before which nothing ends the answer.
    pub min_tokens: usize,
    /// Log-probabilities of generated tokens, with so many alternatives; each route has its own field for it.
    pub logprobs: Option<usize>,
    /// What the answer must be.
    pub grammar: Option<FromField>,
    /// What comes beside the text.
    pub output: OutputRequest,
    ignore_eos: bool,
    bad_words: Vec<String>,
    cache_salt: u128,
    sampling: Sampling,
}

impl SamplingRequest {
    /// Takes the fields. `logprobs` is left to the caller.
    ///
    /// # Errors
    /// The first field, in the order below, that is of the wrong type or out of range.
    pub fn take(f: &mut Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let temperature = f.number("temperature", 1.0, "a number from 0 to 2", |t| {
            (0.0..=2.0).contains(&t)
        })?;
        let expected = "a number above 0 and at most 1";
        let top_p = f.number("top_p", 1.0, expected, |p| p > 0.0 && p <= 1.0)?;
        let expected = "an integer of at least 1, or 0 or -1 for no limit";
        let top_k = f.integer("top_k", expected)?.unwrap_or(0);
        if top_k < -1 {
            return Err(invalid("top_k", expected));
        }
        let min_p = f.number("min_p", 0.0, "a number from 0 to 1", |p| {
            (0.0..=1.0).contains(&p)
        })?;
        let expected = "a number from -2 to 2";
        let in_range = |penalty: f64| (-2.0..=2.0).contains(&penalty);
        let presence_penalty = f.number("presence_penalty", 0.0, expected, in_range)?;
        let frequency_penalty = f.number("frequency_penalty", 0.0, expected, in_range)?;
        // Beyond these there is nothing left of the logits.
        let expected = "a number from 0.01 to 100";
        let repetition_penalty = f.number("repetition_penalty", 1.0, expected, |penalty| {
            (0.01..=100.0).contains(&penalty)
        })?;
        let seed = f.integer("seed", "a 64-bit integer")?;
        let sampling = Sampling {
            temperature,
            // A value too small for f32 still has to keep one token.
            top_p: top_p.max(f32::MIN_POSITIVE),
            top_k: usize::try_from(top_k).unwrap_or(0),
            min_p,
            seed: 0,
            allowed_ids: allowed_ids(f)?,
            banned_sequences: Vec::new(),
            logit_bias: logit_bias(f)?,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
        };
        let request = Self {
            n: f.count("n", 1..=limits.choices)?.unwrap_or(1),
            seed: seed.map(i64::cast_unsigned),
            stop: stop(f, limits)?,
            stop_token_ids: stop_token_ids(f, limits)?,
            include_stop: f.flag("include_stop_str_in_output")?,
            min_tokens: f.count("min_tokens", 0..=usize::MAX)?.unwrap_or(0),
            logprobs: None,
            grammar: structured::grammar(f)?,
            output: OutputRequest::take(f)?,
            ignore_eos: f.flag("ignore_eos")?,
            bad_words: bad_words(f)?,
            cache_salt: cache_salt(f)?,
            sampling,
        };
        // Names the end user for the provider's abuse checks; nothing here depends on it.
        let _: Option<&RawValue> = f.take("user", "a string")?;
        // Requests are served in the order in which they come, whatever they say of themselves.
        if f.integer("priority", "an integer")?.unwrap_or(0) != 0 {
            f.ignore("priority");
        }
        // It weighs the beams of a beam search, which there is none of.
        let unweighted = f.number("length_penalty", 1.0, "a number", f64::is_finite)?;
        if unweighted != 1.0 {
            f.ignore("length_penalty");
        }
        f.only("use_beam_search", "only false is accepted", |on: &bool| !on)?;
        Ok(request)
    }

    /// A generation by these fields, without prompt, length and grammar. Tokenizes words: takes time in proportion to
    /// them, so call it where blocking is fine.
    ///
    /// # Errors
    /// The first field that does not fit the model.
    pub fn generation(
        &self,
        tokenizer: &Tokenizer,
        eos_ids: &[u32],
        limits: engine::Limits,
    ) -> Result<Generation, ApiError> {
        let mut sampling = self.sampling.clone();
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

    /// What holds for the text of every answer of at most `max_tokens` tokens.
    pub fn rules(&self, max_tokens: usize) -> Rules {
        Rules {
            stops: StopStrings::new(&self.stop),
            stop_token_ids: self.stop_token_ids.clone(),
            include_stop: self.include_stop,
            min_tokens: self.min_tokens,
            max_tokens,
            shows_special: !self.output.skips_special,
            scores_prompt: self.output.prompt_logprobs.is_some(),
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

impl ServedModel {
    /// Refuses what even an idle engine could not take; a 429 would have the client try for ever.
    pub(super) fn check_count(
        &self,
        param: &'static str,
        generations: usize,
    ) -> Result<(), ApiError> {
        let limits = self.engine.limits();
        let most = limits.max_batch.saturating_add(limits.max_queue);
        if generations <= most {
            return Ok(());
        }
        let expected =
            format!("less: {generations} answers are asked for, and there is room for {most}");
        Err(invalid(param, expected))
    }
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

fn bad_words(fields: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    strings(fields, "bad_words", MAX_ENTRIES)
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

/// In ascending order.
fn allowed_ids(fields: &mut Fields<'_>) -> Result<Vec<u32>, ApiError> {
    const PARAM: &str = "allowed_token_ids";
    let expected = format!("a list of 1 to {MAX_ENTRIES} token ids");
    let Some(mut ids) = fields.ids(PARAM, &expected)? else {
        return Ok(Vec::new());
    };
    if !(1..=MAX_ENTRIES).contains(&ids.len()) {
        return Err(invalid(PARAM, expected));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn logit_bias(fields: &mut Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    const PARAM: &str = "logit_bias";
    let expected = format!(
        "an object of at most {MAX_ENTRIES} token ids, each with a number from -100 to 100"
    );
    let refused = || invalid(PARAM, &*expected);
    let biases: BTreeMap<String, f64> = fields.take(PARAM, &expected)?.unwrap_or_default();
    if biases.len() > MAX_ENTRIES {
        return Err(refused());
    }
    let mut parsed = Vec::with_capacity(biases.len());
    for (id, bias) in biases {
        let id: u32 = id.parse().map_err(|_| refused())?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(refused());
        }
        parsed.push((id, bias as f32));
    }
    Ok(parsed)
}
