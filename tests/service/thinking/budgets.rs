//! Tests of budgets of thoughts.

use serde_json::{Value, json};

use super::{CHAT, ask, ask_program, checkpoint, serving, tools, writing};

#[tokio::test]
async fn a_budget_ends_a_thought_and_leaves_the_answer_alone() {
    let service = serving(writing("one two three four five six seven eight nine ten"));
    for name in [
        "thinking_token_budget",
        "thinking_budget",
        "thinking_budget_tokens",
        "reasoning_budget_tokens",
        "reasoning_budget",
    ] {
        let answer = ask(&service, json!({name: 6, "max_tokens": 40})).await;
        let details = &answer["usage"]["completion_tokens_details"];
        let count = details["reasoning_tokens"].as_u64().unwrap();
        assert!((5..=6).contains(&count), "{answer}");
        assert!(
            answer["choices"][0]["message"]["content"].is_string(),
            "{answer}"
        );
        assert_eq!(answer["usage"]["completion_tokens"], 40);
    }
    let nested = json!({"reasoning": {"max_tokens": 6}, "max_tokens": 40});
    assert!(ask(&service, nested).await["choices"][0]["message"]["content"].is_string());
    // A quarter of the tokens is reserved for the answer.
    let shared = json!({"answer_share": 0.25, "max_tokens": 16});
    let answer = ask(&service, shared).await;
    let details = &answer["usage"]["completion_tokens_details"];
    let count = details["reasoning_tokens"].as_u64().unwrap();
    assert!((10..=12).contains(&count), "{answer}");
    assert!(answer["choices"][0]["message"]["content"].is_string());
}

/// Sampled requests of several kinds, each under a budget of 64 tokens.
fn crowd(count: u64) -> Vec<Value> {
    let each = |seed: u64| {
        let mut body = json!({
            "messages": [{"role": "user", "content": format!("question {}", seed % 7)}],
            "seed": seed,
            "temperature": 0.4 + (seed % 5) as f64 * 0.3,
            "max_tokens": 20 + seed % 90,
            "thinking_token_budget": 64,
        });
        match seed % 4 {
            1 => body["response_format"] = json!({"type": "json_object"}),
            2 => body["tools"] = tools(),
            3 => {
                body["tools"] = tools();
                body["tool_choice"] = json!("required");
            }
            _ => {}
        }
        body
    };
    (0..count).map(each).collect()
}

async fn check_budgets(count: u64, alone: usize) {
    let (_process, url) = checkpoint();
    let url = url.trim_end_matches('/');
    let requests = crowd(count);
    let mut together = Vec::new();
    // As many concurrent requests as the batch has slots.
    for some in requests.chunks(16) {
        let answers = some.iter().map(|body| ask_program(url, CHAT, body));
        together.extend(futures_util::future::join_all(answers).await);
    }
    let mut longest = 0;
    for answer in &together {
        let details = &answer["usage"]["completion_tokens_details"];
        let tokens = details["reasoning_tokens"].as_u64().unwrap();
        assert!(tokens <= 64, "{answer}");
        longest = longest.max(tokens);
    }
    assert!(longest >= 63, "no thought was long enough to be ended");
    // The ids of calls are random each time.
    let said = |answer: &Value| {
        let mut message = answer["choices"][0]["message"].clone();
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            call["id"] = Value::Null;
        }
        (message, answer["choices"][0]["finish_reason"].clone())
    };
    for (body, answer) in requests.iter().zip(&together).take(alone) {
        assert_eq!(
            said(&ask_program(url, CHAT, body).await),
            said(answer),
            "{body}"
        );
    }
}

#[tokio::test]
async fn no_thought_is_longer_than_its_budget_and_company_changes_nothing() {
    check_budgets(48, 12).await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn no_thought_of_a_thousand_is_longer_than_its_budget() {
    check_budgets(1000, 200).await;
}
