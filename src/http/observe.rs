//! One log line and one count per request, and `GET /metrics`.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::{Client, FairBy, Running};
use super::app::App;
use super::attended_body::{Attendant, AttendedBody};
use super::error_body::ApiError;
use super::line_limit::{self, OVERLOADED};
use super::memory::Held;
use super::messages::errors;
use super::receipt::{Generations, Receipt};
use super::trace::{Ending, Trace};
use crate::engine::Flow;
use crate::telemetry::Metrics;

/// What kind of requests a route gets, which decides what is logged and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Generates text. Only these requests count in `requests_total` and `request_duration_seconds`, because probes
    /// would outnumber them.
    Counted,
    /// Requests are logged but not counted.
    Ordinary,
    /// Requested every few seconds, by probes and scrapers. Their log lines would bury the others.
    Frequent,
}

/// What [`observe`] needs to log and count requests.
#[derive(Clone)]
pub struct Observer {
    /// Holds the metrics.
    pub app: App,
    /// Maps a path as the router has it to the full path and its kind of traffic.
    pub identify: fn(&str) -> Option<(&'static str, Traffic)>,
}

/// All that is known about one request. It is dropped when the last byte of the response has been handed to the
/// connection, or earlier if the client disconnects. Then the log line is written and the metrics are updated, once.
pub struct Record {
    metrics: Arc<Metrics>,
    id: HeaderValue,
    method: Method,
    /// The path as in the route table, so that neither log nor metrics contain paths invented by clients.
    route: &'static str,
    traffic: Traffic,
    /// Its spans, if it is traced.
    trace: Option<Trace>,
    started: Instant,
    fair_by: FairBy,
    /// Whose request it is, if the server has keys.
    client: OnceLock<Arc<Client>>,
    /// Its place among the requests that the client may have at once.
    running: OnceLock<Running>,
    /// 0 until there is a response.
    status: AtomicU16,
    code: OnceLock<&'static str>,
    prompt_tokens: AtomicUsize,
    completion_tokens: AtomicUsize,
    /// What the engine takes for it, once it was handed over.
    generations: OnceLock<Generations>,
    has_failed: AtomicBool,
    is_complete: AtomicBool,
    /// The part of the memory budget that the request and its answer hold.
    held: Mutex<Option<Held>>,
    /// The bytes of `held` that are not for the answer.
    held_bytes: AtomicUsize,
}

impl Record {
    /// Records whose request it is.
    pub fn set_client(&self, client: Arc<Client>) {
        let _first_counts = self.client.set(client);
    }

    /// Whose request it is, if the server has keys.
    pub fn client(&self) -> Option<&Client> {
        self.client.get().map(Arc::as_ref)
    }

    /// Begins to generate for the client, until the request ends.
    ///
    /// # Errors
    /// [`ApiError::LimitReached`].
    pub fn begin(&self) -> Result<(), ApiError> {
        if let Some(client) = self.client.get() {
            let _begun_once = self.running.set(client.begin()?);
        }
        Ok(())
    }

    /// Whose the generations of this request are, if it names an end user with such a number.
    pub fn flow(&self, user: Option<u64>) -> Flow {
        self.fair_by.flow(self.client(), user)
    }

    /// Keeps the memory of the body until the request ends.
    pub fn keep(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// Holds `bytes` of the memory budget from now on, in place of what the body took.
    ///
    /// # Errors
    /// [`ApiError::RequestTooLarge`] or [`ApiError::OutOfMemory`].
    pub fn hold(&self, bytes: usize) -> Result<(), ApiError> {
        self.held_bytes.store(bytes, Relaxed);
        self.hold_more(0)
    }

    /// Holds `bytes` in addition to those of the last [`Self::hold`].
    ///
    /// # Errors
    /// The same.
    pub fn hold_more(&self, bytes: usize) -> Result<(), ApiError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *held {
            Some(held) => held.try_resize(self.held_bytes.load(Relaxed).saturating_add(bytes)),
            None => Ok(()),
        }
    }

    /// Records the number of prompt tokens, and charges the client.
    pub fn set_prompt_tokens(&self, count: usize) {
        self.prompt_tokens.store(count, Relaxed);
        self.charge(count);
    }

    /// Adds to the tokens of the answer, and charges the client.
    pub fn add_completion_tokens(&self, count: usize) {
        self.completion_tokens.fetch_add(count, Relaxed);
        self.charge(count);
    }

    fn charge(&self, tokens: usize) {
        if let Some(client) = self.client() {
            client.charge(tokens);
        }
    }

    /// Keeps the receipts of its generations, when they are handed to the engine.
    pub fn set_generations(&self, generations: Generations) {
        let _handed_over_once = self.generations.set(generations);
    }

    /// What the request has taken so far, with the outcome that it has if nothing more happens.
    pub fn receipt(&self, outcome: &'static str) -> Receipt {
        Receipt::new(
            self.generations.get(),
            self.prompt_tokens.load(Relaxed),
            self.completion_tokens.load(Relaxed),
            outcome,
        )
    }

    /// Counts an answer that is complete, by its finish reason.
    pub fn count_answer(&self, finish_reason: &str) {
        let answers = &self.metrics.answers_total;
        answers.with_label_values(&[finish_reason]).inc();
    }

    /// Records an error that occurs after the status line has been sent.
    pub fn set_failed(&self, error: &ApiError) {
        self.has_failed.store(true, Relaxed);
        let _first_counts = self.code.set(error.code());
    }

    /// One of the values of `requests_total{outcome}`.
    fn outcome(&self) -> &'static str {
        match self.status.load(Relaxed) {
            429 => "rejected",
            503 | OVERLOADED => "unavailable",
            400..500 => "invalid",
            500.. => "error",
            _ if self.has_failed.load(Relaxed) => "error",
            _ if self.is_complete.load(Relaxed) => "ok",
            _ => "cancelled",
        }
    }
}

impl Record {
    fn count(&self, receipt: &Receipt, status: u16, elapsed: Duration) {
        let (metrics, outcome) = (&self.metrics, receipt.outcome);
        metrics.requests_total.with_label_values(&[outcome]).inc();
        let duration = metrics
            .request_duration_seconds
            .with_label_values(&[outcome]);
        duration.observe(elapsed.as_secs_f64());
        receipt.count(metrics);
        if let Some(client) = self.client() {
            receipt.count_client(metrics, client.name());
        }
        // 0: the client disconnected before there was a response.
        if status == 0 {
            return;
        }
        let responses = &metrics.responses_total;
        responses.with_label_values(&[&status.to_string()]).inc();
        if status == 200 {
            let tokens = &metrics.request_prompt_tokens;
            tokens.observe(receipt.prompt_tokens as f64);
            let tokens = &metrics.request_generation_tokens;
            tokens.observe(receipt.generated_tokens as f64);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let outcome = self.outcome();
        let receipt = self.receipt(outcome);
        let elapsed = self.started.elapsed();
        let status = self.status.load(Relaxed);
        if self.traffic == Traffic::Counted {
            self.count(&receipt, status, elapsed);
        }
        if let Some(trace) = &self.trace {
            trace.end(&Ending {
                route: self.route,
                method: self.method.as_str(),
                status,
                code: self.code.get().copied(),
                taken: self.generations.get().and_then(Generations::together),
                receipt: &receipt,
            });
        }
        let Some(suppressed) = line_limit::suppressed(status) else {
            return;
        };
        let milliseconds = |seconds: f64| (seconds * 1e3).round() as u64;
        let was_begun = receipt.queue_seconds.is_some();
        // The line never contains the prompt, the answer, the key or a path invented by the client.
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    request_id = self.id.to_str().unwrap_or_default(),
                    trace_id = self.trace.as_ref().map(Trace::id),
                    method = self.method.as_str(),
                    route = self.route,
                    status,
                    outcome,
                    code = self.code.get(),
                    client = self.client().map(Client::name),
                    prompt_tokens = receipt.prompt_tokens,
                    cached_tokens = was_begun.then_some(receipt.cached_tokens),
                    completion_tokens = receipt.generated_tokens,
                    queue_ms = receipt.queue_seconds.map(milliseconds),
                    prefill_ms = receipt.prefill_seconds.map(milliseconds),
                    decode_ms = receipt.decode_seconds.map(milliseconds),
                    cpu_ms = was_begun.then_some(milliseconds(receipt.cpu_seconds)),
                    duration_ms = elapsed.as_millis() as u64,
                    suppressed = (suppressed > 0).then_some(suppressed),
                    "request"
                )
            };
        }
        if outcome == "error" {
            line!(tracing::Level::ERROR);
        } else if self.traffic == Traffic::Frequent {
            line!(tracing::Level::DEBUG);
        } else {
            line!(tracing::Level::INFO);
        }
    }
}

/// Gives a request an id, and records it from its head to the last byte of its response.
pub async fn observe(
    State(Observer { app, identify }): State<Observer>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map(|path| without_prefix(path.as_str(), &app.access().root_path));
    let route = path.and_then(identify);
    let (route, traffic) = route.unwrap_or(("unknown", Traffic::Ordinary));
    let trace = match traffic {
        Traffic::Counted => Trace::begin(&app, request.headers()),
        Traffic::Ordinary | Traffic::Frequent => None,
    };
    let record = Arc::new(Record {
        metrics: Arc::clone(app.metrics()),
        id: id.clone(),
        method: request.method().clone(),
        route,
        traffic,
        trace,
        started: Instant::now(),
        fair_by: app.access().fair_by,
        client: OnceLock::new(),
        running: OnceLock::new(),
        status: AtomicU16::new(0),
        code: OnceLock::new(),
        prompt_tokens: AtomicUsize::new(0),
        completion_tokens: AtomicUsize::new(0),
        generations: OnceLock::new(),
        has_failed: AtomicBool::new(false),
        is_complete: AtomicBool::new(false),
        held: Mutex::new(None),
        held_bytes: AtomicUsize::new(0),
    });
    request.extensions_mut().insert(Arc::clone(&record));

    let root = &app.access().root_path;
    let is_anthropics = errors::is_below(without_prefix(request.uri().path(), root));
    let mut response = next.run(request).await;
    if is_anthropics {
        response = errors::in_anthropics_shape(response, &id);
    }
    record.status.store(response.status().as_u16(), Relaxed);
    if let Some(error) = response.extensions().get::<ApiError>() {
        let _first_counts = record.code.set(error.code());
    }
    let header = HeaderName::from_static("x-request-id");
    response.headers_mut().insert(header, id);
    response.map(|body| Body::new(AttendedBody::new(body, record)))
}

/// The path of a route without the prefix that all paths have.
fn without_prefix<'a>(path: &'a str, root_path: &str) -> &'a str {
    match path.strip_prefix(root_path) {
        // The prefix alone is the index page.
        Some("") => "/",
        Some(path) => path,
        None => path,
    }
}

/// The client's `X-Request-Id` if it is safe to log, or else a new id.
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

impl Attendant for Arc<Record> {
    fn complete(&self) {
        self.is_complete.store(true, Relaxed);
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
