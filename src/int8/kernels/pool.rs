//! The compute threads: a fixed set that divides a range of units among its members. The calling thread is one of them.
//!
//! A phase costs about a microsecond while the threads spin; after a tenth of a millisecond without work they park and
//! cost nothing. When other processes use the same cores, fewer threads take part; see `crew`.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::cores::Cores;
use super::crew::{Account, Crew, Given};
pub use super::parts::{Parts, PerThread, PerUnit, Ragged, SlotUnits, Slots, UnitParts, Within};
use super::shares::{Shares, share_of};
use crate::error::{Error, Result};

/// How long a thread spins, waiting for the next phase or for the other threads to finish their shares, before it
/// parks. This is longer than the gap between two steps (sampling, sending tokens) and than the difference between
/// threads that have a core each. It is short enough that an idle server uses no CPU, and that little CPU time is
/// wasted when a thread that others wait for has no core.
const SPIN: Duration = Duration::from_micros(100);

/// Bits of `Shared::generation` that hold the number of workers that take part in the phase; the other bits count
/// phases. With one load a worker learns that there is a phase and whether it takes part, and a worker that does not
/// take part never reads the phase.
const ACTIVE_BITS: u32 = 16;

/// How many workers take part in the phase of this `generation`.
const fn helpers_in(generation: usize) -> usize {
    generation & ((1 << ACTIVE_BITS) - 1)
}

/// What each thread runs in a phase; the argument is the thread's number.
type Phase<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// The current phase. The caller writes it only between phases, while every worker waits.
    phase: UnsafeCell<Option<*const Phase<'static>>>,
    /// Counts phases and holds how many workers take part, see [`ACTIVE_BITS`]. A worker runs a phase when this
    /// changes.
    generation: AtomicUsize,
    /// Workers that have not finished the current phase.
    unfinished: AtomicUsize,
    /// The units that threads have left in a phase of [`Pool::balance`].
    left: Shares,
    stopping: AtomicBool,
    parked: Vec<AtomicBool>,
    /// The core of each thread, the caller's first: a thread does not spin on a core that another one needs.
    cores: Cores,
    /// The calling thread, if it is parked until the last worker finishes.
    caller: Mutex<Option<Thread>>,
    caller_parked: AtomicBool,
    /// Whether the workers store their scheduling times, `given`, in this phase.
    looking: AtomicBool,
    given: Vec<[AtomicU64; 2]>,
    /// Whether a worker panicked in this phase. Saves the caller from taking the lock of `panic` to find out.
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `phase` is written only by `Pool::run` while no worker reads it (every worker has finished the last phase and
// the next one starts with the release of `generation`); all other fields are synchronized types.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `phase` is dereferenced only during `Pool::run`, which keeps its target alive.
unsafe impl Send for Shared {}

impl Shared {
    fn lock_panic(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_caller(&self) -> MutexGuard<'_, Option<Thread>> {
        self.caller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scheduling times that `worker` stored last.
    fn given(&self, worker: usize) -> Given {
        let [ran, waited] = &self.given[worker];
        Given {
            ran: ran.load(Ordering::Relaxed),
            waited: waited.load(Ordering::Relaxed),
        }
    }
}

/// A fixed set of compute threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    crew: Crew,
    /// The scheduling times of the calling thread. Different calls may come from different threads.
    account: Account,
}

impl Pool {
    /// Starts `threads − 1` workers; the caller of [`Pool::run`] is the first thread.
    ///
    /// # Errors
    /// [`Error::Config`] if the system cannot start that many threads.
    pub fn new(threads: usize) -> Result<Self> {
        let workers = threads.max(1) - 1;
        if workers >> ACTIVE_BITS > 0 {
            return Err(Error::Config(format!(
                "{threads} compute threads: too many"
            )));
        }
        let shared = Arc::new(Shared {
            phase: UnsafeCell::new(None),
            generation: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            left: Shares::new(workers + 1),
            cores: Cores::new(workers + 1),
            stopping: AtomicBool::new(false),
            parked: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            caller_parked: AtomicBool::new(false),
            looking: AtomicBool::new(false),
            given: (0..workers).map(|_| Default::default()).collect(),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(workers),
            crew: Crew::new(workers + 1, Instant::now()),
            account: Account::own(),
        };
        for index in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("compute-{}", index + 1))
                .spawn(move || work(&shared, index));
            let handle = handle.map_err(|problem| {
                Error::Config(format!("{threads} compute threads: {problem}"))
            })?;
            pool.workers.push((handle.thread().clone(), Some(handle)));
        }
        Ok(pool)
    }

    /// Number of threads, including the caller.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// How many of them take part at present: fewer while other processes use the same cores.
    pub(crate) fn active(&self) -> usize {
        self.crew.active()
    }

    /// Divides `units` evenly and runs `body(thread, its units, its share of parts)` on every thread that has at least
    /// one unit.
    ///
    /// The division depends only on `units` and the number of threads that take part, so each thread reads the same
    /// weights in every step. A panic in `body` is passed on to the caller once all threads have finished.
    pub fn run<P: Parts>(
        &mut self,
        units: usize,
        parts: P,
        body: impl Fn(usize, Range<usize>, P::Share) + Sync,
    ) {
        parts.check(units, self.threads());
        let threads = self.active();
        self.phase(&|thread| {
            let share = share_of(units, thread, threads);
            if !share.is_empty() {
                // SAFETY: the shares of `0..units` are disjoint, and each thread takes its own once.
                let part = unsafe { parts.share(thread, share.clone()) };
                body(thread, share, part);
            }
        });
    }

    /// As [`Pool::run`], but a thread that has finished its own units takes some of the others': for work that takes so
    /// long that threads would finish at different times. `body(units, its share of parts, the thread's share of own)`
    /// runs several times on each thread.
    pub fn balance<P: UnitParts, T: Parts>(
        &mut self,
        units: usize,
        parts: P,
        own: T,
        body: impl Fn(Range<usize>, P::Share, &mut T::Share) + Sync,
    ) {
        let nothing = |_: Range<usize>, (), _: &mut T::Share| ();
        self.balance_both(own, (units, parts, body), (0, (), nothing));
    }

    /// [`Pool::balance`] of two kinds of units in one phase, for work that does not depend on each other.
    pub fn balance_both<A: UnitParts, B: UnitParts, T: Parts>(
        &mut self,
        own: T,
        first: (
            usize,
            A,
            impl Fn(Range<usize>, A::Share, &mut T::Share) + Sync,
        ),
        second: (
            usize,
            B,
            impl Fn(Range<usize>, B::Share, &mut T::Share) + Sync,
        ),
    ) {
        first.1.check(first.0, self.threads());
        second.1.check(second.0, self.threads());
        own.check(0, self.threads());
        let threads = self.active();
        let shared = Arc::clone(&self.shared);
        shared.left.divide(first.0 + second.0, threads);
        self.phase(&|thread| {
            // SAFETY: each thread takes its own share once.
            let mut own = unsafe { own.share(thread, 0..0) };
            while let Some(claimed) = shared.left.claim(thread, threads) {
                let Range { start, end } = claimed;
                let units = start.min(first.0)..end.min(first.0);
                if !units.is_empty() {
                    // SAFETY: every unit is claimed once, and `UnitParts` share nothing but units.
                    let part = unsafe { first.1.share(thread, units.clone()) };
                    (first.2)(units, part, &mut own);
                }
                let units = start.max(first.0) - first.0..end.max(first.0) - first.0;
                if !units.is_empty() {
                    // SAFETY: as above.
                    let part = unsafe { second.1.share(thread, units.clone()) };
                    (second.2)(units, part, &mut own);
                }
            }
        });
    }

    /// As [`Pool::run`], but all units on this thread: for work that takes less time than starting a phase.
    pub fn run_alone<P: Parts>(
        &mut self,
        units: usize,
        parts: P,
        body: impl FnOnce(usize, Range<usize>, P::Share),
    ) {
        parts.check(units, self.threads());
        if units > 0 {
            // SAFETY: the only share.
            let part = unsafe { parts.share(0, 0..units) };
            body(0, 0..units, part);
        }
    }

    /// Runs one phase on all active threads. `&mut self` prevents two phases from running at once.
    fn phase(&mut self, phase: &Phase<'_>) {
        let looking = self.crew.is_due(Instant::now());
        let helpers = self.crew.active() - 1;
        let own = if helpers == 0 {
            catch_unwind(AssertUnwindSafe(|| phase(0)))
        } else {
            self.share_phase(phase, helpers, looking)
        };
        if looking {
            self.look();
        }
        let shared = &*self.shared;
        let is_one = shared.panicked.swap(false, Ordering::Relaxed);
        let theirs = is_one.then(|| shared.lock_panic().take()).flatten();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Runs `phase` on the first `helpers` workers and on this thread; returns the outcome on this thread.
    fn share_phase(
        &self,
        phase: &Phase<'_>,
        helpers: usize,
        looking: bool,
    ) -> std::thread::Result<()> {
        let shared = &*self.shared;
        shared.cores.note(0);
        let pointer: *const Phase<'_> = phase;
        // SAFETY: only the lifetime changes. Workers dereference the pointer only during this call: they are counted in
        // `unfinished` below, and this function does not return, not even by a panic, before all have finished.
        let pointer: *const Phase<'static> = unsafe { std::mem::transmute(pointer) };
        // SAFETY: no worker reads `phase` now, see `Shared`.
        unsafe { *shared.phase.get() = Some(pointer) };
        shared.unfinished.store(helpers, Ordering::Relaxed);
        shared.looking.store(looking, Ordering::Relaxed);
        let phases = shared.generation.load(Ordering::Relaxed) >> ACTIVE_BITS;
        let generation = (phases.wrapping_add(1) << ACTIVE_BITS) | helpers;
        // A swap for the reason given at `next_generation`.
        shared.generation.swap(generation, Ordering::SeqCst);
        for ((worker, _), parked) in self.workers.iter().zip(&shared.parked).take(helpers) {
            if parked.load(Ordering::SeqCst) {
                worker.unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| phase(0)));
        wait_for_workers(shared, helpers);
        own
    }

    /// Decides from the threads' scheduling times how many take part from now on.
    fn look(&mut self) {
        if !self.account.is_own() {
            self.account = Account::own();
        }
        if let Some(own) = self.account.read() {
            let workers = (0..self.workers.len()).map(|worker| self.shared.given(worker));
            let given = std::iter::once(own).chain(workers);
            self.crew.look(given, Instant::now());
        }
    }
}

/// Waits until the first `helpers` workers have finished their shares: spins for [`SPIN`], then parks, because a worker
/// without a core may need this thread's core. Where it is known to need it, it parks at once.
fn wait_for_workers(shared: &Shared, helpers: usize) {
    let start = Instant::now();
    loop {
        for _ in 0..256 {
            if shared.unfinished.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN || shared.cores.is_shared(0, helpers + 1) {
            break;
        }
    }
    *shared.lock_caller() = Some(std::thread::current());
    // The last worker decrements `unfinished` before it reads `caller_parked`, so either this thread sees 0 or the
    // worker sees that it must unpark it. A swap for the reason given at `next_generation`.
    shared.caller_parked.swap(true, Ordering::SeqCst);
    while shared.unfinished.load(Ordering::SeqCst) > 0 {
        std::thread::park();
    }
    shared.caller_parked.store(false, Ordering::SeqCst);
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let next_phase = 1 << ACTIVE_BITS;
        self.shared
            .generation
            .fetch_add(next_phase, Ordering::SeqCst);
        for (worker, handle) in &mut self.workers {
            worker.unpark();
            if let Some(handle) = handle.take() {
                // A worker catches every panic of a phase, so joining cannot fail.
                let _ = handle.join();
            }
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let account = Account::own();
    let mut seen = 0;
    let mut idle_since = Instant::now();
    loop {
        seen = next_generation(shared, index, seen, idle_since);
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        if index >= helpers_in(seen) {
            continue;
        }
        shared.cores.note(index + 1);
        // SAFETY: `Pool::share_phase` wrote the pointer before it stored `generation`, and keeps its target alive until
        // this worker, which is counted in `unfinished`, decrements it.
        let phase = unsafe { (*shared.phase.get()).map(|phase| &*phase) };
        if let Some(phase) = phase
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| phase(index + 1)))
        {
            *shared.lock_panic() = Some(panic);
            // The caller sees this, because it waits until this worker decrements `unfinished`.
            shared.panicked.store(true, Ordering::Relaxed);
        }
        if shared.looking.load(Ordering::Relaxed)
            && let Some(given) = account.read()
        {
            let [ran, waited] = &shared.given[index];
            ran.store(given.ran, Ordering::Relaxed);
            waited.store(given.waited, Ordering::Relaxed);
        }
        let was_last = shared.unfinished.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last
            && shared.caller_parked.load(Ordering::SeqCst)
            && let Some(caller) = &*shared.lock_caller()
        {
            caller.unpark();
        }
        idle_since = Instant::now();
    }
}

/// Waits for a phase other than `seen` and returns it: spins for [`SPIN`] after the thread's last work, then parks. If
/// another thread needs this one's core, it parks at once.
fn next_generation(shared: &Shared, index: usize, seen: usize, idle_since: Instant) -> usize {
    loop {
        for _ in 0..256 {
            let generation = shared.generation.load(Ordering::Acquire);
            if generation != seen {
                return generation;
            }
            std::hint::spin_loop();
        }
        if idle_since.elapsed() > SPIN || shared.cores.is_shared(index + 1, helpers_in(seen) + 1) {
            // The caller stores `generation` before it reads `parked`, so either this thread sees the new phase or the
            // caller sees that it must unpark it. A swap and not a store: emulators of ARM on x86 let a load overtake a
            // store before it, where the architecture forbids that, and a swap costs nothing where a thread goes to sleep.
            shared.parked[index].swap(true, Ordering::SeqCst);
            while shared.generation.load(Ordering::SeqCst) == seen {
                std::thread::park();
            }
            shared.parked[index].store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
