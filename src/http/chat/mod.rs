//! `POST /v1/chat/completions`: a conversation in, the assistant's next turn out.
//!
//! [`messages`] reads the conversation, [`request`] the rest of the request, and [`prompt`] has the model's own template
//! make ids of it; [`thinking`] says whether and how long the model thinks first. `turn` finds text and tool calls in the
//! answers, and [`response`] writes them in the shapes of `shapes`.

pub mod messages;
pub mod prompt;
pub mod request;
pub mod response;
mod shapes;
pub mod thinking;
mod turn;

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use super::app::{App, ServedModel};
use super::body::JsonBytes;
use super::error_body::ApiError;
use super::fields::invalid;
use super::generate::output::OutputRequest;
use super::generate::{self, Work};
use super::limits::Limits;
use super::memory::ReadingTurn;
use super::observe::Record;
use crate::engine;
use crate::text::Tokenizer;
use crate::text::chat::calls::CallSyntax;
use crate::text::chat::{ChatTemplate, Conversation, Prompt};
use crate::text::thoughts::{Bounds, Phase, Splitter};
use prompt::Room;
use request::ChatRequest;
use response::{ChatWriter, Start};
use thinking::ThinkingDefaults;

/// Checks the request, renders its conversation, and answers with what the model says next.
pub async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    let mut request = ChatRequest::parse(&body, app.limits())?;
    drop(body);
    generate::admit(model, &request.common, "n", request.common.n)?;
    let template = model.chat_template()?;
    let calls = call_syntax(template, &request)?;
    if let Some(syntax) = &calls {
        request.force_call(syntax);
    }
    let mut conversation = std::mem::take(&mut request.conversation);
    let defaults = model.defaults.thinking;
    request
        .thinking
        .apply(template, &mut conversation, defaults);
    let request = Arc::new(request);
    let limits = app.limits().clone();
    let (mut work, start) = prepare(model, &record, &request, conversation, limits, turn).await?;
    work.show(calls.as_ref().and_then(CallSyntax::shown_token));
    let writer = ChatWriter::new(model, Arc::clone(&request), calls, start);
    generate::respond(&app, model, record, &request.common, work, writer).await
}

/// How calls are written, if the model may make any.
fn call_syntax(
    template: &ChatTemplate,
    request: &ChatRequest,
) -> Result<Option<CallSyntax>, ApiError> {
    if request.tools.is_empty() {
        return Ok(None);
    }
    match template.calls() {
        Some(calls) => Ok(Some(calls.clone())),
        None => {
            let expected = "left out: this model's chat template has no place for tools";
            Err(invalid("tools", expected))
        }
    }
}

/// The generations for the conversation, whose prompt the model has room for, and what their answers begin with. Without
/// `max_tokens` each has at most what `most` allows.
async fn prepare(
    model: &ServedModel,
    record: &Arc<Record>,
    request: &Arc<ChatRequest>,
    conversation: Conversation,
    most: Limits,
    turn: ReadingTurn,
) -> Result<(Work, Start), ApiError> {
    let defaults = model.defaults.clone();
    let (record, request) = (Arc::clone(record), Arc::clone(request));
    let template = Arc::clone(model.chat_template()?);
    let (tokenizer, stop_ids) = (Arc::clone(&model.tokenizer), model.stop_ids.clone());
    let limits = model.engine.limits();
    turn.run(move || {
        let common = &request.common;
        let room = Room {
            context: limits.context_length,
            // One that is cut down may be longer, as long as a body: templates may not make more of it than was sent.
            bytes: common.output.truncation.map_or(0, |_| most.body_bytes),
        };
        let Prompt {
            mut ids,
            thoughts,
            opens_call,
        } = prompt::encode(&template, &tokenizer, &conversation, room)?;
        let longest = defaults.sampling.max_new_tokens.unwrap_or(usize::MAX);
        let longest = longest.min(most.tokens);
        let max_tokens = fit(&request, &mut ids, longest, limits)?;
        let mut generation =
            common.generation(&tokenizer, &stop_ids, limits, &defaults.sampling)?;
        generation.max_tokens = max_tokens;
        let mut work = Work::new(&record, common, vec![ids.into()], &generation, common.n)?;
        let start = Start {
            prompt_tokens: work.prompt_tokens(),
            in_call: opens_call,
            thinks: template.thoughts().is_some(),
        };
        if let (Some(form), Some(splitter)) = (template.thoughts(), thoughts) {
            let bounds = bounds(
                &request,
                &template,
                &tokenizer,
                &splitter,
                max_tokens,
                defaults.thinking,
            )?;
            let leaves = !request.thinking.is_separate;
            work.think(form, &tokenizer, splitter, bounds, leaves)?;
        }
        Ok((work, start))
    })
    .await
}

/// How long the thought of an answer of at most `max_tokens` may be, and what follows it: the beginning of a call, where
/// one is forced and the prompt has not begun it.
fn bounds(
    request: &ChatRequest,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    splitter: &Splitter,
    max_tokens: usize,
    defaults: ThinkingDefaults,
) -> Result<Bounds, ApiError> {
    let is_forced = request.must_call && splitter.phase() == Phase::Thought;
    let opener = match is_forced {
        true => template
            .opener(tokenizer)
            .map_err(|_no_ids| ApiError::Internal)?,
        false => Vec::new(),
    };
    Ok(Bounds {
        budget: request.thinking.budget(max_tokens, defaults),
        opener,
    })
}

/// Cuts down the prompt if that was asked for, and refuses what the model has no room for or does not know. Returns how
/// many tokens an answer may have: as many as were asked for, or as the context has room for and a request may have.
fn fit(
    request: &ChatRequest,
    ids: &mut Vec<u32>,
    most: usize,
    limits: engine::Limits,
) -> Result<usize, ApiError> {
    let (common, context) = (&request.common, limits.context_length);
    let asked = common.max_tokens;
    let least = asked.count.unwrap_or(1);
    if let Some(truncation) = common.output.truncation {
        truncation.apply(ids, context.saturating_sub(least));
    }
    generate::prompt::check("messages", ids, (least, asked.field), limits)?;
    if let Some(top) = common.output.prompt_logprobs {
        let top = top.max(common.logprobs.unwrap_or(0));
        OutputRequest::check_scores("prompt_logprobs", ids.len(), top, common.n)?;
    }
    let max_tokens = asked.count;
    let max_tokens = max_tokens.unwrap_or((context - ids.len()).min(most));
    common.check_chosen(max_tokens)?;
    Ok(max_tokens)
}
