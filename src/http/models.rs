//! `GET /v1/models` and `/v1/models/{name}`, and the refusal of embeddings.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::{Value, json};

use super::app::{App, CanaryStatus, Facts, ServedModel};
use super::body::JsonBytes;
use super::error_body::ApiError;
use crate::sources::generation::GenerationDefaults;

/// A model as OpenAI lists it, with the two fields that vLLM adds and that tools read, and the cost and savings of
/// int8.
#[derive(Serialize)]
pub struct Card<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: (),
    max_model_len: usize,
    /// Whether the model has a chat template, and whether that template supports tools.
    capabilities: Capabilities,
    quantization: &'a Facts,
    /// The model's own defaults for sampling, which apply to fields that a request leaves out.
    default_generation: &'a GenerationDefaults,
    /// Whether the model still answers fixed prompts as it did.
    canary: CanaryStatus,
}

#[derive(Serialize)]
struct Capabilities {
    completions: bool,
    chat_completions: bool,
    tools: bool,
    reasoning: bool,
    embeddings: bool,
}

impl<'a> Card<'a> {
    fn of(app: &App, model: &'a ServedModel, id: &'a str) -> Self {
        let chat = model.chat.as_ref();
        Self {
            id,
            object: "model",
            created: model.created,
            owned_by: "microgranite",
            root: &model.root,
            parent: (),
            max_model_len: model.engine.limits().context_length,
            capabilities: Capabilities {
                completions: true,
                chat_completions: chat.is_some(),
                tools: chat.is_some_and(|chat| chat.calls().is_some()),
                reasoning: chat.is_some_and(|chat| chat.thoughts().is_some()),
                embeddings: false,
            },
            quantization: &model.facts,
            default_generation: &model.defaults.sampling,
            canary: app.canary(),
        }
    }
}

/// Lists the served model under each of its names.
pub async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let model = app.described_model()?;
    let names = std::iter::once(&model.name).chain(&model.aliases);
    let cards: Vec<Card<'_>> = names.map(|name| Card::of(&app, model, name)).collect();
    Ok(Json(json!({"object": "list", "data": cards})))
}

/// One model by name.
pub async fn show(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let model = app.described_model()?;
    model.check_name(&name)?;
    Ok(Json(json!(Card::of(&app, model, &name))))
}

/// `POST /v1/embeddings`: refused with a clear message, because clients try it.
pub async fn embeddings(_: JsonBytes) -> ApiError {
    ApiError::NoEmbeddings
}
