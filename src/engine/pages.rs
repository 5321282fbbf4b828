//! Which KV pages are free. Pages are ids only; the memory behind them is the model's.

use crate::model::PAGE_TOKENS;

/// The free pages of the KV cache.
#[derive(Debug)]
pub struct Pages {
    /// The last one is given out first: a page that was just freed is still in the processor's caches, and pages that
    /// were never needed stay untouched, so they cost no resident memory.
    free: Vec<u32>,
}

impl Pages {
    /// All pages of a cache of `count` pages, free.
    pub fn new(count: usize) -> Self {
        let count = u32::try_from(count).expect("page ids fit 32 bits");
        Self {
            free: (0..count).rev().collect(),
        }
    }

    /// How many pages hold `tokens` tokens.
    pub const fn needed(tokens: usize) -> usize {
        tokens.div_ceil(PAGE_TOKENS)
    }

    /// Takes `count` pages, or none if fewer are free.
    pub fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    /// Returns pages that [`Self::take`] gave.
    pub fn give_back(&mut self, pages: Vec<u32>) {
        self.free.extend(pages);
    }

    /// How many pages are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }
}
