//! Granite in the words of its `config.json`: configuration, weights, forward pass, KV cache and the f32 reference.

pub mod config;
pub mod evaluate;
pub mod reference;

pub use config::ModelConfig;

/// Tokens per KV page. One attention tile is one page, so paging costs nothing (64 keys fill four vectors of 16).
pub const PAGE_TOKENS: usize = 64;

/// A run of consecutive tokens of one sequence in a step: a chunk of a prompt, or one decoding token.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The token ids to run; never empty.
    pub tokens: &'a [u32],
    /// The position of `tokens[0]` in its sequence; the KV pages already hold everything before it.
    pub start: usize,
    /// The sequence's KV pages in order; page `i` holds positions `64·i .. 64·(i+1)`. Covers `start + tokens.len()`.
    pub pages: &'a [u32],
    /// Whether the logits after the span's last token are wanted.
    pub wants_logits: bool,
}

/// What the engine needs of a model: one step over spans of any number of sequences.
///
/// The result of a span does not depend, to the bit, on which other spans share the step nor on how its sequence
/// was cut into spans.
pub trait Forward: Send {
    /// Number of logits per row.
    fn vocab_size(&self) -> usize;

    /// The longest sequence, prompt and completion together, that can be run.
    fn context_length(&self) -> usize;

    /// How many KV pages exist; ids in [`Span::pages`] are below this.
    fn page_count(&self) -> usize;

    /// Bytes of one KV page over all layers.
    fn page_bytes(&self) -> usize;

    /// Runs the spans and returns `[spans that want logits][vocab]`, in the spans' order.
    ///
    /// The caller gives no page to two spans unless both only read it.
    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32];
}

/// Bytes of the loaded weights, counted from the tensors as they are in memory.
#[derive(Debug, Clone, Default)]
pub struct WeightMemory {
    /// `(component, dtype, bytes)`, for instance `("mlp", "int8", 1_610_612_736)`.
    pub parts: Vec<(&'static str, &'static str, u64)>,
    /// Values in the checkpoint's tensors, once each: what a float copy would hold.
    pub elements: u64,
}

impl WeightMemory {
    /// Bytes of everything loaded.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|part| part.2).sum()
    }
}
