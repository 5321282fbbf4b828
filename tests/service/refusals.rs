//! Tests of requests that are refused: the status, the code, and the field in the error.

use microgranite::http::limits::Limits;
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::harness::{Options, Service};

/// The error of a response, whose body must have exactly the fields that clients parse.
pub async fn error_of(response: reqwest::Response) -> (u16, String, Value) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.expect("every error is JSON");
    let error = body["error"].as_object().expect("one key, `error`");
    let keys: Vec<&String> = error.keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    assert!(!error["message"].as_str().unwrap().is_empty());
    let code = error["code"].as_str().expect("codes are strings");
    (status, code.to_owned(), error["param"].clone())
}

/// Values that are refused: the field, the code of the error, and the values as a JSON list.
const REFUSED: &str = r#"
    prompt | missing_required_parameter | [null]
    prompt | invalid_value | ["", [], [""], [[]], ["a", ""], [[1], []], 3, true, {}, [1, "a"], ["a", 1], [[["a"]]]]
    prompt | invalid_value | [[-1], [1.5], [320], [[1], [4294967295]], [1099511627776]]
    max_tokens | context_length_exceeded | [4096, 18446744073709551615]
    max_tokens | invalid_value | [0, -1, 1.5, "3", 1e300, [1]]
    max_completion_tokens | invalid_value | [-5, "x"]
    min_tokens | invalid_value | [17, -1, "1"]
    temperature | invalid_value | [-0.1, 2.1, "hot", 1e308, []]
    top_p | invalid_value | [0, -1, 1.01, "x"]
    top_k | invalid_value | [-2, 1.5, "x", 1e30]
    min_p | invalid_value | [-0.1, 1.1, true]
    seed | invalid_value | [1.5, "x", 18446744073709551615, -1.8446744073709552e19]
    n | invalid_value | [0, 17, -1, "2", 1.5]
    best_of | invalid_value | [0, 17, []]
    presence_penalty | invalid_value | [2.1, -2.1, "x"]
    frequency_penalty | invalid_value | [1e300, []]
    repetition_penalty | invalid_value | [0, -1, 1e-30, 101]
    logit_bias | invalid_value | [{"50": 100.5}, {"a": 1}, {"-1": 1}, {"320": 1}, {"5": "x"}, {"+5": 1}, {"5": 1, "05": 1}, [5]]
    allowed_token_ids | invalid_value | [[], [320], [-1], "5"]
    bad_words | invalid_value | [[""], [1]]
    stop | invalid_value | ["", ["a", ""], 1, [1]]
    stop_token_ids | invalid_value | [[320], [1.5], 5]
    include_stop_str_in_output | invalid_value | [1]
    ignore_eos | invalid_value | ["yes"]
    model | invalid_value | [3, ["a"]]
    model | model_not_found | ["gpt-4", "", "../../etc/passwd"]
    stream | invalid_value | [1, "true"]
    stream_options | invalid_value | [{}, {"include_usage": true}, true]
    echo | invalid_value | [1, "true"]
    suffix | unsupported_parameter | ["end"]
    suffix | invalid_value | [1]
    logprobs | invalid_value | [21, -1, true, 1.5]
    prompt_logprobs | invalid_value | [-1, 21, true]
    logprob_token_ids | invalid_value | [5, [320]]
    skip_special_tokens | invalid_value | [1]
    spaces_between_special_tokens | invalid_value | ["no"]
    return_token_ids | invalid_value | [1]
    return_tokens_as_token_ids | invalid_value | [1]
    truncate_prompt_tokens | invalid_value | [0, -2, "1"]
    truncation_side | invalid_value | ["middle", true]
    cache_salt | invalid_value | ["", 7]
    priority | invalid_value | ["high", 1.5]
    length_penalty | invalid_value | ["x"]
    use_beam_search | unsupported_parameter | [true]
    response_format | invalid_value | ["json", {}, {"type": "xml"}, {"type": "json_schema"}]
    response_format | invalid_value | [{"type": "json_schema", "json_schema": {"name": "x"}}]
    response_format | invalid_value | [{"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}]
    structured_outputs | invalid_value | [[], {}, {"regex": "("}, {"regex": 3}, {"regex": "a", "choice": ["b"]}]
    structured_outputs | invalid_value | [{"choice": []}, {"choice": [""]}, {"grammar": "start: nothing"}, {"json": "{"}]
"#;

/// The rows of a table of values that are refused: the field, what is said of it, and each of the values.
pub fn each_row(table: &'static str) -> Vec<(&'static str, &'static str, Value)> {
    let mut rows = Vec::new();
    for row in table.trim().lines() {
        let [field, said, values] = row.splitn(3, '|').map(str::trim).collect::<Vec<_>>()[..]
        else {
            panic!("{row}");
        };
        let values: Vec<Value> = serde_json::from_str(values).expect(row);
        rows.extend(values.into_iter().map(|value| (field, said, value)));
    }
    rows
}

#[tokio::test]
async fn bad_fields_are_refused_by_name() {
    let service = Service::start(Fake::babbling());
    let with = |field: &str, value: Value| {
        let mut body = json!({"prompt": "x"});
        body[field] = value;
        body
    };
    let biases = (0..1025).map(|id| (id.to_string(), json!(1)));
    let long = [
        ("prompt", "invalid_value", json!(vec!["x"; 17])),
        ("prompt", "context_length_exceeded", json!(vec![5; 4096])),
        (
            "prompt",
            "context_length_exceeded",
            json!("a ".repeat(4096)),
        ),
        (
            "prompt",
            "context_length_exceeded",
            json!("x".repeat(500_000)),
        ),
        ("stop", "invalid_value", json!(vec!["a"; 17])),
        (
            "stop",
            "invalid_value",
            json!(["a".repeat(5000), "b".repeat(5000)]),
        ),
        ("stop_token_ids", "invalid_value", json!(vec![1; 65])),
        ("logprob_token_ids", "invalid_value", json!(vec![1; 129])),
        (
            "logit_bias",
            "invalid_value",
            Value::Object(biases.collect()),
        ),
        (
            "structured_outputs",
            "invalid_value",
            json!({"regex": "x".repeat(200_000)}),
        ),
    ];
    let mut table = Vec::from(long);
    table.extend(each_row(REFUSED));
    let mut refused = 0;
    for (param, code, value) in table {
        let body = with(param, value.clone());
        let response = service.completion(&body).send().await.unwrap();
        let status = if code == "model_not_found" { 404 } else { 400 };
        let value = value.to_string();
        assert_eq!(
            error_of(response).await,
            (status, code.to_owned(), json!(param)),
            "{param}: {}",
            &value[..value.len().min(80)]
        );
        refused += 1;
    }
    let outcome = service.count("invalid");
    assert_eq!(outcome, refused, "each is counted once");
    assert_eq!(
        service.metrics.prompt_tokens_total.get(),
        0,
        "none reached the engine"
    );
}

#[tokio::test]
async fn fields_that_contradict_each_other_are_refused() {
    let service = Service::start(Fake::babbling());
    for (param, body) in [
        (
            "max_completion_tokens",
            json!({"max_tokens": 3, "max_completion_tokens": 4}),
        ),
        ("max_completion_tokens", json!({"max_completion_tokens": 0})),
        ("best_of", json!({"n": 3, "best_of": 2})),
        // There is room for 144 generations.
        ("n", json!({"prompt": vec!["x"; 10], "n": 15})),
        (
            "best_of",
            json!({"prompt": vec!["x"; 10], "n": 2, "best_of": 15}),
        ),
        ("best_of", json!({"n": 1, "best_of": 2, "stream": true})),
        ("min_tokens", json!({"min_tokens": 4, "max_tokens": 3})),
        ("suffix", json!({"suffix": "x", "echo": true})),
        (
            "prompt_logprobs",
            json!({"prompt_logprobs": 1, "stream": true}),
        ),
        (
            "structured_outputs",
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
        ),
    ] {
        let mut body = body;
        body["prompt"] = body.get("prompt").cloned().unwrap_or(json!("x"));
        let response = service.completion(&body).send().await.unwrap();
        let expected = (400, "invalid_value".into(), json!(param));
        assert_eq!(error_of(response).await, expected, "{body}");
    }
}

#[tokio::test]
async fn a_refusal_names_the_length_as_the_request_did() {
    let service = Service::start(Fake::babbling());
    for field in ["max_tokens", "max_completion_tokens"] {
        let body = json!({"prompt": "x", field: 4096});
        let response = service.completion(&body).send().await.unwrap();
        let expected = (400, "context_length_exceeded".into(), json!(field));
        assert_eq!(error_of(response).await, expected);

        let body = json!({"prompt": "x", field: 3, "min_tokens": 4});
        let response = service.completion(&body).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(message, format!("'min_tokens' must be at most '{field}'"));
    }
}

#[tokio::test]
async fn an_id_that_is_biased_twice_is_refused() {
    let service = Service::start(Fake::babbling());
    for biases in [r#"{"5": 1, "5": 2}"#, r#"{"5": 1, "05": 2}"#] {
        let body = format!("{{\"prompt\": \"x\", \"logit_bias\": {biases}}}");
        let request = service.client.post(service.url("/v1/completions"));
        let request = request.header("content-type", "application/json");
        let response = request.body(body).send().await.unwrap();
        let expected = (400, "invalid_value".into(), json!("logit_bias"));
        assert_eq!(error_of(response).await, expected, "{biases}");
    }
}

#[tokio::test]
async fn every_limit_can_be_set_and_a_strict_server_refuses_what_nobody_knows() {
    let options = Options {
        limits: Limits {
            body_bytes: 500,
            prompts: 2,
            choices: 3,
            tokens: 5,
            stops: 1,
            strict: true,
            ..Limits::default()
        },
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let most = json!({"prompt": ["x", "y"], "n": 3, "max_tokens": 5, "stop": "zz", "user": "u"});
    service.complete(most).await;
    for (param, code, body) in [
        (
            "prompt",
            "invalid_value",
            json!({"prompt": ["x", "y", "z"]}),
        ),
        ("n", "invalid_value", json!({"n": 4})),
        ("best_of", "invalid_value", json!({"best_of": 4})),
        ("max_tokens", "invalid_value", json!({"max_tokens": 6})),
        (
            "max_completion_tokens",
            "invalid_value",
            json!({"max_completion_tokens": 6}),
        ),
        ("stop", "invalid_value", json!({"stop": ["a", "b"]})),
        ("zeta", "unknown_parameter", json!({"zeta": 1})),
        (
            "stream_options.more",
            "unknown_parameter",
            json!({"stream": true, "stream_options": {"more": true}}),
        ),
    ] {
        let mut body = body;
        body["max_tokens"] = body.get("max_tokens").cloned().unwrap_or(json!(5));
        if body.get("max_completion_tokens").is_some() {
            body["max_tokens"] = json!(null);
        }
        body["prompt"] = body.get("prompt").cloned().unwrap_or(json!("x"));
        let response = service.completion(&body).send().await.unwrap();
        let expected = (400, code.to_owned(), json!(param));
        assert_eq!(error_of(response).await, expected, "{body}");
    }
    let body = json!({"prompt": "x".repeat(600)});
    let response = service.completion(&body).send().await.unwrap();
    assert_eq!(error_of(response).await.0, 413);
}

#[tokio::test]
async fn stream_options_must_be_well_formed_with_stream_too() {
    let service = Service::start(Fake::babbling());
    for options in [json!(true), json!([1]), json!({"include_usage": "yes"})] {
        let body = json!({"prompt": "x", "stream": true, "stream_options": options});
        let response = service.completion(&body).send().await.unwrap();
        let param = json!("stream_options");
        assert_eq!(
            error_of(response).await,
            (400, "invalid_value".into(), param)
        );
    }
}

#[tokio::test]
async fn bodies_that_are_not_json_objects_are_refused() {
    let service = Service::start(Fake::babbling());
    let deep = format!(
        "{{\"prompt\": {}1{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let bodies: [(&[u8], &str); 10] = [
        (b"\xff\xfe{\0}\0", "json_parse_error"),
        (b"", "json_parse_error"),
        (b"{", "json_parse_error"),
        (b"[]", "json_parse_error"),
        (b"\"x\"", "json_parse_error"),
        (b"{\"prompt\": NaN}", "json_parse_error"),
        (b"{\"prompt\": \"x\"} tail", "json_parse_error"),
        (b"{\"prompt\": \"\xff\"}", "json_parse_error"),
        (b"{\"prompt\": \"\\ud800\"}", "invalid_value"),
        (deep.as_bytes(), "invalid_value"),
    ];
    for (body, code) in bodies {
        let request = service
            .client
            .post(service.url("/v1/completions"))
            .header("content-type", "application/json")
            .body(body.to_vec());
        let (status, found, _) = error_of(request.send().await.unwrap()).await;
        assert_eq!(
            (status, found.as_str()),
            (400, code),
            "{:?}",
            body.get(..20)
        );
    }
}

#[tokio::test]
async fn bodies_of_other_types_and_sizes_are_refused() {
    let service = Service::start(Fake::babbling());
    let post = || service.client.post(service.url("/v1/completions"));
    let small = r#"{"prompt": "x"}"#;
    let json_type = ("content-type", "application/json; charset=utf-8");
    for (request, status, code) in [
        (post().body(small), 415, "unsupported_media_type"),
        (
            post().body(small).header("content-type", "text/plain"),
            415,
            "unsupported_media_type",
        ),
        (
            post()
                .body(small)
                .header(json_type.0, json_type.1)
                .header("content-encoding", "gzip"),
            415,
            "unsupported_media_type",
        ),
        (
            post()
                .body(small)
                .header("content-type", "application/json; charset=utf-16"),
            415,
            "unsupported_media_type",
        ),
        (
            post()
                .body(" ".repeat((1 << 20) + 1))
                .header(json_type.0, json_type.1),
            413,
            "body_too_large",
        ),
        (
            post()
                .body(" ".repeat(6 << 20))
                .header(json_type.0, json_type.1),
            413,
            "body_too_large",
        ),
    ] {
        let (found_status, found, _) = error_of(request.send().await.unwrap()).await;
        assert_eq!((found_status, found.as_str()), (status, code));
    }
    // A body of exactly 1 MiB is accepted.
    let mut body = small.to_owned();
    body += &" ".repeat((1 << 20) - small.len());
    let request = post().body(body).header(json_type.0, json_type.1);
    assert_eq!(request.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn unknown_paths_and_methods_have_the_same_kind_of_body() {
    let service = Service::start(Fake::babbling());
    for path in [
        "/v1",
        "/v1/completions/",
        "/v1/chat",
        "/v1/models/other",
        "/..%2f",
    ] {
        let (status, code, _) = error_of(service.get(path).await).await;
        let expected = if path == "/v1/models/other" {
            "model_not_found"
        } else {
            "not_found"
        };
        assert_eq!((status, code.as_str()), (404, expected), "{path}");
    }
    for (method, path, allow) in [
        (reqwest::Method::DELETE, "/v1/completions", "POST"),
        (reqwest::Method::GET, "/v1/completions", "POST"),
        (reqwest::Method::GET, "/v1/chat/completions", "POST"),
        (reqwest::Method::POST, "/v1/models", "GET,HEAD"),
        (reqwest::Method::PUT, "/metrics", "GET,HEAD"),
    ] {
        let request = service.client.request(method.clone(), service.url(path));
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["allow"], allow, "{method} {path}");
        let (status, code, _) = error_of(response).await;
        assert_eq!(
            (status, code.as_str()),
            (405, "method_not_allowed"),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn scores_are_bounded_before_any_is_computed() {
    let service = Service::start(Fake::babbling());
    let prompts = vec![vec![60; 4000]; 16];
    for (param, body) in [
        ("prompt_logprobs", json!({"prompt_logprobs": 20})),
        ("logprobs", json!({"logprobs": 20, "echo": true})),
        (
            "logprob_token_ids",
            json!({"n": 16, "max_tokens": 4000, "logprob_token_ids": (60..160).collect::<Vec<_>>()}),
        ),
    ] {
        let mut body = body;
        body["prompt"] = match param {
            "logprob_token_ids" => json!("x"),
            _ => json!(prompts),
        };
        let response = service.completion(&body).send().await.unwrap();
        let (status, code, found) = error_of(response).await;
        assert_eq!((status, &*code), (400, "invalid_value"), "{param}");
        assert_eq!(found, json!(param));
    }
    assert_eq!(service.metrics.prompt_tokens_total.get(), 0);
}

#[tokio::test]
async fn a_context_that_is_exceeded_is_told_in_the_words_that_clients_look_for() {
    let options = Options {
        chat_template: Some("{% for m in messages %}{{ m.content }}{% endfor %}"),
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let long = "ab ".repeat(3000);
    for (path, body) in [
        (
            "/v1/completions",
            json!({"prompt": [60, 61], "max_tokens": 4095}),
        ),
        ("/v1/completions", json!({"prompt": vec![60; 5000]})),
        ("/v1/completions", json!({"prompt": long})),
        ("/v1/completions", json!({"prompt": "x".repeat(500_000)})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": long}]}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 4096}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x".repeat(500_000)}]}),
        ),
        ("/detokenize", json!({"tokens": vec![60; 5000]})),
    ] {
        let request = service.client.post(service.url(path)).json(&body);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 400, "{path}");
        let error: Value = response.json().await.unwrap();
        let message = error["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("maximum context length is 4096 tokens"),
            "{path}: {message}"
        );
        assert_eq!(error["error"]["code"], "context_length_exceeded");
    }
}
