//! Serves a model with Mamba-2 layers and experts, with few pages and slots: each of two hundred requests of every kind gets
//! the bytes that it gets alone.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use microgranite::engine::{self, PromptRows};
use microgranite::model::{self, Granite, ModelConfig};
use microgranite::sources::{self, Reference};
use serde_json::{Value, json};

use crate::harness::{Options, Service, first_event, fixture, read_events};

const REQUESTS: usize = 200;
/// States that later prompts can go on from: fewer than would like one.
const SNAPSHOTS: usize = 4;
/// Bytes of a state: three Mamba-2 layers, each with 3 rows of 512 convolved channels and 256 channels of 128 values.
const STATE: i64 = 3 * 4 * (3 * 512 + 256 * 128);
/// Concurrent clients: three for each slot of the batch.
const CLIENTS: usize = 24;

fn hybrid(threads: usize, pages: u64, engine: &engine::Settings) -> Granite {
    let sources = sources::Settings::from_variables(|_| None, false);
    let folder = Reference::Folder(fixture("granite-4-hybrid-moe-tiny"));
    let checkpoint = sources::open(&folder, &sources).unwrap();
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config).unwrap();
    let settings = model::Settings {
        threads,
        slots: engine.slots(),
        snapshots: SNAPSHOTS,
        kv_bytes: pages * model::footprint(&config).kv_page,
        context: Some(512),
        weights: model::Placement::default(),
    };
    let mut model = model::load(&checkpoint, &settings, &mut |_, _| ()).unwrap();
    model.poison_states();
    model
}

fn service(threads: usize, pages: u64, engine: engine::Settings) -> Service {
    let engine = engine::Settings {
        max_queue: 20 * CLIENTS,
        ..engine
    };
    let model = hybrid(threads, pages, &engine);
    let options = Options {
        engine,
        ..Options::default()
    };
    Service::with(model, options)
}

/// The `n`-th request: one or several prompts and answers, short or some pages long, greedy or sampled, with stop strings,
/// an echo, log-probabilities.
fn request(n: usize) -> Value {
    const TEXT: &str = "The cat sat on the mat and the dog sat on the log. ";
    let own = |n: usize| (0..1 + n * 7 % 90).map(move |i| 1 + (n * 31 + i * 13) % 300);
    let prompt = match n % 4 {
        0 => json!(TEXT.repeat(1 + n % 5)),
        1 => json!(own(n).collect::<Vec<_>>()),
        2 => json!([format!("{n}: {TEXT}"), TEXT]),
        _ => json!(own(n).chain(own(n)).chain(own(n)).collect::<Vec<_>>()),
    };
    let mut body = json!({
        "prompt": prompt,
        // A few answers are much longer than the others, so that estimates of their length are too low.
        "max_tokens": if n.is_multiple_of(9) { 150 } else { 1 + n * 17 % 40 },
        "temperature": ([0.0, 0.7, 1.3][n % 3]),
        "seed": n,
    });
    if n.is_multiple_of(5) {
        body["n"] = json!(2);
    }
    if n.is_multiple_of(7) {
        body["stop"] = json!(["e", "\n"]);
    }
    if n.is_multiple_of(6) {
        body["echo"] = json!(true);
        body["logprobs"] = json!(2);
    }
    if n.is_multiple_of(11) {
        body["top_p"] = json!(0.9);
        body["frequency_penalty"] = json!(0.5);
    }
    body
}

fn is_streamed(n: usize) -> bool {
    n % 4 == 1
}

/// Requests whose clients leave after the first event.
fn is_cancelled(n: usize) -> bool {
    n % 13 == 1
}

/// Everything in a response that is not its id or its time: of a stream, the events in order for each choice.
async fn answer(service: &Service, n: usize) -> Vec<Value> {
    let mut body = request(n);
    if !is_streamed(n) {
        return vec![service.complete(body).await["choices"].take()];
    }
    body["stream"] = json!(true);
    let response = service.completion(&body).send().await.unwrap();
    assert_eq!(response.status(), 200, "{body}");
    let events = read_events(response).await;
    let mut choices: Vec<Value> = events
        .into_iter()
        .flat_map(|mut event| event["choices"].take().as_array().cloned().unwrap())
        .collect();
    choices.sort_by_key(|choice| choice["index"].as_u64());
    joined(choices)
}

/// Joins the events of each choice: how many tokens share an event depends on when the client reads.
fn joined(choices: Vec<Value>) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    for choice in choices {
        match all.last_mut() {
            Some(last) if last["index"] == choice["index"] => {
                let text = [&last["text"], &choice["text"]].map(|text| text.as_str().unwrap());
                last["text"] = json!(text.concat());
                last["finish_reason"] = choice["finish_reason"].clone();
            }
            _ => all.push(choice),
        }
    }
    all
}

/// Sends request `n`; if its client leaves, the answer is empty.
async fn ask(service: &Service, n: usize, may_leave: bool) -> (usize, Vec<Value>) {
    if may_leave && is_cancelled(n) {
        let mut body = request(n);
        body["stream"] = json!(true);
        body["max_tokens"] = json!(200);
        body["stop"] = Value::Null;
        body["ignore_eos"] = json!(true);
        drop(first_event(service.completion(&body).send().await.unwrap()).await);
        return (n, Vec::new());
    }
    (n, answer(service, n).await)
}

#[tokio::test]
async fn each_of_two_hundred_requests_to_a_hybrid_gets_the_bytes_it_gets_alone() {
    let alone = service(
        1,
        8,
        engine::Settings {
            max_batch: 1,
            prefix_cache: false,
            speculation: 0,
            ..engine::Settings::default()
        },
    );
    let together = service(
        2,
        14,
        engine::Settings {
            max_batch: 8,
            step_tokens: 24,
            prompt_rows: PromptRows::Fixed(9),
            ..engine::Settings::default()
        },
    );
    let mut expected = Vec::new();
    for n in 0..REQUESTS {
        expected.push(ask(&alone, n, false).await);
    }
    // All requests in another order, because 83 and 200 have no common divisor.
    let asked = (0..REQUESTS).map(|n| ask(&together, n * 83 % REQUESTS, true));
    let mut found: Vec<_> = stream::iter(asked)
        .buffer_unordered(CLIENTS)
        .collect()
        .await;
    found.sort_by_key(|answer| answer.0);
    let mut compared = 0;
    for (expected, found) in expected.iter().zip(&found) {
        if !is_cancelled(found.0) {
            assert_eq!(expected, found, "{}", request(found.0));
            compared += 1;
        }
    }
    assert!(compared > 180, "{compared}");
    let metrics = &together.metrics;
    let rows = &metrics.batch_rows;
    assert!(rows.get_sample_sum() > 3.0 * rows.get_sample_count() as f64);
    let cancelled = |_: &_| together.count("cancelled") > 10;
    let limit = Duration::from_secs(5);
    together.within(limit, "clients have left", cancelled).await;
    together.idle_within_a_second().await;
    let states = |state| {
        let gauge = &metrics.recurrent_state_bytes;
        gauge.with_label_values(&[state]).get()
    };
    let none = |_: &_| states("used") == 0;
    together.within(limit, "no state is in use", none).await;
    assert_eq!(states("reserved"), (16 + SNAPSHOTS as i64) * STATE);
    assert!((0..=SNAPSHOTS as i64).contains(&(states("cached") / STATE)));
    assert!(
        metrics.prefix_cache_hits_total.get() > 0,
        "no snapshot helped"
    );
}

#[tokio::test]
async fn the_states_of_those_who_run_are_counted() {
    let service = service(1, 64, engine::Settings::default());
    let body =
        json!({"prompt": ["a", "b", "c"], "max_tokens": 400, "ignore_eos": true, "stream": true});
    let running = first_event(service.completion(&body).send().await.unwrap()).await;
    let used = |state: &str| {
        let gauge = &service.metrics.recurrent_state_bytes;
        gauge.with_label_values(&[state]).get()
    };
    assert_eq!((used("used"), used("reserved")), (3 * STATE, 36 * STATE));
    drop(running);
    let none = |_: &_| used("used") == 0;
    let limit = Duration::from_secs(5);
    service.within(limit, "no state is in use", none).await;
}
