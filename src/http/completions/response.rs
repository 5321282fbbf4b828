//! Answers → the JSON of `POST /v1/completions`, whole or in events.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::request::CompletionRequest;
use crate::http::app::ServedModel;
use crate::http::error_body::ApiError;
use crate::http::generate::answer::{Finish, Piece, StopReason};
use crate::http::generate::logprobs::{Logprobs, PromptLogprobs, name_or_id};
use crate::http::generate::output::StreamOptions;
use crate::http::generate::response::{Counts, Head, UsageField, Writer};
use crate::http::generate::streaming::{done, event, failure};
use crate::http::receipt::Receipt;

/// OpenAI's value of `object`, for whole responses and for events.
const OBJECT: &str = "text_completion";

/// One answer to one prompt, or a piece of it.
#[derive(Serialize)]
struct Choice<'a> {
    /// The prompt's index times `n`, plus the answer's index.
    index: usize,
    /// The text of the answer, with the prompt's text in front if the request sets `echo`.
    text: &'a str,
    /// Log-probabilities of the text's tokens, if requested.
    logprobs: Option<Logprobs>,
    /// `stop` or `length`; `null` in events before the last.
    finish_reason: Option<&'static str>,
    /// The string or id of the request that ended the answer.
    stop_reason: Option<StopReason>,
    /// The prompt's ids, if requested; in a stream with the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    /// The generated ids, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    /// Log-probabilities of the prompt's tokens, if requested with `prompt_logprobs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
}

/// Writes the answers to a request.
pub struct CompletionWriter {
    head: Head,
    counts: Counts,
    request: Arc<CompletionRequest>,
    stream: StreamOptions,
}

impl CompletionWriter {
    /// A writer for a request whose prompts have `prompt_tokens` tokens together.
    pub fn new(model: &ServedModel, request: Arc<CompletionRequest>, prompt_tokens: usize) -> Self {
        Self {
            head: Head::new("cmpl-", model),
            counts: Counts::new(prompt_tokens, request.best_of),
            stream: request.common.output.stream.unwrap_or_default(),
            request,
        }
    }

    fn choice<'a>(&self, index: usize, piece: &'a Piece) -> Choice<'a> {
        let common = &self.request.common;
        let output = &common.output;
        let echoed = match self.request.echo {
            true => &piece.prompt[..],
            false => &[],
        };
        let generated = || piece.tokens.iter().chain(&piece.end);
        let has_logprobs = common.logprobs.is_some()
            && !(echoed.is_empty() && piece.tokens.is_empty() && piece.finish.is_none());
        let finish = piece.finish.as_ref();
        let name = |id| name_or_id(&self.head.tokenizer, output.names_by_id, id);
        Choice {
            index,
            text: &piece.text,
            logprobs: has_logprobs.then(|| {
                Logprobs::of(
                    name,
                    common.alternatives(),
                    echoed.iter().chain(generated()),
                )
            }),
            finish_reason: finish.map(Finish::reason),
            stop_reason: finish.and_then(Finish::stop_reason),
            prompt_token_ids: piece.prompt_ids.as_deref().filter(|_| output.token_ids),
            token_ids: output
                .token_ids
                .then(|| generated().map(|token| token.id).collect()),
            prompt_logprobs: output
                .prompt_logprobs
                .map(|top| PromptLogprobs::of(&self.head.tokenizer, top, &piece.prompt)),
        }
    }
}

impl Writer for CompletionWriter {
    fn piece(&mut self, piece: &Piece) -> Vec<u8> {
        self.counts.add_cached(piece);
        self.counts.add_generated(piece);
        let choice = self.choice(piece.index, piece);
        let is_silent = piece.text.is_empty()
            && piece.finish.is_none()
            && choice.logprobs.is_none()
            && choice.token_ids.is_none();
        if is_silent {
            return Vec::new();
        }
        let usage = self.stream.usage(self.counts.usage());
        event(&self.head.body(OBJECT, vec![choice], usage))
    }

    fn last(&mut self, receipt: Option<Receipt>) -> Vec<u8> {
        if !self.stream.include_usage {
            return done(Vec::new());
        }
        let none: Vec<Choice<'_>> = Vec::new();
        let usage = UsageField::Counts(self.counts.usage());
        let body = self.head.body(OBJECT, none, usage);
        done(event(&body.with_receipt(receipt)))
    }

    fn failed(&mut self, error: &ApiError) -> Vec<u8> {
        failure(error)
    }

    fn whole(mut self, answers: Vec<Piece>, receipt: Option<Receipt>) -> Response {
        for answer in &answers {
            self.counts.add_cached(answer);
            self.counts.add_generated(answer);
        }
        let (n, best_of) = (self.request.common.n, self.request.best_of);
        let mut given: Vec<&Piece> = Vec::new();
        for answers in answers.chunks(best_of) {
            let mut ranked: Vec<&Piece> = answers.iter().collect();
            if best_of > n {
                // The sort is stable: equally likely answers keep their order.
                ranked.sort_by(|a, b| likelihood(b).total_cmp(&likelihood(a)));
            }
            given.extend(&ranked[..n]);
        }
        let choices = given.into_iter().enumerate();
        let choices = choices.map(|(index, answer)| self.choice(index, answer));
        let usage = UsageField::Counts(self.counts.usage());
        let body = self.head.body(OBJECT, choices.collect(), usage);
        Json(body.with_receipt(receipt)).into_response()
    }
}

/// The mean log-probability of an answer's tokens, by which `best_of` ranks.
fn likelihood(answer: &Piece) -> f64 {
    let scores = answer
        .tokens
        .iter()
        .filter_map(|token| token.score.as_ref());
    let sum: f64 = scores.map(|score| f64::from(score.token.1)).sum();
    sum / answer.tokens.len().max(1) as f64
}
