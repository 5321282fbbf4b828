//! Tests of conversations that are refused.

use serde_json::{Value, json};

use super::{send, serving, tools};
use crate::fake::Fake;
use crate::harness::{Options, Service};

#[tokio::test]
async fn bad_conversations_are_refused_by_name() {
    let service = serving(Fake::babbling());
    let user = json!([{"role": "user", "content": "u"}]);
    let hello = |field: &str, value: Value| {
        let mut body = json!({"messages": user});
        body[field] = value;
        body
    };
    let message = |message: Value| hello("messages", json!([message]));
    let tool =
        |function: Value| hello("tools", json!([{"type": "function", "function": function}]));
    let deep = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({"items": inner}));
    let forced = |choice: Value| {
        let mut body = hello("tools", tools());
        body["tool_choice"] = choice;
        body
    };
    for (body, param) in [
        (json!({}), "messages"),
        (hello("messages", json!([])), "messages"),
        (hello("messages", json!("hi")), "messages"),
        (hello("messages", json!(["hi"])), "messages"),
        (message(json!({"content": "x"})), "messages"),
        (
            message(json!({"role": "<robot>", "content": "x"})),
            "messages",
        ),
        (
            message(json!({"role": "r".repeat(65), "content": "x"})),
            "messages",
        ),
        (message(json!({"role": "", "content": "x"})), "messages"),
        (
            message(
                json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}),
            ),
            "messages",
        ),
        (hello("echo", json!("yes")), "echo"),
        (hello("prompt_logprobs", json!(-1)), "prompt_logprobs"),
        (message(json!({"role": "user"})), "messages"),
        (
            message(json!({"role": "user", "content": null})),
            "messages",
        ),
        (message(json!({"role": "user", "content": 3})), "messages"),
        (
            message(
                json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
            ),
            "messages",
        ),
        (
            message(json!({"role": "assistant", "tool_calls": [{"id": "1"}]})),
            "messages",
        ),
        (hello("tools", json!({})), "tools"),
        (
            hello("tools", json!([{"type": "retrieval"}])),
            "tools[0].type",
        ),
        (tool(json!({"name": ""})), "tools[0].function.name"),
        (tool(json!({"name": "a b"})), "tools[0].function.name"),
        (
            tool(json!({"name": "a", "parameters": []})),
            "tools[0].function.parameters",
        ),
        (
            tool(json!({"name": "a", "parameters": true})),
            "tools[0].function.parameters",
        ),
        (
            tool(json!({"name": "a", "parameters": deep(101)})),
            "tools[0].function.parameters",
        ),
        (
            tool(json!({"name": "a", "parameters": deep(126)})),
            "tools[0].function.parameters",
        ),
        (tool(json!({"name": "a", "strict": deep(126)})), "tools[0]"),
        (hello("tools", json!([3])), "tools[0]"),
        (
            hello("tools", json!([{"type": "function", "function": "f"}])),
            "tools[0].function",
        ),
        (
            hello("tools", json!([tools()[0], tools()[1], tools()[0]])),
            "tools[2].function.name",
        ),
        (
            tool(json!({"name": "a", "description": {}})),
            "tools[0].function.description",
        ),
        (hello("tool_choice", json!("required")), "tool_choice"),
        (forced(json!("sometimes")), "tool_choice"),
        (
            forced(json!({"type": "function", "function": {"name": "other"}})),
            "tool_choice",
        ),
        (hello("documents", json!(["x"])), "documents"),
        (hello("documents", json!([{"text": "x"}])), "documents"),
        (
            hello("chat_template_kwargs", json!({"messages": []})),
            "chat_template_kwargs",
        ),
        (hello("chat_template", json!("{{ 1 }}")), "chat_template"),
        (hello("functions", json!([])), "functions"),
        (hello("max_tokens", json!(0)), "max_tokens"),
        (hello("max_tokens", json!(4096)), "max_tokens"),
        (hello("n", json!(0)), "n"),
        (hello("logprobs", json!(3)), "logprobs"),
        (hello("top_logprobs", json!(3)), "top_logprobs"),
        (
            json!({"messages": user, "logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (
            json!({"messages": user, "add_generation_prompt": true, "continue_final_message": true}),
            "continue_final_message",
        ),
        (
            hello(
                "messages",
                json!([{"role": "user", "content": "a ".repeat(4096)}]),
            ),
            "messages",
        ),
    ] {
        let response = send(&service, "/v1/chat/completions", &body).await;
        assert_eq!(response.status(), 400, "{param}");
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["param"], param, "{error}");
        let message = error["error"]["message"].as_str().unwrap();
        let is_named = message.contains(&format!("'{param}'"));
        assert!(is_named || !param.starts_with("tools["), "{error}");
    }
    let taken = tool(json!({"name": "a", "parameters": deep(100)}));
    assert_eq!(send(&service, "/tokenize", &taken).await.status(), 200);
}

#[tokio::test]
async fn without_a_template_chat_is_refused_with_advice() {
    let service = Service::start(Fake::babbling());
    let body = json!({"messages": [{"role": "user", "content": "u"}]});
    for path in ["/v1/chat/completions", "/tokenize"] {
        let response = send(&service, path, &body).await;
        assert_eq!(response.status(), 400);
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["code"], "no_chat_template");
    }
    let embeddings = send(&service, "/v1/embeddings", &json!({"input": "x"})).await;
    assert_eq!(embeddings.status(), 400);
    let error: Value = embeddings.json().await.unwrap();
    assert_eq!(error["error"]["code"], "unsupported_endpoint");
}

#[tokio::test]
async fn a_role_that_the_template_does_not_print_is_refused() {
    let refusing = "{% for m in messages %}{% if m.role not in ['system', 'user'] %}{{ raise_exception('no ' + m.role) }}{% endif %}{{ m.content }}{% endfor %}";
    let silent =
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
    for (template, problem) in [(refusing, "no document"), (silent, "'document'")] {
        let options = Options {
            chat_template: Some(template),
            ..Options::default()
        };
        let service = Service::with(Fake::babbling(), options);
        let messages =
            json!([{"role": "user", "content": "u"}, {"role": "document", "content": "d"}]);
        let body = json!({"messages": messages});
        let response = send(&service, "/v1/chat/completions", &body).await;
        assert_eq!(response.status(), 400);
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["code"], "chat_template_error");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(problem), "{message}");
    }
}

#[tokio::test]
async fn ids_that_the_model_does_not_have_are_refused_like_those_of_a_prompt() {
    // A tokenizer with one token more than the model has embeddings.
    let file = crate::harness::fixture("granite-3-tiny").join("tokenizer.json");
    let mut inner = tokenizers::Tokenizer::from_file(&file).unwrap();
    inner
        .add_tokens([tokenizers::AddedToken::from("acme", false)])
        .unwrap();
    let options = Options {
        chat_template: Some("{% for m in messages %}{{ m.content }}{% endfor %}"),
        tokenizer: Some(microgranite::text::Tokenizer::new(inner, &file).unwrap()),
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let text = "I work at acme today";
    for (path, body, param) in [
        ("/v1/completions", json!({"prompt": text}), "prompt"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": text}]}),
            "messages",
        ),
    ] {
        let response = send(&service, path, &body).await;
        assert_eq!(response.status(), 400, "{path}");
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["param"], param);
    }
}
