//! `POST /v1/responses`: OpenAI's Responses API, without its state. Nothing is stored, so a request has the whole
//! conversation.
//!
//! [`request`] translates a request into one of [`super::chat`], with the messages from [`input`]; `response` has the
//! JSON of answers, and `stream` writes it in one body or as events.

pub mod input;
pub mod request;
mod response;
mod stream;

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use super::admission::Admission;
use super::app::App;
use super::body::JsonBytes;
use super::chat::Exchange;
use super::error_body::ApiError;
use super::observe::Record;
use request::ResponsesRequest;
use stream::ResponseWriter;

/// Responds with the model's next items.
pub async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    _: Admission,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Response, ApiError> {
    let (model, _accepted) = app.accept()?;
    let ResponsesRequest { chat, echo } = ResponsesRequest::parse(&body, app.limits())?;
    drop(body);
    let exchange = Exchange {
        app: &app,
        model,
        record,
        turn,
    };
    let writer = |request: Arc<_>, start: &_| ResponseWriter::new(model, &request, echo, start);
    exchange.answer(chat, writer).await
}
