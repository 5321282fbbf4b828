//! `GET /v1/models` and `/v1/models/{name}`.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::{Value, json};

use super::error_body::ApiError;
use super::{App, ServedModel};

/// A model as OpenAI lists it, with the two fields that vLLM adds and tools read.
#[derive(Serialize)]
pub struct Card {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    max_model_len: usize,
}

impl Card {
    fn of(model: &ServedModel) -> Self {
        Self {
            id: model.name.clone(),
            object: "model",
            created: model.created,
            owned_by: "microgranite",
            root: model.root.clone(),
            max_model_len: model.engine.limits().context_length,
        }
    }
}

/// The list of the one model.
pub async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let card = Card::of(app.model()?);
    Ok(Json(json!({"object": "list", "data": [card]})))
}

/// One model by name.
pub async fn show(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<Card>, ApiError> {
    let model = app.model()?;
    model.check_name(&name)?;
    Ok(Json(Card::of(model)))
}
