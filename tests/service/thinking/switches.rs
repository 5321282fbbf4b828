//! Tests of what turns thinking on and off, and of what is said of it in the prompt.

use microgranite::http::app::Defaults;
use microgranite::http::chat::thinking::{Mode, ThinkingDefaults};
use serde_json::{Value, json};

use super::{
    CHAT, TEMPLATE, TURN, ask, ask_program, body, check, ids, refusal, serving, tokenized,
    tokenizer, writing,
};
use crate::chat::send;
use crate::fake::{Fake, Next};
use crate::harness::{END_OF_TEXT, Options, Service, fixture};
use crate::process;

#[tokio::test]
async fn thinking_is_turned_off_by_each_of_its_switches() {
    let service = serving(writing("\nHello <think>"));
    for off in [
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"reasoning_effort": "none"}),
        json!({"reasoning": {"effort": "none"}}),
        json!({"reasoning": {"enabled": false}}),
        json!({"thinking_token_budget": 0}),
        json!({"thinking_budget": 0}),
        json!({"chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "high"}),
    ] {
        let answer = check(&service, off, None, Some("Hello <think>"), "stop").await;
        assert_eq!(
            answer["usage"]["completion_tokens_details"]["reasoning_tokens"],
            0
        );
    }
    // The template's own variable takes precedence over the effort.
    let on = json!({"chat_template_kwargs": {"enable_thinking": true}, "reasoning_effort": "none"});
    let answer = ask(&service, on).await;
    assert_eq!(
        answer["choices"][0]["message"]["reasoning"],
        "Hello <think>"
    );
    for (bad, field) in [
        (json!({"reasoning_effort": "much"}), "reasoning_effort"),
        (
            json!({"thinking_token_budget": -1}),
            "thinking_token_budget",
        ),
        (json!({"thinking_budget": "few"}), "thinking_budget"),
        (json!({"reasoning": 3}), "reasoning"),
        (
            json!({"reasoning": {"max_tokens": 1.5}}),
            "reasoning.max_tokens",
        ),
        (json!({"reasoning": {"effort": "much"}}), "reasoning.effort"),
        (json!({"reasoning": {"enabled": 1}}), "reasoning.enabled"),
        (json!({"reasoning": {"exclude": "x"}}), "reasoning.exclude"),
        (
            json!({"thinking_budget": 3, "thinking_token_budget": 4}),
            "thinking_budget",
        ),
        (json!({"answer_share": 1}), "answer_share"),
        (json!({"include_reasoning": 3}), "include_reasoning"),
    ] {
        let error = refusal(&service, bad).await;
        assert_eq!(error["param"], field, "{error}");
    }
}

#[tokio::test]
async fn fields_about_thinking_that_contradict_each_other_are_refused_by_name() {
    let service = serving(writing("a\n</think>\nb"));
    for (fields, param) in [
        (
            json!({"reasoning": {"max_tokens": 5}, "thinking_token_budget": 6}),
            "reasoning.max_tokens",
        ),
        (
            json!({"reasoning": {"max_tokens": 5}, "reasoning_budget": 6}),
            "reasoning.max_tokens",
        ),
        (
            json!({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}),
            "reasoning.effort",
        ),
        (
            json!({"reasoning": {"exclude": true}, "include_reasoning": true}),
            "reasoning.exclude",
        ),
        (
            json!({"reasoning": {"exclude": false}, "include_reasoning": false}),
            "reasoning.exclude",
        ),
        (
            json!({"reasoning": {"enabled": true}, "chat_template_kwargs": {"enable_thinking": false}}),
            "reasoning.enabled",
        ),
        (
            json!({"reasoning": {"enabled": false}, "chat_template_kwargs": {"enable_thinking": true}}),
            "reasoning.enabled",
        ),
        (
            json!({"reasoning": {"enabled": true}, "reasoning_effort": "none"}),
            "reasoning.enabled",
        ),
        (
            json!({"reasoning": {"enabled": true, "max_tokens": 0}}),
            "reasoning.enabled",
        ),
    ] {
        let error = refusal(&service, fields).await;
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["code"], "invalid_value", "{error}");
    }
    let agreeing = json!({
        "reasoning": {"max_tokens": 50, "effort": "high", "exclude": false, "enabled": true},
        "thinking_budget": 50, "reasoning_effort": "high", "include_reasoning": true,
        "chat_template_kwargs": {"enable_thinking": true},
    });
    check(&service, agreeing, Some("a"), Some("b"), "stop").await;
    let hidden = json!({"reasoning": {"exclude": true}, "include_reasoning": false});
    check(&service, hidden, None, Some("b"), "stop").await;
}

#[tokio::test]
async fn effort_and_past_thoughts_reach_the_template() {
    let service = serving(writing("a"));
    let tokenize = async |messages: Value, more: Value| tokenized(&service, messages, more).await;
    let user = json!({"role": "user", "content": "u"});
    let low = tokenize(json!([user]), json!({"reasoning_effort": "low"})).await;
    assert!(
        low.contains("u\n\n{reasoning effort: low}<|im_end|>"),
        "{low}"
    );
    let off = tokenize(json!([user]), json!({"reasoning_effort": "none"})).await;
    assert!(off.ends_with("<think></think>"), "{off}");
    let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]);
    let result = json!({"role": "tool", "content": "r"});
    let thought = "<|im_start|>assistant\n<think>\nfirst\n</think>\nsaid";
    for (assistant, expected) in [
        (
            json!({"content": "said", "reasoning_content": "first", "reasoning": "second"}),
            thought,
        ),
        (json!({"content": "said", "reasoning": "first"}), thought),
        (
            json!({"content": "<think>\nfirst\n</think>\n\nsaid"}),
            thought,
        ),
        (
            json!({"content": "said"}),
            "<|im_start|>assistant\n<think></think>said",
        ),
        (
            json!({"content": "said", "reasoning": " "}),
            "<|im_start|>assistant\n<think></think>said",
        ),
    ] {
        let mut assistant = assistant;
        assistant["role"] = json!("assistant");
        assistant["tool_calls"] = call.clone();
        let prompt = tokenize(json!([user, assistant, result]), json!({})).await;
        assert!(prompt.contains(expected), "{prompt}");
    }
}

#[tokio::test]
async fn a_model_without_thoughts_says_nothing_of_them() {
    let service = crate::chat::serving(Fake::babbling());
    let more = json!({"reasoning_effort": "low", "thinking_token_budget": 3, "max_tokens": 8});
    let response = send(&service, "/v1/chat/completions", &body(more.clone())).await;
    let ignored = response.headers()["x-ignored-params"].to_str().unwrap();
    assert_eq!(ignored, "reasoning_effort, thinking_token_budget");
    let answer = ask(&service, more).await;
    let text = answer.to_string();
    assert!(
        !text.contains("reasoning") && !text.contains("details\":{\"reasoning"),
        "{text}"
    );
}

#[tokio::test]
async fn the_servers_defaults_hold_where_a_request_says_nothing() {
    let with = |mode: Option<Mode>, budget: Option<usize>, answer_share: Option<f64>| {
        let options = Options {
            chat_template: Some(TEMPLATE),
            tokenizer: Some(tokenizer()),
            defaults: Defaults {
                thinking: ThinkingDefaults {
                    mode,
                    budget,
                    answer_share,
                },
                ..Defaults::default()
            },
            ..Options::default()
        };
        Service::with(writing("a b c d e f g h i j k l m n o p"), options)
    };
    let reasoning = |answer: &Value| {
        let details = &answer["usage"]["completion_tokens_details"];
        details["reasoning_tokens"].as_u64().unwrap()
    };
    let service = with(Some(Mode::Off), None, None);
    assert_eq!(reasoning(&ask(&service, json!({})).await), 0);
    for on in [
        json!({"reasoning_effort": "high"}),
        json!({"chat_template_kwargs": {"enable_thinking": true}}),
        json!({"reasoning": {"enabled": true}}),
    ] {
        assert!(reasoning(&ask(&service, on).await) > 0);
    }
    let service = with(Some(Mode::Low), Some(6), None);
    let low = tokenized(
        &service,
        json!([{"role": "user", "content": "u"}]),
        json!({}),
    )
    .await;
    assert!(low.contains("{reasoning effort: low}"), "{low}");
    assert!((5..=6).contains(&reasoning(&ask(&service, json!({})).await)));
    let more = json!({"thinking_token_budget": 9});
    assert!((8..=9).contains(&reasoning(&ask(&service, more).await)));
    let service = with(None, None, Some(0.5));
    let half = ask(&service, json!({"max_tokens": 10})).await;
    assert!((4..=5).contains(&reasoning(&half)), "{half}");
}

#[tokio::test]
async fn granite_3_3_thinks_when_it_is_told_to() {
    const TEMPLATE: &str = "{% if thinking %}{{ 'Write between <think></think> and <response></response>.' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}{{ '<|im_start|>assistant\n' }}";
    let said = "<think>Well.\n</think>\n<response> Yes. </response>";
    let mut script = ids(said);
    script.push(END_OF_TEXT);
    let header = ids("<|im_start|>assistant\n").len();
    let model = Fake::new(move |before| {
        let turn = before.iter().rposition(|&token| token == TURN).unwrap();
        let written = (before.len() - turn).saturating_sub(header);
        Next::Token(script.get(written).copied().unwrap_or(END_OF_TEXT))
    });
    let options = Options {
        chat_template: Some(TEMPLATE),
        tokenizer: Some(tokenizer()),
        ..Options::default()
    };
    let service = Service::with(model, options);
    check(&service, json!({}), None, Some(said), "stop").await;
    for on in [
        json!({"chat_template_kwargs": {"thinking": true}}),
        json!({"reasoning_effort": "medium"}),
    ] {
        check(&service, on, Some("Well."), Some("Yes. "), "stop").await;
    }
}

#[tokio::test]
async fn flags_set_the_defaults() {
    let model = fixture("granite-4.2-tiny").display().to_string();
    let flags = ["--generation-config", "none", "--thinking", "off"];
    let (_process, url) = process::running_with(&model, &flags);
    let url = url.trim_end_matches('/');
    let models = reqwest::get(format!("{url}/v1/models")).await.unwrap();
    let models: Value = models.json().await.unwrap();
    assert_eq!(models["data"][0]["default_generation"], json!({}));
    let answer = ask_program(url, CHAT, &body(json!({"max_tokens": 5}))).await;
    let details = &answer["usage"]["completion_tokens_details"];
    assert_eq!(details["reasoning_tokens"], 0, "{answer}");
    let more = json!({"max_tokens": 5, "reasoning_effort": "high"});
    let answer = ask_program(url, CHAT, &body(more)).await;
    let details = &answer["usage"]["completion_tokens_details"];
    assert!(details["reasoning_tokens"].as_u64() > Some(0), "{answer}");
}
