//! Grammars of clients → constraints for the engine, with a queue, a deadline, and a cache.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Grammar;
use super::cache::{Cache, Key};
use super::compile::{Compiled, Compiler, Vocabulary};
use super::trial::{Failure, Trial};
use super::worker::Worker;
use crate::engine::Constraint;
use crate::telemetry::Metrics;
use crate::text::Tokenizer;

/// Grammars that are tried or compiled at once. They compete with the compute threads.
const SLOTS: usize = 2;
/// Requests that may wait for a slot. For ordinary use, the engine's queue is the tighter limit.
const MAX_WAITING: usize = 128;
/// How long a request may wait for a slot, in deadlines. After that it is refused as busy, because the delay is not its
/// own grammar's fault.
const WAIT_DEADLINES: u32 = 4;
/// How long compiling in this process may take after a successful trial, in deadlines: it is the same work, but it may
/// have to wait for the grammar in the other slot, and the machine may be busy.
const COMPILE_DEADLINES: u32 = 4;
/// The memory that is counted for a grammar that is not tried first: [`Grammar::JsonObject`].
const SMALL_BYTES: u64 = 1 << 20;

/// How grammars are compiled.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long compiling a grammar may take.
    pub deadline: Duration,
    /// The path of this program, which tries grammars in a child process; with `None` grammars are compiled without a
    /// trial, so their authors must be trusted.
    pub program: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // The largest schemas in use take a tenth of this on a busy machine.
            deadline: Duration::from_secs(2),
            program: None,
        }
    }
}

/// Why there is no constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The grammar is invalid or too large; with a message for its author.
    Refused(String),
    /// Too many grammars are waiting; a later retry may succeed.
    Busy,
    /// Grammars cannot be compiled at the moment.
    Unavailable,
}

/// The constraints of a grammar, one for each answer.
pub struct Constraints {
    /// The constraints, all at the start of a text.
    pub constraints: Vec<Box<dyn Constraint>>,
    /// Keywords of the schema that are not enforced.
    pub unenforced: Vec<&'static str>,
}

type Outcome = Result<Arc<Mutex<Compiled>>, String>;

/// Compiles grammars for one tokenizer and one model.
pub struct Grammars {
    vocabulary: Vocabulary,
    /// Made when the first grammar is compiled.
    compiler: OnceLock<Result<Compiler, String>>,
    trial: Option<Trial>,
    deadline: Duration,
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    worker: Worker,
    cache: Mutex<Cache<Outcome>>,
    metrics: Arc<Metrics>,
}

impl Grammars {
    /// Makes constraints for a model with `vocab_size` logits whose texts end with one of `eos_ids`.
    pub fn new(
        tokenizer: &Tokenizer,
        eos_ids: &[u32],
        vocab_size: usize,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let vocabulary = Vocabulary::of(tokenizer, eos_ids, vocab_size);
        let program = settings.program.as_deref();
        Self {
            trial: program.map(|program| Trial::new(program, settings.deadline, &vocabulary)),
            vocabulary,
            compiler: OnceLock::new(),
            deadline: settings.deadline,
            slots: Arc::new(Semaphore::new(SLOTS)),
            waiting: AtomicUsize::new(0),
            worker: Worker::new(),
            cache: Mutex::new(Cache::new()),
            metrics,
        }
    }

    /// The constraints of `grammar` for `count` answers. Dropping the future cancels the work.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn constraints(
        self: &Arc<Self>,
        grammar: &Grammar,
        count: usize,
    ) -> Result<Constraints, Problem> {
        let outcome = self.outcome(grammar, count).await;
        let counted = match &outcome {
            Ok((_, is_hit)) if *is_hit => "hit",
            Ok((Ok(_), _)) => "compiled",
            Ok((Err(_), _)) => "refused",
            Err(Failed::TimedOut) => "timeout",
            Err(Failed::Busy) => "busy",
            Err(Failed::Unavailable) => "unavailable",
        };
        self.metrics
            .grammars_total
            .with_label_values(&[counted])
            .inc();
        match outcome {
            Ok((made, _)) => made.map_err(Problem::Refused),
            Err(Failed::TimedOut) => Err(Problem::Refused(self.too_slow())),
            Err(Failed::Busy) => Err(Problem::Busy),
            Err(Failed::Unavailable) => Err(Problem::Unavailable),
        }
    }

    fn too_slow(&self) -> String {
        format!("it takes longer than {} s", self.deadline.as_secs_f32())
    }

    /// The constraints or the refusal, and whether the result was in the cache.
    async fn outcome(
        self: &Arc<Self>,
        grammar: &Grammar,
        count: usize,
    ) -> Result<(Result<Constraints, String>, bool), Failed> {
        let key = Key::of(grammar);
        if let Some(known) = self.lookup(key) {
            return Ok((copies(known, count).await?, true));
        }
        let slot = self.slot().await?;
        // The request that had the slot before may have had the same grammar.
        if let Some(known) = self.lookup(key) {
            return Ok((copies(known, count).await?, true));
        }
        let bytes = match (&self.trial, grammar) {
            (None, _) | (_, Grammar::JsonObject) => Ok(SMALL_BYTES),
            (Some(trial), grammar) => trial.run(grammar).await,
        };
        match bytes {
            Ok(bytes) => Ok((self.compile(grammar, bytes, count, slot).await?, false)),
            Err(Failure::Refused(problem)) => {
                self.keep(key, Err(problem.clone()), 0);
                Ok((Err(problem), false))
            }
            // Not cached, because the machine may be less busy at the next attempt.
            Err(Failure::TimedOut) => Err(Failed::TimedOut),
            Err(Failure::Unavailable(problem)) => {
                tracing::error!(%problem, "grammars cannot be tried");
                Err(Failed::Unavailable)
            }
        }
    }

    fn lookup(&self, key: Key) -> Option<Outcome> {
        self.cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
    }

    fn keep(&self, key: Key, outcome: Outcome, bytes: u64) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = cache.insert(key, outcome, bytes);
        // Dropping large parsers takes milliseconds, so it happens after the lock is released.
        drop(cache);
        drop(replaced);
    }

    /// Waits for a slot, unless too many requests are waiting.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, Failed> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= MAX_WAITING {
            return Err(Failed::Busy);
        }
        let slot = Arc::clone(&self.slots).acquire_owned();
        let slot = timeout(WAIT_DEADLINES * self.deadline, slot).await;
        // The semaphore is never closed.
        slot.map_err(|_elapsed| Failed::Busy)?
            .map_err(|_closed| Failed::Unavailable)
    }

    /// Compiles a grammar that takes `bytes` bytes, on the worker thread, and caches it. The slot becomes free when
    /// that is done.
    async fn compile(
        self: &Arc<Self>,
        grammar: &Grammar,
        bytes: u64,
        count: usize,
        slot: OwnedSemaphorePermit,
    ) -> Result<Result<Constraints, String>, Failed> {
        let (this, grammar) = (Arc::clone(self), grammar.clone());
        let work = move || {
            let _slot = slot;
            let compiler = this
                .compiler
                .get_or_init(|| Compiler::new(&this.vocabulary));
            let compiled = compiler.as_ref().map_err(Clone::clone);
            let compiled = compiled.and_then(|compiler| compiler.compile(&grammar));
            // The copies are made on this thread too, whose heap has room for them after compiling.
            let made = compiled
                .as_ref()
                .map(|compiled| Constraints::of(compiled, count));
            let made = made.map_err(Clone::clone);
            let outcome = compiled.map(|compiled| Arc::new(Mutex::new(compiled)));
            this.keep(Key::of(&grammar), outcome, bytes);
            made
        };
        let made = self.worker.run(work).map_err(|problem| {
            tracing::error!(%problem, "no thread for a grammar");
            Failed::Unavailable
        })?;
        let made = timeout(COMPILE_DEADLINES * self.deadline, made).await;
        made.map_err(|_elapsed| Failed::TimedOut)?
            .map_err(|_panicked| Failed::Unavailable)
    }
}

impl Constraints {
    fn of(compiled: &Compiled, count: usize) -> Self {
        Self {
            constraints: (0..count)
                .map(|_| compiled.constraint.boxed_clone())
                .collect(),
            unenforced: compiled.unenforced.clone(),
        }
    }
}

/// Copies a cached constraint, on a thread that may block: copying a large parser takes milliseconds, and this thread
/// writes the tokens of all other requests.
async fn copies(known: Outcome, count: usize) -> Result<Result<Constraints, String>, Failed> {
    let compiled = match known {
        Ok(compiled) => compiled,
        Err(problem) => return Ok(Err(problem)),
    };
    let copies = tokio::task::spawn_blocking(move || {
        let compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
        Constraints::of(&compiled, count)
    });
    copies
        .await
        .map(Ok)
        .map_err(|_panicked| Failed::Unavailable)
}

/// Why a grammar was not compiled.
enum Failed {
    TimedOut,
    Busy,
    Unavailable,
}
