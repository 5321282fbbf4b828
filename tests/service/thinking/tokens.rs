//! Tests of the tokens of answers with thoughts: their ids and scores, which of them stop, and how many are left.

use serde_json::{Value, json};

use super::{TEMPLATE, ask, check, ids, serving, streamed, tokenizer, tools, writing};
use crate::fake::Fake;
use crate::harness::{END_OF_TEXT, Options, Service};

#[tokio::test]
async fn a_thought_that_is_not_shown_is_not_in_ids_and_scores_either() {
    let service = serving(writing("I think.\n</think>\nYes."));
    let more = |fields: Value| {
        let mut all = json!({"logprobs": true, "return_token_ids": true});
        all.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        all
    };
    let all = ask(&service, more(json!({}))).await;
    let whole = ids("I think.\n</think>\nYes.");
    let of_thought = ids("I think.\n</think>").len();
    let choice = &all["choices"][0];
    assert_eq!(
        choice["token_ids"].as_array().unwrap().len(),
        whole.len() + 1
    );
    let mut answer = whole[of_thought..].to_vec();
    for fields in [
        json!({"include_reasoning": false}),
        json!({"reasoning": {"exclude": true}}),
        json!({"include_reasoning": false, "separate_reasoning": false}),
    ] {
        let hidden = check(&service, more(fields.clone()), None, Some("Yes."), "stop").await;
        assert_eq!(hidden["usage"], all["usage"]);
        let choice = &hidden["choices"][0];
        let scored = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(scored.len(), answer.len(), "{choice}");
        answer.push(END_OF_TEXT);
        assert_eq!(choice["token_ids"], json!(answer));
        answer.pop();
        assert!(!hidden.to_string().contains("think"), "{hidden}");
        let (_, events) = streamed(&service, more(fields)).await;
        let events = json!(events).to_string();
        assert!(!events.contains("think"), "{events}");
    }
}

#[tokio::test]
async fn stop_ids_end_the_answer_and_not_the_thought() {
    let service = serving(writing("a b a\n</think>\nc b d"));
    let id = ids(" b")[0];
    let close = ids("</think>")[0];
    for more in [json!({}), json!({"thinking_token_budget": 100})] {
        let mut stopped = more;
        stopped["stop_token_ids"] = json!([id, close]);
        let answer = check(&service, stopped, Some("a b a"), Some("c"), "stop").await;
        assert_eq!(answer["choices"][0]["stop_reason"], id, "{answer}");
    }
    // Also where the answer is constrained, before which no text may end.
    let more = json!({"stop_token_ids": [id], "structured_outputs": {"choice": ["yes"]}});
    let answer = check(&service, more, Some("a b a"), Some("yes"), "stop").await;
    assert!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64() > Some(0));
    // The model's own end of text still ends a thought.
    let service = serving(writing("a b"));
    let more = json!({"stop_token_ids": [END_OF_TEXT, id]});
    check(&service, more, Some("a b"), None, "stop").await;
}

#[tokio::test]
async fn an_answer_that_takes_all_tokens_leaves_the_thought_out() {
    let service = serving(writing("Hello there, this is an answer"));
    for (share, max_tokens) in [(0.9, 1), (0.9, 10), (0.5, 4), (0.1, 2)] {
        let more =
            json!({"answer_share": share, "max_tokens": max_tokens, "return_token_ids": true});
        let answer = ask(&service, more).await;
        let usage = &answer["usage"];
        assert_eq!(usage["completion_tokens"], max_tokens, "{answer}");
        assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 0);
        let said = &answer["choices"][0]["token_ids"];
        assert_eq!(
            *said,
            json!(ids("Hello there, this is an answer")[..max_tokens])
        );
    }
    // Where there is room, the answer has its share: the closing tag is not taken from it.
    let service = serving(writing(
        "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    ));
    for (share, max_tokens, kept) in [(0.1, 4, 1), (0.5, 10, 5), (0.25, 16, 4)] {
        let more =
            json!({"answer_share": share, "max_tokens": max_tokens, "return_token_ids": true});
        let answer = ask(&service, more).await;
        let said = answer["choices"][0]["token_ids"].as_array().unwrap();
        let close = ids("</think>")[0];
        let end = said.iter().position(|id| *id == json!(close)).unwrap();
        assert!(said.len() - end > kept, "{answer}");
    }
    // If the thought is turned on all the same, or has no switch, the prompt closes it.
    let on = json!({"chat_template_kwargs": {"enable_thinking": true}, "answer_share": 0.9, "max_tokens": 3});
    let answer = ask(&service, on).await;
    assert_eq!(
        answer["usage"]["completion_tokens_details"]["reasoning_tokens"],
        0
    );
    assert!(
        answer["choices"][0]["message"]["content"].is_string(),
        "{answer}"
    );
    let always = TEMPLATE.replace(
        "'<think>\n' if thinks else '<think></think>'",
        "'<think>\n'",
    );
    let options = Options {
        chat_template: Some(always.leak()),
        tokenizer: Some(tokenizer()),
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    for more in [
        json!({"answer_share": 0.9, "max_tokens": 3}),
        json!({"thinking_budget": 0, "max_tokens": 3}),
    ] {
        let answer = ask(&service, more).await;
        assert_eq!(answer["usage"]["completion_tokens"], 3, "{answer}");
        assert_eq!(
            answer["usage"]["completion_tokens_details"]["reasoning_tokens"],
            0
        );
        let message = &answer["choices"][0]["message"];
        assert!(message.get("reasoning").is_none(), "{answer}");
    }
    // A forced call then follows directly.
    let forced = json!({"tools": tools(), "tool_choice": "required", "thinking_budget": 0, "max_tokens": 600});
    let answer = ask(&service, forced).await;
    assert_eq!(
        answer["choices"][0]["finish_reason"], "tool_calls",
        "{answer}"
    );
}
