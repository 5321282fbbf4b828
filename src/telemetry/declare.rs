//! The macro that declares metrics: name, kind and help text, in one place.

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// The prefix of every metric's name.
pub const NAMESPACE: &str = "microgranite";

/// Declares a struct of metrics, and a function `declare` that makes and registers them.
///
/// ```text
/// metrics! {
///     /// What the struct is.
///     pub struct Metrics {
///         /// Fields that are no metrics; `declare` takes them.
///         registry: Registry,
///     }
///     /// The doc comment is the help text.
///     requests_total: IntCounterVec[outcome in OUTCOMES],
///     /// A histogram names its buckets.
///     batch_rows: Histogram by BATCH_ROWS,
/// }
/// ```
///
/// The field's name is the metric's name without the namespace. Labels stand in brackets. If the values of a label are
/// known, they follow `in`; every such series then exists from the beginning, at zero.
macro_rules! metrics {
    (
        $(#[$about:meta])*
        pub struct $Struct:ident { $($(#[$field_about:meta])* $field:ident: $Field:ty,)* }
        $(
            $(#[doc = $help:literal])+
            $name:ident: $Kind:ident
                $([$($label:ident),+ $(in $values:expr)?])?
                $(by $buckets:expr)?,
        )+
    ) => {
        $(#[$about])*
        pub struct $Struct {
            $($(#[$field_about])* $field: $Field,)*
            $($(#[doc = $help])+ pub $name: prometheus::$Kind,)+
        }

        impl $Struct {
            /// The metrics as `docs/metrics.md` lists them.
            #[cfg(test)]
            pub(super) const DECLARED: &'static [$crate::telemetry::declare::Declared] = &[$(
                $crate::telemetry::declare::Declared {
                    name: stringify!($name),
                    kind: stringify!($Kind),
                    labels: &[$($(stringify!($label)),+)?],
                    help: concat!($($help),+),
                }
            ),+];

            /// Makes the metrics and registers them in `all`.
            fn declare(all: &prometheus::Registry, $($field: $Field),*) -> Self {
                $(
                    let $name: prometheus::$Kind = $crate::telemetry::declare::register(
                        all,
                        stringify!($name),
                        concat!($($help),+).trim(),
                        &[$($(stringify!($label)),+)?],
                        &[$($buckets)?],
                    );
                    $($(for value in $values {
                        $name.with_label_values(&[value]);
                    })?)?
                )+
                Self { $($field,)* $($name,)+ }
            }
        }
    };
}
pub(super) use metrics;

/// The declaration of a metric.
#[cfg(test)]
pub struct Declared {
    pub name: &'static str,
    pub kind: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[cfg(test)]
impl Declared {
    /// The row of `docs/metrics.md`.
    pub fn row(&self) -> String {
        let kinds = ["Counter", "Gauge", "Histogram"];
        let kind = kinds.iter().find(|kind| self.kind.contains(*kind));
        let kind = kind.expect("one of the kinds").to_lowercase();
        let labels: Vec<String> = self.labels.iter().map(|name| format!("`{name}`")).collect();
        let (name, labels) = (self.name, labels.join(", "));
        format!("| `{name}` | {kind} | {labels} | {} |", self.help.trim())
    }
}

/// A kind of metric.
pub trait Metric: Collector + Clone + Sized + 'static {
    /// Makes a metric of this kind; only histograms use `buckets`.
    fn new(opts: Opts, labels: &[&str], buckets: Vec<f64>) -> prometheus::Result<Self>;
}

macro_rules! kinds {
    ($($Kind:ident: |$opts:ident, $labels:ident, $buckets:ident| $make:expr;)+) => {
        $(impl Metric for $Kind {
            fn new($opts: Opts, $labels: &[&str], $buckets: Vec<f64>) -> prometheus::Result<Self> {
                $make
            }
        })+
    };
}

kinds! {
    Counter: |opts, _labels, _buckets| Self::with_opts(opts);
    CounterVec: |opts, labels, _buckets| Self::new(opts, labels);
    IntCounter: |opts, _labels, _buckets| Self::with_opts(opts);
    IntCounterVec: |opts, labels, _buckets| Self::new(opts, labels);
    Gauge: |opts, _labels, _buckets| Self::with_opts(opts);
    GaugeVec: |opts, labels, _buckets| Self::new(opts, labels);
    IntGauge: |opts, _labels, _buckets| Self::with_opts(opts);
    IntGaugeVec: |opts, labels, _buckets| Self::new(opts, labels);
    Histogram: |opts, _labels, buckets| Self::with_opts(HistogramOpts::from(opts).buckets(buckets));
    HistogramVec: |opts, labels, buckets| Self::new(HistogramOpts::from(opts).buckets(buckets), labels);
}

/// Makes a metric and adds it to `registry`. `buckets` holds one list for a histogram and is empty for other kinds.
///
/// # Panics
/// If the name is invalid or already registered. All names are constants in this folder, and every test that reads
/// metrics registers all of them.
pub fn register<M: Metric>(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[&[f64]],
) -> M {
    let opts = Opts::new(name, help).namespace(NAMESPACE);
    let metric = M::new(opts, labels, buckets.concat()).expect("names and labels are valid");
    add(registry, metric.clone());
    metric
}

/// Adds a metric that was made elsewhere to `registry`.
///
/// # Panics
/// As [`register`].
pub fn add(registry: &Registry, metric: impl Collector + 'static) {
    let added = registry.register(Box::new(metric));
    added.expect("names are distinct");
}

/// Converts a value for a gauge, which is signed. No size or time comes near `i64::MAX`.
pub fn gauge_value(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
