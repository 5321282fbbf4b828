//! The metrics, declared as one struct.

mod process;
mod registry;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

use crate::model::WeightMemory;
use crate::model::evaluate::Evaluation;
pub use process::Process;
use registry::{
    counter, counters, gauge, gauge_value, gauges, histogram, histograms, opts, register,
};

/// Seconds until the first token: the boundaries of vLLM's metric of the same name, so that its dashboards and rules
/// carry over; the upper end holds a long prompt on a slow CPU.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between tokens: vLLM's boundaries, with 1 ms and 5 ms below them for small models.
const INTER_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
    7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Seconds of waiting and of whole requests: vLLM's boundaries, with four below them for short requests.
const REQUEST_SECONDS: &[f64] = &[
    0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0,
    50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
/// Tokens of a prompt or an answer: vLLM's boundaries, up to the longest context of a Granite.
const REQUEST_TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0, 100_000.0, 200_000.0,
];
/// Rows in one step: powers of two up to the largest prompt chunk.
const BATCH_ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// How requests end: answered in full; refused for what they ask (4xx); refused for want of room (429); refused because
/// nothing is served just now (503); left by the client; failed on our side.
pub const OUTCOMES: [&str; 6] = [
    "ok",
    "invalid",
    "rejected",
    "unavailable",
    "cancelled",
    "error",
];

/// What is known of the weights that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightsState {
    /// They have not been compared with their checksums (yet), or have none.
    Unverified,
    /// They are what was written.
    Verified,
    /// They are not.
    Damaged,
}

/// Every metric of the service. Counting happens where the thing happens; rendering touches no engine thread.
pub struct Metrics {
    registry: Registry,
    /// Requests by outcome, one of [`OUTCOMES`].
    pub requests_total: IntCounterVec,
    /// Their status lines, by HTTP status.
    pub responses_total: IntCounterVec,
    /// Answers that came to their end, by `finish_reason`.
    pub answers_total: IntCounterVec,
    /// Tokens of each prompt that was answered.
    pub request_prompt_tokens: Histogram,
    /// Tokens of each answer, those of several choices together.
    pub request_generation_tokens: Histogram,
    /// Generations that can run at once.
    pub batch_places: IntGauge,
    /// Generations that can wait for a place.
    pub queue_places: IntGauge,
    /// How often a step took so long that requests were refused.
    pub engine_stalls_total: IntCounter,
    /// Generations that hold a place in the batch.
    pub requests_running: IntGauge,
    /// Generations that wait for a place.
    pub requests_waiting: IntGauge,
    /// From arrival to the first generated token.
    pub time_to_first_token_seconds: Histogram,
    /// Between consecutive tokens of one generation.
    pub inter_token_latency_seconds: Histogram,
    /// From arrival to the last byte of the answer, by outcome: what is refused takes no time.
    pub request_duration_seconds: HistogramVec,
    /// From arrival to the first step that works on the generation.
    pub queue_wait_seconds: Histogram,
    /// Prompt tokens taken in, those found in the prefix cache included.
    pub prompt_tokens_total: IntCounter,
    /// Tokens generated.
    pub generation_tokens_total: IntCounter,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_queries_total: IntCounter,
    /// Prompt tokens found there, which were not computed again.
    pub prefix_cache_hits_total: IntCounter,
    /// Cached KV pages that were given to another text.
    pub prefix_cache_evictions_total: IntCounter,
    /// Generations that gave their KV pages back before their end, to go on later.
    pub preemptions_total: IntCounter,
    /// Generations that failed because the model gave logits that are not finite.
    pub nonfinite_logits_total: IntCounter,
    /// Tokens guessed by prompt lookup and run.
    pub speculation_drafted_tokens_total: IntCounter,
    /// Guessed tokens that were right; they are among the tokens generated.
    pub speculation_accepted_tokens_total: IntCounter,
    /// Grammars that requests came with, by what became of them: `hit` (compiled or refused before), `compiled`, `refused`,
    /// `timeout`, `busy` (too many waited), `unavailable`.
    pub grammars_total: IntCounterVec,
    /// Rows per step: prompt tokens, decoding sequences and their drafts together.
    pub batch_rows: Histogram,
    /// Weights as loaded, by component and dtype.
    pub model_weight_bytes: IntGaugeVec,
    /// The same shapes in a float dtype.
    pub model_reference_bytes: IntGaugeVec,
    /// Reference bytes less loaded bytes.
    pub memory_saved_bytes: IntGaugeVec,
    /// Memory, processor time and log of the process.
    pub process: Process,
    /// The used share of the KV cache, from 0 to 1.
    pub kv_cache_usage_ratio: Gauge,
    /// What is known of the weights: 1 for one of `unverified`, `verified` and `damaged`, 0 for the others.
    pub weights_state: IntGaugeVec,
    /// KV cache by state: `used` pages hold tokens of running generations, `cached` ones are free but can be found again,
    /// `reserved` is the whole budget.
    pub kv_cache_bytes: IntGaugeVec,
    /// One series that names the model: its labels are facts, its value is 1.
    pub model_info: IntGaugeVec,
    /// What eight bits cost on a text, by measure, where `eval` has measured it: `kl_mean`, `same_top_token`, `perplexity`,
    /// `perplexity_reference`.
    pub model_accuracy: GaugeVec,
    /// One series that names the build.
    pub build_info: IntGaugeVec,
}

impl Metrics {
    /// Creates and registers all metrics, every series at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            requests_total: counters(r, "requests_total", "Requests by outcome.", &["outcome"]),
            responses_total: counters(r, "responses_total", "Answers by HTTP status.", &["code"]),
            answers_total: counters(
                r,
                "answers_total",
                "Answers that came to their end, by reason.",
                &["finish_reason"],
            ),
            request_prompt_tokens: histogram(
                r,
                "request_prompt_tokens",
                "Tokens of the prompts of a request.",
                REQUEST_TOKENS,
            ),
            request_generation_tokens: histogram(
                r,
                "request_generation_tokens",
                "Tokens of the answers to a request.",
                REQUEST_TOKENS,
            ),
            batch_places: gauge(r, "batch_places", "Generations that can run at once."),
            queue_places: gauge(r, "queue_places", "Generations that can wait for a place."),
            engine_stalls_total: counter(
                r,
                "engine_stalls_total",
                "Steps that took so long that requests were refused.",
            ),
            requests_running: gauge(
                r,
                "requests_running",
                "Generations that hold a place in the batch.",
            ),
            requests_waiting: gauge(
                r,
                "requests_waiting",
                "Generations that wait for a place in the batch.",
            ),
            time_to_first_token_seconds: histogram(
                r,
                "time_to_first_token_seconds",
                "From arrival to the first generated token.",
                FIRST_TOKEN_SECONDS,
            ),
            inter_token_latency_seconds: histogram(
                r,
                "inter_token_latency_seconds",
                "Between consecutive tokens of one generation.",
                INTER_TOKEN_SECONDS,
            ),
            request_duration_seconds: histograms(
                r,
                "request_duration_seconds",
                "From arrival to the last byte of the answer.",
                &["outcome"],
                REQUEST_SECONDS,
            ),
            queue_wait_seconds: histogram(
                r,
                "queue_wait_seconds",
                "From arrival to the first step that works on the generation.",
                REQUEST_SECONDS,
            ),
            prompt_tokens_total: counter(r, "prompt_tokens_total", "Prompt tokens taken in."),
            generation_tokens_total: counter(r, "generation_tokens_total", "Tokens generated."),
            prefix_cache_queries_total: counter(
                r,
                "prefix_cache_queries_total",
                "Prompt tokens looked up in the prefix cache.",
            ),
            prefix_cache_hits_total: counter(
                r,
                "prefix_cache_hits_total",
                "Prompt tokens found in the prefix cache.",
            ),
            prefix_cache_evictions_total: counter(
                r,
                "prefix_cache_evictions_total",
                "Cached KV pages that were given to another text.",
            ),
            preemptions_total: counter(
                r,
                "preemptions_total",
                "Generations that gave their KV pages back before their end, to go on later.",
            ),
            nonfinite_logits_total: counter(
                r,
                "nonfinite_logits_total",
                "Generations that failed because the model gave logits that are not finite.",
            ),
            speculation_drafted_tokens_total: counter(
                r,
                "speculation_drafted_tokens_total",
                "Tokens guessed by prompt lookup.",
            ),
            speculation_accepted_tokens_total: counter(
                r,
                "speculation_accepted_tokens_total",
                "Guessed tokens that were right.",
            ),
            grammars_total: counters(
                r,
                "grammars_total",
                "Grammars that requests came with, by what became of them.",
                &["outcome"],
            ),
            batch_rows: histogram(r, "batch_rows", "Rows per step.", BATCH_ROWS),
            model_weight_bytes: gauges(
                r,
                "model_weight_bytes",
                "Weights as loaded.",
                &["component", "dtype"],
            ),
            model_reference_bytes: gauges(
                r,
                "model_reference_bytes",
                "The same shapes in a float dtype.",
                &["dtype"],
            ),
            memory_saved_bytes: gauges(
                r,
                "memory_saved_bytes",
                "Reference bytes less loaded bytes.",
                &["against"],
            ),
            process: Process::new(r),
            kv_cache_usage_ratio: register(
                r,
                Gauge::with_opts(opts(
                    "kv_cache_usage_ratio",
                    "Share of the KV cache that holds tokens of running generations.",
                )),
            ),
            weights_state: gauges(
                r,
                "weights_state",
                "1 for what is known of the weights.",
                &["state"],
            ),
            kv_cache_bytes: gauges(r, "kv_cache_bytes", "KV cache bytes by state.", &["state"]),
            model_info: gauges(
                r,
                "model_info",
                "The model that is served.",
                &["model", "architecture", "scheme", "context_length"],
            ),
            model_accuracy: register(
                r,
                GaugeVec::new(
                    opts(
                        "model_accuracy",
                        "What eight bits cost, as it was measured last.",
                    ),
                    &["measure"],
                ),
            ),
            build_info: gauges(
                r,
                "build_info",
                "The build that serves.",
                &["version", "instruction_set"],
            ),
            registry,
        };
        for outcome in OUTCOMES {
            metrics.requests_total.with_label_values(&[outcome]);
            metrics
                .request_duration_seconds
                .with_label_values(&[outcome]);
        }
        for reason in ["stop", "length"] {
            metrics.answers_total.with_label_values(&[reason]);
        }
        for outcome in [
            "hit",
            "compiled",
            "refused",
            "timeout",
            "busy",
            "unavailable",
        ] {
            metrics.grammars_total.with_label_values(&[outcome]);
        }
        for state in ["used", "cached", "reserved"] {
            metrics.kv_cache_bytes.with_label_values(&[state]);
        }
        metrics.set_weights_state(WeightsState::Unverified);
        metrics
    }

    /// Shows what the loaded weights take, and what they would take in float.
    pub fn set_model_memory(&self, memory: &WeightMemory) {
        for &(component, dtype, bytes) in &memory.parts {
            let gauge = self
                .model_weight_bytes
                .with_label_values(&[component, dtype]);
            gauge.set(gauge_value(bytes));
        }
        for (dtype, width) in [("f32", 4), ("bf16", 2)] {
            let reference = memory.elements.saturating_mul(width);
            let reference = gauge_value(reference);
            self.model_reference_bytes
                .with_label_values(&[dtype])
                .set(reference);
            // Negative if the format should ever take more than the floats: then that is what to show.
            self.memory_saved_bytes
                .with_label_values(&[dtype])
                .set(reference - gauge_value(memory.total()));
        }
    }

    /// Shows what is served and by which build.
    pub fn set_info(
        &self,
        model: &str,
        architecture: &str,
        context_length: usize,
        instruction_set: &str,
    ) {
        let context_length = context_length.to_string();
        self.model_info
            .with_label_values(&[model, architecture, "int8", &context_length])
            .set(1);
        self.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), instruction_set])
            .set(1);
    }

    /// Shows what is known of the weights.
    pub fn set_weights_state(&self, now: WeightsState) {
        for (state, name) in [
            (WeightsState::Unverified, "unverified"),
            (WeightsState::Verified, "verified"),
            (WeightsState::Damaged, "damaged"),
        ] {
            let gauge = self.weights_state.with_label_values(&[name]);
            gauge.set(i64::from(state == now));
        }
    }

    /// Shows what an evaluation of the served weights found.
    pub fn set_accuracy(&self, found: &Evaluation) {
        for (measure, value) in [
            ("kl_mean", found.kl_mean),
            ("same_top_token", found.same_top_token),
            ("perplexity", found.perplexity),
            ("perplexity_reference", found.perplexity_reference),
        ] {
            self.model_accuracy.with_label_values(&[measure]).set(value);
        }
    }

    /// The text exposition format, for `GET /metrics`. Reads atomics and `/proc` only.
    pub fn render(&self) -> String {
        self.process.update();
        let kv_bytes = |state| self.kv_cache_bytes.with_label_values(&[state]).get() as f64;
        let share = kv_bytes("used") / kv_bytes("reserved").max(1.0);
        self.kv_cache_usage_ratio.set(share);
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
