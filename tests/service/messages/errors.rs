//! Tests of the shape of errors.

use std::io::Write as _;

use microgranite::http::access::{Access, ApiKeys};
use microgranite::http::limits::Limits;
use serde_json::json;

use super::{body, error_of, named_events};
use crate::chat::send;
use crate::fake::{Fake, Next};
use crate::harness::{Options, Service};
use crate::thinking::{TURN, serving};

#[tokio::test]
async fn errors_before_the_handler_have_the_shape_of_the_api() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "key").unwrap();
    let options = Options {
        access: Access {
            keys: Some(ApiKeys::read(file.path()).unwrap()),
            root_path: "/granite".to_owned(),
            ..Access::default()
        },
        limits: Limits {
            body_bytes: 1000,
            ..Limits::default()
        },
        chat_template: Some(crate::chat::TEMPLATE),
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let send = async |method: &str, path: &str, key: &str, kind: &str, body: String| {
        let request = service
            .client
            .request(method.parse().unwrap(), service.url(path));
        let request = request
            .header("x-api-key", key)
            .header("content-type", kind);
        request.body(body).send().await.unwrap()
    };
    let json = "application/json";
    for (method, path, key, kind, body, status, error) in [
        (
            "POST",
            "/v1/messages",
            "no",
            json,
            "{}",
            401,
            "authentication_error",
        ),
        (
            "POST",
            "/messages/count_tokens",
            "",
            json,
            "{}",
            401,
            "authentication_error",
        ),
        (
            "GET",
            "/v1/messages",
            "key",
            json,
            "",
            405,
            "invalid_request_error",
        ),
        (
            "GET",
            "/v1/messages/batches",
            "key",
            json,
            "",
            404,
            "not_found_error",
        ),
        (
            "POST",
            "/v1/messages/x/y",
            "key",
            json,
            "",
            404,
            "not_found_error",
        ),
        (
            "POST",
            "/v1/messages",
            "key",
            json,
            "{",
            400,
            "invalid_request_error",
        ),
        (
            "POST",
            "/v1/messages",
            "key",
            "text/plain",
            "{}",
            415,
            "invalid_request_error",
        ),
        (
            "POST",
            "/messages",
            "key",
            json,
            &"x".repeat(1001),
            413,
            "request_too_large",
        ),
    ] {
        let response = send(
            method,
            &format!("/granite{path}"),
            key,
            kind,
            body.to_owned(),
        )
        .await;
        assert_eq!(response.headers().contains_key("allow"), status == 405);
        let length = response.headers()["content-length"]
            .to_str()
            .unwrap()
            .to_owned();
        assert_ne!(length, "0");
        let (got, name, _) = error_of(response).await;
        assert_eq!((got, name.as_str()), (status, error), "{method} {path}");
    }
    let good = serde_json::to_string(&body(json!({"max_tokens": 2}))).unwrap();
    let response = send("POST", "/granite/v1/messages", "key", json, good.clone()).await;
    assert_eq!(response.status(), 200);
    let request = service
        .client
        .post(service.url("/granite/messages"))
        .bearer_auth("key");
    let request = request.header("content-type", json).body(good);
    assert_eq!(request.send().await.unwrap().status(), 200);
    // Other paths keep OpenAI's shape.
    let other = send("GET", "/granite/v1/messagesx", "key", json, String::new()).await;
    assert_eq!(crate::refusals::error_of(other).await.0, 404);

    let loading = Service::loading();
    let request = loading
        .client
        .post(loading.url("/v1/messages"))
        .json(&body(serde_json::json!({})));
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, kind, _) = error_of(response).await;
    assert_eq!((status, kind.as_str()), (529, "overloaded_error"));
    assert_eq!(loading.count("unavailable"), 1);
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_an_error_event() {
    let service = serving(Fake::new(|before| {
        let turn = before.iter().rposition(|&token| token == TURN).unwrap();
        match before.len() - turn {
            40.. => Next::NotANumber,
            written => Next::Any(written as u64),
        }
    }));
    let response = send(&service, "/v1/messages", &body(json!({"stream": true}))).await;
    let events = named_events(response).await;
    assert_eq!(events[0]["type"], "message_start");
    let error =
        json!({"type": "error", "error": {"type": "api_error", "message": "internal error"}});
    assert_eq!(events.last(), Some(&error));
    let (status, kind, _) = error_of(send(&service, "/v1/messages", &body(json!({}))).await).await;
    assert_eq!((status, kind.as_str()), (500, "api_error"));
}
