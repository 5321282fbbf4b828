//! Reading a request, within limits: how many headers, how long a body, how long it may take.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::error_body::ApiError;

/// More than any context holds as text (131,072 tokens are about half of it), little enough for a thousand at once.
const MAX_BODY_BYTES: usize = 1 << 20;
/// How much of a body that is too long is read and thrown away. Closing with bytes unread resets the connection, and
/// the client would see that instead of our answer.
const MAX_DISCARDED_BYTES: usize = 8 << 20;
/// A megabyte takes this long at 0.8 Mbit/s; whoever is slower holds a connection for nothing.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// The bytes of a JSON body: of the right type, not too long, and in time.
pub struct JsonBytes(pub Vec<u8>);

impl<S: Sync> FromRequest<S> for JsonBytes {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        check_type(request.headers())?;
        match timeout(BODY_DEADLINE, read(request)).await {
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
    // A compressed body would make the limit on its length meaningless.
    match headers.get(CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"identity") => Ok(()),
        Some(_) => Err(ApiError::UnsupportedMediaType(
            "send the body without Content-Encoding",
        )),
    }
}

async fn read(request: Request) -> Result<Vec<u8>, ApiError> {
    // The header is a claim, so it sizes nothing beyond the limit.
    let claimed: usize = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    let mut body = Vec::with_capacity(claimed.min(MAX_BODY_BYTES));
    let mut received = 0;
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_client_stopped| ApiError::BodyIncomplete)?;
        received += chunk.len();
        if received <= MAX_BODY_BYTES {
            body.extend_from_slice(&chunk);
        } else {
            body = Vec::new();
            if received.max(claimed) > MAX_DISCARDED_BYTES {
                break;
            }
        }
    }
    if received > MAX_BODY_BYTES {
        return Err(ApiError::BodyTooLarge(MAX_BODY_BYTES));
    }
    Ok(body)
}
