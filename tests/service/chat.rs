//! Tests of chat completions, and of the routes for tokens and models.

mod calls;
mod prompts;
mod refusals;

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Response;
use serde_json::{Value, json};

use crate::fake::{Fake, Next};
use crate::harness::{
    END_OF_TEXT, MODEL, Options, Service, byte_tokens, first_event, read_events, tokenizer, usage,
};

/// A chat template whose turns begin with `<|unused_1|>` and whose tool calls have Granite 4's form.
pub const TEMPLATE: &str = "{%- if tools %}{{ '<|unused_2|>Use <tool_call>: ' + (tools | tojson) + '<|end_of_text|>\n' }}{% endif %}{% for m in messages %}{{ '<|unused_1|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}{{ '<tool_call>' + (c.function | tojson) + '</tool_call>' }}{% endfor %}{{ '<|end_of_text|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|unused_1|>assistant\n' }}{% endif %}";
const TURN: u32 = 317;

pub fn serving(model: Fake) -> Service {
    let options = Options {
        chat_template: Some(TEMPLATE),
        ..Options::default()
    };
    Service::with(model, options)
}

/// A model that writes `text` in its turn and then ends the turn.
fn answering(text: &str) -> Fake {
    let mut answer = byte_tokens(text);
    answer.push(END_OF_TEXT);
    let header = tokenizer()
        .encode("<|unused_1|>assistant\n", 100)
        .unwrap()
        .len();
    Fake::new(move |before| {
        let turn = before.iter().rposition(|&token| token == TURN);
        let answer_begins = turn.expect("every prompt has turns") + header;
        // When the prompt is scored, the model is also run for positions inside the prompt.
        let said = before.len().checked_sub(answer_begins);
        let next = said.and_then(|said| answer.get(said));
        Next::Token(next.copied().unwrap_or(END_OF_TEXT))
    })
}

pub async fn send(service: &Service, path: &str, body: &Value) -> Response {
    let request = service.client.post(service.url(path)).json(body);
    request.send().await.unwrap()
}

async fn post(service: &Service, path: &str, body: Value) -> Value {
    let response = send(service, path, &body).await;
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{body} → {text}");
    serde_json::from_str(&text).unwrap()
}

async fn chat(service: &Service, body: Value) -> Value {
    post(service, "/v1/chat/completions", body).await
}

async fn stream(service: &Service, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let response = send(service, "/v1/chat/completions", &body).await;
    assert_eq!(response.status(), 200, "{body}");
    read_events(response).await
}

/// What a client joins from the events of one choice: the text, the calls, and the finish reason.
fn assembled(events: &[Value], index: usize) -> (String, Vec<(String, String)>, Value) {
    let (mut text, mut calls, mut reason) = (String::new(), Vec::new(), Value::Null);
    for choice in events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap())
    {
        if choice["index"] != index {
            continue;
        }
        assert!(reason.is_null(), "nothing follows the reason");
        text += choice["delta"]["content"].as_str().unwrap_or_default();
        for call in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            // The first event of a call has its id and name, the following ones have pieces of its arguments.
            if call["id"].is_string() {
                assert_eq!(call["index"], calls.len());
                calls.push(name_and_arguments(call));
            } else {
                assert_eq!(call["index"], calls.len() - 1);
                let more = call["function"]["arguments"].as_str().unwrap();
                assert!(!more.is_empty() && call["function"].get("name").is_none());
                calls.last_mut().unwrap().1 += more;
            }
        }
        reason = choice["finish_reason"].clone();
    }
    (text, calls, reason)
}

fn name_and_arguments(call: &Value) -> (String, String) {
    assert_eq!(call["type"], "function");
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    let text = |name: &str| call["function"][name].as_str().unwrap().to_owned();
    (text("name"), text("arguments"))
}

fn tools() -> Value {
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "properties": {"size": {"enum": [1, 2]}}, "required": ["size"], "additionalProperties": false,
        }}})
    };
    json!([tool("add"), tool("remove")])
}

#[tokio::test]
async fn an_answer_has_the_shape_that_clients_expect() {
    let service = serving(answering("Hëllo!"));
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]);
    let answer = chat(&service, json!({"model": MODEL, "messages": messages})).await;
    let rendered = "<|unused_1|>system\ns<|end_of_text|>\n<|unused_1|>user\nu<|end_of_text|>\n<|unused_1|>assistant\n";
    let prompt_tokens = tokenizer().encode(rendered, 1000).unwrap().len();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        answer,
        json!({
            "id": answer["id"],
            "object": "chat.completion",
            "created": answer["created"],
            "model": MODEL,
            "system_fingerprint": "test-fingerprint",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "Hëllo!", "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
                "stop_reason": null,
            }],
            "usage": usage(prompt_tokens as u64, 8),
        })
    );
    assert_eq!(service.count("ok"), 1);
}

#[tokio::test]
async fn a_stream_says_the_same_and_the_role_comes_first() {
    let service = serving(answering("Hëllo, wörld"));
    let body = json!({
        "messages": [{"role": "user", "content": "u"}], "stop": "ld",
        "stream_options": {"include_usage": true},
    });
    let events = stream(&service, body).await;
    let first = &events[0]["choices"][0];
    assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
    assert!(
        events
            .iter()
            .all(|event| event["object"] == "chat.completion.chunk")
    );
    let (text, calls, reason) = assembled(&events, 0);
    assert_eq!(
        (&*text, calls.len(), reason),
        ("Hëllo, wör", 0, json!("stop"))
    );
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 14);
    assert!(
        events[..events.len() - 1]
            .iter()
            .all(|event| event["usage"].is_null())
    );
}

#[tokio::test]
async fn an_answer_may_fill_the_rest_of_the_context() {
    let service = serving(Fake::babbling().with_context(128));
    let body = json!({"messages": [{"role": "user", "content": "u"}]});
    let answer = chat(&service, body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], 128);
}

#[tokio::test]
async fn log_probabilities_have_the_shape_of_chat() {
    let service = serving(answering("é!"));
    let body = json!({
        "messages": [{"role": "user", "content": "u"}], "logprobs": true, "top_logprobs": 2, "temperature": 0,
    });
    let answer = chat(&service, body.clone()).await;
    let scored = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(scored.len(), 3);
    assert_eq!(scored[0]["token"], "bytes:\\xc3");
    assert_eq!(scored[2]["token"], "!");
    assert_eq!(scored[2]["bytes"], json!([33]));
    assert!(scored[2]["logprob"].as_f64().unwrap() > -0.1);
    assert_eq!(scored[2]["top_logprobs"].as_array().unwrap().len(), 2);
    let events = stream(&service, body).await;
    let streamed: Vec<&Value> = events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap())
        .flat_map(|choice| {
            choice["logprobs"]["content"]
                .as_array()
                .into_iter()
                .flatten()
        })
        .collect();
    assert_eq!(streamed, scored.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn several_answers_and_json_are_as_on_completions() {
    let service = serving(Fake::babbling());
    let body = json!({
        "messages": [{"role": "user", "content": "u"}], "n": 3, "seed": 5, "max_tokens": 40,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "object", "properties": {"a": {"enum": [10, 20, 30]}}, "required": ["a"], "additionalProperties": false,
        }}},
    });
    let answer = chat(&service, body.clone()).await;
    let events = stream(&service, body).await;
    for index in 0..3 {
        let choice = &answer["choices"][index];
        assert_eq!(choice["index"], index);
        let text = choice["message"]["content"].as_str().unwrap();
        let json: Value = serde_json::from_str(text).unwrap();
        assert!([10, 20, 30].contains(&json["a"].as_i64().unwrap()));
        assert_eq!(assembled(&events, index).0, text);
    }
}

#[tokio::test]
async fn texts_become_ids_and_texts_again() {
    let service = serving(Fake::babbling());
    let text = "the cat <|unused_1|> é";
    let ids = post(
        &service,
        "/tokenize",
        json!({"model": MODEL, "prompt": text, "add_special_tokens": true}),
    )
    .await;
    let expected = tokenizer().encode(text, 100).unwrap();
    assert_eq!(
        ids,
        json!({"count": expected.len(), "max_model_len": 4096, "tokens": expected, "token_strs": null})
    );
    let back = post(&service, "/detokenize", json!({"tokens": ids["tokens"]})).await;
    assert_eq!(back, json!({"prompt": text}));
    let info: Value = service.get("/tokenizer_info").await.json().await.unwrap();
    assert_eq!(info["eos_token"], "<|end_of_text|>");
    assert_eq!(info["chat_template"], TEMPLATE);
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 3}), "prompt"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [320]}), "tokens"),
        ("/detokenize", json!({"tokens": "x"}), "tokens"),
        ("/detokenize", json!({"tokens": vec![1; 5000]}), "tokens"),
    ] {
        let response = send(&service, path, &body).await;
        assert_eq!(response.status(), 400, "{path}");
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["param"], param, "{error}");
    }
}

#[tokio::test]
async fn the_description_has_every_route_and_its_answers() {
    let service = serving(answering("ok"));
    let document: Value = service.get("/openapi.json").await.json().await.unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{name}", MODEL);
            let status = async |method: &str| {
                let method = method.to_uppercase().parse().unwrap();
                let request = service.client.request(method, service.url(&path));
                request.send().await.unwrap().status().as_u16()
            };
            let answered = status(method).await;
            assert!([200, 415, 400].contains(&answered), "{path}: {answered}");
            let other = if method == "get" { "post" } else { "get" };
            assert_eq!(status(other).await, 405, "{path}: {other}");
        }
    }
    // Every reference has a target.
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name}"
        );
    }
    let page = service.get("/docs").await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let page = page.text().await.unwrap();
    assert!(page.contains("openapi.json") && !page.contains("http"));
}

#[tokio::test]
async fn ids_names_and_scores_of_tokens_are_given_as_on_completions() {
    let service = serving(answering("ab"));
    let body = json!({
        "messages": [{"role": "user", "content": "u"}], "temperature": 0, "return_token_ids": true,
        "return_tokens_as_token_ids": true, "logprobs": true, "top_logprobs": 1,
    });
    let mut scored = body.clone();
    scored["prompt_logprobs"] = json!(0);
    let answer = chat(&service, scored).await;
    let ids = post(&service, "/tokenize", json!({"messages": body["messages"]})).await;
    assert_eq!(answer["prompt_token_ids"], ids["tokens"]);
    assert_eq!(
        answer["prompt_logprobs"].as_array().map(Vec::len),
        Some(ids["count"].as_u64().unwrap() as usize)
    );
    assert_eq!(answer["prompt_logprobs"][1].as_object().unwrap().len(), 1);
    let mut expected = byte_tokens("ab");
    expected.push(END_OF_TEXT);
    let choice = &answer["choices"][0];
    assert_eq!(choice["token_ids"], json!(expected));
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let name = format!("token_id:{}", expected[0]);
    let first = &choice["logprobs"]["content"][0];
    assert_eq!(
        (&first["token"], &first["top_logprobs"][0]["token"]),
        (&json!(name), &json!(name))
    );

    let events = stream(&service, body.clone()).await;
    assert_eq!(events[0]["prompt_token_ids"], ids["tokens"]);
    assert!(
        events[1..]
            .iter()
            .all(|event| event.get("prompt_token_ids").is_none())
    );
    let streamed: Vec<&Value> = events
        .iter()
        .flat_map(|event| {
            event["choices"][0]["token_ids"]
                .as_array()
                .into_iter()
                .flatten()
        })
        .collect();
    assert_eq!(json!(streamed), choice["token_ids"]);

    let mut refused = body;
    refused["prompt_logprobs"] = json!(1);
    refused["stream"] = json!(true);
    let response = send(&service, "/v1/chat/completions", &refused).await;
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn sixteen_chats_without_a_limit_stream_together_in_a_context_of_128k() {
    // The KV cache holds one whole context, and each request alone could fill it.
    let model = Fake::babbling().with_context(131_072);
    let model = model.with_step_time(Duration::from_millis(1));
    let options = Options {
        chat_template: Some(TEMPLATE),
        ..Options::default()
    };
    let service = Service::with(model, options);
    let ask = |n: usize| {
        let messages = json!([{"role": "user", "content": format!("question {n}")}]);
        let body = json!({"messages": messages, "stream": true});
        let request = service.client.post(service.url("/v1/chat/completions"));
        async move { first_event(request.json(&body).send().await.unwrap()).await }
    };
    let mut streams = join_all((0..16).map(ask)).await;
    service
        .within(Duration::from_secs(5), "all of them run", |metrics| {
            metrics.requests_running.get() == 16
        })
        .await;
    assert_eq!(service.metrics.requests_waiting.get(), 0);
    // After one client has disconnected, a new request runs together with the other fifteen.
    drop(streams.pop());
    service
        .complete(json!({"prompt": "x", "max_tokens": 1}))
        .await;
    assert!(service.metrics.requests_running.get() >= 15);
}
