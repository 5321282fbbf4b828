//! Log-probabilities in the formats of OpenAI's completions and of vLLM's `prompt_logprobs`, and the names of tokens.

use serde::{Serialize, Serializer};

use super::answer::PlacedToken;
use crate::text::Tokenizer;

/// Log-probabilities are clamped here, because JSON has no −∞.
pub const LEAST: f32 = -9999.0;

/// OpenAI's `logprobs`: each list has one entry per token.
#[derive(Serialize)]
pub struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Alternatives>>,
    text_offset: Vec<usize>,
}

/// The most likely tokens and the sampled one, most likely first.
struct Alternatives(Vec<(String, f32)>);

impl Serialize for Alternatives {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

impl Logprobs {
    /// The log-probabilities of `tokens`, with `top` alternatives. `name` gives the name of a token. The first token of
    /// a prompt has no log-probability.
    pub fn of<'a>(
        name: impl Fn(u32) -> String,
        top: usize,
        tokens: impl Iterator<Item = &'a PlacedToken>,
    ) -> Self {
        let mut all = Self {
            tokens: Vec::new(),
            token_logprobs: Vec::new(),
            top_logprobs: Vec::new(),
            text_offset: Vec::new(),
        };
        for token in tokens {
            all.tokens.push(name(token.id));
            all.text_offset.push(token.offset);
            let score = token.score.as_ref();
            all.token_logprobs
                .push(score.map(|score| score.token.1.max(LEAST)));
            all.top_logprobs.push(score.map(|score| {
                let mut alternatives: Vec<(String, f32)> = Vec::new();
                for &(id, logprob) in score.top.iter().take(top).chain([&score.token]) {
                    let name = name(id);
                    // A JSON object must not repeat a name, but the sampled token may be among the most likely ones,
                    // and two tokens may share a name.
                    if alternatives.iter().all(|other| other.0 != name) {
                        alternatives.push((name, logprob.max(LEAST)));
                    }
                }
                Alternatives(alternatives)
            }));
        }
        all
    }
}

/// vLLM's `prompt_logprobs`: for each of the prompt's tokens, the token and its alternatives by id; `null` for the
/// first.
#[derive(Serialize)]
pub struct PromptLogprobs(Vec<Option<Ranked>>);

/// Ids with their ranks and log-probabilities: first the prompt's token, then the likeliest ones.
struct Ranked(Vec<(u32, RankedToken)>);

#[derive(Serialize)]
struct RankedToken {
    logprob: f32,
    rank: usize,
    decoded_token: String,
}

impl Serialize for Ranked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, token)| (id.to_string(), token)))
    }
}

impl PromptLogprobs {
    /// The log-probabilities of a prompt's tokens, with `top` alternatives.
    pub fn of(tokenizer: &Tokenizer, top: usize, prompt: &[PlacedToken]) -> Self {
        let ranked = |(id, logprob): (u32, f32), rank| {
            let token = RankedToken {
                logprob: logprob.max(LEAST),
                rank,
                decoded_token: name(tokenizer, id),
            };
            (id, token)
        };
        let place = |token: &PlacedToken| {
            let score = token.score.as_ref()?;
            let likeliest = (1..).zip(score.top.iter().take(top));
            let others = likeliest.filter(|(_, other)| other.0 != score.token.0);
            let own = ranked(score.token, score.rank);
            let others = others.map(|(rank, &other)| ranked(other, rank));
            Some(Ranked([own].into_iter().chain(others).collect()))
        };
        Self(prompt.iter().map(place).collect())
    }
}

/// The name of a token in log-probabilities: `token_id:7` if `by_id`, or else its [`name`].
pub fn name_or_id(tokenizer: &Tokenizer, by_id: bool, id: u32) -> String {
    match by_id {
        true => format!("token_id:{id}"),
        false => name(tokenizer, id),
    }
}

/// The name of a token: its text, or `bytes:\xe2\x80` if it is only a part of a character.
pub fn name(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.bytes(id);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| {
            name + &format!("\\x{byte:02x}")
        }),
    }
}
