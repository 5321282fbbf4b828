//! Schemas of response bodies.

use serde_json::{Map, Value, json};

use super::schema::{object, reference};
use crate::telemetry::OUTCOMES;

/// Adds the schemas of response bodies.
pub fn add(schemas: &mut Map<String, Value>) {
    let mut add = |name: &str, schema| schemas.insert(name.to_owned(), schema);
    let text = || json!({"type": "string"});
    let texts = || json!({"type": "array", "items": {"type": "string"}});
    let count = || json!({"type": "integer", "minimum": 0});
    let counts = || json!({"type": "array", "items": {"type": "integer", "minimum": 0}});
    let stop_reason = || json!({"type": ["string", "integer", "null"]});
    add(
        "Error",
        object(json!({"error": object(json!({
            "message": text(),
            "type": {"enum": ["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]},
            "param": {"type": ["string", "null"]},
            "code": text(),
        }))})),
    );
    let mut usage = object(json!({
        "prompt_tokens": count(),
        "completion_tokens": count(),
        "total_tokens": count(),
        "prompt_tokens_details": object(json!({"cached_tokens": count()})),
    }));
    usage["properties"]["completion_tokens_details"] = object(json!({"reasoning_tokens": count()}));
    add("Usage", usage);
    let ranked =
        || object(json!({"logprob": {"type": "number"}, "rank": count(), "decoded_token": text()}));
    let prompt_logprobs = || {
        json!({"type": "array", "description": "For each token of the prompt, the token and the likeliest ones, by id; null for the first.",
            "items": {"type": ["object", "null"], "additionalProperties": ranked()}})
    };
    let optional_ids = || json!({"type": "array", "items": {"type": "integer", "minimum": 0}});
    let mut choice = object(json!({
        "index": count(),
        "text": text(),
        "logprobs": nullable("Logprobs"),
        "finish_reason": {"enum": ["stop", "length"]},
        "stop_reason": stop_reason(),
    }));
    choice["properties"]["prompt_token_ids"] = optional_ids();
    choice["properties"]["token_ids"] = optional_ids();
    choice["properties"]["prompt_logprobs"] = prompt_logprobs();
    let seconds = || json!({"type": ["number", "null"], "minimum": 0});
    let mut receipt = object(json!({
        "queue_seconds": seconds(), "prefill_seconds": seconds(), "decode_seconds": seconds(),
        "cpu_seconds": {"type": "number", "minimum": 0},
        "prompt_tokens": count(), "cached_tokens": count(), "generated_tokens": count(),
        "outcome": {"enum": OUTCOMES},
    }));
    receipt["description"] = json!("What the request took, with `serve --receipts`.");
    add("Receipt", receipt);
    add("Completion", answer("text_completion", choice));
    add(
        "Logprobs",
        object(json!({
            "tokens": texts(),
            "token_logprobs": {"type": "array", "items": {"type": ["number", "null"]}},
            "top_logprobs": {"type": "array", "items": {"type": ["object", "null"], "additionalProperties": {"type": "number"}}},
            "text_offset": counts(),
        })),
    );
    let mut message = object(json!({
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"]},
        "refusal": {"type": "null"},
    }));
    for name in ["reasoning_content", "reasoning"] {
        message["properties"][name] = json!({"type": "string", "description": "The thought before the answer; both names have the same text."});
    }
    message["properties"]["tool_calls"] = json!({"type": "array", "minItems": 1, "items": object(json!({
        "id": text(), "type": {"const": "function"},
        "function": object(json!({"name": text(), "arguments": text()})),
    }))});
    let mut choice = object(json!({
        "index": count(),
        "message": message,
        "logprobs": nullable("ChatLogprobs"),
        "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
        "stop_reason": stop_reason(),
    }));
    choice["properties"]["token_ids"] = optional_ids();
    let mut chat = answer("chat.completion", choice);
    chat["properties"]["prompt_token_ids"] = optional_ids();
    chat["properties"]["prompt_logprobs"] = prompt_logprobs();
    add("ChatCompletion", chat);
    let likely = || json!({"token": text(), "logprob": {"type": "number"}, "bytes": counts()});
    let mut scored = likely();
    scored["top_logprobs"] = json!({"type": "array", "items": object(likely())});
    add(
        "ChatLogprobs",
        object(json!({
            "content": {"type": "array", "items": object(scored)},
            "refusal": {"type": "null"},
        })),
    );
    let yes_or_no = || json!({"type": "boolean"});
    add(
        "Model",
        object(json!({
            "id": text(),
            "object": {"const": "model"},
            "created": count(),
            "owned_by": text(),
            "root": text(),
            "parent": {"type": "null"},
            "max_model_len": count(),
            "capabilities": object(json!({
                "completions": yes_or_no(), "chat_completions": yes_or_no(), "tools": yes_or_no(), "reasoning": yes_or_no(), "embeddings": yes_or_no(),
            })),
            "quantization": object(json!({
                "scheme": {}, "kernel": text(), "parameters": count(), "weight_bytes": count(),
                "weight_bytes_f32": count(), "kv_cache_bytes": count(), "recurrent_state_bytes": count(),
                "accuracy": {"type": ["object", "null"]},
                "signature": {"enum": ["off", "absent", "verified"]},
                "savings": {"type": ["object", "null"]},
            })),
            "default_generation": {"type": "object", "description": "The model's own defaults for fields that a request leaves out.",
                "properties": {"temperature": {"type": "number"}, "top_p": {"type": "number"}, "top_k": count(),
                    "repetition_penalty": {"type": "number"}, "max_new_tokens": count()},
                "additionalProperties": false},
            "canary": object(json!({
                "state": {"enum": ["off", "waiting", "passed", "failed"]}, "last_run": {"type": ["integer", "null"]},
            })),
        })),
    );
    let model = json!({"$ref": "#/components/schemas/Model"});
    add(
        "ModelList",
        object(json!({
            "object": {"const": "list"}, "data": {"type": "array", "items": model},
        })),
    );
    let many = |item: Value| json!({"type": "array", "items": item});
    add(
        "Capacity",
        object(json!({
            "object": {"const": "capacity"},
            "model": text(),
            "running": count(), "waiting": count(), "max_batch": count(),
            "now": many(object(json!({"tokens": count(), "more": count(), "limited_by": {"enum": ["batch", "kv_cache"]}}))),
            "memory_limit_bytes": {"type": ["integer", "null"]},
            "memory_limit_source": {"type": ["string", "null"]},
            "formats": many(object(json!({
                "dtype": {"enum": ["int8", "bf16", "f32"]}, "weight_bytes": count(), "bytes_per_token": count(), "replicas": count(),
                "sequences": many(object(json!({"tokens": count(), "count": count()}))),
            }))),
        })),
    );
    add(
        "Tokenized",
        object(json!({
            "count": count(), "max_model_len": count(), "tokens": counts(),
            "token_strs": {"type": ["array", "null"], "items": {"type": "string"}},
        })),
    );
    let cache = || object(json!({"used": count(), "cached": count(), "reserved": count()}));
    let seconds = || json!({"type": "number", "minimum": 0});
    let times = || {
        json!({"description": "Times in seconds: how many up to each of the bounds.", "allOf": [object(json!({
            "count": count(), "sum": seconds(), "bounds": {"type": "array", "items": seconds()}, "counts": counts(),
        }))]})
    };
    let about = object(json!({
        "name": text(), "parameters": count(), "context_length": count(), "instruction_set": text(),
        "chats": yes_or_no(), "thinks": yes_or_no(),
    }));
    add(
        "Status",
        object(json!({
            "version": text(),
            "build": text(),
            "state": {"enum": ["loading", "ready", "draining", "stalled", "damaged", "canary_failed", "stopped"]},
            "uptime_seconds": count(),
            "model": {"anyOf": [about, {"type": "null"}]},
            "load": object(json!({
                "running": count(), "waiting": count(), "batch_places": count(), "queue_places": count(),
            })),
            "memory": object(json!({
                "weights": count(), "weights_f32": count(), "weights_bf16": count(),
                "resident_anon": count(), "resident_file": count(), "kv": cache(), "states": cache(),
            })),
            "totals": object(json!({
                "requests": {"type": "object", "description": "By outcome.", "additionalProperties": count()},
                "prompt_tokens": count(), "cached_prompt_tokens": count(), "generated_tokens": count(),
                "steps": count(), "rows": count(),
            })),
            "latency": object(json!({"first_token": times(), "next_token": times()})),
        })),
    );
    add("Detokenized", object(json!({"prompt": text()})));
    add(
        "TokenizerInfo",
        object(json!({
            "tokenizer_class": text(),
            "bos_token": {"type": ["string", "null"]},
            "eos_token": {"type": ["string", "null"]},
            "pad_token": {"type": ["string", "null"]},
            "vocab_size": count(),
            "model_max_length": count(),
            "chat_template": {"type": ["string", "null"]},
        })),
    );
}

/// The response of a generating route in one body.
fn answer(object_name: &str, choice: Value) -> Value {
    let mut answer = object(json!({
        "id": {"type": "string"},
        "object": {"const": object_name},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "system_fingerprint": {"type": "string"},
        "choices": {"type": "array", "minItems": 1, "items": choice},
        "usage": {"$ref": "#/components/schemas/Usage"},
    }));
    answer["properties"]["receipt"] = reference("Receipt");
    answer
}

fn nullable(schema: &str) -> Value {
    json!({"anyOf": [{"$ref": format!("#/components/schemas/{schema}")}, {"type": "null"}]})
}
