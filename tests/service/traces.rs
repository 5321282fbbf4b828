//! Tests of the spans that an OpenTelemetry collector gets.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use microgranite::telemetry::Metrics;
use microgranite::telemetry::otlp::{Exporter, Span};
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::harness::{MODEL, Options, Service};

type Messages = Arc<Mutex<Vec<Value>>>;

/// A collector on loopback, and what it has got.
async fn collector() -> (SocketAddr, Messages) {
    let messages = Messages::default();
    let take = async |State(messages): State<Messages>, body: String| {
        messages
            .lock()
            .unwrap()
            .push(serde_json::from_str(&body).unwrap());
        (StatusCode::OK, "{}")
    };
    let routes = Router::new().route("/v1/traces", post(take));
    let routes = routes.with_state(Arc::clone(&messages));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
    (address, messages)
}

fn traced(address: SocketAddr) -> Service {
    let model = Fake::babbling().with_step_time(Duration::from_millis(5));
    let options = Options {
        collector: Some(format!("http://{address}/v1/traces")),
        ..Options::default()
    };
    Service::with(model, options)
}

/// Waits for `count` spans.
async fn spans(messages: &Messages, count: usize) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let spans: Vec<Value> = messages.lock().unwrap().iter().flat_map(all).collect();
        if spans.len() >= count {
            return spans;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{spans:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn all(message: &Value) -> Vec<Value> {
    let resource = &message["resourceSpans"][0];
    let service = attribute(&resource["resource"], "service.name");
    assert_eq!(service["stringValue"], "microgranite");
    resource["scopeSpans"][0]["spans"]
        .as_array()
        .unwrap()
        .clone()
}

fn attribute(span: &Value, key: &str) -> Value {
    let attributes = span["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    found.map_or(Value::Null, |attribute| attribute["value"].clone())
}

fn time(span: &Value, key: &str) -> u128 {
    span[key].as_str().unwrap().parse().unwrap()
}

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn a_request_is_a_span_with_its_wait_its_prompt_and_its_answer_below() {
    let (address, messages) = collector().await;
    let service = traced(address);
    for stream in [false, true] {
        messages.lock().unwrap().clear();
        let body = json!({"prompt": "secret", "max_tokens": 7, "stream": stream});
        let request = service.completion(&body).header("traceparent", CALLER);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.bytes().await.unwrap();
        let spans = spans(&messages, 4).await;
        assert_eq!(spans.len(), 4);
        assert!(
            spans
                .iter()
                .all(|span| span["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736")
        );
        let request = &spans[0];
        assert_eq!(request["name"], format!("text_completion {MODEL}"));
        assert_eq!(request["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!(request["kind"], 2);
        assert_eq!(request["status"], Value::Null);
        for (key, kind, value) in [
            ("http.route", "stringValue", "/v1/completions"),
            ("http.response.status_code", "intValue", "200"),
            ("gen_ai.operation.name", "stringValue", "text_completion"),
            ("gen_ai.request.model", "stringValue", MODEL),
            ("gen_ai.usage.output_tokens", "intValue", "7"),
        ] {
            assert_eq!(attribute(request, key)[kind], value, "{key}");
        }
        let mut at = time(request, "startTimeUnixNano");
        for (span, name) in spans[1..].iter().zip(["queue", "prefill", "decode"]) {
            assert_eq!(span["name"], name);
            assert_eq!(span["parentSpanId"], request["spanId"]);
            let start = time(span, "startTimeUnixNano");
            assert!(start == at || (start > at && name == "queue"), "{name}");
            at = time(span, "endTimeUnixNano");
        }
        assert!(at <= time(request, "endTimeUnixNano"));
        let decode = at - time(&spans[3], "startTimeUnixNano");
        assert!(decode >= 25_000_000, "six steps of 5 ms took {decode} ns");
        assert!(!messages.lock().unwrap()[0].to_string().contains("secret"));
    }
    assert_eq!(
        service
            .metrics
            .trace_spans_total
            .with_label_values(&["sent"])
            .get(),
        8
    );
}

#[tokio::test]
async fn refused_requests_are_spans_and_those_that_the_caller_does_not_sample_are_none() {
    let (address, messages) = collector().await;
    let service = traced(address);
    let body = json!({"prompt": "x", "max_tokens": 2});
    let unsampled = CALLER.replace("-01", "-00");
    let request = service.completion(&body).header("traceparent", unsampled);
    assert_eq!(request.send().await.unwrap().status(), 200);
    service.get("/livez").await;
    let wrong = json!({"prompt": "x", "max_tokens": -1});
    let request = service.completion(&wrong).header("traceparent", "nonsense");
    assert_eq!(request.send().await.unwrap().status(), 400);
    let spans = spans(&messages, 1).await;
    assert_eq!(spans.len(), 1);
    let span = &spans[0];
    assert_eq!(span["parentSpanId"], Value::Null);
    assert_eq!(span["traceId"].as_str().unwrap().len(), 32);
    assert_eq!(
        attribute(span, "error.type")["stringValue"],
        "invalid_value"
    );
    assert_eq!(
        attribute(span, "http.response.status_code")["intValue"],
        "400"
    );
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_requests_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let service = traced(nobody);
    service
        .complete(json!({"prompt": "x", "max_tokens": 2}))
        .await;
    let dropped = |metrics: &Metrics| {
        metrics
            .trace_spans_total
            .with_label_values(&["dropped"])
            .get()
            == 4
    };
    service
        .within(Duration::from_secs(30), "spans are dropped", dropped)
        .await;
}

#[test]
fn a_collector_that_does_not_answer_makes_spans_be_dropped_and_nobody_wait() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = Metrics::new();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let exporter = Exporter::start(url, &metrics).unwrap();
    let span = Span {
        trace_id: 1,
        span_id: 1,
        parent: None,
        name: "x".repeat(100),
        is_server: true,
        start: 1,
        end: 2,
        attributes: Vec::new(),
        is_error: false,
    };
    let start = Instant::now();
    for _ in 0..10_000 {
        exporter.send(vec![span.clone()]);
    }
    exporter.flush(Duration::from_millis(100));
    // The collector may take ten seconds to answer.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let dropped = metrics
        .trace_spans_total
        .with_label_values(&["dropped"])
        .get();
    assert!((7000..10_000).contains(&dropped), "{dropped}");
}
