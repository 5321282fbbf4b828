//! Tests of Anthropic's API, with a model that thinks, like Granite 4.2.

mod errors;
mod prompt;
mod refusals;

use reqwest::Response;
use serde_json::{Value, json};

use crate::chat::send;
use crate::harness::{MODEL, Service};
use crate::thinking::{ask_program, checkpoint, ids, serving, writing};

const CALL: &str = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";

fn body(more: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "u"}],
        "max_tokens": 300,
        "temperature": 0,
        "thinking": {"type": "adaptive"},
    });
    let fields = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

async fn ask(service: &Service, more: Value) -> Value {
    let response = send(service, "/v1/messages", &body(more)).await;
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The status, the type and the message of an error, whose body must have exactly the fields of Anthropic's.
async fn error_of(response: Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let id = response.headers()["request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let body: Value = response.json().await.expect("every error is JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["type", "error", "request_id"]);
    assert_eq!(
        (body["type"].as_str(), text(&body["request_id"])),
        (Some("error"), id)
    );
    let keys: Vec<&String> = body["error"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["type", "message"]);
    (
        status,
        text(&body["error"]["type"]),
        text(&body["error"]["message"]),
    )
}

/// The events of a stream, each with the name of its type.
pub async fn named_events(response: Response) -> Vec<Value> {
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let parse = |event: &str| {
        let (name, data) = event.split_once('\n').expect("a name and data");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name, format!("event: {}", data["type"].as_str().unwrap()));
        data
    };
    text.split_terminator("\n\n").map(parse).collect()
}

/// What a client joins from a stream: the message as it is in one body.
async fn streamed(service: &Service, mut more: Value) -> Value {
    more["stream"] = json!(true);
    let events = named_events(send(service, "/v1/messages", &body(more)).await).await;
    let [start, blocks @ .., delta, stop] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(
        (start["type"].as_str(), stop),
        (Some("message_start"), &json!({"type": "message_stop"}))
    );
    let mut message = start["message"].clone();
    assert_eq!(message["content"], json!([]));
    assert!(message["stop_reason"].is_null() && message["usage"]["output_tokens"] == 0);
    let (mut content, mut is_open) = (Vec::<Value>::new(), false);
    for event in blocks {
        let kind = event["type"].as_str().unwrap();
        assert_eq!(is_open, kind != "content_block_start", "{event}");
        if kind == "content_block_start" {
            content.push(event["content_block"].clone());
            is_open = true;
        }
        assert_eq!(event["index"], content.len() - 1, "{event}");
        let block = content.last_mut().unwrap();
        if kind == "content_block_stop" {
            is_open = false;
            if let Some(text) = block["input"].as_str() {
                block["input"] = serde_json::from_str(text).unwrap_or(json!({}));
            }
        }
        let (field, more) = match event["delta"]["type"].as_str() {
            Some("text_delta") => ("text", &event["delta"]["text"]),
            Some("thinking_delta") => ("thinking", &event["delta"]["thinking"]),
            Some("signature_delta") => ("signature", &event["delta"]["signature"]),
            Some("input_json_delta") => ("input", &event["delta"]["partial_json"]),
            _ => continue,
        };
        let before = block[field].as_str().unwrap_or_default().to_owned();
        assert!(!more.as_str().unwrap().is_empty(), "{event}");
        block[field] = json!(before + more.as_str().unwrap());
    }
    assert!(!is_open);
    message["content"] = json!(content);
    assert_eq!(delta["type"], "message_delta");
    for name in ["stop_reason", "stop_sequence"] {
        message[name] = delta["delta"][name].clone();
    }
    message["usage"] = delta["usage"].clone();
    message
}

/// A message without what differs from answer to answer.
fn without_ids(mut message: Value) -> Value {
    message["id"].take();
    for block in message["content"].as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            assert!(block["id"].as_str().unwrap().starts_with("toolu_"));
            block["id"].take();
        }
    }
    // The prompt is in the cache after the first request.
    for name in ["input_tokens", "cache_read_input_tokens"] {
        message["usage"][name].take();
    }
    message
}

/// Asserts what a client receives, in one body and streamed.
async fn check(
    service: &Service,
    more: Value,
    content: Value,
    stop: (&str, Option<&str>),
) -> Value {
    let answer = ask(service, more.clone()).await;
    let whole = without_ids(answer.clone());
    let mut expected = content;
    for block in expected.as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            block["id"] = Value::Null;
        }
    }
    assert_eq!(whole["content"], expected);
    assert_eq!(
        (
            whole["stop_reason"].as_str(),
            whole["stop_sequence"].as_str()
        ),
        (Some(stop.0), stop.1)
    );
    assert_eq!(without_ids(streamed(service, more).await), whole);
    answer
}

fn thinking(text: &str) -> Value {
    json!({"type": "thinking", "thinking": text, "signature": "unsigned"})
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn tools() -> Value {
    let schema = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
    });
    json!([{"name": "weather", "description": "Tells it.", "input_schema": schema}, {"type": "custom", "name": "other"}])
}

#[tokio::test]
async fn a_thought_and_a_text_are_blocks_whole_and_streamed() {
    let service = serving(writing("I think é.\n</think>\nThe answer."));
    let blocks = json!([thinking("I think é."), text("The answer.")]);
    let answer = check(&service, json!({}), blocks, ("end_turn", None)).await;
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        (answer["type"].as_str(), answer["role"].as_str()),
        (Some("message"), Some("assistant"))
    );
    assert_eq!(answer["model"], MODEL);
    let usage = &answer["usage"];
    let thought = ids("I think é.\n").len();
    assert_eq!(usage["output_tokens_details"]["thinking_tokens"], thought);
    assert!(usage["output_tokens"].as_u64().unwrap() > thought as u64);
    assert_eq!(
        (
            &usage["cache_creation_input_tokens"],
            &usage["cache_read_input_tokens"]
        ),
        (&json!(0), &json!(0))
    );
    // The same without the thought, which the model makes all the same.
    let omitted = json!({"thinking": {"type": "adaptive", "display": "omitted"}});
    let answer = check(
        &service,
        omitted,
        json!([text("The answer.")]),
        ("end_turn", None),
    )
    .await;
    assert_eq!(
        answer["usage"]["output_tokens_details"]["thinking_tokens"],
        thought
    );
}

#[tokio::test]
async fn the_model_thinks_only_if_it_is_told_to() {
    let service = serving(writing(
        "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    ));
    let count = |answer: &Value| {
        let details = &answer["usage"]["output_tokens_details"];
        details["thinking_tokens"].as_u64().unwrap()
    };
    for off in [
        json!({"thinking": null}),
        json!({"thinking": {"type": "disabled"}}),
        json!({"thinking": null, "output_config": {"effort": "high"}}),
        json!({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}),
    ] {
        let answer = ask(&service, off).await;
        assert_eq!(count(&answer), 0, "{answer}");
        assert_eq!(answer["content"][0]["type"], "text");
    }
    let budget = json!({"thinking": {"type": "enabled", "budget_tokens": 9}, "max_tokens": 40});
    let answer = ask(&service, budget).await;
    assert!((8..=9).contains(&count(&answer)), "{answer}");
    assert_eq!(answer["stop_reason"], "max_tokens");
    assert_eq!(answer["usage"]["output_tokens"], 40);
    let cut = json!({"max_tokens": 3});
    check(
        &service,
        cut,
        json!([thinking("a b c")]),
        ("max_tokens", None),
    )
    .await;
}

#[tokio::test]
async fn stop_sequences_are_named_and_do_not_stop_thoughts() {
    let service = serving(writing("a STOP\n</think>\nb STOP c"));
    let more = json!({"stop_sequences": ["never", "STOP"]});
    let blocks = json!([thinking("a STOP"), text("b ")]);
    check(&service, more, blocks, ("stop_sequence", Some("STOP"))).await;
    let service = serving(writing(&format!("a\n</think>\nWell.\n{CALL}")));
    let more = json!({"tools": tools(), "stop_sequences": ["ome"]});
    let answer = ask(&service, more.clone()).await;
    assert_eq!(
        (answer["stop_reason"].as_str(), &answer["stop_sequence"]),
        (Some("stop_sequence"), &json!("ome"))
    );
    assert_eq!(
        answer["content"][2]["input"],
        json!({}),
        "a part of the arguments is none"
    );
    assert_eq!(
        without_ids(streamed(&service, more).await),
        without_ids(answer)
    );
}

#[tokio::test]
async fn calls_are_blocks_and_can_be_forced_limited_and_forbidden() {
    let call = json!({"type": "tool_use", "name": "weather", "input": {"city": "Rome", "days": 3}});
    let service = serving(writing(&format!(
        "I could.\n</think>\nWell.\n{CALL}\n{CALL}"
    )));
    let said = [thinking("I could."), text("Well.")];
    for (choice, calls) in [
        (json!(null), 2),
        (json!({"type": "auto"}), 2),
        (
            json!({"type": "auto", "disable_parallel_tool_use": true}),
            1,
        ),
    ] {
        let mut blocks = said.to_vec();
        blocks.extend(vec![call.clone(); calls]);
        let more = json!({"tools": tools(), "tool_choice": choice});
        check(&service, more, json!(blocks), ("tool_use", None)).await;
    }
    let none = json!({"tools": tools(), "tool_choice": {"type": "none"}});
    let answer = ask(&service, none).await;
    assert_eq!(answer["stop_reason"], "end_turn");
    assert_eq!(answer["content"].as_array().unwrap().len(), 2, "{answer}");
    let service = serving(writing("Weather.\n</think>\n"));
    for choice in [
        json!({"type": "any"}),
        json!({"type": "tool", "name": "weather"}),
    ] {
        for kind in ["adaptive", "disabled"] {
            let more = json!({"tools": [tools()[0]], "tool_choice": choice, "max_tokens": 600, "thinking": {"type": kind}});
            let answer = ask(&service, more.clone()).await;
            assert_eq!(
                without_ids(streamed(&service, more).await),
                without_ids(answer.clone())
            );
            let called = answer["content"].as_array().unwrap().last().unwrap();
            assert_eq!(answer["stop_reason"], "tool_use");
            assert!(
                ["Rome", "Oslo"].contains(&called["input"]["city"].as_str().unwrap()),
                "{answer}"
            );
            assert_eq!(
                answer["content"][0] == thinking("Weather."),
                kind == "adaptive"
            );
        }
    }
}

#[tokio::test]
async fn a_schema_constrains_the_text_behind_the_thought() {
    let service = serving(writing("a\n</think>\nb"));
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "schema": schema});
    for more in [
        json!({"output_config": {"format": format}}),
        json!({"output_format": format}),
    ] {
        let answer = ask(&service, more.clone()).await;
        assert_eq!(answer["content"][0], thinking("a"));
        let said = answer["content"][1]["text"].as_str().unwrap();
        assert!(["{\"n\": 1}", "{\"n\": 2}"].contains(&said), "{answer}");
        assert_eq!(
            without_ids(streamed(&service, more).await),
            without_ids(answer)
        );
    }
}

#[tokio::test]
async fn a_checkpoint_like_granite_4_2_thinks_calls_and_answers() {
    let (_process, url) = checkpoint();
    let url = url.trim_end_matches('/');
    let asked = |more: Value| {
        let mut body = body(more);
        body["temperature"] = Value::Null;
        body["thinking"] = json!({"type": "enabled", "budget_tokens": 12});
        body["seed"] = json!(5);
        body
    };
    let plain = ask_program(url, "/v1/messages", &asked(json!({"max_tokens": 40}))).await;
    assert_eq!(plain["content"][0]["type"], "thinking");
    let count = plain["usage"]["output_tokens_details"]["thinking_tokens"]
        .as_u64()
        .unwrap();
    assert!((11..=12).contains(&count), "{plain}");
    let forced = asked(json!({"tools": [tools()[0]], "tool_choice": {"type": "any"}}));
    let answer = ask_program(url, "/v1/messages", &forced).await;
    let called = answer["content"].as_array().unwrap().last().unwrap();
    assert!(
        ["Rome", "Oslo"].contains(&called["input"]["city"].as_str().unwrap()),
        "{answer}"
    );
}
