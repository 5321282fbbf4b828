//! Reads the body of a request within limits on its type, its length, its memory and its time.

use std::error::Error;
use std::future::pending;
use std::io;
use std::iter::successors;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use futures_util::StreamExt;
use tokio::time::sleep;

use super::app::App;
use super::error_body::ApiError;
use super::memory::{FREE_BYTES, Held, ReadingTurn, parsed_bytes, reserve};
use super::observe::Record;

/// The deadline for a body. A body of 1 MiB, the default limit, takes this long at 0.8 Mbit/s; slower clients would
/// only occupy a connection.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline for a body that holds memory while other requests wait for memory: slow clients must not keep out
/// others.
const BUSY_DEADLINE: Duration = Duration::from_secs(2);

/// The bytes of a JSON body that has the right type, is short enough and arrived in time, and the turn to parse them.
/// The memory for them is held by the request's [`Record`].
pub struct JsonBytes(pub Vec<u8>, pub ReadingTurn);

impl FromRequest<App> for JsonBytes {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        check_type(request.headers())?;
        let record = request.extensions().get::<Arc<Record>>().cloned();
        let mut held = app.memory().hold();
        let takes_none =
            claimed_length(request.headers()).is_some_and(|claimed| claimed <= FREE_BYTES);
        let in_the_way = async {
            if takes_none {
                return pending().await;
            }
            sleep(BUSY_DEADLINE).await;
            app.memory().shortage().await;
        };
        let body = tokio::select! {
            body = read(request, app.limits().body_bytes, &mut held) => body?,
            () = in_the_way => return Err(ApiError::OutOfMemory),
            () = sleep(BODY_DEADLINE) => return Err(ApiError::BodyTimeout(BODY_DEADLINE)),
        };
        held.resize(parsed_bytes(&body)).await?;
        if let Some(record) = record {
            record.keep(held);
        }
        let turn = app.memory().turn(body.len()).await?;
        Ok(Self(body, turn))
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let mime = text(CONTENT_TYPE).unwrap_or_default();
    let essence = mime.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let problem = "send the body as 'Content-Type: application/json'";
        return Err(ApiError::UnsupportedMediaType(problem));
    }
    let charset = mime.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is_charset = name.trim().eq_ignore_ascii_case("charset");
        is_charset.then(|| value.trim().trim_matches(['"', '\'']))
    });
    // `utf8` is not a registered name, but many clients send it.
    let is_utf8 = |charset: &str| {
        ["utf-8", "utf8"]
            .iter()
            .any(|name| charset.eq_ignore_ascii_case(name))
    };
    if charset.is_some_and(|charset| !is_utf8(charset)) {
        return Err(ApiError::UnsupportedMediaType("send the body in UTF-8"));
    }
    // With compressed bodies, the limit on their length would be meaningless.
    let encoding = headers
        .get(CONTENT_ENCODING)
        .map(|value| value.as_bytes().trim_ascii());
    match encoding {
        None | Some(b"") => Ok(()),
        Some(name) if name.eq_ignore_ascii_case(b"identity") => Ok(()),
        Some(_) => Err(ApiError::UnsupportedMediaType(
            "send the body without Content-Encoding",
        )),
    }
}

/// The length that the head of a request promises for its body.
pub fn claimed_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The response to a failure while reading a body. hyper wraps the reader's error at the bottom of its own.
fn unreadable(problem: &(dyn Error + 'static)) -> ApiError {
    let mut causes = successors(Some(problem), |problem: &&(dyn Error + 'static)| {
        (*problem).source()
    });
    let kind = causes.find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()));
    match kind {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => ApiError::BodyMalformed,
        _ => ApiError::BodyIncomplete,
    }
}

/// Reads a body of at most `max_bytes` into memory that is reserved in `held` before it is filled.
async fn read(request: Request, max_bytes: usize, held: &mut Held) -> Result<Vec<u8>, ApiError> {
    let too_large = || ApiError::BodyTooLarge(max_bytes);
    let claimed = claimed_length(request.headers());
    if claimed.is_some_and(|claimed| claimed > max_bytes) {
        // The bytes that still arrive are read and discarded when the connection is closed, so that the client gets the
        // response.
        return Err(too_large());
    }
    let mut body = Vec::new();
    // Reserved all at once: bodies that each held a part and waited for the rest would deadlock.
    let mut room = claimed.unwrap_or(FREE_BYTES);
    held.resize(room).await?;
    reserve(&mut body, room)?;
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|problem| unreadable(&problem))?;
        let length = body.len() + chunk.len();
        if length > max_bytes {
            return Err(too_large());
        }
        if length > room {
            room = max_bytes;
            held.resize(room).await?;
            let more = room - body.len();
            reserve(&mut body, more)?;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
