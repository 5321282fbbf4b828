//! A constraint on the tokens of a generation: first a thought of limited length, then an answer that may be
//! constrained.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::Arc;

use super::{Form, Margin, Phase, Splitter};
use crate::engine::{Constraint, Turn};
use crate::text::tokenizer::EncodeError;
use crate::text::{Decoder, Tokenizer};

/// The tokens with which a model marks its thoughts.
pub struct ThoughtTokens {
    tokenizer: Arc<Tokenizer>,
    /// The token that opens a thought, if the model has a single token for it.
    open: Option<u32>,
    /// The tokens that close a thought: a single token if the model has one, otherwise those of the text.
    close: Vec<u32>,
    /// The tokens of a line feed.
    line: Vec<u32>,
    /// The tokens between a thought and its answer.
    margin: Vec<u32>,
    /// Ids of the tags. They count as text of an answer even if the tokenizer marks them as special.
    tags: Vec<u32>,
}

impl ThoughtTokens {
    /// Finds the tokens of `form` by their texts.
    ///
    /// # Errors
    /// When the tokenizer has no ids for these texts.
    pub fn new(form: &Form, tokenizer: Arc<Tokenizer>) -> Result<Self, EncodeError> {
        let added = tokenizer.added_tokens();
        let token = |text: &str| added.iter().find(|token| token.text == text);
        let token = |text: &str| token(text).map(|token| token.id);
        let close = match token(form.close()) {
            Some(id) => vec![id],
            None => tokenizer.encode_text(form.close())?,
        };
        let marks = form.opens.iter().chain(form.closes);
        let line = tokenizer.encode_text("\n")?;
        Ok(Self {
            open: token(form.open()),
            close,
            margin: match form.margin {
                Margin::Lines => line.clone(),
                Margin::None | Margin::Tags(..) => Vec::new(),
            },
            line,
            tags: marks.filter_map(|mark| token(mark)).collect(),
            tokenizer,
        })
    }

    /// Tokens that must be written to the text of an answer so that its thought can be recognised.
    pub fn tags(&self) -> &[u32] {
        &self.tags
    }

    /// Whether a thought may precede a constrained answer; `splitter` has the state at the end of the prompt. A thought
    /// is possible if the prompt has opened one, or if a single token can open one.
    pub const fn may_think(&self, splitter: &Splitter) -> bool {
        match splitter.phase() {
            Phase::Thought => true,
            Phase::Undecided => self.open.is_some(),
            Phase::Answer => false,
        }
    }
}

/// The limit on a thought, and what follows it.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// The most tokens of the thought, not counting those that close it.
    pub budget: Option<usize>,
    /// Tokens that are inserted after the thought: the start of a forced call.
    pub opener: Vec<u32>,
    /// Stop ids that end the answer, but not the thought.
    pub stops: Vec<u32>,
}

impl Bounds {
    /// Whether nothing needs to be done about a thought before an unconstrained answer.
    pub const fn are_empty(&self) -> bool {
        self.budget.is_none() && self.stops.is_empty()
    }
}

/// A thought of limited length, followed by an answer that an inner constraint may restrict.
///
/// Within the thought any token may be chosen, until the budget is used up; then the closing tag is forced.
pub struct ThoughtFirst {
    tokens: Arc<ThoughtTokens>,
    decoder: Decoder,
    splitter: Splitter,
    phase: Phase,
    /// Number of tokens of the thought so far.
    count: usize,
    /// Whether the text of the thought so far ends at the beginning of a line.
    at_line: bool,
    bounds: Bounds,
    /// The next tokens, which replace the model's choice.
    forced: VecDeque<u32>,
    inner: Option<Box<dyn Constraint>>,
    /// The mask that `allowed` returned last.
    mask: Vec<u32>,
}

impl ThoughtFirst {
    /// Creates the constraint for an answer; `splitter` has the state at the end of the prompt.
    pub fn new(
        tokens: Arc<ThoughtTokens>,
        splitter: Splitter,
        bounds: Bounds,
        inner: Option<Box<dyn Constraint>>,
    ) -> Self {
        let mut this = Self {
            decoder: Decoder::new(Arc::clone(&tokens.tokenizer)),
            phase: splitter.phase(),
            splitter,
            count: 0,
            at_line: true,
            bounds,
            forced: VecDeque::new(),
            inner,
            mask: Vec::new(),
            tokens,
        };
        this.check_budget();
        this
    }

    /// Forces the end of the thought when the budget has no room for more than that. The closing tag is on a line of
    /// its own.
    fn check_budget(&mut self) {
        let Some(budget) = self.bounds.budget else {
            return;
        };
        let is_thought = self.phase == Phase::Thought && self.forced.is_empty();
        // The last token of the closing tag does not count as part of the thought.
        let end = self.tokens.line.len() + self.tokens.close.len().saturating_sub(1);
        if is_thought && self.count + end >= budget {
            if !self.at_line {
                self.forced.extend(&self.tokens.line);
            }
            self.forced.extend(&self.tokens.close);
        }
    }

    /// Processes a token before the answer.
    fn think(&mut self, token: u32) {
        let text = match self.tokens.tags.contains(&token) {
            true => self.decoder.push_literally(token),
            false => self.decoder.push(token),
        };
        self.splitter.push(&text);
        let before = mem::replace(&mut self.phase, self.splitter.phase());
        if before == Phase::Thought && self.phase == Phase::Thought {
            self.count += 1;
        }
        if !text.is_empty() {
            let has_begun = before != Phase::Thought;
            self.at_line = has_begun || text.ends_with('\n');
        }
        if before == Phase::Thought && self.phase == Phase::Answer {
            // The thought has ended, so the forced tokens of its closing tag that remain are dropped.
            self.forced.clear();
            if self.inner.is_some() {
                self.forced.extend(&self.tokens.margin);
            }
            self.forced.extend(&self.bounds.opener);
        }
        self.check_budget();
    }
}

impl Constraint for ThoughtFirst {
    fn turn(&self) -> Turn {
        match (self.forced.front(), self.phase, &self.inner) {
            (Some(&token), ..) => Turn::Forced(token),
            (None, Phase::Thought, inner) => Turn::Free {
                may_end: inner.is_none(),
            },
            (None, _, None) => Turn::Free { may_end: true },
            (None, _, Some(_)) => Turn::Masked,
        }
    }

    fn heeds(&self, stop: u32) -> bool {
        self.phase != Phase::Thought || !self.bounds.stops.contains(&stop)
    }

    fn allowed(&mut self) -> Option<&[u32]> {
        let Some(inner) = &mut self.inner else {
            return Some(&[]);
        };
        let allowed = inner.allowed()?;
        let open = match self.phase {
            Phase::Undecided => self.tokens.open,
            _ => None,
        };
        let Some(open) = open else {
            return Some(allowed);
        };
        // Either a thought or the answer may begin here.
        self.mask.clear();
        self.mask.extend_from_slice(allowed);
        let word = open as usize / 32;
        if self.mask.len() <= word {
            self.mask.resize(word + 1, 0);
        }
        self.mask[word] |= 1 << (open % 32);
        Some(&self.mask)
    }

    fn accept(&mut self, token: u32) -> bool {
        let is_forced = self.forced.pop_front().is_some();
        match (self.phase, &mut self.inner) {
            (Phase::Answer, _) if is_forced => false,
            (Phase::Answer, None) => false,
            (Phase::Answer, Some(inner)) => inner.accept(token),
            (Phase::Undecided, Some(inner)) if self.tokens.open != Some(token) => {
                self.phase = Phase::Answer;
                inner.accept(token)
            }
            _ => {
                self.think(token);
                false
            }
        }
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(Self {
            tokens: Arc::clone(&self.tokens),
            decoder: self.decoder.clone(),
            splitter: self.splitter.clone(),
            phase: self.phase,
            count: self.count,
            at_line: self.at_line,
            bounds: self.bounds.clone(),
            forced: self.forced.clone(),
            inner: self.inner.clone(),
            mask: Vec::new(),
        })
    }
}

impl fmt::Debug for ThoughtFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThoughtFirst")
            .field("phase", &self.phase)
            .field("count", &self.count)
            .field("bounds", &self.bounds)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
