//! Which full KV pages hold which beginning of a text.
//!
//! A page is found by the page before it and its own 64 tokens, so a run of hits is a walk down a tree of prompts. The
//! map's hash is keyed at random for each process, so nobody can make prompts collide, and a hit compares the tokens
//! themselves. Keys and values depend on all tokens before them: that the walk goes through pages, not through hashes
//! of them, is what makes a hit exact.

use std::collections::HashMap;

use crate::model::PAGE_TOKENS;

/// What a page comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Before {
    /// Nothing: it is the beginning of a text. Only texts with the same salt share it, and all that follows it.
    Start(u128),
    /// The page with the 64 tokens before.
    Page(u32),
}

/// What a page holds, and after what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Block {
    before: Before,
    tokens: [u32; PAGE_TOKENS],
}

/// The pages that can be found. Which of them are held, and which may be forgotten, is up to [`super::pages`].
#[derive(Debug)]
pub struct PrefixCache {
    found: HashMap<Block, u32>,
    /// What each page is found by.
    blocks: Vec<Option<Block>>,
}

impl PrefixCache {
    /// A cache for pages below `count`.
    pub fn new(count: usize) -> Self {
        Self {
            // Room for twice as many entries as there can be: then the map never grows, whatever is forgotten in between.
            found: HashMap::with_capacity(2 * count),
            blocks: vec![None; count],
        }
    }

    /// The pages that hold the beginning of `prompt` with this `salt`, longest run first to last. The last token is left out, since
    /// somebody has to compute what follows it.
    pub fn find(&self, prompt: &[u32], salt: u128) -> Vec<u32> {
        let computed = prompt.len().saturating_sub(1);
        let mut pages = Vec::new();
        for &tokens in prompt[..computed].as_chunks().0 {
            let before = pages
                .last()
                .map_or(Before::Start(salt), |&page| Before::Page(page));
            match self.found.get(&Block { before, tokens }) {
                Some(&page) => pages.push(page),
                None => break,
            }
        }
        pages
    }

    /// Makes `page` findable by its `tokens` after `before`, or returns the page that is found so already.
    pub fn insert(&mut self, page: u32, before: Before, tokens: [u32; PAGE_TOKENS]) -> Option<u32> {
        let block = Block { before, tokens };
        if let Some(&other) = self.found.get(&block) {
            return Some(other);
        }
        self.found.insert(block, page);
        self.blocks[page as usize] = Some(block);
        None
    }

    /// Forgets a page, to be called after all that were inserted behind it are forgotten.
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
