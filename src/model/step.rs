//! The data that all phases of a step share.

use std::ops::Range;

use super::config::ModelConfig;
use super::forward::Span;

/// The span and position of a row of a step.
#[derive(Clone, Copy)]
pub struct Row {
    /// Index of its span.
    pub span: usize,
    /// Position in its sequence.
    pub position: usize,
}

/// The data of a step that does not change while it runs.
pub struct Step<'a> {
    pub config: &'a ModelConfig,
    pub spans: &'a [Span<'a>],
    pub rows: &'a [Row],
    /// Cosines and sines of each row's position, `[rows][head_dim]` of [`super::rotary::Rotary::fill`]; `None` if
    /// attention knows no positions.
    pub rotary: Option<&'a [f32]>,
}

impl<'a> Step<'a> {
    /// The spans, each with its rows of the step.
    pub fn spans_and_rows(&self) -> impl Iterator<Item = (&'a Span<'a>, Range<usize>)> {
        self.spans.iter().scan(0, |end, span| {
            let first = *end;
            *end += span.tokens.len();
            Some((span, first..*end))
        })
    }
}
