//! Tests of the prompt that a conversation becomes.

use serde_json::{Value, json};

use crate::chat::send;
use crate::thinking::{ids, serving, tokenized, writing};

#[tokio::test]
async fn the_conversation_becomes_the_prompt_that_chat_completions_would_make() {
    let service = serving(writing("a"));
    let prompt = async |body: Value| {
        let counted = send(&service, "/v1/messages/count_tokens", &body).await;
        let counted: Value = counted.json().await.unwrap();
        let mut answered = body;
        answered["max_tokens"] = json!(1);
        let answer = send(&service, "/v1/messages", &answered).await;
        let answer: Value = answer.json().await.unwrap();
        let usage = &answer["usage"];
        let [fresh, cached] =
            ["input_tokens", "cache_read_input_tokens"].map(|name| usage[name].as_u64().unwrap());
        assert_eq!(
            counted,
            json!({"input_tokens": fresh + cached}),
            "{answered}"
        );
        fresh + cached
    };
    let parameters = json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}});
    let function = json!({"name": "f", "description": "d", "parameters": parameters});
    let theirs = json!([{"type": "function", "function": function}]);
    let ours = json!([{"name": "f", "description": "d", "input_schema": parameters, "cache_control": {"type": "ephemeral"}}]);
    let blocks = json!([
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "cache_control": null}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "first", "signature": "x"},
            {"type": "redacted_thinking", "data": "…"},
            {"type": "text", "text": "said"},
            {"type": "tool_use", "id": "1", "name": "f", "input": {"b": "x", "a": 1}},
            {"type": "tool_use", "id": "2", "name": "f", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": "r"},
            {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}], "is_error": true},
            {"type": "tool_result", "tool_use_id": "2"},
            {"type": "text", "text": "go on"},
        ]},
    ]);
    let calls = json!([
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": \"x\", \"a\": 1}"}},
        {"id": "2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]);
    let plain = json!([
        {"role": "system", "content": "be\nbrief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "said", "reasoning": "first", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
        {"role": "tool", "tool_call_id": "2", "content": "s\nt"},
        {"role": "tool", "tool_call_id": "2", "content": ""},
        {"role": "user", "content": "go on"},
    ]);
    let system = json!([{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]);
    let without_last = |messages: &Value| {
        let mut messages = messages.as_array().unwrap().clone();
        match messages.last_mut().unwrap()["content"].as_array_mut() {
            Some(blocks) => blocks.pop(),
            None => messages.pop(),
        };
        json!(messages)
    };
    for (plain, blocks, has_thought) in [
        (plain.clone(), blocks.clone(), false),
        // The template prints thoughts only after the last message of the user.
        (without_last(&plain), without_last(&blocks), true),
    ] {
        for (thinks, kind) in [(true, "adaptive"), (false, "disabled")] {
            let same =
                json!({"tools": theirs, "chat_template_kwargs": {"enable_thinking": thinks}});
            let expected = tokenized(&service, plain.clone(), same).await;
            let body = json!({"system": system, "messages": blocks, "tools": ours, "thinking": {"type": kind}});
            assert_eq!(
                prompt(body).await,
                ids(&expected).len() as u64,
                "{expected}"
            );
            assert!(expected.contains("\"b\""), "{expected}");
            assert_eq!(expected.contains("first"), has_thought, "{expected}");
        }
    }
    // A message of the assistant at the end is continued.
    let begun =
        json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "It is"}]);
    let expected = tokenized(&service, begun.clone(), json!({"continue_final_message": true, "add_generation_prompt": false, "reasoning_effort": "none"})).await;
    assert_eq!(
        prompt(json!({"messages": begun})).await,
        ids(&expected).len() as u64
    );
}
