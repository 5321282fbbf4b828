//! Valid requests, to be damaged.

use serde_json::{Value, json};

use crate::inputs::Inputs;

/// A request with many fields, all valid.
pub fn good_request(inputs: &mut Inputs) -> (&'static str, Value) {
    let sampling = json!({
        "max_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 7, "n": 2,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1, "min_tokens": 1,
        "logit_bias": {"5": 1.5}, "stop": ["\n", "END"], "stop_token_ids": [3], "bad_words": ["no"],
        "allowed_token_ids": [1, 2, 3, 4, 5, 6], "user": "me", "ignore_eos": false,
    });
    let (path, own) = match inputs.below(4) {
        0 => (
            "/v1/completions",
            json!({"prompt": ["Once upon", "a time"], "echo": true, "logprobs": 2, "best_of": 2}),
        ),
        1 => (
            "/v1/completions",
            json!({"prompt": [[1, 2, 3], [4, 5]], "stream": true, "stream_options": {"include_usage": true}}),
        ),
        2 => (
            "/v1/chat/completions",
            json!({
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}]},
                    {"role": "assistant", "content": null, "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 2}"}},
                    ]},
                    {"role": "tool", "tool_call_id": "c1", "content": "4"},
                ],
                "tools": [{"type": "function", "function": {
                    "name": "add", "description": "Adds.",
                    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                }}],
                "tool_choice": "auto", "logprobs": true, "top_logprobs": 2,
                "chat_template_kwargs": {"thinking": true}, "documents": [{"title": "t", "text": "x"}],
            }),
        ),
        _ => {
            return (
                "/tokenize",
                json!({"prompt": "Once upon a time", "add_special_tokens": true}),
            );
        }
    };
    let mut request = own;
    if let (Some(fields), Some(more)) = (request.as_object_mut(), sampling.as_object()) {
        for (name, value) in more {
            if inputs.once_in(3) {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
    (path, request)
}
