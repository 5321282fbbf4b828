//! The cache of grammars that have been compiled or refused.

use sha2::{Digest, Sha256};

use super::Grammar;

/// The most entries. Clients send the same few schemas with every request.
const MAX_ENTRIES: usize = 64;
/// The most memory of all entries, as measured when they were compiled.
const MAX_BYTES: u64 = 32 << 20;
/// The least memory that is counted for an entry, for its key and the text of a refusal.
const LEAST_BYTES: u64 = 4 << 10;

/// A digest that identifies a grammar by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    pub fn of(grammar: &Grammar) -> Self {
        let text = serde_json::to_vec(grammar).expect("texts are always JSON");
        Self(Sha256::digest(text).into())
    }
}

/// The most recently used results.
pub struct Cache<T> {
    /// In order of use, the most recently used last.
    entries: Vec<(Key, T, u64)>,
}

impl<T: Clone> Cache<T> {
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    pub fn get(&mut self, key: Key) -> Option<T> {
        let at = self.entries.iter().position(|entry| entry.0 == key)?;
        let entry = self.entries.remove(at);
        let found = entry.1.clone();
        self.entries.push(entry);
        Some(found)
    }

    /// Keeps a result of `bytes` bytes. Evicts the least recently used ones to make room, and returns them.
    pub fn insert(&mut self, key: Key, value: T, bytes: u64) -> Vec<T> {
        let same = self.entries.extract_if(.., |entry| entry.0 == key);
        let mut replaced: Vec<T> = same.map(|entry| entry.1).collect();
        self.entries.push((key, value, bytes.max(LEAST_BYTES)));
        let held = |entries: &[(Key, T, u64)]| entries.iter().map(|entry| entry.2).sum::<u64>();
        while self.entries.len() > MAX_ENTRIES || held(&self.entries) > MAX_BYTES {
            replaced.push(self.entries.remove(0).1);
        }
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        Key::of(&Grammar::Regex(number.to_string()))
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = Cache::new();
        for number in 0..MAX_ENTRIES as u32 {
            cache.insert(key(number), number, 0);
        }
        assert_eq!(cache.get(key(0)), Some(0));
        cache.insert(key(1000), 1000, 0);
        assert_eq!(cache.get(key(0)), Some(0));
        assert_eq!(cache.get(key(1)), None);
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_too() {
        let mut cache = Cache::new();
        cache.insert(key(0), 0, MAX_BYTES / 2);
        cache.insert(key(1), 1, MAX_BYTES / 2);
        cache.insert(key(2), 2, MAX_BYTES / 2);
        assert_eq!((cache.get(key(0)), cache.get(key(2))), (None, Some(2)));
        cache.insert(key(3), 3, MAX_BYTES + 1);
        assert_eq!(cache.get(key(3)), None, "too large to keep");
    }
}
