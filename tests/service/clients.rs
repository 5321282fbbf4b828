//! Tests of clients with keys: their limits, their shares of the server, and what they have used.

use std::io::Write as _;
use std::time::Duration;

use futures_util::future::join_all;
use microgranite::engine;
use microgranite::http::access::{Access, ApiKeys, FairBy};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fake::Fake;
use crate::harness::{Options, Service, first_event};

/// Longer than any of these tests takes, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

fn keys(lines: &str) -> Option<ApiKeys> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    Some(ApiKeys::read(file.path()).unwrap())
}

fn serving(lines: &str, model: Fake, engine: engine::Settings) -> Service {
    let options = Options {
        engine,
        access: Access {
            keys: keys(lines),
            ..Access::default()
        },
        ..Options::default()
    };
    Service::with(model, options)
}

fn ask(service: &Service, key: &str, body: &Value) -> RequestBuilder {
    service.completion(body).bearer_auth(key)
}

/// The message, the code and the seconds to wait of a 429.
async fn limited(response: Response) -> (String, String, u64) {
    assert_eq!(response.status(), 429);
    let wait = response.headers()["retry-after"].to_str().unwrap();
    let wait = wait.parse().unwrap();
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["type"], "rate_limit_error");
    let text = |field: &str| error["error"][field].as_str().unwrap().to_owned();
    (text("message"), text("code"), wait)
}

#[tokio::test]
async fn a_limit_is_named_with_the_name_of_its_key_and_holds_for_nobody_else() {
    let lines = "key-a name=alice requests_per_minute=2\nkey-a2 name=alice\nkey-b name=bob\nkey-c";
    let service = serving(lines, Fake::babbling(), engine::Settings::default());
    let body = json!({"prompt": "x", "max_tokens": 1});
    for key in ["key-a", "key-a2"] {
        let answer = ask(&service, key, &body).send().await.unwrap();
        assert_eq!(answer.status(), 200, "both keys are the same client's");
    }
    let (message, code, wait) = limited(ask(&service, "key-a", &body).send().await.unwrap()).await;
    assert_eq!(
        message,
        "the key 'alice' has reached its limit, requests_per_minute=2; retry later"
    );
    assert_eq!(code, "rate_limit_exceeded");
    assert!((1..=30).contains(&wait), "{wait}");
    for key in ["key-b", "key-c"] {
        for _ in 0..5 {
            let answer = ask(&service, key, &body).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{key}");
        }
    }
    // What is no request for text is not limited.
    let models = service.client.get(service.url("/v1/models"));
    let answer = models.bearer_auth("key-a").send().await.unwrap();
    assert_eq!(answer.status(), 200);

    let used = |name: &str, outcome: &str| {
        let requests = &service.metrics.key_requests_total;
        requests.with_label_values(&[name, outcome]).get()
    };
    let counted = |_: &_| used("unnamed", "ok") == 5;
    service.within(LIMIT, "all are counted", counted).await;
    assert_eq!((used("alice", "ok"), used("alice", "rejected")), (2, 1));
    assert_eq!(used("bob", "ok"), 5);
    let tokens = service
        .metrics
        .key_generation_tokens_total
        .with_label_values(&["bob"]);
    assert_eq!(tokens.get(), 5);
    let text = service.metrics.render();
    assert!(!text.contains("key-a") && !text.contains("key-c"), "{text}");
    assert!(text.contains("microgranite_key_queue_seconds_total{key=\"bob\"}"));
}

#[tokio::test]
async fn tokens_and_requests_at_once_are_limited_too() {
    let lines = "a name=slow concurrent_requests=1\nb name=short tokens_per_minute=50\nc name=free";
    let model = Fake::babbling().with_step_time(Duration::from_millis(2));
    let service = serving(lines, model, engine::Settings::default());
    let long = json!({"prompt": "x", "max_tokens": 4000, "stream": true});
    let running = first_event(ask(&service, "a", &long).send().await.unwrap()).await;
    let (message, ..) = limited(ask(&service, "a", &long).send().await.unwrap()).await;
    assert_eq!(
        message,
        "the key 'slow' has reached its limit, concurrent_requests=1; retry later"
    );
    drop(running);
    service.idle_within_a_second().await;
    let body = json!({"prompt": "x", "max_tokens": 60});
    let again = || async { ask(&service, "a", &body).send().await.unwrap().status() == 200 };
    let mut tries = 0;
    while !again().await {
        tries += 1;
        assert!(tries < 1000, "its place becomes free");
    }

    let answer = ask(&service, "b", &body).send().await.unwrap();
    assert_eq!(
        answer.status(),
        200,
        "what it takes is known only at the end"
    );
    let (message, _, wait) = limited(ask(&service, "b", &body).send().await.unwrap()).await;
    assert_eq!(
        message,
        "the key 'short' has reached its limit, tokens_per_minute=50; retry later"
    );
    assert!(
        (10..=20).contains(&wait),
        "61 of 50 tokens are taken: {wait}"
    );
    let answer = ask(&service, "c", &body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

/// An engine with two places and room for eight to wait.
fn two_places() -> engine::Settings {
    engine::Settings {
        max_batch: 2,
        max_queue: 8,
        ..engine::Settings::default()
    }
}

#[tokio::test]
async fn a_client_that_floods_the_server_keeps_no_other_waiting() {
    for fair_by in [FairBy::Key, FairBy::User] {
        let options = Options {
            engine: two_places(),
            access: Access {
                keys: keys("a name=first\nb name=second"),
                fair_by,
                ..Access::default()
            },
            ..Options::default()
        };
        let model = Fake::babbling().with_step_time(Duration::from_millis(4));
        let service = Service::with(model, options);
        // By user, both have the same key.
        let other = if fair_by == FairBy::Key { "b" } else { "a" };
        let long = json!({"prompt": "x", "max_tokens": 4000, "user": "flooding", "stream": true});
        let streams = join_all((0..2).map(|_| ask(&service, "a", &long).send())).await;
        let waiting: Vec<_> = (0..20)
            .map(|_| tokio::spawn(ask(&service, "a", &long).send()))
            .collect();
        let is_full = |_: &_| service.count("rejected") == 16;
        service
            .within(LIMIT, "it has its share of the queue", is_full)
            .await;
        let short = json!({"prompt": "y", "max_tokens": 20, "user": "patient"});
        let answer = ask(&service, other, &short).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{fair_by:?}");
        // None of the flood has ended meanwhile, though it came earlier.
        assert_eq!(service.count("cancelled"), 0);
        assert!(service.metrics.preemptions_total.get() >= 1);
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        drop(streams);
        service.idle_within_a_second().await;
    }
}

#[tokio::test]
async fn a_share_of_the_queue_that_is_used_up_is_named() {
    let model = Fake::babbling().with_step_time(Duration::from_millis(4));
    let service = serving("a name=first\nb name=second", model, two_places());
    let long = json!({"prompt": "x", "max_tokens": 4000, "stream": true});
    let streams = join_all((0..2).map(|_| ask(&service, "a", &long).send())).await;
    let waiting: Vec<_> = (0..4)
        .map(|_| tokio::spawn(ask(&service, "a", &long).send()))
        .collect();
    let waits = |metrics: &microgranite::telemetry::Metrics| metrics.requests_waiting.get() == 4;
    service.within(LIMIT, "four wait", waits).await;
    let refused = ask(&service, "a", &long).send().await.unwrap();
    let (message, code, _) = limited(refused).await;
    let expected = "the key 'first' has as much of the queue as one client may have; retry later";
    assert_eq!(
        (message.as_str(), code.as_str()),
        (expected, "rate_limit_exceeded")
    );
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    drop(streams);
    service.idle_within_a_second().await;
}

#[tokio::test]
async fn a_long_body_is_not_read_where_there_is_no_room_for_it() {
    let settings = engine::Settings {
        max_batch: 1,
        max_queue: 0,
        ..engine::Settings::default()
    };
    let options = Options {
        engine: settings,
        ..Options::default()
    };
    let model = Fake::babbling().with_step_time(Duration::from_millis(4));
    let service = Service::with(model, options);
    let long = json!({"prompt": "x", "max_tokens": 4000, "stream": true});
    let running = first_event(service.completion(&long).send().await.unwrap()).await;
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 500000\r\n\r\n";
    // Not a byte of the body.
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    socket.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 429");
    drop(running);
}
