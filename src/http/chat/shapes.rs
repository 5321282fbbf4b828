//! The JSON of answers: messages, their parts in events, tool calls and log-probabilities.

use serde::Serialize;

use crate::http::generate::answer::StopReason;
use crate::http::generate::logprobs::PromptLogprobs;
use crate::http::generate::response::Body;

/// A whole answer, or one event of a stream.
#[derive(Serialize)]
pub struct Completion<'a, C> {
    #[serde(flatten)]
    pub body: Body<'a, C>,
    #[serde(flatten)]
    pub prompt: AboutPrompt,
}

/// What was asked for about the prompt, which all answers have in common.
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
    /// `null` when there are only calls.
    pub content: Option<String>,
    #[serde(flatten)]
    pub thought: Thought,
    pub refusal: (),
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// What was thought, under both names that clients read.
#[derive(Default, Serialize)]
pub struct Thought {
    /// DeepSeek's, SGLang's and llama.cpp's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    /// vLLM's, Ollama's and OpenRouter's.
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
    /// Its place among the calls of the answer; only in streams, which put calls together by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// In the first part of a call, as all that is not its arguments.
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

/// Log-probabilities in the shape of OpenAI's chat: one entry for each token.
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
    /// Nothing if there is no text.
    pub fn of(text: &str) -> Self {
        let text = (!text.is_empty()).then(|| text.to_owned());
        Self {
            reasoning_content: text.clone(),
            reasoning: text,
        }
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.reasoning.is_none()
    }
}

impl ToolCall {
    /// The call at `index` of an answer, without its arguments.
    pub fn begin(index: usize, name: String) -> Self {
        Self {
            index: Some(index),
            id: Some(format!("call_{:024x}", rand::random::<u128>() >> 32)),
            r#type: Some("function"),
            function: Function {
                name: Some(name),
                arguments: String::new(),
            },
        }
    }

    /// A further piece of the arguments of the call at `index`.
    pub const fn more(index: usize, arguments: String) -> Self {
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
    /// A part of the answer `index` that is not its end.
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
    /// Of an answer's tokens.
    pub const fn of(content: Vec<TokenLogprob>) -> Self {
        Self {
            content,
            refusal: (),
        }
    }
}
