//! Tests of OpenAI's Responses API, with a model that thinks, like Granite 4.2.

mod errors;
mod prompt;
mod refusals;

use microgranite::http::limits::Limits;
use serde_json::{Value, json};

use crate::chat::send;
use crate::fake::Fake;
use crate::harness::{MODEL, Options, Service};
use crate::messages::named_events;
use crate::thinking::{ask_program, checkpoint, ids, serving, writing};

const PATH: &str = "/v1/responses";
const CALL: &str = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";

fn body(more: Value) -> Value {
    let mut body = json!({"input": "u", "max_output_tokens": 300, "temperature": 0});
    let fields = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

async fn ask(service: &Service, more: Value) -> Value {
    let response = send(service, PATH, &body(more)).await;
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

async fn events(service: &Service, mut more: Value) -> Vec<Value> {
    more["stream"] = json!(true);
    let events = named_events(send(service, PATH, &body(more)).await).await;
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], at, "{event}");
    }
    events
}

/// What a client joins from a stream: the response as it is in one body. Every event must fit those before it.
async fn streamed(service: &Service, more: Value) -> Value {
    let events = events(service, more).await;
    let [created, in_progress, between @ .., last] = &events[..] else {
        panic!("{events:?}");
    };
    let names = ["response.created", "response.in_progress"];
    assert_eq!(
        [created, in_progress].map(|event| event["type"].as_str().unwrap()),
        names
    );
    let start = &created["response"];
    assert_eq!(
        (&start["status"], &start["output"]),
        (&json!("in_progress"), &json!([]))
    );
    assert!(start["usage"].is_null());
    let mut items: Vec<Value> = Vec::new();
    for event in between {
        let name = event["type"].as_str().unwrap();
        if name == "response.output_item.added" {
            assert!(
                items
                    .last()
                    .is_none_or(|item| item["status"] != "in_progress"),
                "{event}"
            );
            assert_eq!(event["item"]["status"], "in_progress");
            items.push(event["item"].clone());
        }
        assert_eq!(event["output_index"], items.len() - 1, "{event}");
        let item = items.last_mut().unwrap();
        assert_eq!(item["status"], "in_progress", "{event}");
        let is_call = item["type"] == "function_call";
        if !name.starts_with("response.output_item") {
            assert_eq!(event["item_id"], item["id"]);
            assert_eq!(event["content_index"].is_null(), is_call, "{event}");
        }
        let place = match is_call {
            true => "/arguments",
            false => "/content/0/text",
        };
        let before = item.pointer(place).cloned().unwrap_or_default();
        match name {
            "response.output_item.added" => {}
            "response.content_part.added" => {
                assert_eq!(event["part"]["text"], "");
                item["content"] = json!([event["part"]]);
            }
            "response.reasoning_text.delta"
            | "response.output_text.delta"
            | "response.function_call_arguments.delta" => {
                let before = before.as_str().unwrap().to_owned();
                *item.pointer_mut(place).unwrap() =
                    json!(before + event["delta"].as_str().unwrap());
            }
            "response.reasoning_text.done" | "response.output_text.done" => {
                assert_eq!(event["text"], before)
            }
            "response.function_call_arguments.done" => {
                assert_eq!(event["arguments"], before);
                assert_eq!(event["name"], item["name"]);
            }
            "response.content_part.done" => assert_eq!(event["part"], item["content"][0]),
            "response.output_item.done" => {
                item["status"] = event["item"]["status"].clone();
                assert_eq!(event["item"], *item);
            }
            other => panic!("{other}"),
        }
    }
    let whole = last["response"].clone();
    let status = whole["status"].as_str().unwrap();
    assert_eq!(last["type"], format!("response.{status}"));
    assert_eq!(whole["output"], json!(items));
    assert_eq!(whole["id"], start["id"]);
    whole
}

/// A response without what differs from answer to answer.
fn without_ids(mut response: Value) -> Value {
    response["id"].take();
    response["created_at"].take();
    for item in response["output"].as_array_mut().unwrap() {
        let (kind, prefix) = (item["type"].clone(), item["id"].take());
        let kinds = [
            ("reasoning", "rs_"),
            ("message", "msg_"),
            ("function_call", "fc_"),
        ];
        assert!(
            kinds
                .iter()
                .any(|one| kind == one.0 && prefix.as_str().unwrap().starts_with(one.1))
        );
        if kind == "function_call" {
            assert!(
                item["call_id"]
                    .take()
                    .as_str()
                    .unwrap()
                    .starts_with("call_")
            );
        }
    }
    // The prompt is in the cache after the first request.
    response["usage"]["input_tokens_details"].take();
    response
}

/// Asserts what a client receives, in one body and streamed.
async fn check(service: &Service, more: Value, output: Value, status: &str) -> Value {
    let answer = ask(service, more.clone()).await;
    let whole = without_ids(answer.clone());
    let mut expected = output;
    for item in expected.as_array_mut().unwrap() {
        item["id"] = Value::Null;
        if item["type"] == "function_call" {
            item["call_id"] = Value::Null;
        }
    }
    assert_eq!(whole["output"], expected);
    assert_eq!(whole["status"], status);
    assert_eq!(without_ids(streamed(service, more).await), whole);
    answer
}

fn thought(text: &str, status: &str) -> Value {
    json!({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}], "status": status})
}

fn message(text: &str, status: &str) -> Value {
    let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
    json!({"type": "message", "status": status, "role": "assistant", "content": [part]})
}

fn tools() -> Value {
    let schema = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
    });
    json!([{"type": "function", "name": "weather", "description": "Tells it.", "parameters": schema, "strict": true}, {"type": "function", "name": "other", "parameters": null}])
}

#[tokio::test]
async fn a_thought_and_a_text_are_items_whole_and_streamed() {
    let service = serving(writing("I think é.\n</think>\nThe answer."));
    let items = json!([
        thought("I think é.", "completed"),
        message("The answer.", "completed")
    ]);
    let more = json!({
        "instructions": "Be brief.", "metadata": {"a": "b"}, "user": "x", "store": true, "top_p": 0.5,
        "reasoning": {"effort": "medium"}, "text": {"format": {"type": "text"}}, "truncation": "disabled",
    });
    let answer = check(&service, more.clone(), items, "completed").await;
    for name in [
        "instructions",
        "metadata",
        "user",
        "top_p",
        "text",
        "truncation",
        "max_output_tokens",
    ] {
        assert_eq!(answer[name], body(more.clone())[name], "{name}");
    }
    for (name, value) in [
        ("object", json!("response")),
        ("model", json!(MODEL)),
        ("store", json!(false)),
        ("background", json!(false)),
        ("error", json!(null)),
        ("incomplete_details", json!(null)),
        ("previous_response_id", json!(null)),
        ("parallel_tool_calls", json!(true)),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("temperature", json!(0.0)),
        ("reasoning", json!({"effort": "medium", "summary": null})),
    ] {
        assert_eq!(answer[name], value, "{name}");
    }
    let usage = &answer["usage"];
    assert_eq!(
        usage["output_tokens_details"]["reasoning_tokens"],
        ids("I think é.\n").len()
    );
    assert_eq!(
        usage["input_tokens_details"],
        json!({"cached_tokens": 0, "cache_write_tokens": 0})
    );
    let sum = usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
    let hidden = json!({"include_reasoning": false});
    check(
        &service,
        hidden,
        json!([message("The answer.", "completed")]),
        "completed",
    )
    .await;
    let off = json!({"reasoning": {"effort": "none"}, "max_output_tokens": 5});
    let answer = ask(&service, off).await;
    assert_eq!(
        answer["usage"]["output_tokens_details"]["reasoning_tokens"],
        0
    );
    assert_eq!(answer["output"][0]["type"], "message");
}

#[tokio::test]
async fn what_is_cut_off_is_incomplete() {
    let service = serving(writing("a b c d e f\n</think>\ng h i j k l"));
    let answer = check(
        &service,
        json!({"max_output_tokens": 3}),
        json!([thought("a b c", "incomplete")]),
        "incomplete",
    )
    .await;
    assert_eq!(
        answer["incomplete_details"],
        json!({"reason": "max_output_tokens"})
    );
    let budget = json!({"thinking_token_budget": 4, "max_output_tokens": 30});
    let answer = ask(&service, budget).await;
    let details = &answer["usage"]["output_tokens_details"];
    assert!(
        (3..=4).contains(&details["reasoning_tokens"].as_u64().unwrap()),
        "{answer}"
    );
    assert_eq!(answer["output"][0]["status"], "completed");
    assert_eq!(answer["output"][1]["status"], "incomplete");
    let service = serving(writing(&format!("a\n</think>\nWell.\n{CALL}")));
    let more = json!({"tools": tools(), "stop": "ome"});
    let answer = ask(&service, more.clone()).await;
    assert_eq!(answer["status"], "completed");
    let call = &answer["output"][2];
    assert_eq!(
        (&call["status"], &call["arguments"]),
        (&json!("incomplete"), &json!("{\"city\": \"R"))
    );
    assert_eq!(
        without_ids(streamed(&service, more).await),
        without_ids(answer)
    );
}

#[tokio::test]
async fn calls_are_items_and_can_be_forced_limited_and_forbidden() {
    let call = json!({"type": "function_call", "status": "completed", "arguments": "{\"city\": \"Rome\", \"days\": 3}", "name": "weather"});
    let service = serving(writing(&format!(
        "I could.\n</think>\nWell.\n{CALL}\n{CALL}"
    )));
    let said = [
        thought("I could.", "completed"),
        message("Well.", "completed"),
    ];
    for (choice, parallel, calls) in [
        (json!(null), json!(null), 2),
        (json!("auto"), json!(true), 2),
        (json!("auto"), json!(false), 1),
    ] {
        let mut items = said.to_vec();
        items.extend(vec![call.clone(); calls]);
        let more =
            json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": parallel});
        let answer = check(&service, more, json!(items), "completed").await;
        assert_eq!(answer["tools"], tools(), "as they were sent");
    }
    let none = ask(&service, json!({"tools": tools(), "tool_choice": "none"})).await;
    assert_eq!(none["output"].as_array().unwrap().len(), 2, "{none}");
    let service = serving(writing("Weather.\n</think>\n"));
    for choice in [
        json!("required"),
        json!({"type": "function", "name": "weather"}),
    ] {
        for effort in ["medium", "none"] {
            let more = json!({"tools": [tools()[0]], "tool_choice": choice, "max_output_tokens": 600, "reasoning": {"effort": effort}});
            let answer = ask(&service, more.clone()).await;
            assert_eq!(answer["tool_choice"], choice);
            assert_eq!(
                without_ids(streamed(&service, more).await),
                without_ids(answer.clone())
            );
            let called = answer["output"].as_array().unwrap().last().unwrap();
            let arguments: Value =
                serde_json::from_str(called["arguments"].as_str().unwrap()).unwrap();
            assert!(
                ["Rome", "Oslo"].contains(&arguments["city"].as_str().unwrap()),
                "{answer}"
            );
            assert_eq!(
                answer["output"][0]["type"] == "reasoning",
                effort == "medium"
            );
        }
    }
}

#[tokio::test]
async fn a_format_constrains_the_text_behind_the_thought() {
    let service = serving(writing("a\n</think>\nb"));
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "n", "strict": true, "schema": schema});
    let more = json!({"text": {"format": format}});
    let answer = ask(&service, more.clone()).await;
    assert_eq!(
        without_ids(answer.clone())["output"][0]["content"][0]["text"],
        "a"
    );
    let said = answer["output"][1]["content"][0]["text"].as_str().unwrap();
    assert!(["{\"n\": 1}", "{\"n\": 2}"].contains(&said), "{answer}");
    assert_eq!(answer["text"]["format"], format);
    assert_eq!(
        without_ids(streamed(&service, more).await),
        without_ids(answer)
    );
    let any = json!({"text": {"format": {"type": "json_object"}}, "max_output_tokens": 20});
    let answer = ask(&service, any).await;
    assert!(
        answer["output"][1]["content"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with('{'),
        "{answer}"
    );
}

#[tokio::test]
async fn what_a_stream_keeps_counts_towards_the_memory_of_requests() {
    let options = |memory_bytes| Options {
        chat_template: Some(crate::chat::TEMPLATE),
        limits: Limits {
            memory_bytes,
            ..Limits::default()
        },
        ..Options::default()
    };
    let more = json!({"max_output_tokens": 3000, "ignore_eos": true});
    let roomy = Service::with(Fake::babbling(), options(64 << 20));
    let all = events(&roomy, more.clone()).await;
    assert_eq!(all.last().unwrap()["type"], "response.incomplete");
    let tight = Service::with(Fake::babbling(), options(16 << 10));
    let some = events(&tight, more).await;
    let last = some.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["status"]),
        (&json!("response.failed"), &json!("failed"))
    );
    assert_eq!(last["response"]["error"]["code"], "invalid_prompt");
}

#[tokio::test]
async fn a_checkpoint_like_granite_4_2_thinks_calls_and_answers() {
    let (_process, url) = checkpoint();
    let url = url.trim_end_matches('/');
    let asked = |more: Value| {
        let mut body = body(more);
        body["temperature"] = Value::Null;
        body["thinking_budget"] = json!(12);
        body["seed"] = json!(5);
        body
    };
    let plain = ask_program(url, PATH, &asked(json!({"max_output_tokens": 40}))).await;
    assert_eq!(plain["output"][0]["type"], "reasoning");
    let count = plain["usage"]["output_tokens_details"]["reasoning_tokens"]
        .as_u64()
        .unwrap();
    assert!((11..=12).contains(&count), "{plain}");
    // The defaults of the model's files are in force, and the response says so.
    assert!(
        (plain["top_p"].as_f64().unwrap() - 0.95).abs() < 1e-6,
        "{plain}"
    );
    let forced = asked(json!({"tools": [tools()[0]], "tool_choice": "required"}));
    let answer = ask_program(url, PATH, &forced).await;
    let called = answer["output"].as_array().unwrap().last().unwrap();
    let arguments: Value = serde_json::from_str(called["arguments"].as_str().unwrap()).unwrap();
    assert!(
        ["Rome", "Oslo"].contains(&arguments["city"].as_str().unwrap()),
        "{answer}"
    );
}
