//! Tests of the shape of errors.

use reqwest::Response;
use serde_json::{Value, json};

use super::{PATH, body, events};
use crate::chat::send;
use crate::fake::{Fake, Next};
use crate::refusals::error_of;
use crate::thinking::{TURN, serving};

#[tokio::test]
async fn a_stream_that_fails_ends_with_a_failed_response_and_errors_have_openais_shape() {
    let service = serving(Fake::new(|before| {
        let turn = before.iter().rposition(|&token| token == TURN).unwrap();
        match before.len() - turn {
            40.. => Next::NotANumber,
            written => Next::Any(written as u64),
        }
    }));
    let failed = events(&service, json!({})).await;
    let last = failed.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    let response = &last["response"];
    assert_eq!(
        response["error"],
        json!({"code": "server_error", "message": "internal error"})
    );
    assert_eq!(
        response["output"].as_array().unwrap().last().unwrap()["status"],
        "incomplete"
    );
    let error: Response = send(&service, PATH, &body(json!({}))).await;
    assert_eq!(
        error_of(error).await,
        (500, "internal_error".into(), Value::Null)
    );
    assert_eq!(error_of(service.get(PATH).await).await.0, 405);
    assert_eq!(
        error_of(service.get("/v1/responses/resp_1").await).await.0,
        404
    );
    assert_eq!(
        send(
            &service,
            "/responses",
            &body(json!({"max_output_tokens": 2}))
        )
        .await
        .status(),
        200
    );
}
