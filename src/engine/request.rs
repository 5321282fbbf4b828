//! What crosses the thread boundary: a [`Generation`] goes in, [`TokenEvent`]s come out. Only token ids, no text.

use std::fmt;

/// One checked request for tokens.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// The prompt's ids; never empty, all below the vocabulary size.
    pub prompt: Vec<u32>,
    /// How many tokens to generate at most; `prompt.len() + max_tokens` fits the context. With 0 the prompt is only
    /// processed.
    pub max_tokens: usize,
    /// No id of `stop_ids` is chosen before this many tokens have been generated.
    pub min_tokens: usize,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Ids that end the generation; the id itself is not reported as a token.
    pub stop_ids: Vec<u32>,
    /// What text the tokens must form, if it is constrained.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Report the log-probability of every generated token, and of this many of the most likely tokens at its position.
    pub scores: Option<usize>,
    /// Report the log-probabilities of these ids, all below the vocabulary size, instead of those of the most likely
    /// tokens. Needs `scores`; does not apply to the prompt.
    pub score_ids: Vec<u32>,
    /// Also report the log-probabilities of the prompt's tokens, from the second on. This takes the logits of all its
    /// rows, so none of them may come from the prefix cache.
    pub score_prompt: bool,
    /// KV pages are shared only between generations with the same salt.
    pub cache_salt: u128,
    /// Whose it is: flows get equal shares of the engine, by their weights. Changes no output.
    pub flow: Flow,
    /// Among waiting generations of the same flow, those with lower numbers are first. Changes no output.
    pub priority: i64,
}

/// Whose a generation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flow {
    /// Tells flows apart.
    pub id: u64,
    /// The share of the engine that it gets, relative to those of others; more than 0.
    pub weight: f64,
}

impl Flow {
    /// Everybody's. It may fill the queue; another flow leaves room in it for further ones.
    pub const SHARED: Self = Self { id: 0, weight: 1.0 };
}

impl Default for Flow {
    fn default() -> Self {
        Self::SHARED
    }
}

/// How to choose the next token from the logits. All fields are finite and in range.
///
/// Steps apply in this order: what changes the logits, in the order of the fields from `allowed_ids` to
/// `presence_penalty`; then the temperature; then the filters `min_p`, `top_k` and `top_p`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; the logits are divided by it otherwise.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probabilities add up to this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens whose probability is below this fraction of the most likely token's; 0 keeps all.
    pub min_p: f32,
    /// Same seed, same prompt, same settings: same tokens, whatever else runs.
    pub seed: u64,
    /// Only these ids may be chosen; empty allows all.
    pub allowed_ids: Vec<u32>,
    /// The last id of a sequence is not chosen where the other ids directly precede it. No sequence is empty.
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

/// A constraint on the text of a generation: a grammar, as the engine sees one. The engine asks which tokens may come
/// next and then reports the one that was chosen.
pub trait Constraint: Send + fmt::Debug {
    /// How the next token is held. Only where this is [`Turn::Masked`] is [`Self::allowed`] asked.
    fn turn(&self) -> Turn {
        Turn::Masked
    }

    /// The ids that may come next: bit `id % 32` of word `id / 32`. Ids past the end may not. Stop ids are among them
    /// where the text may end. `None` if computing the set would exceed its work limit.
    fn allowed(&mut self) -> Option<&[u32]>;

    /// Whether this id of [`Generation::stop_ids`] ends the text here. Otherwise it is a token like any other.
    fn heeds(&self, _stop: u32) -> bool {
        true
    }

    /// Advances by a token that was allowed. Returns whether the text is complete, so that nothing may follow.
    fn accept(&mut self, token: u32) -> bool;

    /// An independent copy in the same state.
    fn boxed_clone(&self) -> Box<dyn Constraint>;
}

/// How a [`Constraint`] holds one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is one of those that are allowed.
    Masked,
    /// It is whatever the model likes; whether the text may end here.
    Free {
        /// If not, no stop id comes.
        may_end: bool,
    },
    /// It is this one, whatever the logits and all other settings say.
    Forced(u32),
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

/// What the engine reports about one generation, in order. The last event, and only the last, is neither `Score` nor
/// `Token`.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenEvent {
    /// How likely a token is, if scores were requested: first the prompt's tokens from the second on, then each
    /// generated token right before its own event, and a stop id before the end.
    Score(Box<Score>),
    /// A generated token.
    Token(u32),
    /// The generation ended normally.
    Finished(FinishReason),
    /// The constraint exceeded its work limit while computing which tokens may come next.
    Undecided,
    /// The constraint requires another token, and the other settings exclude every token it allows.
    Contradicted,
    /// It ran in the background, and gave way to a generation that does not.
    Displaced,
    /// The engine could not continue (a defect, such as logits that are not finite).
    Failed,
}

/// Log-probabilities at one position of a sequence: of the token there and of the most likely tokens.
///
/// They are the model's own, the log-softmax of its logits, before any temperature, penalty or constraint.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The token at this position, and its log-probability.
    pub token: (u32, f32),
    /// The token's rank by likelihood; 1 is the most likely.
    pub rank: usize,
    /// The requested number of most likely tokens, or the requested ids; most likely first, ties by lower id.
    pub top: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// This id of `stop_ids` was chosen.
    Stop(u32),
    /// The constraint is fulfilled and nothing may follow.
    Complete,
    /// `max_tokens` were generated.
    Length,
}
