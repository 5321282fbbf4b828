//! All that crosses the thread boundary: a [`Generation`] goes in, [`TokenEvent`]s come out. Only token ids, no text.

/// One checked request for tokens.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The prompt's ids; never empty, all below the vocabulary size.
    pub prompt: Vec<u32>,
    /// How many tokens to generate at most; `prompt.len() + max_tokens` fits the context.
    pub max_tokens: usize,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Ids that end the generation; the id itself is not reported as a token.
    pub stop_ids: Vec<u32>,
}

/// How to choose the next token from the logits. All fields are finite and in range.
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
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

/// What the engine reports about one generation, in order; the last event is `Finished` or `Failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenEvent {
    /// A generated token.
    Token(u32),
    /// The generation ended as it should.
    Finished(FinishReason),
    /// The engine could not go on (a defect, such as logits that are not finite).
    Failed,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An id of `stop_ids` came up.
    Stop,
    /// `max_tokens` were generated.
    Length,
}
