//! Every query of the dashboards returns data from a Prometheus that scrapes the running service under load.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::processes::{Prometheus, Service};
use crate::{cluster, dashboard, load};

/// Forty scrapes, ten times the interval of a rate.
const LOAD: Duration = Duration::from_secs(40);

/// Panels that are empty where the machine does not count what they show, or where the server has no keys and speaks no TLS,
/// as the one of this test.
const MAY_BE_EMPTY: [&str; 4] = [
    "Energy for each token",
    "Requests and tokens by key",
    "Waiting time by key",
    "Certificates end",
];

/// Substitutes Grafana's variables, with everything chosen. At a scrape interval of one second `$__rate_interval` is
/// four of them.
fn with_variables(expr: &str) -> String {
    expr.replace("$__rate_interval", "4s")
        .replace("$namespace", ".*")
        .replace("$job", ".+")
        .replace("$instance", ".+")
}

/// What tools made for vLLM ask: an autoscaler (KEDA's Prometheus trigger), a router's picker, and the panels of a dashboard.
const QUERIES_FOR_VLLM: &[&str] = &[
    r#"sum(vllm:num_requests_waiting{model_name="granite-3-tiny"})"#,
    r#"sum(vllm:num_requests_running{model_name="granite-3-tiny"})"#,
    r#"avg(vllm:kv_cache_usage_perc{model_name="granite-3-tiny"})"#,
    r#"vllm:cache_config_info{block_size="64"}"#,
    r#"histogram_quantile(0.99, sum by (le) (rate(vllm:e2e_request_latency_seconds_bucket{model_name="granite-3-tiny"}[$__rate_interval])))"#,
    r#"histogram_quantile(0.95, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket{model_name="granite-3-tiny"}[$__rate_interval])))"#,
    r#"histogram_quantile(0.5, sum by (le) (rate(vllm:inter_token_latency_seconds_bucket{model_name="granite-3-tiny"}[$__rate_interval])))"#,
    r#"rate(vllm:time_per_output_token_seconds_sum[$__rate_interval]) / rate(vllm:time_per_output_token_seconds_count[$__rate_interval])"#,
    r#"rate(vllm:request_queue_time_seconds_sum[$__rate_interval]) / rate(vllm:request_queue_time_seconds_count[$__rate_interval])"#,
    r#"rate(vllm:request_prefill_time_seconds_sum[$__rate_interval]) / rate(vllm:request_prefill_time_seconds_count[$__rate_interval])"#,
    r#"rate(vllm:request_decode_time_seconds_sum[$__rate_interval]) / rate(vllm:request_decode_time_seconds_count[$__rate_interval])"#,
    r#"rate(vllm:prompt_tokens_total{model_name="granite-3-tiny"}[$__rate_interval])"#,
    r#"rate(vllm:generation_tokens_total{model_name="granite-3-tiny"}[$__rate_interval])"#,
    r#"sum by (finished_reason) (increase(vllm:request_success_total{model_name="granite-3-tiny"}[$__rate_interval]))"#,
    r#"sum by (le) (increase(vllm:request_prompt_tokens_bucket{model_name="granite-3-tiny"}[$__rate_interval]))"#,
    r#"sum by (le) (increase(vllm:request_generation_tokens_bucket{model_name="granite-3-tiny"}[$__rate_interval]))"#,
    r#"rate(vllm:prefix_cache_hits_total[$__rate_interval]) / rate(vllm:prefix_cache_queries_total[$__rate_interval])"#,
    r#"increase(vllm:num_preemptions_total[$__rate_interval])"#,
];

fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_secs_f64()
}

/// The finite numbers of a series.
fn finite_values(series: &Value) -> Vec<f64> {
    series["values"]
        .as_array()
        .expect("samples")
        .iter()
        .filter_map(|sample| sample[1].as_str()?.parse().ok())
        .filter(|value: &f64| value.is_finite())
        .collect()
}

#[test]
#[ignore = "needs Debian's prometheus package on PATH and takes a minute"]
fn every_panel_shows_data_under_load() {
    let service = Service::start();
    let prometheus = Prometheus::start(&service.admin, &cluster::serve());
    let from = unix_seconds();
    load::run(&service.api, LOAD);
    let to = unix_seconds();

    let dashboards = dashboard::shipped();
    let mut queried = 0;
    let mut problems = Vec::new();
    for panel in dashboards.iter().flat_map(dashboard::panels) {
        for (letter, expr) in dashboard::queries(panel) {
            let name = format!("{} {letter}", panel["title"]);
            let may_be_empty = MAY_BE_EMPTY.contains(&dashboard::text(&panel["title"]));
            queried += 1;
            match prometheus.query_range(&with_variables(expr), from, to) {
                Err(error) => problems.push(format!("{name}: {error}")),
                Ok(series) if series.is_empty() && may_be_empty => {}
                Ok(series) if series.is_empty() => problems.push(format!("{name}: no series")),
                Ok(series) => problems.extend(
                    series
                        .iter()
                        .filter(|series| finite_values(series).is_empty())
                        .map(|series| format!("{name}: no number in {}", series["metric"])),
                ),
            }
        }
    }
    for query in QUERIES_FOR_VLLM {
        let answer = prometheus.query_range(&with_variables(query), from, to);
        let numbers = answer.map(|series| series.iter().map(finite_values).all(|v| v.is_empty()));
        if numbers != Ok(false) {
            problems.push(format!("{query}: no number, or {numbers:?}"));
        }
    }
    println!("{queried} queries answered");
    assert!(queried > 20, "only {queried} queries");
    assert!(problems.is_empty(), "{}", problems.join("\n"));

    // The variables list this service, and the annotation query is valid (nothing restarted, so it may be empty).
    for (selector, label) in [
        ("microgranite_build_info", "job"),
        (r#"microgranite_model_info{job=~".+"}"#, "model"),
        (r#"microgranite_model_info{model=~".+"}"#, "instance"),
    ] {
        let values = prometheus
            .label_values(selector, label)
            .expect("understood");
        assert_eq!(values.len(), 1, "{label}: {values:?}");
    }
    for dashboard in &dashboards {
        let annotation = dashboard::text(&dashboard["annotations"]["list"][0]["expr"]);
        prometheus
            .query_range(&with_variables(annotation), from, to)
            .expect("the annotation's query is understood");
    }

    figures_are_plausible(&prometheus, from, to);
    // The colon of vLLM's names is one that Prometheus keeps for rules; nothing else of the aliases is examined for that.
    let exposition = service.metrics();
    let ours: Vec<&str> = (exposition.lines())
        .filter(|line| !line.contains("vllm:"))
        .chain([""])
        .collect();
    promtool_finds_nothing(&ours.join("\n"));
}

/// The data could be all zeros, so this checks that the load shows in the counters and that the memory savings are as
/// int8 allows.
fn figures_are_plausible(prometheus: &Prometheus, from: f64, to: f64) {
    let last = |query: &str| {
        let series = prometheus.query_range(query, from, to).expect("understood");
        let values = series.first().map(finite_values).unwrap_or_default();
        values
            .last()
            .copied()
            .unwrap_or_else(|| panic!("no data for {query}"))
    };
    for outcome in ["ok", "invalid", "cancelled"] {
        let count = last(&format!(
            r#"microgranite_requests_total{{outcome="{outcome}"}}"#
        ));
        assert!(count > 0.0, "no request ended as {outcome}");
    }
    for against in ["bf16", "f32"] {
        let saved = last(&format!(
            r#"sum(microgranite_memory_saved_bytes{{against="{against}"}}) / sum(microgranite_model_reference_bytes{{dtype="{against}"}})"#
        ));
        let most = if against == "bf16" { 0.5 } else { 0.75 };
        assert!(
            saved > most - 0.1 && saved < most,
            "saved {saved} of {against}"
        );
    }
    let loaded = last("sum(microgranite_model_weight_bytes)");
    let saved = last(r#"sum(microgranite_memory_saved_bytes{against="f32"})"#);
    let reference = last(r#"sum(microgranite_model_reference_bytes{dtype="f32"})"#);
    assert_eq!(loaded + saved, reference);
    for kind in ["anon", "file"] {
        let resident = last(&format!(
            r#"microgranite_process_resident_bytes{{kind="{kind}"}}"#
        ));
        assert!(resident > 1e6, "{kind}: {resident} bytes");
    }
    assert!(last("microgranite_generation_tokens_total") > 1000.0);
}

/// Prometheus' own linter for names, types and help texts.
fn promtool_finds_nothing(exposition: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool comes with Debian's package `prometheus`");
    promtool
        .stdin
        .take()
        .expect("piped")
        .write_all(exposition.as_bytes())
        .expect("read by promtool");
    let output = promtool.wait_with_output().expect("promtool ends");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    assert!(complaints.is_empty(), "{complaints}");
}
