//! The entries of paths in the document, one function for each kind of route.

use serde_json::{Value, json};

use super::schema::reference;
use crate::http::line_limit::OVERLOADED;

/// Error responses of all routes of the API.
pub const ALWAYS: [(u16, &str); 3] = [
    (401, "No valid API key, where the server has keys."),
    (500, "A defect of the server."),
    (
        503,
        "The model is loading, the server is stopping, or it has too many connections or no memory for the request; see Retry-After.",
    ),
];
/// Error responses of routes with a request body.
pub const WITH_BODY: [(u16, &str); 5] = [
    (
        400,
        "A field is absent, of the wrong type, out of range or unsupported; `param` names it.",
    ),
    (404, "The request names a model that is not served here."),
    (408, "The body did not arrive in time."),
    (
        413,
        "The body is too long, or needs too much memory when parsed.",
    ),
    (
        415,
        "By its headers, the body is not JSON, not in UTF-8, or compressed.",
    ),
];
/// The error response of routes that generate.
pub const QUEUE_FULL: (u16, &str) = (429, "The queue is full; see Retry-After.");

/// The streams of completions and chat completions.
pub const CHUNKS: &str = "Server-sent events if `stream` is true: `data: ` and a chunk, and `data: [DONE]` at the end. Lines that begin with a colon are comments: the first token is still awaited. A failure after the first event is an event with the key `error`.";
/// The streams of the Responses API.
pub const TYPED: &str = "Server-sent events if `stream` is true, each with a `type` and a `sequence_number`, from `response.created` to `response.completed`, `response.incomplete` or `response.failed`. Lines that begin with a colon are comments: the first token is still awaited.";

/// A generating route: `POST`, with a stream of events if requested.
/// `events` describes the stream.
pub fn generating(id: &str, summary: &str, shapes: (&str, &str), events: &str) -> Value {
    let mut operation = with_body(id, "generate", summary, shapes, &[QUEUE_FULL]);
    operation["responses"]["200"]["content"]["text/event-stream"] =
        // Without a type, because tools disagree on whether it describes the stream or one event.
        json!({"schema": {"description": events}});
    operation["responses"]["200"]["headers"] = json!({"X-Ignored-Params": {
        "description": "Names of fields that changed nothing.", "schema": {"type": "string"},
    }});
    json!({"post": operation})
}

/// `POST`, with the schemas of the body and of the answer.
pub fn post(id: &str, tag: &str, summary: &str, shapes: (&str, &str)) -> Value {
    json!({"post": with_body(id, tag, summary, shapes, &[])})
}

/// `GET`, with the schema of the answer.
pub fn get(id: &str, tag: &str, summary: &str, answer: &str) -> Value {
    json!({"get": keyed(id, tag, summary, answer, &[])})
}

/// [`get`] of what asks for no key.
pub fn get_open(id: &str, tag: &str, summary: &str, answer: &str) -> Value {
    let mut operation = keyed(id, tag, summary, answer, &[]);
    operation["security"] = json!([]);
    json!({"get": operation})
}

/// `GET` with a `name` in the path.
pub fn by_name(id: &str, tag: &str, summary: &str, answer: &str) -> Value {
    let mut operation = keyed(id, tag, summary, answer, &[(404, "No such model.")]);
    operation["parameters"] = json!([{"name": "name", "in": "path", "required": true,
        "description": "May contain slashes.", "schema": {"type": "string", "minLength": 1}}]);
    json!({"get": operation})
}

/// `POST` that is always refused.
pub fn refused(id: &str, summary: &str) -> Value {
    let operation = json!({
        "operationId": id, "tags": ["generate"], "summary": summary, "security": security(),
        "requestBody": {"content": {"application/json": {"schema": {}}}},
        "responses": errors(&[&WITH_BODY[..], &ALWAYS].concat()),
    });
    json!({"post": operation})
}

/// `GET` of a probe, which may fail.
pub fn probe(id: &str, summary: &str) -> Value {
    without_key(id, summary, "application/json", &ALWAYS[2..])
}

/// `GET` of a probe of a model, whose name is in the path.
pub fn probe_by_name(id: &str, summary: &str) -> Value {
    let more = [&[(404, "No such model.")], &ALWAYS[2..]].concat();
    let mut probe = without_key(id, summary, "application/json", &more);
    probe["get"]["parameters"] = json!([{"name": "name", "in": "path", "required": true,
        "description": "A slash is written %2F.", "schema": {"type": "string", "minLength": 1}}]);
    probe
}

/// `GET` that needs no key and always succeeds.
pub fn open(id: &str, summary: &str, mime: &str) -> Value {
    without_key(id, summary, mime, &[])
}

/// The ways to send a key, or none if the server has no keys.
pub fn security() -> Value {
    json!([{}, {"key": []}, {"header": []}])
}

fn keyed(id: &str, tag: &str, summary: &str, answer: &str, more: &[(u16, &str)]) -> Value {
    let mut responses = errors(&[more, &ALWAYS].concat());
    responses["200"] = ok("application/json", reference(answer));
    json!({
        "operationId": id, "tags": [tag], "summary": summary, "security": security(),
        "responses": responses,
    })
}

fn with_body(
    id: &str,
    tag: &str,
    summary: &str,
    (request, answer): (&str, &str),
    more: &[(u16, &str)],
) -> Value {
    let mut operation = keyed(id, tag, summary, answer, &[more, &WITH_BODY].concat());
    operation["requestBody"] = json!({
        "required": true, "content": {"application/json": {"schema": reference(request)}},
    });
    operation
}

fn without_key(id: &str, summary: &str, mime: &str, failures: &[(u16, &str)]) -> Value {
    let mut responses = errors(failures);
    let schema = match mime {
        "application/json" => json!({"type": "object"}),
        _ => json!({"type": "string"}),
    };
    responses["200"] = ok(mime, schema);
    let operation = json!({
        "operationId": id, "tags": ["operations"], "summary": summary, "security": [],
        "responses": responses,
    });
    json!({"get": operation})
}

/// A successful response.
pub fn ok(mime: &str, schema: Value) -> Value {
    json!({"description": "The request succeeded.", "content": {mime: {"schema": schema}}})
}

fn errors(statuses: &[(u16, &str)]) -> Value {
    errors_as("Error", statuses)
}

/// Error responses whose body has the schema `shape`.
pub fn errors_as(shape: &str, statuses: &[(u16, &str)]) -> Value {
    let response = |&(status, description): &(u16, &str)| {
        let mut response = ok("application/json", reference(shape));
        response["description"] = description.into();
        if matches!(status, 429 | 503 | OVERLOADED) {
            response["headers"] = json!({"Retry-After": {
                "description": "Seconds after which a retry makes sense.", "schema": {"type": "integer", "minimum": 1},
            }});
        }
        (status.to_string(), response)
    };
    Value::Object(statuses.iter().map(response).collect())
}
