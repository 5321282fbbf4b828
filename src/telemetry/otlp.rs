//! Sends spans to an OpenTelemetry collector: OTLP over HTTP, as JSON.
//!
//! The SDK of OpenTelemetry would bring some forty crates for one kind of message. Spans go into a bounded queue, and one
//! thread sends them in batches. Those that find no place, or that the collector does not take, are dropped and counted:
//! nothing here ever waits for the collector but that thread.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use serde_json::{Value, json};
use ureq::Agent;

use super::Metrics;
use crate::build;

/// Requests whose spans wait at most, a kilobyte each.
const WAITING: usize = 2048;
/// Requests in a message at most; the collector's own batches have 512 spans.
const BATCH: usize = 256;
/// How long the first request of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long the collector may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read, so that the connection can be used again.
const MOST_ANSWER_BYTES: u64 = 64 << 10;

/// One span.
#[derive(Debug, Clone)]
pub struct Span {
    /// 16 bytes that all spans of the trace have.
    pub trace_id: u128,
    /// The span's own 8 bytes.
    pub span_id: u64,
    /// Those of the span above it.
    pub parent: Option<u64>,
    /// What happens in it.
    pub name: String,
    /// Whether it is the answer to a request from elsewhere.
    pub is_server: bool,
    /// Nanoseconds since the Unix epoch.
    pub start: u128,
    /// The same.
    pub end: u128,
    /// Facts about it; strings, whole numbers, and lists of strings.
    pub attributes: Vec<(&'static str, Value)>,
    /// Whether the server failed.
    pub is_error: bool,
}

/// A message to the thread.
enum Message {
    Spans(Vec<Span>),
    /// Answered when all before it are sent or dropped.
    Flush(Sender<()>),
}

/// The way to the collector.
#[derive(Debug, Clone)]
pub struct Exporter {
    queue: SyncSender<Message>,
    dropped: IntCounter,
}

impl Exporter {
    /// Starts the thread that posts to `url`.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub fn start(url: String, metrics: &Metrics) -> std::io::Result<Self> {
        let (queue, messages) = sync_channel(WAITING);
        let count = |outcome| metrics.trace_spans_total.with_label_values(&[outcome]);
        let poster = Poster {
            agent: Agent::config_builder()
                .timeout_global(Some(ANSWER))
                .max_redirects(0)
                .build()
                .into(),
            url,
            resource: resource(),
            sent: count("sent"),
            dropped: count("dropped"),
            is_failing: false,
        };
        let dropped = count("dropped");
        std::thread::Builder::new()
            .name("otlp".into())
            .spawn(move || poster.run(&messages))?;
        Ok(Self { queue, dropped })
    }

    /// Queues the spans of a request, or drops them.
    pub fn send(&self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        if self.queue.try_send(Message::Spans(spans)).is_err() {
            self.dropped.inc_by(count);
        }
    }

    /// Waits until all spans queued before are sent or dropped, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let (done, is_done) = channel();
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _too_late = is_done.recv_timeout(limit);
        }
    }
}

/// The thread's side.
struct Poster {
    agent: Agent,
    url: String,
    resource: Value,
    sent: IntCounter,
    dropped: IntCounter,
    /// Whether the last message failed: the log says so once, not for each.
    is_failing: bool,
}

impl Poster {
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            let (mut batch, mut flushes) = (Vec::new(), Vec::new());
            let deadline = Instant::now() + LINGER;
            let (mut next, mut requests) = (Some(first), 0);
            while let Some(message) = next.take() {
                match message {
                    Message::Spans(spans) => {
                        batch.extend(spans);
                        requests += 1;
                    }
                    Message::Flush(done) => {
                        flushes.push(done);
                        break;
                    }
                }
                if requests < BATCH {
                    let left = deadline.saturating_duration_since(Instant::now());
                    next = messages.recv_timeout(left).ok();
                }
            }
            self.post(&batch);
            for done in flushes {
                let _nobody_waits = done.send(());
            }
        }
    }

    /// Sends a batch once. It is not tried again: the next one would wait for it, and its place is needed.
    fn post(&mut self, batch: &[Span]) {
        if batch.is_empty() {
            return;
        }
        let body = message(&self.resource, batch).to_string();
        let request = self.agent.post(&self.url);
        let answer = request
            .header("content-type", "application/json")
            .send(body);
        let read = answer.and_then(|answer| {
            let body = answer.into_body().into_with_config();
            body.limit(MOST_ANSWER_BYTES).read_to_vec()
        });
        let count = batch.len() as u64;
        match read {
            Ok(_) => {
                self.sent.inc_by(count);
                self.is_failing = false;
            }
            Err(error) => {
                self.dropped.inc_by(count);
                if !self.is_failing {
                    let url = &self.url;
                    tracing::warn!(%error, url, "the collector takes no spans; they are dropped");
                }
                self.is_failing = true;
            }
        }
    }
}

/// What sends the spans.
fn resource() -> Value {
    let id = format!("{:032x}", rand::random::<u128>());
    json!({"attributes": [
        attribute("service.name", &json!("microgranite")),
        attribute("service.version", &json!(build::VERSION)),
        attribute("service.instance.id", &json!(id)),
    ]})
}

fn message(resource: &Value, spans: &[Span]) -> Value {
    let spans: Vec<Value> = spans.iter().map(Span::json).collect();
    let scope = json!({"name": "microgranite", "version": build::VERSION});
    json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]})
}

fn attribute(key: &str, value: &Value) -> Value {
    json!({"key": key, "value": any_value(value)})
}

/// A value as OTLP writes it, where whole numbers are text.
fn any_value(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!({"intValue": number.to_string()}),
        Value::Array(values) => {
            let values: Vec<Value> = values.iter().map(any_value).collect();
            json!({"arrayValue": {"values": values}})
        }
        text => json!({"stringValue": text.as_str().unwrap_or_default()}),
    }
}

impl Span {
    fn json(&self) -> Value {
        let attributes: Vec<Value> = (self.attributes.iter())
            .map(|(key, value)| attribute(key, value))
            .collect();
        let mut span = json!({
            "traceId": format!("{:032x}", self.trace_id),
            "spanId": format!("{:016x}", self.span_id),
            "name": self.name,
            // SPAN_KIND_SERVER and SPAN_KIND_INTERNAL.
            "kind": if self.is_server { 2 } else { 1 },
            "startTimeUnixNano": self.start.to_string(),
            "endTimeUnixNano": self.end.to_string(),
            "attributes": attributes,
        });
        if let Some(parent) = self.parent {
            span["parentSpanId"] = json!(format!("{parent:016x}"));
        }
        if self.is_error {
            // STATUS_CODE_ERROR.
            span["status"] = json!({"code": 2});
        }
        span
    }
}
