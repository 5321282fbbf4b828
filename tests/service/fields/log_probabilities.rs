//! Tests of fields that ask for log-probabilities, of the answer and of the prompt.

use serde_json::{Value, json};

use crate::fake::{Fake, Next};
use crate::harness::{END_OF_TEXT, Service, tokenizer};

#[tokio::test]
async fn a_prompt_that_is_echoed_is_scored_token_by_token() {
    let service = Service::start(Fake::babbling());
    let ids = tokenizer().encode("é the", 100).unwrap();
    let body =
        json!({"prompt": ids, "echo": true, "logprobs": 2, "max_tokens": 2, "temperature": 0});
    let choice = service.complete(body).await["choices"][0].clone();
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    let logprobs = &choice["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let count = ids.len() + 2;
    assert_eq!(list("tokens").len(), count);
    assert_eq!(
        list("tokens")[..2],
        [json!("bytes:\\xc3"), json!("bytes:\\xa9")]
    );
    assert_eq!(list("text_offset")[..3], [json!(0), json!(0), json!(1)]);
    assert!(text.starts_with(&['é', ' ', 't', 'h', 'e']));
    assert_eq!(list("token_logprobs")[0], Value::Null);
    assert_eq!(list("top_logprobs")[0], Value::Null);
    for at in 1..count {
        let token = list("tokens")[at].as_str().unwrap().to_owned();
        let top = list("top_logprobs")[at].as_object().unwrap().clone();
        let logprob = &list("token_logprobs")[at];
        assert!(logprob.as_f64().unwrap() < 0.0);
        assert_eq!(
            &top[&token], logprob,
            "the token itself is among them, to the bit"
        );
        assert!((2..=3).contains(&top.len()), "{top:?}");
        if at >= ids.len() {
            let best = top.values().map(|value| value.as_f64().unwrap());
            assert_eq!(
                best.fold(f64::MIN, f64::max),
                logprob.as_f64().unwrap(),
                "greedy"
            );
        }
        let offset = list("text_offset")[at].as_u64().unwrap() as usize;
        if !token.starts_with("bytes:") && !token.starts_with("<|") {
            let there: String = text[offset..].iter().take(token.chars().count()).collect();
            assert_eq!(there, token);
        }
    }
}

#[tokio::test]
async fn scores_do_not_depend_on_what_shares_the_request() {
    let service = Service::start(Fake::babbling());
    let body = |prompt: Value| json!({"prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0});
    let prompts = [
        "a prompt",
        "another, longer prompt",
        "x",
        "the fourth of them",
    ];
    let together = service.complete(body(json!(prompts))).await;
    for (index, prompt) in prompts.iter().enumerate() {
        let mut alone = service.complete(body(json!(prompt))).await["choices"][0].clone();
        alone["index"] = json!(index);
        assert_eq!(together["choices"][index], alone);
    }
}

#[tokio::test]
async fn an_unlikely_token_has_a_finite_log_probability_and_an_echo_alone_generates_nothing() {
    let service = Service::start(Fake::new(|_| Next::Token(50)));
    let body = json!({"prompt": [60, 60, 50], "echo": true, "logprobs": 0, "max_tokens": 0});
    let answer = service.complete(body).await;
    let logprobs = answer["choices"][0]["logprobs"]["token_logprobs"].clone();
    assert_eq!(logprobs[1], -100.0);
    assert_eq!(logprobs[2], 0.0);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn the_end_of_text_is_scored_though_it_is_no_text() {
    let service = Service::start(Fake::reciting(vec![END_OF_TEXT]));
    let body = json!({
        "prompt": [60, 61], "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0, "return_token_ids": true,
    });
    let answer = service.complete(body).await;
    let choice = &answer["choices"][0];
    // Evaluation tools drop the last entry, because it belongs to the generated token.
    assert_eq!(
        choice["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(choice["logprobs"]["tokens"][2], "<|end_of_text|>");
    assert_eq!(choice["token_ids"], json!([END_OF_TEXT]));
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(
        answer["usage"]["completion_tokens"], 1,
        "as many as there are ids"
    );
}

#[tokio::test]
async fn the_prompts_tokens_are_scored_by_id_if_asked() {
    let service = Service::start(Fake::babbling());
    let ids = tokenizer().encode("the cat", 100).unwrap();
    let body = json!({"prompt": ids, "max_tokens": 2, "temperature": 0, "prompt_logprobs": 2});
    let answer = service.complete(body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["logprobs"], Value::Null);
    let scored = choice["prompt_logprobs"].as_array().unwrap();
    assert_eq!(scored.len(), ids.len());
    assert_eq!(scored[0], Value::Null);
    // The log-probabilities are those of an `echo`, where alternatives are named by their texts.
    let mut echoed =
        json!({"prompt": ids, "max_tokens": 2, "temperature": 0, "echo": true, "logprobs": 3});
    let echo = service.complete(echoed.clone()).await;
    let logprobs = &echo["choices"][0]["logprobs"]["token_logprobs"];
    for (at, &id) in ids.iter().enumerate().skip(1) {
        let places = scored[at].as_object().unwrap();
        assert!((2..=3).contains(&places.len()), "{places:?}");
        let own = &places[&id.to_string()];
        assert_eq!(own["logprob"], logprobs[at]);
        assert_eq!(
            own["decoded_token"],
            echo["choices"][0]["logprobs"]["tokens"][at]
        );
        let likelier = |other: &Value| other["logprob"].as_f64() > own["logprob"].as_f64();
        let before = places.values().filter(|other| likelier(other)).count();
        assert!(own["rank"].as_u64().unwrap() > before as u64);
    }
    // Both fields at once, each with its own number of alternatives.
    echoed["prompt_logprobs"] = json!(2);
    let both = service.complete(echoed).await;
    assert_eq!(
        both["choices"][0]["prompt_logprobs"],
        choice["prompt_logprobs"]
    );
    assert_eq!(
        both["choices"][0]["logprobs"],
        echo["choices"][0]["logprobs"]
    );
}

#[tokio::test]
async fn chosen_ids_are_scored_in_place_of_the_likeliest() {
    let service = Service::start(Fake::babbling());
    let chosen: Vec<u32> = (60..90).collect();
    let body = json!({
        "prompt": "x", "max_tokens": 2, "temperature": 0, "logprob_token_ids": chosen, "return_tokens_as_token_ids": true,
    });
    let answer = service.complete(body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    for at in 0..2 {
        let places = logprobs["top_logprobs"][at].as_object().unwrap();
        let own = logprobs["tokens"][at].as_str().unwrap();
        assert!(places.len() >= chosen.len());
        assert_eq!(places[own], logprobs["token_logprobs"][at]);
        for id in &chosen {
            assert!(places[&format!("token_id:{id}")].is_number());
        }
    }
}
