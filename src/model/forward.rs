//! The interface between the engine and a model.

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
    /// The index of the sequence's state outside its pages. No other sequence has the same slot while this one runs,
    /// slots are below the number of sequences that the engine runs at once, and spans of one sequence have the same
    /// slot.
    pub slot: u32,
    /// How many of the first tokens are certain, or more than there are. Those behind them are drafts, which may be refused: they leave no trace
    /// in the slot, and the sequence goes on behind the certain ones. Only a model with a state in its slots cares.
    pub certain: usize,
    /// The snapshot that the span goes on from in place of its slot; it was taken at `start`, behind the same tokens.
    pub restore: Option<u32>,
    /// The snapshots to take, in ascending order of rows.
    pub saves: &'a [Save],
    /// How many of the span's last tokens need the logits that follow them: 0 in the middle of a prompt, 1 to choose
    /// the next token, more to check drafts or to score a prompt. At most `tokens.len()`.
    pub logit_rows: usize,
}

/// A snapshot to take of the state of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Save {
    /// Behind how many of the span's certain tokens; at least 1.
    pub rows: usize,
    /// Where it is kept; below the number of [`Rewind::Snapshots`].
    pub snapshot: u32,
}

/// Whether a model can return to an earlier position of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewind {
    /// It can return to every position, because everything that a sequence leaves behind is in its pages, position by
    /// position. Rows after any position may be run again with other tokens, and a sequence may begin after full pages
    /// that another sequence has filled.
    Free,
    /// It can only return to the beginning and to so many snapshots, because the sequence's slot holds a state that each
    /// row changes. Every position is run once, in order, except for those behind a snapshot that is restored and for
    /// drafts. A span that starts at 0 begins with a fresh state, whatever the slot holds.
    Snapshots(usize),
}

/// What the engine needs from a model: one step over spans of any number of sequences.
///
/// The result of a span is the same to the bit, whichever other spans share the step and however its sequence is cut
/// into spans.
pub trait Forward: Send {
    /// Number of logits per row.
    fn vocab_size(&self) -> usize;

    /// The longest sequence, prompt and completion together, that can be run.
    fn context_length(&self) -> usize;

    /// How many KV pages exist; ids in [`Span::pages`] are below this.
    fn page_count(&self) -> usize;

    /// Bytes of one KV page over all layers.
    fn page_bytes(&self) -> usize;

    /// Bytes of the state of one sequence outside its pages, over all layers; 0 if there is none. The model has reserved one
    /// for every [`Span::slot`].
    fn state_bytes(&self) -> usize {
        0
    }

    /// Bytes of the buffers that steps have needed so far.
    fn buffer_bytes(&self) -> usize {
        0
    }

    /// Bytes of weights and states that the last step read, if it had spans of so many sequences.
    fn bytes_read(&self, sequences: usize) -> u64 {
        let _ = sequences;
        0
    }

    /// Whether the model can return to earlier positions.
    fn rewind(&self) -> Rewind;

    /// Runs the spans and returns `[Σ logit_rows][vocab]`, in the order of spans and of their tokens.
    ///
    /// Spans of one sequence may share a step if each starts where the one before ends. Sequences may share a page only
    /// if they just read it.
    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32];

    /// As [`Self::forward`], but may give up in the middle of the step when `is_wanted` is false. Then there are no logits,
    /// and the positions and slots of all spans hold nothing that can be read.
    fn forward_while(
        &mut self,
        spans: &[Span<'_>],
        is_wanted: &dyn Fn() -> bool,
    ) -> Option<&[f32]> {
        let _never_gives_up = is_wanted;
        Some(self.forward(spans))
    }
}
