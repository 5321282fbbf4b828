//! Token events → text → server-sent events, or one JSON body.
//!
//! Nothing here is a task: an answer is made by the body that the connection reads. When the client leaves, the body is
//! dropped, with it the [`TokenStream`]s, and the engine frees their places.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use serde::Serialize;
use tokio::time::timeout;

use super::error_body::ApiError;
use super::observe::Record;
use super::wire::{Choice, Completion, Usage};
use crate::engine::{FinishReason, TokenEvent, TokenStream};
use crate::text::stop::Scan;
use crate::text::{Decoder, StopStrings};

/// Silence after which a comment shows that the connection lives. Proxies give up after 30 to 60 seconds; clients that
/// trip over comments seldom wait 15 for a token.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(15);

/// One prompt's answer in the making.
pub struct Answer {
    /// The engine's side of it.
    pub tokens: TokenStream,
    /// Makes text of the tokens.
    pub decoder: Decoder,
    /// Watches the text.
    pub stops: StopStrings,
}

/// What all parts of a response have in common.
pub struct Envelope {
    /// `cmpl-…`
    pub id: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The served name.
    pub model: String,
    /// See [`super::ServedModel::fingerprint`].
    pub fingerprint: String,
    /// Of all prompts.
    pub prompt_tokens: usize,
}

/// The answers' texts, piece by piece as the tokens come.
pub struct Pieces {
    answers: SelectAll<BoxStream<'static, Result<Piece, ApiError>>>,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    record: Arc<Record>,
}

/// What one token adds to an answer. The text is often empty: half a character, or what may become a stop string.
struct Piece {
    index: usize,
    text: String,
    tokens: usize,
    finish: Option<FinishReason>,
}

impl Answer {
    /// The next piece, and whatever can give the one after it.
    async fn step(mut self, index: usize) -> (Result<Piece, ApiError>, Option<Self>) {
        let piece = |text, tokens, finish| {
            Ok(Piece {
                index,
                text,
                tokens,
                finish,
            })
        };
        match self.tokens.next().await {
            Some(TokenEvent::Token(id)) => {
                let text = self.decoder.push(id);
                match self.stops.push(&text) {
                    Scan::Continue(text) => (piece(text, 1, None), Some(self)),
                    // Dropping the token stream tells the engine to stop.
                    Scan::Stop(text) => (piece(text, 1, Some(FinishReason::Complete)), None),
                }
            }
            Some(TokenEvent::Finished(reason)) => {
                let (text, reason) = match self.stops.push(&self.decoder.finish()) {
                    Scan::Continue(text) => (text + &self.stops.finish(), reason),
                    Scan::Stop(text) => (text, FinishReason::Complete),
                };
                (piece(text, 0, Some(reason)), None)
            }
            Some(TokenEvent::Score(_)) => (piece(String::new(), 0, None), Some(self)),
            // No event at all means that the engine is gone, without even time to say so.
            Some(TokenEvent::Failed) | None => (Err(ApiError::Internal), None),
        }
    }
}

impl Pieces {
    /// Runs `answers` side by side; `cut` resolves when they must end.
    pub fn new(
        answers: Vec<Answer>,
        cut: impl Future<Output = ()> + Send + 'static,
        record: Arc<Record>,
    ) -> Self {
        let answers = answers.into_iter().enumerate().map(|(index, answer)| {
            stream::unfold(Some(answer), move |answer| async move {
                Some(answer?.step(index).await)
            })
            .boxed()
        });
        Self {
            answers: stream::select_all(answers),
            cut: Box::pin(cut),
            record,
        }
    }

    /// The next piece of any answer; `None` when all are complete. Nothing is lost when the future is dropped.
    async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        let piece = tokio::select! {
            biased;
            piece = self.answers.next() => piece?,
            () = &mut self.cut => Err(ApiError::Draining),
        };
        match &piece {
            Ok(piece) => self.record.add_completion_tokens(piece.tokens),
            Err(error) => self.record.set_failed(error),
        }
        Some(piece)
    }
}

/// The whole answer in one body.
///
/// # Errors
/// When a generation fails or is cut off: half an answer is none.
pub async fn whole(mut pieces: Pieces, envelope: Envelope) -> Result<Response, ApiError> {
    let mut answers = vec![(String::new(), None); pieces.answers.len()];
    let mut completion_tokens = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        completion_tokens += piece.tokens;
        let (text, finish) = &mut answers[piece.index];
        text.push_str(&piece.text);
        *finish = piece.finish;
    }
    let choices = answers
        .iter()
        .enumerate()
        .map(|(index, (text, finish))| Choice {
            index,
            text,
            logprobs: (),
            finish_reason: finish.map(reason),
        })
        .collect();
    let usage = envelope.usage(completion_tokens);
    Ok(axum::Json(envelope.completion(choices, Some(Some(usage)))).into_response())
}

/// The answer as server-sent events, one for each token that completes some text.
///
/// # Errors
/// When the first event is a failure: the status line waits for it, so that the client gets a real error.
pub async fn events(
    mut pieces: Pieces,
    envelope: Envelope,
    include_usage: bool,
) -> Result<Response, ApiError> {
    let first = pieces.next().await.ok_or(ApiError::Internal)??;
    let events = Events {
        pieces,
        envelope,
        include_usage,
        completion_tokens: 0,
        waiting: Some(first),
        is_over: false,
    };
    let frames = stream::unfold(events, |mut events| async move {
        let frame = events.next().await?;
        Some((Ok::<_, Infallible>(frame), events))
    });
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        (CACHE_CONTROL.as_str(), "no-cache"),
        // Asks nginx to pass events on one by one.
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(frames)).into_response())
}

/// The state of a stream between two events.
struct Events {
    pieces: Pieces,
    envelope: Envelope,
    include_usage: bool,
    completion_tokens: usize,
    /// The piece that was awaited before the status line.
    waiting: Option<Piece>,
    is_over: bool,
}

impl Events {
    /// What to write next; `None` after the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        loop {
            let piece = match self.waiting.take() {
                Some(piece) => Some(Ok(piece)),
                None => match timeout(KEEP_ALIVE_AFTER, self.pieces.next()).await {
                    Ok(piece) => piece,
                    Err(_silence) => return Some(Bytes::from_static(b":\n\n")),
                },
            };
            match piece {
                Some(Ok(piece)) => {
                    self.completion_tokens += piece.tokens;
                    if !piece.text.is_empty() || piece.finish.is_some() {
                        return Some(self.piece(&piece));
                    }
                }
                Some(Err(error)) => {
                    self.is_over = true;
                    return Some(done(event(&error.body())));
                }
                None => {
                    self.is_over = true;
                    return Some(done(self.usage()));
                }
            }
        }
    }

    fn piece(&self, piece: &Piece) -> Bytes {
        let choice = Choice {
            index: piece.index,
            text: &piece.text,
            logprobs: (),
            finish_reason: piece.finish.map(reason),
        };
        // OpenAI: with `include_usage`, every event has the field, null in all but the last.
        let usage = self.include_usage.then_some(None);
        event(&self.envelope.completion(vec![choice], usage)).into()
    }

    /// The event with the token counts, if it was asked for.
    fn usage(&self) -> Vec<u8> {
        if !self.include_usage {
            return Vec::new();
        }
        let usage = self.envelope.usage(self.completion_tokens);
        event(&self.envelope.completion(Vec::new(), Some(Some(usage))))
    }
}

impl Envelope {
    fn completion<'a>(
        &'a self,
        choices: Vec<Choice<'a>>,
        usage: Option<Option<Usage>>,
    ) -> Completion<'a> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
        }
    }

    const fn usage(&self, completion_tokens: usize) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            total_tokens: self.prompt_tokens + completion_tokens,
        }
    }
}

fn event(value: &impl Serialize) -> Vec<u8> {
    let mut event = b"data: ".to_vec();
    serde_json::to_writer(&mut event, value).expect("our shapes are plain strings and numbers");
    event.extend_from_slice(b"\n\n");
    event
}

/// The end of every stream, failed ones included: clients wait for it.
fn done(mut last: Vec<u8>) -> Bytes {
    last.extend_from_slice(b"data: [DONE]\n\n");
    last.into()
}

const fn reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop(_) | FinishReason::Complete => "stop",
        FinishReason::Length => "length",
    }
}
