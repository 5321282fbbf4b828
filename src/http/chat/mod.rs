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

use super::answer::{Answer, Pieces, Rules, scored_bytes};
use super::body::JsonBytes;
use super::completions::refused;
use super::error_body::ApiError;
use super::fields::ignored_header;
use super::memory::{Turn, copied};
use super::observe::Record;
use super::output::OutputRequest;
use super::prompt::{self, encode_error};
use super::structured::UNENFORCED;
use super::{App, ServedModel, streaming, unix_seconds};
use crate::engine::Generation;
use crate::text::chat::calls::CallSyntax;
use crate::text::chat::{ChatError, ChatTemplate, Conversation};
use request::ChatRequest;
use response::{Chunks, Head};

/// Checks the request, renders its conversation, and answers with what the model says next.
pub async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    let mut request = ChatRequest::parse(&body, app.limits())?;
    drop(body);
    if let Some(name) = &request.model {
        model.check_name(name)?;
    }
    let template = model.chat_template()?;
    let calls = call_syntax(template, &request)?;
    if let Some(syntax) = &calls {
        request.force_call(syntax);
    }
    // Before the tokenizer works for a request that has to be refused.
    let n = request.sampling.n;
    model.check_count("n", n)?;
    model.engine.has_room(n).map_err(refused)?;

    let conversation = std::mem::take(&mut request.conversation);
    let mut prompt = encode(model, template, conversation, turn).await?;
    let max_tokens = fit(model, &request, &mut prompt, app.limits().tokens)?;
    record.set_prompt_tokens(prompt.len());
    let scored = request.sampling.output.prompt_logprobs;
    let each = size_of::<u32>() + scored.map_or(0, scored_bytes);
    record.hold(prompt.len().saturating_mul(size_of::<u32>() + n * each))?;
    let prompt: Arc<[u32]> = prompt.into();
    let request = Arc::new(request);
    let generation = generation(model, &request).await?;
    let generations = (0..n).map(|choice| {
        let mut generation = generation.clone();
        generation.prompt = copied(&prompt, max_tokens)?;
        generation.max_tokens = max_tokens;
        generation.sampling.seed = request.sampling.seed(choice);
        Ok(generation)
    });
    let mut generations = generations.collect::<Result<Vec<_>, ApiError>>()?;
    let grammar = request.sampling.grammar.as_ref();
    let unenforced = model
        .constrain(&mut generations, grammar, app.limits().strict)
        .await?;
    let streams = model.engine.submit(generations).map_err(refused)?;

    let rules = Arc::new(Rules {
        shown_token: calls.as_ref().and_then(CallSyntax::shown_token),
        ..request.sampling.rules(max_tokens)
    });
    let answers = streams.into_iter().map(|events| {
        let (prompt, tokenizer) = (Arc::clone(&prompt), Arc::clone(&model.tokenizer));
        Answer::new(events, prompt, tokenizer, Arc::clone(&rules))
    });
    let pieces = Pieces::new(answers.collect(), app.cut(), record);
    let head = Head {
        id: format!("chatcmpl-{:032x}", rand::random::<u128>()),
        created: unix_seconds(),
        model: model.name.clone(),
        fingerprint: model.fingerprint.clone(),
        prompt_tokens: prompt.len(),
        tokenizer: Arc::clone(&model.tokenizer),
        request: Arc::clone(&request),
        calls,
    };
    let mut response = match request.stream {
        Some(options) => streaming::events(pieces, Chunks::new(head, n, options)).await?,
        None => response::whole(pieces, head).await?,
    };
    if let Some(names) = ignored_header(&request.ignored) {
        response.headers_mut().insert("x-ignored-params", names);
    }
    if let Some(keywords) = unenforced {
        response.headers_mut().insert(UNENFORCED, keywords);
    }
    Ok(response)
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
        None => Err(ApiError::InvalidValue {
            param: "tools",
            expected: "left out: this model's chat template has no place for tools".to_owned(),
        }),
    }
}

/// The generation that the request asks for, without prompt, length and seed.
async fn generation(
    model: &ServedModel,
    request: &Arc<ChatRequest>,
) -> Result<Generation, ApiError> {
    let (request, tokenizer) = (Arc::clone(request), Arc::clone(&model.tokenizer));
    let (stop_ids, limits) = (model.stop_ids.clone(), model.engine.limits());
    // Tokenizing takes a while.
    spawn_blocking(move || request.sampling.generation(&tokenizer, &stop_ids, limits))
        .await
        .map_err(|_panicked| ApiError::Internal)?
}

/// The ids of a conversation, of which there is at least one.
pub async fn encode(
    model: &ServedModel,
    template: &Arc<ChatTemplate>,
    conversation: Conversation,
    turn: Turn,
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
        let _turn = turn;
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

/// Cuts down the prompt if that was asked for, and refuses what the model has no room for or does not know. Returns how
/// many tokens an answer may have: as many as were asked for, or as the context has room for and a request may have.
fn fit(
    model: &ServedModel,
    request: &ChatRequest,
    prompt: &mut Vec<u32>,
    most: usize,
) -> Result<usize, ApiError> {
    const PARAM: &str = "messages";
    let limits = model.engine.limits();
    let context = limits.context_length;
    let wanted = request.max_tokens.unwrap_or(1);
    let sampling = &request.sampling;
    if let Some(truncation) = sampling.output.truncation {
        truncation.apply(prompt, context.saturating_sub(wanted));
    }
    prompt::check(PARAM, prompt, wanted, limits)?;
    if let Some(top) = sampling.output.prompt_logprobs {
        let top = top.max(sampling.logprobs.unwrap_or(0));
        OutputRequest::check_scores("prompt_logprobs", prompt.len(), top, sampling.n)?;
    }
    let max_tokens = request.max_tokens;
    let max_tokens = max_tokens.unwrap_or((context - prompt.len()).min(most));
    sampling.check_chosen(max_tokens)?;
    Ok(max_tokens)
}

impl ServedModel {
    /// The template, or the answer that there is none.
    pub(super) fn chat_template(&self) -> Result<&Arc<ChatTemplate>, ApiError> {
        self.chat.as_ref().ok_or(ApiError::NoChatTemplate)
    }
}
