//! Tests of fields that are refused or ignored.

use microgranite::http::limits::Limits;
use serde_json::json;

use super::{ask, body, error_of, tools};
use crate::chat::send;
use crate::fake::Fake;
use crate::harness::{Options, Service};
use crate::refusals::each_row;
use crate::thinking::{serving, writing};

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
