//! Parses and checks the fields of `POST /v1/chat/completions` other than the conversation.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::messages;
use super::thinking::ThinkingRequest;
use super::tools::{Choice, Tool, choose};
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::generate::output::MAX_LOGPROBS;
use crate::http::generate::request::GenerationRequest;
use crate::http::limits::Limits;
use crate::text::chat::calls::CallSyntax;
use crate::text::chat::{Conversation, Ending, Role};
use crate::text::values::Tools;

/// A chat request whose fields are all in range. Checks that depend on the model follow later.
#[derive(Debug)]
pub struct ChatRequest {
    /// The conversation. It has no tools if none may be called.
    pub conversation: Conversation,
    /// The field with the messages, for error messages.
    pub conversation_field: &'static str,
    /// The tools that may be called.
    pub tools: Vec<Tool>,
    /// Whether the answer must be a tool call.
    pub must_call: bool,
    /// Whether an answer may have several calls.
    pub parallel_calls: bool,
    /// Whether and how long the model thinks before it answers.
    pub thinking: ThinkingRequest,
    /// The text with which answers begin: the assistant's last message, if the request asks for it to be repeated.
    pub echo: String,
    /// The fields of all generating routes. Without `max_tokens` an answer may fill the context.
    pub common: GenerationRequest,
}

/// Fields of OpenAI's API that would change the answer in a way that this server does not support.
pub const UNSUPPORTED: [(&str, &str); 4] = [
    (
        "chat_template",
        "the model's own template is used; the server's --chat-template replaces it",
    ),
    ("functions", "send 'tools'"),
    ("function_call", "send 'tool_choice'"),
    ("audio", "leave it out"),
];

/// Fields that constrain only the text of an answer, so that a forced call, which has no text, leaves nothing to
/// constrain. All other fields with a grammar constrain the answer itself.
const TEXT_ONLY: [&str; 4] = ["response_format", "text", "output_config", "output_format"];

impl ChatRequest {
    /// Reads and checks a request body.
    ///
    /// # Errors
    /// The first field that is absent, of the wrong type, out of range or not supported.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut request = Self::take(&mut fields, limits)?;
        request.common.ignored = fields.finish(limits.strict)?;
        Ok(request)
    }

    /// Takes every field of the API.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn take(f: &mut Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let (mut conversation, tools) = messages::take(f)?;
        let (tools, must_call) = tool_choice(f, tools)?;
        let parallel_calls = f.take("parallel_tool_calls", "true or false")?;
        let thinking = ThinkingRequest::take(f)?;
        let mut common = GenerationRequest::take(f, limits)?;
        let max_tokens = common.max_tokens;
        if max_tokens.count == Some(0) {
            return Err(invalid(max_tokens.field, "an integer of at least 1"));
        }
        max_tokens.check_least(common.min_tokens, max_tokens.count.unwrap_or(usize::MAX))?;
        let with_logprobs = f.flag("logprobs")?;
        let top_logprobs = f.count("top_logprobs", 0..=MAX_LOGPROBS)?.unwrap_or(0);
        if top_logprobs > 0 && !with_logprobs {
            let expected = "0 or left out where 'logprobs' is not true";
            return Err(invalid("top_logprobs", expected));
        }
        common.set_logprobs(with_logprobs.then_some(top_logprobs));
        let echo = echo(f, &conversation)?;
        conversation.ending = take_ending(f)?;
        for (param, neutral) in UNSUPPORTED {
            if f.take::<&RawValue>(param, neutral)?.is_some() {
                return Err(ApiError::Unsupported { param, neutral });
            }
        }
        let mut request = Self {
            conversation,
            conversation_field: "messages",
            tools,
            must_call,
            parallel_calls: parallel_calls.unwrap_or(true),
            thinking,
            echo,
            common,
        };
        request.settle()?;
        Ok(request)
    }

    /// Leaves tools that may not be called out of the prompt, and makes the prompt end with the start of a call if one
    /// is forced.
    ///
    /// # Errors
    /// When a call is forced and another field forbids it.
    pub fn settle(&mut self) -> Result<(), ApiError> {
        if self.tools.is_empty() {
            self.conversation.tools = None;
        }
        if !self.must_call {
            return Ok(());
        }
        if let Some((param, _)) = self.common.grammar
            && !TEXT_ONLY.contains(&param)
        {
            return Err(invalid(param, "left out where 'tool_choice' forces a call"));
        }
        if self.conversation.ending != Ending::Answer {
            let expected = "one that forces no call where no new answer begins";
            return Err(invalid("tool_choice", expected));
        }
        self.conversation.ending = Ending::Call;
        Ok(())
    }

    /// The types of the arguments of the tools.
    pub fn argument_kinds(&self) -> Arc<Tools> {
        let tools = self.tools.iter();
        Arc::new(Tools::new(
            tools.map(|tool| (&*tool.name, tool.parameters.as_ref())),
        ))
    }

    /// If a call is forced, constrains the answer to a call in the format `syntax`.
    pub fn force_call(&mut self, syntax: &CallSyntax) {
        if self.must_call {
            let tools = self.tools.iter();
            let parameters = |tool: &Tool| tool.parameters.as_ref().map(ToString::to_string);
            let tools = tools.map(|tool| (tool.name.clone(), parameters(tool)));
            self.common.grammar = Some(("tools", syntax.forced(tools.collect())));
        }
    }
}

/// Determines how the prompt ends, from vLLM's two switches for this.
///
/// # Errors
/// When the switches contradict each other.
pub fn take_ending(fields: &mut Fields<'_>) -> Result<Ending, ApiError> {
    let add_generation_prompt = fields.take("add_generation_prompt", "true or false")?;
    let continue_final = fields.flag("continue_final_message")?;
    match (add_generation_prompt, continue_final) {
        (Some(true), true) => {
            let expected = "false where 'add_generation_prompt' is true";
            Err(invalid("continue_final_message", expected))
        }
        (_, true) => Ok(Ending::Continued),
        (Some(false), false) => Ok(Ending::Closed),
        (None | Some(true), false) => Ok(Ending::Answer),
    }
}

/// vLLM's `echo`: answers begin with the text of the last message, if it is the assistant's.
fn echo(fields: &mut Fields<'_>, conversation: &Conversation) -> Result<String, ApiError> {
    let is_asked = fields.flag("echo")?;
    let last = conversation.messages.last();
    let own = last.filter(|message| is_asked && message.role == Role::Assistant);
    Ok(own.map_or(String::new(), |message| message.content.clone()))
}

/// Takes `tool_choice`. Returns the `tools` that may be called, and whether the answer must be a call.
fn tool_choice(fields: &mut Fields<'_>, tools: Vec<Tool>) -> Result<(Vec<Tool>, bool), ApiError> {
    const PARAM: &str = "tool_choice";
    const EXPECTED: &str = "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}} with a name of 'tools'";
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Mode(String),
        Named { r#type: String, function: Named },
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let refused = || invalid(PARAM, EXPECTED);
    let choice = match fields.take::<Given>(PARAM, EXPECTED)? {
        None => Choice::Auto,
        Some(Given::Mode(mode)) => match mode.as_str() {
            "auto" => Choice::Auto,
            "none" => Choice::None,
            "required" => Choice::Any,
            _ => return Err(refused()),
        },
        Some(Given::Named { r#type, function }) if r#type == "function" => {
            Choice::Named(function.name)
        }
        Some(Given::Named { .. }) => return Err(refused()),
    };
    choose(tools, &choice).ok_or_else(refused)
}
