//! The receipt of a request: what it took, for its log line, for the metrics, and for its response.

use std::time::Duration;

use serde::Serialize;

use crate::engine::{self, OpenReceipt};
use crate::telemetry::Metrics;

/// What the engine has taken for the generations of a request so far.
pub struct Generations {
    /// The receipt of each generation, ordered by prompt.
    receipts: Vec<OpenReceipt>,
    /// Generations of each prompt.
    answers: usize,
}

impl Generations {
    /// The `receipts` of all generations of a request, the same number of `answers` to each prompt.
    pub const fn new(receipts: Vec<OpenReceipt>, answers: usize) -> Self {
        Self { receipts, answers }
    }

    /// All of them together. The cached tokens of a prompt count once, however many answers it has.
    pub fn together(&self) -> Option<engine::Receipt> {
        let receipts = self.receipts.iter().enumerate().map(|(index, receipt)| {
            let receipt = receipt.so_far();
            let is_first = index.is_multiple_of(self.answers.max(1));
            engine::Receipt {
                cached_tokens: if is_first { receipt.cached_tokens } else { 0 },
                ..receipt
            }
        });
        receipts.reduce(engine::Receipt::together)
    }
}

/// What a request took, from its arrival at the engine to its end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Receipt {
    /// Until the first step that computed rows of it; `None` if there was none.
    pub queue_seconds: Option<f64>,
    /// From there to its first token.
    pub prefill_seconds: Option<f64>,
    /// From there to its last token.
    pub decode_seconds: Option<f64>,
    /// Its share, by rows, of the processor time of its steps, over all threads.
    pub cpu_seconds: f64,
    /// Tokens of all prompts, each counted once.
    pub prompt_tokens: usize,
    /// Those of them that were found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens of all answers, with the ids that ended them.
    pub generated_tokens: usize,
    /// One of [`OUTCOMES`](crate::telemetry::OUTCOMES).
    pub outcome: &'static str,
}

impl Receipt {
    /// The receipt of a request with such token counts and such an `outcome`.
    pub fn new(
        generations: Option<&Generations>,
        prompt_tokens: usize,
        generated_tokens: usize,
        outcome: &'static str,
    ) -> Self {
        let taken = generations.and_then(Generations::together);
        let phase = |of: fn(&engine::Receipt) -> Option<Duration>| {
            let duration = of(taken.as_ref()?)?;
            Some(to_microseconds(duration.as_secs_f64()))
        };
        Self {
            queue_seconds: phase(engine::Receipt::queue),
            prefill_seconds: phase(engine::Receipt::prefill),
            decode_seconds: phase(engine::Receipt::decode),
            cpu_seconds: to_microseconds(taken.map_or(0.0, |taken| taken.cpu_seconds)),
            prompt_tokens,
            cached_tokens: taken.map_or(0, |taken| taken.cached_tokens),
            generated_tokens,
            outcome,
        }
    }

    /// Adds the phases of a request that has ended to their histograms.
    pub fn count(&self, metrics: &Metrics) {
        if let Some(seconds) = self.prefill_seconds {
            metrics.request_prefill_seconds.observe(seconds);
        }
        if let Some(seconds) = self.decode_seconds.filter(|_| self.outcome == "ok") {
            metrics.request_decode_seconds.observe(seconds);
        }
        if self.queue_seconds.is_some() {
            metrics.request_cpu_seconds.observe(self.cpu_seconds);
        }
    }

    /// Adds a request that has ended to what the client of this name has used.
    pub fn count_client(&self, metrics: &Metrics, name: &str) {
        let requests = &metrics.key_requests_total;
        requests.with_label_values(&[name, self.outcome]).inc();
        for (tokens, count) in [
            (&metrics.key_prompt_tokens_total, self.prompt_tokens),
            (&metrics.key_generation_tokens_total, self.generated_tokens),
        ] {
            tokens.with_label_values(&[name]).inc_by(count as u64);
        }
        let waited = self.queue_seconds.unwrap_or(0.0);
        let total = &metrics.key_queue_seconds_total;
        total.with_label_values(&[name]).inc_by(waited);
    }
}

/// Rounded to microseconds: what is below them is noise, and fills log lines.
fn to_microseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}
