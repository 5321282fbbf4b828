//! Limits on requests. Each limit is a flag of `serve`.

/// Limits on requests. A value beyond its limit is refused with an error that names the field; it is never reduced.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes that all requests may hold together: bodies, prompts, and answers that are collected into one body.
    pub memory_bytes: usize,
    /// Prompts in one request.
    pub prompts: usize,
    /// Answers to each prompt (`n`, `best_of`).
    pub choices: usize,
    /// Tokens of each answer (`max_tokens`).
    pub tokens: usize,
    /// Stop strings. The number of stop ids is limited in proportion.
    pub stops: usize,
    /// Whether unknown fields are refused; otherwise they are named in `X-Ignored-Params`.
    pub strict: bool,
    /// Whether responses have a `receipt`: what the request took.
    pub receipts: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // More than the text of any context (131,072 tokens take about half of it), but little enough for a
            // thousand connections at once.
            body_bytes: 1 << 20,
            // Enough for 64 of the longest bodies at once; ordinary bodies need none of it.
            memory_bytes: 64 << 20,
            // The slots of the default batch. With more, a client could fill the queue with a single request; two
            // requests do the same work.
            prompts: 16,
            // The slots of the default batch, and enough for ranking or voting over the answers.
            choices: 16,
            // Only the model's context limits the answer.
            tokens: usize::MAX,
            // OpenAI accepts 4, but common clients send up to 14. Each takes a little time for every character of the
            // answer.
            stops: 16,
            strict: false,
            receipts: false,
        }
    }
}
