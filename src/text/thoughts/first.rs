//! A thought that ends in time, and then what the answer must be: a constraint on the tokens of a generation.

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
    /// What begins a thought, where that is one token.
    open: Option<u32>,
    /// What ends it: one token, or those of its text where the model has none for it.
    close: Vec<u32>,
    /// A line feed.
    line: Vec<u32>,
    /// What stands between a thought and its answer.
    margin: Vec<u32>,
    /// Ids of tags, which are text in an answer also where the tokenizer calls them special.
    tags: Vec<u32>,
}

impl ThoughtTokens {
    /// Those of `form`, found by their texts.
    ///
    /// # Errors
    /// When the tokenizer has no ids for them.
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

    /// Tokens that have to show in an answer for its thought to be found.
    pub fn tags(&self) -> &[u32] {
        &self.tags
    }

    /// Whether the answer to a prompt behind which `splitter` stands may have a thought before what is held to a
    /// grammar: it does if the prompt has begun one, or if one token can.
    pub const fn may_think(&self, splitter: &Splitter) -> bool {
        match splitter.phase() {
            Phase::Thought => true,
            Phase::Undecided => self.open.is_some(),
            Phase::Answer => false,
        }
    }
}

/// How long a thought may be and what follows it.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// Tokens of the thought, what ends it excepted.
    pub budget: Option<usize>,
    /// What is written behind it: the beginning of a call that is forced.
    pub opener: Vec<u32>,
}

/// A thought within bounds, then an answer that an inner constraint may hold.
///
/// The thought is the model's own: any token may come, until the budget is used up and its end is written for it.
pub struct ThoughtFirst {
    tokens: Arc<ThoughtTokens>,
    decoder: Decoder,
    splitter: Splitter,
    phase: Phase,
    /// Tokens of the thought so far.
    count: usize,
    /// Whether the thought is at the beginning of a line.
    at_line: bool,
    bounds: Bounds,
    /// Tokens that come next, whatever the model would like.
    forced: VecDeque<u32>,
    inner: Option<Box<dyn Constraint>>,
    /// What `allowed` last said.
    mask: Vec<u32>,
}

impl ThoughtFirst {
    /// For an answer behind a prompt, where `splitter` stands.
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

    /// Ends the thought if there is room for nothing else in its budget: what ends it stands on a line of its own.
    fn check_budget(&mut self) {
        let Some(budget) = self.bounds.budget else {
            return;
        };
        let is_thought = self.phase == Phase::Thought && self.forced.is_empty();
        // The last token of the end is no part of the thought.
        let end = self.tokens.line.len() + self.tokens.close.len().saturating_sub(1);
        if is_thought && self.count + end >= budget {
            if !self.at_line {
                self.forced.extend(&self.tokens.line);
            }
            self.forced.extend(&self.tokens.close);
        }
    }

    /// Takes a token that comes before the answer.
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
            // The rest of what would have ended the thought.
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
        // A thought may begin here, or the answer.
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
