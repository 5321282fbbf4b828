//! An end to steps of a grammar that take too long.
//!
//! Fuel bounds the lexer's work on a token and the number of the parser's items, but not what an item costs: in an
//! ambiguous grammar (`s: s s | "a"`) that grows with the square of the answer. The engine's thread cannot stop itself
//! in there, so another one looks at it from time to time and cancels what takes too long.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use llguidance::CancellationHandle;

/// CPU time of one step of a grammar: several times what its fuel lasts for, and less than a step of any model that
/// people wait for.
const BUDGET: Duration = Duration::from_millis(25);
/// Where the system does not tell CPU time: others may run in between.
const WALL_BUDGET: Duration = Duration::from_millis(200);
/// How often to look.
const INTERVAL: Duration = Duration::from_millis(10);
/// Looks without any work in between, after which the thread sleeps until there is some.
const IDLE_LOOKS: u32 = 100;

/// Looks after the steps of grammars on one thread at a time, which is the engine's.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<Thread>,
}

#[derive(Default)]
struct Shared {
    work: Mutex<Option<Work>>,
    /// How many steps there have been.
    steps: AtomicU64,
    is_asleep: AtomicBool,
}

/// A step that runs.
struct Work {
    number: u64,
    thread: Option<i32>,
    started: Instant,
    handle: CancellationHandle,
}

/// A step that is looked after until this is dropped.
pub struct Watched<'a>(&'a Shared);

impl Watch {
    /// Starts the thread. Without it steps are bounded by their fuel alone.
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

    /// Looks after the step that begins now on this thread and can be ended by `handle`.
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
        // It finds nothing to look after, and ends.
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
    // The step that ran at the last look, and the CPU time of its thread then.
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
        // A step that began before this line finds nobody asleep.
        let is_idle = shared.steps.load(Ordering::SeqCst) == steps;
        drop(shared);
        if is_idle {
            thread::park();
        }
        idle_looks = 0;
    }
}

/// Cancels the step that runs, if it is the one that was `seen` and has had its time. Returns what is seen now.
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

/// The number that the system has for this thread, where CPU time is known by it.
#[cfg(target_os = "linux")]
fn this_thread() -> Option<i32> {
    Some(rustix::thread::gettid().as_raw_nonzero().get())
}

#[cfg(not(target_os = "linux"))]
const fn this_thread() -> Option<i32> {
    None
}

/// CPU time that a thread of this process has had. `None` where the system does not tell.
fn cpu_time(thread: Option<i32>) -> Option<Duration> {
    let path = format!("/proc/self/task/{}/schedstat", thread?);
    let stat = fs::read_to_string(path).ok()?;
    let nanoseconds = stat.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}
