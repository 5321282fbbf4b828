//! The core on which each compute thread ran last.
//!
//! When other processes use some of the cores, the system may place two compute threads on one core. A thread that spins
//! there while it waits keeps the other from doing what it waits for.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of a core that is not known.
const UNKNOWN: usize = usize::MAX;

/// The core on which each thread began its last phase. Threads may have moved since, so this is only a hint.
pub(super) struct Cores(Vec<AtomicUsize>);

impl Cores {
    /// The unknown cores of `threads` threads.
    pub fn new(threads: usize) -> Self {
        let unknown = || AtomicUsize::new(UNKNOWN);
        Self((0..threads).map(|_| unknown()).collect())
    }

    /// Stores the core on which `thread`, which is the calling thread, runs now. Threads seldom move, and what is not
    /// written stays in the caches of all cores.
    pub fn note(&self, thread: usize) {
        let (noted, core) = (&self.0[thread], current());
        if noted.load(Ordering::Relaxed) != core {
            noted.store(core, Ordering::Relaxed);
        }
    }

    /// Whether one of the first `threads` threads ran last on the core of `thread`.
    pub fn is_shared(&self, thread: usize, threads: usize) -> bool {
        let core = |thread: usize| self.0[thread].load(Ordering::Relaxed);
        let own = core(thread);
        own != UNKNOWN && (0..threads).any(|other| other != thread && core(other) == own)
    }
}

/// The core on which this thread runs.
#[cfg(target_os = "linux")]
fn current() -> usize {
    rustix::thread::sched_getcpu()
}

/// Other systems do not tell.
#[cfg(not(target_os = "linux"))]
const fn current() -> usize {
    UNKNOWN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_threads_that_take_part_share_a_core() {
        let cores = Cores::new(3);
        assert!(!cores.is_shared(0, 3), "unknown cores are not shared");
        for (thread, core) in [(0, 4), (1, 5), (2, 4)] {
            cores.0[thread].store(core, Ordering::Relaxed);
        }
        assert!(cores.is_shared(0, 3));
        assert!(cores.is_shared(2, 3));
        assert!(!cores.is_shared(1, 3));
        assert!(!cores.is_shared(0, 2), "the third thread takes no part");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_knows_its_core() {
        let cores = Cores::new(2);
        cores.note(1);
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        // Cores that are offline or not allowed leave gaps in the numbers.
        assert!(cores.0[1].load(Ordering::Relaxed) < 64 * count.max(64));
    }
}
