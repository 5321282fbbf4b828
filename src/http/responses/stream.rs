//! Writes answers as responses, in one body or as the events of the Responses API.

use std::mem;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::request::Echo;
use super::response::{About, Body, Failure, Item, Part, Status};
use crate::http::app::ServedModel;
use crate::http::chat::blocks::{self, Blocks, Change, Kind};
use crate::http::chat::request::ChatRequest;
use crate::http::chat::turn::{Start, Turn};
use crate::http::error_body::ApiError;
use crate::http::generate::answer::{Finish, Piece};
use crate::http::generate::response::{Counts, Head, Writer};
use crate::http::generate::streaming::named_event;
use crate::http::receipt::Receipt;

/// Copies of an item's text in memory at the end of a stream: the item, and the text in the four last events that have
/// it, of which JSON may take twice the length.
const COPIES: usize = 1 + 2 * 4;

/// Writes the response to a request, which has one answer.
pub struct ResponseWriter {
    head: Head,
    counts: Counts,
    about: About,
    turn: Turn,
    blocks: Blocks,
    items: Vec<Item>,
    /// Bytes of the texts of all items.
    text_bytes: usize,
    has_begun: bool,
    /// How the answer ended.
    status: Status,
    /// Numbers the events.
    events: usize,
}

/// An event without its type and number.
#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Response {
        response: Box<Body<'a>>,
    },
    Item {
        output_index: usize,
        item: &'a Item,
    },
    Part {
        #[serde(flatten)]
        place: Place<'a>,
        part: Part<'a>,
    },
    Delta {
        #[serde(flatten)]
        place: Place<'a>,
        delta: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        logprobs: Option<[(); 0]>,
    },
    Text {
        #[serde(flatten)]
        place: Place<'a>,
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        logprobs: Option<[(); 0]>,
    },
    Arguments {
        #[serde(flatten)]
        place: Place<'a>,
        name: &'a str,
        arguments: &'a str,
    },
    Error {
        code: &'static str,
        message: String,
        param: Option<&'a str>,
    },
}

/// Where a piece of text belongs.
#[derive(Clone, Copy, Serialize)]
struct Place<'a> {
    item_id: &'a str,
    output_index: usize,
    /// The only part; `None` for calls, which have no parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<usize>,
}

impl<'a> Place<'a> {
    fn of(output_index: usize, item: &'a Item) -> Self {
        Self {
            item_id: &item.id,
            output_index,
            content_index: item.part().is_some().then_some(0),
        }
    }
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    sequence_number: usize,
    #[serde(flatten)]
    data: Data<'a>,
}

/// Writes an event, and counts it.
fn write(events: &mut usize, name: &'static str, data: Data<'_>) -> Vec<u8> {
    let sequence_number = *events;
    *events += 1;
    let event = Event {
        r#type: name,
        sequence_number,
        data,
    };
    named_event(name, &event)
}

impl ResponseWriter {
    /// Creates a writer for a request whose rendered conversation ends as `start` says.
    pub fn new(model: &ServedModel, request: &ChatRequest, echo: Echo, start: &Start) -> Self {
        let sampling = request.common.sampling(&model.defaults.sampling);
        Self {
            head: Head::new("resp_", model),
            counts: start.counts(1),
            about: About {
                echo,
                effort: request.thinking.effort,
                temperature: sampling.temperature,
                top_p: sampling.top_p,
            },
            turn: Turn::new(request, start),
            blocks: Blocks::default(),
            items: Vec::new(),
            text_bytes: 0,
            has_begun: false,
            status: Status::InProgress,
            events: 0,
        }
    }

    /// An event with the whole response so far.
    fn whole_event(
        &mut self,
        name: &'static str,
        failure: Option<Failure>,
        receipt: Option<Receipt>,
    ) -> Vec<u8> {
        let mut response = Body::new(&self.head, &self.about, &self.items, self.status);
        if self.status != Status::InProgress {
            response = response.with_usage(self.counts.usage());
        }
        if let Some(failure) = failure {
            response = response.with_error(failure);
        }
        response = response.with_receipt(receipt);
        let response = Box::new(response);
        write(&mut self.events, name, Data::Response { response })
    }

    fn open(&mut self, kind: Kind) -> Vec<u8> {
        self.items.push(Item::new(kind));
        let output_index = self.items.len() - 1;
        let (events, item) = (&mut self.events, &self.items[output_index]);
        let data = Data::Item { output_index, item };
        let mut written = write(events, "response.output_item.added", data);
        if let Some(part) = item.part() {
            let place = Place::of(output_index, item);
            let data = Data::Part { place, part };
            written.extend(write(events, "response.content_part.added", data));
        }
        written
    }

    fn add(&mut self, delta: &str) -> Vec<u8> {
        self.text_bytes += delta.len();
        let Some(item) = self.items.last_mut() else {
            return Vec::new();
        };
        item.text += delta;
        let output_index = self.items.len() - 1;
        let item = &self.items[output_index];
        let (name, logprobs) = match item.kind {
            Kind::Thought => ("response.reasoning_text.delta", None),
            Kind::Text => ("response.output_text.delta", Some([])),
            Kind::Call(_) => ("response.function_call_arguments.delta", None),
        };
        let data = Data::Delta {
            place: Place::of(output_index, item),
            delta,
            logprobs,
        };
        write(&mut self.events, name, data)
    }

    fn close(&mut self, status: Status) -> Vec<u8> {
        let Some(item) = self.items.last_mut() else {
            return Vec::new();
        };
        item.status = status;
        let output_index = self.items.len() - 1;
        let (events, item) = (&mut self.events, &self.items[output_index]);
        let (place, text) = (Place::of(output_index, item), item.text.as_str());
        let mut written = match &item.kind {
            Kind::Thought => {
                let logprobs = None;
                let data = Data::Text {
                    place,
                    text,
                    logprobs,
                };
                write(events, "response.reasoning_text.done", data)
            }
            Kind::Text => {
                let logprobs = Some([]);
                let data = Data::Text {
                    place,
                    text,
                    logprobs,
                };
                write(events, "response.output_text.done", data)
            }
            Kind::Call(name) => {
                let arguments = text;
                let data = Data::Arguments {
                    place,
                    name,
                    arguments,
                };
                write(events, "response.function_call_arguments.done", data)
            }
        };
        if let Some(part) = item.part() {
            let data = Data::Part { place, part };
            written.extend(write(events, "response.content_part.done", data));
        }
        let data = Data::Item { output_index, item };
        written.extend(write(events, "response.output_item.done", data));
        written
    }

    /// How the response ends, and its last item.
    fn end(&self, finish: &Finish) -> (Status, Status) {
        let response = match finish {
            Finish::Stop(_) => Status::Completed,
            Finish::Length => Status::Incomplete,
        };
        match self.turn.is_unfinished() {
            true => (response, Status::Incomplete),
            false => (response, response),
        }
    }
}

impl Writer for ResponseWriter {
    fn piece(&mut self, piece: &Piece) -> Vec<u8> {
        self.counts.add_cached(piece);
        let mut events = Vec::new();
        if !mem::replace(&mut self.has_begun, true) {
            events = self.whole_event("response.created", None, None);
            events.extend(self.whole_event("response.in_progress", None, None));
        }
        self.counts.add_generated(piece);
        let changes = self.blocks.push(&mut self.turn, piece);
        let end = piece.finish.as_ref().map(|finish| self.end(finish));
        let last = changes.len();
        for (at, change) in changes.into_iter().enumerate() {
            events.extend(match change {
                Change::Open(kind) => self.open(kind),
                Change::Add(text) => self.add(&text),
                Change::Close => {
                    let end = end.filter(|_| at + 1 == last);
                    self.close(end.map_or(Status::Completed, |end| end.1))
                }
            });
        }
        if let Some((status, _)) = end {
            self.status = status;
        }
        events
    }

    fn last(&mut self, receipt: Option<Receipt>) -> Vec<u8> {
        match self.status {
            Status::Incomplete => self.whole_event("response.incomplete", None, receipt),
            _ => self.whole_event("response.completed", None, receipt),
        }
    }

    fn failed(&mut self, error: &ApiError) -> Vec<u8> {
        let code = match error.status().as_u16() {
            429 => "rate_limit_exceeded",
            500.. => "server_error",
            _ => "invalid_prompt",
        };
        let message = error.to_string();
        if !self.has_begun {
            let param = error.param();
            let data = Data::Error {
                code,
                message,
                param,
            };
            return write(&mut self.events, "error", data);
        }
        self.status = Status::Failed;
        if let Some(item) = self.items.last_mut()
            && item.status == Status::InProgress
        {
            item.status = Status::Incomplete;
        }
        self.whole_event("response.failed", Some(Failure { code, message }), None)
    }

    fn kept_bytes(&self) -> usize {
        COPIES.saturating_mul(self.text_bytes)
    }

    fn whole(mut self, answers: Vec<Piece>, receipt: Option<Receipt>) -> Response {
        let mut answer = answers.into_iter().next().unwrap_or_default();
        self.counts.add_cached(&answer);
        self.counts.add_generated(&answer);
        let finish = answer.finish.get_or_insert(Finish::Stop(None)).clone();
        for block in blocks::of(&mut self.turn, &answer) {
            let mut item = Item::new(block.kind);
            item.text = block.text;
            item.status = Status::Completed;
            self.items.push(item);
        }
        let (status, last) = self.end(&finish);
        if let Some(item) = self.items.last_mut() {
            item.status = last;
        }
        let body = Body::new(&self.head, &self.about, &self.items, status);
        let body = body.with_usage(self.counts.usage());
        Json(body.with_receipt(receipt)).into_response()
    }
}
