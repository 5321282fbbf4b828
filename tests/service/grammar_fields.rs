//! Tests of the fields that constrain an answer: each is enforced or refused, never ignored.

use serde_json::{Value, json};

use crate::chat::{TEMPLATE, send, serving};
use crate::fake::Fake;
use crate::harness::{Options, Service};
use microgranite::http::limits::Limits;

fn prompt_with(field: &str, value: Value) -> Value {
    json!({"prompt": "x", "max_tokens": 40, "seed": 7, field: value})
}

fn message_with(field: &str, value: Value) -> Value {
    json!({"messages": [{"role": "user", "content": "u"}], "max_tokens": 40, "seed": 7, field: value})
}

/// The answers of both routes to a request with this field.
async fn answers(service: &Service, field: &str, value: &Value) -> [String; 2] {
    let completion = service.text(prompt_with(field, value.clone())).await;
    let response = send(
        service,
        "/v1/chat/completions",
        &message_with(field, value.clone()),
    )
    .await;
    let (status, chat) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{field}: {chat}");
    let chat: Value = serde_json::from_str(&chat).unwrap();
    let content = chat["choices"][0]["message"]["content"].as_str();
    [completion, content.unwrap_or_default().to_owned()]
}

#[tokio::test]
async fn every_name_of_a_constraint_is_honoured_on_both_routes() {
    let service = serving(Fake::babbling());
    let schema =
        json!({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]});
    let is_json = |text: &str| matches!(text, "{\"a\": 1}" | "{\"a\": 2}");
    for (field, value) in [
        ("guided_json", schema.clone()),
        ("guided_json", json!(schema.to_string())),
        ("json_schema", schema.clone()),
        (
            "response_format",
            json!({"type": "json_object", "schema": schema}),
        ),
        (
            "response_format",
            json!({"type": "json_schema", "schema": schema}),
        ),
        (
            "structured_outputs",
            json!({"json": schema, "disable_additional_properties": true, "disable_any_whitespace": true}),
        ),
    ] {
        for text in answers(&service, field, &value).await {
            assert!(is_json(&text), "{field}: {text}");
        }
    }
    for (field, value) in [
        ("guided_choice", json!(["left", "right"])),
        ("guided_regex", json!("left|right")),
        ("guided_grammar", json!("start: \"left\" | \"right\"")),
        ("grammar", json!("start: \"left\" | \"right\"")),
    ] {
        for text in answers(&service, field, &value).await {
            assert!(["left", "right"].contains(&&*text), "{field}: {text}");
        }
    }
}

#[tokio::test]
async fn a_constraint_that_cannot_be_honoured_is_refused_by_name() {
    let service = serving(Fake::babbling());
    for (field, value) in [
        ("guided_json", json!(3)),
        ("guided_choice", json!([])),
        ("guided_choice", json!("left")),
        ("guided_regex", json!(["a"])),
        ("guided_grammar", json!("root ::= \"a\"")),
        ("grammar", json!("root ::= \"a\"")),
        ("json_schema", json!("{")),
        ("guided_whitespace_pattern", json!("[ ]*")),
        (
            "structured_outputs",
            json!({"json": {}, "whitespace_pattern": "[ ]*"}),
        ),
        ("structured_outputs", json!({"structural_tag": "x"})),
        ("response_format", json!({"type": "structural_tag"})),
        ("response_format", json!({"type": "text", "schema": {}})),
    ] {
        for (path, body) in [
            ("/v1/completions", prompt_with(field, value.clone())),
            ("/v1/chat/completions", message_with(field, value.clone())),
        ] {
            let response = send(&service, path, &body).await;
            assert_eq!(response.status(), 400, "{body}");
            let error: Value = response.json().await.unwrap();
            assert_eq!(error["error"]["param"], field, "{error}");
        }
    }
}

#[tokio::test]
async fn of_two_constraints_the_second_is_refused() {
    let service = serving(Fake::babbling());
    for (first, second) in [
        (("guided_json", json!({})), ("guided_regex", json!("a"))),
        (
            ("response_format", json!({"type": "json_object"})),
            ("grammar", json!("start: \"a\"")),
        ),
        (
            ("structured_outputs", json!({"regex": "a"})),
            ("guided_choice", json!(["a"])),
        ),
    ] {
        let mut body = prompt_with(first.0, first.1);
        body[second.0] = second.1;
        let response = service.completion(&body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["param"], second.0, "{error}");
        assert!(
            error["error"]["message"]
                .as_str()
                .unwrap()
                .contains(first.0),
            "{error}"
        );
    }
    // A format that constrains nothing is the same as no format.
    let mut body = prompt_with("response_format", json!({"type": "text"}));
    body["guided_choice"] = json!(["a"]);
    assert_eq!(service.text(body).await, "a");
}

#[tokio::test]
async fn what_a_schema_asks_in_vain_is_named_in_a_header_or_refused_if_strict() {
    let schema = json!({"type": "array", "uniqueItems": true, "items": {"type": "string", "format": "color"}, "maxItems": 1});
    let body = prompt_with("guided_json", schema.clone());
    let service = serving(Fake::babbling());
    for (path, body) in [
        ("/v1/completions", body.clone()),
        ("/v1/chat/completions", message_with("guided_json", schema)),
    ] {
        for _compiled_then_cached in 0..2 {
            let response = send(&service, path, &body).await;
            assert_eq!(response.status(), 200);
            assert_eq!(
                response.headers()["x-unenforced-schema-keywords"],
                "format, uniqueItems"
            );
        }
    }
    let enforced = prompt_with("guided_json", json!({"const": 1}));
    let response = service.completion(&enforced).send().await.unwrap();
    assert_eq!(response.headers().get("x-unenforced-schema-keywords"), None);

    let limits = Limits {
        strict: true,
        ..Limits::default()
    };
    let options = Options {
        limits,
        chat_template: Some(TEMPLATE),
        ..Options::default()
    };
    let strict = Service::with(Fake::babbling(), options);
    let response = strict.completion(&body).send().await.unwrap();
    assert_eq!(response.status(), 400);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["param"], "guided_json");
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("format, uniqueItems"),
        "{error}"
    );
    strict.complete(enforced).await;
}

#[tokio::test]
async fn a_format_leaves_a_forced_call_alone() {
    let service = serving(Fake::babbling());
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {
        "properties": {"pet": {"$ref": "#/$defs/Pet"}}, "required": ["pet"],
        "$defs": {"Pet": {"type": "string", "enum": ["cat", "dog"]}},
    }}});
    for choice in [
        json!("required"),
        json!({"type": "function", "function": {"name": "f"}}),
    ] {
        let mut body = message_with("tool_choice", choice);
        body["tools"] = json!([tool]);
        body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}});
        let response = send(&service, "/v1/chat/completions", &body).await;
        assert_eq!(response.status(), 200);
        let answer: Value = response.json().await.unwrap();
        let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(
            ["cat", "dog"].contains(&arguments["pet"].as_str().unwrap()),
            "{answer}"
        );
        body["guided_json"] = body["response_format"].take();
        let response = send(&service, "/v1/chat/completions", &body).await;
        assert_eq!(
            response.status(),
            400,
            "a constraint on the answer itself contradicts a call"
        );
    }
}

#[tokio::test]
async fn a_constraint_that_another_field_makes_impossible_is_refused_and_not_cut_short() {
    let service = serving(Fake::babbling());
    let mut body = prompt_with("guided_choice", json!(["abc"]));
    body["bad_words"] = json!(["c"]);
    let response = service.completion(&body).send().await.unwrap();
    assert_eq!(response.status(), 400);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["param"], "guided_choice", "{error}");
}
