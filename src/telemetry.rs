//! The metrics, declared as one struct, and the log format.

use std::io::IsTerminal;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};
use crate::memory;
use crate::model::WeightMemory;
use crate::model::evaluate::Evaluation;

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
/// Rows in one step: powers of two up to the largest prompt chunk.
const BATCH_ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Every metric of the service. Counting happens where the thing happens; rendering touches no engine thread.
pub struct Metrics {
    registry: Registry,
    /// Requests by outcome: `ok`, `invalid`, `rejected`, `cancelled`, `error`.
    pub requests_total: IntCounterVec,
    /// Generations that hold a place in the batch.
    pub requests_running: IntGauge,
    /// Generations that wait for a place.
    pub requests_waiting: IntGauge,
    /// From arrival to the first generated token.
    pub time_to_first_token_seconds: Histogram,
    /// Between consecutive tokens of one generation.
    pub inter_token_latency_seconds: Histogram,
    /// From arrival to the last byte of the answer.
    pub request_duration_seconds: Histogram,
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
    /// Tokens guessed by prompt lookup and run.
    pub speculation_drafted_tokens_total: IntCounter,
    /// Guessed tokens that were right; they are among the tokens generated.
    pub speculation_accepted_tokens_total: IntCounter,
    /// Rows per step: prompt tokens, decoding sequences and their drafts together.
    pub batch_rows: Histogram,
    /// Weights as loaded, by component and dtype.
    pub model_weight_bytes: IntGaugeVec,
    /// The same shapes in a float dtype.
    pub model_reference_bytes: IntGaugeVec,
    /// Reference bytes less loaded bytes.
    pub memory_saved_bytes: IntGaugeVec,
    /// Resident memory by kind: `anon`, `file`, `shmem`.
    pub process_resident_bytes: IntGaugeVec,
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
    /// When the process started.
    pub process_start_time_seconds: IntGauge,
}

impl Metrics {
    /// Creates and registers all metrics, every series at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            requests_total: counters(r, "requests_total", "Requests by outcome.", &["outcome"]),
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
            request_duration_seconds: histogram(
                r,
                "request_duration_seconds",
                "From arrival to the last byte of the answer.",
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
            process_resident_bytes: gauges(
                r,
                "process_resident_bytes",
                "Resident memory by kind.",
                &["kind"],
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
            process_start_time_seconds: gauge(
                r,
                "process_start_time_seconds",
                "Start of the process in seconds since the Unix epoch.",
            ),
            registry,
        };
        for outcome in ["ok", "invalid", "rejected", "cancelled", "error"] {
            metrics.requests_total.with_label_values(&[outcome]);
        }
        for state in ["used", "cached", "reserved"] {
            metrics.kv_cache_bytes.with_label_values(&[state]);
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = since_epoch.unwrap_or_default().as_secs();
        metrics.process_start_time_seconds.set(gauge_value(seconds));
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
        if let Some(resident) = memory::resident() {
            for (kind, bytes) in [
                ("anon", resident.anon),
                ("file", resident.file),
                ("shmem", resident.shmem),
            ] {
                let gauge = self.process_resident_bytes.with_label_values(&[kind]);
                gauge.set(gauge_value(bytes));
            }
        }
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

/// How log lines look. They go to standard error; what a command has to say goes to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for collectors; client-made bytes cannot forge a line.
    Json,
}

/// Starts logging what `filter` lets through (`info`, `debug`, `microgranite=debug,hyper=info`, …).
///
/// # Errors
/// [`Error::Usage`] when the filter makes no sense.
pub fn init_logging(format: LogFormat, filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|problem| Error::Usage(format!("log filter '{filter}': {problem}")))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second call, as tests make it, leaves the first in place.
    let _already_set = match format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Gauges are signed; no size or time comes near the difference.
fn gauge_value(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::with_opts(opts(name, help)))
}
fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(name, help), labels))
}
fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::with_opts(opts(name, help)))
}
fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(opts(name, help), labels))
}
fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let opts = HistogramOpts::new(name, help)
        .namespace("microgranite")
        .buckets(buckets.to_vec());
    register(registry, Histogram::with_opts(opts))
}
fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("microgranite")
}

/// Names are constants of this file and `Metrics::new` makes a fresh registry, so neither step can fail.
fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("metric names in this file are valid");
    registry
        .register(Box::new(metric.clone()))
        .expect("metric names in this file are distinct");
    metric
}
