//! Fixed work whose result is known: prompts that the model continues greedily, in the background.
//!
//! Weights in memory, memory itself and processors can go bad without a message. The model's answers then change, and
//! nothing else tells. So the answers to a few prompts are compared with what they were. The same build on the same
//! instruction set computes the same bits, so within a process [`Answer`]s must be equal. Other builds and other
//! instruction sets may round differently in the last bits; [`Answer::sure_tokens`] are those that rounding cannot change.

use super::{Engine, Generation, TokenEvent};

/// The prompts: a fact, code, and a pattern.
pub const TEXTS: [&str; 3] = [
    "The capital of France is",
    "def fibonacci(n):\n    if n <",
    "2, 4, 6, 8, 10,",
];
/// Tokens that each prompt is continued by. With Granite 2B on two cores, all take two seconds; a step takes 60 ms.
pub const TOKENS: usize = 8;
/// Tokens of the longest prompt: together with its continuation it does not fill a page, so that it leaves nothing in the
/// prefix cache.
pub const MOST_PROMPT_TOKENS: usize = 48;
/// By how much, in nats, a token must be more likely than the next best for rounding not to change the choice. Instruction
/// sets differ by less than a thousandth.
const SURE_NATS: f32 = 0.1;

/// What the model made of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The tokens that continue the prompt.
    tokens: Vec<u32>,
    /// How many of them, from the first, rounding cannot change.
    sure: usize,
    /// The bits of the log-probabilities of all tokens from the prompt's second on.
    bits: Vec<u32>,
}

impl Answer {
    /// The first tokens, as many as rounding cannot change.
    pub fn sure_tokens(&self) -> &[u32] {
        &self.tokens[..self.sure]
    }

    /// Whether the answer begins with `expected`.
    pub fn begins_with(&self, expected: &[u32]) -> bool {
        self.tokens.starts_with(expected)
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// With an answer to each prompt.
    Complete(Vec<Answer>),
    /// The engine had other work.
    Displaced,
    /// The model computed logits that are not finite, or the engine died.
    Failed,
}

/// Whether the engine can run these prompts.
pub fn fits(engine: &Engine, prompts: &[Vec<u32>]) -> bool {
    let limits = engine.limits();
    let fits =
        |prompt: &Vec<u32>| prompt.len() <= MOST_PROMPT_TOKENS && limits.allow(&generation(prompt));
    prompts.iter().all(fits)
}

/// Runs the prompts one after the other, so that no step is longer than one of them. They must [fit](fits).
pub async fn run(engine: &Engine, prompts: &[Vec<u32>]) -> Run {
    let mut answers = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let Some(mut events) = engine.submit_in_background(generation(prompt)) else {
            return Run::Displaced;
        };
        let (mut tokens, mut bits, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        let is_complete = loop {
            match events.next().await {
                Some(TokenEvent::Score(score)) => {
                    bits.push(score.token.1.to_bits());
                    let second = score
                        .top
                        .get(1)
                        .map_or(f32::NEG_INFINITY, |second| second.1);
                    gaps.push(score.token.1 - second);
                }
                Some(TokenEvent::Token(token)) => tokens.push(token),
                Some(TokenEvent::Finished(_)) => break true,
                Some(TokenEvent::Displaced) => return Run::Displaced,
                _ => break false,
            }
        };
        if !is_complete {
            return Run::Failed;
        }
        // The scores before those of the answer are the prompt's.
        let answered = gaps.iter().skip(prompt.len() - 1);
        let sure = answered.take_while(|gap| **gap > SURE_NATS).count();
        answers.push(Answer {
            sure: sure.min(tokens.len()),
            tokens,
            bits,
        });
    }
    Run::Complete(answers)
}

fn generation(prompt: &[u32]) -> Generation {
    Generation {
        prompt: prompt.to_vec(),
        max_tokens: TOKENS,
        // The most likely token and the next.
        scores: Some(2),
        // Also makes the prompt be computed, instead of found in the prefix cache.
        score_prompt: true,
        ..Generation::default()
    }
}
