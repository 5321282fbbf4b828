//! `POST /v1/completions`: a prompt in, its continuation out.

mod middle;
pub mod request;
pub mod response;

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use super::admission::Admission;
use super::app::{App, ServedModel};
use super::body::JsonBytes;
use super::error_body::ApiError;
use super::generate::output::OutputRequest;
use super::generate::{self, Work, prompt};
use super::memory::{ReadingTurn, copied};
use super::observe::Record;
use crate::text::Tokenizer;
use middle::Middle;
use request::{CompletionRequest, Prompt};
use response::CompletionWriter;

/// Checks the request, hands its generations to the engine and answers with their text.
pub async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    _: Admission,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Response, ApiError> {
    let (model, _accepted) = app.accept()?;
    let request = CompletionRequest::parse(&body, app.limits())?;
    drop(body);
    let count = request.prompts.len().saturating_mul(request.best_of);
    let param = match (request.common.n, request.best_of) {
        (_, 1) => "prompt",
        (n, best_of) if n == best_of => "n",
        _ => "best_of",
    };
    generate::admit(model, &record, &request.common, param, count)?;
    let request = Arc::new(request);
    let work = prepare(model, &record, &request, turn).await?;
    let writer = CompletionWriter::new(model, Arc::clone(&request), work.prompt_tokens());
    generate::respond(&app, model, record, &request.common, work, writer).await
}

/// The ids of all prompts, checked against vocabulary and context, and the generations for each prompt.
async fn prepare(
    model: &ServedModel,
    record: &Arc<Record>,
    request: &Arc<CompletionRequest>,
    turn: ReadingTurn,
) -> Result<Work, ApiError> {
    let (record, request) = (Arc::clone(record), Arc::clone(request));
    let limits = model.engine.limits();
    let (tokenizer, stop_ids) = (Arc::clone(&model.tokenizer), model.stop_ids.clone());
    let defaults = model.defaults.sampling.clone();
    turn.run(move || {
        let common = &request.common;
        let mut template = common.generation(&tokenizer, &stop_ids, limits, &defaults)?;
        template.max_tokens = request.max_tokens;
        template.score_prompt |= request.scores_echo();
        if request.best_of > common.n && template.scores.is_none() {
            template.scores = Some(0);
        }
        let suffix = request.suffix.as_deref();
        let middle = suffix.map(|suffix| Middle::new(&tokenizer, suffix, limits.context_length));
        let middle = middle.transpose()?;
        let truncation = common.output.truncation;
        let prompts = request.prompts.iter().map(|prompt| {
            // A prompt that is to be truncated may be longer than the context, up to the limit on the body.
            let most = match truncation {
                Some(_) => usize::MAX,
                None => limits.context_length,
            };
            let mut ids = ids(&tokenizer, prompt, most)?;
            if let Some(middle) = &middle {
                ids = middle.surround(ids);
            }
            if let Some(truncation) = truncation {
                let room = limits.context_length.saturating_sub(request.max_tokens);
                truncation.apply(&mut ids, room);
            }
            let answer = (request.max_tokens, common.max_tokens.field);
            prompt::check("prompt", &ids, answer, limits)?;
            Ok(Arc::from(ids))
        });
        let prompts = prompts.collect::<Result<Vec<Arc<[u32]>>, ApiError>>()?;
        if let (true, Some(top)) = (template.score_prompt, template.scores) {
            let tokens = prompts.iter().map(|prompt| prompt.len()).sum();
            let field = common.output.prompt_logprobs.map(|_| "prompt_logprobs");
            let field = field.unwrap_or("logprobs");
            OutputRequest::check_scores(field, tokens, top, request.best_of)?;
        }
        let mut work = Work::new(&record, common, prompts, &template, request.best_of)?;
        work.echo(request.echo);
        Ok(work)
    })
    .await
}

fn ids(tokenizer: &Tokenizer, prompt: &Prompt, most: usize) -> Result<Vec<u32>, ApiError> {
    match prompt {
        Prompt::Ids(ids) => copied(ids, 0),
        Prompt::Text(text) => prompt::encode(tokenizer, "prompt", text, most),
    }
}
