//! Pieces of answers → server-sent events.
//!
//! Nothing here is a task: an answer is made by the body that the connection reads. When the client leaves, the body is
//! dropped, with it the token streams, and the engine frees their places.

use std::convert::Infallible;
use std::mem;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::time::timeout;

use super::answer::{Piece, Pieces};
use super::response::Writer;
use crate::http::error_body::ApiError;

/// Silence after which a comment shows that the connection lives. Proxies give up after 30 to 60 seconds; clients that
/// trip over comments seldom wait 15 for a token.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(15);

/// How long the status line waits for the first token. Gateways give up on an answer that has not begun after 30 to 60
/// seconds; before that, a failure is still a status that clients understand.
const BEGIN_AFTER: Duration = Duration::from_secs(10);

/// Answers with events, one for each token that completes some text.
///
/// # Errors
/// When the first event is a failure: the status line waits for it, though not for long, so that the client gets a real
/// error.
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
        // Asks nginx to pass events on one by one.
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(frames)).into_response())
}

/// The state of a stream between two events.
struct Events<W> {
    pieces: Pieces,
    writer: W,
    /// The piece that was awaited before the status line.
    waiting: Option<Piece>,
    /// Whether the status line could not wait for it.
    is_late: bool,
    is_over: bool,
}

impl<W: Writer> Events<W> {
    /// What to write next; `None` after the end.
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
                    Err(_silence) => return Some(Bytes::from_static(b":\n\n")),
                },
            };
            match piece {
                Some(Ok(piece)) => {
                    let events = self.writer.piece(&piece);
                    if !events.is_empty() {
                        return Some(events.into());
                    }
                }
                Some(Err(error)) => {
                    self.is_over = true;
                    return Some(done(event(&error.body())));
                }
                None => {
                    self.is_over = true;
                    return Some(done(self.writer.last()));
                }
            }
        }
    }
}

/// One event.
///
/// # Panics
/// If `value` cannot be JSON, such as a map whose keys are not strings.
pub fn event(value: &impl Serialize) -> Vec<u8> {
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
