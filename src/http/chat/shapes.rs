//! The JSON of responses: messages, their deltas in streams, tool calls and log-probabilities.

use serde::Serialize;

use super::turn::{Added, new_call_id};
use crate::http::generate::answer::StopReason;
use crate::http::generate::logprobs::PromptLogprobs;
use crate::http::generate::response::Body;

/// A response in one body, or one chunk of a stream.
#[derive(Serialize)]
pub struct Completion<'a, C> {
    #[serde(flatten)]
    pub body: Body<'a, C>,
    #[serde(flatten)]
    pub prompt: AboutPrompt,
}

/// The requested information about the prompt, which is the same for all answers.
#[derive(Default, Serialize)]
pub struct AboutPrompt {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

#[derive(Serialize)]
pub struct Choice {
    pub index: usize,
    pub message: Message,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: &'static str,
    pub stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
pub struct Message {
    pub role: &'static str,
    /// `null` if the text is empty and the message has tool calls or the model may think.
    pub content: Option<String>,
    #[serde(flatten)]
    pub thought: Thought,
    pub refusal: (),
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// The thought, under both names that clients read.
#[derive(Default, Serialize)]
pub struct Thought {
    /// The name in the APIs of DeepSeek, SGLang and llama.cpp.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    /// The name in the APIs of vLLM, Ollama and OpenRouter.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
}

#[derive(Serialize)]
pub struct ChunkChoice {
    pub index: usize,
    pub delta: Delta,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(flatten)]
    pub thought: Thought,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
pub struct ToolCall {
    /// The position of the call within the answer. Only streams have it, and clients use it to join the pieces of a
    /// call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// Only in the first piece of a call, as is every field except the arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    pub function: Function,
}

#[derive(Serialize)]
pub struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    pub arguments: String,
}

/// Log-probabilities in the format of OpenAI's chat API, with one entry per token.
#[derive(Serialize)]
pub struct Logprobs {
    pub content: Vec<TokenLogprob>,
    pub refusal: (),
}

#[derive(Serialize)]
pub struct TokenLogprob {
    #[serde(flatten)]
    pub token: Likely,
    pub top_logprobs: Vec<Likely>,
}

#[derive(Serialize)]
pub struct Likely {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

impl Thought {
    /// Creates the fields from `text`; they are absent if it is empty.
    pub fn of(text: &str) -> Self {
        let text = (!text.is_empty()).then(|| text.to_owned());
        Self {
            reasoning_content: text.clone(),
            reasoning: text,
        }
    }

    /// Whether there is no thought.
    pub const fn is_empty(&self) -> bool {
        self.reasoning.is_none()
    }
}

/// A part of an answer: the thought, the text, and calls or their pieces.
#[derive(Default)]
pub struct Said {
    pub thought: String,
    pub text: String,
    pub calls: Vec<ToolCall>,
}

impl Said {
    /// Collects what was added to an answer. A message of this API does not tell where its calls are within its text.
    pub fn of(added: Vec<Added>) -> Self {
        let mut said = Self::default();
        for added in added {
            match added {
                Added::Thought(text) => said.thought += &text,
                Added::Text(text) => said.text += &text,
                Added::Call { index, name } => said.calls.push(ToolCall::begin(index, name)),
                Added::Arguments { index, text } => match said.calls.last_mut() {
                    Some(call) => call.function.arguments += &text,
                    None => said.calls.push(ToolCall::more(index, text)),
                },
            }
        }
        said
    }
}

impl ToolCall {
    /// The first piece of the call at `index` of an answer, without arguments.
    fn begin(index: usize, name: String) -> Self {
        Self {
            index: Some(index),
            id: Some(new_call_id()),
            r#type: Some("function"),
            function: Function {
                name: Some(name),
                arguments: String::new(),
            },
        }
    }

    /// A further piece of the arguments of the call at `index`.
    const fn more(index: usize, arguments: String) -> Self {
        Self {
            index: Some(index),
            id: None,
            r#type: None,
            function: Function {
                name: None,
                arguments,
            },
        }
    }
}

impl ChunkChoice {
    /// A chunk of the answer `index` that does not end it.
    pub const fn of(index: usize, delta: Delta) -> Self {
        Self {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        }
    }
}

impl Logprobs {
    /// Creates the object from the log-probabilities of an answer's tokens.
    pub const fn of(content: Vec<TokenLogprob>) -> Self {
        Self {
            content,
            refusal: (),
        }
    }
}
