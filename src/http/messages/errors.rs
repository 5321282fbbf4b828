//! Errors in the shape of Anthropic's API: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

use axum::Json;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::http::error_body::ApiError;
use crate::http::line_limit::OVERLOADED;

/// The path of the API. All paths below it belong to the API too.
const PATHS: [&str; 2] = ["/v1/messages", "/messages"];

/// The header with the request's id that the API's clients read.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// The body of every error.
#[derive(Serialize)]
pub struct ErrorBody {
    r#type: &'static str,
    error: ErrorFields,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

#[derive(Serialize)]
struct ErrorFields {
    r#type: &'static str,
    message: String,
}

impl ErrorBody {
    /// The body for `error`.
    pub fn of(error: &ApiError, request_id: Option<String>) -> Self {
        Self {
            r#type: "error",
            error: ErrorFields {
                r#type: kind(status(error)),
                message: error.to_string(),
            },
            request_id,
        }
    }
}

/// Whether a path belongs to this API. A prefix of all paths must have been removed.
pub fn is_below(path: &str) -> bool {
    let rest = PATHS.iter().find_map(|root| path.strip_prefix(root));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Gives a response to a request of this API the header with the request's id, and the API's shape and status if it is
/// an error. The other headers stay.
pub fn in_anthropics_shape(mut response: Response, request_id: &HeaderValue) -> Response {
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, request_id.clone());
    let Some(error) = response.extensions().get::<ApiError>() else {
        return response;
    };
    let request_id = request_id.to_str().map(str::to_owned).ok();
    let body = Json(ErrorBody::of(error, request_id)).into_response();
    *response.status_mut() = status(error);
    response.headers_mut().remove(CONTENT_LENGTH);
    *response.body_mut() = body.into_body();
    response
}

/// The API has no 503: its 529 says that a retry makes sense. The other statuses are those of OpenAI's API.
fn status(error: &ApiError) -> StatusCode {
    match error.status() {
        StatusCode::SERVICE_UNAVAILABLE => {
            StatusCode::from_u16(OVERLOADED).expect("it has three digits")
        }
        status => status,
    }
}

/// The type of errors with this status.
fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        OVERLOADED => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_this_api_have_its_errors() {
        for (path, is_its) in [
            ("/v1/messages", true),
            ("/messages", true),
            ("/v1/messages/", true),
            ("/v1/messages/count_tokens", true),
            ("/messages/batches/1", true),
            ("/v1/messagesx", false),
            ("/v1/chat/completions", false),
            ("/v1/", false),
            ("", false),
        ] {
            assert_eq!(is_below(path), is_its, "{path}");
        }
    }

    #[test]
    fn every_status_has_a_type() {
        let text = serde_json::to_string(&ErrorBody::of(&ApiError::Draining, None)).unwrap();
        assert_eq!(
            text,
            "{\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"the server is shutting down\"}}"
        );
        for (error, status, name) in [
            (ApiError::Unauthorized, 401, "authentication_error"),
            (ApiError::PathNotFound, 404, "not_found_error"),
            (ApiError::MethodNotAllowed, 405, "invalid_request_error"),
            (ApiError::BodyTooLarge(3), 413, "request_too_large"),
            (ApiError::Internal, 500, "api_error"),
            (ApiError::EngineStopped, 529, "overloaded_error"),
            (
                ApiError::Missing { param: "x" },
                400,
                "invalid_request_error",
            ),
        ] {
            assert_eq!(super::status(&error).as_u16(), status, "{error}");
            assert_eq!(kind(super::status(&error)), name, "{error}");
        }
    }
}
