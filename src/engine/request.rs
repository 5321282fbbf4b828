//! All that crosses the thread boundary: a [`Generation`] goes in, [`TokenEvent`]s come out. Only token ids, no text.

use std::fmt;

/// One checked request for tokens.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// The prompt's ids; never empty, all below the vocabulary size.
    pub prompt: Vec<u32>,
    /// How many tokens to generate at most; `prompt.len() + max_tokens` fits the context. With 0 the prompt is only read.
    pub max_tokens: usize,
    /// Until so many have been generated, no id of `stop_ids` is chosen.
    pub min_tokens: usize,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Ids that end the generation; the id itself is not reported as a token.
    pub stop_ids: Vec<u32>,
    /// What the tokens must spell, if anything.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Report the log-probability of every generated token, and of this many of the most likely ones at its place.
    pub scores: Option<usize>,
    /// Report those of these ids, all below the vocabulary size, in place of the most likely ones; where `scores` is
    /// given, and not for the prompt.
    pub score_ids: Vec<u32>,
    /// Report those of the prompt's tokens too, from the second on. Takes the logits of all its rows, so none of them may
    /// be taken from a cache.
    pub score_prompt: bool,
    /// What is computed of the prompt is kept for, and taken from, generations with the same salt only.
    pub cache_salt: u128,
}

/// How to choose the next token from the logits. All fields are finite and in range.
///
/// What changes the logits comes first, in the order of the fields from `allowed_ids` to `presence_penalty`; then the
/// temperature, and what cuts off the unlikely.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; the logits are divided by it otherwise.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Same seed, same prompt, same settings: same tokens, whatever else runs.
    pub seed: u64,
    /// No other ids are chosen; empty allows all.
    pub allowed_ids: Vec<u32>,
    /// The last id of each is not chosen where the others stand right before it; none is empty.
    pub banned_sequences: Vec<Vec<u32>>,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Logits of tokens that are in the prompt or the output are divided by this if positive, multiplied if negative;
    /// 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit once for each time it is in the output.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit if it is in the output.
    pub presence_penalty: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            allowed_ids: Vec::new(),
            banned_sequences: Vec::new(),
            logit_bias: Vec::new(),
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
        }
    }
}

/// What the tokens of a generation must spell: a grammar, as the engine sees one. It is asked for the tokens that may
/// come next and then told which one came.
pub trait Constraint: Send + fmt::Debug {
    /// The ids that may come next: bit `id % 32` of word `id / 32`. Ids past the end may not. Stop ids are among them
    /// where the text may end. `None` if this cannot be told, because working it out took more than it may.
    fn allowed(&mut self) -> Option<&[u32]>;

    /// Takes a token that was allowed. Returns whether the text is complete, so that nothing may follow.
    fn accept(&mut self, token: u32) -> bool;

    /// A copy in the same state, which goes its own way.
    fn boxed_clone(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

/// What the engine reports about one generation, in order; the last event is none of the first two.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenEvent {
    /// How likely the next token is, if that was asked for: first the prompt's tokens from the second on, then each
    /// generated token right before its own event, and a stop id before the end.
    Score(Box<Score>),
    /// A generated token.
    Token(u32),
    /// The generation ended as it should.
    Finished(FinishReason),
    /// The constraint could not say what may come next within the work it may take.
    Undecided,
    /// The constraint wants the text to go on, and the other settings exclude all that it may go on with.
    Contradicted,
    /// The engine could not go on (a defect, such as logits that are not finite).
    Failed,
}

/// Log-probabilities at one place of a sequence: of the token there and of the most likely ones.
///
/// They are those of the model, the softmax of its logits: no temperature, penalty or constraint is in them.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The token at this place, and its log-probability.
    pub token: (u32, f32),
    /// How many tokens are likelier than this one, and itself: 1 is the likeliest.
    pub rank: usize,
    /// As many of the most likely tokens as were asked for, or the ids that were; most likely first, and of equals, lower
    /// ids first.
    pub top: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// This id of `stop_ids` came up.
    Stop(u32),
    /// The constraint is met and lets nothing follow.
    Complete,
    /// `max_tokens` were generated.
    Length,
}
