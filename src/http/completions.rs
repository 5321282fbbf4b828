//! `POST /v1/completions`: a prompt in, its continuation out.

use std::mem;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use tokio::task::spawn_blocking;

use super::body::JsonBytes;
use super::error_body::ApiError;
use super::observe::Record;
use super::streaming::{self, Answer, Envelope, Pieces};
use super::wire::{CompletionRequest, Prompt};
use super::{App, ServedModel, unix_seconds};
use crate::engine::{Generation, Refusal, Sampling};
use crate::text::tokenizer::EncodeError;
use crate::text::{Decoder, StopStrings, Tokenizer};

/// Names listed in `X-Ignored-Params`; a header has to end somewhere.
const MAX_NAMES_LISTED: usize = 16;
/// Characters of a client's text that an answer or a header repeats.
const MAX_REPEATED: usize = 64;

/// Checks the request, hands one generation per prompt to the engine and answers with their text.
pub async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    let mut request = CompletionRequest::parse(&body)?;
    drop(body);
    if let Some(name) = &request.model {
        model.check_name(name)?;
    }

    let prompts = mem::take(&mut request.prompts);
    // Before the tokenizer works for a request that has to be refused.
    check_count(model, prompts.len())?;
    model.engine.has_room(prompts.len()).map_err(refused)?;
    let prompts = tokenize(model, prompts, request.max_tokens).await?;
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    record.set_prompt_tokens(prompt_tokens);
    let generations = prompts
        .into_iter()
        .map(|prompt| generation(model, &request, prompt))
        .collect();
    let streams = model.engine.submit(generations).map_err(refused)?;

    let stops = StopStrings::new(&request.stop);
    let answers = streams
        .into_iter()
        .map(|tokens| Answer {
            tokens,
            decoder: Decoder::new(Arc::clone(&model.tokenizer)),
            stops: stops.clone(),
        })
        .collect();
    let pieces = Pieces::new(answers, app.cut(), record);
    let envelope = Envelope {
        id: format!("cmpl-{:032x}", rand::random::<u128>()),
        created: unix_seconds(),
        model: model.name.clone(),
        fingerprint: model.fingerprint.clone(),
        prompt_tokens,
    };
    let mut response = if request.stream {
        streaming::events(pieces, envelope, request.include_usage).await?
    } else {
        streaming::whole(pieces, envelope).await?
    };
    if let Some(names) = names_for_header(&request.ignored) {
        let header = HeaderName::from_static("x-ignored-params");
        response.headers_mut().insert(header, names);
    }
    Ok(response)
}

/// Refuses what even an idle engine could not take; a 429 would have the client try for ever.
fn check_count(model: &ServedModel, prompts: usize) -> Result<(), ApiError> {
    let limits = model.engine.limits();
    let most = limits.max_batch.saturating_add(limits.max_queue);
    if prompts <= most {
        return Ok(());
    }
    Err(ApiError::InvalidValue {
        param: "prompt",
        expected: format!("at most {most} prompts"),
    })
}

/// The ids of every prompt, all of which the model knows and has room for.
async fn tokenize(
    model: &ServedModel,
    prompts: Vec<Prompt>,
    max_tokens: usize,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let limits = model.engine.limits();
    let tokenizer = Arc::clone(&model.tokenizer);
    // A long text takes a while, and this thread also writes everyone else's tokens.
    let encode_all = move || -> Result<Vec<Vec<u32>>, ApiError> {
        prompts
            .into_iter()
            .map(|prompt| ids(&tokenizer, prompt, limits.context_length))
            .collect()
    };
    let prompts = spawn_blocking(encode_all)
        .await
        .map_err(|_panicked| ApiError::Internal)??;

    for ids in &prompts {
        if ids.iter().any(|&id| id as usize >= limits.vocab_size) {
            return Err(ApiError::InvalidValue {
                param: "prompt",
                expected: format!("made of token ids below {}", limits.vocab_size),
            });
        }
        if ids.len().saturating_add(max_tokens) > limits.context_length {
            let (prompt, context) = (ids.len(), limits.context_length);
            let message = format!(
                "this model's context is {context} tokens; {prompt} of the prompt and {max_tokens} of 'max_tokens' are more"
            );
            let param = if prompt < context {
                "max_tokens"
            } else {
                "prompt"
            };
            return Err(ApiError::ContextLength { param, message });
        }
    }
    Ok(prompts)
}

fn ids(tokenizer: &Tokenizer, prompt: Prompt, context: usize) -> Result<Vec<u32>, ApiError> {
    let text = match prompt {
        Prompt::Ids(ids) => return Ok(ids),
        Prompt::Text(text) => text,
    };
    match tokenizer.encode(&text, context) {
        Ok(ids) if ids.is_empty() => Err(ApiError::InvalidValue {
            param: "prompt",
            expected: "a text of at least one token".to_owned(),
        }),
        Ok(ids) => Ok(ids),
        Err(EncodeError::TooLong { bytes, .. }) => Err(ApiError::ContextLength {
            param: "prompt",
            message: format!(
                "this model's context is {context} tokens; a prompt of {bytes} bytes is more"
            ),
        }),
        Err(EncodeError::TooUniform) => Err(ApiError::InvalidValue {
            param: "prompt",
            expected: "text without such long runs of one kind of character".to_owned(),
        }),
        Err(error @ EncodeError::Failed(_)) => {
            tracing::error!(%error, "tokenizing failed");
            Err(ApiError::Internal)
        }
    }
}

fn generation(model: &ServedModel, request: &CompletionRequest, prompt: Vec<u32>) -> Generation {
    Generation {
        prompt,
        max_tokens: request.max_tokens,
        sampling: Sampling {
            temperature: request.temperature,
            top_k: request.top_k,
            top_p: request.top_p,
            min_p: request.min_p,
            // A given seed holds for each prompt, so that every answer is the one its prompt gets alone.
            seed: request.seed.unwrap_or_else(rand::random),
            ..Sampling::default()
        },
        stop_ids: model.stop_ids.clone(),
        ..Generation::default()
    }
}

fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::QueueFull { retry_after } => ApiError::QueueFull { retry_after },
        Refusal::Draining => ApiError::Draining,
        Refusal::Stopped => ApiError::EngineStopped,
    }
}

/// The field names, as far as they can stand in a header.
fn names_for_header(names: &[String]) -> Option<HeaderValue> {
    let is_plain = |name: &&String| {
        name.len() <= MAX_REPEATED
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    let plain: Vec<&str> = names
        .iter()
        .filter(is_plain)
        .take(MAX_NAMES_LISTED)
        .map(String::as_str)
        .collect();
    let list = match (names.is_empty(), plain.is_empty()) {
        (true, _) => return None,
        (false, true) => "?".to_owned(),
        (false, false) => plain.join(", "),
    };
    HeaderValue::try_from(list).ok()
}

impl ServedModel {
    /// Refuses any name but ours. No name ever becomes a path.
    pub(super) fn check_name(&self, name: &str) -> Result<(), ApiError> {
        if name == self.name {
            return Ok(());
        }
        Err(ApiError::ModelNotFound {
            requested: name.chars().take(MAX_REPEATED).collect(),
            served: self.name.clone(),
        })
    }
}
