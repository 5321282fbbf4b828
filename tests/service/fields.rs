//! Tests of the effect of each field of `POST /v1/completions`, as a client sees it.

mod ends;
mod log_probabilities;

use microgranite::text::Tokenizer;
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::harness::{Options, Service, byte_tokens, fixture, streamed_text};

/// A choice, joined from a stream's events.
fn put_together(events: &[Value], index: u64) -> Value {
    let mut whole = json!({"index": index, "text": "", "logprobs": null});
    for event in events {
        for choice in event["choices"].as_array().unwrap() {
            if choice["index"] != index {
                continue;
            }
            let text = whole["text"].as_str().unwrap().to_owned();
            whole["text"] = json!(text + choice["text"].as_str().unwrap());
            for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                extend(&mut whole["logprobs"][list], &choice["logprobs"][list]);
            }
            extend(&mut whole["token_ids"], &choice["token_ids"]);
            for last in ["finish_reason", "stop_reason"] {
                whole[last] = choice[last].clone();
            }
            if let Some(ids) = choice.get("prompt_token_ids") {
                whole["prompt_token_ids"] = ids.clone();
            }
        }
    }
    for field in ["logprobs", "token_ids"] {
        let is_empty = match &whole[field] {
            Value::Object(lists) => lists.values().all(Value::is_null),
            other => other.is_null(),
        };
        if is_empty {
            whole[field] = Value::Null;
        }
    }
    whole
}

fn extend(list: &mut Value, more: &Value) {
    if let Some(more) = more.as_array() {
        if list.is_null() {
            *list = json!([]);
        }
        list.as_array_mut().unwrap().extend(more.iter().cloned());
    }
}

#[tokio::test]
async fn a_stream_put_together_is_the_whole_whatever_the_options() {
    let service = Service::start(Fake::babbling());
    let options = [
        json!({}),
        json!({"logprobs": 3}),
        json!({"logprobs": 0, "echo": true}),
        json!({"echo": true, "prompt": ["é 字", "second"], "logprobs": 2}),
        json!({"echo": true, "max_tokens": 0, "logprobs": 1}),
        json!({"echo": true, "max_tokens": 0}),
        json!({"n": 3, "return_token_ids": true}),
        json!({"n": 2, "prompt": ["a", "b"], "logprobs": 1, "return_token_ids": true, "echo": true}),
        json!({"stop": ["a", "e"], "logprobs": 1, "include_stop_str_in_output": true}),
        json!({"stop": ["a", "e"], "min_tokens": 12}),
        json!({"stop_token_ids": (100..200).collect::<Vec<_>>().split_at(60).0, "include_stop_str_in_output": true}),
        json!({"presence_penalty": 1.5, "frequency_penalty": -1, "repetition_penalty": 1.2, "top_k": 40}),
        json!({"logit_bias": {"60": 5, "61": -100}, "top_p": 0.9, "min_p": 0.01}),
        json!({"structured_outputs": {"regex": "[a-z]{3,9}[0-9]"}, "logprobs": 1}),
        json!({"response_format": {"type": "json_object"}, "max_tokens": 30}),
        json!({"truncate_prompt_tokens": 2, "echo": true}),
        json!({"ignore_eos": true, "bad_words": ["the", "a"], "allowed_token_ids": [40, 50, 60, 70]}),
    ];
    for option in options {
        let mut body = json!({"prompt": "the cat", "seed": 5, "max_tokens": 20});
        for (field, value) in option.as_object().unwrap() {
            body[field] = value.clone();
        }
        let whole = service.complete(body.clone()).await;
        let choices = whole["choices"].as_array().unwrap();
        let events = service.events(body).await;
        for (index, choice) in (0..).zip(choices) {
            let mut choice = choice.clone();
            if choice.get("token_ids").is_none() {
                choice["token_ids"] = Value::Null;
            }
            assert_eq!(put_together(&events, index), choice, "{option}");
        }
    }
}

#[tokio::test]
async fn several_answers_have_seeds_that_count_up_and_places_in_order() {
    let service = Service::start(Fake::babbling());
    let body = json!({"prompt": ["a", "b"], "n": 3, "seed": 40, "max_tokens": 12});
    let answer = service.complete(body).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    assert_eq!(
        answer["usage"]["prompt_tokens"], 2,
        "each prompt counts once"
    );
    assert_eq!(answer["usage"]["completion_tokens"], 72);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let body =
            json!({"prompt": (["a", "b"][index / 3]), "seed": 40 + index % 3, "max_tokens": 12});
        assert_eq!(choice["text"], service.text(body).await, "{index}");
    }
    assert_ne!(choices[0]["text"], choices[1]["text"]);
}

#[tokio::test]
async fn best_of_gives_the_likeliest_and_counts_all() {
    let service = Service::start(Fake::babbling());
    let of_all = json!({"prompt": "a", "n": 5, "seed": 1, "max_tokens": 8, "logprobs": 0});
    let all = service.complete(of_all).await;
    let mut ranked: Vec<(f64, Value)> = all["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| {
            let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
            let sum: f64 = logprobs.iter().map(|value| value.as_f64().unwrap()).sum();
            (sum, choice["text"].clone())
        })
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let body = json!({"prompt": "a", "n": 2, "best_of": 5, "seed": 1, "max_tokens": 8});
    let best = service.complete(body).await;
    assert_eq!(best["choices"].as_array().unwrap().len(), 2);
    for (index, (_, text)) in ranked.iter().take(2).enumerate() {
        assert_eq!(best["choices"][index]["text"], *text);
        assert_eq!(best["choices"][index]["index"], index);
        assert_eq!(best["choices"][index]["logprobs"], Value::Null);
    }
    assert_eq!(best["usage"]["completion_tokens"], 40);
    // With `echo` the choices are the same: no score of a generated token is taken for one of the prompt.
    let body = json!({"prompt": "a b c", "n": 1, "best_of": 5, "seed": 1, "max_tokens": 1});
    let plain = service.text(body.clone()).await;
    let mut echoed = body;
    echoed["echo"] = json!(true);
    assert_eq!(service.text(echoed).await, format!("a b c{plain}"));
}

#[tokio::test]
async fn biases_and_penalties_change_what_comes() {
    let service = Service::start(Fake::reciting(byte_tokens("a")));
    let [a, b] = ["a", "b"].map(|letter| byte_tokens(letter)[0].to_string());
    let body = |options: Value| {
        let mut body = json!({"prompt": "x", "temperature": 0, "max_tokens": 4});
        for (field, value) in options.as_object().unwrap() {
            body[field] = value.clone();
        }
        body
    };
    let biased = body(json!({"logit_bias": {(&*a): -100, (&*b): 0.5}}));
    assert_eq!(service.text(biased).await, "bbbb");
    let allowed = body(json!({"allowed_token_ids": [byte_tokens("b")[0]]}));
    assert_eq!(service.text(allowed).await, "bbbb");
    let banned = body(json!({"bad_words": ["a"], "logit_bias": {(&*b): 1}}));
    assert_eq!(service.text(banned).await, "bbbb");
    // The penalty divides the logits of tokens that have occurred by 100.
    let repeated = body(json!({"repetition_penalty": 100, "logit_bias": {(&*b): 2}}));
    assert_eq!(service.text(repeated).await, "abaa");
}

#[tokio::test]
async fn structured_outputs_match_their_grammar_at_any_temperature() {
    let service = Service::start(Fake::babbling());
    let schema = json!({
        "type": "object", "required": ["ok", "kind"], "additionalProperties": false,
        "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["x", "yy"]}},
    });
    for seed in 0..10 {
        let ask = async |field: &str, value: Value| {
            let body = json!({"prompt": "x", "seed": seed, "max_tokens": 60, field: value});
            let choice = service.complete(body).await["choices"][0].clone();
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            choice["text"].as_str().unwrap().to_owned()
        };
        let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
        for text in [
            ask("response_format", format).await,
            ask("structured_outputs", json!({"json": schema})).await,
            ask("structured_outputs", json!({"json": schema.to_string()})).await,
        ] {
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(
                value["ok"].is_boolean() && value.as_object().unwrap().len() == 2,
                "{text}"
            );
        }
        let choice = ask("structured_outputs", json!({"choice": ["left", "right"]})).await;
        assert!(choice == "left" || choice == "right");
        let regex = ask("structured_outputs", json!({"regex": "[0-9]{3}-[a-f]"})).await;
        assert!(regex.len() == 5 && regex.as_bytes()[3] == b'-', "{regex}");
        let lark = ask(
            "structured_outputs",
            json!({"grammar": "start: \"(\" start \")\" | \"x\""}),
        )
        .await;
        assert!(lark.contains('x'));
    }
}

#[tokio::test]
async fn a_prompt_can_be_truncated_to_either_side() {
    let service = Service::start(Fake::babbling());
    // The prompt as ids, and as a text that has more bytes than any context.
    for long in [json!(vec![60; 5000]), json!("a b ".repeat(20_000))] {
        let body = json!({"prompt": long, "truncate_prompt_tokens": -1, "max_tokens": 2});
        assert_eq!(service.complete(body).await["usage"]["prompt_tokens"], 4094);
    }
    let body =
        json!({"prompt": "abcdef", "truncate_prompt_tokens": 2, "echo": true, "max_tokens": 0});
    let answer = service.complete(body.clone()).await;
    assert_eq!(answer["choices"][0]["text"], "ef");
    let mut body = body;
    body["truncation_side"] = "right".into();
    let answer = service.complete(body).await;
    assert_eq!(answer["choices"][0]["text"], "ab");
}

#[tokio::test]
async fn a_salt_keeps_prompts_apart_in_the_cache() {
    let service = Service::start(Fake::babbling());
    let prompt: Vec<u32> = (60..200).collect();
    let cached = async |salt: Value| {
        let body = json!({"prompt": prompt, "max_tokens": 1, "cache_salt": salt});
        let usage = service.complete(body).await["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].clone()
    };
    for salt in [Value::Null, "one".into(), "two".into()] {
        assert_eq!(cached(salt.clone()).await, 0, "{salt}");
        assert_eq!(cached(salt.clone()).await, 128, "{salt}");
    }
}

#[tokio::test]
async fn token_ids_are_given_beside_the_text() {
    let service = Service::start(Fake::reciting(byte_tokens("ab")));
    let body = json!({"prompt": [60], "max_tokens": 3, "temperature": 0, "return_token_ids": true});
    let choice = service.complete(body).await["choices"][0].clone();
    assert_eq!(choice["prompt_token_ids"], json!([60]));
    assert_eq!(choice["token_ids"], json!(byte_tokens("aba")));
    let body = json!({"prompt": [60], "max_tokens": 1, "temperature": 0, "logprobs": 0, "return_tokens_as_token_ids": true});
    let logprobs = service.complete(body).await["choices"][0]["logprobs"].clone();
    let name = format!("token_id:{}", byte_tokens("a")[0]);
    assert_eq!(logprobs["tokens"], json!([name]));
    assert!(logprobs["top_logprobs"][0][&name].is_number());
}

#[tokio::test]
async fn usage_can_come_with_every_event() {
    let service = Service::start(Fake::reciting(byte_tokens("ab")));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"prompt": "x", "max_tokens": 3, "temperature": 0, "stream_options": options});
    let events = service.events(body).await;
    let counts: Vec<&Value> = events
        .iter()
        .map(|event| &event["usage"]["completion_tokens"])
        .collect();
    assert_eq!(counts.last(), Some(&&json!(3)));
    assert!(
        counts
            .windows(2)
            .all(|pair| pair[0].as_u64() <= pair[1].as_u64())
    );
    assert_eq!(counts[0], 1);
    assert_eq!(streamed_text(&events, 0), "aba");
}

#[tokio::test]
async fn a_suffix_is_put_behind_the_gap() {
    let file = fixture("granite-3-tiny").join("tokenizer.json");
    let text = std::fs::read_to_string(&file).unwrap();
    // The spellings of Granite 4 and Granite 3.
    for [prefix, suffix, middle] in [
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ] {
        let text = text
            .replace("<|unused_1|>", prefix)
            .replace("<|unused_2|>", suffix)
            .replace("<|unused_3|>", middle);
        let inner = text.parse().unwrap();
        let options = Options {
            tokenizer: Some(Tokenizer::new(inner, &file).unwrap()),
            ..Options::default()
        };
        let service = Service::with(Fake::babbling(), options);
        let body = json!({"prompt": "a", "suffix": "z", "return_token_ids": true});
        let ids = service.complete(body).await["choices"][0]["prompt_token_ids"].clone();
        let [a, z] = ["a", "z"].map(|letter| byte_tokens(letter)[0]);
        assert_eq!(ids, json!([317, a, 318, z, 319]));
    }
}

#[tokio::test]
async fn usage_tells_how_much_of_the_prompts_came_from_the_cache() {
    let service = Service::start(Fake::babbling());
    let prompt: Vec<u32> = (0..200).map(|at| 20 + at % 250).collect();
    let cached = async |more: Value| {
        let mut body = json!({"prompt": prompt, "max_tokens": 2, "seed": 1});
        for (field, value) in more.as_object().unwrap() {
            body[field] = value.clone();
        }
        let whole = service.complete(body.clone()).await["usage"]["prompt_tokens_details"].clone();
        whole["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(json!({})).await, 0);
    assert_eq!(cached(json!({})).await, 192, "three pages of 64");
    assert_eq!(
        cached(json!({"n": 3})).await,
        192,
        "each prompt counts once"
    );
    let scored = json!({"echo": true, "logprobs": 0});
    assert_eq!(cached(scored).await, 0, "a scored prompt is computed");
}

#[tokio::test]
async fn whole_numbers_may_be_written_as_any_language_writes_them() {
    let service = Service::start(Fake::babbling());
    let a = byte_tokens("a")[0];
    let plain = json!({
        "prompt": [a, a], "max_tokens": 6, "seed": 10, "n": 2, "best_of": 2, "top_k": 40, "logprobs": 1, "min_tokens": 1,
        "truncate_prompt_tokens": 1, "allowed_token_ids": [60, 61, 62], "stop_token_ids": [62], "priority": 0,
    });
    let text = format!(
        r#"{{"prompt": [{a}.0, {a}.0], "max_tokens": 6.0, "seed": 1e1, "n": 2.0, "best_of": 2e0, "top_k": 4.0e1, "logprobs": 1.0, "min_tokens": 1.0,
        "truncate_prompt_tokens": 1.0, "allowed_token_ids": [60.0, 6.1e1, 62], "stop_token_ids": [62.0], "priority": 0.0}}"#
    );
    let request = service.client.post(service.url("/v1/completions"));
    let request = request
        .header("content-type", "application/json")
        .body(text);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["choices"], service.complete(plain).await["choices"]);
    for number in ["16.5", "1e300", "-1.0", "\"16\"", "true"] {
        let body = format!("{{\"prompt\": \"x\", \"max_tokens\": {number}}}");
        let request = service.client.post(service.url("/v1/completions"));
        let request = request
            .header("content-type", "application/json")
            .body(body);
        assert_eq!(request.send().await.unwrap().status(), 400, "{number}");
    }
}

#[tokio::test]
async fn a_body_is_taken_however_clients_label_it() {
    let service = Service::start(Fake::babbling());
    let send = async |kind: &str, encoding: Option<&str>, body: &str| {
        let request = service.client.post(service.url("/v1/completions"));
        let mut request = request.header("content-type", kind).body(body.to_owned());
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        request.send().await.unwrap().status().as_u16()
    };
    let body = "{\"prompt\": \"x\", \"logprobs\": false}";
    let marked = format!("\u{feff}{body}");
    for (kind, encoding, body) in [
        ("application/json", None, &*marked),
        ("application/json; charset=utf8", None, body),
        ("application/json;charset=UTF8", None, body),
        ("Application/JSON; Charset=\"utf-8\"", None, body),
        ("application/json; charset='UTF-8'", Some(""), body),
        ("application/json", Some(" "), body),
        ("application/json", Some("Identity"), body),
    ] {
        assert_eq!(send(kind, encoding, body).await, 200, "{kind} {encoding:?}");
    }
    for (kind, encoding) in [
        ("application/json; charset=latin-1", None),
        ("application/json", Some("gzip")),
        ("application/json", Some("identity, gzip")),
    ] {
        assert_eq!(send(kind, encoding, body).await, 415, "{kind} {encoding:?}");
    }
}

#[tokio::test]
async fn special_tokens_are_written_out_if_asked() {
    let mut tokens = byte_tokens("a");
    tokens.extend([317, 318]);
    let service = Service::start(Fake::reciting(tokens));
    let body = json!({"prompt": [60], "max_tokens": 4, "temperature": 0});
    assert_eq!(service.text(body.clone()).await, "aa");
    let mut shown = body;
    shown["skip_special_tokens"] = json!(false);
    shown["spaces_between_special_tokens"] = json!(true);
    let expected = "a<|unused_1|><|unused_2|>a";
    assert_eq!(service.text(shown.clone()).await, expected);
    assert_eq!(
        streamed_text(&service.events(shown.clone()).await, 0),
        expected
    );
    // Clients use this to look for a certain token.
    shown["allowed_token_ids"] = json!([318]);
    assert_eq!(service.text(shown).await, "<|unused_2|>".repeat(4));
}
