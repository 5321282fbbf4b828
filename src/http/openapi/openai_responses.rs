//! The schemas of OpenAI's Responses API.

use serde_json::{Map, Value, json};

use super::requests::{shared, strings, thinking, tool_name};
use super::schema::{flag, merge, object, optional, reference, tokens};
use crate::http::chat::tools::MAX_TOOLS;
use crate::http::limits::Limits;
use crate::http::responses::request::{
    INCLUDED, MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_VALUE, UNSUPPORTED,
};

/// Adds the schemas of the request and the response.
pub fn add(schemas: &mut Map<String, Value>, limits: &Limits) {
    let mut add = |name: &str, schema| schemas.insert(name.to_owned(), schema);
    add("ResponsesRequest", request(limits));
    add("InputItem", input_item());
    add("Response", response());
    add("OutputItem", output_item());
}

fn request(limits: &Limits) -> Value {
    let named = json!({"type": "object", "required": ["type", "name"],
        "properties": {"type": {"const": "function"}, "name": tool_name()}});
    let tool = json!({"type": "object", "required": ["type", "name"], "properties": {
        "type": {"const": "function", "description": "Tools that the provider runs are refused."},
        "name": tool_name(),
        "description": optional("string", json!({})),
        "parameters": optional("object", json!({"description": "A JSON schema."})),
    }});
    let format = |kind: Value, schema: Value| {
        json!({"type": "object", "required": ["type"],
        "properties": {"type": kind, "schema": schema}})
    };
    let mut with_schema = format(
        json!({"const": "json_schema"}),
        json!({"type": ["object", "boolean"]}),
    );
    with_schema["required"] = json!(["type", "schema"]);
    let plain = format(
        json!({"enum": ["text", "json_object"]}),
        json!({"type": "null"}),
    );
    let items = json!({"type": "array", "minItems": 1, "items": reference("InputItem")});
    let unused = |description: &str| optional("string", json!({"description": description}));
    let mut properties = json!({
        "input": {"anyOf": [{"type": "string"}, items], "description": "A text, or the whole conversation as items."},
        "instructions": optional("string", json!({"description": "A system message in front of the input."})),
        "tools": optional("array", json!({"maxItems": MAX_TOOLS, "items": tool,
            "description": "The tools that the model may call, if its chat template supports tools."})),
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required", null]}, named], "description":
            "Whether tools may, must or must not be called, or which one must be called."},
        "parallel_tool_calls": flag("Whether the answer may have more than one call. True if absent."),
        "max_output_tokens": tokens(limits, 1, "The most tokens of the answer, including its thought; the rest of the context if absent."),
        "text": optional("object", json!({"properties": {
            "format": {"anyOf": [plain, with_schema, {"type": "null"}], "description": "Constrains the text of the answer."},
        }})),
        "truncation": optional("string", json!({"enum": ["auto", "disabled", null], "description":
            "`auto` leaves out the beginning of a prompt that does not fit the context."})),
        "stop": strings(limits.stops, "Texts that end the answer; it ends before the text."),
        "stream": flag("Respond with server-sent events."),
        "stream_options": optional("object", json!({"description": "Changes nothing."})),
        "metadata": optional("object", json!({"maxProperties": MAX_METADATA, "description": "Repeated in the response.",
            "propertyNames": {"maxLength": MAX_METADATA_NAME},
            "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE}})),
        "user": unused("Repeated in the response."),
        "store": flag("Changes nothing: responses are never stored, and say so."),
        "safety_identifier": unused("Changes nothing."),
        "service_tier": unused("Changes nothing."),
        "prompt_cache_key": unused("Changes nothing: prefixes of prompts are always cached."),
        "prompt_cache_retention": unused("Changes nothing."),
        "max_tool_calls": optional("integer", json!({"minimum": 0, "format": "int64", "description":
            "Changes nothing: it limits tools that the provider runs."})),
        "include": optional("array", json!({"items": {"enum": INCLUDED}, "description":
            "Changes nothing: thoughts are in the response anyway, and the others belong to tools that this server does not run."})),
        "background": optional("boolean", json!({"enum": [false, null], "description": "Only false is accepted."})),
        "top_logprobs": optional("integer", json!({"enum": [0, null], "description": "Only 0 is accepted."})),
    });
    for (name, instead) in UNSUPPORTED {
        let refused = json!({"type": "null", "description": format!("Refused: {instead}.")});
        merge(&mut properties, json!({name: refused}));
    }
    merge(&mut properties, thinking());
    merge(&mut properties, shared(limits));
    json!({"type": "object", "required": ["input"], "properties": properties})
}

fn input_item() -> Value {
    let text = || json!({"type": "string"});
    let part = |kinds: &[&str], key: &str| json!({"type": "object", "required": ["type", key], "properties": {"type": {"enum": kinds}, key: text()}});
    let texts = part(
        &[
            "input_text",
            "output_text",
            "text",
            "reasoning_text",
            "summary_text",
        ],
        "text",
    );
    let parts =
        json!({"type": "array", "items": {"anyOf": [texts, part(&["refusal"], "refusal")]}});
    let content = json!({"anyOf": [text(), parts]});
    let optional_parts = json!({"anyOf": [parts, {"type": "null"}]});
    let item = |kind: &str, required: &[&str], mut properties: Value| {
        properties["type"] = json!({"const": kind});
        json!({"type": "object", "required": required, "properties": properties})
    };
    let mut message = item(
        "message",
        &["role", "content"],
        json!({"role": {"enum": ["user", "assistant", "system", "developer"]}, "content": content}),
    );
    message["properties"]["type"] = json!({"enum": ["message", null]});
    json!({"anyOf": [
        message,
        item("reasoning", &["type"], json!({"content": optional_parts, "summary": optional_parts})),
        item(
            "function_call",
            &["type", "call_id", "name", "arguments"],
            json!({"call_id": text(), "name": text(), "arguments": {"type": "string", "description": "A JSON object as text."}}),
        ),
        item(
            "function_call_output",
            &["type", "call_id", "output"],
            json!({"call_id": text(), "output": content}),
        ),
    ]})
}

fn output_item() -> Value {
    let text = || json!({"type": "string"});
    let none = || json!({"type": "array", "maxItems": 0});
    let item = |kind: &str, mut properties: Value| {
        let status = json!({"enum": ["in_progress", "completed", "incomplete"]});
        merge(
            &mut properties,
            json!({"type": {"const": kind}, "id": text(), "status": status}),
        );
        object(properties)
    };
    let parts = |part: Value| json!({"type": "array", "maxItems": 1, "items": object(part)});
    let thoughts = json!({"type": {"const": "reasoning_text"}, "text": text()});
    let texts = json!({"type": {"const": "output_text"}, "text": text(), "annotations": none(), "logprobs": none()});
    json!({"oneOf": [
        item("reasoning", json!({"summary": none(), "content": parts(thoughts)})),
        item("message", json!({"role": {"const": "assistant"}, "content": parts(texts)})),
        item("function_call", json!({"call_id": text(), "name": text(), "arguments": text()})),
    ]})
}

fn response() -> Value {
    let count = || json!({"type": "integer", "minimum": 0});
    let text = || json!({"type": "string"});
    let usage = object(json!({
        "input_tokens": count(),
        "input_tokens_details": object(json!({"cached_tokens": count(), "cache_write_tokens": count()})),
        "output_tokens": count(),
        "output_tokens_details": object(json!({"reasoning_tokens": count()})),
        "total_tokens": count(),
    }));
    let nullable = |schema: Value| json!({"anyOf": [schema, {"type": "null"}]});
    let mut response = object(json!({
        "id": text(),
        "object": {"const": "response"},
        "created_at": count(),
        "status": {"enum": ["in_progress", "completed", "incomplete", "failed"]},
        "background": {"const": false},
        "error": nullable(object(json!({"code": text(), "message": text()}))),
        "incomplete_details": nullable(object(json!({"reason": {"const": "max_output_tokens"}}))),
        "instructions": {"type": ["string", "null"]},
        "max_output_tokens": {"type": ["integer", "null"]},
        "model": text(),
        "output": {"type": "array", "items": reference("OutputItem")},
        "parallel_tool_calls": {"type": "boolean"},
        "previous_response_id": {"type": "null"},
        "reasoning": object(json!({"effort": {"type": ["string", "null"]}, "summary": {"type": "null"}})),
        "store": {"const": false},
        "temperature": {"type": "number"},
        "text": object(json!({"format": {"type": "object"}})),
        "tool_choice": {"type": ["string", "object"]},
        "tools": {"type": "array", "items": {"type": "object"}},
        "top_logprobs": {"const": 0},
        "top_p": {"type": "number"},
        "truncation": {"enum": ["auto", "disabled"]},
        "usage": nullable(usage),
        "user": {"type": ["string", "null"]},
        "metadata": {"type": "object"},
    }));
    response["properties"]["receipt"] = reference("Receipt");
    response
}
