//! Tests of fields that say where an answer ends.

use serde_json::{Value, json};

use crate::fake::Fake;
use crate::harness::{END_OF_TEXT, Service, byte_tokens};

#[tokio::test]
async fn what_ended_an_answer_is_told_and_kept_if_asked() {
    let service = Service::start(Fake::reciting(byte_tokens("one two three ")));
    let t = byte_tokens("t")[0];
    for (options, text, stop_reason) in [
        (json!({"stop": ["wo t"]}), "one t", json!("wo t")),
        (
            json!({"stop": ["wo t"], "include_stop_str_in_output": true}),
            "one two t",
            json!("wo t"),
        ),
        (json!({"stop_token_ids": [t]}), "one ", json!(t)),
        (
            json!({"stop_token_ids": [t], "include_stop_str_in_output": true}),
            "one t",
            json!(t),
        ),
        (
            json!({"stop": ["o"], "min_tokens": 5}),
            "one tw",
            json!("o"),
        ),
    ] {
        let mut body = json!({"prompt": "x", "temperature": 0, "max_tokens": 12});
        for (field, value) in options.as_object().unwrap() {
            body[field] = value.clone();
        }
        let choice = service.complete(body).await["choices"][0].clone();
        assert_eq!(choice["text"], text, "{options}");
        assert_eq!(choice["stop_reason"], stop_reason, "{options}");
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn the_end_of_text_can_be_put_off_or_ignored() {
    let mut tokens = byte_tokens("ab");
    tokens.push(END_OF_TEXT);
    let service = Service::start(Fake::reciting(tokens));
    let length = async |options: Value| {
        let mut body = json!({"prompt": "x", "temperature": 0, "max_tokens": 6});
        for (field, value) in options.as_object().unwrap() {
            body[field] = value.clone();
        }
        let answer = service.complete(body).await;
        answer["usage"]["completion_tokens"].as_u64().unwrap()
    };
    assert_eq!(length(json!({})).await, 3, "two and the end");
    assert_eq!(
        length(json!({"min_tokens": 3})).await,
        6,
        "the third is another, the sixth the end"
    );
    assert_eq!(length(json!({"ignore_eos": true})).await, 6);
}

#[tokio::test]
async fn sixteen_stop_strings_are_taken_and_each_of_them_stops() {
    let service = Service::start(Fake::reciting(byte_tokens("one two three ")));
    let mut stops: Vec<String> = (0..15).map(|at| format!("never {at}")).collect();
    for (at, stop) in [(0, "thr"), (7, "wo"), (15, "ne")] {
        stops.insert(at, stop.to_owned());
        stops.truncate(16);
        let body = json!({"prompt": "x", "temperature": 0, "max_tokens": 14, "stop": stops});
        let answer = service.complete(body).await;
        assert_eq!(answer["choices"][0]["stop_reason"], stop);
        stops.remove(at);
        stops.push("never".to_owned());
    }
}
