//! The metrics, each declared once: counting happens where the thing happens, and rendering touches no engine thread.

mod buckets;
mod declare;
mod model;
mod process;

use prometheus::{Registry, TextEncoder};

pub use model::WeightsState;
pub use process::Process;

use buckets::{
    BATCH_ROWS, FIRST_TOKEN_SECONDS, INTER_TOKEN_SECONDS, REQUEST_SECONDS, REQUEST_TOKENS,
};
use declare::metrics;

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

/// What becomes of a grammar that a request comes with.
const GRAMMAR_OUTCOMES: [&str; 6] = [
    "hit",
    "compiled",
    "refused",
    "timeout",
    "busy",
    "unavailable",
];

metrics! {
    /// Every metric of the service.
    pub struct Metrics {
        registry: Registry,
        /// Memory, processor time and log of the process.
        process: Process,
    }
    /// Requests by outcome: ok; invalid (4xx); rejected, for want of room (429); unavailable, as nothing is served just now
    /// (503); cancelled, left by the client; error, a failure on our side.
    requests_total: IntCounterVec[outcome in OUTCOMES],
    /// Requests by the HTTP status of their answer.
    responses_total: IntCounterVec[code],
    /// Answers that came to their end, by reason.
    answers_total: IntCounterVec[finish_reason in ["stop", "length"]],
    /// Tokens of the prompts of a request that was answered.
    request_prompt_tokens: Histogram by REQUEST_TOKENS,
    /// Tokens of the answers to a request, those of several choices together.
    request_generation_tokens: Histogram by REQUEST_TOKENS,
    /// Generations that can run at once.
    batch_places: IntGauge,
    /// Generations that can wait for a place in the batch.
    queue_places: IntGauge,
    /// Steps that took so long that requests were refused.
    engine_stalls_total: IntCounter,
    /// Generations that hold a place in the batch.
    requests_running: IntGauge,
    /// Generations that wait for a place in the batch.
    requests_waiting: IntGauge,
    /// From arrival to the first generated token.
    time_to_first_token_seconds: Histogram by FIRST_TOKEN_SECONDS,
    /// Between consecutive tokens of one generation.
    inter_token_latency_seconds: Histogram by INTER_TOKEN_SECONDS,
    /// From arrival to the last byte of the answer, by outcome: what is refused takes no time.
    request_duration_seconds: HistogramVec[outcome in OUTCOMES] by REQUEST_SECONDS,
    /// From arrival to the first step that works on the generation.
    queue_wait_seconds: Histogram by REQUEST_SECONDS,
    /// Prompt tokens taken in, those found in the prefix cache included.
    prompt_tokens_total: IntCounter,
    /// Tokens generated.
    generation_tokens_total: IntCounter,
    /// Prompt tokens looked up in the prefix cache.
    prefix_cache_queries_total: IntCounter,
    /// Prompt tokens found in the prefix cache, which were not computed again.
    prefix_cache_hits_total: IntCounter,
    /// Cached KV pages that were given to another text.
    prefix_cache_evictions_total: IntCounter,
    /// Generations that gave their KV pages back before their end, to go on later.
    preemptions_total: IntCounter,
    /// Generations that failed because the model gave logits that are not finite.
    nonfinite_logits_total: IntCounter,
    /// Tokens guessed by prompt lookup and run.
    speculation_drafted_tokens_total: IntCounter,
    /// Guessed tokens that were right; they are among the tokens generated.
    speculation_accepted_tokens_total: IntCounter,
    /// Grammars that requests came with, by what became of them: hit (compiled or refused before), compiled, refused,
    /// timeout, busy (too many waited), unavailable.
    grammars_total: IntCounterVec[outcome in GRAMMAR_OUTCOMES],
    /// Rows per step: prompt tokens, decoding sequences and their drafts together.
    batch_rows: Histogram by BATCH_ROWS,
    /// Weights as loaded, by component and dtype.
    model_weight_bytes: IntGaugeVec[component, dtype],
    /// The same shapes in a float dtype.
    model_reference_bytes: IntGaugeVec[dtype],
    /// Reference bytes less loaded bytes.
    memory_saved_bytes: IntGaugeVec[against],
    /// Share of the KV cache that holds tokens of running generations, from 0 to 1.
    kv_cache_usage_ratio: Gauge,
    /// 1 for what is known of the weights, 0 for the other states.
    weights_state: IntGaugeVec[state],
    /// KV cache by state: used pages hold tokens of running generations, cached ones are free but can be found again,
    /// reserved is the whole budget.
    kv_cache_bytes: IntGaugeVec[state in ["used", "cached", "reserved"]],
    /// The model that is served: the labels are facts, the value is 1.
    model_info: IntGaugeVec[model, architecture, scheme, context_length],
    /// What eight bits cost on a text, by measure, as eval measured it last.
    model_accuracy: GaugeVec[measure],
    /// The build that serves: the labels are facts, the value is 1.
    build_info: IntGaugeVec[version, build, instruction_set],
}

impl Metrics {
    /// Makes all metrics, every series whose labels are known at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let process = Process::new(&registry);
        let metrics = Self::declare(&registry.clone(), registry, process);
        metrics.set_weights_state(WeightsState::Unverified);
        metrics
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
