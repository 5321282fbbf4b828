//! `POST /v1/chat/completions`: returns the assistant's next message in a conversation.
//!
//! [`messages`] parses the conversation and [`request`] the other fields. [`prompt`] converts the conversation to ids
//! with the model's own template, and [`thinking`] determines whether and how long the model thinks first. [`turn`]
//! separates thoughts, text and tool calls in the answers, and [`response`] writes them with the types in `shapes`.
//!
//! The other APIs for conversations, [`super::responses`] and [`super::messages`], translate their requests into a
//! [`ChatRequest`], and [`Exchange`] answers all of them. They write answers as [`blocks`].

pub mod blocks;
pub mod messages;
pub mod prompt;
pub mod request;
pub mod response;
mod shapes;
pub mod thinking;
pub mod tools;
pub mod turn;

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use super::admission::Admission;
use super::app::{App, ServedModel};
use super::body::JsonBytes;
use super::error_body::ApiError;
use super::fields::invalid;
use super::generate::output::OutputRequest;
use super::generate::response::Writer;
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
use response::ChatWriter;
use thinking::ThinkingDefaults;
use turn::Start;

/// Checks the request, renders its conversation, and responds with the assistant's next message.
pub async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    _: Admission,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Response, ApiError> {
    let (model, _accepted) = app.accept()?;
    let request = ChatRequest::parse(&body, app.limits())?;
    drop(body);
    let exchange = Exchange {
        app: &app,
        model,
        record,
        turn,
    };
    let writer = |request, start: &Start| ChatWriter::new(model, request, start);
    exchange.answer(request, writer).await
}

/// What answers a request beside the request itself.
pub struct Exchange<'a> {
    /// The application.
    pub app: &'a App,
    /// The model.
    pub model: &'a ServedModel,
    /// The record of the request.
    pub record: Arc<Record>,
    /// The turn to tokenize the conversation.
    pub turn: ReadingTurn,
}

impl Exchange<'_> {
    /// Renders the conversation and responds with the assistant's next message, as the route's writer writes it.
    ///
    /// # Errors
    /// When the request does not fit the model, or there is no room for it.
    pub async fn answer<W: Writer>(
        self,
        mut request: ChatRequest,
        writer: impl FnOnce(Arc<ChatRequest>, &Start) -> W,
    ) -> Result<Response, ApiError> {
        let Self { app, model, .. } = self;
        generate::admit(model, &self.record, &request.common, "n", request.common.n)?;
        let (conversation, calls) = settle(model, &mut request)?;
        let request = Arc::new(request);
        let limits = app.limits().clone();
        let prepared = prepare(
            model,
            &self.record,
            &request,
            conversation,
            limits,
            self.turn,
        );
        let (mut work, mut start) = prepared.await?;
        work.show(calls.as_ref().and_then(CallSyntax::shown_token));
        start.calls = calls;
        let writer = writer(Arc::clone(&request), &start);
        generate::respond(app, model, self.record, &request.common, work, writer).await
    }

    /// The number of tokens of the prompt.
    ///
    /// # Errors
    /// When the request does not fit the model.
    pub async fn count(self, mut request: ChatRequest) -> Result<usize, ApiError> {
        let model = self.model;
        if let Some(name) = &request.common.model {
            model.check_name(name)?;
        }
        let (conversation, _calls) = settle(model, &mut request)?;
        let (template, tokenizer) = (
            Arc::clone(model.chat_template()?),
            Arc::clone(&model.tokenizer),
        );
        let room = Room {
            param: request.conversation_field,
            context: model.engine.limits().context_length,
            // A client that counts tokens wants to know by how much a conversation is too long.
            bytes: self.app.limits().body_bytes,
        };
        let work = move || prompt::encode(&template, &tokenizer, &conversation, room);
        Ok(self.turn.run(work).await?.ids.len())
    }
}

/// Settles what depends on the model: whether it thinks and how calls are written. Takes the conversation out of the
/// request.
fn settle(
    model: &ServedModel,
    request: &mut ChatRequest,
) -> Result<(Conversation, Option<CallSyntax>), ApiError> {
    let template = model.chat_template()?;
    let calls = call_syntax(template, request)?;
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
    Ok((conversation, calls))
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
            param: request.conversation_field,
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
            calls: None,
            tools: request.argument_kinds(),
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
    generate::prompt::check(
        request.conversation_field,
        ids,
        (least, asked.field),
        limits,
    )?;
    if let Some(top) = common.output.prompt_logprobs {
        let top = top.max(common.logprobs.unwrap_or(0));
        OutputRequest::check_scores("prompt_logprobs", ids.len(), top, common.n)?;
    }
    let max_tokens = asked.count;
    let max_tokens = max_tokens.unwrap_or((context - ids.len()).min(most));
    common.check_chosen(max_tokens)?;
    Ok(max_tokens)
}
