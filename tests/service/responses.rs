//! Tests of OpenAI's Responses API, with a model that thinks, like Granite 4.2.

use microgranite::http::limits::Limits;
use reqwest::Response;
use serde_json::{Value, json};

use crate::chat::send;
use crate::fake::{Fake, Next};
use crate::harness::{MODEL, Options, Service};
use crate::messages::named_events;
use crate::refusals::{each_row, error_of};
use crate::thinking::{TURN, ask_program, checkpoint, ids, serving, tokenized, writing};

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
async fn the_input_becomes_the_prompt_that_chat_completions_would_make() {
    let service = serving(writing("a"));
    let prompt = async |mut body: Value| {
        body["max_output_tokens"] = json!(1);
        let answer: Value = send(&service, PATH, &body).await.json().await.unwrap();
        answer["usage"]["input_tokens"].as_u64().expect("an answer")
    };
    let parameters = json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}});
    let function = json!({"name": "f", "description": "d", "parameters": parameters});
    let theirs = json!([{"type": "function", "function": function}]);
    let mut ours = function.clone();
    ours["type"] = json!("function");
    let input = json!([
        {"role": "developer", "content": "quickly"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "first"}], "encrypted_content": null},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": "said", "annotations": []}, {"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{\"b\": \"x\", \"a\": 1}"},
        {"type": "function_call", "call_id": "2", "name": "f", "arguments": ""},
        {"type": "function_call_output", "call_id": "1", "output": "r"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "s"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "second"}]},
        {"type": "function_call", "call_id": "3", "name": "f", "arguments": "{}"},
        {"type": "message", "role": "assistant", "content": "after"},
        {"type": "function_call_output", "call_id": "3", "output": "t"},
        {"type": "reasoning", "summary": [], "encrypted_content": "…"},
        {"role": "assistant", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]);
    let calls = json!([
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": \"x\", \"a\": 1}"}},
        {"id": "2", "type": "function", "function": {"name": "f", "arguments": ""}},
    ]);
    let third =
        json!([{"id": "3", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let plain = json!([
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "quickly"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "said\nno", "reasoning": "first", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
        {"role": "tool", "tool_call_id": "2", "content": "s"},
        {"role": "assistant", "content": "after", "reasoning": "second", "tool_calls": third},
        {"role": "tool", "tool_call_id": "3", "content": "t"},
        {"role": "assistant", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]);
    for effort in ["medium", "none"] {
        let expected = tokenized(
            &service,
            plain.clone(),
            json!({"tools": theirs, "reasoning_effort": effort}),
        )
        .await;
        let body = json!({"instructions": "be brief", "input": input, "tools": [ours], "reasoning": {"effort": effort}});
        assert_eq!(
            prompt(body).await,
            ids(&expected).len() as u64,
            "{expected}"
        );
        assert!(
            expected.contains("first") && expected.contains("second"),
            "{expected}"
        );
    }
    let expected = tokenized(
        &service,
        json!([{"role": "user", "content": "x"}]),
        json!({}),
    )
    .await;
    assert_eq!(
        prompt(json!({"input": "x"})).await,
        ids(&expected).len() as u64
    );
    // With `auto`, the beginning of a prompt that is too long is left out.
    let long = json!({"input": "x ".repeat(9000), "max_output_tokens": 1});
    assert_eq!(
        error_of(send(&service, PATH, &long).await).await,
        (400, "context_length_exceeded".into(), json!("input"))
    );
    let mut cut = long;
    cut["truncation"] = json!("auto");
    assert_eq!(prompt(cut).await, 4095);
}

#[tokio::test]
async fn an_answer_can_be_sent_back_as_input() {
    let service = serving(writing(&format!("I could.\n</think>\nWell.\n{CALL}")));
    let answer = ask(&service, json!({"tools": tools()})).await;
    let mut input = answer["output"].as_array().unwrap().clone();
    let result =
        json!({"type": "function_call_output", "call_id": input[2]["call_id"], "output": "sun"});
    input.insert(0, json!({"role": "user", "content": "u"}));
    input.push(result);
    ask(&service, json!({"tools": tools(), "input": input})).await;
}

#[tokio::test]
async fn ignored_fields_are_named_and_a_strict_server_refuses_them() {
    let service = serving(writing("a"));
    let more = json!({
        "store": true, "include": ["reasoning.encrypted_content"], "service_tier": "auto", "safety_identifier": "x",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "max_tool_calls": 3, "stream_options": {"include_obfuscation": false},
        "background": false, "top_logprobs": 0, "text": {"verbosity": "low"}, "reasoning": {"summary": "auto"}, "moderation": {},
    });
    let response = send(&service, PATH, &body(more)).await;
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.headers()["x-ignored-params"],
        "reasoning.summary, text.verbosity, moderation"
    );
    let options = Options {
        chat_template: Some(crate::chat::TEMPLATE),
        limits: Limits {
            strict: true,
            ..Limits::default()
        },
        ..Options::default()
    };
    let strict = Service::with(Fake::babbling(), options);
    let response = send(&strict, PATH, &body(json!({"moderation": {}}))).await;
    assert_eq!(
        error_of(response).await,
        (400, "unknown_parameter".into(), json!("moderation"))
    );
}

/// Values that are refused: the field, the field in the error with its code, and the values as a JSON list.
const REFUSED: &str = r#"
    input | input missing_required_parameter | [null]
    input | input invalid_value | [[], 3, {}]
    input | input[0] invalid_value | [["x"], [[]]]
    input | input[0].role invalid_value | [[{}], [{"role": "tool", "content": "x"}], [{"role": 1, "content": "x"}]]
    input | input[0].content invalid_value | [[{"role": "user"}], [{"role": "user", "content": 1}], [{"role": "user", "content": {}}]]
    input | input[0].content[0] invalid_value | [[{"role": "user", "content": ["x"]}]]
    input | input[0].content[0].type invalid_value | [[{"role": "user", "content": [{}]}], [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], [{"role": "user", "content": [{"type": "input_file"}]}], [{"role": "user", "content": [{"type": 3}]}]]
    input | input[0].content[0].text invalid_value | [[{"role": "user", "content": [{"type": "input_text"}]}], [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]]
    input | input[0].type invalid_value | [[{"type": 3}], [{"type": "item_reference", "id": "x"}], [{"type": "web_search_call"}], [{"type": "computer_call_output"}]]
    input | input[0].content invalid_value | [[{"type": "reasoning", "content": "x"}]]
    input | input[0].summary[0].text invalid_value | [[{"type": "reasoning", "summary": [{"type": "summary_text"}]}]]
    input | input[0].call_id invalid_value | [[{"type": "function_call", "name": "f", "arguments": ""}], [{"type": "function_call_output", "output": ""}]]
    input | input[0].name invalid_value | [[{"type": "function_call", "call_id": "1", "arguments": ""}]]
    input | input[0].arguments invalid_value | [[{"type": "function_call", "call_id": "1", "name": "f"}], [{"type": "function_call", "call_id": "1", "name": "f", "arguments": {}}]]
    input | input[0].output invalid_value | [[{"type": "function_call_output", "call_id": "1"}], [{"type": "function_call_output", "call_id": "1", "output": 1}]]
    input | input[0].output[0].type invalid_value | [[{"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image"}]}]]
    input | input invalid_value | [[{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"a\""}]]
    instructions | instructions invalid_value | [3, []]
    max_output_tokens | max_output_tokens invalid_value | [0, -1, 1.5, "3"]
    max_output_tokens | max_output_tokens context_length_exceeded | [4096]
    model | model invalid_value | [3]
    model | model model_not_found | ["gpt-5"]
    temperature | temperature invalid_value | ["hot", 3]
    stop | stop invalid_value | ["", 3]
    stream | stream invalid_value | [1]
    tools | tools invalid_value | [3, {}]
    tools | tools[0] invalid_value | [["x"]]
    tools | tools[0].type invalid_value | [[{}], [{"name": "a"}], [{"type": "web_search"}], [{"type": "custom", "name": "a"}], [{"type": "mcp"}]]
    tools | tools[0].name invalid_value | [[{"type": "function"}], [{"type": "function", "name": "a b"}]]
    tools | tools[1].name invalid_value | [[{"type": "function", "name": "a"}, {"type": "function", "name": "a"}]]
    tools | tools[0].parameters invalid_value | [[{"type": "function", "name": "a", "parameters": []}]]
    tool_choice | tool_choice invalid_value | ["any", "required", 3, {}, {"type": "function"}, {"type": "function", "name": "a"}, {"type": "web_search"}, {"type": "custom", "name": "a"}]
    parallel_tool_calls | parallel_tool_calls invalid_value | [1]
    text | text invalid_value | [3, []]
    text | text.format invalid_value | [{"format": 3}, {"format": {}}, {"format": {"type": "xml"}}, {"format": {"type": "json_schema"}}, {"format": {"type": "text", "schema": {}}}]
    text | text invalid_value | [{"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}]
    reasoning | reasoning invalid_value | [3]
    reasoning | reasoning.effort invalid_value | [{"effort": "much"}]
    truncation | truncation invalid_value | ["left", true]
    metadata | metadata invalid_value | [3, {"a": 1}, {"a": null}, ["x"]]
    user | user invalid_value | [3]
    store | store invalid_value | ["no"]
    include | include invalid_value | ["x", ["message.output_text.logprobs"], ["x"], [3]]
    service_tier | service_tier invalid_value | [3]
    max_tool_calls | max_tool_calls invalid_value | [-1]
    stream_options | stream_options invalid_value | [3]
    background | background unsupported_parameter | [true, "no"]
    top_logprobs | top_logprobs unsupported_parameter | [1, true]
    previous_response_id | previous_response_id unsupported_parameter | ["resp_1"]
    conversation | conversation unsupported_parameter | ["conv_1", {}]
    prompt | prompt unsupported_parameter | [{"id": "x"}]
    context_management | context_management unsupported_parameter | [[]]
"#;

#[tokio::test]
async fn bad_fields_are_refused_by_name() {
    let service = serving(writing("a"));
    let names = (0..17).map(|at| (at.to_string(), json!("x")));
    let mut rows = each_row(REFUSED);
    rows.extend([
        (
            "metadata",
            "metadata invalid_value",
            Value::Object(names.collect()),
        ),
        (
            "metadata",
            "metadata invalid_value",
            json!({"a".repeat(65): "x"}),
        ),
        (
            "metadata",
            "metadata invalid_value",
            json!({"a": "é".repeat(513)}),
        ),
        (
            "tools",
            "tools invalid_value",
            json!(vec![json!({"type": "function", "name": "a"}); 129]),
        ),
    ]);
    let mut refused = 0;
    for (field, error, value) in rows {
        let (param, code) = error.split_once(' ').unwrap();
        let mut body = body(json!({}));
        body[field] = value.clone();
        let status = if code == "model_not_found" { 404 } else { 400 };
        let got = error_of(send(&service, PATH, &body).await).await;
        assert_eq!(
            got,
            (status, code.to_owned(), json!(param)),
            "{field}: {value}"
        );
        refused += 1;
    }
    assert_eq!(service.count("invalid"), refused, "each is counted once");
    assert_eq!(
        service.metrics.prompt_tokens_total.get(),
        0,
        "none reached the engine"
    );
    let schema = json!({"format": {"type": "json_schema", "schema": true}});
    for (more, param) in [
        (json!({"text": schema, "guided_regex": "a"}), "guided_regex"),
        (
            json!({"tools": tools(), "tool_choice": "required", "guided_regex": "a"}),
            "guided_regex",
        ),
        (json!({"min_tokens": 301}), "min_tokens"),
    ] {
        let error = error_of(send(&service, PATH, &body(more)).await).await;
        assert_eq!(error, (400, "invalid_value".into(), json!(param)));
    }
    // At the limits.
    let names = (0..16).map(|at| (format!("{at:064}"), json!("é".repeat(512))));
    let more = json!({"metadata": Value::Object(names.collect()), "max_output_tokens": 1});
    ask(&service, more).await;
}

#[tokio::test]
async fn hostile_bodies_are_refused_or_answered() {
    let service = serving(writing("a"));
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let nested = deep("[", "]");
    let objects = deep("{\"a\":", "}").replacen("}", "1}", 1);
    let with = |field: &str, value: &str| {
        let rest = if field == "input" {
            ""
        } else {
            ",\"input\":\"u\""
        };
        format!("{{\"max_output_tokens\":3,\"{field}\":{value}{rest}}}")
    };
    let many = |one: &str, count: usize| format!("[{}]", vec![one; count].join(","));
    let call = "{\"type\":\"function_call\",\"call_id\":\"\",\"name\":\"f\",\"arguments\":\"\"}";
    let arguments = serde_json::to_string(&objects).unwrap();
    for body in [
        with("input", &nested),
        with("input", &many(&nested[..200_000], 1)),
        with(
            "input",
            &format!("[{{\"role\":\"user\",\"content\":{nested}}}]"),
        ),
        with(
            "input",
            &format!("[{{\"type\":\"reasoning\",\"content\":{nested}}}]"),
        ),
        with(
            "input",
            &many("{\"role\":\"user\",\"content\":\"\"}", 20_000),
        ),
        with(
            "input",
            &many("{\"role\":\"assistant\",\"content\":\"\"}", 20_000),
        ),
        with("input", &many(call, 10_000)),
        with(
            "input",
            &call.replace("\"arguments\":\"\"", &format!("\"arguments\":{arguments}")),
        ),
        with(
            "input",
            &format!(
                "[{}]",
                call.replace("\"arguments\":\"\"", &format!("\"arguments\":{arguments}"))
            ),
        ),
        with("tools", &nested),
        with(
            "tools",
            &many("{\"type\":\"function\",\"name\":\"a\"}", 20_000),
        ),
        with(
            "tools",
            &format!("[{{\"type\":\"function\",\"name\":\"a\",\"parameters\":{objects}}}]"),
        ),
        with("text", &objects),
        with("metadata", &objects),
        with("reasoning", &objects),
        with("include", &nested),
        with("unknown", &nested),
    ] {
        let request = service.client.post(service.url(PATH));
        let request = request
            .header("content-type", "application/json")
            .body(body.clone());
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        assert!(
            [200, 400, 413].contains(&status),
            "{status} {}",
            &body[..60]
        );
        if status != 200 {
            error_of(response).await;
        }
    }
    let answer = ask(&service, json!({"max_output_tokens": 2})).await;
    assert_eq!(answer["usage"]["output_tokens"], 2, "the service goes on");
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
async fn a_stream_that_fails_ends_with_a_failed_response_and_errors_have_openais_shape() {
    let service = serving(Fake::new(|before| {
        let turn = before.iter().rposition(|&token| token == TURN).unwrap();
        match before.len() - turn {
            40.. => Next::NotANumber,
            written => Next::Any(written as u64),
        }
    }));
    let failed = events(&service, json!({})).await;
    let last = failed.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    let response = &last["response"];
    assert_eq!(
        response["error"],
        json!({"code": "server_error", "message": "internal error"})
    );
    assert_eq!(
        response["output"].as_array().unwrap().last().unwrap()["status"],
        "incomplete"
    );
    let error: Response = send(&service, PATH, &body(json!({}))).await;
    assert_eq!(
        error_of(error).await,
        (500, "internal_error".into(), Value::Null)
    );
    assert_eq!(error_of(service.get(PATH).await).await.0, 405);
    assert_eq!(
        error_of(service.get("/v1/responses/resp_1").await).await.0,
        404
    );
    assert_eq!(
        send(
            &service,
            "/responses",
            &body(json!({"max_output_tokens": 2}))
        )
        .await
        .status(),
        200
    );
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
