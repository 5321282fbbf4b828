//! Tests of streams: their order, their end, and clients that disconnect.

use std::time::Duration;

use microgranite::engine;
use serde_json::{Value, json};

use crate::fake::{Fake, Next};
use crate::harness::{
    self, Options, Service, byte_tokens, first_event, read_events, streamed_text,
};

#[tokio::test]
async fn a_stream_carries_the_text_then_the_reason_then_the_usage() {
    let service = Service::start(Fake::reciting(byte_tokens("ab")));
    let body = json!({
        "prompt": ["x", "y"], "max_tokens": 3, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let response = service.completion(&body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let events = read_events(response).await;

    let (usage, pieces) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], harness::usage(2, 6));
    for index in 0..2 {
        let reasons: Vec<&Value> = pieces
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == index)
            .map(|choice| &choice["finish_reason"])
            .collect();
        let (last, others) = reasons.split_last().unwrap();
        assert_eq!(*last, "length");
        assert!(others.iter().all(|reason| reason.is_null()));
        assert_eq!(streamed_text(pieces, index), "aba");
    }
    for event in &events {
        assert_eq!(event["id"], usage["id"]);
        assert_eq!(event["created"], usage["created"]);
        assert_eq!(event["object"], "text_completion");
    }
    assert!(pieces.iter().all(|event| event["usage"].is_null()));
}

#[tokio::test]
async fn without_include_usage_no_event_has_the_field() {
    let service = Service::start(Fake::babbling());
    let events = service.events(json!({"prompt": "x"})).await;
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test]
async fn pieces_put_together_are_the_whole_wherever_the_answer_is_cut() {
    // With one byte per token, characters of two, three and four bytes are split over tokens, and so are the stop
    // strings.
    let text = "naïve 字😀 end\u{301} END";
    let service = Service::start(Fake::reciting(byte_tokens(text)));
    for max_tokens in 1..=text.len() + 3 {
        for stop in [json!(null), json!(["E", "😀 e"]), json!("ND naïve")] {
            let body =
                json!({"prompt": "x", "temperature": 0, "max_tokens": max_tokens, "stop": stop});
            let whole = service.complete(body.clone()).await;
            let events = service.events(body).await;
            let expected = whole["choices"][0]["text"].as_str().unwrap();
            assert_eq!(streamed_text(&events, 0), expected, "{max_tokens} {stop}");
            let last = events.last().unwrap();
            let reasons =
                [&last["choices"][0], &whole["choices"][0]].map(|choice| &choice["finish_reason"]);
            assert_eq!(reasons[0], reasons[1]);
            if stop.is_null() && max_tokens <= text.len() {
                let bytes = &text.as_bytes()[..max_tokens];
                assert_eq!(expected, String::from_utf8_lossy(bytes));
            }
        }
    }
}

#[tokio::test]
async fn a_failure_before_the_first_token_is_a_status() {
    let service = Service::start(Fake::new(|_| Next::NotANumber));
    for stream in [false, true] {
        let body = json!({"prompt": "x", "stream": stream});
        let response = service.completion(&body).send().await.unwrap();
        assert_eq!(response.status(), 500);
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["code"], "internal_error");
        assert_eq!(error["error"]["type"], "server_error");
    }
    assert_eq!(service.count("error"), 2);
}

#[tokio::test]
async fn a_failure_in_the_middle_is_the_last_event() {
    let service = Service::start(Fake::new(|before| match before.len() {
        ..4 => Next::Token(50),
        _ => Next::NotANumber,
    }));
    let events = service
        .events(json!({"prompt": "x", "temperature": 0}))
        .await;
    let (error, pieces) = events.split_last().unwrap();
    assert_eq!(error["error"]["code"], "internal_error");
    assert_eq!(streamed_text(pieces, 0).len(), 3);
    service
        .within(Duration::from_secs(1), "the record is written", |_| {
            service.count("error") == 1
        })
        .await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let slow = Fake::babbling().with_step_time(Duration::from_millis(5));
    let service = Service::start(slow);
    for stream in [true, false] {
        let body = json!({"prompt": ["x", "y"], "max_tokens": 4000, "stream": stream});
        let request = service.completion(&body);
        if stream {
            drop(first_event(request.send().await.unwrap()).await);
        } else {
            let asking = tokio::spawn(request.send());
            let runs =
                |metrics: &microgranite::telemetry::Metrics| metrics.requests_running.get() == 2;
            service
                .within(Duration::from_secs(5), "it runs", runs)
                .await;
            asking.abort();
        }
        service.idle_within_a_second().await;
    }
    let cancelled = |_: &_| service.count("cancelled") == 2;
    service
        .within(Duration::from_secs(1), "both are counted", cancelled)
        .await;
    assert!(service.metrics.generation_tokens_total.get() < 4000);
}

#[tokio::test]
async fn an_engine_that_dies_fails_what_runs_and_the_probes_say_so() {
    let service = Service::start(Fake::new(|before| match before.len() {
        ..4 => Next::Token(50),
        _ => panic!("a defect, for the test"),
    }));
    let events = service
        .events(json!({"prompt": "x", "temperature": 0}))
        .await;
    assert_eq!(events.last().unwrap()["error"]["code"], "internal_error");
    for path in ["/livez", "/readyz"] {
        assert_eq!(service.get(path).await.status(), 503, "{path}");
    }
    let body = json!({"prompt": "x"});
    let response = service.completion(&body).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["x-should-retry"], "false");
}

#[tokio::test]
async fn a_stream_that_waits_begins_with_a_comment_and_a_late_failure_is_an_event() {
    let options = || Options {
        engine: engine::Settings {
            max_batch: 1,
            // Nobody reads what occupies the slot.
            max_unread_bytes: usize::MAX,
            ..engine::Settings::default()
        },
        ..Options::default()
    };
    // Occupies the only batch slot for 20 seconds.
    let model = || Fake::babbling().with_step_time(Duration::from_millis(5));
    let long = json!({"prompt": "x", "max_tokens": 4000, "stream": true});
    let short = json!({"prompt": "y", "max_tokens": 2, "stream": true, "nonsense": 1});

    let mut ends = Service::with(model(), options());
    let goes_on = Service::with(model(), options());
    let mut running = Vec::new();
    for service in [&ends, &goes_on] {
        running.push(first_event(service.completion(&long).send().await.unwrap()).await);
    }
    let (fails, answers) = tokio::join!(
        ends.completion(&short).send(),
        goes_on.completion(&short).send()
    );
    let (mut fails, mut answers) = (fails.unwrap(), answers.unwrap());
    for answer in [&mut fails, &mut answers] {
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-ignored-params"], "nonsense");
        assert_eq!(
            &answer.chunk().await.unwrap().unwrap()[..],
            b": waiting\n\n"
        );
    }
    drop(ends.drain(Duration::ZERO));
    let events = read_events(fails).await;
    assert_eq!(events.last().unwrap()["error"]["code"], "draining");

    drop(running);
    let events = read_events(answers).await;
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
}

#[tokio::test]
async fn the_last_token_comes_with_the_reason_and_nothing_empty_follows() {
    let service = Service::start(Fake::reciting(byte_tokens("abc")));
    let body = json!({"prompt": "x", "max_tokens": 5, "temperature": 0});
    let events = service.events(body).await;
    assert_eq!(events.len(), 5, "one for each token");
    for (at, event) in events.iter().enumerate() {
        assert_ne!(event["choices"][0]["text"], "", "{event}");
        let is_last = at == 4;
        assert_eq!(event["choices"][0]["finish_reason"].is_string(), is_last);
    }
}

#[tokio::test]
async fn token_counts_in_events_follow_one_rule_on_both_routes() {
    let options = Options {
        chat_template: Some("{% for m in messages %}{{ m.content }}{% endfor %}"),
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    for (options, counted, last) in [
        (json!({}), false, false),
        (
            json!({"include_usage": false, "continuous_usage_stats": true}),
            false,
            false,
        ),
        (json!({"continuous_usage_stats": true}), false, false),
        (json!({"include_usage": true}), false, true),
        (
            json!({"include_usage": true, "continuous_usage_stats": true}),
            true,
            true,
        ),
    ] {
        for (path, mut body) in [
            ("/v1/completions", json!({"prompt": "x"})),
            (
                "/v1/chat/completions",
                json!({"messages": [{"role": "user", "content": "x"}]}),
            ),
        ] {
            body["stream"] = json!(true);
            body["max_tokens"] = json!(3);
            body["stream_options"] = options.clone();
            let request = service.client.post(service.url(path)).json(&body);
            let events = read_events(request.send().await.unwrap()).await;
            let (end, pieces) = events.split_last().unwrap();
            let what = format!("{path} {options}");
            assert_eq!(end["choices"] == json!([]), last, "{what}");
            assert_eq!(end["usage"].is_object(), last, "{what}");
            for piece in pieces {
                assert_eq!(piece["usage"].is_object(), counted, "{what}");
                assert_eq!(piece.get("usage").is_some(), last, "{what}");
            }
            if counted && path.contains("chat") {
                assert_eq!(pieces[0]["choices"][0]["delta"]["role"], "assistant");
                assert_eq!(pieces[0]["usage"]["completion_tokens"], 0, "{what}");
            }
        }
    }
}
