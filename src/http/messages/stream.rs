//! Writes answers as messages, in one body or as the events of Anthropic's API.

use std::mem;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::errors::ErrorBody;
use super::response::{Content, End, Message, SIGNATURE, Usage};
use crate::http::app::ServedModel;
use crate::http::chat::blocks::{self, Blocks, Change, Kind};
use crate::http::chat::request::ChatRequest;
use crate::http::chat::turn::{Start, Turn};
use crate::http::error_body::ApiError;
use crate::http::generate::answer::{Finish, Piece};
use crate::http::generate::response::{Counts, Head, Writer};
use crate::http::generate::streaming::named_event;
use crate::http::receipt::Receipt;

/// Writes the response to a request, which has one answer.
pub struct MessageWriter {
    head: Head,
    counts: Counts,
    turn: Turn,
    blocks: Blocks,
    has_begun: bool,
    /// The kind of the block that began last.
    kind: Kind,
    /// The blocks of the message that have ended.
    ended: usize,
}

/// An event of a stream.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event<'a> {
    MessageStart {
        message: Message<'a>,
    },
    ContentBlockStart {
        index: usize,
        content_block: Content,
    },
    ContentBlockDelta {
        index: usize,
        delta: Delta,
    },
    ContentBlockStop {
        index: usize,
    },
    MessageDelta {
        delta: End,
        usage: Usage,
    },
    MessageStop {
        #[serde(skip_serializing_if = "Option::is_none")]
        receipt: Option<Receipt>,
    },
}

/// What a block gets.
#[derive(Serialize)]
#[serde(tag = "type")]
enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "signature_delta")]
    Signature { signature: &'static str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
}

impl Event<'_> {
    const fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop { .. } => "message_stop",
        }
    }

    fn write(&self) -> Vec<u8> {
        named_event(self.name(), self)
    }
}

impl MessageWriter {
    /// Creates a writer for a request whose rendered conversation ends as `start` says.
    pub fn new(model: &ServedModel, request: &ChatRequest, start: &Start) -> Self {
        Self {
            head: Head::new("msg_", model),
            counts: start.counts(1),
            turn: Turn::new(request, start),
            blocks: Blocks::default(),
            has_begun: false,
            kind: Kind::Text,
            ended: 0,
        }
    }

    fn change(&mut self, change: Change) -> Vec<u8> {
        let index = self.ended;
        match change {
            Change::Open(kind) => {
                self.kind = kind.clone();
                let content_block = Content::beginning(kind);
                let event = Event::ContentBlockStart {
                    index,
                    content_block,
                };
                event.write()
            }
            Change::Add(text) => {
                let delta = match self.kind {
                    Kind::Thought => Delta::Thinking { thinking: text },
                    Kind::Text => Delta::Text { text },
                    Kind::Call(_) => Delta::InputJson { partial_json: text },
                };
                Event::ContentBlockDelta { index, delta }.write()
            }
            Change::Close => {
                self.ended += 1;
                let mut events = Vec::new();
                if self.kind == Kind::Thought {
                    let signature = SIGNATURE;
                    let delta = Delta::Signature { signature };
                    events = Event::ContentBlockDelta { index, delta }.write();
                }
                events.extend(Event::ContentBlockStop { index }.write());
                events
            }
        }
    }
}

impl Writer for MessageWriter {
    fn piece(&mut self, piece: &Piece) -> Vec<u8> {
        self.counts.add_cached(piece);
        let mut events = Vec::new();
        if !mem::replace(&mut self.has_begun, true) {
            let usage = self.counts.usage();
            let message = Message::new(&self.head, Vec::new(), End::default(), usage);
            events = Event::MessageStart { message }.write();
        }
        self.counts.add_generated(piece);
        for change in self.blocks.push(&mut self.turn, piece) {
            events.extend(self.change(change));
        }
        if let Some(finish) = &piece.finish {
            let event = Event::MessageDelta {
                delta: End::of(&self.turn, finish),
                usage: Usage::of(self.counts.usage()),
            };
            events.extend(event.write());
        }
        events
    }

    fn last(&mut self, receipt: Option<Receipt>) -> Vec<u8> {
        Event::MessageStop { receipt }.write()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<u8> {
        named_event("error", &ErrorBody::of(error, None))
    }

    fn idle(&self) -> &'static [u8] {
        match self.has_begun {
            true => b"event: ping\ndata: {\"type\":\"ping\"}\n\n",
            // Clients expect the start of the message first.
            false => b":\n\n",
        }
    }

    fn whole(mut self, answers: Vec<Piece>, receipt: Option<Receipt>) -> Response {
        let mut answer = answers.into_iter().next().unwrap_or_default();
        self.counts.add_cached(&answer);
        self.counts.add_generated(&answer);
        let finish = answer.finish.get_or_insert(Finish::Stop(None)).clone();
        let blocks = blocks::of(&mut self.turn, &answer).into_iter();
        let content = blocks.map(Content::of).collect();
        let end = End::of(&self.turn, &finish);
        let usage = self.counts.usage();
        let message = Message::new(&self.head, content, end, usage);
        Json(message.with_receipt(receipt)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_name_of_their_type() {
        let usage = crate::http::generate::response::Counts::new(3, 1).usage();
        let events = [
            Event::ContentBlockStart {
                index: 0,
                content_block: Content::beginning(Kind::Call("f".into())),
            },
            Event::ContentBlockDelta {
                index: 0,
                delta: Delta::Text { text: "x".into() },
            },
            Event::ContentBlockStop { index: 0 },
            Event::MessageDelta {
                delta: End::default(),
                usage: Usage::of(usage),
            },
            Event::MessageStop { receipt: None },
        ];
        for event in events {
            let text = String::from_utf8(event.write()).unwrap();
            let (name, data) = text.split_once("\ndata: ").unwrap();
            let data: serde_json::Value = serde_json::from_str(data).unwrap();
            assert_eq!(name, format!("event: {}", data["type"].as_str().unwrap()));
        }
    }
}
