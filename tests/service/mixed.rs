//! Runs a thousand requests of every kind concurrently: each gets the answer that it gets alone.

use futures_util::{StreamExt, stream};
use microgranite::engine;
use microgranite::model::{self, Granite};
use microgranite::sources::{self, Reference};
use serde_json::{Value, json};

use crate::harness::{Options, Service, fixture, streamed_text};

const REQUESTS: usize = 1000;
/// Concurrent clients: three for each batch slot, so that a request is always waiting when a slot becomes free.
const CLIENTS: usize = 48;

fn tiny(threads: usize) -> Granite {
    let sources = sources::Settings::from_variables(|_| None, false);
    let folder = Reference::Folder(fixture("granite-3-tiny"));
    let checkpoint = sources::open(&folder, &sources).unwrap();
    let settings = model::Settings {
        threads,
        // 56 pages: enough for the running requests, but not for all cached text, so pages are evicted.
        slots: 4,
        snapshots: 0,
        kv_bytes: 1 << 20,
        context: None,
        weights: model::Placement::default(),
    };
    model::load(&checkpoint, &settings, &mut |_, _| ()).unwrap()
}

fn service(threads: usize, engine: engine::Settings) -> Service {
    let options = Options {
        engine: engine::Settings {
            max_queue: 10 * CLIENTS,
            ..engine
        },
        ..Options::default()
    };
    Service::with(tiny(threads), options)
}

/// The `n`-th request. Prompts are text or ids, one or several, and short or some pages long; many have the same
/// beginning, and some repeat themselves. Requests are greedy or sampled, with or without stop strings, and streamed or
/// not.
fn request(n: usize) -> Value {
    const TEXT: &str = "The cat sat on the mat and the dog sat on the log. ";
    let alike: Vec<usize> = (0..130).map(|i| 1 + i * 11 % 300).collect();
    let own = |n: usize| (0..1 + n * 7 % 50).map(move |i| 1 + (n * 31 + i * 13) % 300);
    let prompt = match n % 5 {
        0 => json!(TEXT.repeat(1 + n % 4)),
        1 => json!(own(n).collect::<Vec<_>>()),
        2 => json!(alike.iter().copied().chain(own(n)).collect::<Vec<_>>()),
        3 => json!([format!("{n}: {TEXT}"), TEXT]),
        _ => json!(own(n).chain(own(n)).chain(own(n)).collect::<Vec<_>>()),
    };
    let mut body = json!({
        "prompt": prompt,
        "max_tokens": 1 + n * 3 % 16,
        "temperature": ([0.0, 0.7, 1.3][n % 3]),
        "seed": n,
    });
    if n.is_multiple_of(4) {
        body["top_p"] = json!(0.9);
        body["min_p"] = json!(0.02);
    }
    if n.is_multiple_of(7) {
        body["stop"] = json!(["e", "\n"]);
    }
    body
}

/// The texts of a response's choices and their finish reasons.
async fn answer(service: &Service, n: usize) -> Vec<(String, Value)> {
    let body = request(n);
    if n % 6 == 1 {
        let events = service.events(body).await;
        let finish = |index: usize| {
            let choices = events.iter().map(|event| &event["choices"][0]);
            let mut of_one = choices.filter(|choice| choice["index"] == index);
            of_one.find(|choice| !choice["finish_reason"].is_null())
        };
        let ends = (0..).map_while(|index| Some((index, finish(index)?)));
        return ends
            .map(|(index, end)| (streamed_text(&events, index), end["finish_reason"].clone()))
            .collect();
    }
    let answer = service.complete(body).await;
    let choices = answer["choices"].as_array().unwrap().iter();
    choices
        .map(|choice| {
            let text = choice["text"].as_str().unwrap().to_owned();
            (text, choice["finish_reason"].clone())
        })
        .collect()
}

async fn answers(
    service: &Service,
    order: impl Iterator<Item = usize>,
) -> Vec<(usize, Vec<(String, Value)>)> {
    let asked = order.map(|n| async move { (n, answer(service, n).await) });
    let mut answers: Vec<_> = stream::iter(asked)
        .buffer_unordered(CLIENTS)
        .collect()
        .await;
    answers.sort_by_key(|answer| answer.0);
    answers
}

#[tokio::test]
async fn each_of_a_thousand_requests_gets_the_bytes_it_gets_alone() {
    let alone = service(
        1,
        engine::Settings {
            max_batch: 1,
            prefix_cache: false,
            speculation: 0,
            ..engine::Settings::default()
        },
    );
    let together = service(2, engine::Settings::default());
    let expected = answers(&alone, 0..REQUESTS).await;
    // All requests in another order, because 617 and 1000 have no common divisor.
    let found = answers(&together, (0..REQUESTS).map(|n| n * 617 % REQUESTS)).await;
    let differing: Vec<_> = expected
        .iter()
        .zip(&found)
        .filter(|(expected, found)| expected != found)
        .collect();
    assert_eq!((expected.len(), found.len()), (REQUESTS, REQUESTS));
    assert!(
        differing.is_empty(),
        "{} differ: {:?}",
        differing.len(),
        differing[0]
    );

    let metrics = &together.metrics;
    assert!(metrics.prefix_cache_hits_total.get() > 10_000);
    assert!(metrics.prefix_cache_evictions_total.get() > 0);
    // Most steps had rows of several requests.
    let rows = &metrics.batch_rows;
    assert!(rows.get_sample_sum() > 4.0 * rows.get_sample_count() as f64);
    together.idle_within_a_second().await;
}
