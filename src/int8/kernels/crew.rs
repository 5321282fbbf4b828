//! Decides how many of the compute threads take part, from the CPU time that the system gives them.
//!
//! At the end of every phase all threads wait for the slowest. When other processes use the same cores, a thread may
//! lose its core for a few milliseconds in the middle of a phase that takes a tenth of a millisecond, and all others
//! wait for it: two threads on two busy cores can be slower than one. So in every [`WINDOW`] each thread reads how long
//! it ran and how long it was runnable without a core, and as many threads take part as are likely to be fastest. The
//! others are tried again from time to time. How the work is divided changes no result.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// Time between two measurements: a dozen of the system's time slices, which are three to four milliseconds.
const WINDOW: Duration = Duration::from_millis(50);
/// Crowded windows in a row before the number of threads is reduced: when threads wake up, the system may place two of
/// them on one core, and it takes a while to move one to a free core.
const PATIENCE: u32 = 3;
/// Time until all threads are tried again. If that was too soon, it is doubled.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The scheduling times of one thread so far, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Given {
    /// Time it ran.
    pub ran: u64,
    /// Time it was runnable without a core.
    pub waited: u64,
}

/// Reads one thread's scheduling times from the operating system.
#[derive(Debug)]
pub(super) struct Account {
    thread: ThreadId,
    file: Option<File>,
}

impl Account {
    /// The account of the calling thread.
    pub fn own() -> Self {
        Self {
            thread: thread::current().id(),
            // The file is missing if the operating system does not count these times: then all threads always take
            // part.
            file: File::open("/proc/thread-self/schedstat").ok(),
        }
    }

    /// Whether it belongs to the calling thread.
    pub fn is_own(&self) -> bool {
        self.thread == thread::current().id()
    }

    /// The thread's times so far, if the system provides them.
    pub fn read(&self) -> Option<Given> {
        // The file has two numbers of at most twenty digits and a count of time slices.
        let mut bytes = [0; 64];
        let count = self.file.as_ref()?.read_at(&mut bytes, 0).ok()?;
        let text = std::str::from_utf8(bytes.get(..count)?).ok()?;
        let mut numbers = text.split_ascii_whitespace().map(str::parse);
        let (ran, waited) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Given { ran, waited })
    }
}

/// Decides how many threads take part.
#[derive(Debug)]
pub(super) struct Crew {
    /// How many take part now.
    active: usize,
    /// Each thread's times at the last measurement.
    before: Vec<Given>,
    looked: Instant,
    /// Windows in a row in which fewer threads would have been faster.
    crowded: u32,
    /// When all threads are tried again.
    retry: Instant,
    pause: Duration,
    /// Whether a window with all threads taking part was not crowded since their number was last reduced.
    is_settled: bool,
}

impl Crew {
    /// Starts with all of `threads` threads taking part.
    pub fn new(threads: usize, now: Instant) -> Self {
        Self {
            active: threads,
            before: vec![Given::default(); threads],
            looked: now,
            crowded: 0,
            retry: now,
            pause: FIRST_PAUSE,
            is_settled: true,
        }
    }

    /// How many take part.
    pub const fn active(&self) -> usize {
        self.active
    }

    /// Whether the next [`Crew::look`] is due.
    pub fn is_due(&self, now: Instant) -> bool {
        self.before.len() > 1 && now.saturating_duration_since(self.looked) >= WINDOW
    }

    /// Takes the times so far of each thread that takes part, and decides anew how many do.
    pub fn look(&mut self, given: impl Iterator<Item = Given>, now: Instant) {
        let threads = self.before.len();
        let mut cores = 0.0;
        for (given, before) in given.zip(&mut self.before).take(self.active) {
            let ran = given.ran.saturating_sub(before.ran) as f64;
            let waited = given.waited.saturating_sub(before.waited) as f64;
            *before = given;
            // A thread that was never runnable counts as having a core.
            cores += if ran + waited > 0.0 {
                ran / (ran + waited)
            } else {
                1.0
            };
        }
        self.looked = now;
        let best = fastest(self.active, cores);
        self.crowded = if best < self.active {
            self.crowded + 1
        } else {
            0
        };
        if self.crowded == PATIENCE {
            self.crowded = 0;
            // Each time that trying all threads fails, the next attempt comes later.
            self.pause = if self.is_settled {
                FIRST_PAUSE
            } else {
                (2 * self.pause).min(LONGEST_PAUSE)
            };
            self.is_settled = false;
            self.active = best;
            self.retry = now + self.pause;
        } else if self.active == threads {
            self.is_settled |= self.crowded == 0;
        } else if now >= self.retry {
            self.active = threads;
        }
    }
}

/// How many of `most` threads are likely to be fastest if the system gives all of them together the time of `cores`
/// cores.
///
/// As long as each thread has a core of its own, speed is proportional to their number. Otherwise each thread runs only
/// `cores / n` of the time, and a phase advances only while all of them run at once: if threads are interrupted
/// independently, that is the fraction `cores / n` to the power of `n`.
fn fastest(most: usize, cores: f64) -> usize {
    let speed = |threads: usize| {
        let threads = threads as f64;
        threads * (cores / threads).min(1.0).powf(threads)
    };
    let all = (1..=most).rev();
    let faster = |best: usize, next: usize| {
        if speed(next) > speed(best) {
            next
        } else {
            best
        }
    };
    all.reduce(faster).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_take_part_as_are_fastest_together() {
        for (threads, cores, best) in [
            (2, 2.0, 2),
            // Another process takes a tenth of both cores: two threads are still faster than one.
            (2, 1.8, 2),
            (2, 1.5, 2),
            // One other busy thread on two cores, and two of them.
            (2, 1.33, 1),
            (2, 1.0, 1),
            (4, 3.9, 4),
            (4, 3.5, 3),
            (4, 2.0, 2),
            (16, 15.95, 16),
            (16, 15.5, 15),
            (16, 8.0, 8),
            (1, 0.3, 1),
        ] {
            assert_eq!(fastest(threads, cores), best, "{threads} on {cores}");
        }
    }

    #[test]
    fn whoever_is_sent_away_is_tried_again_and_less_often_each_time() {
        let start = Instant::now();
        let mut now = start;
        let mut crew = Crew::new(2, now);
        let mut sums = [Given::default(); 2];
        let mut window = |crew: &mut Crew, share: f64| {
            now += WINDOW;
            for sum in &mut sums[..crew.active()] {
                sum.ran += (share * 50e6) as u64;
                sum.waited += ((1.0 - share) * 50e6) as u64;
            }
            assert!(crew.is_due(now));
            crew.look(sums.into_iter(), now);
            now - start
        };
        window(&mut crew, 0.97);
        assert_eq!(crew.active(), 2);
        // Fewer than `PATIENCE` crowded windows in a row change nothing.
        window(&mut crew, 0.5);
        window(&mut crew, 0.5);
        window(&mut crew, 0.97);
        assert_eq!(crew.active(), 2);
        // Another process takes half of both cores; then the one remaining thread has a core to itself.
        let crowded = |crew: &mut Crew, window: &mut dyn FnMut(&mut Crew, f64) -> Duration| {
            (0..PATIENCE)
                .map(|_| window(crew, 0.5))
                .last()
                .expect("some")
        };
        let mut last = crowded(&mut crew, &mut window);
        let mut returns = Vec::new();
        while returns.len() < 5 {
            assert_eq!(crew.active(), 1);
            let now = window(&mut crew, 1.0);
            if crew.active() == 2 {
                returns.push((now - last).as_millis());
                last = crowded(&mut crew, &mut window);
            }
        }
        assert_eq!(returns, [1000, 2000, 4000, 8000, 8000]);
        // The other process has ended: at the next attempt both threads stay.
        while crew.active() == 1 {
            window(&mut crew, 1.0);
        }
        window(&mut crew, 1.0);
        assert_eq!(crew.active(), 2);
        let again = crowded(&mut crew, &mut window);
        while crew.active() == 1 {
            last = window(&mut crew, 1.0);
        }
        assert_eq!((last - again).as_millis(), 1000, "a new start");
    }

    #[test]
    fn a_thread_that_had_nothing_to_do_is_not_taken_for_a_crowded_one() {
        let start = Instant::now();
        let mut crew = Crew::new(2, start);
        crew.look([Given::default(); 2].into_iter(), start + WINDOW);
        assert_eq!(crew.active(), 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernel_accounts_for_what_a_thread_runs() {
        let account = Account::own();
        assert!(account.is_own());
        // Some kernels are built without these times.
        let Some(before) = account.read() else { return };
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        let after = account.read().expect("it was there before");
        assert!(after.ran > before.ran, "{before:?} {after:?}");
    }
}
