//! The units that each thread has left in a phase: who has finished its own takes from the others.
//!
//! Cores are not equally fast: they share memory and caches with each other and with other programs, and some units take
//! longer than others. All threads wait for the last one, so what it has left is worth taking.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// The units that each thread has left.
pub(super) struct Shares(Vec<Left>);

/// First unit and end, 32 bits each, on cache lines of its own: processors fetch lines in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Left(AtomicU64);

const END_BITS: u32 = 32;

fn pack(range: &Range<usize>) -> u64 {
    (range.start as u64) << END_BITS | range.end as u64
}

fn unpack(packed: u64) -> Range<usize> {
    let end = packed & ((1 << END_BITS) - 1);
    (packed >> END_BITS) as usize..end as usize
}

impl Shares {
    /// No units for `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Left::default()).collect())
    }

    /// Divides `units` evenly among the first `threads` threads. No thread claims any meanwhile.
    ///
    /// # Panics
    /// If there are too many units to count them in 32 bits.
    pub fn divide(&self, units: usize, threads: usize) {
        assert!(u32::try_from(units).is_ok(), "{units} units");
        for (thread, left) in self.0[..threads].iter().enumerate() {
            let share = share_of(units, thread, threads);
            left.0.store(pack(&share), Ordering::Relaxed);
        }
    }

    /// The next units for `thread`, one of the first `threads`: from the front of its own, or else from the back of
    /// another thread's. Each unit is claimed once. Half of what is left is taken at a time, so that threads ask
    /// rarely at first and finish at about the same time.
    pub fn claim(&self, thread: usize, threads: usize) -> Option<Range<usize>> {
        let take = |of: usize| {
            let mut claimed = 0..0;
            let left = &self.0[of].0;
            // Only the numbers count: what is in memory was handed over when the phase began.
            let changed = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
                let left = unpack(packed);
                let count = left.len().div_ceil(2);
                let rest;
                (claimed, rest) = if of == thread {
                    let end = left.start + count;
                    (left.start..end, end..left.end)
                } else {
                    let start = left.end - count;
                    (start..left.end, left.start..start)
                };
                (count > 0).then(|| pack(&rest))
            });
            changed.is_ok().then_some(claimed)
        };
        (0..threads).find_map(|other| take((thread + other) % threads))
    }
}

/// The units of thread `thread` if `units` are divided evenly among `threads`.
pub(super) fn share_of(units: usize, thread: usize, threads: usize) -> Range<usize> {
    units * thread / threads..units * (thread + 1) / threads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_takes_its_own_from_the_front_and_then_those_of_others_from_the_back() {
        let shares = Shares::new(3);
        shares.divide(20, 2);
        let claim = |thread| shares.claim(thread, 2);
        assert_eq!(claim(0), Some(0..5));
        assert_eq!(claim(0), Some(5..8));
        assert_eq!(claim(1), Some(10..15));
        assert_eq!(claim(0), Some(8..9));
        assert_eq!(claim(0), Some(9..10));
        assert_eq!(claim(0), Some(17..20));
        assert_eq!(claim(1), Some(15..16));
        assert_eq!(claim(0), Some(16..17));
        assert_eq!((claim(0), claim(1)), (None, None));
    }

    #[test]
    fn every_unit_is_claimed_once_when_all_threads_claim_at_once() {
        const THREADS: usize = 4;
        let shares = Shares::new(THREADS);
        for units in [0, 1, 3, 5, 64, 1001] {
            shares.divide(units, THREADS);
            let claims = |thread| {
                let all = std::iter::from_fn(|| shares.claim(thread, THREADS));
                all.flatten().collect::<Vec<_>>()
            };
            let mut claimed: Vec<usize> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS)
                    .map(|thread| scope.spawn(move || claims(thread)))
                    .collect();
                let joined = threads.into_iter().map(|thread| thread.join());
                joined.flat_map(Result::unwrap).collect()
            });
            claimed.sort_unstable();
            assert!(claimed.into_iter().eq(0..units), "{units}");
        }
    }
}
