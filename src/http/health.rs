//! What probes and load balancers ask.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::App;
use super::error_body::ApiError;
use crate::engine::Health;

/// `GET /readyz` and `/health`: whether a request sent now would be taken. A full queue is no reason to say no: then
/// every replica would leave the balancer at once, while a 429 only moves the request.
pub async fn ready(State(app): State<App>) -> Response {
    match app.model().map(|model| model.engine.health()) {
        Ok(Health::Healthy) => status("ready"),
        Ok(_) => ApiError::EngineStopped.into_response(),
        Err(error) => error.into_response(),
    }
}

/// `GET /livez`: whether anything short of a restart can help. Neither loading nor draining is an illness.
pub async fn live(State(app): State<App>) -> Response {
    match app.0.model.get().map(|model| model.engine.health()) {
        None | Some(Health::Healthy) => status("alive"),
        Some(_) => ApiError::EngineStopped.into_response(),
    }
}

/// `GET /version`.
pub async fn version() -> Response {
    Json(json!({"version": env!("CARGO_PKG_VERSION")})).into_response()
}

fn status(status: &str) -> Response {
    Json(json!({"status": status})).into_response()
}
