//! `GET /openapi.json`: the description of everything this server answers, and `GET /docs`, a page to read it.
//!
//! The document is built from the limits in force, so that its ranges are those that requests are checked against. It
//! is written out here and not derived: requests are read field by field, with one error for each, and no type of ours
//! has their shape.

mod requests;
mod responses;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::App;
use super::limits::Limits;

/// `GET /openapi.json`.
pub async fn document(State(app): State<App>) -> Json<Value> {
    let access = app.access();
    let mut document = describe(app.limits());
    if !access.root_path.is_empty() {
        document["servers"] = json!([{"url": access.root_path}]);
    }
    Json(document)
}

/// `GET /docs`: shows `/openapi.json`. The page is whole: no browser has to fetch anything from elsewhere.
pub async fn page() -> Response {
    let policy = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, include_str!("page.html")).into_response()
}

/// The document for a server with these limits.
pub fn describe(limits: &Limits) -> Value {
    let mut schemas = Map::new();
    requests::add(&mut schemas, limits);
    responses::add(&mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "microgranite",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "IBM Granite at eight bits behind OpenAI's API. The same request gives the same bytes, whatever \
                else the server is doing. In requests, null is the same as absent; fields that mean nothing to the server \
                are named in the header X-Ignored-Params of the answer, or refused if the server is strict. The paths below /v1 \
                answer without it too.",
        },
        "tags": [
            {"name": "generate", "description": "Text from text."},
            {"name": "model", "description": "What is served."},
            {"name": "tokens", "description": "Text to ids and back."},
            {"name": "operations", "description": "For probes, collectors and people. Probes need no key; the others need one where the server has an admin port."},
        ],
        "paths": paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    })
}

/// What every route of the API may answer beside what was asked for.
const ALWAYS: [(u16, &str); 3] = [
    (401, "No valid API key, where the server has keys."),
    (500, "A defect of the server."),
    (
        503,
        "The model is loading, the server is stopping, or it has no place for the connection or no memory for the request; see Retry-After.",
    ),
];
/// What a route with a body may answer.
const WITH_BODY: [(u16, &str); 5] = [
    (
        400,
        "A field is absent, of the wrong type, out of range or unsupported; `param` names it.",
    ),
    (404, "The request names a model that is not served here."),
    (408, "The body did not arrive in time."),
    (
        413,
        "The body is too long, or what is made of it takes too much memory.",
    ),
    (415, "The body is not JSON in UTF-8, or compressed."),
];
const QUEUE_FULL: (u16, &str) = (429, "The queue is full; see Retry-After.");

fn paths() -> Value {
    let event = "Server-sent events if `stream` is true: `data: ` and a chunk, and `data: [DONE]` at the end. Lines that begin with a colon are comments: the first token is still awaited. A failure after the first event is an event with the key `error`.";
    let generate = |id: &str, summary: &str, request: &str, answer: &str| {
        let mut operation = post(id, "generate", summary, request, answer, &[QUEUE_FULL]);
        operation["responses"]["200"]["content"]["text/event-stream"] =
            // Without a type: tools take it for that of the stream, or of one event.
            json!({"schema": {"description": event}});
        operation["responses"]["200"]["headers"] = json!({"X-Ignored-Params": {
            "description": "Names of fields that changed nothing.", "schema": {"type": "string"},
        }});
        json!({"post": operation})
    };
    let name = json!([{"name": "name", "in": "path", "required": true, "description": "May contain slashes.",
        "schema": {"type": "string", "minLength": 1}}]);
    let mut show = get(
        "show_model",
        "model",
        "The model by its name",
        "Model",
        &[(404, "No such model.")],
    );
    show["parameters"] = name;
    let embeddings = json!({
        "operationId": "create_embeddings", "tags": ["generate"], "security": [{}, {"key": []}, {"header": []}],
        "summary": "Refused: the model makes text",
        "requestBody": {"content": {"application/json": {"schema": {}}}},
        "responses": errors(&[&WITH_BODY[..], &ALWAYS].concat()),
    });
    json!({
        "/v1/completions": generate("create_completion", "Continue a text", "CompletionRequest", "Completion"),
        "/v1/chat/completions": generate("create_chat_completion", "Answer a conversation", "ChatRequest", "ChatCompletion"),
        "/v1/embeddings": {"post": embeddings},
        "/v1/models": {"get": get("list_models", "model", "The one model, by each of its names", "ModelList", &[])},
        "/v1/models/{name}": {"get": show},
        "/tokenize": {"post": post("tokenize", "tokens", "The ids of a text or a conversation", "TokenizeRequest", "Tokenized", &[])},
        "/detokenize": {"post": post("detokenize", "tokens", "The text of ids", "DetokenizeRequest", "Detokenized", &[])},
        "/tokenizer_info": {"get": get("tokenizer_info", "tokens", "What clients need to know of the tokenizer", "TokenizerInfo", &[])},
        "/health": {"get": open("health", "Whether a request sent now would be taken", "application/json", true)},
        "/ping": {"get": open("ping", "The same", "application/json", true)},
        "/readyz": {"get": open("readyz", "The same", "application/json", true)},
        "/livez": {"get": open("livez", "Whether anything short of a restart can help", "application/json", true)},
        "/version": {"get": open("version", "The build", "application/json", false)},
        "/metrics": {"get": open("metrics", "For Prometheus", "text/plain", false)},
        "/openapi.json": {"get": open("openapi", "This document", "application/json", false)},
        "/docs": {"get": open("docs", "A page that shows this document", "text/html", false)},
    })
}

fn get(id: &str, tag: &str, summary: &str, answer: &str, more: &[(u16, &str)]) -> Value {
    let mut responses = errors(&[more, &ALWAYS].concat());
    responses["200"] = ok("application/json", reference(answer));
    json!({
        "operationId": id, "tags": [tag], "summary": summary, "security": [{}, {"key": []}, {"header": []}],
        "responses": responses,
    })
}

fn post(
    id: &str,
    tag: &str,
    summary: &str,
    request: &str,
    answer: &str,
    more: &[(u16, &str)],
) -> Value {
    let mut operation = get(id, tag, summary, answer, &[more, &WITH_BODY].concat());
    operation["requestBody"] = json!({
        "required": true, "content": {"application/json": {"schema": reference(request)}},
    });
    operation
}

/// A route that needs no key.
fn open(id: &str, summary: &str, mime: &str, can_fail: bool) -> Value {
    let not_now: &[(u16, &str)] = if can_fail { &ALWAYS[2..] } else { &[] };
    let mut responses = errors(not_now);
    let schema = if mime == "application/json" {
        json!({"type": "object"})
    } else {
        json!({"type": "string"})
    };
    responses["200"] = ok(mime, schema);
    json!({
        "operationId": id, "tags": ["operations"], "summary": summary, "security": [],
        "responses": responses,
    })
}

fn ok(mime: &str, schema: Value) -> Value {
    json!({"description": "As asked.", "content": {mime: {"schema": schema}}})
}

fn errors(statuses: &[(u16, &str)]) -> Value {
    let response = |&(status, description): &(u16, &str)| {
        let mut response = ok("application/json", reference("Error"));
        response["description"] = description.into();
        if matches!(status, 429 | 503) {
            response["headers"] = json!({"Retry-After": {
                "description": "Seconds, where trying again makes sense.", "schema": {"type": "integer", "minimum": 1},
            }});
        }
        (status.to_string(), response)
    };
    Value::Object(statuses.iter().map(response).collect())
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::chat::request::ChatRequest;
    use crate::http::fields::Fields;
    use crate::http::wire::CompletionRequest;

    /// The names that the parser of a route asks for.
    fn asked(
        body: &str,
        take: impl Fn(&mut Fields<'_>, &Limits) -> Result<(), crate::http::error_body::ApiError>,
    ) -> BTreeSet<&'static str> {
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        take(&mut fields, &Limits::default()).unwrap();
        fields.asked()
    }

    #[test]
    fn every_field_is_parsed_described_and_documented() {
        let document = describe(&Limits::default());
        let api = include_str!("../../../docs/api.md");
        let chat = include_str!("../../../docs/chat.md");
        let completions = asked("{\"prompt\": \"x\"}", |fields, limits| {
            CompletionRequest::take(fields, limits).map(drop)
        });
        let conversations = asked(
            "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
            |fields, limits| ChatRequest::take(fields, limits).map(drop),
        );
        for (schema, asked, text) in [
            ("CompletionRequest", completions, api.to_owned()),
            ("ChatRequest", conversations, api.to_owned() + chat),
        ] {
            let described = &document["components"]["schemas"][schema]["properties"];
            let described = described.as_object().unwrap().keys();
            let described: BTreeSet<&str> = described.map(String::as_str).collect();
            assert_eq!(asked, described, "{schema}: parsed, and described");
            for name in asked {
                let is_documented = text.contains(&format!("`{name}`"));
                assert!(is_documented, "{schema}: {name} is not in docs/");
            }
        }
    }

    #[test]
    fn every_number_is_exact_where_all_numbers_are_floats() {
        fn check(value: &Value) {
            match value {
                Value::Number(number) => {
                    let float = number.as_f64().unwrap();
                    assert!(float.abs() <= 2_f64.powi(53), "browsers round {number}");
                }
                Value::Array(items) => items.iter().for_each(check),
                Value::Object(items) => items.values().for_each(check),
                _ => {}
            }
        }
        check(&describe(&Limits::default()));
    }
}
