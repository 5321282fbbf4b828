//! Tests of requests to `/v1/completions` and their responses.

use serde_json::{Value, json};

use crate::fake::Fake;
use crate::harness::{END_OF_TEXT, MODEL, Service, byte_tokens, tokenizer, usage};

#[tokio::test]
async fn a_completion_has_the_shape_that_clients_expect() {
    let service = Service::start(Fake::reciting(byte_tokens("Paris. ")));
    let answer = service
        .complete(json!({"model": MODEL, "prompt": "x", "max_tokens": 5, "temperature": 0}))
        .await;
    let id = answer["id"].as_str().unwrap();
    assert!(id.starts_with("cmpl-") && id.len() > 20, "{id}");
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        answer,
        json!({
            "id": answer["id"],
            "object": "text_completion",
            "created": answer["created"],
            "model": MODEL,
            "system_fingerprint": "test-fingerprint",
            "choices": [{"index": 0, "text": "Paris", "logprobs": null, "finish_reason": "length", "stop_reason": null}],
            "usage": usage(1, 5),
        })
    );
}

#[tokio::test]
async fn the_four_forms_of_a_prompt_mean_the_same() {
    let service = Service::start(Fake::babbling());
    let ids = tokenizer().encode("the cat", 100).unwrap();
    assert!(ids.len() > 1);
    let mut texts = Vec::new();
    for prompt in [
        json!("the cat"),
        json!(["the cat"]),
        json!(ids),
        json!([ids]),
    ] {
        let body = json!({"prompt": prompt, "temperature": 0});
        let answer = service.complete(body).await;
        assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
        assert_eq!(answer["usage"]["completion_tokens"], 16, "the default");
        texts.push(answer["choices"][0]["text"].clone());
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

#[tokio::test]
async fn each_of_several_prompts_gets_the_answer_it_gets_alone() {
    let service = Service::start(Fake::babbling());
    let prompts = ["one", "two", "three", "one"];
    let body = json!({"prompt": prompts, "seed": 7, "max_tokens": 12});
    let together = service.complete(body).await;
    let mut prompt_tokens = 0;
    for (index, prompt) in prompts.iter().enumerate() {
        let body = json!({"prompt": prompt, "seed": 7, "max_tokens": 12});
        let alone = service.complete(body).await;
        assert_eq!(together["choices"][index]["index"], index);
        assert_eq!(
            together["choices"][index]["text"],
            alone["choices"][0]["text"]
        );
        prompt_tokens += alone["usage"]["prompt_tokens"].as_u64().unwrap();
    }
    assert_eq!(together["usage"], usage(prompt_tokens, 48));
}

#[tokio::test]
async fn a_seed_repeats_an_answer_and_without_one_answers_differ() {
    let service = Service::start(Fake::babbling());
    let seeded = json!({"prompt": "a", "seed": -3, "max_tokens": 32});
    assert_eq!(
        service.text(seeded.clone()).await,
        service.text(seeded).await
    );
    let free = json!({"prompt": ["a", "a"], "max_tokens": 32});
    let answer = service.complete(free).await;
    assert_ne!(answer["choices"][0]["text"], answer["choices"][1]["text"]);
}

#[tokio::test]
async fn the_end_of_text_ends_the_answer_and_special_tokens_are_no_text() {
    let mut tokens = byte_tokens("Yes");
    tokens.insert(1, 317); // <|unused_1|>
    tokens.push(END_OF_TEXT);
    let service = Service::start(Fake::reciting(tokens));
    let answer = service
        .complete(json!({"prompt": "x", "temperature": 0}))
        .await;
    assert_eq!(answer["choices"][0]["text"], "Yes");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 5, "the end counts");
}

#[tokio::test]
async fn special_tokens_written_in_a_prompt_are_special() {
    let service = Service::start(Fake::reciting(byte_tokens("x")));
    let body = json!({"prompt": "<|unused_1|><|end_of_text|>"});
    let answer = service.complete(body).await;
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it() {
    let service = Service::start(Fake::reciting(byte_tokens("one two\n\nQ: three ")));
    for (stop, text, reason) in [
        (json!("\n\nQ"), "one two", "stop"),
        (json!(["Q:", " two"]), "one", "stop"),
        (json!(["nope", "three !"]), "one two\n\nQ: three ", "length"),
        (json!([]), "one two\n\nQ: three ", "length"),
        (Value::Null, "one two\n\nQ: three ", "length"),
    ] {
        let body = json!({"prompt": "x", "max_tokens": 18, "temperature": 0, "stop": stop});
        let answer = service.complete(body).await;
        assert_eq!(answer["choices"][0]["text"], text, "{stop}");
        assert_eq!(answer["choices"][0]["finish_reason"], reason, "{stop}");
        let ended_by = answer["choices"][0]["stop_reason"].is_string();
        assert_eq!(ended_by, reason == "stop", "{stop}");
    }
}

#[tokio::test]
async fn values_that_change_nothing_are_accepted_and_unknown_fields_reported() {
    let service = Service::start(Fake::reciting(byte_tokens("ok")));
    let neutral = json!({
        "prompt": "x", "n": 1, "best_of": 1, "echo": false, "logprobs": null, "suffix": "",
        "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "user": "u",
        "temperature": null, "top_k": -1, "repetition_penalty": 1, "min_tokens": 0, "priority": 0,
        "response_format": {"type": "text"}, "use_beam_search": false, "bad_words": [], "ignore_eos": false, "max_completion_tokens": 3, "stream_options": null,
    });
    let response = service.completion(&neutral).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().get("x-ignored-params"), None);

    let body = json!({"prompt": "x", "zeta": 1, "best": [2], "bad name\n": 3, "priority": -1});
    let response = service.completion(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-ignored-params"], "best, zeta");
}

#[tokio::test]
async fn a_harmless_request_id_comes_back_and_others_are_replaced() {
    let service = Service::start(Fake::babbling());
    let id_of = async |sent: &str| {
        let request = service.client.get(service.url("/v1/models"));
        let response = request.header("x-request-id", sent).send().await.unwrap();
        response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(id_of("Client_4-2").await, "Client_4-2");
    for bad in ["", "a b", "new\tline", "ä", &"x".repeat(65)] {
        let id = id_of(bad).await;
        assert!(id != bad && id.len() == 32, "{bad:?} → {id:?}");
    }
}

#[tokio::test]
async fn the_model_is_listed_with_its_context() {
    let service = Service::start(Fake::babbling());
    let card = json!({
        "id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "microgranite",
        "root": "tests", "parent": null, "max_model_len": 4096,
        "capabilities": {"completions": true, "chat_completions": false, "tools": false, "reasoning": false, "embeddings": false},
        "quantization": {
            "scheme": {"mapping": "symmetric", "granularity": "channel", "range": "absmax", "rotation": "full"},
            "kernel": "", "parameters": 0, "weight_bytes": 0, "weight_bytes_f32": 0,
            "kv_cache_bytes": 0, "recurrent_state_bytes": 0, "accuracy": null,
            "signature": "off", "savings": null,
        },
        "default_generation": {},
        "canary": {"state": "off", "last_run": null},
    });
    let list: Value = service.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list, json!({"object": "list", "data": [card]}));
    let one = service.get(&format!("/v1/models/{MODEL}")).await;
    assert_eq!(one.json::<Value>().await.unwrap(), card);
}

/// KServe and its clients ask these.
#[tokio::test]
async fn the_open_inference_protocols_probes_answer_in_its_form() {
    let service = Service::start(Fake::babbling());
    let encoded = MODEL.replace('/', "%2F");
    for (path, expected) in [
        ("/v2/health/live", json!({"live": true})),
        ("/v2/health/ready", json!({"ready": true})),
        (
            &format!("/v2/models/{encoded}/ready"),
            json!({"name": MODEL, "ready": true}),
        ),
    ] {
        let answer: Value = service.get(path).await.json().await.unwrap();
        assert_eq!(answer, expected, "{path}");
    }
    let other = service.get("/v2/models/other/ready").await;
    assert_eq!(other.status(), 404);
    let text = other.text().await.unwrap();
    assert!(!text.contains(MODEL), "no key was sent: {text}");
    for path in ["/v2/models//ready", "/v2/models/a/b/ready", "/v2/models"] {
        assert_eq!(service.get(path).await.status(), 404, "{path}");
    }
}

#[tokio::test]
async fn probes_say_what_state_the_service_is_in() {
    let service = Service::start(Fake::babbling());
    for path in ["/health", "/livez", "/readyz", "/version", "/metrics"] {
        assert_eq!(service.get(path).await.status(), 200, "{path}");
    }
    let version: Value = service.get("/version").await.json().await.unwrap();
    let build = json!({"version": env!("CARGO_PKG_VERSION"), "build": microgranite::build::ID});
    assert_eq!(version, build);

    let loading = Service::loading();
    for (path, status) in [
        ("/livez", 200),
        ("/metrics", 200),
        ("/version", 200),
        ("/health", 503),
        ("/readyz", 503),
        ("/v2/health/live", 200),
        ("/v2/health/ready", 503),
        ("/v2/models/anything/ready", 503),
        ("/v1/models", 503),
    ] {
        let response = loading.get(path).await;
        assert_eq!(response.status(), status, "{path}");
        if status == 503 {
            assert_eq!(response.headers()["retry-after"], "1", "{path}");
            let error: Value = response.json().await.unwrap();
            assert_eq!(error["error"]["code"], "loading", "{path}");
        }
    }
}
