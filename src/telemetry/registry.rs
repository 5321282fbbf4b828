//! Making metrics and registering them.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// Gauges are signed; no size or time comes near the difference.
pub fn gauge_value(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

pub fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::with_opts(opts(name, help)))
}
pub fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(name, help), labels))
}
pub fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::with_opts(opts(name, help)))
}
pub fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(opts(name, help), labels))
}
pub fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let opts = HistogramOpts::new(name, help)
        .namespace("microgranite")
        .buckets(buckets.to_vec());
    register(registry, Histogram::with_opts(opts))
}
pub fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> HistogramVec {
    let opts = HistogramOpts::new(name, help)
        .namespace("microgranite")
        .buckets(buckets.to_vec());
    register(registry, HistogramVec::new(opts, labels))
}
pub fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("microgranite")
}

/// Names are constants of this file and `Metrics::new` makes a fresh registry, so neither step can fail.
pub fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("metric names in this file are valid");
    registry
        .register(Box::new(metric.clone()))
        .expect("metric names in this file are distinct");
    metric
}
