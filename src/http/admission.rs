//! Refuses a request to generate text before its body is read: what its client may not send now, and what there would be
//! no room for, so that refusals are quick under load.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::app::App;
use super::body::claimed_length;
use super::error_body::ApiError;
use super::generate::refused;
use super::memory::FREE_BYTES;
use super::observe::Record;

/// The request may be read.
pub struct Admission;

impl FromRequestParts<App> for Admission {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Some(record) = parts.extensions.get::<Arc<Record>>() else {
            return Ok(Self);
        };
        record.begin()?;
        // Reading a short body costs less than a connection that is closed because its body was not read.
        if claimed_length(&parts.headers).is_none_or(|claimed| claimed > FREE_BYTES) {
            let engine = &app.model()?.engine;
            let room = engine.has_room(record.flow(None), 1);
            room.map_err(|refusal| refused(record, refusal))?;
        }
        Ok(Self)
    }
}
