//! The standard library, with shuttle's threads, locks and atomics in place of the system's, and a clock that advances
//! when it is read: so a run depends on nothing but the order in which the threads take turns.

pub use std::*;

/// Locks and atomics that give other threads a turn before each operation.
pub mod sync {
    pub use shuttle::sync::{Barrier, Condvar, Mutex, MutexGuard, RwLock, Weak, mpsc};
    pub use std::sync::{Arc, LockResult, OnceLock, PoisonError, TryLockError};

    /// Atomics. Their orderings are not modelled: every execution is sequentially consistent.
    pub mod atomic {
        use shuttle::sync::atomic::AtomicUsize as Scheduled;

        pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

        /// A number that threads share. Reading it with `Acquire` gives no other thread a turn: that is how the pool
        /// reads while it spins, and with a turn at each of hundreds of reads no order would ever lead to where it
        /// parks.
        #[derive(Debug, Default)]
        pub struct AtomicUsize(Scheduled);

        impl AtomicUsize {
            /// A shared number.
            pub const fn new(value: usize) -> Self {
                Self(Scheduled::new(value))
            }

            /// Reads it.
            pub fn load(&self, order: Ordering) -> usize {
                match order {
                    // SAFETY: all threads of shuttle run on one of the system's, so nothing writes meanwhile.
                    Ordering::Acquire => unsafe { self.0.raw_load() },
                    order => self.0.load(order),
                }
            }

            /// Writes it.
            pub fn store(&self, value: usize, order: Ordering) {
                self.0.store(value, order);
            }

            /// Replaces it, and returns what it was.
            pub fn swap(&self, value: usize, order: Ordering) -> usize {
                self.0.swap(value, order)
            }

            /// Adds to it, and returns what it was.
            pub fn fetch_add(&self, value: usize, order: Ordering) -> usize {
                self.0.fetch_add(value, order)
            }

            /// Subtracts from it, and returns what it was.
            pub fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
                self.0.fetch_sub(value, order)
            }
        }
    }
}

/// Threads that shuttle schedules.
pub mod thread {
    pub use shuttle::thread::{
        Builder, JoinHandle, Thread, ThreadId, current, park, sleep, spawn, yield_now,
    };
    pub use std::thread::Result;
}

/// Spinning takes no time here.
pub mod hint {
    pub use std::hint::black_box;

    /// Nothing.
    pub const fn spin_loop() {}
}

/// Time as the code sees it.
pub mod time {
    use std::cell::Cell;
    use std::ops::{Add, AddAssign, Sub};

    pub use std::time::Duration;

    /// How far a look at the clock moves it: longer than a thread spins before it parks.
    const TICK: Duration = Duration::from_micros(200);

    std::thread_local! {
        // All threads of shuttle run on one of the system's.
        static NOW: Cell<Duration> = const { Cell::new(Duration::from_secs(1)) };
    }

    /// A moment.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Instant(Duration);

    impl Instant {
        /// Moves the clock and looks at it.
        pub fn now() -> Self {
            Self(NOW.with(|now| {
                now.set(now.get() + TICK);
                now.get()
            }))
        }

        /// The time since then.
        pub fn elapsed(&self) -> Duration {
            Self::now().0.saturating_sub(self.0)
        }

        /// The time from `earlier` to this.
        pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
            self.0.saturating_sub(earlier.0)
        }
    }

    impl Add<Duration> for Instant {
        type Output = Self;

        fn add(self, time: Duration) -> Self {
            Self(self.0 + time)
        }
    }

    impl AddAssign<Duration> for Instant {
        fn add_assign(&mut self, time: Duration) {
            self.0 += time;
        }
    }

    impl Sub for Instant {
        type Output = Duration;

        fn sub(self, earlier: Self) -> Duration {
            self.saturating_duration_since(earlier)
        }
    }
}
