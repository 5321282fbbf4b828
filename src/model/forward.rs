//! What the engine needs of a model.

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
    /// Where the sequence's state lies beside its pages: a number that no other sequence has while it runs, below the
    /// number of sequences that the engine runs at once. Spans of one sequence have the same.
    pub slot: u32,
    /// How many of the span's last tokens want the logits that follow them: 0 in the middle of a prompt, 1 to choose the
    /// next token, more to check guessed tokens or to score a prompt. At most `tokens.len()`.
    pub logit_rows: usize,
}

/// Whether a model can go back to a position of a sequence that it has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewind {
    /// To every one: all that a sequence leaves behind lies in its pages, position by position. Rows behind any position
    /// may be run again with other tokens, and a sequence may begin behind full pages that another one has filled.
    Free,
    /// To none but the beginning, since a state of the sequence goes with it from row to row, in its slot. Every position
    /// is run once, in order; a span that starts at 0 begins anew, whatever the slot holds.
    Never,
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

    /// Whether the model can go back.
    fn rewind(&self) -> Rewind;

    /// Runs the spans and returns `[Σ logit_rows][vocab]`, in the order of spans and of their tokens.
    ///
    /// Spans of one sequence may share a step if each starts where the one before ends; pages are shared by sequences
    /// only where both do no more than read them.
    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32];
}
