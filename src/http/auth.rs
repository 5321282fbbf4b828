//! Requires an API key, if the server has keys.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::access::{ApiKeys, Client};
use super::app::App;
use super::error_body::ApiError;
use super::observe::Record;

/// Passes a request on if the server has no keys or the request carries one of them. Its record then knows the client.
pub async fn require_key(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(keys) = &app.access().keys {
        let client = client_of(request.headers(), keys).ok_or(ApiError::Unauthorized)?;
        if let Some(record) = request.extensions().get::<Arc<Record>>() {
            record.set_client(client);
        }
    }
    Ok(next.run(request).await)
}

/// The client of a request with these headers, if they have one of `keys`.
fn client_of(headers: &HeaderMap, keys: &ApiKeys) -> Option<Arc<Client>> {
    let mut given = [bearer(headers), api_key(headers)].into_iter().flatten();
    given.find_map(|key| keys.client(key))
}

/// The key in the `Authorization: Bearer` header, if there is exactly one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = only(headers, AUTHORIZATION.as_str())?;
    let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}

/// The key in the `X-Api-Key` header, if there is exactly one.
fn api_key(headers: &HeaderMap) -> Option<&[u8]> {
    only(headers, "x-api-key").map(HeaderValue::as_bytes)
}

/// The value of a header that occurs exactly once; `None` if it is absent or repeated.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}
