//! The responses to refused and failed requests. Only this file decides their status codes;
//! [`messages::errors`](super::messages::errors) translates them for Anthropic's API.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::header::{CONNECTION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Every error that a request can be answered with.
///
/// `Display` is the message for the client; causes are only logged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// The body is not JSON, or not a JSON object.
    #[error("the body is not a valid JSON object: {0}")]
    InvalidJson(String),
    /// A required field is absent.
    #[error("'{param}' is required")]
    Missing {
        /// The field.
        param: &'static str,
    },
    /// A field has the wrong type or a value out of range.
    #[error("'{param}' must be {expected}")]
    InvalidValue {
        /// The field, or the place in it, such as `tools[2].function.parameters`.
        param: Cow<'static, str>,
        /// What the value must be.
        expected: String,
    },
    /// A field of OpenAI's API that would change the answer and is not supported.
    #[error("'{param}' is not supported yet: {neutral}")]
    Unsupported {
        /// The field.
        param: &'static str,
        /// The values that are accepted.
        neutral: &'static str,
    },
    /// An unknown field, if the server is strict about unknown fields.
    #[error("'{param}' is not a field of this API, or changes nothing here")]
    UnknownParameter {
        /// The field, shortened.
        param: String,
    },
    /// The model has no chat template.
    #[error(
        "this model has no chat template: send a prompt to /v1/completions, or start the server with --chat-template FILE"
    )]
    NoChatTemplate,
    /// The chat template rejects the conversation.
    #[error("the model's chat template does not take these messages: {problem}")]
    ChatTemplate {
        /// The field with the messages.
        param: &'static str,
        /// The template's complaint.
        problem: String,
    },
    /// The model cannot compute embeddings.
    #[error("this model makes text, not embeddings: use /v1/completions or /v1/chat/completions")]
    NoEmbeddings,
    /// Prompt and answer together do not fit the context.
    #[error("{message}")]
    ContextLength {
        /// The field to shorten.
        param: &'static str,
        /// The message, with the lengths and the limit.
        message: String,
    },
    /// The request names a model that is not served here.
    #[error("the model '{requested}' does not exist; this server has '{served}'")]
    ModelNotFound {
        /// The requested name, shortened.
        requested: String,
        /// The served name.
        served: String,
    },
    /// No such path.
    #[error("there is nothing at this path")]
    PathNotFound,
    /// The path exists, the method does not.
    #[error("this path does not have this method; see the Allow header")]
    MethodNotAllowed,
    /// No key, or an unknown key.
    #[error("a valid API key is required: send 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'")]
    Unauthorized,
    /// The body did not arrive in time.
    #[error("the body did not arrive within {} seconds", .0.as_secs())]
    BodyTimeout(Duration),
    /// The client stopped sending in the middle of the body.
    #[error("the body ended early")]
    BodyIncomplete,
    /// The body's chunked encoding is invalid: a chunk's length is not a number, or does not match the chunk.
    #[error("the body is not in the chunks that its head promises")]
    BodyMalformed,
    /// The body is longer than allowed.
    #[error("the body is longer than {0} bytes")]
    BodyTooLarge(usize),
    /// The request needs more memory than the budget of all requests together.
    #[error(
        "the request takes {bytes} bytes of memory, and all together may take {total}: send less at once"
    )]
    RequestTooLarge {
        /// The bytes that it needs.
        bytes: usize,
        /// The budget in bytes.
        total: usize,
    },
    /// Other requests hold the memory that this one needs, or the system has none left.
    #[error("there is no memory left for this request; retry later")]
    OutOfMemory,
    /// The body has another media type or is compressed.
    #[error("{0}")]
    UnsupportedMediaType(&'static str),
    /// The queue has no room for the request.
    #[error("the server is at capacity: {limit}; retry later")]
    QueueFull {
        /// What there is no room for.
        limit: &'static str,
        /// When the queue is likely to have room.
        retry_after: Duration,
    },
    /// The first token would come later than the operator allows.
    #[error("the server is at capacity: the first token would come too late; retry later")]
    TooLate {
        /// When it would come in time.
        retry_after: Duration,
    },
    /// A limit of the client's key.
    #[error("{message}; retry later")]
    LimitReached {
        /// Whose limit it is, and which.
        message: String,
        /// When the next request is within it.
        retry_after: Duration,
    },
    /// The process that compiles grammars cannot be started.
    #[error("grammars cannot be compiled now; retry later, or ask without one")]
    GrammarsUnavailable,
    /// The model is being loaded.
    #[error("the model is loading")]
    Loading,
    /// The server is finishing running requests before it stops.
    #[error("the server is shutting down")]
    Draining,
    /// A step takes too long.
    #[error("the engine does not answer; retry later")]
    Stalled,
    /// The thread that serves the API hangs.
    #[error("the API does not answer")]
    NetworkStalled,
    /// The weights do not match their checksums.
    #[error("the model's weights are damaged; the server's log has the file and the tensor")]
    Damaged,
    /// The model no longer answers fixed prompts as it did.
    #[error("the model does not answer as it did; the server's log has the details")]
    CanaryFailed,
    /// The engine has stopped; only a restart helps.
    #[error("the engine has stopped")]
    EngineStopped,
    /// A defect of the server.
    #[error("internal error")]
    Internal,
}

/// The body of every error: `{"error": {"message", "type", "param", "code"}}`, as OpenAI's clients expect it.
#[derive(Serialize)]
pub struct ErrorBody {
    error: ErrorFields,
}

#[derive(Serialize)]
struct ErrorFields {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: &'static str,
}

/// The response to a connection beyond the limit. It is sent without hyper, so it is written out as bytes.
pub const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\ncontent-length: 123\r\nconnection: close\r\nretry-after: 1\r\n\r\n\
    {\"error\":{\"message\":\"too many connections; retry later\",\"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}\n";

/// The response to plain HTTP on a port that speaks TLS.
pub const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: application/json\r\ncontent-length: 138\r\nconnection: close\r\n\r\n\
    {\"error\":{\"message\":\"this port speaks HTTPS; write https:// in the URL\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"plain_http\"}}\n";

/// `Retry-After` while loading, draining or short of memory: long enough that clients do not flood the server, short
/// enough that they notice soon when it is ready.
const RETRY_SOON: Duration = Duration::from_secs(1);

impl ApiError {
    /// Status and code.
    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidJson(_) => (StatusCode::BAD_REQUEST, "json_parse_error"),
            Self::Missing { .. } => (StatusCode::BAD_REQUEST, "missing_required_parameter"),
            Self::InvalidValue { .. } => (StatusCode::BAD_REQUEST, "invalid_value"),
            Self::Unsupported { .. } => (StatusCode::BAD_REQUEST, "unsupported_parameter"),
            Self::UnknownParameter { .. } => (StatusCode::BAD_REQUEST, "unknown_parameter"),
            Self::NoChatTemplate => (StatusCode::BAD_REQUEST, "no_chat_template"),
            Self::ChatTemplate { .. } => (StatusCode::BAD_REQUEST, "chat_template_error"),
            Self::NoEmbeddings => (StatusCode::BAD_REQUEST, "unsupported_endpoint"),
            Self::ContextLength { .. } => (StatusCode::BAD_REQUEST, "context_length_exceeded"),
            Self::ModelNotFound { .. } => (StatusCode::NOT_FOUND, "model_not_found"),
            Self::PathNotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "invalid_api_key"),
            Self::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::BodyIncomplete => (StatusCode::BAD_REQUEST, "body_incomplete"),
            Self::BodyMalformed => (StatusCode::BAD_REQUEST, "body_malformed"),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::RequestTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::OutOfMemory => (StatusCode::SERVICE_UNAVAILABLE, "out_of_memory"),
            Self::UnsupportedMediaType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
            }
            Self::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Self::TooLate { .. } => (StatusCode::TOO_MANY_REQUESTS, "first_token_too_late"),
            Self::LimitReached { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
            Self::GrammarsUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "grammars_unavailable"),
            Self::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            Self::Stalled => (StatusCode::SERVICE_UNAVAILABLE, "engine_stalled"),
            Self::NetworkStalled => (StatusCode::SERVICE_UNAVAILABLE, "network_stalled"),
            Self::Damaged => (StatusCode::SERVICE_UNAVAILABLE, "weights_damaged"),
            Self::CanaryFailed => (StatusCode::SERVICE_UNAVAILABLE, "canary_failed"),
            Self::EngineStopped => (StatusCode::SERVICE_UNAVAILABLE, "engine_stopped"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        }
    }

    /// The code by which programs distinguish errors.
    pub fn code(&self) -> &'static str {
        self.kind().1
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// The field that is at fault, if it is one field.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::UnknownParameter { param } => Some(param),
            Self::InvalidValue { param, .. } => Some(param),
            Self::Missing { param }
            | Self::Unsupported { param, .. }
            | Self::ChatTemplate { param, .. }
            | Self::ContextLength { param, .. } => Some(param),
            Self::ModelNotFound { .. } => Some("model"),
            _ => None,
        }
    }

    /// The same error for a field that is itself in the field `outer`, such as `messages[3]`.
    #[must_use]
    pub fn inside(self, outer: &str) -> Self {
        let (param, expected) = match self {
            Self::Missing { param } => (Cow::from(param), "given".to_owned()),
            Self::InvalidValue { param, expected } => (param, expected),
            other => return other,
        };
        let dot = if param.is_empty() || param.starts_with('[') {
            ""
        } else {
            "."
        };
        Self::InvalidValue {
            param: format!("{outer}{dot}{param}").into(),
            expected,
        }
    }

    /// When a retry makes sense. `None` if the same request would fail again.
    const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. }
            | Self::TooLate { retry_after }
            | Self::LimitReached { retry_after, .. } => Some(*retry_after),
            Self::Loading
            | Self::Draining
            | Self::OutOfMemory
            | Self::Stalled
            | Self::NetworkStalled
            | Self::GrammarsUnavailable => Some(RETRY_SOON),
            _ => None,
        }
    }

    /// The body of the response, also sent as the last event of a stream that fails.
    pub fn body(&self) -> ErrorBody {
        let (status, code) = self.kind();
        let r#type = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        ErrorBody {
            error: ErrorFields {
                message: self.to_string(),
                r#type,
                param: self.param().map(str::to_owned),
                code,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), axum::Json(self.body())).into_response();
        // For the log line, and for routes whose errors have another shape.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after() {
            // The standard header has whole seconds, rounded up. OpenAI's clients read the finer `retry-after-ms`
            // first.
            let seconds = after.as_millis().div_ceil(1000).max(1) as u64;
            headers.insert(RETRY_AFTER, seconds.into());
            let milliseconds = after.as_millis() as u64;
            headers.insert(
                HeaderName::from_static("retry-after-ms"),
                milliseconds.into(),
            );
        }
        match self {
            Self::Unauthorized => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // OpenAI's clients retry after every 5xx unless a header tells them not to.
            Self::EngineStopped | Self::Damaged | Self::CanaryFailed => {
                let name = HeaderName::from_static("x-should-retry");
                headers.insert(name, HeaderValue::from_static("false"));
            }
            // The rest of the body must not be read as the next request; a stopping server accepts no next request.
            Self::BodyTimeout(_)
            | Self::BodyIncomplete
            | Self::BodyMalformed
            | Self::BodyTooLarge(_)
            | Self::OutOfMemory
            | Self::Draining => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_that_refuse_a_connection_are_a_whole_response() {
        for (response, code) in [
            (TOO_MANY_CONNECTIONS, "too_many_connections"),
            (PLAIN_HTTP, "plain_http"),
        ] {
            let text = std::str::from_utf8(response).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(
                head.contains(&format!("content-length: {}\r\n", body.len())),
                "{code}: {}",
                body.len()
            );
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["error"]["code"], code);
        }
    }
}
