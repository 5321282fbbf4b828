//! `/tokenize`, `/detokenize` and `/tokenizer_info`, in vLLM's formats, which evaluation tools use.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;

use super::app::{App, ServedModel};
use super::body::JsonBytes;
use super::chat::thinking::ThinkingRequest;
use super::chat::{self, messages, prompt::Room, request::take_ending};
use super::error_body::ApiError;
use super::fields::Fields;
use super::generate::logprobs;
use super::generate::prompt::{check_count, check_ids, encode};
use super::observe::Record;

/// Bytes that an id and its text take, as values and as JSON.
const BYTES_PER_TOKEN: usize = 96;

/// The response of `/tokenize`.
#[derive(Serialize)]
pub struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    /// The tokens' texts, if the request wants them.
    token_strs: Option<Vec<String>>,
}

/// The response of `/detokenize`.
#[derive(Serialize)]
pub struct Detokenized {
    prompt: String,
}

/// The response of `/tokenizer_info`.
#[derive(Serialize)]
pub struct Info {
    tokenizer_class: &'static str,
    /// `null`: no token is put in front of a prompt.
    bos_token: (),
    eos_token: Option<String>,
    pad_token: Option<String>,
    vocab_size: usize,
    model_max_length: usize,
    chat_template: Option<String>,
}

/// `POST /tokenize`: the ids of a text or of a conversation.
pub async fn tokenize(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Json<Tokenized>, ApiError> {
    let model = app.model()?;
    let mut fields = Fields::parse(&body)?;
    check_model(model, &mut fields)?;
    let prompt: Option<String> = fields.take("prompt", "a string")?;
    let with_texts = fields.flag("return_token_strs")?;
    // Accepted and unused: the tokenizers of these models add no special tokens.
    let _: Option<bool> = fields.take("add_special_tokens", "true or false")?;
    let context = model.engine.limits().context_length;
    let tokens = match prompt {
        Some(text) if text.is_empty() => Vec::new(),
        Some(text) => {
            let tokenizer = model.tokenizer.clone();
            // No limit on the ids: a client that counts tokens wants to know by how much a text is too long.
            let work = move || encode(&tokenizer, "prompt", &text, usize::MAX);
            turn.run(work).await?
        }
        None if fields.has("messages") => {
            let (mut conversation, _tools) = messages::take(&mut fields)?;
            conversation.ending = take_ending(&mut fields)?;
            let thinking = ThinkingRequest::take(&mut fields)?;
            let template = Arc::clone(model.chat_template()?);
            let defaults = model.defaults.thinking;
            thinking.apply(&template, &mut conversation, None, defaults)?;
            let tokenizer = Arc::clone(&model.tokenizer);
            let room = Room {
                param: "messages",
                context,
                bytes: app.limits().body_bytes,
            };
            let work = move || {
                let prompt = chat::prompt::encode(&template, &tokenizer, &conversation, room);
                prompt.map(|prompt| prompt.ids)
            };
            turn.run(work).await?
        }
        None => return Err(ApiError::Missing { param: "prompt" }),
    };
    fields.finish(app.limits().strict)?;
    record.hold(tokens.len().saturating_mul(BYTES_PER_TOKEN))?;
    let names = tokens
        .iter()
        .map(|&id| logprobs::name(&model.tokenizer, id));
    Ok(Json(Tokenized {
        count: tokens.len(),
        max_model_len: context,
        token_strs: with_texts.then(|| names.collect()),
        tokens,
    }))
}

/// `POST /detokenize`: the text of ids, special tokens included.
pub async fn detokenize(
    State(app): State<App>,
    JsonBytes(body, _turn): JsonBytes,
) -> Result<Json<Detokenized>, ApiError> {
    const PARAM: &str = "tokens";
    let model = app.model()?;
    let mut fields = Fields::parse(&body)?;
    check_model(model, &mut fields)?;
    let limits = model.engine.limits();
    let expected = format!("a list of token ids below {}", limits.vocab_size);
    let tokens = fields
        .ids(PARAM, &expected)?
        .ok_or(ApiError::Missing { param: PARAM })?;
    check_ids(PARAM, &tokens, limits)?;
    // Half a megabyte of short ids can stand for long tokens, so the limit on the body does not bound the text.
    check_count(PARAM, tokens.len(), limits.context_length)?;
    fields.finish(app.limits().strict)?;
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|&id| model.tokenizer.bytes(id))
        .copied()
        .collect();
    let prompt = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Json(Detokenized { prompt }))
}

/// `GET /tokenizer_info`.
pub async fn info(State(app): State<App>) -> Result<Json<Info>, ApiError> {
    let model = app.model()?;
    let end = model.stop_ids.first();
    let end = end.map(|&id| logprobs::name(&model.tokenizer, id));
    Ok(Json(Info {
        tokenizer_class: "PreTrainedTokenizerFast",
        bos_token: (),
        pad_token: end.clone(),
        eos_token: end,
        vocab_size: model.tokenizer.vocab_size(),
        model_max_length: model.engine.limits().context_length,
        chat_template: model.chat.as_ref().map(|chat| chat.source().to_owned()),
    }))
}

fn check_model(model: &ServedModel, fields: &mut Fields<'_>) -> Result<(), ApiError> {
    match fields.take::<String>("model", "a string")? {
        Some(name) => model.check_name(&name),
        None => Ok(()),
    }
}
