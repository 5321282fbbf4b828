//! One log line and one count per request, and `GET /metrics`.

use std::any::Any;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};

use super::App;
use super::error_body::{ApiError, ErrorCode};
use crate::telemetry::Metrics;

/// The routes that count in `requests_total` and `request_duration_seconds`: probes would drown them.
const COUNTED: [&str; 2] = ["/v1/completions", "/v1/chat/completions"];

/// All that is known about one request. It ends when the last byte of the answer has been handed to the connection,
/// or earlier when the client has left; then the line is written and the counters move, once.
pub struct Record {
    metrics: Arc<Metrics>,
    id: HeaderValue,
    method: Method,
    /// As the route table has it, so that neither log nor metrics hold what clients make up.
    route: String,
    started: Instant,
    /// 0 until there is a response.
    status: AtomicU16,
    code: OnceLock<&'static str>,
    prompt_tokens: AtomicUsize,
    completion_tokens: AtomicUsize,
    has_failed: AtomicBool,
    is_complete: AtomicBool,
}

impl Record {
    /// Token counts as they become known.
    pub fn set_prompt_tokens(&self, count: usize) {
        self.prompt_tokens.store(count, Relaxed);
    }

    /// Adds to the tokens of the answer.
    pub fn add_completion_tokens(&self, count: usize) {
        self.completion_tokens.fetch_add(count, Relaxed);
    }

    /// Notes an error that comes too late for the status line.
    pub fn set_failed(&self, error: &ApiError) {
        self.has_failed.store(true, Relaxed);
        let _first_counts = self.code.set(error.code());
    }

    /// One of the values of `requests_total{outcome}`.
    fn outcome(&self) -> &'static str {
        match self.status.load(Relaxed) {
            429 | 503 => "rejected",
            400..500 => "invalid",
            500.. => "error",
            _ if self.has_failed.load(Relaxed) => "error",
            _ if self.is_complete.load(Relaxed) => "ok",
            _ => "cancelled",
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let outcome = self.outcome();
        let elapsed = self.started.elapsed();
        if COUNTED.contains(&self.route.as_str()) {
            let metrics = &self.metrics;
            metrics.requests_total.with_label_values(&[outcome]).inc();
            metrics
                .request_duration_seconds
                .observe(elapsed.as_secs_f64());
        }
        // Never the prompt, the answer, the key or a path that the client made up.
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    request_id = self.id.to_str().unwrap_or_default(),
                    method = self.method.as_str(),
                    route = self.route,
                    status = self.status.load(Relaxed),
                    outcome,
                    code = self.code.get(),
                    prompt_tokens = self.prompt_tokens.load(Relaxed),
                    completion_tokens = self.completion_tokens.load(Relaxed),
                    duration_ms = elapsed.as_millis() as u64,
                    "request"
                )
            };
        }
        if outcome == "error" {
            line!(tracing::Level::ERROR);
        } else if super::PUBLIC.contains(&self.route.as_str()) {
            line!(tracing::Level::DEBUG);
        } else {
            line!(tracing::Level::INFO);
        }
    }
}

/// Follows a request from its head to the last byte of its answer, and gives it an id.
pub async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>();
    let record = Arc::new(Record {
        metrics: Arc::clone(app.metrics()),
        id: id.clone(),
        method: request.method().clone(),
        route: route.map_or("unknown", MatchedPath::as_str).to_owned(),
        started: Instant::now(),
        status: AtomicU16::new(0),
        code: OnceLock::new(),
        prompt_tokens: AtomicUsize::new(0),
        completion_tokens: AtomicUsize::new(0),
        has_failed: AtomicBool::new(false),
        is_complete: AtomicBool::new(false),
    });
    request.extensions_mut().insert(Arc::clone(&record));

    let mut response = next.run(request).await;
    record.status.store(response.status().as_u16(), Relaxed);
    if let Some(ErrorCode(code)) = response.extensions().get() {
        let _first_counts = record.code.set(code);
    }
    let header = HeaderName::from_static("x-request-id");
    response.headers_mut().insert(header, id);
    response.map(|body| Body::new(Watched { body, record }))
}

/// The client's `X-Request-Id` if it is harmless in a log, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_plain = |id: &&HeaderValue| {
        (1..=64).contains(&id.len())
            && id
                .as_bytes()
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(byte))
    };
    match headers.get("x-request-id").filter(is_plain) {
        Some(id) => id.clone(),
        None => HeaderValue::try_from(format!("{:032x}", rand::random::<u128>()))
            .expect("hexadecimal digits are valid in a header"),
    }
}

/// A response body that tells its record when it has been read to the end.
struct Watched {
    body: Body,
    record: Arc<Record>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // A body of known length is not polled again after its last frame.
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.record.is_complete.store(true, Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Answers a request whose handler panicked. The panic itself is in the log already.
pub fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    ApiError::Internal.into_response()
}

/// `GET /metrics`: reads atomics and `/proc`, never the engine's thread.
pub async fn metrics(State(app): State<App>) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, app.metrics().render()).into_response()
}
