//! `GET /status`: what the server is doing, as JSON, for the page at `/` and for `microgranite status`.
//!
//! Everything comes from the metrics and from facts about the model. Sums and counts are those since the start: the
//! difference of two readings is what happened in between.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use prometheus::Histogram;
use prometheus::core::Metric;
use serde::{Deserialize, Serialize};

use super::app::{App, ServedModel, unix_seconds};
use super::error_body::ApiError;
use super::health;
use crate::build;
use crate::memory;
use crate::telemetry::{Metrics, OUTCOMES};

/// What a server is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// Its build.
    pub build: String,
    /// Whether it answers requests.
    pub state: Phase,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// The model, once it is loaded.
    pub model: Option<Model>,
    /// What runs and waits.
    pub load: Load,
    /// Memory in bytes.
    pub memory: Memory,
    /// Counts since the start.
    pub totals: Totals,
    /// Latencies since the start.
    pub latency: Latency,
}

/// Whether a server answers requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The model is being loaded.
    Loading,
    /// Requests are answered.
    Ready,
    /// Running requests are finished, and new ones refused.
    Draining,
    /// Requests are refused, because a step does not end.
    Stalled,
    /// Requests are refused, because the weights are damaged.
    Damaged,
    /// Requests are refused, because the model does not answer fixed prompts as it did.
    CanaryFailed,
    /// Only a restart helps.
    Stopped,
}

/// The served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The name that clients use.
    pub name: String,
    /// The number of parameters.
    pub parameters: u64,
    /// The most tokens of prompt and answer together.
    pub context_length: usize,
    /// The instruction set in use.
    pub instruction_set: String,
    /// Whether it has a chat template.
    pub chats: bool,
    /// Whether it may think before it answers.
    pub thinks: bool,
}

/// What runs and waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Answers that are being generated.
    pub running: u64,
    /// Answers that wait for a place.
    pub waiting: u64,
    /// Answers that can be generated at once.
    pub batch_places: u64,
    /// Answers that can wait.
    pub queue_places: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The weights as loaded.
    pub weights: u64,
    /// The same weights as f32.
    pub weights_f32: u64,
    /// The same weights as bf16.
    pub weights_bf16: u64,
    /// Measured: resident memory of the process's own.
    pub resident_anon: u64,
    /// Measured: resident pages of mapped files, such as those of packed weights.
    pub resident_file: u64,
    /// The KV cache.
    pub kv: Cache,
    /// The states of Mamba-2 layers.
    pub states: Cache,
}

/// A cache in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Used by running answers.
    pub used: u64,
    /// Kept for later prompts.
    pub cached: u64,
    /// The whole cache.
    pub reserved: u64,
}

/// Counts since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests that are over, by outcome.
    pub requests: BTreeMap<String, u64>,
    /// Tokens read, those from the prefix cache included.
    pub prompt_tokens: u64,
    /// Those of them from the prefix cache.
    pub cached_prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Steps of the engine.
    pub steps: u64,
    /// Rows computed in them.
    pub rows: u64,
}

/// Latencies since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// From the arrival of a request to its first token.
    pub first_token: Times,
    /// From a token to the next one of the same answer.
    pub next_token: Times,
}

/// Times in seconds, counted in buckets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The number of times.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The upper end of each bucket; longer times are only in `count`.
    pub bounds: Vec<f64>,
    /// The number of times up to each of these.
    pub counts: Vec<u64>,
}

impl Times {
    fn of(histogram: &Histogram) -> Self {
        let metric = histogram.metric();
        let histogram = metric.get_histogram();
        // The last bucket may be the one without an end, which is `count`.
        let buckets = histogram.get_bucket().iter();
        let buckets = buckets.filter(|bucket| bucket.upper_bound().is_finite());
        let (bounds, counts) = buckets
            .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
            .unzip();
        Self {
            count: histogram.get_sample_count(),
            sum: histogram.get_sample_sum(),
            bounds,
            counts,
        }
    }

    /// The times that have been added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().enumerate();
        let earlier_count = |at| earlier.counts.get(at).copied().unwrap_or(0);
        Self {
            count: self.count.saturating_sub(earlier.count),
            sum: (self.sum - earlier.sum).max(0.0),
            bounds: self.bounds.clone(),
            counts: counts
                .map(|(at, count)| count.saturating_sub(earlier_count(at)))
                .collect(),
        }
    }

    /// The mean, if there are any.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// The time that this share of the times does not exceed, interpolated within its bucket as Prometheus does; of times
    /// beyond the last bucket, the end of that.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let rank = share * self.count as f64;
        let (mut low, mut below) = (0.0, 0);
        for (&bound, &count) in self.bounds.iter().zip(&self.counts) {
            if count as f64 >= rank && count > below {
                let part = (rank - below as f64) / (count - below) as f64;
                return Some(low + (bound - low) * part.max(0.0));
            }
            (low, below) = (bound, count);
        }
        self.bounds.last().copied()
    }
}

/// Reads the status. It costs some hundred reads of counters and one of `/proc`, and never involves the engine's thread.
pub async fn status(State(app): State<App>) -> Json<Status> {
    Json(read(&app))
}

fn read(app: &App) -> Status {
    let metrics = app.metrics();
    let gauge = |value: i64| u64::try_from(value).unwrap_or(0);
    let started = gauge(metrics.process().process_start_time_seconds.get());
    Status {
        version: build::VERSION.to_owned(),
        build: build::ID.to_owned(),
        state: phase(app),
        uptime_seconds: unix_seconds().saturating_sub(started),
        model: app.loaded_model().map(Model::of),
        load: Load {
            running: gauge(metrics.requests_running.get()),
            waiting: gauge(metrics.requests_waiting.get()),
            batch_places: gauge(metrics.batch_places.get()),
            queue_places: gauge(metrics.queue_places.get()),
        },
        memory: Memory::of(app, metrics),
        totals: Totals::of(metrics),
        latency: Latency {
            first_token: Times::of(&metrics.time_to_first_token_seconds),
            next_token: Times::of(&metrics.inter_token_latency_seconds),
        },
    }
}

fn phase(app: &App) -> Phase {
    match app.model() {
        Ok(model) => match health::check_engine(model) {
            Ok(()) => Phase::Ready,
            Err(_) => Phase::Stopped,
        },
        Err(ApiError::Loading) => Phase::Loading,
        Err(ApiError::Draining) => Phase::Draining,
        Err(ApiError::Stalled) => Phase::Stalled,
        Err(ApiError::Damaged) => Phase::Damaged,
        Err(ApiError::CanaryFailed) => Phase::CanaryFailed,
        Err(_) => Phase::Stopped,
    }
}

impl Model {
    fn of(model: &ServedModel) -> Self {
        let chat = model.chat.as_ref();
        Self {
            name: model.name.clone(),
            parameters: model.facts.parameters,
            context_length: model.engine.limits().context_length,
            instruction_set: model.facts.kernel.clone(),
            chats: chat.is_some(),
            thinks: chat.is_some_and(|chat| chat.thoughts().is_some()),
        }
    }
}

impl Memory {
    fn of(app: &App, metrics: &Metrics) -> Self {
        let facts = app.loaded_model().map(|model| &model.facts);
        let cache = |gauge: &prometheus::IntGaugeVec| {
            let bytes = |state| gauge.with_label_values(&[state]).get();
            let bytes = |state| u64::try_from(bytes(state)).unwrap_or(0);
            Cache {
                used: bytes("used"),
                cached: bytes("cached"),
                reserved: bytes("reserved"),
            }
        };
        let resident = memory::resident();
        let weights_f32 = facts.map_or(0, |facts| facts.weight_bytes_f32);
        Self {
            weights: facts.map_or(0, |facts| facts.weight_bytes),
            weights_f32,
            weights_bf16: weights_f32 / 2,
            resident_anon: resident.map_or(0, |resident| resident.anon),
            resident_file: resident.map_or(0, |resident| resident.file + resident.shmem),
            kv: cache(&metrics.kv_cache_bytes),
            states: cache(&metrics.recurrent_state_bytes),
        }
    }
}

impl Totals {
    fn of(metrics: &Metrics) -> Self {
        let requests = OUTCOMES.iter().map(|outcome| {
            let count = metrics.requests_total.with_label_values(&[outcome]).get();
            ((*outcome).to_owned(), count)
        });
        let rows = &metrics.batch_rows;
        Self {
            requests: requests.collect(),
            prompt_tokens: metrics.prompt_tokens_total.get(),
            cached_prompt_tokens: metrics.prefix_cache_hits_total.get(),
            generated_tokens: metrics.generation_tokens_total.get(),
            steps: rows.get_sample_count(),
            rows: rows.get_sample_sum() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_means_are_those_of_what_came_since() {
        let metrics = Metrics::new();
        let histogram = &metrics.inter_token_latency_seconds;
        histogram.observe(100.0);
        let before = Times::of(histogram);
        assert_eq!(before.quantile(0.5), before.bounds.last().copied());
        for _ in 0..99 {
            histogram.observe(0.01);
        }
        histogram.observe(0.5);
        let times = Times::of(histogram).since(&before);
        assert_eq!(times.count, 100);
        assert!((times.mean().unwrap() - 0.0149).abs() < 1e-6, "{times:?}");
        // Within the bucket that the value is in.
        let bucket = |value: f64| {
            let at = times.bounds.partition_point(|bound| *bound < value);
            let low = if at == 0 { 0.0 } else { times.bounds[at - 1] };
            low..=times.bounds[at]
        };
        for (share, value) in [(0.5, 0.01), (0.99, 0.01), (1.0, 0.5)] {
            let found = times.quantile(share).unwrap();
            assert!(bucket(value).contains(&found), "{share}: {found}");
        }
        assert_eq!(Times::default().quantile(0.5), None);
        assert_eq!(times.since(&times).mean(), None);
    }
}
