//! Pieces of answers → server-sent events.
//!
//! No task is spawned here: the answer is produced as the connection reads the response body. When the client
//! disconnects, the body and with it the token streams are dropped, and the engine frees their slots.

use std::convert::Infallible;
use std::mem;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::time::timeout;

use super::answer::Piece;
use super::pieces::Pieces;
use super::response::Writer;
use crate::http::error_body::ApiError;

/// Time without events after which a comment shows that the connection is alive. Proxies give up after 30 to 60
/// seconds. Some clients cannot parse comments, but they seldom wait 15 seconds for a token.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(15);

/// How long the status line waits for the first token. As long as it has not been sent, a failure still gets an error
/// status that clients understand. Gateways give up on a response that has not begun after 30 to 60 seconds.
const BEGIN_AFTER: Duration = Duration::from_secs(10);

/// Responds with events, one for each token that completes some text.
///
/// # Errors
/// When the first event is a failure. The status line waits a while for the first event, so that the client gets an
/// error status.
pub async fn events(mut pieces: Pieces, writer: impl Writer) -> Result<Response, ApiError> {
    let first = match timeout(BEGIN_AFTER, pieces.next()).await {
        Ok(first) => Some(first.ok_or(ApiError::Internal)??),
        Err(_silence) => None,
    };
    let events = Events {
        pieces,
        writer,
        is_late: first.is_none(),
        waiting: first,
        is_over: false,
    };
    let frames = stream::unfold(events, |mut events| async move {
        let frame = events.next().await?;
        Some((Ok::<_, Infallible>(frame), events))
    });
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        (CACHE_CONTROL.as_str(), "no-cache"),
        // Tells nginx to forward events one by one.
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(frames)).into_response())
}

/// The state of a stream between two events.
struct Events<W> {
    pieces: Pieces,
    writer: W,
    /// The first piece, if it arrived before the status line was sent.
    waiting: Option<Piece>,
    /// Whether the status line was sent without waiting any longer for the first piece.
    is_late: bool,
    is_over: bool,
}

impl<W: Writer> Events<W> {
    /// Ends the stream with an error.
    fn fail(&mut self, error: &ApiError) -> Bytes {
        self.is_over = true;
        self.writer.failed(error).into()
    }

    /// The next bytes to write; `None` after the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        if mem::take(&mut self.is_late) {
            return Some(Bytes::from_static(b": waiting\n\n"));
        }
        loop {
            let piece = match self.waiting.take() {
                Some(piece) => Some(Ok(piece)),
                None => match timeout(KEEP_ALIVE_AFTER, self.pieces.next()).await {
                    Ok(piece) => piece,
                    Err(_silence) => return Some(Bytes::from_static(self.writer.idle())),
                },
            };
            match piece {
                Some(Ok(piece)) => {
                    let mut events = self.writer.piece(&piece);
                    let kept = self.writer.kept_bytes();
                    if kept > 0
                        && let Err(error) = self.pieces.hold(kept)
                    {
                        // The writer has counted the events of this piece already.
                        events.extend(self.fail(&error));
                        return Some(events.into());
                    }
                    if !events.is_empty() {
                        return Some(events.into());
                    }
                }
                Some(Err(error)) => return Some(self.fail(&error)),
                None => {
                    self.is_over = true;
                    let receipt = self.pieces.receipt();
                    return Some(self.writer.last(receipt).into());
                }
            }
        }
    }
}

/// One event without a name.
///
/// # Panics
/// If `value` cannot be JSON, such as a map whose keys are not strings.
pub fn event(value: &impl Serialize) -> Vec<u8> {
    let mut event = Vec::new();
    write_data(&mut event, value);
    event
}

/// One event with a name, as OpenAI's Responses API and Anthropic's API have them.
///
/// # Panics
/// As [`event`].
pub fn named_event(name: &str, value: &impl Serialize) -> Vec<u8> {
    let mut event = format!("event: {name}\n").into_bytes();
    write_data(&mut event, value);
    event
}

fn write_data(event: &mut Vec<u8>, value: &impl Serialize) {
    event.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *event, value).expect("our shapes are plain strings and numbers");
    event.extend_from_slice(b"\n\n");
}

/// Adds the end of the streams of completions and chat completions, for which clients wait.
pub fn done(mut last: Vec<u8>) -> Vec<u8> {
    last.extend_from_slice(b"data: [DONE]\n\n");
    last
}

/// The end of a stream of completions or chat completions that fails.
pub fn failure(error: &ApiError) -> Vec<u8> {
    done(event(&error.body()))
}
