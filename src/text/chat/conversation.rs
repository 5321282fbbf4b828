//! A conversation as the client wrote it: messages, tools, documents, and how the prompt ends.

use minijinja::value::{Value, ValueKind};

/// The role of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// OpenAI's newer name for instructions. For templates that do not know it, it becomes `system`.
    Developer,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
    /// A role that only the template knows, such as Granite's `document`.
    Other(String),
}

/// One turn of a conversation, as the client wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The role of the author.
    pub role: Role,
    /// The text; the parts of a list are joined with line feeds.
    pub content: String,
    /// The assistant's thought, if the client sent it apart from the text.
    pub reasoning: Option<String>,
    /// The name of the author or of the tool.
    pub name: Option<String>,
    /// The assistant's tool calls.
    pub calls: Vec<ToolCall>,
    /// The id of the call to which this tool result belongs.
    pub call_id: Option<String>,
}

/// A call of a tool by the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Identifies the call within its answer.
    pub id: String,
    /// The name of the tool.
    pub name: String,
    /// A JSON object, as text. An empty text stands for an empty object.
    pub arguments: String,
}

impl Message {
    /// Creates a message that has only text.
    pub fn new(role: Role, content: &str) -> Self {
        Self {
            role,
            content: content.to_owned(),
            reasoning: None,
            name: None,
            calls: Vec::new(),
            call_id: None,
        }
    }
}

impl ToolCall {
    /// The arguments as JSON: `{}` if the text is empty.
    pub(super) fn arguments(&self) -> &str {
        match self.arguments.trim() {
            "" => "{}",
            _ => &self.arguments,
        }
    }

    /// Whether the arguments are a JSON object. Those of an answer that was cut off are not.
    pub fn has_object(&self) -> bool {
        let arguments = serde_json::from_str::<Value>(self.arguments());
        arguments.is_ok_and(|arguments| arguments.kind() == ValueKind::Map)
    }
}

/// The input of a template, with the values that the client sent.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// The tool definitions, in OpenAI's format.
    pub tools: Option<Value>,
    /// Documents on which answers are to be based.
    pub documents: Option<Value>,
    /// More variables for the template, such as `thinking`; none of [`RESERVED`].
    pub variables: Vec<(String, Value)>,
    /// How the rendered text ends.
    pub ending: Ending,
    /// Whether a thought that the template opens at the end is closed at once.
    pub closes_thought: bool,
}

/// How a rendered conversation ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// With the header of the assistant's turn.
    #[default]
    Answer,
    /// With the start of a tool call, which the model completes.
    Call,
    /// After the last message, which is complete.
    Closed,
    /// Within the last message, which the model continues.
    Continued,
}

/// Variables that the server sets and a client must not.
pub const RESERVED: [&str; 8] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
];
