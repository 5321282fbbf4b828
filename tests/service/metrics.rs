//! Tests of `/metrics`: every series that dashboards rely on exists, with a name by Prometheus' conventions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;

use crate::fake::Fake;
use crate::harness::Service;
use crate::process::{running_with, tiny};

/// Names and labels that the dashboard and scripts use.
const SERIES: &[&str] = &[
    "answers_total{finish_reason}",
    "batch_places",
    "batch_rows_bucket{le}",
    "build_info{build,instruction_set,version}",
    "engine_stalls_total",
    "generation_tokens_total",
    "grammars_total{outcome=busy}",
    "grammars_total{outcome=compiled}",
    "grammars_total{outcome=hit}",
    "grammars_total{outcome=refused}",
    "grammars_total{outcome=timeout}",
    "grammars_total{outcome=unavailable}",
    "inter_token_latency_seconds_bucket{le}",
    "kv_cache_bytes{state=cached}",
    "kv_cache_bytes{state=reserved}",
    "kv_cache_bytes{state=used}",
    "kv_cache_usage_ratio",
    "log_lines_dropped_total",
    "memory_saved_bytes{against=bf16}",
    "memory_saved_bytes{against=f32}",
    "model_info{architecture,context_length,model,scheme}",
    "model_reference_bytes{dtype=bf16}",
    "model_reference_bytes{dtype=f32}",
    "model_weight_bytes{component,dtype}",
    "nonfinite_logits_total",
    "preemptions_total",
    "prefix_cache_evictions_total",
    "prefix_cache_hits_total",
    "prefix_cache_queries_total",
    "process_cpu_seconds_total",
    "process_resident_bytes{kind=anon}",
    "process_resident_bytes{kind=file}",
    "process_resident_bytes{kind=shmem}",
    "process_start_time_seconds",
    "prompt_tokens_total",
    "prompt_tokens_waiting",
    "queue_places",
    "queue_token_places",
    "queue_wait_seconds_bucket{le}",
    "request_cpu_seconds_bucket{le}",
    "request_decode_seconds_bucket{le}",
    "request_duration_seconds_bucket{outcome=ok,le}",
    "request_generation_tokens_bucket{le}",
    "request_prefill_seconds_bucket{le}",
    "request_prompt_tokens_bucket{le}",
    "recurrent_state_bytes{state=cached}",
    "recurrent_state_bytes{state=reserved}",
    "recurrent_state_bytes{state=used}",
    "requests_running",
    "requests_total{outcome=cancelled}",
    "requests_total{outcome=ok}",
    "requests_total{outcome=rejected}",
    "requests_total{outcome=unavailable}",
    "requests_waiting",
    "responses_total{code}",
    "speculation_accepted_tokens_total",
    "speculation_drafted_tokens_total",
    "time_to_first_token_seconds_bucket{le}",
    "weights_state{state=unverified}",
];
/// Labels whose values are fixed, so that dashboards can rely on them.
const CLOSED: [&str; 4] = ["state", "against", "kind", "outcome"];

async fn scrape(service: &Service) -> String {
    let response = service.get("/metrics").await;
    let content_type = response.headers()["content-type"].to_str().unwrap();
    assert!(content_type.starts_with("text/plain; version=0.0.4"));
    response.text().await.unwrap()
}

/// `name{label}` of a sample line, with the values of the labels in [`CLOSED`], and of `dtype` if it is the only label.
fn series(line: &str) -> String {
    let (series, _value) = line.rsplit_once(' ').unwrap();
    let Some((name, labels)) = series.split_once('{') else {
        return series.to_owned();
    };
    let labels: Vec<(&str, &str)> = labels
        .trim_end_matches('}')
        .split(',')
        .map(|label| label.split_once('=').unwrap())
        .collect();
    let is_closed =
        |label: &str| CLOSED.contains(&label) || (label == "dtype" && labels.len() == 1);
    let labels: Vec<String> = labels
        .iter()
        .map(|&(label, value)| match is_closed(label) {
            true => format!("{label}={}", value.trim_matches('"')),
            false => label.to_owned(),
        })
        .collect();
    format!("{name}{{{}}}", labels.join(","))
}

#[tokio::test]
async fn every_promised_series_is_there_and_counts() {
    let service = Service::start(Fake::babbling());
    let metrics = &service.metrics;
    let parts = [("attention", "int8", 300), ("norm", "f32", 20)];
    metrics.set_model_memory(parts, 310);
    metrics.set_info("m", "Granite", 4096, "scalar");
    let body = json!({"prompt": ["the cat", "a"], "max_tokens": 10});
    let usage = service.complete(body).await["usage"].clone();
    service
        .completion(&json!({"prompt": ""}))
        .send()
        .await
        .unwrap();
    let counted = |_: &_| service.count("ok") == 1 && service.count("invalid") == 1;
    service
        .within(Duration::from_secs(1), "both are counted", counted)
        .await;

    let text = scrape(&service).await;
    let samples: BTreeMap<&str, &str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap())
        .collect();
    let found: BTreeSet<String> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| series(line.strip_prefix("microgranite_").expect("one prefix")))
        .collect();
    for &name in SERIES {
        assert!(found.contains(name), "{name} is missing in {found:#?}");
    }
    let value = |name: &str| samples[format!("microgranite_{name}").as_str()];
    assert_eq!(value("requests_total{outcome=\"ok\"}"), "1");
    assert_eq!(value("requests_total{outcome=\"invalid\"}"), "1");
    for (name, count) in [
        ("request_duration_seconds_count{outcome=\"ok\"}", "1"),
        ("request_duration_seconds_count{outcome=\"invalid\"}", "1"),
        ("request_duration_seconds_count{outcome=\"rejected\"}", "0"),
        ("responses_total{code=\"200\"}", "1"),
        ("responses_total{code=\"400\"}", "1"),
        ("answers_total{finish_reason=\"length\"}", "2"),
        ("request_prompt_tokens_count", "1"),
        ("request_generation_tokens_sum", "20"),
        ("batch_places", "16"),
        ("queue_places", "128"),
        ("queue_token_places", "131072"),
        ("prompt_tokens_waiting", "0"),
        ("kv_cache_usage_ratio", "0"),
    ] {
        assert_eq!(value(name), count, "{name}");
    }
    assert!(value("process_cpu_seconds_total").parse::<f64>().unwrap() > 0.0);
    assert_eq!(
        value("generation_tokens_total"),
        usage["completion_tokens"].to_string()
    );
    assert_eq!(
        value("prompt_tokens_total"),
        usage["prompt_tokens"].to_string()
    );
    assert_eq!(value("time_to_first_token_seconds_count"), "2");
    assert_eq!(value("inter_token_latency_seconds_count"), "18");
    assert_eq!(value("memory_saved_bytes{against=\"f32\"}"), "920");
    assert_eq!(value("memory_saved_bytes{against=\"bf16\"}"), "300");
    assert_eq!(value("requests_running"), "0");
}

#[tokio::test]
async fn names_and_texts_follow_the_rules_of_prometheus() {
    let service = Service::start(Fake::babbling());
    service.complete(json!({"prompt": "x"})).await;
    let text = scrape(&service).await;
    assert!(text.ends_with('\n'));
    let mut described = BTreeSet::new();
    let mut types = BTreeMap::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(help.ends_with('.') && described.insert(name), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(
                described.contains(name),
                "help comes before the type: {line}"
            );
            types.insert(name, kind);
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| {
                    name.strip_suffix(suffix)
                        .filter(|name| types.contains_key(name))
                })
                .unwrap_or(name);
            assert!(types.contains_key(family), "{line}");
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            assert!(name.bytes().all(plain), "{line}");
        }
    }
    for (name, kind) in types {
        assert_eq!(
            kind == "counter",
            name.ends_with("_total"),
            "{name} is a {kind}"
        );
        let scaled = ["_ms", "_milliseconds", "_kb", "_mb", "_mib", "_percent"];
        assert!(
            !scaled.iter().any(|unit| name.ends_with(unit)),
            "{name} is not in base units"
        );
    }
}

#[tokio::test]
async fn what_is_refused_for_want_of_room_and_what_for_want_of_a_model_are_told_apart() {
    let loading = Service::loading();
    loading
        .completion(&json!({"prompt": "x"}))
        .send()
        .await
        .unwrap();
    let is_counted = |_: &_| loading.count("unavailable") == 1;
    let limit = Duration::from_secs(1);
    loading.within(limit, "503 is counted", is_counted).await;
    assert_eq!(loading.count("rejected"), 0);
    let text = scrape(&loading).await;
    assert!(
        text.contains("microgranite_responses_total{code=\"503\"} 1\n"),
        "{text}"
    );
    let served = "microgranite_request_duration_seconds_count{outcome=\"ok\"} 0\n";
    assert!(
        text.contains(served),
        "a refusal is no quick answer: {text}"
    );
}

#[tokio::test]
async fn what_clients_make_up_adds_no_series() {
    let service = Service::start(Fake::babbling());
    service.complete(json!({"prompt": "x"})).await;
    let unknown = json!({"prompt": "x", "model": "unknown"});
    service.completion(&unknown).send().await.unwrap();
    let before = scrape(&service).await.lines().count();
    for n in 0..50 {
        service.get(&format!("/made/up/{n}")).await;
        let body =
            json!({"prompt": "x", "model": format!("model-{n}"), "user": format!("user-{n}")});
        service.completion(&body).send().await.unwrap();
    }
    assert_eq!(scrape(&service).await.lines().count(), before);
}

/// The samples of a scrape whose names begin with `prefix`, without it.
fn samples<'a>(text: &'a str, prefix: &str) -> BTreeMap<&'a str, &'a str> {
    text.lines()
        .filter_map(|line| line.strip_prefix(prefix)?.rsplit_once(' '))
        .collect()
}

#[test]
fn the_names_of_vllm_show_our_values() {
    let flags = ["--metrics-aliases", "vllm", "--threads", "1"];
    let (_process, url) = running_with(&tiny(), &flags);
    let client = reqwest::blocking::Client::new();
    let body =
        json!({"prompt": "the cat sat on the mat. the cat", "max_tokens": 9, "ignore_eos": true});
    for _ in 0..3 {
        let answer = client.post(format!("{url}/v1/completions")).json(&body);
        assert_eq!(answer.send().unwrap().status(), 200);
    }
    // A request is counted when its last byte has gone, so perhaps a moment later than the client has it.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let text = loop {
        let text = reqwest::blocking::get(format!("{url}/metrics"));
        let text = text.unwrap().text().unwrap();
        let counted = text.contains("microgranite_requests_total{outcome=\"ok\"} 3\n");
        if counted || std::time::Instant::now() > deadline {
            break text;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (ours, theirs) = (samples(&text, "microgranite_"), samples(&text, "vllm:"));
    let of = "model_name=\"granite-3-tiny\"";
    for (name, our_name) in [
        ("num_requests_running", "requests_running"),
        ("num_requests_waiting", "requests_waiting"),
        ("kv_cache_usage_perc", "kv_cache_usage_ratio"),
        (
            "time_to_first_token_seconds_sum",
            "time_to_first_token_seconds_sum",
        ),
        (
            "inter_token_latency_seconds_count",
            "inter_token_latency_seconds_count",
        ),
        (
            "request_queue_time_seconds_count",
            "queue_wait_seconds_count",
        ),
        (
            "request_prefill_time_seconds_sum",
            "request_prefill_seconds_sum",
        ),
        (
            "request_decode_time_seconds_count",
            "request_decode_seconds_count",
        ),
        ("prompt_tokens_total", "prompt_tokens_total"),
        ("generation_tokens_total", "generation_tokens_total"),
        ("prefix_cache_queries_total", "prefix_cache_queries_total"),
        ("prefix_cache_hits_total", "prefix_cache_hits_total"),
    ] {
        let theirs = theirs[format!("{name}{{{of}}}").as_str()];
        assert_eq!(theirs, ours[our_name], "{name}");
    }
    for (name, our_name) in [
        (
            format!("e2e_request_latency_seconds_sum{{{of}}}"),
            "request_duration_seconds_sum{outcome=\"ok\"}",
        ),
        (
            format!("request_success_total{{{of},finished_reason=\"length\"}}"),
            "answers_total{finish_reason=\"length\"}",
        ),
    ] {
        assert_eq!(theirs[name.as_str()], ours[our_name], "{name}");
    }
    let tokens = theirs[format!("generation_tokens_total{{{of}}}").as_str()];
    assert_eq!(tokens, "27");
    let info = theirs
        .keys()
        .find(|name| name.starts_with("cache_config_info"));
    assert!(info.unwrap().contains("block_size=\"64\""), "{info:?}");
    // Without the flag there is none of it.
    let (_process, url) = running_with(&tiny(), &["--threads", "1"]);
    let text = reqwest::blocking::get(format!("{url}/metrics")).unwrap();
    assert!(!text.text().unwrap().contains("vllm:"));
}
