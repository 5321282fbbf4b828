//! The metrics that the service exposes, read from its text exposition.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use microgranite::memory::accounts::Accounts;
use microgranite::telemetry::{Metrics, SavingsOf};

/// One sample name: its labels, and whether it only ever grows.
#[derive(Debug, Default)]
pub struct Sample {
    pub labels: BTreeSet<String>,
    pub is_counter: bool,
}

/// Sample name → what it is. A histogram is three names: `_bucket`, `_sum` and `_count`.
pub type Catalog = BTreeMap<String, Sample>;

/// Every sample that [`Metrics`] declares. A metric with labels appears only once it has a label set, so each gets one.
pub fn declared() -> Catalog {
    let metrics = Metrics::new();
    metrics
        .model_weight_bytes
        .with_label_values(&["mlp", "int8"]);
    metrics.model_reference_bytes.with_label_values(&["bf16"]);
    metrics.memory_saved_bytes.with_label_values(&["bf16"]);
    metrics.responses_total.with_label_values(&["200"]);
    metrics.show_client("search");
    metrics.kv_cache_bytes.with_label_values(&["used"]);
    metrics
        .model_info
        .with_label_values(&["granite", "GraniteForCausalLM", "int8", "4096"]);
    metrics.model_accuracy.with_label_values(&["kl_mean"]);
    metrics.set_startup("weights", Duration::ZERO);
    metrics.set_kv_cache_info(64, 1, true);
    metrics.memory().set_accounts(Accounts::default());
    let side = |dtype| SavingsOf {
        dtype,
        resident_bytes: 0,
        peak_bytes: 0,
        ready_seconds: 0.0,
        cpu_seconds: 0.0,
        tokens_per_second: [0.0; 2],
        joules_per_token: Some(0.0),
    };
    let sides = [side("int8"), side("f32")];
    metrics.savings().set(sides, &[("kl_mean", 0.0)]);
    metrics
        .tls_certificate_expiry_timestamp_seconds
        .with_label_values(&["server"]);
    metrics
        .build_info
        .with_label_values(&["0", "commit", "scalar"]);
    parse(&metrics.render())
}

/// Reads the text exposition format, as far as its names, types and labels go.
pub fn parse(exposition: &str) -> Catalog {
    let mut types = BTreeMap::new();
    let mut catalog = Catalog::new();
    for line in exposition.lines() {
        if let Some(declaration) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declaration.split_once(' ').expect("a type has a name");
            types.insert(name, kind);
        } else if !line.starts_with('#') && !line.is_empty() {
            let (series, _value) = line.rsplit_once(' ').expect("a sample has a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let is_counter = match types.get(name) {
                Some(kind) => *kind == "counter",
                None => true, // part of a histogram: the `# TYPE` line carries the name without the suffix
            };
            let sample = catalog.entry(name.to_owned()).or_default();
            sample.is_counter = is_counter;
            sample.labels.extend(label_names(labels));
        }
    }
    catalog
}

/// The names in `a="1",b=~"2"`, with or without the closing brace. Values must not contain commas.
pub fn label_names(matchers: &str) -> impl Iterator<Item = String> {
    matchers
        .split(',')
        .filter_map(|matcher| matcher.split_once('='))
        .map(|(name, _value)| name.trim().trim_end_matches('!').to_owned())
}
