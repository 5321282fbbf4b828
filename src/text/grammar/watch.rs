//! Cancels steps of a grammar that take too long.
//!
//! Fuel bounds the lexer's work for a token and the number of the parser's items, but not the cost of an item: in an
//! ambiguous grammar (`s: s s | "a"`) it grows with the square of the answer's length. The engine's thread cannot
//! interrupt itself inside the library, so another thread checks it regularly and cancels steps that take too long.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use llguidance::CancellationHandle;

/// The most CPU time for one step of a grammar: several times as long as the fuel lasts, and less than a step of any
/// large model.
const BUDGET: Duration = Duration::from_millis(25);
/// The most elapsed time, where the system does not report CPU time. It is longer because other threads may run in
/// between.
const WALL_BUDGET: Duration = Duration::from_millis(200);
/// The time between two checks.
const INTERVAL: Duration = Duration::from_millis(10);
/// The number of checks without any step in between after which the thread sleeps until the next step.
const IDLE_LOOKS: u32 = 100;

/// Watches the steps of grammars on one thread at a time, which is the engine's.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<Thread>,
}

#[derive(Default)]
struct Shared {
    work: Mutex<Option<Work>>,
    /// The number of steps so far.
    steps: AtomicU64,
    is_asleep: AtomicBool,
}

/// A running step.
struct Work {
    number: u64,
    thread: Option<i32>,
    started: Instant,
    handle: CancellationHandle,
}

/// A step that is watched until this is dropped.
pub struct Watched<'a>(&'a Shared);

impl Watch {
    /// Starts the thread. If that fails, steps are bounded only by their fuel.
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let watched = Arc::downgrade(&shared);
        let thread = thread::Builder::new().name("grammar-watch".into());
        let thread = thread.spawn(move || look_after(&watched));
        if let Err(problem) = &thread {
            tracing::error!(%problem, "no thread to look after grammars");
        }
        Self {
            shared,
            thread: thread.ok().map(|thread| thread.thread().clone()),
        }
    }

    /// Watches the step that begins now on this thread; `handle` cancels it.
    pub fn step(&self, handle: Option<CancellationHandle>) -> Option<Watched<'_>> {
        let work = Work {
            number: self.shared.steps.fetch_add(1, Ordering::SeqCst),
            thread: this_thread(),
            started: Instant::now(),
            handle: handle?,
        };
        *self.shared.lock() = Some(work);
        if self.shared.is_asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.unpark();
        }
        Some(Watched(&self.shared))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Wakes the thread, which then finds that this is gone and ends.
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn look_after(watched: &Weak<Shared>) {
    // The step that ran at the last check, and the CPU time of its thread at that time.
    let mut seen: Option<(u64, Option<Duration>)> = None;
    let (mut steps, mut idle_looks) = (0, 0);
    while let Some(shared) = watched.upgrade() {
        seen = look(&shared, seen);
        let steps_now = shared.steps.load(Ordering::SeqCst);
        idle_looks = if steps_now == steps && seen.is_none() {
            idle_looks + 1
        } else {
            0
        };
        steps = steps_now;
        if idle_looks < IDLE_LOOKS {
            drop(shared);
            thread::sleep(INTERVAL);
            continue;
        }
        shared.is_asleep.store(true, Ordering::SeqCst);
        // A step that began before `is_asleep` was set has not woken this thread, so look for one again.
        let is_idle = shared.steps.load(Ordering::SeqCst) == steps;
        drop(shared);
        if is_idle {
            thread::park();
        }
        idle_looks = 0;
    }
}

/// Cancels the running step, if it is the one that was `seen` at the last check and has used up its time. Returns the
/// state for the next check.
fn look(shared: &Shared, seen: Option<(u64, Option<Duration>)>) -> Option<(u64, Option<Duration>)> {
    let work = shared.lock();
    let work = work.as_ref()?;
    let now = cpu_time(work.thread);
    match seen {
        Some((number, before)) if number == work.number => {
            let is_over = match (before, now) {
                (Some(before), Some(now)) => now.saturating_sub(before) > BUDGET,
                _ => work.started.elapsed() > WALL_BUDGET,
            };
            if is_over {
                work.handle.cancel();
            }
            seen
        }
        _ => Some((work.number, now)),
    }
}

/// The id of this thread, on systems that report CPU time by it.
#[cfg(target_os = "linux")]
fn this_thread() -> Option<i32> {
    Some(rustix::thread::gettid().as_raw_nonzero().get())
}

#[cfg(not(target_os = "linux"))]
const fn this_thread() -> Option<i32> {
    None
}

/// The CPU time of a thread of this process. `None` if the system does not report it.
fn cpu_time(thread: Option<i32>) -> Option<Duration> {
    let path = format!("/proc/self/task/{}/schedstat", thread?);
    let stat = fs::read_to_string(path).ok()?;
    let nanoseconds = stat.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}
