//! Grammars of clients → constraints for the engine: in turn, within a deadline, and once for each grammar.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::Grammar;
use super::cache::{Cache, Key};
use super::compile::{Compiled, Compiler, Vocabulary};
use super::trial::{self, Failure, Trial};
use crate::engine::Constraint;
use crate::telemetry::Metrics;
use crate::text::Tokenizer;

/// Grammars that are compiled at once: their threads compete with those that compute.
const SLOTS: usize = 2;
/// Requests that may wait for a slot. The engine's queue is the limit for honest ones.
const MAX_WAITING: usize = 128;
/// How long one may wait, in deadlines: then others' grammars are the trouble and not this one.
const WAIT_DEADLINES: u32 = 4;
/// Deadlines for compiling here what came through the trial: it is the same work on a machine that others use too.
const COMPILE_DEADLINES: u32 = 4;
/// What a grammar takes that is not tried first, which is the one of any object.
const SMALL_BYTES: u64 = 1 << 20;

/// How grammars are compiled.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long compiling one may take.
    pub deadline: Duration,
    /// This program, to try grammars in a process of their own; `None` trusts whoever writes them.
    pub program: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // The largest schemas in use take a tenth of it on a busy machine.
            deadline: Duration::from_secs(2),
            program: None,
        }
    }
}

/// Why there is no constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The grammar makes no sense or is too large; in words for whoever wrote it.
    Refused(String),
    /// Too many grammars wait; the same one may do later.
    Busy,
    /// Grammars cannot be compiled here now.
    Unavailable,
}

/// A grammar's constraint, once for each answer.
pub struct Constraints {
    /// All at the start of a text.
    pub constraints: Vec<Box<dyn Constraint>>,
    /// Keywords of the schema that the answer may break.
    pub unenforced: Vec<&'static str>,
}

type Outcome = Result<Arc<Mutex<Compiled>>, String>;

/// Compiles grammars for one tokenizer and one model.
pub struct Grammars {
    vocabulary: Vocabulary,
    /// Made with the first grammar.
    compiler: OnceLock<Result<Compiler, String>>,
    trial: Option<Trial>,
    deadline: Duration,
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    cache: Mutex<Cache<Outcome>>,
    metrics: Arc<Metrics>,
}

impl Grammars {
    /// For a model with `vocab_size` logits whose texts end with one of `eos_ids`.
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
            cache: Mutex::new(Cache::new()),
            metrics,
        }
    }

    /// The constraint that `grammar` puts on each of `count` answers. Dropping the future gives the work up.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn constraints(
        self: &Arc<Self>,
        grammar: &Grammar,
        count: usize,
    ) -> Result<Constraints, Problem> {
        let outcome = self.outcome(grammar).await;
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
        let compiled = match outcome {
            Ok((outcome, _)) => outcome.map_err(Problem::Refused)?,
            Err(Failed::TimedOut) => return Err(Problem::Refused(self.too_slow())),
            Err(Failed::Busy) => return Err(Problem::Busy),
            Err(Failed::Unavailable) => return Err(Problem::Unavailable),
        };
        // Copies of large parsers take milliseconds, and this thread writes everyone else's tokens.
        let copies = tokio::task::spawn_blocking(move || {
            let compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
            Constraints {
                constraints: (0..count)
                    .map(|_| compiled.constraint.boxed_clone())
                    .collect(),
                unenforced: compiled.unenforced.clone(),
            }
        });
        copies.await.map_err(|_panicked| Problem::Unavailable)
    }

    fn too_slow(&self) -> String {
        format!("it takes longer than {} s", self.deadline.as_secs_f32())
    }

    /// What became of the grammar, and whether that was known already.
    async fn outcome(self: &Arc<Self>, grammar: &Grammar) -> Result<(Outcome, bool), Failed> {
        let key = Key::of(grammar);
        if let Some(known) = self.lookup(key) {
            return Ok((known, true));
        }
        let slot = self.slot().await?;
        // The one before may have been the same.
        if let Some(known) = self.lookup(key) {
            return Ok((known, true));
        }
        let bytes = match (&self.trial, grammar) {
            (None, _) | (_, Grammar::JsonObject) => Ok(SMALL_BYTES),
            (Some(trial), grammar) => trial.run(grammar).await,
        };
        let (outcome, bytes) = match bytes {
            Ok(bytes) => (self.compile(grammar, slot).await?, bytes),
            Err(Failure::Refused(problem)) => (Err(problem), 0),
            // Not kept: another time the machine may be less busy.
            Err(Failure::TimedOut) => return Err(Failed::TimedOut),
            Err(Failure::Unavailable(problem)) => {
                tracing::error!(%problem, "grammars cannot be tried");
                return Err(Failed::Unavailable);
            }
        };
        self.keep(key, outcome.clone(), bytes);
        Ok((outcome, false))
    }

    fn lookup(&self, key: Key) -> Option<Outcome> {
        self.cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
    }

    fn keep(&self, key: Key, outcome: Outcome, bytes: u64) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.insert(key, outcome, bytes);
    }

    /// Waits for a slot, if not too many do.
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
        // It is never closed.
        slot.map_err(|_elapsed| Failed::Busy)?
            .map_err(|_closed| Failed::Unavailable)
    }

    /// Compiles on a thread of its own, which has the stack for it and gives the slot back when it is done.
    async fn compile(
        self: &Arc<Self>,
        grammar: &Grammar,
        slot: OwnedSemaphorePermit,
    ) -> Result<Outcome, Failed> {
        let (sender, receiver) = oneshot::channel();
        let (this, grammar) = (Arc::clone(self), grammar.clone());
        let work = move || {
            // Where that is not allowed it is no harm either.
            #[cfg(target_os = "linux")]
            let _ =
                rustix::process::setpriority_process(Some(rustix::thread::gettid()), trial::NICE);
            let compiler = this
                .compiler
                .get_or_init(|| Compiler::new(&this.vocabulary));
            let compiled = compiler.as_ref().map_err(Clone::clone);
            let compiled = compiled.and_then(|compiler| compiler.compile(&grammar));
            // Whoever waited may have left.
            let _ = sender.send(compiled.map(|compiled| Arc::new(Mutex::new(compiled))));
            drop(slot);
        };
        let thread = std::thread::Builder::new().name("grammar".into());
        let spawned = thread.stack_size(trial::MORE_STACK).spawn(work);
        spawned.map_err(|problem| {
            tracing::error!(%problem, "no thread for a grammar");
            Failed::Unavailable
        })?;
        let compiled = timeout(COMPILE_DEADLINES * self.deadline, receiver).await;
        compiled
            .map_err(|_elapsed| Failed::TimedOut)?
            .map_err(|_panicked| Failed::Unavailable)
    }
}

/// Why nothing became of a grammar.
enum Failed {
    TimedOut,
    Busy,
    Unavailable,
}
