//! Tests of fields that are refused or ignored.

use microgranite::http::limits::Limits;
use serde_json::{Value, json};

use super::{PATH, ask, body, tools};
use crate::chat::send;
use crate::fake::Fake;
use crate::harness::{Options, Service};
use crate::refusals::{each_row, error_of};
use crate::thinking::{serving, writing};

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
