//! The JSON of responses: their items, the parts of items, and the token counts.

use serde::Serialize;
use serde::ser::Serializer;
use serde_json::value::RawValue;

use super::request::Echo;
use crate::http::chat::blocks::Kind;
use crate::http::chat::turn::new_call_id;
use crate::http::generate::response::{self, Head, new_id};
use crate::http::receipt::Receipt;

/// How far a response or an item has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// More follows.
    InProgress,
    /// It is complete.
    Completed,
    /// Its end is missing.
    Incomplete,
    /// It ended with an error.
    Failed,
}

/// An item of a response: a thought, a message or a call.
#[derive(Debug)]
pub struct Item {
    /// Its id.
    pub id: String,
    /// The id of the call, by which the client refers to it.
    call_id: String,
    /// What it is.
    pub kind: Kind,
    /// Its text, or the arguments of the call.
    pub text: String,
    /// How far it has come.
    pub status: Status,
}

impl Item {
    /// A new, empty item.
    pub fn new(kind: Kind) -> Self {
        let prefix = match kind {
            Kind::Thought => "rs_",
            Kind::Text => "msg_",
            Kind::Call(_) => "fc_",
        };
        Self {
            id: new_id(prefix),
            call_id: new_call_id(),
            kind,
            text: String::new(),
            status: Status::InProgress,
        }
    }

    /// The only part of an item with parts; calls have none.
    pub fn part(&self) -> Option<Part<'_>> {
        match self.kind {
            Kind::Thought => Some(Part::ReasoningText { text: &self.text }),
            Kind::Text => Some(Part::text(&self.text)),
            Kind::Call(_) => None,
        }
    }
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // An item that has just begun has no parts yet.
        let part = self.part().filter(|_| self.status != Status::InProgress);
        let content: Vec<Part<'_>> = part.into_iter().collect();
        let (id, status) = (self.id.as_str(), self.status);
        let shape = match &self.kind {
            Kind::Thought => Shape::Reasoning {
                id,
                summary: [],
                content,
                status,
            },
            Kind::Text => Shape::Message {
                id,
                status,
                role: "assistant",
                content,
            },
            Kind::Call(name) => Shape::FunctionCall {
                id,
                status,
                arguments: &self.text,
                call_id: &self.call_id,
                name,
            },
        };
        shape.serialize(serializer)
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Shape<'a> {
    Reasoning {
        id: &'a str,
        summary: [(); 0],
        content: Vec<Part<'a>>,
        status: Status,
    },
    Message {
        id: &'a str,
        status: Status,
        role: &'static str,
        content: Vec<Part<'a>>,
    },
    FunctionCall {
        id: &'a str,
        status: Status,
        arguments: &'a str,
        call_id: &'a str,
        name: &'a str,
    },
}

/// A part of an item.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part<'a> {
    /// Text of a thought.
    ReasoningText {
        /// The text.
        text: &'a str,
    },
    /// Text of a message.
    OutputText {
        /// The text.
        text: &'a str,
        /// Always empty, as is the next field.
        annotations: [(); 0],
        /// Log-probabilities.
        logprobs: [(); 0],
    },
}

impl<'a> Part<'a> {
    const fn text(text: &'a str) -> Self {
        Self::OutputText {
            text,
            annotations: [],
            logprobs: [],
        }
    }
}

/// What a response says of itself beside its items.
#[derive(Debug)]
pub struct About {
    /// The parts of the request that it repeats.
    pub echo: Echo,
    /// The effort that the request asks for.
    pub effort: Option<&'static str>,
    /// The temperature in force.
    pub temperature: f32,
    /// The share of the likeliest tokens in force.
    pub top_p: f32,
}

/// A response.
#[derive(Serialize)]
pub struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    status: Status,
    background: bool,
    error: Option<Failure>,
    incomplete_details: Option<Incomplete>,
    instructions: Option<&'a RawValue>,
    max_output_tokens: Option<usize>,
    model: &'a str,
    output: &'a [Item],
    parallel_tool_calls: bool,
    previous_response_id: (),
    reasoning: Reasoning,
    store: bool,
    temperature: f32,
    text: Text<'a>,
    tool_choice: Json<'a>,
    tools: Json<'a>,
    top_logprobs: usize,
    top_p: f32,
    truncation: &'static str,
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<Receipt>,
    user: Option<&'a RawValue>,
    metadata: Json<'a>,
}

/// Why a response failed.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// One of OpenAI's codes.
    pub code: &'static str,
    /// The message of the error.
    pub message: String,
}

#[derive(Serialize)]
struct Incomplete {
    reason: &'static str,
}

#[derive(Serialize)]
struct Reasoning {
    effort: Option<&'static str>,
    summary: (),
}

#[derive(Serialize)]
struct Text<'a> {
    format: Json<'a>,
}

/// JSON that the client sent, or else the value that its absence means.
#[derive(Serialize)]
#[serde(untagged)]
enum Json<'a> {
    Given(&'a RawValue),
    Text(&'static str),
    NoList([(); 0]),
    NoObject {},
    Format { r#type: &'static str },
}

/// Token counts.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct InputDetails {
    cached_tokens: usize,
    /// Writing to the prefix cache costs nothing extra, so it is not counted.
    cache_write_tokens: usize,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct OutputDetails {
    reasoning_tokens: usize,
}

impl<'a> Body<'a> {
    /// The response with the items so far.
    pub fn new(head: &'a Head, about: &'a About, output: &'a [Item], status: Status) -> Self {
        let echo = &about.echo;
        let json = |given: &'a Option<Box<RawValue>>, absent| match given {
            Some(given) => Json::Given(given),
            None => absent,
        };
        let reason = "max_output_tokens";
        Self {
            id: &head.id,
            object: "response",
            created_at: head.created,
            status,
            background: false,
            error: None,
            incomplete_details: (status == Status::Incomplete).then_some(Incomplete { reason }),
            instructions: echo.instructions.as_deref(),
            max_output_tokens: echo.max_output_tokens,
            model: &head.model,
            output,
            parallel_tool_calls: echo.parallel_tool_calls,
            previous_response_id: (),
            reasoning: Reasoning {
                effort: about.effort,
                summary: (),
            },
            store: false,
            temperature: about.temperature,
            text: Text {
                format: json(&echo.format, Json::Format { r#type: "text" }),
            },
            tool_choice: json(&echo.tool_choice, Json::Text("auto")),
            tools: json(&echo.tools, Json::NoList([])),
            top_logprobs: 0,
            top_p: about.top_p,
            truncation: if echo.is_truncated {
                "auto"
            } else {
                "disabled"
            },
            usage: None,
            receipt: None,
            user: echo.user.as_deref(),
            metadata: json(&echo.metadata, Json::NoObject {}),
        }
    }

    /// The same with token counts.
    #[must_use]
    pub fn with_usage(mut self, usage: response::Usage) -> Self {
        let thoughts = usage.completion_tokens_details;
        self.usage = Some(Usage {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputDetails {
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
                cache_write_tokens: 0,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails {
                reasoning_tokens: thoughts.map_or(0, |details| details.reasoning_tokens),
            },
            total_tokens: usage.total_tokens,
        });
        self
    }

    /// The same with a receipt.
    #[must_use]
    pub const fn with_receipt(mut self, receipt: Option<Receipt>) -> Self {
        self.receipt = receipt;
        self
    }

    /// The same with the error that ended it.
    #[must_use]
    pub fn with_error(mut self, failure: Failure) -> Self {
        self.error = Some(failure);
        self
    }
}
