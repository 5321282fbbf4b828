//! Reading a request, within limits: how many headers, how long a body, how long it may take.

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

/// The megabyte of the default limit takes this long at 0.8 Mbit/s; whoever is slower holds a connection for nothing.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// The same where others wait for the memory that a body holds: those who send slowly must not keep out those who do
/// not.
const BUSY_DEADLINE: Duration = Duration::from_secs(2);

/// The bytes of a JSON body: of the right type, not too long, and in time; and the turn to read them. What they take is
/// held by the request's record.
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
    // The second is no registered name, but many clients write it.
    let is_utf8 = |charset: &str| {
        ["utf-8", "utf8"]
            .iter()
            .any(|name| charset.eq_ignore_ascii_case(name))
    };
    if charset.is_some_and(|charset| !is_utf8(charset)) {
        return Err(ApiError::UnsupportedMediaType("send the body in UTF-8"));
    }
    // A compressed body would make the limit on its length meaningless.
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

fn claimed_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What it is to a client that its body cannot be read on: hyper has the reader's error at the bottom of its own.
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

/// Reads a body of at most `max_bytes`, in memory that is `held` before it is filled.
async fn read(request: Request, max_bytes: usize, held: &mut Held) -> Result<Vec<u8>, ApiError> {
    let too_large = || ApiError::BodyTooLarge(max_bytes);
    let claimed = claimed_length(request.headers());
    if claimed.is_some_and(|claimed| claimed > max_bytes) {
        // What comes of it is read when the connection is closed, so that the answer arrives.
        return Err(too_large());
    }
    let mut body = Vec::new();
    // All at once: bodies that each held a part and waited for the rest would wait for each other.
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
