//! How much one request may ask for. Each limit is a flag of `serve`.

/// Limits on requests; what is beyond is refused by name, never cut down.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes that all requests may hold together: bodies, prompts, and answers that are put together.
    pub memory_bytes: usize,
    /// Prompts in one request.
    pub prompts: usize,
    /// Answers to each prompt (`n`, `best_of`).
    pub choices: usize,
    /// Tokens of each answer (`max_tokens`).
    pub tokens: usize,
    /// Stop strings, and stop ids as well.
    pub stops: usize,
    /// Whether fields that nobody knows are refused; otherwise they are named in `X-Ignored-Params`.
    pub strict: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // More than any context holds as text (131,072 tokens are about half of it), little enough for a thousand
            // connections at once.
            body_bytes: 1 << 20,
            // So many of the longest bodies at once; ordinary ones need none of it.
            memory_bytes: 64 << 20,
            // As many as the default batch holds. More in one body would let one client fill the queue at the price of
            // one request, and two requests do the same work.
            prompts: 16,
            // The same, and as many as anybody ranks or votes over.
            choices: 16,
            // The model's context is the limit.
            tokens: usize::MAX,
            // OpenAI takes four, but common clients send up to fourteen. Each costs a little for every character of the
            // answer.
            stops: 16,
            strict: false,
        }
    }
}
