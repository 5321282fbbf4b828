//! The routes for probes and load balancers.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::app::{App, ServedModel};
use super::error_body::ApiError;
use crate::build;
use crate::engine::Health;

/// Readiness fails within seconds when a step takes too long, and comes back if the step ends after all. A step that
/// has taken a minute will not end, and only a restart helps. Liveness does not fail earlier, because loading and
/// warming a model again costs more than waiting a minute.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Readiness fails when the thread that serves the API has not run for so long: no request occupies it for a second.
/// Liveness fails after [`STUCK_AFTER`], as for a step.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// `GET /readyz` and `/health`: whether a request sent now would be accepted. A full queue does not make the server
/// unready: under load, all replicas would leave the load balancer at once, while a 429 only makes the client retry
/// elsewhere or later.
pub async fn ready(State(app): State<App>) -> Result<Response, ApiError> {
    check_network(app.silence(), SILENT_AFTER)?;
    check_engine(app.model()?)?;
    Ok(status("ready"))
}

/// `GET /livez`: fails when only a restart can help. Loading and draining are not failures.
pub async fn live(State(app): State<App>) -> Result<Response, ApiError> {
    check_network(app.silence(), STUCK_AFTER)?;
    app.loaded_model().map_or(Ok(()), check_engine)?;
    Ok(status("alive"))
}

/// `GET /v2/health/live` of the Open Inference Protocol: as [`live`].
pub async fn inference_live(state: State<App>) -> Result<Response, ApiError> {
    live(state).await?;
    Ok(Json(json!({"live": true})).into_response())
}

/// `GET /v2/health/ready` of the Open Inference Protocol: as [`ready`].
pub async fn inference_ready(state: State<App>) -> Result<Response, ApiError> {
    ready(state).await?;
    Ok(Json(json!({"ready": true})).into_response())
}

/// `GET /v2/models/{name}/ready` of the Open Inference Protocol: as [`ready`], for a name that the model is served under.
pub async fn inference_model_ready(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    check_engine(model)?;
    // Whoever asks has no key, so unlike elsewhere the refusal does not say what is served.
    if model.check_name(&name).is_err() {
        return Err(ApiError::PathNotFound);
    }
    Ok(Json(json!({"name": name, "ready": true})).into_response())
}

/// Whether `GET /livez` would succeed.
pub(crate) fn is_alive(app: &App) -> bool {
    app.loaded_model()
        .is_none_or(|model| check_engine(model).is_ok())
}

/// Reads the engine's health without giving it work.
pub(super) fn check_engine(model: &ServedModel) -> Result<(), ApiError> {
    let is_stuck = model.engine.step_age().is_some_and(|age| age > STUCK_AFTER);
    match model.engine.health() {
        Health::Running | Health::Draining if is_stuck => Err(ApiError::EngineStopped),
        Health::Failed => Err(ApiError::EngineStopped),
        Health::Running | Health::Draining | Health::Stopped => Ok(()),
    }
}

/// Whether the thread that serves the API was seen running in the last `limit`. Only the thread of another port can find
/// that it was not.
fn check_network(silence: Option<Duration>, limit: Duration) -> Result<(), ApiError> {
    match silence {
        Some(silence) if silence > limit => Err(ApiError::NetworkStalled),
        _ => Ok(()),
    }
}

/// `GET /version`.
pub async fn version() -> Response {
    Json(json!({"version": build::VERSION, "build": build::ID})).into_response()
}

fn status(status: &str) -> Response {
    Json(json!({"status": status})).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_that_answers_nobody_is_soon_not_ready_and_later_not_alive() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let probes = |silence| {
            [SILENT_AFTER, STUCK_AFTER].map(|limit| check_network(silence, limit).is_ok())
        };
        assert_eq!(probes(None), [true, true], "nobody keeps it up");
        assert_eq!(probes(seconds(2)), [true, true], "a busy machine");
        assert_eq!(probes(seconds(15)), [false, true]);
        assert_eq!(probes(seconds(70)), [false, false]);
    }
}
