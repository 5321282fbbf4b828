//! Anthropic's API: the entries of its paths and its schemas.

use serde_json::{Map, Value, json};

use super::describe::{ALWAYS, QUEUE_FULL, WITH_BODY, errors_as, ok, security};
use super::requests::{shared, strings, tool_name};
use super::schema::{flag, merge, object, optional, reference, tokens};
use crate::http::chat::thinking::{EFFORTS, MOST_BUDGET};
use crate::http::chat::tools::MAX_TOOLS;
use crate::http::limits::Limits;
use crate::http::line_limit::OVERLOADED;
use crate::http::messages::request::UNSUPPORTED;

/// A route of the API, with the schemas of the body and of the answer. `is_generating` ones can stream.
pub fn describe(
    id: &str,
    summary: &str,
    (request, answer): (&str, &str),
    is_generating: bool,
) -> Value {
    let events = "Server-sent events if `stream` is true, in the order of Anthropic's API: `message_start`, blocks, `message_delta`, `message_stop`; `ping` while no token comes. A failure after the first event is the event `error`.";
    // In this API, 529 stands in for 503.
    let overloaded = ALWAYS.map(|(status, text)| match status {
        503 => (OVERLOADED, text),
        status => (status, text),
    });
    let generating = is_generating.then_some(QUEUE_FULL);
    let statuses: Vec<_> = WITH_BODY
        .into_iter()
        .chain(overloaded)
        .chain(generating)
        .collect();
    let mut responses = errors_as("AnthropicError", &statuses);
    responses["200"] = ok("application/json", reference(answer));
    if is_generating {
        responses["200"]["content"]["text/event-stream"] =
            json!({"schema": {"description": events}});
        responses["200"]["headers"] = json!({"X-Ignored-Params": {
            "description": "Names of fields that changed nothing.", "schema": {"type": "string"},
        }});
    }
    json!({"post": {
        "operationId": id, "tags": [if is_generating { "generate" } else { "tokens" }],
        "summary": summary, "security": security(), "responses": responses,
        "requestBody": {"required": true, "content": {"application/json": {"schema": reference(request)}}},
    }})
}

/// Adds the schemas of requests and responses.
pub fn add(schemas: &mut Map<String, Value>, limits: &Limits) {
    let mut add = |name: &str, schema| schemas.insert(name.to_owned(), schema);
    let conversation = conversation();
    let mut properties = json!({
        "max_tokens": {"type": "integer", "minimum": 1, "maximum": tokens(limits, 1, "")["maximum"],
            "description": "The most tokens of the answer, including its thought."},
    });
    let mut counted = json!({"max_tokens": tokens(limits, 1, "Changes nothing here.")});
    for properties in [&mut properties, &mut counted] {
        merge(properties, conversation.clone());
        merge(properties, others(limits));
    }
    add(
        "MessagesRequest",
        json!({"type": "object", "required": ["messages", "max_tokens"], "properties": properties}),
    );
    add(
        "CountTokensRequest",
        json!({"type": "object", "required": ["messages"], "properties": counted}),
    );
    add("AnthropicTurn", turn());
    add("AnthropicTool", tool());
    let count = || json!({"type": "integer", "minimum": 0});
    let text = || json!({"type": "string"});
    add("TokenCount", object(json!({"input_tokens": count()})));
    let mut error = object(json!({
        "type": {"const": "error"},
        "error": object(json!({
            "type": {"enum": ["invalid_request_error", "authentication_error", "not_found_error", "request_too_large", "rate_limit_error", "api_error", "overloaded_error"]},
            "message": text(),
        })),
    }));
    error["properties"]["request_id"] = text();
    add("AnthropicError", error);
    let mut usage = object(json!({
        "input_tokens": count(),
        "cache_creation_input_tokens": count(),
        "cache_read_input_tokens": count(),
        "output_tokens": count(),
    }));
    usage["properties"]["output_tokens_details"] = object(json!({"thinking_tokens": count()}));
    let block = |kind: &str, mut properties: Value| {
        properties["type"] = json!({"const": kind});
        object(properties)
    };
    let blocks = [
        block("text", json!({"text": text()})),
        block("thinking", json!({"thinking": text(), "signature": text()})),
        block(
            "tool_use",
            json!({"id": text(), "name": text(), "input": {"type": "object"}}),
        ),
    ];
    let mut message = object(json!({
        "id": text(),
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": text(),
        "content": {"type": "array", "items": {"oneOf": blocks}},
        "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        "stop_sequence": {"type": ["string", "null"]},
        "usage": usage,
    }));
    message["properties"]["receipt"] = reference("Receipt");
    add("AnthropicMessage", message);
}

/// The fields that become the prompt.
fn conversation() -> Value {
    let choice = |kinds: &[&str]| {
        json!({"type": "object", "required": ["type"], "properties": {
            "type": {"enum": kinds}, "name": {"type": "null"},
            "disable_parallel_tool_use": flag("Whether calls after the first are dropped."),
        }})
    };
    let mut named = choice(&["tool"]);
    named["required"] = json!(["type", "name"]);
    named["properties"]["name"] = tool_name();
    let display = json!({"enum": ["summarized", "omitted", null], "description":
        "`omitted` leaves the thought out of the response."});
    let thinking = |kind: &str, budget: Value| {
        json!({"type": "object", "required": ["type"], "properties":
            {"type": {"const": kind}, "budget_tokens": budget, "display": display}})
    };
    let mut enabled = thinking(
        "enabled",
        json!({"type": "integer", "minimum": 1, "maximum": MOST_BUDGET,
            "description": "The most tokens of the thought; less than `max_tokens`."}),
    );
    enabled["required"] = json!(["type", "budget_tokens"]);
    let nothing = json!({"type": "null"});
    json!({
        "system": text_or_blocks("Instructions."),
        "messages": {"type": "array", "minItems": 1, "items": reference("AnthropicTurn"),
            "description": "If the last message is the assistant's, the answer continues it."},
        "tools": optional("array", json!({"maxItems": MAX_TOOLS, "items": reference("AnthropicTool"),
            "description": "The tools that the model may call, if its chat template supports tools."})),
        "tool_choice": {"anyOf": [choice(&["auto", "any", "none"]), named, nothing], "description":
            "Whether tools may, must or must not be called, or which one must be called. `auto` if absent."},
        "thinking": {"anyOf": [enabled, thinking("adaptive", nothing.clone()), thinking("disabled", nothing.clone()), nothing],
            "description": "Whether the model thinks first. If absent, only if the server's defaults say so."},
    })
}

/// The fields that do not become the prompt.
fn others(limits: &Limits) -> Value {
    let format = json!({"required": ["type", "schema"], "properties": {
        "type": {"const": "json_schema"}, "schema": {"type": ["object", "boolean"]}}});
    let format = |description: &str| {
        let mut format = format.clone();
        format["description"] = description.into();
        optional("object", format)
    };
    let mut efforts: Vec<Value> = EFFORTS.map(Value::from).to_vec();
    efforts.push(Value::Null);
    let mut properties = json!({
        "stop_sequences": strings(limits.stops, "Texts that end the answer; it ends before the text."),
        "stream": flag("Respond with server-sent events."),
        "output_config": optional("object", json!({"properties": {
            "effort": {"enum": efforts, "description": "How much the model thinks, if it does."},
            "format": format("Constrains the text of the answer."),
        }})),
        "output_format": format("An older name of `output_config.format`."),
        "metadata": optional("object", json!({"description": "Changes nothing."})),
        "service_tier": optional("string", json!({"description": "Changes nothing."})),
        "cache_control": optional("object", json!({"description": "Changes nothing: prefixes of prompts are always cached."})),
        "mcp_servers": optional("array", json!({"maxItems": 0, "description": "Refused: this server calls no tools itself."})),
    });
    for (name, instead) in UNSUPPORTED {
        let refused = json!({"type": "null", "description": format!("Refused: {instead}.")});
        merge(&mut properties, json!({name: refused}));
    }
    merge(&mut properties, shared(limits));
    properties
}

/// A text, or a list of text blocks.
fn text_or_blocks(description: &str) -> Value {
    let blocks = json!({"type": "array", "items": text_block()});
    json!({"anyOf": [{"type": "string"}, blocks, {"type": "null"}], "description": description})
}

fn text_block() -> Value {
    block(&["text"], json!({"text": {"type": "string"}}))
}

/// A block of these kinds with these required properties.
fn block(kinds: &[&str], mut properties: Value) -> Value {
    let names = properties.as_object().into_iter().flatten();
    let mut required: Vec<String> = names.map(|(name, _)| name.clone()).collect();
    required.push("type".to_owned());
    properties["type"] = json!({"enum": kinds});
    json!({"type": "object", "required": required, "properties": properties})
}

fn turn() -> Value {
    let text = || json!({"type": "string"});
    let mut result = block(&["tool_result"], json!({"tool_use_id": text()}));
    result["properties"]["content"] = text_or_blocks("What the tool returned.");
    result["properties"]["is_error"] = flag("Changes nothing: the content says so.");
    let message = |role: &str, blocks: Vec<Value>| {
        json!({"type": "object", "required": ["role", "content"], "properties": {
            "role": {"const": role},
            "content": {"anyOf": [text(), {"type": "array", "items": {"anyOf": blocks}}]},
        }})
    };
    let call = json!({"id": text(), "name": text(), "input": {"type": "object"}});
    let assistants = vec![
        text_block(),
        block(&["thinking"], json!({"thinking": text()})),
        block(&["redacted_thinking"], json!({})),
        block(&["tool_use"], call),
    ];
    json!({"oneOf": [
        message("user", vec![text_block(), result]),
        message("assistant", assistants),
        message("system", vec![text_block()]),
    ]})
}

fn tool() -> Value {
    json!({
        "type": "object", "required": ["name"],
        "properties": {
            "type": {"enum": ["custom", null], "description": "Tools that the provider runs are refused."},
            "name": tool_name(),
            "description": optional("string", json!({})),
            "input_schema": optional("object", json!({"description": "A JSON schema of the arguments."})),
        },
    })
}
