//! Which snapshots of states there are, and at the end of which page each was taken. Snapshots are only ids here; their
//! memory belongs to the model.
//!
//! A sequence can begin behind the pages of another one only where a snapshot was taken at the end of the last of them.
//! Snapshots are few and large, so the least recently used one gives way to a new one.

use std::collections::HashMap;

/// The snapshots of a model.
#[derive(Debug, Default)]
pub struct Snapshots {
    all: Vec<Snapshot>,
    /// The snapshot taken at the end of each page, if there is one.
    of_page: HashMap<u32, u32>,
    /// Counts uses.
    uses: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Snapshot {
    content: Content,
    /// Sequences that will begin with it.
    holders: u32,
    /// The value of [`Snapshots::uses`] when it was last used.
    used: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Content {
    #[default]
    Nothing,
    /// Taken in the step that is planned.
    Coming,
    /// The state at the end of this page.
    Page(u32),
}

impl Snapshots {
    /// `count` snapshots without content.
    pub fn new(count: usize) -> Self {
        Self {
            all: vec![Snapshot::default(); count],
            // Every entry that there can be, so that the map never grows.
            of_page: HashMap::with_capacity(2 * count),
            uses: 0,
        }
    }

    /// How many hold a state.
    pub fn kept(&self) -> usize {
        self.of_page.len()
    }

    /// The snapshot at the end of `page`.
    pub fn at(&self, page: u32) -> Option<u32> {
        self.of_page.get(&page).copied()
    }

    /// Holds a snapshot until it is released: it is not given away meanwhile.
    pub fn hold(&mut self, snapshot: u32) {
        self.uses += 1;
        let one = &mut self.all[snapshot as usize];
        one.holders += 1;
        one.used = self.uses;
    }

    /// Releases a snapshot that was held.
    pub fn release(&mut self, snapshot: u32) {
        self.all[snapshot as usize].holders -= 1;
    }

    /// A snapshot to write in the planned step: one without content, or the least recently used that nobody holds.
    pub fn take(&mut self) -> Option<u32> {
        let is_idle = |one: &&Snapshot| one.holders == 0 && one.content != Content::Coming;
        let order = |one: &Snapshot| (one.content != Content::Nothing, one.used);
        let idle = self.all.iter().filter(is_idle).map(order).min()?;
        let is_it = |one: &Snapshot| {
            one.holders == 0 && one.content != Content::Coming && order(one) == idle
        };
        let index = self.all.iter().position(is_it)?;
        self.forget(index as u32);
        self.all[index].content = Content::Coming;
        Some(index as u32)
    }

    /// Records that a snapshot that was taken has been written, at the end of `page`. If `page` has one already, the new
    /// one is not needed: then this returns false.
    pub fn record(&mut self, snapshot: u32, page: u32) -> bool {
        self.uses += 1;
        let one = &mut self.all[snapshot as usize];
        one.used = self.uses;
        if self.of_page.contains_key(&page) {
            one.content = Content::Nothing;
            return false;
        }
        one.content = Content::Page(page);
        self.of_page.insert(page, snapshot);
        true
    }

    /// Drops the content of a snapshot unless it is held.
    pub fn forget(&mut self, snapshot: u32) {
        let one = &mut self.all[snapshot as usize];
        if one.holders > 0 {
            return;
        }
        if let Content::Page(page) = std::mem::take(&mut one.content) {
            self.of_page.remove(&page);
        }
    }

    /// Drops the snapshot at the end of `page`, unless it is held.
    pub fn evict(&mut self, page: u32) {
        if let Some(snapshot) = self.at(page) {
            self.forget(snapshot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_that_nobody_holds_gives_way() {
        let mut snapshots = Snapshots::new(2);
        let [first, second] = [10, 20].map(|page| {
            let snapshot = snapshots.take().expect("a free one");
            snapshots.record(snapshot, page);
            snapshot
        });
        assert_eq!(
            (snapshots.at(10), snapshots.at(20)),
            (Some(first), Some(second))
        );
        snapshots.hold(first);
        assert_eq!(snapshots.take(), Some(second), "the other one is held");
        assert_eq!(snapshots.at(20), None);
        assert_eq!(snapshots.take(), None, "one is held, one is being written");
        snapshots.record(second, 30);
        snapshots.release(first);
        assert_eq!(snapshots.take(), Some(first), "used before the other one");
        assert_eq!((snapshots.at(10), snapshots.at(30)), (None, Some(second)));
        snapshots.record(first, 30);
        assert_eq!(snapshots.at(30), Some(second), "a page has one snapshot");
        assert_eq!(snapshots.of_page.len(), 1);
        snapshots.evict(30);
        assert_eq!((snapshots.at(30), snapshots.of_page.len()), (None, 0));
    }
}
