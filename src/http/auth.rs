//! API keys.

use std::hint::black_box;
use std::path::Path;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::error_body::ApiError;
use super::{App, PUBLIC};
use crate::error::{Error, Result};

/// The keys that are let in, as digests: neither memory dumps nor comparison times tell them.
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// Reads a file with one key per line; blank lines are skipped.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the file cannot be read, [`Error::Config`] when it holds no key: a server that was
    /// asked to be locked must not start open.
    pub fn read(file: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).map_err(|problem| Error::not_found(file, problem))?;
        let keys: Vec<[u8; 32]> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|key| Sha256::digest(key).into())
            .collect();
        if keys.is_empty() {
            let problem = format!("{}: the file of API keys is empty", file.display());
            return Err(Error::Config(problem));
        }
        Ok(Self(keys))
    }

    /// Whether `key` is one of ours. Takes the same time wherever and whether it differs.
    fn accept(&self, key: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(key).into();
        self.0.iter().fold(false, |accepted, known| {
            let difference = known
                .iter()
                .zip(&given)
                .fold(0, |bits, (a, b)| black_box(bits | (a ^ b)));
            accepted | (difference == 0)
        })
    }
}

/// Lets a request through if no keys are set, its path is public, or it has a key.
pub async fn require_key(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> std::result::Result<Response, ApiError> {
    match &app.0.keys {
        Some(keys) if !PUBLIC.contains(&request.uri().path()) => {
            let accepted = bearer(request.headers()).is_some_and(|key| keys.accept(key));
            if !accepted {
                return Err(ApiError::Unauthorized);
            }
        }
        _ => {}
    }
    Ok(next.run(request).await)
}

/// The key of the one `Authorization: Bearer` header; several are as good as none.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}
