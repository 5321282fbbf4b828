//! Reading a request, within limits: how many headers, how long a body, how long it may take.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::App;
use super::error_body::ApiError;

/// How much of a body that is too long is read and thrown away. Closing with bytes unread resets the connection, and
/// the client would see that instead of our answer.
const MAX_DISCARDED_BYTES: usize = 8 << 20;
/// The megabyte of the default limit takes this long at 0.8 Mbit/s; whoever is slower holds a connection for nothing.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// The bytes of a JSON body: of the right type, not too long, and in time.
pub struct JsonBytes(pub Vec<u8>);

impl FromRequest<App> for JsonBytes {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        check_type(request.headers())?;
        match timeout(BODY_DEADLINE, read(request, app.limits().body_bytes)).await {
            Ok(read) => read.map(JsonBytes),
            Err(_elapsed) => Err(ApiError::BodyTimeout(BODY_DEADLINE)),
        }
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
        is_charset.then(|| value.trim().trim_matches('"'))
    });
    if charset.is_some_and(|charset| !charset.eq_ignore_ascii_case("utf-8")) {
        return Err(ApiError::UnsupportedMediaType("send the body in UTF-8"));
    }
    // A compressed body would make the limit on its length meaningless.
    match headers.get(CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"identity") => Ok(()),
        Some(_) => Err(ApiError::UnsupportedMediaType(
            "send the body without Content-Encoding",
        )),
    }
}

async fn read(request: Request, max_bytes: usize) -> Result<Vec<u8>, ApiError> {
    // The header is a claim, so it sizes nothing beyond the limit.
    let claimed: usize = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    let mut body = Vec::with_capacity(claimed.min(max_bytes));
    let mut received = 0;
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_client_stopped| ApiError::BodyIncomplete)?;
        received += chunk.len();
        if received <= max_bytes {
            body.extend_from_slice(&chunk);
        } else {
            body = Vec::new();
            if received.max(claimed) > MAX_DISCARDED_BYTES {
                break;
            }
        }
    }
    if received > max_bytes {
        return Err(ApiError::BodyTooLarge(max_bytes));
    }
    Ok(body)
}
