//! The loop of the engine's thread: admit, plan, forward, sample, emit.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use prometheus::IntGauge;
use tracing::{error, info};

use super::queue::Queue;
use super::sampler::Sampler;
use super::scheduler::{Scheduler, Work};
use super::sequence::Sequence;
use super::{Health, Settings};
use crate::model::{Forward, Span};
use crate::telemetry::Metrics;

/// What the engine's thread owns.
pub(super) struct Worker {
    model: Box<dyn Forward>,
    max_batch: usize,
    scheduler: Scheduler<Sequence>,
    /// The plan of the current step, kept for its memory.
    plan: Vec<Work>,
    sampler: Sampler,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    /// `kv_cache_bytes{state="used"}`.
    kv_used: IntGauge,
}

impl Worker {
    pub fn new(
        model: Box<dyn Forward>,
        settings: &Settings,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let kv_bytes = |state| metrics.kv_cache_bytes.with_label_values(&[state]);
        kv_bytes("reserved").set(bytes(&*model, model.page_count()));
        let kv_used = kv_bytes("used");
        Self {
            max_batch: settings.max_batch,
            scheduler: Scheduler::new(settings.budget(), model.page_count()),
            model,
            plan: Vec::new(),
            sampler: Sampler::default(),
            queue,
            metrics,
            kv_used,
        }
    }

    /// Works until the queue is drained. A panic, which is a defect, ends the engine: what the model's state is worth
    /// after it nobody knows. Everything in flight fails, and nothing is accepted any more.
    pub fn work(mut self) {
        let queue = Arc::clone(&self.queue);
        match catch_unwind(AssertUnwindSafe(|| self.run())) {
            Ok(()) => {
                drop(self);
                info!("the engine has drained");
                queue.close(Health::Stopped);
            }
            Err(panic) => {
                error!(panic = message(&*panic), "the engine died of a panic");
                queue.close(Health::Failed);
                self.metrics.requests_running.set(0);
                self.kv_used.set(0);
            }
        }
    }

    fn run(&mut self) {
        while let Some(arrivals) = self.queue.take(self.scheduler.is_empty()) {
            for sequence in arrivals {
                let (prompt_len, max_tokens) = (sequence.prompt_len(), sequence.max_tokens());
                self.scheduler.arrive(sequence, prompt_len, max_tokens);
            }
            self.step();
        }
    }

    /// One step of the whole batch.
    fn step(&mut self) {
        drop(self.scheduler.remove_if(Sequence::is_abandoned));
        let admitted = self.scheduler.admit();
        self.scheduler.plan(&mut self.plan);
        for work in &mut self.plan {
            if self.scheduler.running()[work.index].job.scores_prompt() {
                work.logit_rows = work.rows;
            }
        }
        self.publish(admitted);
        if self.plan.is_empty() {
            // Everybody has left. Were somebody waiting for pages that nobody holds, this would spin for ever.
            assert!(self.scheduler.is_empty(), "a step without work");
            return;
        }
        self.count_rows();
        self.forward_and_sample();
        let ended = self.scheduler.remove_if(Sequence::has_ended);
        // Before the ends are told, so that whoever hears of one finds the place free.
        self.publish(0);
        ended.into_iter().for_each(Sequence::finish);
    }

    /// Runs the planned rows through the model and gives each sequence that reached its last token the next one.
    fn forward_and_sample(&mut self) {
        let running = self.scheduler.running();
        let spans: Vec<Span<'_>> = self
            .plan
            .iter()
            .map(|work| Span {
                tokens: running[work.index].job.tokens(work.start, work.rows),
                start: work.start,
                pages: running[work.index].pages(),
                logit_rows: work.logit_rows,
            })
            .collect();
        let vocab_size = self.model.vocab_size();
        let logits = self.model.forward(&spans);
        let now = Instant::now();

        let wanted: usize = self.plan.iter().map(|work| work.logit_rows).sum();
        assert_eq!(
            logits.len(),
            wanted * vocab_size,
            "one row of logits per row that wants them"
        );
        let running = self.scheduler.running_mut();
        let mut rows = logits.chunks_exact(vocab_size);
        for work in &self.plan {
            let sequence = &mut running[work.index].job;
            let end = work.start + work.rows;
            for (position, logits) in (end - work.logit_rows..end).zip(rows.by_ref()) {
                if !sequence.has_ended() {
                    sequence.advance(position, logits, &mut self.sampler, now, &self.metrics);
                }
            }
        }
    }

    /// Counts what the planned step takes in.
    fn count_rows(&self) {
        let now = Instant::now();
        let mut prompt_rows = 0;
        for work in &self.plan {
            let sequence = &self.scheduler.running()[work.index].job;
            if work.start == 0 {
                let wait = now - sequence.arrived();
                self.metrics.queue_wait_seconds.observe(wait.as_secs_f64());
            }
            if sequence.generated() == 0 {
                prompt_rows += work.rows;
            }
        }
        let rows: usize = self.plan.iter().map(|work| work.rows).sum();
        self.metrics.batch_rows.observe(rows as f64);
        self.metrics.prompt_tokens_total.inc_by(prompt_rows as u64);
    }

    /// Shows the outside who runs and who waits.
    fn publish(&self, admitted: usize) {
        let running = self.scheduler.running().len();
        self.metrics.requests_running.set(gauge(running));
        self.kv_used
            .set(bytes(&*self.model, self.scheduler.pages_used()));
        let waiting = self.scheduler.waiting();
        self.queue
            .report(waiting, self.max_batch - running, admitted);
    }
}

/// Bytes of `pages` KV pages, as a gauge takes them.
fn bytes(model: &dyn Forward, pages: usize) -> i64 {
    gauge(pages.saturating_mul(model.page_bytes()))
}

fn gauge(value: usize) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
