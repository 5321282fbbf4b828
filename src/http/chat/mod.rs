//! `POST /v1/chat/completions`: returns the assistant's next message in a conversation.
//!
//! [`messages`] parses the conversation and [`request`] the other fields. [`prompt`] converts the conversation to ids
//! with the model's own template, and [`thinking`] determines whether and how long the model thinks first. `turn`
//! separates text and tool calls in the answers, and [`response`] writes them with the types in `shapes`.

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

/// Checks the request, renders its conversation, and responds with the assistant's next message.
pub async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Response, ApiError> {
    let (model, _accepted) = app.accept()?;
    let mut request = ChatRequest::parse(&body, app.limits())?;
    drop(body);
    generate::admit(model, &request.common, "n", request.common.n)?;
    let template = model.chat_template()?;
    let calls = call_syntax(template, &request)?;
    if let Some(syntax) = &calls {
        request.force_call(syntax);
    }
    let mut conversation = std::mem::take(&mut request.conversation);
    let ignored = request.thinking.ignored(template);
    request.common.ignored.extend(ignored);
    let defaults = model.defaults.thinking;
    let max_tokens = request.common.max_tokens.count;
    request
        .thinking
        .apply(template, &mut conversation, max_tokens, defaults)?;
    let request = Arc::new(request);
    let limits = app.limits().clone();
    let (mut work, start) = prepare(model, &record, &request, conversation, limits, turn).await?;
    work.show(calls.as_ref().and_then(CallSyntax::shown_token));
    let writer = ChatWriter::new(model, Arc::clone(&request), calls, start);
    generate::respond(&app, model, record, &request.common, work, writer).await
}

/// Returns the format of tool calls, if the answer may have any.
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

/// Tokenizes the conversation, checks that it fits the context, and prepares the generations and the start of their
/// answers. Without `max_tokens`, the limits in `most` apply to each answer.
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
            // A prompt that is truncated later may exceed the context, but not the size of a body: templates must not
            // produce more text than a client may send.
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
            let bounds = Bounds {
                stops: common.own_stop_ids(&stop_ids),
                ..bounds
            };
            work.think(form, &tokenizer, splitter, bounds, request.thinking.shown())?;
        }
        Ok((work, start))
    })
    .await
}

/// Returns the most tokens of the thought in an answer of at most `max_tokens`, and the tokens that follow the thought:
/// the start of a call, if a call is forced and the prompt does not end with its start.
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
        stops: Vec::new(),
    })
}

/// Truncates the prompt if the request asks for it, and refuses prompts that do not fit the context or have unknown
/// ids. Returns the most tokens of an answer: the requested number, or else the rest of the context, but at most
/// `most`.
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
