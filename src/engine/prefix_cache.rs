//! Finds the full KV pages that hold the beginning of a text.
//!
//! A page is keyed by the page before it and its own 64 tokens, so consecutive hits walk down a tree of prompts. The
//! map's hash is keyed at random for each process, so clients cannot construct collisions, and a hit compares the
//! tokens themselves. Keys and values depend on all tokens before them; because the key names the preceding page and
//! not a hash of it, a hit is exact.

use std::collections::HashMap;

use crate::model::PAGE_TOKENS;

/// What precedes a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Predecessor {
    /// Nothing: the page begins a text. Only texts with the same salt share it, and all pages after it.
    Start(u128),
    /// The page with the 64 tokens before it.
    Page(u32),
}

/// The tokens of a page, and what precedes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Block {
    before: Predecessor,
    tokens: [u32; PAGE_TOKENS],
}

/// The pages that can be found. Which of them are held and which may be evicted is decided by [`super::pages`].
#[derive(Debug)]
pub struct PrefixCache {
    found: HashMap<Block, u32>,
    /// The key of each page in `found`.
    blocks: Vec<Option<Block>>,
}

impl PrefixCache {
    /// A cache for pages below `count`.
    pub fn new(count: usize) -> Self {
        Self {
            // Twice the largest number of entries, so that the map never grows, whatever is removed in between.
            found: HashMap::with_capacity(2 * count),
            blocks: vec![None; count],
        }
    }

    /// The pages that hold the longest beginning of `prompt` with this `salt`, in order. Never the last token: its row
    /// has to be computed, because its logits choose the next token.
    pub fn find(&self, prompt: &[u32], salt: u128) -> Vec<u32> {
        let computed = prompt.len().saturating_sub(1);
        let mut pages = Vec::new();
        for &tokens in prompt[..computed].as_chunks().0 {
            let before = pages
                .last()
                .map_or(Predecessor::Start(salt), |&page| Predecessor::Page(page));
            match self.found.get(&Block { before, tokens }) {
                Some(&page) => pages.push(page),
                None => break,
            }
        }
        pages
    }

    /// Makes `page` findable by its `tokens` after `before`, or returns the page that already has this key.
    pub fn insert(
        &mut self,
        page: u32,
        before: Predecessor,
        tokens: [u32; PAGE_TOKENS],
    ) -> Option<u32> {
        let block = Block { before, tokens };
        if let Some(&other) = self.found.get(&block) {
            return Some(other);
        }
        self.found.insert(block, page);
        self.blocks[page as usize] = Some(block);
        None
    }

    /// Removes a page. Pages inserted behind it must have been removed before.
    pub fn remove(&mut self, page: u32) {
        if let Some(block) = self.blocks[page as usize].take() {
            self.found.remove(&block);
        }
    }

    /// Whether a page can be found.
    pub fn contains(&self, page: u32) -> bool {
        self.blocks[page as usize].is_some()
    }

    /// How many pages can be found.
    pub fn count(&self) -> usize {
        self.found.len()
    }
}
