//! Tests of Anthropic's API, with a model that thinks, like Granite 4.2.

use std::io::Write as _;

use microgranite::http::access::{Access, ApiKeys};
use microgranite::http::limits::Limits;
use reqwest::Response;
use serde_json::{Value, json};

use crate::chat::send;
use crate::fake::{Fake, Next};
use crate::harness::{MODEL, Options, Service};
use crate::refusals::each_row;
use crate::thinking::{TURN, ask_program, checkpoint, ids, serving, tokenized, writing};

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
async fn the_conversation_becomes_the_prompt_that_chat_completions_would_make() {
    let service = serving(writing("a"));
    let prompt = async |body: Value| {
        let counted = send(&service, "/v1/messages/count_tokens", &body).await;
        let counted: Value = counted.json().await.unwrap();
        let mut answered = body;
        answered["max_tokens"] = json!(1);
        let answer = send(&service, "/v1/messages", &answered).await;
        let answer: Value = answer.json().await.unwrap();
        let usage = &answer["usage"];
        let [fresh, cached] =
            ["input_tokens", "cache_read_input_tokens"].map(|name| usage[name].as_u64().unwrap());
        assert_eq!(
            counted,
            json!({"input_tokens": fresh + cached}),
            "{answered}"
        );
        fresh + cached
    };
    let parameters = json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}});
    let function = json!({"name": "f", "description": "d", "parameters": parameters});
    let theirs = json!([{"type": "function", "function": function}]);
    let ours = json!([{"name": "f", "description": "d", "input_schema": parameters, "cache_control": {"type": "ephemeral"}}]);
    let blocks = json!([
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "cache_control": null}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "first", "signature": "x"},
            {"type": "redacted_thinking", "data": "…"},
            {"type": "text", "text": "said"},
            {"type": "tool_use", "id": "1", "name": "f", "input": {"b": "x", "a": 1}},
            {"type": "tool_use", "id": "2", "name": "f", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": "r"},
            {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}], "is_error": true},
            {"type": "tool_result", "tool_use_id": "2"},
            {"type": "text", "text": "go on"},
        ]},
    ]);
    let calls = json!([
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": \"x\", \"a\": 1}"}},
        {"id": "2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]);
    let plain = json!([
        {"role": "system", "content": "be\nbrief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "said", "reasoning": "first", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
        {"role": "tool", "tool_call_id": "2", "content": "s\nt"},
        {"role": "tool", "tool_call_id": "2", "content": ""},
        {"role": "user", "content": "go on"},
    ]);
    let system = json!([{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]);
    let without_last = |messages: &Value| {
        let mut messages = messages.as_array().unwrap().clone();
        match messages.last_mut().unwrap()["content"].as_array_mut() {
            Some(blocks) => blocks.pop(),
            None => messages.pop(),
        };
        json!(messages)
    };
    for (plain, blocks, has_thought) in [
        (plain.clone(), blocks.clone(), false),
        // The template prints thoughts only after the last message of the user.
        (without_last(&plain), without_last(&blocks), true),
    ] {
        for (thinks, kind) in [(true, "adaptive"), (false, "disabled")] {
            let same =
                json!({"tools": theirs, "chat_template_kwargs": {"enable_thinking": thinks}});
            let expected = tokenized(&service, plain.clone(), same).await;
            let body = json!({"system": system, "messages": blocks, "tools": ours, "thinking": {"type": kind}});
            assert_eq!(
                prompt(body).await,
                ids(&expected).len() as u64,
                "{expected}"
            );
            assert!(expected.contains("\"b\""), "{expected}");
            assert_eq!(expected.contains("first"), has_thought, "{expected}");
        }
    }
    // A message of the assistant at the end is continued.
    let begun =
        json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "It is"}]);
    let expected = tokenized(&service, begun.clone(), json!({"continue_final_message": true, "add_generation_prompt": false, "reasoning_effort": "none"})).await;
    assert_eq!(
        prompt(json!({"messages": begun})).await,
        ids(&expected).len() as u64
    );
}

#[tokio::test]
async fn ignored_fields_are_named_and_a_strict_server_refuses_them() {
    let service = serving(writing("a"));
    let more = json!({"metadata": {"user_id": "x"}, "service_tier": "auto", "betas": [], "thinking": null, "output_config": {"effort": "low", "x": 1}});
    let response = send(&service, "/v1/messages", &body(more)).await;
    assert_eq!(
        response.headers()["x-ignored-params"],
        "output_config.x, output_config.effort, betas"
    );
    let plain = crate::chat::serving(Fake::babbling());
    let response = send(&plain, "/v1/messages", &body(json!({"max_tokens": 3}))).await;
    assert_eq!(response.headers()["x-ignored-params"], "thinking");
    let options = Options {
        chat_template: Some(crate::chat::TEMPLATE),
        limits: Limits {
            strict: true,
            ..Limits::default()
        },
        ..Options::default()
    };
    let strict = Service::with(Fake::babbling(), options);
    let (status, kind, message) =
        error_of(send(&strict, "/v1/messages", &body(json!({"betas": []}))).await).await;
    assert_eq!((status, kind.as_str()), (400, "invalid_request_error"));
    assert!(message.contains("'betas'"), "{message}");
}

/// Values that are refused: the field, a part of the message, and the values as a JSON list.
const REFUSED: &str = r#"
    messages | is required | [null]
    messages | must be a list | [[], "x", {}, 3]
    messages | 'messages[1]' must be an object | [[{"role": "user", "content": "u"}, "x"], [{"role": "user", "content": "u"}, []]]
    messages | role | [[{"role": "tool", "content": "x"}], [{"role": 1, "content": "x"}], [{"content": "x"}]]
    messages | content | [[{"role": "user"}], [{"role": "user", "content": 1}], [{"role": "user", "content": ["x"]}], [{"role": "user", "content": {}}]]
    messages | type | [[{"role": "user", "content": [{}]}], [{"role": "user", "content": [{"type": 1}]}], [{"role": "user", "content": [{"text": "x"}]}]]
    messages | 'image' | [[{"role": "user", "content": [{"type": "image", "source": {}}]}]]
    messages | 'document' | [[{"role": "user", "content": [{"type": "document", "source": {}}]}]]
    messages | 'messages[0].content[0].content[0].type' | [[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}]}]]
    messages | thinking | [[{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}], [{"role": "assistant", "content": [{"type": "thinking"}]}]]
    messages | tool_use | [[{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}], [{"role": "system", "content": [{"type": "tool_use"}]}]]
    messages | tool_result | [[{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]]
    messages | tool_use_id | [[{"role": "user", "content": [{"type": "tool_result"}]}], [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": 1}]}]]
    messages | is_error | [[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "is_error": 3}]}]]
    messages | input | [[{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}], [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": "{}"}]}]]
    messages | name | [[{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {}}]}]]
    messages | text | [[{"role": "user", "content": [{"type": "text", "text": 1}]}], [{"role": "user", "content": [{"type": "text"}]}]]
    messages | the results of the calls | [[{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]]
    system | must be | [1, {}, ["x"], [{"type": "image"}], [{"type": "text"}]]
    max_tokens | is required | [null]
    max_tokens | an integer | [0, -1, 1.5, "3"]
    max_tokens | maximum context length | [4096, 9007199254740993]
    model | must be a string | [3]
    model | does not exist | ["claude", "../../etc/passwd"]
    temperature | a number | ["hot", -1, 3]
    top_p | a number | [0, 2]
    top_k | an integer | [-2, "x"]
    stop_sequences | a list of at most | [[""], 3, [1]]
    stream | true or false | [1, "true"]
    tools | a list of at most | [3, {}]
    tools | 'tools[0]' must be an object | [["x"], [[]]]
    tools | name | [[{}], [{"name": 1}], [{"input_schema": {}}]]
    tools | a name of 1 to 64 | [[{"name": "a b"}], [{"name": ""}]]
    tools | 'tools[1].name' must be another | [[{"name": "a"}, {"name": "a"}]]
    tools | 'tools[0].input_schema' | [[{"name": "a", "input_schema": []}]]
    tools | 'web_search_20250305' | [[{"type": "web_search_20250305", "name": "web_search"}]]
    tools | type | [[{"type": 3, "name": "a"}]]
    tools | description | [[{"name": "a", "description": 1}]]
    tool_choice | an object whose 'type' | ["auto", [], {}, {"type": "required"}, {"type": "tool"}, {"type": "auto", "name": "a"}, {"type": "any", "disable_parallel_tool_use": 1}]
    tool_choice | one of 'tools' | [{"type": "any"}, {"type": "tool", "name": "a"}]
    thinking | an object whose 'type' | [true, [], {}, {"type": "on"}, {"type": "enabled"}, {"type": "enabled", "budget_tokens": 0}, {"type": "enabled", "budget_tokens": 300}, {"type": "adaptive", "budget_tokens": 9}, {"type": "disabled", "budget_tokens": 9}]
    thinking | 'display' | [{"type": "adaptive", "display": "all"}, {"type": "adaptive", "display": 1}]
    output_config | an object with | [3, []]
    output_config | one of none | [{"effort": "much"}, {"effort": 3}]
    output_config | with a format | [{"format": 3}, {"format": {}}, {"format": {"type": "json_object"}}, {"format": {"type": "json_schema"}}, {"format": {"type": "json_schema", "schema": null}}]
    output_config | a grammar that compiles | [{"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}]
    output_format | with a format | [3, {}]
    response_format | an object whose 'type' | ["json"]
    metadata | an object | [3]
    service_tier | a text | [3]
    cache_control | an object | [3]
    container | not supported | ["x", {}]
    context_management | not supported | [{}]
    mcp_servers | not supported | [[{}], {}]
"#;

#[tokio::test]
async fn bad_fields_are_refused_by_name() {
    let service = serving(writing("a"));
    let mut refused = 0;
    for (field, part, value) in each_row(REFUSED) {
        let mut body = body(json!({}));
        body[field] = value.clone();
        let (status, kind, message) = error_of(send(&service, "/v1/messages", &body).await).await;
        let expected = match part {
            "does not exist" => (404, "not_found_error"),
            _ => (400, "invalid_request_error"),
        };
        assert_eq!(
            (status, kind.as_str()),
            expected,
            "{field}: {value} → {message}"
        );
        let is_named = message.contains(&format!("'{field}"))
            || part.contains("context length")
            || part == "does not exist";
        assert!(
            is_named && message.contains(part),
            "{field}: {value} → {message}"
        );
        refused += 1;
    }
    assert_eq!(service.count("invalid"), refused, "each is counted once");
    assert_eq!(
        service.metrics.prompt_tokens_total.get(),
        0,
        "none reached the engine"
    );
    for (more, field) in [
        (
            json!({"output_config": {"format": {"type": "json_schema", "schema": true}}, "output_format": {"type": "json_schema", "schema": true}}),
            "output_format",
        ),
        (
            json!({"output_config": {"format": {"type": "json_schema", "schema": true}}, "guided_regex": "a"}),
            "guided_regex",
        ),
        (
            json!({"tools": tools(), "tool_choice": {"type": "any"}, "guided_regex": "a"}),
            "guided_regex",
        ),
        (
            json!({"tools": tools(), "tool_choice": {"type": "any"}, "messages": [{"role": "assistant", "content": "x"}]}),
            "tool_choice",
        ),
        (json!({"min_tokens": 301}), "min_tokens"),
    ] {
        let (status, _, message) =
            error_of(send(&service, "/v1/messages", &body(more)).await).await;
        assert_eq!(status, 400);
        assert!(message.contains(&format!("'{field}'")), "{message}");
    }
    let plain = crate::chat::serving(Fake::babbling());
    let response = send(
        &plain,
        "/v1/messages/count_tokens",
        &json!({"messages": [], "tools": 3}),
    )
    .await;
    assert_eq!(error_of(response).await.0, 400);
}

#[tokio::test]
async fn hostile_bodies_are_refused_or_answered() {
    let service = serving(writing("a"));
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let nested = deep("[", "]");
    let objects = deep("{\"a\":", "}").replacen("}", "1}", 1);
    let with = |field: &str, value: &str| {
        let rest = if field == "messages" {
            ""
        } else {
            ",\"messages\":[{\"role\":\"user\",\"content\":\"u\"}]"
        };
        format!("{{\"max_tokens\":3,\"{field}\":{value}{rest}}}")
    };
    let message = |content: &str| format!("[{{\"role\":\"user\",\"content\":{content}}}]");
    let many = |one: &str, count: usize| format!("[{}]", vec![one; count].join(","));
    let bodies = [
        with("messages", &nested),
        with("messages", &message(&nested)),
        with("messages", &message(&objects)),
        with(
            "messages",
            &message(&format!(
                "[{{\"type\":\"tool_result\",\"tool_use_id\":\"1\",\"content\":{nested}}}]"
            )),
        ),
        with(
            "messages",
            &format!(
                "[{{\"role\":\"assistant\",\"content\":[{{\"type\":\"tool_use\",\"id\":\"1\",\"name\":\"f\",\"input\":{objects}}}]}},{{\"role\":\"user\",\"content\":\"u\"}}]"
            ),
        ),
        with(
            "messages",
            &many("{\"role\":\"user\",\"content\":\"\"}", 20_000),
        ),
        with(
            "messages",
            &message(&many("{\"type\":\"text\",\"text\":\"\"}", 20_000)),
        ),
        with("system", &many("{\"type\":\"text\",\"text\":\"\"}", 20_000)),
        with("system", &nested),
        with("tools", &nested),
        with("tools", &many("{\"name\":\"a\"}", 20_000)),
        with(
            "tools",
            &format!("[{{\"name\":\"a\",\"input_schema\":{objects}}}]"),
        ),
        with("output_config", &objects),
        with("thinking", &objects),
        with("metadata", &objects),
        with("unknown", &nested),
    ];
    for body in bodies {
        for path in ["/v1/messages", "/v1/messages/count_tokens"] {
            let request = service.client.post(service.url(path));
            let request = request
                .header("content-type", "application/json")
                .body(body.clone());
            let response = request.send().await.unwrap();
            let status = response.status().as_u16();
            assert!(
                [200, 400, 413].contains(&status),
                "{path}: {status} {}",
                &body[..60]
            );
            if status != 200 {
                error_of(response).await;
            }
        }
    }
    let answer = ask(&service, json!({"max_tokens": 2})).await;
    assert_eq!(answer["usage"]["output_tokens"], 2, "the service goes on");
}

#[tokio::test]
async fn errors_before_the_handler_have_the_shape_of_the_api() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "key").unwrap();
    let options = Options {
        access: Access {
            keys: Some(ApiKeys::read(file.path()).unwrap()),
            root_path: "/granite".to_owned(),
            ..Access::default()
        },
        limits: Limits {
            body_bytes: 1000,
            ..Limits::default()
        },
        chat_template: Some(crate::chat::TEMPLATE),
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let send = async |method: &str, path: &str, key: &str, kind: &str, body: String| {
        let request = service
            .client
            .request(method.parse().unwrap(), service.url(path));
        let request = request
            .header("x-api-key", key)
            .header("content-type", kind);
        request.body(body).send().await.unwrap()
    };
    let json = "application/json";
    for (method, path, key, kind, body, status, error) in [
        (
            "POST",
            "/v1/messages",
            "no",
            json,
            "{}",
            401,
            "authentication_error",
        ),
        (
            "POST",
            "/messages/count_tokens",
            "",
            json,
            "{}",
            401,
            "authentication_error",
        ),
        (
            "GET",
            "/v1/messages",
            "key",
            json,
            "",
            405,
            "invalid_request_error",
        ),
        (
            "GET",
            "/v1/messages/batches",
            "key",
            json,
            "",
            404,
            "not_found_error",
        ),
        (
            "POST",
            "/v1/messages/x/y",
            "key",
            json,
            "",
            404,
            "not_found_error",
        ),
        (
            "POST",
            "/v1/messages",
            "key",
            json,
            "{",
            400,
            "invalid_request_error",
        ),
        (
            "POST",
            "/v1/messages",
            "key",
            "text/plain",
            "{}",
            415,
            "invalid_request_error",
        ),
        (
            "POST",
            "/messages",
            "key",
            json,
            &"x".repeat(1001),
            413,
            "request_too_large",
        ),
    ] {
        let response = send(
            method,
            &format!("/granite{path}"),
            key,
            kind,
            body.to_owned(),
        )
        .await;
        assert_eq!(response.headers().contains_key("allow"), status == 405);
        let length = response.headers()["content-length"]
            .to_str()
            .unwrap()
            .to_owned();
        assert_ne!(length, "0");
        let (got, name, _) = error_of(response).await;
        assert_eq!((got, name.as_str()), (status, error), "{method} {path}");
    }
    let good = serde_json::to_string(&body(json!({"max_tokens": 2}))).unwrap();
    let response = send("POST", "/granite/v1/messages", "key", json, good.clone()).await;
    assert_eq!(response.status(), 200);
    let request = service
        .client
        .post(service.url("/granite/messages"))
        .bearer_auth("key");
    let request = request.header("content-type", json).body(good);
    assert_eq!(request.send().await.unwrap().status(), 200);
    // Other paths keep OpenAI's shape.
    let other = send("GET", "/granite/v1/messagesx", "key", json, String::new()).await;
    assert_eq!(crate::refusals::error_of(other).await.0, 404);

    let loading = Service::loading();
    let request = loading
        .client
        .post(loading.url("/v1/messages"))
        .json(&body(serde_json::json!({})));
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, kind, _) = error_of(response).await;
    assert_eq!((status, kind.as_str()), (529, "overloaded_error"));
    assert_eq!(loading.count("unavailable"), 1);
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_an_error_event() {
    let service = serving(Fake::new(|before| {
        let turn = before.iter().rposition(|&token| token == TURN).unwrap();
        match before.len() - turn {
            40.. => Next::NotANumber,
            written => Next::Any(written as u64),
        }
    }));
    let response = send(&service, "/v1/messages", &body(json!({"stream": true}))).await;
    let events = named_events(response).await;
    assert_eq!(events[0]["type"], "message_start");
    let error =
        json!({"type": "error", "error": {"type": "api_error", "message": "internal error"}});
    assert_eq!(events.last(), Some(&error));
    let (status, kind, _) = error_of(send(&service, "/v1/messages", &body(json!({}))).await).await;
    assert_eq!((status, kind.as_str()), (500, "api_error"));
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
