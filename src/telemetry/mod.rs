//! The metrics, each declared once. They are updated by the code that they measure; rendering them does not involve the
//! engine's thread.

mod aliases;
mod buckets;
mod declare;
mod memory;
mod model;
pub mod otlp;
mod process;
mod savings;

use prometheus::{Registry, TextEncoder};

pub use aliases::Aliases;
pub use memory::Memory;
pub use model::{SignatureState, WeightsState};
pub use process::{Process, cpu_seconds};
pub use savings::{Savings, SavingsOf};

use buckets::{
    BATCH_ROWS, FIRST_TOKEN_SECONDS, INTER_TOKEN_SECONDS, REQUEST_SECONDS, REQUEST_TOKENS,
};
use declare::metrics;

/// How requests end: answered completely; refused as invalid (4xx); refused because the server is at capacity (429);
/// refused because no model can be served at the moment (503); cancelled by the client; failed because of the server.
pub const OUTCOMES: [&str; 6] = [
    "ok",
    "invalid",
    "rejected",
    "unavailable",
    "cancelled",
    "error",
];

/// Results of looking up or compiling the grammar of a request.
const GRAMMAR_OUTCOMES: [&str; 6] = [
    "hit",
    "compiled",
    "refused",
    "timeout",
    "busy",
    "unavailable",
];

/// Why TLS handshakes fail.
pub const TLS_FAILURES: [&str; 6] = [
    "timeout",
    "displaced",
    "plain_http",
    "client_certificate",
    "refused_by_client",
    "protocol",
];

metrics! {
    /// Every metric of the service.
    pub struct Metrics {
        registry: Registry,
        /// Memory, processor time and lost log lines of the process.
        process: Process,
        /// What the memory of the process holds.
        memory: Memory,
        /// What int8 saves.
        savings: Savings,
        /// The other names of our metrics.
        aliases: Option<Aliases>,
    }
    /// Requests by outcome: ok; invalid (4xx); rejected, at capacity (429); unavailable, no model can be served at the
    /// moment (503, 529); cancelled by the client; error, a failure of the server.
    requests_total: IntCounterVec[outcome in OUTCOMES],
    /// Requests by HTTP status of the response.
    responses_total: IntCounterVec[code],
    /// Completed answers, by finish reason.
    answers_total: IntCounterVec[finish_reason in ["stop", "length"]],
    /// Prompt tokens per answered request, all its prompts together.
    request_prompt_tokens: Histogram by REQUEST_TOKENS,
    /// Generated tokens per request, all its choices together.
    request_generation_tokens: Histogram by REQUEST_TOKENS,
    /// Slots in the batch: generations that can run at once.
    batch_places: IntGauge,
    /// Generations that can wait for a batch slot.
    queue_places: IntGauge,
    /// Tokens that the prompts of generations that wait for a batch slot can have together.
    queue_token_places: IntGauge,
    /// Steps that took so long that requests were refused meanwhile.
    engine_stalls_total: IntCounter,
    /// Runs of the canary, which repeats fixed prompts, whose answers were not what they had been.
    canary_failures_total: IntCounter,
    /// When the canary last ran to its end, in seconds since the Unix epoch; 0 if it has not.
    canary_last_run_timestamp_seconds: IntGauge,
    /// Generations that have a batch slot.
    requests_running: IntGauge,
    /// Generations that wait for a batch slot.
    requests_waiting: IntGauge,
    /// Generations that wait until their clients have read more of their tokens.
    requests_paused: IntGauge,
    /// Tokens of the prompts of generations that wait for a batch slot.
    prompt_tokens_waiting: IntGauge,
    /// Requests by the name of their API key, and outcome. Keys without a name are unnamed.
    key_requests_total: IntCounterVec[key, outcome],
    /// Prompt tokens of requests by the name of their API key.
    key_prompt_tokens_total: IntCounterVec[key],
    /// Generated tokens of requests by the name of their API key.
    key_generation_tokens_total: IntCounterVec[key],
    /// Seconds that requests have waited for their first step, by the name of their API key.
    key_queue_seconds_total: CounterVec[key],
    /// Seconds from the arrival of a request to its first generated token.
    time_to_first_token_seconds: Histogram by FIRST_TOKEN_SECONDS,
    /// Seconds between consecutive tokens of one generation.
    inter_token_latency_seconds: Histogram by INTER_TOKEN_SECONDS,
    /// Seconds from the arrival of a request to the last byte of its response, by outcome, because refused requests
    /// take almost no time.
    request_duration_seconds: HistogramVec[outcome in OUTCOMES] by REQUEST_SECONDS,
    /// Seconds from the arrival of a request to the first step that computes rows of the generation.
    queue_wait_seconds: Histogram by REQUEST_SECONDS,
    /// Seconds from the first step that computes rows of a request to its first token, of requests that got one.
    request_prefill_seconds: Histogram by REQUEST_SECONDS,
    /// Seconds from the first token of a request to its last, of requests that were answered completely.
    request_decode_seconds: Histogram by REQUEST_SECONDS,
    /// Seconds of processor time per request that reached a step: its share, by rows, of what all threads used for its
    /// steps.
    request_cpu_seconds: Histogram by REQUEST_SECONDS,
    /// Prompt tokens processed, including those found in the prefix cache.
    prompt_tokens_total: IntCounter,
    /// Tokens generated.
    generation_tokens_total: IntCounter,
    /// Prompt tokens looked up in the prefix cache.
    prefix_cache_queries_total: IntCounter,
    /// Prompt tokens found in the prefix cache, which were not computed again.
    prefix_cache_hits_total: IntCounter,
    /// Cached KV pages whose content was evicted so that another sequence could use them.
    prefix_cache_evictions_total: IntCounter,
    /// Preemptions: a running generation lost its KV pages, and continues later.
    preemptions_total: IntCounter,
    /// Generations that failed because the model computed logits that are not finite.
    nonfinite_logits_total: IntCounter,
    /// Drafts (tokens guessed by prompt lookup) that steps checked.
    speculation_drafted_tokens_total: IntCounter,
    /// Drafts that were accepted; they also count as tokens generated.
    speculation_accepted_tokens_total: IntCounter,
    /// Grammars in requests, by result: hit (compiled or refused before), compiled, refused, timeout, busy (too many
    /// were waiting), unavailable.
    grammars_total: IntCounterVec[outcome in GRAMMAR_OUTCOMES],
    /// Seconds from the start to the service, by phase: open (finding and opening the model, downloads included), tokenizer,
    /// verify (checksums, if they are compared before), weights, engine, and total.
    startup_seconds: GaugeVec[phase],
    /// Seconds that steps spent in the model.
    forward_seconds_total: Counter,
    /// Bytes of weights, and of states, that steps read.
    forward_bytes_total: IntCounter,
    /// Bytes per second at which all threads together read weights when the model was loaded: what forward_bytes_total over
    /// forward_seconds_total can reach at most, unless the weights fit the processor's cache.
    read_bandwidth_bytes_per_second: Gauge,
    /// Rows per step: prompt tokens, decoding sequences and their drafts together.
    batch_rows: Histogram by BATCH_ROWS,
    /// Bytes of the weights as loaded, by component and dtype.
    model_weight_bytes: IntGaugeVec[component, dtype],
    /// Bytes that the same weights would take in a float dtype.
    model_reference_bytes: IntGaugeVec[dtype],
    /// Reference bytes minus loaded bytes.
    memory_saved_bytes: IntGaugeVec[against],
    /// Share of the KV cache that holds tokens of running generations, from 0 to 1.
    kv_cache_usage_ratio: Gauge,
    /// 1 for the present state of the weights, 0 for the other states.
    weights_state: IntGaugeVec[state],
    /// 1 for what is known of the publisher's signature of the model: off (not looked at), absent or verified; 0 for the
    /// others. A wrong signature keeps the server from starting.
    signature_state: IntGaugeVec[state],
    /// Bytes of the KV cache by state: used pages hold tokens of running generations, cached pages are free but their
    /// content can be found again, reserved is the whole cache.
    kv_cache_bytes: IntGaugeVec[state in ["used", "cached", "reserved"]],
    /// The KV cache, described by labels with the names and values that vLLM gives them: tokens per page, pages, and
    /// whether the prefix cache is on; the value is 1.
    kv_cache_info: IntGaugeVec[block_size, num_gpu_blocks, enable_prefix_caching],
    /// Bytes of the states that Mamba-2 layers keep of sequences, by state: used by running generations, cached as
    /// snapshots from which later prompts can go on, and reserved for all slots and snapshots.
    recurrent_state_bytes: IntGaugeVec[state in ["used", "cached", "reserved"]],
    /// The served model, described by labels; the value is 1.
    model_info: IntGaugeVec[model, architecture, scheme, context_length],
    /// Accuracy of the int8 model against its float original, by measure, from the last run of eval.
    model_accuracy: GaugeVec[measure],
    /// TLS handshakes that failed, by reason: timeout; displaced by a new connection when no other place was free;
    /// plain_http on a port with TLS; client_certificate, which is missing or not acceptable; refused_by_client, which
    /// does not trust the server's certificate; protocol, anything else.
    tls_handshake_failures_total: IntCounterVec[reason in TLS_FAILURES],
    /// Changed certificate files that could not be used, so that the old certificate stayed.
    tls_reload_failures_total: IntCounter,
    /// When the certificate in use ends, in seconds since the Unix epoch, by usage: server, or client_ca for the first
    /// of the authorities that issue certificates for clients. Absent without TLS.
    tls_certificate_expiry_timestamp_seconds: IntGaugeVec[usage],
    /// Spans of requests for OpenTelemetry, by what became of them: sent to the collector, or dropped because it is slow or
    /// not there.
    trace_spans_total: IntCounterVec[outcome in ["sent", "dropped"]],
    /// The running build, described by labels; the value is 1.
    build_info: IntGaugeVec[version, build, instruction_set],
}

impl Metrics {
    /// Makes all metrics. Every series whose labels are known starts at zero.
    pub fn new() -> Self {
        Self::with_aliases(None)
    }

    /// As [`Self::new`]; they are also rendered under other names.
    pub fn with_aliases(aliases: Option<Aliases>) -> Self {
        let registry = Registry::new();
        let process = Process::new(&registry);
        let memory = Memory::new(&registry);
        let savings = Savings::new(&registry);
        let metrics = Self::declare(
            &registry.clone(),
            registry,
            process,
            memory,
            savings,
            aliases,
        );
        metrics.set_weights_state(WeightsState::Unverified);
        metrics.set_signature_state(SignatureState::Off);
        metrics
    }

    /// Makes the metrics of the client of this name, at zero.
    pub fn show_client(&self, name: &str) {
        for outcome in OUTCOMES {
            self.key_requests_total.with_label_values(&[name, outcome]);
        }
        self.key_prompt_tokens_total.with_label_values(&[name]);
        self.key_generation_tokens_total.with_label_values(&[name]);
        self.key_queue_seconds_total.with_label_values(&[name]);
    }

    /// The metrics of the process.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// The metrics of memory.
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The metrics of what int8 saves.
    pub const fn savings(&self) -> &Savings {
        &self.savings
    }

    /// The metrics in the text exposition format, for `GET /metrics`. Reads only atomics and `/proc`.
    pub fn render(&self) -> String {
        self.process.update();
        self.memory.update();
        let kv_bytes = |state| self.kv_cache_bytes.with_label_values(&[state]).get() as f64;
        let share = kv_bytes("used") / kv_bytes("reserved").max(1.0);
        self.kv_cache_usage_ratio.set(share);
        let mut families = self.registry.gather();
        if let Some(aliases) = self.aliases {
            families.extend(aliases.of(&families));
        }
        TextEncoder::new()
            .encode_to_string(&families)
            .unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_metric_as_it_is_declared() {
        let all = [
            Metrics::DECLARED,
            Process::DECLARED,
            Memory::DECLARED,
            Savings::DECLARED,
        ];
        let mut expected: Vec<String> = all
            .into_iter()
            .flatten()
            .map(declare::Declared::row)
            .collect();
        expected.sort();
        let document = include_str!("../../docs/metrics.md");
        let rows: Vec<&str> = document.lines().collect();
        let is_missing = |row: &&String| !rows.contains(&row.as_str());
        let missing: Vec<&String> = expected.iter().filter(is_missing).collect();
        assert!(
            missing.is_empty(),
            "rows that docs/metrics.md lacks, or has in other words: {missing:#?}"
        );
        let names = rows
            .iter()
            .filter_map(|row| row.strip_prefix("| `")?.split_once('`'));
        let kinds = ["| counter |", "| gauge |", "| histogram |"];
        let listed =
            names.filter(|(_, rest)| kinds.iter().any(|kind| rest.trim_start().starts_with(kind)));
        // The counter of lost log lines is declared where they are lost.
        assert_eq!(
            listed.count(),
            expected.len() + 1,
            "rows of metrics that are gone"
        );
    }
}
