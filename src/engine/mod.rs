//! One thread that owns the model. [`Engine`] is the handle that the async side holds.
//!
//! A step is: admit → plan → forward → sample → emit. Requests join and leave between steps
//! (continuous batching), prompts go in chunks beside decoding rows, and one pass over the weights serves all.
//!
//! | file | what it holds |
//! |---|---|
//! | [`request`] | all that crosses the thread: a [`Generation`] in, [`TokenEvent`]s out; token ids only |
//! | `queue` | where generations wait, who is refused, how the engine is |
//! | `worker` | the loop |
//! | [`scheduler`] | pure: who runs in the next step |
//! | [`pages`], [`prefix_cache`] | who holds which KV page, and which pages hold the beginning of which text |
//! | `sequence` | one generation's tokens, events and times |
//! | `step_times` | what steps cost by their rows, measured |
//! | `speculation` | guesses at the next tokens, and whether they pay |
//! | `adjust` | penalties, biases, bans and constraints: what changes the logits before |
//! | [`sampler`] | logits → token, and how likely it was |
//!
//! What callers may rely on: the same generation gives the same tokens whatever else runs, whatever was cached and
//! whatever was guessed; [`Engine::submit`] never waits; dropping a [`TokenStream`] frees what it held; a generation
//! that is preempted for want of KV pages goes on later with the same tokens, and nothing of it is lost.

mod adjust;
pub mod pages;
pub mod prefix_cache;
mod queue;
mod recent_steps;
pub mod request;
pub mod sampler;
pub mod scheduler;
mod sequence;
mod speculation;
mod step_times;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use request::{Constraint, FinishReason, Generation, Sampling, Score, TokenEvent};
pub use sequence::TokenStream;

use crate::error::{Error, Result};
use crate::model::{Forward, PAGE_TOKENS};
use crate::telemetry::Metrics;
use queue::Queue;
use scheduler::Budget;
use sequence::Sequence;
use worker::Worker;

/// How the engine batches.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Generations that run at once.
    pub max_batch: usize,
    /// Generations that may wait for a place in the batch.
    pub max_queue: usize,
    /// Rows in a step: prompt tokens and decoding generations together; at least `max_batch`.
    pub step_tokens: usize,
    /// Prompt rows in a step in which somebody decodes: what a running stream waits for a newcomer's prompt, per token.
    pub prompt_rows: PromptRows,
    /// Whether full KV pages are kept for prompts that begin alike. Changes no output.
    pub prefix_cache: bool,
    /// Tokens that are guessed for each generation in a step at most; 0 turns guessing off. Changes no output.
    pub speculation: usize,
}

/// How many rows of prompts join a step in which somebody decodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PromptRows {
    /// So many, whatever they cost: steps that can be foretold.
    Fixed(usize),
    /// As many as make the step take at most this many times what it takes without them, as far as measurements tell.
    /// At least 1.
    Slowdown(f64),
}

impl Default for Settings {
    /// The arithmetic is that of Granite 2B on two cores with 45 GB/s: a step takes 55 ms to read the weights, or 3.1 ms
    /// per row, whichever is longer.
    fn default() -> Self {
        Self {
            // 55 ms / 3.1 ms ≈ 17 rows: up to there a decoding row rides along for nothing, past it each slows all.
            max_batch: 16,
            // Eight batches: the last in line waits for eight completions, which is as long as clients do wait.
            max_queue: 128,
            // 0.4 to 0.9 s on 2B, so a client that leaves is noticed within a second. The arithmetic of 128 rows hides the
            // reading of the weights five times over: longer steps measured no faster (77 % of peak at 128, 76 % at 512).
            step_tokens: 128,
            // A stream of 18 tokens/s goes on at 6, which still reads fluently. While the weights are being read for it
            // anyway, two thirds of the step and more go to the prompt, so little of the prompt's rate is lost.
            prompt_rows: PromptRows::Slowdown(3.0),
            prefix_cache: true,
            // Quotes run on for long; how many of these are worth their rows is measured. With VNNI sixteen more rows of a
            // 2B model cost a fifth of a step.
            speculation: 16,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let problem = if self.max_batch == 0 {
            "the batch must have room for one generation"
        } else if self.step_tokens < self.max_batch {
            "a step must have a row for every generation in the batch"
        } else if self.prompt_rows == PromptRows::Fixed(0) {
            "a step must have a row for prompts"
        } else if matches!(self.prompt_rows, PromptRows::Slowdown(factor) if !(1.0..).contains(&factor))
        {
            "prompts cannot make steps shorter: the slowdown must be at least 1"
        } else {
            return Ok(());
        };
        Err(Error::Config(problem.into()))
    }

    const fn budget(&self) -> Budget {
        Budget {
            max_batch: self.max_batch,
            step_tokens: self.step_tokens,
        }
    }
}

/// What a [`Generation`] must fit, and how many the engine takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// `prompt.len() + max_tokens` is at most this: the model's context, or what the KV pages hold if that is less.
    pub context_length: usize,
    /// Generations that run at once.
    pub max_batch: usize,
    /// Generations that may wait. No more than `max_batch + max_queue` can ever be accepted together.
    pub max_queue: usize,
}

impl Limits {
    /// Whether `generation` is one that the engine can run.
    pub fn allow(&self, generation: &Generation) -> bool {
        let Generation {
            prompt, max_tokens, ..
        } = generation;
        !prompt.is_empty()
            && prompt.len() <= self.context_length
            && *max_tokens <= self.context_length - prompt.len()
            && prompt.iter().all(|&id| (id as usize) < self.vocab_size)
    }
}

/// Why generations were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More would wait than may.
    #[error("the server is at capacity; retry in {} s", retry_after.as_secs())]
    QueueFull {
        /// When all that waits now is likely to have been admitted, by the rate at which the queue has been moving: 1 to
        /// 60 s, whole seconds.
        retry_after: Duration,
    },
    /// The engine finishes what it has and accepts nothing new.
    #[error("the server is shutting down")]
    Draining,
    /// The engine has stopped or died.
    #[error("the server has stopped")]
    Stopped,
}

/// How the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It accepts generations.
    Running,
    /// It finishes what it has.
    Draining,
    /// It has finished all it had.
    Stopped,
    /// It died of a defect; what was in flight has failed.
    Failed,
}

/// A running step, for those who watch that it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Steps are counted.
    pub number: u64,
    /// What a step of its size may take by what the last ones took; `None` before there were any.
    pub usual: Option<Duration>,
}

/// A handle to the engine; clones share it. When the last one is dropped, the engine drains.
#[derive(Debug, Clone)]
pub struct Engine {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    queue: Arc<Queue>,
    limits: Limits,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.drain();
    }
}

impl Engine {
    /// Starts the engine's thread, which owns `model` until it has drained.
    ///
    /// # Errors
    /// [`Error::Config`] if a setting cannot work or the model has no KV pages, [`Error::Internal`] if there is no thread
    /// to be had.
    pub fn start(
        model: Box<dyn Forward>,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        settings.check()?;
        let cached_tokens = model.page_count().saturating_mul(PAGE_TOKENS);
        if cached_tokens == 0 {
            return Err(Error::Config("the KV cache has no room for a page".into()));
        }
        let limits = Limits {
            vocab_size: model.vocab_size(),
            context_length: model.context_length().min(cached_tokens),
            max_batch: settings.max_batch,
            max_queue: settings.max_queue,
        };
        let places = |count: usize| count.try_into().unwrap_or(i64::MAX);
        metrics.batch_places.set(places(settings.max_batch));
        metrics.queue_places.set(places(settings.max_queue));
        let waiting = metrics.requests_waiting.clone();
        let queue = Arc::new(Queue::new(settings.max_queue, settings.max_batch, waiting));
        let worker = Worker::new(model, settings, Arc::clone(&queue), metrics);
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || worker.work())
            .map_err(|error| Error::Internal(format!("cannot start the engine: {error}")))?;
        let handle = Arc::new(Handle { queue, limits });
        Ok(Self { handle })
    }

    /// Queues all of the generations or none of them; never waits.
    ///
    /// # Errors
    /// The [`Refusal`].
    ///
    /// # Panics
    /// If [`Limits::allow`] says no to a generation: the caller checks, and one that does not fit would block the queue.
    pub fn submit(
        &self,
        generations: Vec<Generation>,
    ) -> std::result::Result<Vec<TokenStream>, Refusal> {
        let now = Instant::now();
        let (sequences, streams) = generations
            .into_iter()
            .map(|generation| {
                assert!(
                    self.handle.limits.allow(&generation),
                    "a generation was submitted without being checked against the limits"
                );
                Sequence::new(generation, now)
            })
            .unzip();
        self.handle.queue.push(sequences)?;
        Ok(streams)
    }

    /// Whether `count` generations would be accepted now: lets a caller refuse before it has done any work for them.
    /// [`Engine::submit`] decides.
    ///
    /// # Errors
    /// The [`Refusal`] that `submit` would give.
    pub fn has_room(&self, count: usize) -> std::result::Result<(), Refusal> {
        self.handle.queue.has_room(count)
    }

    /// What may be submitted.
    pub fn limits(&self) -> Limits {
        self.handle.limits
    }

    /// Stops admission. What runs and what waits is finished, then the engine stops.
    pub fn drain(&self) {
        self.handle.queue.drain();
    }

    /// Resolves when the engine has stopped, whether drained or dead.
    pub async fn stopped(&self) {
        let mut health = self.handle.queue.watch_health();
        // The sender is in the queue that `self` holds, so this cannot fail.
        let _ = health
            .wait_for(|health| matches!(health, Health::Stopped | Health::Failed))
            .await;
    }

    /// How the engine is.
    pub fn health(&self) -> Health {
        self.handle.queue.health()
    }

    /// The step that is running, or `None` while there is no work.
    pub fn step(&self) -> Option<Step> {
        self.handle.queue.step()
    }

    /// How long the current step has been running, or `None` while there is no work: an engine whose step is much older
    /// than any step should be is stuck.
    pub fn step_age(&self) -> Option<Duration> {
        self.handle.queue.step_age()
    }
}
