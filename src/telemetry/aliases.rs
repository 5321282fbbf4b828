//! Our metrics under the names that vLLM gives them, so that dashboards, autoscalers and routers made for it work.
//!
//! An alias is no metric of its own: it is written from ours when they are scraped, so both always agree.

use prometheus::proto::{LabelPair, Metric, MetricFamily};

use super::declare::NAMESPACE;

/// Whose names our metrics also have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aliases {
    /// vLLM's.
    Vllm,
}

/// A name of vLLM's, and the metric of ours with that meaning. Every series also has the label `model_name`.
struct Alias {
    /// Without `vllm:`.
    theirs: &'static str,
    /// Without our namespace.
    ours: &'static str,
    series: Series,
}

/// Which series of our metric are shown, and with which labels.
enum Series {
    /// All, with the labels that they have.
    All,
    /// Those whose label has this value, without the label.
    With(&'static str, &'static str),
    /// All, with one label renamed: ours, theirs.
    Renamed(&'static str, &'static str),
}

const fn alias(theirs: &'static str, ours: &'static str) -> Alias {
    Alias {
        theirs,
        ours,
        series: Series::All,
    }
}

const VLLM: &[Alias] = &[
    alias("num_requests_running", "requests_running"),
    alias("num_requests_waiting", "requests_waiting"),
    // A share from 0 to 1 there as well, despite its name.
    alias("kv_cache_usage_perc", "kv_cache_usage_ratio"),
    alias("cache_config_info", "kv_cache_info"),
    alias("time_to_first_token_seconds", "time_to_first_token_seconds"),
    alias("inter_token_latency_seconds", "inter_token_latency_seconds"),
    // Its older name, which autoscalers still ask for.
    alias(
        "time_per_output_token_seconds",
        "inter_token_latency_seconds",
    ),
    Alias {
        // vLLM observes requests that were answered; refusals take almost no time.
        series: Series::With("outcome", "ok"),
        ..alias("e2e_request_latency_seconds", "request_duration_seconds")
    },
    alias("request_queue_time_seconds", "queue_wait_seconds"),
    alias("request_prefill_time_seconds", "request_prefill_seconds"),
    alias("request_decode_time_seconds", "request_decode_seconds"),
    Alias {
        series: Series::Renamed("finish_reason", "finished_reason"),
        ..alias("request_success_total", "answers_total")
    },
    alias("prompt_tokens_total", "prompt_tokens_total"),
    alias("generation_tokens_total", "generation_tokens_total"),
    alias("request_prompt_tokens", "request_prompt_tokens"),
    alias("request_generation_tokens", "request_generation_tokens"),
    alias("prefix_cache_queries_total", "prefix_cache_queries_total"),
    alias("prefix_cache_hits_total", "prefix_cache_hits_total"),
    alias("num_preemptions_total", "preemptions_total"),
    alias(
        "spec_decode_num_draft_tokens_total",
        "speculation_drafted_tokens_total",
    ),
    alias(
        "spec_decode_num_accepted_tokens_total",
        "speculation_accepted_tokens_total",
    ),
];

impl Aliases {
    /// `ours` once more under the other names. Empty as long as no model is served, because every series names it.
    pub(super) fn of(self, ours: &[MetricFamily]) -> Vec<MetricFamily> {
        let Self::Vllm = self;
        let find = |name: &str| {
            let name = format!("{NAMESPACE}_{name}");
            ours.iter().find(|family| family.name() == name)
        };
        let labels =
            find("model_info").and_then(|info| Some(info.get_metric().first()?.get_label()));
        let model = labels.and_then(|labels| labels.iter().find(|label| label.name() == "model"));
        let Some(model) = model else {
            return Vec::new();
        };
        let of = |alias: &Alias| {
            let mut family = find(alias.ours)?.clone();
            family.set_name(format!("vllm:{}", alias.theirs));
            let series = family.take_metric().into_iter();
            let series = series.filter_map(|series| alias.series.relabel(series, model.value()));
            family.set_metric(series.collect());
            // The encoder refuses metrics without a series.
            (!family.get_metric().is_empty()).then_some(family)
        };
        VLLM.iter().filter_map(of).collect()
    }
}

impl Series {
    /// The series with the labels of the alias, if it is shown.
    fn relabel(&self, mut series: Metric, model: &str) -> Option<Metric> {
        let mut labels = series.take_label();
        match self {
            Self::All => {}
            Self::With(name, value) => {
                let at = labels
                    .iter()
                    .position(|label| label.name() == *name && label.value() == *value)?;
                labels.remove(at);
            }
            Self::Renamed(ours, theirs) => {
                for label in labels.iter_mut().filter(|label| label.name() == *ours) {
                    label.set_name((*theirs).to_owned());
                }
            }
        }
        let mut label = LabelPair::default();
        label.set_name("model_name".to_owned());
        label.set_value(model.to_owned());
        labels.insert(0, label);
        series.set_label(labels);
        Some(series)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    /// The samples of an exposition whose name begins with `prefix`, without that prefix.
    fn samples<'a>(text: &'a str, prefix: &str) -> Vec<(&'a str, &'a str)> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
        lines.filter_map(|line| line.rsplit_once(' ')).collect()
    }

    fn metrics() -> Metrics {
        let metrics = Metrics::with_aliases(Some(Aliases::Vllm));
        metrics.set_kv_cache_info(64, 100, true);
        metrics
    }

    #[test]
    fn every_alias_has_a_metric_and_says_the_same() {
        let metrics = metrics();
        metrics.set_info("granite", "Granite", 4096, "scalar");
        metrics.requests_waiting.set(3);
        metrics.time_to_first_token_seconds.observe(0.3);
        for (outcome, seconds) in [("ok", 2.0), ("rejected", 0.001)] {
            let durations = &metrics.request_duration_seconds;
            durations.with_label_values(&[outcome]).observe(seconds);
        }
        metrics.answers_total.with_label_values(&["stop"]).inc();
        let text = metrics.render();
        let theirs = samples(&text, "vllm:");
        for alias in VLLM {
            let name = alias.theirs;
            assert!(
                theirs.iter().any(|(series, _)| series.starts_with(name)),
                "{name} comes from {}, which no metric is called",
                alias.ours
            );
        }
        for (series, value) in [
            ("num_requests_waiting{model_name=\"granite\"}", "3"),
            (
                "time_to_first_token_seconds_count{model_name=\"granite\"}",
                "1",
            ),
            (
                "e2e_request_latency_seconds_count{model_name=\"granite\"}",
                "1",
            ),
            (
                "e2e_request_latency_seconds_sum{model_name=\"granite\"}",
                "2",
            ),
            (
                "request_success_total{model_name=\"granite\",finished_reason=\"stop\"}",
                "1",
            ),
            (
                "cache_config_info{model_name=\"granite\",block_size=\"64\",enable_prefix_caching=\"True\",num_gpu_blocks=\"100\"}",
                "1",
            ),
        ] {
            assert!(theirs.contains(&(series, value)), "{series} in {theirs:#?}");
        }
        let typed = |line: &str| text.lines().any(|all| all == line);
        assert!(typed("# TYPE vllm:num_requests_waiting gauge"));
        assert!(typed("# TYPE vllm:request_success_total counter"));
    }

    #[test]
    fn every_alias_is_documented_beside_the_metric_it_shows() {
        let rows: Vec<&str> = include_str!("../../docs/metrics.md").lines().collect();
        for alias in VLLM {
            let theirs = format!("`{}`", alias.theirs);
            let row = rows
                .iter()
                .find(|row| row.starts_with('|') && row.contains(&theirs));
            let row = row.unwrap_or_else(|| panic!("{theirs} is not in docs/metrics.md"));
            let is_same = alias.theirs == alias.ours && row.ends_with("the same |");
            assert!(
                is_same || row.contains(&format!("`{}", alias.ours)),
                "{row}"
            );
        }
    }

    #[test]
    fn there_are_none_before_a_model_is_served_or_unless_asked_for() {
        assert!(!metrics().render().contains("vllm:"));
        let ours = Metrics::new();
        ours.set_info("granite", "Granite", 4096, "scalar");
        assert!(!ours.render().contains("vllm:"));
    }
}
