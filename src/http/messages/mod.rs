//! Anthropic's API: `POST /v1/messages` and `POST /v1/messages/count_tokens`.
//!
//! [`request`] translates a request into one of [`super::chat`], with the messages from [`conversation`]; `response`
//! writes the answer in one body, and `stream` as events. [`errors`] gives errors the shape of this API, wherever they
//! come from.

pub mod conversation;
pub mod errors;
pub mod request;
mod response;
mod stream;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use serde::Serialize;

use super::admission::Admission;
use super::app::App;
use super::body::JsonBytes;
use super::chat::Exchange;
use super::error_body::ApiError;
use super::observe::Record;
use request::Purpose;
use stream::MessageWriter;

/// `POST /v1/messages`: responds with the assistant's next message.
pub async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    _: Admission,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Response, ApiError> {
    let (model, _accepted) = app.accept()?;
    let request = request::parse(&body, app.limits(), Purpose::Answer)?;
    drop(body);
    let exchange = Exchange {
        app: &app,
        model,
        record,
        turn,
    };
    let writer = |request: Arc<_>, start: &_| MessageWriter::new(model, &request, start);
    exchange.answer(request, writer).await
}

/// The response of `/v1/messages/count_tokens`.
#[derive(Serialize)]
pub struct Counted {
    input_tokens: usize,
}

/// `POST /v1/messages/count_tokens`: the number of tokens of the prompt.
pub async fn count_tokens(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Json<Counted>, ApiError> {
    let model = app.model()?;
    let request = request::parse(&body, app.limits(), Purpose::Count)?;
    drop(body);
    let exchange = Exchange {
        app: &app,
        model,
        record,
        turn,
    };
    let input_tokens = exchange.count(request).await?;
    Ok(Json(Counted { input_tokens }))
}
