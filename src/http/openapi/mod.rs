//! `GET /openapi.json`: the OpenAPI description of all routes, and `GET /docs`, a page that shows it.
//!
//! The document is built from the table of routes and from the limits in force, so that its ranges are those that
//! requests are checked against. The schemas are written out here and not derived from types: requests are read field
//! by field, with an error for each field, so no type has the structure of a request.

pub mod anthropic;
pub mod describe;
#[cfg(test)]
mod documented;
mod openai_responses;
mod requests;
mod responses;
mod schema;

use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::build;

use super::limits::Limits;

/// `GET /docs`: shows `/openapi.json`. The page is self-contained: browsers load nothing from other servers.
pub async fn page() -> Response {
    let policy = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, include_str!("page.html")).into_response()
}

/// The document for a server with these limits and these paths below `root`.
pub fn document(limits: &Limits, root: &str, paths: Map<String, Value>) -> Value {
    let mut document = described(limits, paths);
    if !root.is_empty() {
        document["servers"] = json!([{"url": root}]);
    }
    document
}

fn described(limits: &Limits, paths: Map<String, Value>) -> Value {
    let mut schemas = Map::new();
    requests::add(&mut schemas, limits);
    responses::add(&mut schemas);
    openai_responses::add(&mut schemas, limits);
    anthropic::add(&mut schemas, limits);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "microgranite",
            "version": build::VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "IBM Granite in int8 behind OpenAI's and Anthropic's APIs. The same request gives the same bytes, whatever \
                else the server is doing. In requests, null is the same as absent; fields that have no effect here \
                are named in the response header X-Ignored-Params, or refused if the server is strict. The paths below /v1 \
                also work without it.",
        },
        "tags": [
            {"name": "generate", "description": "Generate text."},
            {"name": "model", "description": "The served model."},
            {"name": "tokens", "description": "Text to ids and back."},
            {"name": "operations", "description": "For probes, metrics collectors and operators. Probes need no key; the others need one if the server has an admin port."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::chat::request::ChatRequest;
    use crate::http::completions::request::CompletionRequest;
    use crate::http::fields::Fields;
    use crate::http::messages::{self, request::Purpose};
    use crate::http::responses::request::ResponsesRequest;

    /// The names of the fields that the parser of a route tries to take.
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
        let document = described(&Limits::default(), Map::new());
        let api = include_str!("../../../docs/api.md");
        let chat = include_str!("../../../docs/chat.md");
        let completions = asked("{\"prompt\": \"x\"}", |fields, limits| {
            CompletionRequest::take(fields, limits).map(drop)
        });
        let conversations = asked(
            "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
            |fields, limits| ChatRequest::take(fields, limits).map(drop),
        );
        let messages = asked(
            "{\"max_tokens\": 9, \"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
            |fields, limits| messages::request::take(fields, limits, Purpose::Answer).map(drop),
        );
        let responses = asked("{\"input\": \"x\"}", |fields, limits| {
            ResponsesRequest::take(fields, limits).map(drop)
        });
        let others = include_str!("../../../docs/other-apis.md");
        for (schema, asked, text) in [
            ("CompletionRequest", completions, api.to_owned()),
            ("ChatRequest", conversations, api.to_owned() + chat),
            ("MessagesRequest", messages, api.to_owned() + others),
            (
                "ResponsesRequest",
                responses,
                api.to_owned() + chat + others,
            ),
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
        check(&described(&Limits::default(), Map::new()));
    }
}
