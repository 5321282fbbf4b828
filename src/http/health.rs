//! What probes and load balancers ask.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::app::{App, ServedModel};
use super::error_body::ApiError;
use crate::build;
use crate::engine::Health;

/// Readiness goes off within seconds of a step that does not end, and comes back if it ends after all. One that has taken
/// this long will not, and only a restart helps: loading and warming a model again is dearer than waiting a minute.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// `GET /readyz` and `/health`: whether a request sent now would be taken. A full queue is no reason to say no: then
/// every replica would leave the balancer at once, while a 429 only moves the request.
pub async fn ready(State(app): State<App>) -> Result<Response, ApiError> {
    check_engine(app.model()?)?;
    Ok(status("ready"))
}

/// `GET /livez`: whether anything short of a restart can help. Neither loading nor draining is an illness.
pub async fn live(State(app): State<App>) -> Result<Response, ApiError> {
    if let Some(model) = app.loaded_model() {
        check_engine(model)?;
    }
    Ok(status("alive"))
}

/// Asks for the engine's state, never for its work.
fn check_engine(model: &ServedModel) -> Result<(), ApiError> {
    let is_stuck = model.engine.step_age().is_some_and(|age| age > STUCK_AFTER);
    match model.engine.health() {
        Health::Running | Health::Draining if is_stuck => Err(ApiError::EngineStopped),
        Health::Failed => Err(ApiError::EngineStopped),
        Health::Running | Health::Draining | Health::Stopped => Ok(()),
    }
}

/// `GET /version`.
pub async fn version() -> Response {
    Json(json!({"version": build::VERSION, "build": build::ID})).into_response()
}

fn status(status: &str) -> Response {
    Json(json!({"status": status})).into_response()
}
