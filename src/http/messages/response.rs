//! The JSON of messages, whole and as the start of a stream.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::http::chat::blocks::{Block, Kind};
use crate::http::chat::turn::Turn;
use crate::http::generate::answer::{Finish, StopReason};
use crate::http::generate::response::{self, Head, new_id};
use crate::http::receipt::Receipt;

/// The signature of thoughts. Thoughts are not signed here, so clients may send back any signature, but they expect one.
pub const SIGNATURE: &str = "unsigned";

/// A message of the assistant.
#[derive(Serialize)]
pub struct Message<'a> {
    id: &'a str,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Content>,
    #[serde(flatten)]
    end: End,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<Receipt>,
}

/// Why a message ended. Both are `null` in the first event of a stream.
#[derive(Default, Serialize)]
pub struct End {
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
}

/// A block of a message.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    /// The thought.
    Thinking {
        thinking: String,
        signature: &'static str,
    },
    /// Text of the answer.
    Text { text: String },
    /// A call.
    ToolUse {
        id: String,
        name: String,
        /// A JSON object as the model wrote it.
        input: Box<RawValue>,
    },
}

/// Token counts. Those of the prompt are disjoint: together they are the whole prompt.
#[derive(Clone, Copy, Serialize)]
pub struct Usage {
    input_tokens: usize,
    cache_creation_input_tokens: usize,
    cache_read_input_tokens: usize,
    output_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Clone, Copy, Serialize)]
struct OutputDetails {
    thinking_tokens: usize,
}

impl<'a> Message<'a> {
    /// A message; without content and end, it is the start of a stream.
    pub fn new(head: &'a Head, content: Vec<Content>, end: End, usage: response::Usage) -> Self {
        Self {
            id: &head.id,
            r#type: "message",
            role: "assistant",
            model: &head.model,
            content,
            end,
            usage: Usage::of(usage),
            receipt: None,
        }
    }

    /// The same with a receipt.
    #[must_use]
    pub fn with_receipt(mut self, receipt: Option<Receipt>) -> Self {
        self.receipt = receipt;
        self
    }
}

impl End {
    /// The end of an answer that ended with `finish`.
    pub fn of(turn: &Turn, finish: &Finish) -> Self {
        let reason = match finish {
            _ if turn.wants_calls(finish) => "tool_use",
            Finish::Length => "max_tokens",
            Finish::Stop(Some(StopReason::Text(stop))) => {
                return Self {
                    stop_reason: Some("stop_sequence"),
                    stop_sequence: Some(stop.clone()),
                };
            }
            Finish::Stop(_) => "end_turn",
        };
        Self {
            stop_reason: Some(reason),
            stop_sequence: None,
        }
    }
}

impl Content {
    /// A complete block.
    pub fn of(block: Block) -> Self {
        match block.kind {
            Kind::Thought => Self::Thinking {
                thinking: block.text,
                signature: SIGNATURE,
            },
            Kind::Text => Self::Text { text: block.text },
            Kind::Call(name) => Self::ToolUse {
                id: new_id("toolu_"),
                name,
                input: arguments(&block.text),
            },
        }
    }

    /// A block that begins in a stream.
    pub fn beginning(kind: Kind) -> Self {
        let mut begun = Self::of(Block {
            kind,
            text: String::new(),
        });
        if let Self::Thinking { signature, .. } = &mut begun {
            // The signature follows the thought.
            *signature = "";
        }
        begun
    }
}

impl Usage {
    /// The counts in the terms of this API.
    pub fn of(usage: response::Usage) -> Self {
        let cached = usage.prompt_tokens_details.cached_tokens;
        let thoughts = usage.completion_tokens_details;
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
            output_tokens_details: thoughts.map(|details| OutputDetails {
                thinking_tokens: details.reasoning_tokens,
            }),
        }
    }
}

/// The arguments `text` as an object. A call that the end of the answer cut off has no arguments, because a part of an
/// object is not an object.
fn arguments(text: &str) -> Box<RawValue> {
    let object = serde_json::from_str::<Box<RawValue>>(text);
    let object = object.ok().filter(|object| object.get().starts_with('{'));
    let empty = || RawValue::from_string("{}".to_owned()).expect("this is JSON");
    object.unwrap_or_else(empty)
}
