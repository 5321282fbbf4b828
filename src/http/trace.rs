//! The spans of a request: the request itself, its wait for a slot, its prompt, and its answer.
//!
//! Names of attributes are OpenTelemetry's for HTTP and for generative AI. Spans hold no text of prompts or answers.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::app::App;
use super::receipt::Receipt;
use crate::engine;
use crate::telemetry::otlp::{Exporter, Span};

/// Where a request belongs in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Context {
    trace_id: u128,
    /// The span of the caller, if there is one.
    parent: Option<u64>,
}

/// The spans of one request, while it runs.
#[derive(Debug)]
pub struct Trace {
    exporter: Exporter,
    context: Context,
    /// The name of the served model, once there is one.
    model: Option<String>,
    began: Instant,
    /// The same time in nanoseconds since the Unix epoch.
    began_unix: u128,
}

/// How a request ended.
pub struct Ending<'a> {
    /// Its route.
    pub route: &'static str,
    /// Its method.
    pub method: &'a str,
    /// The status of the response; 0 if there was none.
    pub status: u16,
    /// The code of the error.
    pub code: Option<&'static str>,
    /// When the engine did what; `None` if it was not asked.
    pub taken: Option<engine::Receipt>,
    /// Outcome and tokens.
    pub receipt: &'a Receipt,
}

impl Trace {
    /// Begins the trace of a request that begins now, if there is a collector and the caller wants it to be traced.
    pub fn begin(app: &App, headers: &HeaderMap) -> Option<Self> {
        let exporter = app.exporter()?.clone();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Some(Self {
            exporter,
            context: Context::of(headers)?,
            model: app.loaded_model().map(|model| model.name.clone()),
            began: Instant::now(),
            began_unix: since_epoch.unwrap_or_default().as_nanos(),
        })
    }

    /// The id of the trace, for the log.
    pub fn id(&self) -> String {
        format!("{:032x}", self.context.trace_id)
    }

    /// Ends the trace and sends it.
    pub fn end(&self, ending: &Ending<'_>) {
        let end = self.began.elapsed();
        let server = self.span("", end, Duration::ZERO);
        let request = rand::random::<u64>().max(1);
        let mut spans = vec![Span {
            span_id: request,
            parent: self.context.parent,
            name: match &self.model {
                Some(model) => format!("{} {model}", operation(ending.route)),
                None => operation(ending.route).to_owned(),
            },
            is_server: true,
            attributes: self.attributes(ending),
            is_error: ending.receipt.outcome == "error" || ending.status >= 500,
            ..server
        }];
        for (name, start, until) in self.phases(ending, end) {
            let mut span = self.span(name, until, start);
            span.parent = Some(request);
            spans.push(span);
        }
        self.exporter.send(spans);
    }

    /// The phases that the request has reached, and their beginnings and ends, all since it began.
    fn phases(
        &self,
        ending: &Ending<'_>,
        end: Duration,
    ) -> Vec<(&'static str, Duration, Duration)> {
        let since = |time: Instant| time.saturating_duration_since(self.began).min(end);
        let Some(taken) = ending.taken else {
            return Vec::new();
        };
        let Some(began) = taken.began.map(since) else {
            return vec![("queue", since(taken.arrived), end)];
        };
        let answered = taken.answered.map(since);
        let mut phases = vec![
            ("queue", since(taken.arrived), began),
            ("prefill", began, answered.unwrap_or(end)),
        ];
        if let Some(answered) = answered {
            phases.push(("decode", answered, taken.ended.map_or(end, since)));
        }
        phases
    }

    fn span(&self, name: &str, end: Duration, start: Duration) -> Span {
        Span {
            trace_id: self.context.trace_id,
            // 0 would be no id.
            span_id: rand::random::<u64>().max(1),
            parent: None,
            name: name.to_owned(),
            is_server: false,
            start: self.began_unix + start.as_nanos(),
            end: self.began_unix + end.as_nanos(),
            attributes: Vec::new(),
            is_error: false,
        }
    }

    fn attributes(&self, ending: &Ending<'_>) -> Vec<(&'static str, Value)> {
        let mut all = vec![
            ("http.request.method", json!(ending.method)),
            ("http.route", json!(ending.route)),
            ("gen_ai.operation.name", json!(operation(ending.route))),
            ("gen_ai.provider.name", json!("microgranite")),
            (
                "gen_ai.usage.input_tokens",
                json!(ending.receipt.prompt_tokens),
            ),
            (
                "gen_ai.usage.output_tokens",
                json!(ending.receipt.generated_tokens),
            ),
        ];
        if ending.status > 0 {
            all.push(("http.response.status_code", json!(ending.status)));
        }
        if let Some(model) = &self.model {
            all.push(("gen_ai.request.model", json!(model)));
        }
        if ending.taken.is_some_and(|taken| taken.began.is_some()) {
            let cached = json!(ending.receipt.cached_tokens);
            all.push(("gen_ai.usage.cache_read.input_tokens", cached));
        }
        if ending.receipt.outcome != "ok" {
            let kind = ending.code.unwrap_or(ending.receipt.outcome);
            all.push(("error.type", json!(kind)));
        }
        all
    }
}

/// OpenTelemetry's name for what a route does.
fn operation(route: &str) -> &'static str {
    match route {
        "/v1/completions" => "text_completion",
        _ => "chat",
    }
}

impl Context {
    /// The context that a caller's `traceparent` gives, or a new one. `None` if the caller has decided that the trace is not
    /// recorded.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let given = headers
            .get("traceparent")
            .and_then(|value| value.to_str().ok());
        match given.and_then(parse) {
            Some((context, true)) => Some(context),
            Some((_, false)) => None,
            None => Some(Self {
                trace_id: rand::random::<u128>().max(1),
                parent: None,
            }),
        }
    }
}

/// Reads `traceparent`, and whether the trace is recorded. `None` for anything that the standard calls invalid, which is
/// then ignored.
fn parse(text: &str) -> Option<(Context, bool)> {
    let mut fields = text.split('-');
    let mut field = |length| {
        let field = fields.next()?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (field.len() == length && field.bytes().all(is_hex)).then_some(field)
    };
    let (version, trace_id, parent, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    // Later versions may have more fields; this one has none.
    if version == "ff" || (version == "00" && fields.next().is_some()) {
        return None;
    }
    let trace_id = u128::from_str_radix(trace_id, 16)
        .ok()
        .filter(|id| *id > 0)?;
    let parent = u64::from_str_radix(parent, 16).ok().filter(|id| *id > 0)?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let context = Context {
        trace_id,
        parent: Some(parent),
    };
    Some((context, flags & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_standard_calls_invalid_is_ignored() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = Context {
            trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            parent: Some(0x00f0_67aa_0ba9_02b7),
        };
        assert_eq!(parse(good), Some((context, true)));
        assert_eq!(parse(&good.replace("-01", "-00")), Some((context, false)));
        let later = format!("{}-more", good.replace("00-4", "01-4"));
        assert_eq!(parse(&later), Some((context, true)));
        for bad in [
            String::new(),
            good.to_uppercase(),
            good.replace("00-4", "ff-4"),
            good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            format!("{good}-more"),
            good[..54].to_owned(),
            good.replace('-', ""),
            "é".repeat(27),
        ] {
            assert_eq!(parse(&bad), None, "{bad}");
        }
    }
}
