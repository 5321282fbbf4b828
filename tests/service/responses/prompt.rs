//! Tests of the prompt that the input becomes.

use serde_json::{Value, json};

use super::{CALL, PATH, ask, tools};
use crate::chat::send;
use crate::refusals::error_of;
use crate::thinking::{ids, serving, tokenized, writing};

#[tokio::test]
async fn the_input_becomes_the_prompt_that_chat_completions_would_make() {
    let service = serving(writing("a"));
    let prompt = async |mut body: Value| {
        body["max_output_tokens"] = json!(1);
        let answer: Value = send(&service, PATH, &body).await.json().await.unwrap();
        answer["usage"]["input_tokens"].as_u64().expect("an answer")
    };
    let parameters = json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}});
    let function = json!({"name": "f", "description": "d", "parameters": parameters});
    let theirs = json!([{"type": "function", "function": function}]);
    let mut ours = function.clone();
    ours["type"] = json!("function");
    let input = json!([
        {"role": "developer", "content": "quickly"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "first"}], "encrypted_content": null},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": "said", "annotations": []}, {"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{\"b\": \"x\", \"a\": 1}"},
        {"type": "function_call", "call_id": "2", "name": "f", "arguments": ""},
        {"type": "function_call_output", "call_id": "1", "output": "r"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "s"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "second"}]},
        {"type": "function_call", "call_id": "3", "name": "f", "arguments": "{}"},
        {"type": "message", "role": "assistant", "content": "after"},
        {"type": "function_call_output", "call_id": "3", "output": "t"},
        {"type": "reasoning", "summary": [], "encrypted_content": "…"},
        {"role": "assistant", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]);
    let calls = json!([
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": \"x\", \"a\": 1}"}},
        {"id": "2", "type": "function", "function": {"name": "f", "arguments": ""}},
    ]);
    let third =
        json!([{"id": "3", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let plain = json!([
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "quickly"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "said\nno", "reasoning": "first", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
        {"role": "tool", "tool_call_id": "2", "content": "s"},
        {"role": "assistant", "content": "after", "reasoning": "second", "tool_calls": third},
        {"role": "tool", "tool_call_id": "3", "content": "t"},
        {"role": "assistant", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]);
    for effort in ["medium", "none"] {
        let expected = tokenized(
            &service,
            plain.clone(),
            json!({"tools": theirs, "reasoning_effort": effort}),
        )
        .await;
        let body = json!({"instructions": "be brief", "input": input, "tools": [ours], "reasoning": {"effort": effort}});
        assert_eq!(
            prompt(body).await,
            ids(&expected).len() as u64,
            "{expected}"
        );
        assert!(
            expected.contains("first") && expected.contains("second"),
            "{expected}"
        );
    }
    let expected = tokenized(
        &service,
        json!([{"role": "user", "content": "x"}]),
        json!({}),
    )
    .await;
    assert_eq!(
        prompt(json!({"input": "x"})).await,
        ids(&expected).len() as u64
    );
    // With `auto`, the beginning of a prompt that is too long is left out.
    let long = json!({"input": "x ".repeat(9000), "max_output_tokens": 1});
    assert_eq!(
        error_of(send(&service, PATH, &long).await).await,
        (400, "context_length_exceeded".into(), json!("input"))
    );
    let mut cut = long;
    cut["truncation"] = json!("auto");
    assert_eq!(prompt(cut).await, 4095);
}

#[tokio::test]
async fn an_answer_can_be_sent_back_as_input() {
    let service = serving(writing(&format!("I could.\n</think>\nWell.\n{CALL}")));
    let answer = ask(&service, json!({"tools": tools()})).await;
    let mut input = answer["output"].as_array().unwrap().clone();
    let result =
        json!({"type": "function_call_output", "call_id": input[2]["call_id"], "output": "sun"});
    input.insert(0, json!({"role": "user", "content": "u"}));
    input.push(result);
    ask(&service, json!({"tools": tools(), "input": input})).await;
}
