//! The loop of the engine's thread: admit, plan, forward, sample, emit.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tracing::{error, info};

use super::pages::Pages;
use super::queue::Queue;
use super::sampler::Sampler;
use super::scheduler::{Job, Load, Scheduler, Work};
use super::sequence::Sequence;
use super::speculation::DraftBudget;
use super::step_times::StepTimes;
use super::{Health, Settings};
use crate::model::{Forward, PAGE_TOKENS, Rewind, Span};
use crate::telemetry::{Metrics, cpu_seconds};

/// The state of the engine's thread.
pub(super) struct Worker {
    model: Box<dyn Forward>,
    settings: Settings,
    scheduler: Scheduler<Sequence>,
    /// The plan of the current step; the memory is reused.
    plan: Vec<Work>,
    /// Scratch: what each flow has.
    loads: Vec<Load>,
    /// Empty between steps; keeps the memory of the spans.
    spans: Vec<Span<'static>>,
    times: StepTimes,
    sampler: Sampler,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    /// Whether all that runs is a generation in the background.
    in_background: bool,
    /// What it adds to the metrics, which nobody reads: it is not the work of a client.
    unseen: Arc<Metrics>,
    /// `kv_cache_bytes{state="used"}`.
    kv_used: IntGauge,
    /// `kv_cache_bytes{state="cached"}`.
    kv_cached: IntGauge,
    /// `recurrent_state_bytes{state="used"}`.
    states_used: IntGauge,
    /// `recurrent_state_bytes{state="cached"}`.
    states_cached: IntGauge,
    /// The processor time of the process up to which it has been divided between generations.
    cpu_seconds: f64,
}

/// How often an engine that has nothing else to do looks whether the clients of paused generations have read. Those have
/// hundreds of tokens left to read until then, so nobody notices, and it takes next to no processor time.
const LOOK_AFTER: Duration = Duration::from_millis(20);

impl Worker {
    pub fn new(
        model: Box<dyn Forward>,
        settings: Settings,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let kv_bytes = |state| metrics.kv_cache_bytes.with_label_values(&[state]);
        kv_bytes("reserved").set(bytes(&*model, model.page_count()));
        let (kv_used, kv_cached) = (kv_bytes("used"), kv_bytes("cached"));
        metrics.set_kv_cache_info(PAGE_TOKENS, model.page_count(), settings.prefix_cache);
        let (snapshots, keeps_states) = match model.rewind() {
            Rewind::Free => (None, false),
            Rewind::Snapshots(count) => (Some(count).filter(|_| settings.prefix_cache), true),
        };
        let state_bytes = |state| metrics.recurrent_state_bytes.with_label_values(&[state]);
        let reserved = settings.slots().saturating_add(snapshots.unwrap_or(0));
        state_bytes("reserved").set(states(&*model, reserved));
        let (states_used, states_cached) = (state_bytes("used"), state_bytes("cached"));
        let buffers = &metrics.memory().step_buffer_bytes;
        buffers.set(gauge(model.buffer_bytes()));
        let pages = Pages::new(model.page_count(), settings.prefix_cache, snapshots);
        Self {
            scheduler: Scheduler::new(settings.budget(), pages, keeps_states),
            model,
            plan: Vec::new(),
            loads: Vec::new(),
            spans: Vec::new(),
            times: StepTimes::new(settings.step_tokens),
            settings,
            sampler: Sampler::default(),
            queue,
            metrics,
            in_background: false,
            unseen: Arc::new(Metrics::new()),
            kv_used,
            kv_cached,
            states_used,
            states_cached,
            cpu_seconds: 0.0,
        }
    }

    /// Runs until the queue is drained. A panic, which is a defect, ends the engine, because the model's state cannot
    /// be trusted after it: everything in flight fails, and nothing is accepted any more.
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
                self.metrics.requests_paused.set(0);
                self.kv_used.set(0);
                self.kv_cached.set(0);
                self.states_used.set(0);
                self.states_cached.set(0);
            }
        }
    }

    fn run(&mut self) {
        loop {
            if !self.scheduler.is_empty() && self.scheduler.is_at_rest() {
                self.queue.rest(LOOK_AFTER);
                self.cpu_seconds = cpu_seconds();
            }
            let was_idle = self.scheduler.is_empty();
            let Some((arrivals, background)) = self.queue.take(was_idle) else {
                return;
            };
            if was_idle {
                // No generation is charged for what the process did while it waited.
                self.cpu_seconds = cpu_seconds();
            }
            let is_displaced = !arrivals.is_empty() || self.queue.health() != Health::Running;
            if self.in_background && is_displaced {
                let displaced = self.scheduler.remove_if(Sequence::is_background);
                displaced.into_iter().for_each(Sequence::displace);
                self.in_background = false;
            }
            for sequence in arrivals {
                self.arrive(sequence);
            }
            if let Some(background) = background {
                match self.scheduler.is_empty() && !is_displaced {
                    true => {
                        self.in_background = true;
                        self.arrive(background);
                    }
                    false => background.displace(),
                }
            }
            self.step();
            self.in_background &= !self.scheduler.is_empty();
        }
    }

    fn arrive(&mut self, sequence: Sequence) {
        let (prompt_len, max_tokens) = (sequence.prompt_len(), sequence.max_tokens());
        self.scheduler.arrive(sequence, prompt_len, max_tokens);
    }

    /// Runs one step of the whole batch.
    fn step(&mut self) {
        let began = Instant::now();
        drop(self.scheduler.remove_if(Sequence::is_abandoned));
        let admitted = self.scheduler.admit();
        self.speculate();
        let (beside, alone) = self.settings.prompt_rows.of_step(
            &self.times,
            self.scheduler.running().len(),
            self.scheduler.decoding_rows(),
            self.settings.step_tokens,
        );
        self.scheduler.plan(beside, alone, &mut self.plan);
        self.publish(admitted);
        if self.plan.is_empty() {
            // All generations were abandoned or paused. If one were still waiting for pages, this loop would spin for ever.
            assert!(self.scheduler.is_at_rest(), "a step without work");
            return;
        }
        let (rows, prompt_rows) = self.count_rows();
        self.queue.run_rows(rows);
        let wants_rows = self.scheduler.wants_rows();
        if !self.forward_and_sample() {
            // All of the step have left, or make room. The next one begins by removing them.
            self.scheduler.give_up(&self.plan);
            self.queue.give_up_step();
            return;
        }
        self.scheduler.settle(&self.plan);
        let ended = self.scheduler.remove_if(Sequence::has_ended);
        // Before the ends are reported, so that a client that learns of one finds the slot free.
        self.publish(0);
        ended.into_iter().for_each(Sequence::finish);
        if self.in_background {
            // Its short prompts would tell of less than the model can do, and requests are refused by these times.
            return;
        }
        let seconds = began.elapsed().as_secs_f64();
        self.times.observe(rows, seconds);
        if wants_rows {
            self.times.observe_prompts(prompt_rows, seconds);
        }
    }

    /// Drafts the next tokens of each generation where that is likely to pay.
    fn speculate(&mut self) {
        let (decoding, most) = (self.scheduler.decoding(), self.settings.speculation);
        if most == 0 || self.in_background || decoding < self.scheduler.running().len() {
            return;
        }
        let rows = self.scheduler.decoding_rows();
        let mut budget = DraftBudget::new(&self.times, rows, self.settings.step_tokens);
        for running in self.scheduler.running_mut() {
            running.job.speculate(&mut budget, most);
        }
    }

    /// Runs the planned rows through the model. Each sequence that reached its last token gets the next one, and
    /// further ones as far as its drafts were right. Returns false if the step was given up, because all clients left meanwhile
    /// or what runs in the background is displaced: a step that a client waits for is computed to its end.
    fn forward_and_sample(&mut self) -> bool {
        let running = self.scheduler.running();
        let mut spans = recycled(std::mem::take(&mut self.spans));
        spans.extend(self.plan.iter().map(|work| {
            let running = &running[work.index];
            Span {
                tokens: &running.job.tokens()[work.start..work.start + work.rows],
                start: work.start,
                pages: running.pages(),
                slot: running.slot(),
                certain: work.rows - work.drafts,
                restore: running.restore(),
                saves: running.saves(),
                logit_rows: work.logit_rows,
            }
        }));
        let vocab_size = self.model.vocab_size();
        let (plan, queue, in_background) = (&self.plan, &self.queue, self.in_background);
        let is_wanted = || {
            if in_background && queue.displaces_background() {
                return false;
            }
            let mut jobs = plan.iter().map(|work| &running[work.index].job);
            jobs.any(|job| !job.is_abandoned())
        };
        let (began, sequences) = (Instant::now(), spans.len());
        let logits = self.model.forward_while(&spans, &is_wanted);
        self.spans = recycled(spans);
        let now = Instant::now();
        let seconds = (now - began).as_secs_f64();
        let metrics = match in_background {
            true => &self.unseen,
            false => &self.metrics,
        };
        metrics.forward_seconds_total.inc_by(seconds);
        let until = cpu_seconds();
        let used = until - std::mem::replace(&mut self.cpu_seconds, until);
        let rows: usize = self.plan.iter().map(|work| work.rows).sum();
        for work in &self.plan {
            let share = work.rows as f64 / rows as f64;
            running[work.index].job.add_cpu_seconds(used * share);
        }
        let Some(logits) = logits else {
            return false;
        };

        let wanted: usize = self.plan.iter().map(|work| work.logit_rows).sum();
        assert_eq!(
            logits.len(),
            wanted * vocab_size,
            "one row of logits per row that wants them"
        );
        let running = self.scheduler.running_mut();
        let mut rows = logits.chunks_exact(vocab_size);
        for work in &mut self.plan {
            let sequence = &mut running[work.index].job;
            let (mut end, mut holds) = (work.start + work.rows, true);
            for (position, logits) in (end - work.logit_rows..end).zip(rows.by_ref()) {
                // Rows behind a refused draft were computed for the wrong token.
                if holds {
                    end = position + 1;
                    holds = sequence.advance(position, logits, &mut self.sampler, now, metrics);
                }
            }
            let rows = end - work.start;
            let accepted = work.drafts - (work.rows - rows);
            sequence.end_drafts(work.drafts, accepted, metrics);
            work.rows = rows;
        }
        let bytes = self.model.bytes_read(sequences);
        metrics.forward_bytes_total.inc_by(bytes);
        true
    }

    /// Updates the metrics for the planned step; returns its rows, and how many of them are rows of prompts. What is
    /// recomputed after a preemption counts as rows only.
    fn count_rows(&mut self) -> (usize, usize) {
        let now = Instant::now();
        let metrics = match self.in_background {
            true => &self.unseen,
            false => &self.metrics,
        };
        let (mut prompt_tokens, mut rows, mut prompt_rows) = (0, 0, 0);
        for work in &self.plan {
            let running = &mut self.scheduler.running_mut()[work.index];
            let reused = running.reused();
            prompt_rows += usize::from(!running.is_decoding()) * work.rows;
            let sequence = &mut running.job;
            rows += work.rows;
            if sequence.is_new() {
                let wait = sequence.begin(reused, now);
                metrics.queue_wait_seconds.observe(wait.as_secs_f64());
                prompt_tokens += reused;
                if self.settings.prefix_cache {
                    let queries = &metrics.prefix_cache_queries_total;
                    queries.inc_by(sequence.prompt_len() as u64);
                    metrics.prefix_cache_hits_total.inc_by(reused as u64);
                }
            }
            prompt_tokens += sequence.set_computed(work.start + work.rows);
        }
        metrics.batch_rows.observe(rows as f64);
        metrics.prompt_tokens_total.inc_by(prompt_tokens as u64);
        (rows, prompt_rows)
    }

    /// Publishes how many generations run and wait, and the pages and states that they use, to the metrics and the queue.
    fn publish(&mut self, admitted: usize) {
        // A generation in the background leaves its slot and pages to whoever comes.
        let (running, used, admitted) = match self.in_background {
            true => (0, 0, 0),
            false => {
                let running = self.scheduler.running().len();
                (running, self.scheduler.pages_used(), admitted)
            }
        };
        self.metrics.requests_running.set(gauge(running));
        let paused = self.scheduler.paused();
        self.metrics.requests_paused.set(gauge(paused));
        let pages = self.scheduler.pages();
        let evictions = &self.metrics.prefix_cache_evictions_total;
        evictions.inc_by(pages.evicted() - evictions.get());
        let preemptions = &self.metrics.preemptions_total;
        preemptions.inc_by(self.scheduler.preemptions() - preemptions.get());
        self.kv_cached.set(bytes(&*self.model, pages.cached()));
        self.kv_used.set(bytes(&*self.model, used));
        self.states_used.set(states(&*self.model, running));
        let buffers = &self.metrics.memory().step_buffer_bytes;
        buffers.set(gauge(self.model.buffer_bytes()));
        self.states_cached
            .set(states(&*self.model, pages.snapshots()));
        let places = self.settings.max_batch.saturating_sub(running);
        match self.in_background {
            true => self.loads.clear(),
            false => self.scheduler.loads(&mut self.loads),
        }
        let rate = self.times.prefill_rate();
        self.queue.report(&mut self.loads, places, admitted, rate);
    }
}

/// Reuses the memory of a vector of spans for the spans of another step: collecting the items moved out of a vector
/// into one of the same layout allocates nothing.
fn recycled<'b>(mut spans: Vec<Span<'_>>) -> Vec<Span<'b>> {
    spans.clear();
    let none = spans.into_iter().map(|_| unreachable!("it is empty"));
    none.collect()
}

/// Bytes of `pages` KV pages, as a gauge takes them.
fn bytes(model: &dyn Forward, pages: usize) -> i64 {
    gauge(pages.saturating_mul(model.page_bytes()))
}

/// Bytes of `count` states of sequences, as a gauge takes them.
fn states(model: &dyn Forward, count: usize) -> i64 {
    gauge(count.saturating_mul(model.state_bytes()))
}

fn gauge(value: usize) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
