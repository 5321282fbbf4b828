//! One thread that owns the model. [`Engine`] is the handle that the async side holds.
//!
//! A step is: admit → plan → forward → sample → emit. Requests join and leave between steps
//! (continuous batching), prompts go in chunks beside decoding rows, and one pass over the weights serves all.
//!
//! | file | what it holds |
//! |---|---|
//! | `request` | all that crosses the thread: a [`Generation`] in, [`TokenEvent`]s out; token ids only |
//! | `queue` | the waiting generations, the refusals of new ones, the engine's health |
//! | `forecast` | how long new generations will wait, and whether there is room for them |
//! | `worker` | the loop |
//! | [`scheduler`] | pure: which rows the next step has |
//! | [`pages`], `prefix_cache` | which sequence holds which KV page, and which pages hold the beginning of which text |
//! | `sequence` | one generation's tokens and events |
//! | [`receipt`] | what a generation has taken: times, processor time, cached tokens |
//! | `prompt_rows` | how many rows of prompts a step has |
//! | `step_times` | measured step times by number of rows |
//! | `speculation` | drafts of the next tokens, and whether they pay |
//! | `adjust` | penalties, biases, bans and constraints, applied to the logits before sampling |
//! | [`sampler`] | logits → token, and how likely it was |
//! | [`canary`] | fixed work, done in the background, whose result is known |
//!
//! What callers may rely on: the same generation gives the same tokens whatever else runs, whatever was cached and
//! whatever was drafted; [`Engine::submit`] never blocks; dropping a [`TokenStream`] frees the generation's slot and
//! pages; a generation that is preempted for lack of KV pages continues later with the same tokens, and nothing of it
//! is lost.

mod adjust;
pub mod canary;
mod forecast;
pub mod pages;
pub(crate) mod prefix_cache;
mod prompt_rows;
mod queue;
pub mod receipt;
mod recent_steps;
pub(crate) mod request;
pub mod sampler;
pub mod scheduler;
mod sequence;
mod snapshots;
mod speculation;
mod step_times;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

pub use prompt_rows::PromptRows;
pub use receipt::{OpenReceipt, Receipt};
pub use request::{Constraint, FinishReason, Flow, Generation, Sampling, Score, TokenEvent, Turn};
pub use sequence::TokenStream;

use crate::error::{Error, Result};
use crate::model::{Forward, PAGE_TOKENS, Rewind};
use crate::telemetry::Metrics;
use forecast::Bounds;
use queue::{Gauges, Queue};
use scheduler::Budget;
use sequence::Sequence;
use worker::Worker;

/// How the engine forms its batches.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Generations that run at once.
    pub max_batch: usize,
    /// Generations that may wait for a slot in the batch.
    pub max_queue: usize,
    /// Tokens that the prompts of those who wait may have together. One that waits alone may have more.
    pub max_queue_tokens: usize,
    /// How long after its arrival a generation may get its first token by what was measured; others are refused.
    pub target_ttft: Option<Duration>,
    /// Rows in a step: prompt tokens and decoding generations together; at least `max_batch`.
    pub step_tokens: usize,
    /// Prompt rows in a step that also decodes: how much a running stream is slowed down while another prompt is
    /// processed.
    pub prompt_rows: PromptRows,
    /// Whether full KV pages are kept and reused by prompts with the same beginning. Changes no output.
    pub prefix_cache: bool,
    /// Drafts per generation and step at most; 0 turns speculation off. Changes no output.
    pub speculation: usize,
    /// Bytes of events that a caller may leave unread; then its generation is paused until most of them are read. Changes no
    /// output.
    pub max_unread_bytes: usize,
}

impl Default for Settings {
    /// The numbers are for Granite 2B on two cores with 45 GB/s of memory bandwidth: a step takes 55 ms to read the
    /// weights, or 3.1 ms per row, whichever is longer.
    fn default() -> Self {
        Self {
            // 55 ms / 3.1 ms ≈ 17 rows: up to there a decoding row costs nothing extra; beyond it each row slows all
            // others.
            max_batch: 16,
            // Eight batches: the last request waits for eight completions, about as long as clients are willing to
            // wait.
            max_queue: 128,
            // The longest context of a Granite, or 128 prompts of 1,024 tokens.
            max_queue_tokens: 131_072,
            target_ttft: None,
            // A step takes 0.4 to 0.9 s on 2B, so a disconnected client is noticed within a second. The arithmetic of
            // 128 rows takes five times as long as reading the weights, and longer steps measured no faster (77 % of
            // peak at 128, 76 % at 512).
            step_tokens: 128,
            // A stream of 18 tokens/s slows down to 6, which is still fluent to read. At this factor the prompt gets
            // more than two thirds of the step's time, so it loses little of its own speed.
            prompt_rows: PromptRows::Slowdown(3.0),
            prefix_cache: true,
            // Quotations can be long. How many of these drafts are worth their rows is measured: with VNNI, sixteen
            // more rows of a 2B model cost a fifth of a step.
            speculation: 16,
            // About a thousand tokens without scores: more text than anybody reads in a minute. With the tokens themselves and
            // the buffers of its connection, a stream that nobody reads then takes less than 64 KiB.
            max_unread_bytes: 16 << 10,
        }
    }
}

impl Settings {
    /// Without a prefix cache if the model cannot go back: the pages of another sequence do not hold the state that
    /// follows them.
    fn for_model(self, rewind: Rewind) -> Self {
        match rewind {
            Rewind::Free => self,
            Rewind::Snapshots(0) => {
                if self.prefix_cache {
                    info!(
                        "this model goes back only to snapshots, and has no room for one: no prefix cache"
                    );
                }
                Self {
                    prefix_cache: false,
                    ..self
                }
            }
            Rewind::Snapshots(_) => self,
        }
    }

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

    /// How many sequences can run at once, those in lent places included: [`crate::model::Span::slot`] is below it.
    pub const fn slots(&self) -> usize {
        self.budget().max_running()
    }

    const fn budget(&self) -> Budget {
        Budget {
            max_batch: self.max_batch,
            step_tokens: self.step_tokens,
        }
    }
}

/// What a [`Generation`] must fit into, and how many the engine accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// `prompt.len() + max_tokens` is at most this: the model's context, or the capacity of the KV pages if that is
    /// less.
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
    /// The queue has no room for them.
    #[error("the server is at capacity; retry in {} s", retry_after.as_secs())]
    QueueFull {
        /// What there is no room for.
        part: QueuePart,
        /// When all generations that wait now are likely to have been admitted, by the queue's recent rate: 1 to 60 s,
        /// whole seconds.
        retry_after: Duration,
    },
    /// Their first token would come later than [`Settings::target_ttft`].
    #[error("the first token would come too late; retry in {} s", retry_after.as_secs())]
    Late {
        /// When it would come in time, by the measured rates: 1 to 60 s, whole seconds.
        retry_after: Duration,
    },
    /// The engine finishes the generations it has and accepts no new ones.
    #[error("the server is shutting down")]
    Draining,
    /// The engine has stopped or died.
    #[error("the server has stopped")]
    Stopped,
}

/// A limit of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueuePart {
    /// [`Settings::max_queue`].
    Requests,
    /// [`Settings::max_queue_tokens`].
    Tokens,
    /// What one flow may have of either.
    Share,
}

/// The state of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It accepts generations.
    Running,
    /// It finishes the generations it has and accepts no new ones.
    Draining,
    /// It has finished every generation and stopped.
    Stopped,
    /// It panicked, which is a defect; all generations in flight have failed.
    Failed,
}

/// The step that is running, for a watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Counts steps from 1.
    pub number: u64,
    /// The longest that a step with as many rows should take, judging by recent steps; `None` before any was measured.
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
    max_unread_bytes: usize,
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
    /// [`Error::Config`] if a setting is invalid or the model has no KV pages, [`Error::Internal`] if the thread cannot
    /// be started.
    pub fn start(
        model: Box<dyn Forward>,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        settings.check()?;
        let settings = settings.for_model(model.rewind());
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
        metrics
            .queue_token_places
            .set(places(settings.max_queue_tokens));
        let bounds = Bounds {
            requests: settings.max_queue,
            tokens: settings.max_queue_tokens,
            first_token: settings.target_ttft,
        };
        let gauges = Gauges {
            requests: metrics.requests_waiting.clone(),
            tokens: metrics.prompt_tokens_waiting.clone(),
        };
        let queue = Arc::new(Queue::new(bounds, settings.max_batch, gauges));
        let max_unread_bytes = settings.max_unread_bytes;
        let worker = Worker::new(model, settings, Arc::clone(&queue), metrics);
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || worker.work())
            .map_err(|error| Error::Internal(format!("cannot start the engine: {error}")))?;
        let handle = Arc::new(Handle {
            queue,
            limits,
            max_unread_bytes,
        });
        Ok(Self { handle })
    }

    /// Queues all of the generations, which are of one flow, or none of them; never blocks.
    ///
    /// # Errors
    /// The [`Refusal`].
    ///
    /// # Panics
    /// If [`Limits::allow`] rejects a generation: callers check first, because one that does not fit would block the
    /// queue.
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
                Sequence::new(generation, now, self.handle.max_unread_bytes)
            })
            .unzip();
        self.handle.queue.push(sequences)?;
        Ok(streams)
    }

    /// Runs a generation in the background: only while there is no other, and given up ([`TokenEvent::Displaced`]) as soon as
    /// another arrives or the engine drains. It counts in no metric, and takes no place in the queue. `None` if the engine is
    /// not idle, or is stopping.
    ///
    /// # Panics
    /// As [`Self::submit`].
    pub fn submit_in_background(&self, generation: Generation) -> Option<TokenStream> {
        assert!(
            self.handle.limits.allow(&generation),
            "a generation was submitted without being checked against the limits"
        );
        let unread = self.handle.max_unread_bytes;
        let (sequence, stream) = Sequence::new(generation, Instant::now(), unread);
        let is_taken = self.handle.queue.push_background(sequence.in_background());
        is_taken.then_some(stream)
    }

    /// Whether `count` generations of `flow` with short prompts would be accepted now, so that a caller can refuse a request before doing any work
    /// for it. [`Engine::submit`] still decides.
    ///
    /// # Errors
    /// The [`Refusal`] that `submit` would give.
    pub(crate) fn has_room(&self, flow: Flow, count: usize) -> std::result::Result<(), Refusal> {
        self.handle.queue.has_room(flow, count)
    }

    /// The limits on what may be submitted.
    pub fn limits(&self) -> Limits {
        self.handle.limits
    }

    /// Stops accepting generations. Those that run or wait are finished, then the engine stops.
    pub fn drain(&self) {
        self.handle.queue.drain();
    }

    /// Resolves when the engine has stopped, whether it drained or failed.
    pub async fn stopped(&self) {
        let mut health = self.handle.queue.watch_health();
        // The sender is in the queue that `self` holds, so this cannot fail.
        let _ = health
            .wait_for(|health| matches!(health, Health::Stopped | Health::Failed))
            .await;
    }

    /// The state of the engine.
    pub fn health(&self) -> Health {
        self.handle.queue.health()
    }

    /// The step that is running, or `None` while there is no work.
    pub fn step(&self) -> Option<Step> {
        self.handle.queue.step()
    }

    /// How long the current step has been running, or `None` while there is no work. An engine whose step is much older
    /// than usual is stuck.
    pub fn step_age(&self) -> Option<Duration> {
        self.handle.queue.step_age()
    }
}
