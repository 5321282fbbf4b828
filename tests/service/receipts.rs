//! Tests of receipts: what a request took is the same number in its response, in the metrics and in the log.

use std::time::Duration;

use microgranite::http::limits::Limits;
use serde_json::{Value, json};

use crate::chat::{TEMPLATE, send};
use crate::fake::Fake;
use crate::harness::{Options, Service, first_event, read_events};
use crate::messages::named_events;

fn service(step_time: Duration) -> Service {
    let options = Options {
        chat_template: Some(TEMPLATE),
        limits: Limits {
            receipts: true,
            ..Limits::default()
        },
        ..Options::default()
    };
    Service::with(Fake::babbling().with_step_time(step_time), options)
}

/// Asserts that `receipt` is whole, and returns its phases in seconds.
fn phases(receipt: &Value) -> [f64; 3] {
    let fields = receipt.as_object().expect("a receipt");
    let names: Vec<&String> = fields.keys().collect();
    assert_eq!(
        names,
        [
            "queue_seconds",
            "prefill_seconds",
            "decode_seconds",
            "cpu_seconds",
            "prompt_tokens",
            "cached_tokens",
            "generated_tokens",
            "outcome"
        ]
    );
    assert_eq!(receipt["outcome"], "ok");
    assert!(receipt["cpu_seconds"].as_f64().unwrap() > 0.0, "{receipt}");
    ["queue_seconds", "prefill_seconds", "decode_seconds"]
        .map(|phase| receipt[phase].as_f64().expect("every phase was reached"))
}

#[tokio::test]
async fn every_api_has_a_receipt_whole_and_streamed() {
    const TOKENS: usize = 5;
    let step = Duration::from_millis(4);
    let service = service(step);
    let messages = json!([{"role": "user", "content": "u"}]);
    let requests = [
        (
            "/v1/completions",
            json!({"prompt": "the cat", "max_tokens": TOKENS}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": TOKENS}),
        ),
        (
            "/v1/responses",
            json!({"input": "u", "max_output_tokens": TOKENS}),
        ),
        (
            "/v1/messages",
            json!({"messages": messages, "max_tokens": TOKENS}),
        ),
    ];
    for (path, mut body) in requests {
        let whole: Value = send(&service, path, &body).await.json().await.unwrap();
        body["stream"] = json!(true);
        let streamed = if path.ends_with("completions") {
            body["stream_options"] = json!({"include_usage": true});
            let events = read_events(send(&service, path, &body).await).await;
            assert!(events[0].get("receipt").is_none(), "only at the end");
            events.last().unwrap()["receipt"].clone()
        } else {
            let events = named_events(send(&service, path, &body).await).await;
            let last = events.last().unwrap();
            let holder = last.get("response").unwrap_or(last);
            holder["receipt"].clone()
        };
        for receipt in [&whole["receipt"], &streamed] {
            let [queue, prefill, decode] = phases(receipt);
            assert!(queue >= 0.0 && prefill >= step.as_secs_f64(), "{path}");
            let between = (TOKENS - 1) as f64 * step.as_secs_f64();
            assert!(decode >= between, "{path}: {receipt}");
            assert_eq!(receipt["generated_tokens"], TOKENS, "{path}");
            assert!(receipt["prompt_tokens"].as_u64().unwrap() > 0, "{path}");
        }
        assert_eq!(whole["receipt"]["prompt_tokens"], streamed["prompt_tokens"]);
    }
}

#[tokio::test]
async fn a_service_that_is_not_asked_for_receipts_gives_none() {
    let service = Service::start(Fake::babbling());
    let answer = service.complete(json!({"prompt": "x"})).await;
    assert!(answer.get("receipt").is_none(), "{answer}");
}

#[tokio::test]
async fn metrics_have_the_numbers_of_the_receipt() {
    let service = service(Duration::from_millis(3));
    // Its own copy of the prompt is found in the cache; a prompt counts once, however many answers it has.
    let prompt = "the cat sat on the mat. ".repeat(20);
    service.complete(json!({"prompt": prompt})).await;
    let counted = |_: &_| service.count("ok") == 1;
    let limit = Duration::from_secs(5);
    service.within(limit, "the first is counted", counted).await;
    let sums = || {
        let metrics = &service.metrics;
        [
            metrics.queue_wait_seconds.get_sample_sum(),
            metrics.request_prefill_seconds.get_sample_sum(),
            metrics.request_decode_seconds.get_sample_sum(),
            metrics.request_cpu_seconds.get_sample_sum(),
            metrics.request_generation_tokens.get_sample_sum(),
        ]
    };
    let before = sums();
    let answer = service
        .complete(json!({"prompt": prompt, "max_tokens": 7}))
        .await;
    let counted = |_: &_| service.count("ok") == 2;
    service.within(limit, "both are counted", counted).await;
    let receipt = &answer["receipt"];
    let [queue, prefill, decode] = phases(receipt);
    let cpu = receipt["cpu_seconds"].as_f64().unwrap();
    let expected = [queue, prefill, decode, cpu, 7.0];
    for ((after, before), expected) in sums().into_iter().zip(before).zip(expected) {
        // Receipts are rounded to microseconds.
        let difference = (after - before - expected).abs();
        assert!(difference < 2e-6, "{} is not {expected}", after - before);
    }
    let usage = &answer["usage"];
    assert_eq!(receipt["prompt_tokens"], usage["prompt_tokens"]);
    let cached = &usage["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(&receipt["cached_tokens"], cached);
    assert!(cached.as_u64().unwrap() > 0);
    assert_eq!(receipt["generated_tokens"], usage["completion_tokens"]);

    let several = json!({"prompt": prompt, "n": 3});
    let answer = service.complete(several).await;
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(&answer["receipt"]["cached_tokens"], cached);
}

#[tokio::test]
async fn refusals_are_in_no_phase_and_an_answer_that_was_left_is_in_those_that_it_reached() {
    let service = service(Duration::from_millis(5));
    let limit = Duration::from_secs(5);
    let refused = service.completion(&json!({"prompt": ""})).send().await;
    assert_eq!(refused.unwrap().status(), 400);
    let counted = |_: &_| service.count("invalid") == 1;
    service.within(limit, "it is counted", counted).await;
    let metrics = &service.metrics;
    let reached = || {
        [
            metrics.queue_wait_seconds.get_sample_count(),
            metrics.request_prefill_seconds.get_sample_count(),
            metrics.request_decode_seconds.get_sample_count(),
            metrics.request_cpu_seconds.get_sample_count(),
        ]
    };
    assert_eq!(reached(), [0, 0, 0, 0]);

    let long = json!({"prompt": "x", "max_tokens": 4000, "stream": true});
    drop(first_event(service.completion(&long).send().await.unwrap()).await);
    let counted = |_: &_| service.count("cancelled") == 1;
    service.within(limit, "it is counted", counted).await;
    assert_eq!(reached(), [1, 1, 0, 1], "it cost, and never ended");
}
