//! Which sequence holds which KV page, and which pages are free. Pages are only ids here; their memory belongs to the
//! model.
//!
//! With prefix caching, a full page is *published*: other sequences with the same text hold it too, and read but never
//! write it. When no sequence holds it any more it counts as free, but keeps its content until it is evicted, least
//! recently used first.

use super::prefix_cache::{Predecessor, PrefixCache};
use super::snapshots::Snapshots;
use crate::model::PAGE_TOKENS;

/// The pages of the KV cache.
#[derive(Debug)]
pub struct Pages {
    /// Free pages without content. The last one is given out first: a page that was just freed is still in the
    /// processor's caches, and pages that were never used stay untouched, so they cost no resident memory.
    blank: Vec<u32>,
    pages: Vec<Page>,
    /// `None` if pages are never published.
    cache: Option<PrefixCache>,
    /// The snapshots at the ends of published pages, if the model needs them to go back.
    snapshots: Option<Snapshots>,
    /// Published pages that no sequence holds.
    cached: usize,
    /// Counts releases.
    releases: u64,
    /// Published pages that were evicted.
    evicted: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Page {
    /// How many sequences hold it.
    holders: u32,
    /// The value of [`Pages::releases`] when the last holder released it.
    released: u64,
}

/// The beginning of a prompt that was computed before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its pages, in order.
    pub pages: Vec<u32>,
    /// The snapshot at their end, if the model needs one to go on from there.
    pub snapshot: Option<u32>,
    /// If more pages hold the beginning, but no snapshot was taken at their end: how many they are. A snapshot there
    /// serves the next prompt that begins alike.
    pub parting: Option<usize>,
}

impl Pages {
    /// All pages of a cache of `count` pages, free and blank; `prefix_cache` says whether pages are published, and
    /// `snapshots` how many snapshots there are if a sequence can begin only behind one.
    pub fn new(count: usize, prefix_cache: bool, snapshots: Option<usize>) -> Self {
        let end = u32::try_from(count).expect("page ids fit 32 bits");
        Self {
            blank: (0..end).rev().collect(),
            pages: vec![Page::default(); count],
            cache: prefix_cache.then(|| PrefixCache::new(count)),
            snapshots: snapshots.map(Snapshots::new),
            cached: 0,
            releases: 0,
            evicted: 0,
        }
    }

    /// How many snapshots hold a state.
    pub fn snapshots(&self) -> usize {
        self.snapshots.as_ref().map_or(0, Snapshots::kept)
    }

    /// How many pages `tokens` tokens need.
    pub const fn needed(tokens: usize) -> usize {
        tokens.div_ceil(PAGE_TOKENS)
    }

    /// Published pages that hold the beginning of `prompt`, in order; never its last token. This does not hold them.
    pub fn find(&self, prompt: &[u32], salt: u128) -> Found {
        let find = |cache: &PrefixCache| cache.find(prompt, salt);
        let mut pages = self.cache.as_ref().map(find).unwrap_or_default();
        let (mut snapshot, mut parting) = (None, None);
        if let Some(snapshots) = &self.snapshots {
            let run = pages.len();
            while let Some(last) = pages.last() {
                snapshot = snapshots.at(*last);
                if snapshot.is_some() {
                    break;
                }
                pages.pop();
            }
            parting = (pages.len() < run).then_some(run);
        }
        Found {
            pages,
            snapshot,
            parting,
        }
    }

    /// The snapshots, if the model needs them to go back and pages are published.
    pub(crate) const fn snapshots_mut(&mut self) -> Option<&mut Snapshots> {
        self.snapshots.as_mut()
    }

    /// How many free pages it takes to hold the pages `found` and enough others to make `count`.
    pub fn cost(&self, found: &[u32], count: usize) -> usize {
        let is_free = |&&page: &&u32| self.pages[page as usize].holders == 0;
        count.saturating_sub(found.len()) + found.iter().filter(is_free).count()
    }

    /// Holds the pages `found` and enough blank ones to make `count`, in this order; `None` if too few are free.
    pub fn take(&mut self, found: &[u32], count: usize) -> Option<Vec<u32>> {
        if self.cost(found, count) > self.free() {
            return None;
        }
        let mut taken = Vec::with_capacity(count);
        // First, so that they are not evicted to make room for the others.
        self.share(found);
        taken.extend(found);
        self.extend(&mut taken, count - found.len());
        Some(taken)
    }

    /// Takes `count` pages and appends them to `pages`. The caller has made sure that as many are free.
    pub fn extend(&mut self, pages: &mut Vec<u32>, count: usize) {
        self.evict(count.saturating_sub(self.blank.len()));
        for page in self.blank.drain(self.blank.len() - count..).rev() {
            self.pages[page as usize].holders = 1;
            pages.push(page);
        }
    }

    /// Holds the published pages `found`.
    pub fn share(&mut self, found: &[u32]) {
        found.iter().for_each(|&page| self.hold(page));
    }

    /// Publishes page `index` of a sequence's `pages`, which holds `tokens`, for sequences with the same `salt`. All
    /// pages before it are already published.
    ///
    /// If another sequence has published the same text before, its page replaces this one, which becomes free.
    pub(crate) fn publish(
        &mut self,
        pages: &mut [u32],
        index: usize,
        tokens: [u32; PAGE_TOKENS],
        salt: u128,
    ) {
        let page = pages[index];
        let before = match index.checked_sub(1) {
            None => Predecessor::Start(salt),
            Some(before) => Predecessor::Page(pages[before]),
        };
        let Some(cache) = &mut self.cache else {
            return;
        };
        if let Some(other) = cache.insert(page, before, tokens) {
            self.hold(other);
            self.release(page);
            pages[index] = other;
        }
    }

    /// Releases the pages of a sequence, given in order.
    ///
    /// They are released from last to first, so that a page is evicted before the pages it follows. A sequence that
    /// holds a page also holds all before it, so this is true of shared pages too.
    pub(crate) fn give_back(&mut self, pages: &[u32]) {
        pages.iter().rev().for_each(|&page| self.release(page));
    }

    fn hold(&mut self, page: u32) {
        let holders = &mut self.pages[page as usize].holders;
        self.cached -= usize::from(*holders == 0);
        *holders += 1;
    }

    fn release(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        state.holders -= 1;
        if state.holders > 0 {
            return;
        }
        self.releases += 1;
        state.released = self.releases;
        if self
            .cache
            .as_ref()
            .is_some_and(|cache| cache.contains(page))
        {
            self.cached += 1;
        } else {
            self.blank.push(page);
        }
    }

    /// Makes the `count` least recently used of the cached pages blank.
    fn evict(&mut self, count: usize) {
        let Some(cache) = &mut self.cache else {
            return;
        };
        let Some(last) = count.checked_sub(1) else {
            return;
        };
        // This scans all pages, but only when one is taken from a full cache: some microseconds for thousands of pages.
        let is_idle = |&page: &u32| self.pages[page as usize].holders == 0 && cache.contains(page);
        let mut idle: Vec<u32> = (0..self.pages.len() as u32).filter(is_idle).collect();
        idle.select_nth_unstable_by_key(last, |&page| self.pages[page as usize].released);
        for &page in &idle[..count] {
            cache.remove(page);
            if let Some(snapshots) = &mut self.snapshots {
                snapshots.evict(page);
            }
            self.blank.push(page);
        }
        self.cached -= count;
        self.evicted += count as u64;
    }

    /// All pages.
    pub const fn count(&self) -> usize {
        self.pages.len()
    }

    /// Pages that no sequence holds, blank or cached.
    pub fn free(&self) -> usize {
        self.blank.len() + self.cached
    }

    /// Pages that no sequence holds, but whose content can still be found.
    pub const fn cached(&self) -> usize {
        self.cached
    }

    /// Published pages that at least one sequence holds.
    pub fn shared(&self) -> usize {
        self.cache.as_ref().map_or(0, PrefixCache::count) - self.cached
    }

    /// How many cached pages were evicted so far.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Whether pages are published.
    pub(crate) const fn publishes(&self) -> bool {
        self.cache.is_some()
    }
}
