//! Log-probabilities in the shape of OpenAI's completions.

use serde::{Serialize, Serializer};

use super::answer::PlacedToken;
use crate::text::Tokenizer;

/// The least that is written: JSON has no infinity, and what is less likely has not happened yet.
pub const LEAST: f32 = -9999.0;

/// One entry per token in each list.
#[derive(Serialize)]
pub struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Alternatives>>,
    text_offset: Vec<usize>,
}

/// The most likely tokens and the one that came, most likely first.
struct Alternatives(Vec<(String, f32)>);

impl Serialize for Alternatives {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

impl Logprobs {
    /// Those of `tokens`, which are called by `name`. The first token of a prompt has none.
    pub fn of<'a>(
        name: impl Fn(u32) -> String,
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
                for &(id, logprob) in score.top.iter().chain([&score.token]) {
                    let name = name(id);
                    // An object has each name once: the sampled token may be among the best, and two may share a name.
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

/// What a token is called: its text, or `bytes:\xe2\x80` if it is only a part of a character.
pub fn name(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.bytes(id);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| {
            name + &format!("\\x{byte:02x}")
        }),
    }
}
