//! `POST /v1/chat/completions`: a conversation in, the assistant's next turn out.
//!
//! [`messages`] reads the conversation, [`request`] the rest of the request, and [`response`] makes messages, tool calls
//! and events of the answers. Between them the model's own template turns the conversation into ids.

pub mod messages;
pub mod request;
pub mod response;

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::body::JsonBytes;
use super::completions::{encode_error, refused, with_ignored};
use super::error_body::ApiError;
use super::observe::Record;
use super::streaming::{Answer, Envelope, Pieces};
use super::{App, ServedModel, unix_seconds};
use crate::text::chat::{ChatError, ChatTemplate, Conversation, Ending};
use crate::text::{Decoder, StopStrings};
use request::{ChatRequest, ToolChoice};

/// Checks the request, renders its conversation, and answers with what the model says next.
pub async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    let request = ChatRequest::parse(&body)?;
    drop(body);
    if let Some(name) = &request.model {
        model.check_name(name)?;
    }
    let template = model.chat_template()?;
    let calls = check_tools(template, &request)?;
    let constraint = request.constraint(model, template)?;
    // Before the tokenizer works for a request that has to be refused.
    model.check_count("n", request.n)?;
    model.engine.has_room(request.n).map_err(refused)?;

    let prompt = encode(model, template, request.conversation.clone()).await?;
    let prompt_tokens = prompt.len();
    record.set_prompt_tokens(prompt_tokens);
    let max_tokens = max_tokens(model, &request, prompt_tokens)?;
    let generations = (0..request.n)
        .map(|index| request.generation(model, &prompt, max_tokens, index, constraint.clone()))
        .collect();
    let streams = model.engine.submit(generations).map_err(refused)?;

    let stops = StopStrings::new(&request.sampling.stop);
    let shown = calls.as_ref().and_then(|calls| calls.shown_token());
    let answers = streams
        .into_iter()
        .map(|tokens| Answer {
            tokens,
            decoder: Decoder::new(Arc::clone(&model.tokenizer)).showing(shown),
            stops: stops.clone(),
        })
        .collect();
    let pieces = Pieces::new(answers, app.cut(), record);
    let envelope = Envelope {
        id: format!("chatcmpl-{:032x}", rand::random::<u128>()),
        created: unix_seconds(),
        model: model.name.clone(),
        fingerprint: model.fingerprint.clone(),
        prompt_tokens,
    };
    let turns = response::Turns::new(request.n, calls, &request);
    let response = if request.stream {
        response::events(pieces, envelope, turns, request.include_usage).await?
    } else {
        response::whole(pieces, envelope, turns).await?
    };
    Ok(with_ignored(response, &request.ignored))
}

/// How calls are written, if the model is to make any.
fn check_tools(
    template: &ChatTemplate,
    request: &ChatRequest,
) -> Result<Option<crate::text::chat::calls::CallSyntax>, ApiError> {
    if request.conversation.tools.is_none() {
        return Ok(None);
    }
    match (template.calls(), &request.tool_choice) {
        (None, _) => Err(ApiError::InvalidValue {
            param: "tools",
            expected: "left out: this model's chat template has no place for tools".to_owned(),
        }),
        (Some(_), ToolChoice::None) => Ok(None),
        (Some(calls), _) => Ok(Some(calls.clone())),
    }
}

/// The ids of a conversation, of which there is at least one.
pub async fn encode(
    model: &ServedModel,
    template: &Arc<ChatTemplate>,
    conversation: Conversation,
) -> Result<Vec<u32>, ApiError> {
    if conversation.documents.is_some() && !template.mentions("documents") {
        return Err(ApiError::InvalidValue {
            param: "documents",
            expected: "left out: this model's chat template has no place for documents".to_owned(),
        });
    }
    let context = model.engine.limits().context_length;
    let (template, tokenizer) = (Arc::clone(template), Arc::clone(&model.tokenizer));
    // A long conversation takes a while, and this thread also writes everyone else's tokens.
    let encoded = spawn_blocking(move || {
        template.encode(&tokenizer, &conversation, Timestamp::now(), context)
    })
    .await
    .map_err(|_panicked| ApiError::Internal)?;
    match encoded {
        Ok(ids) if ids.is_empty() => Err(ApiError::ChatTemplate("it renders to nothing".into())),
        Ok(ids) => Ok(ids),
        Err(ChatError::Template(problem)) => Err(ApiError::ChatTemplate(problem)),
        Err(ChatError::Encode(problem)) => Err(encode_error("messages", problem, context)),
    }
}

/// As many tokens as were asked for, or as the context has room for.
fn max_tokens(
    model: &ServedModel,
    request: &ChatRequest,
    prompt: usize,
) -> Result<usize, ApiError> {
    let context = model.engine.limits().context_length;
    let (param, wanted) = match request.max_tokens {
        Some(max_tokens) if prompt < context => ("max_tokens", max_tokens),
        Some(max_tokens) => ("messages", max_tokens),
        None => ("messages", 1),
    };
    if prompt.saturating_add(wanted) > context {
        let message = format!(
            "this model's context is {context} tokens; {prompt} of the messages and {wanted} of the answer are more"
        );
        return Err(ApiError::ContextLength { param, message });
    }
    Ok(request.max_tokens.unwrap_or(context - prompt))
}

impl ServedModel {
    /// The template, or the answer that there is none.
    pub(super) fn chat_template(&self) -> Result<&Arc<ChatTemplate>, ApiError> {
        self.chat.as_ref().ok_or(ApiError::NoChatTemplate)
    }
}

/// How a prompt ends, by the two switches that vLLM has for it.
pub fn ending(add_generation_prompt: Option<bool>, continue_final: bool) -> Result<Ending, ApiError> {
    match (add_generation_prompt, continue_final) {
        (Some(true), true) => Err(ApiError::InvalidValue {
            param: "continue_final_message",
            expected: "false where 'add_generation_prompt' is true".to_owned(),
        }),
        (_, true) => Ok(Ending::Continued),
        (Some(false), false) => Ok(Ending::Closed),
        (None | Some(true), false) => Ok(Ending::Answer),
    }
}
