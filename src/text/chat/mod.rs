//! Converts conversations to the text that a model was trained on, and finds tool calls in the text of answers.
//!
//! - [`ChatTemplate`]: the model's own Jinja template, run within bounds.
//! - [`guard`]: ensures that text from clients never becomes a control token.
//! - [`calls`]: finds tool calls in answers. Thoughts are separated by [`super::thoughts`].
//! - `conversation`: the input of a template, as the client wrote it.
//! - `jinja`, with `source`, `methods`, `python` and `fuel`: runs templates as transformers does, with the features of Python
//!   that they use, within bounds.

pub mod calls;
mod conversation;
mod fuel;
pub mod guard;
mod jinja;
mod methods;
mod python;
mod source;

use std::collections::BTreeSet;
use std::io;

use jiff::Timestamp;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};

use super::Tokenizer;
use super::thoughts::{Form, Phase, Splitter};
use super::tokenizer::EncodeError;
use calls::CallSyntax;
pub use conversation::{Conversation, Ending, Message, RESERVED, Role, ToolCall};
use guard::ControlTokens;

/// The most roles in a conversation beside OpenAI's: as many as documents, because some clients number the roles of
/// documents.
const MAX_OTHER_ROLES: usize = 128;
/// A text that occurs in no template.
const PROBE: &str = "qZ7probe";
/// The field in which most templates expect the thought of a message.
const REASONING: &str = "reasoning_content";
/// The most characters of a template's error message that are sent to the client.
const MAX_COMPLAINT: usize = 300;

/// A model's compiled chat template, with the control tokens of its tokenizer.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    control: ControlTokens,
    calls: Option<CallSyntax>,
    thoughts: Option<&'static Form>,
    /// The texts that templates use as `bos_token` and `eos_token`.
    bos: String,
    eos: String,
}

/// The prompt that a conversation becomes.
#[derive(Debug)]
pub struct Prompt {
    /// The ids of the rendered text.
    pub ids: Vec<u32>,
    /// The splitter for the answer, if the model may think.
    pub thoughts: Option<Splitter>,
    /// Whether the prompt ends with the start of a tool call.
    pub opens_call: bool,
}

/// The reasons why a conversation cannot be tokenized.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template refuses the conversation; the text gives the reason.
    #[error("{0}")]
    Template(String),
    /// The rendered text cannot be tokenized.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl ChatTemplate {
    /// Compiles `source`. `bos` and `eos` are the tokens that begin and end a text, if the model has them.
    ///
    /// # Errors
    /// The problem with the template, in one line.
    pub fn new(
        source: &str,
        tokenizer: &Tokenizer,
        bos: Option<u32>,
        eos: Option<u32>,
    ) -> Result<Self, String> {
        let environment = jinja::environment(source)?;
        let text = |id: Option<u32>| {
            let bytes = id.map_or(&[][..], |id| tokenizer.bytes(id));
            String::from_utf8_lossy(bytes).into_owned()
        };
        let mut template = Self {
            environment,
            control: ControlTokens::of(tokenizer),
            calls: None,
            thoughts: Form::of(source),
            source: source.to_owned(),
            bos: text(bos),
            eos: text(eos),
        };
        if template.takes_tools() {
            template.calls = Some(CallSyntax::of(source, tokenizer));
        }
        Ok(template)
    }

    /// Whether the template prints tools, which is found out by rendering a small conversation. If none can be
    /// rendered, the template's source decides.
    fn takes_tools(&self) -> bool {
        let function = format!(
            "{{\"name\": \"{PROBE}\", \"description\": \"-\", \"parameters\": {{\"type\": \"object\", \"properties\": {{}}}}}}"
        );
        let tools = format!("[{{\"type\": \"function\", \"function\": {function}}}]");
        let tools: Value = serde_json::from_str(&tools).expect("this is JSON");
        let mut has_rendered = false;
        for roles in [&[Role::User][..], &[Role::System, Role::User]] {
            let messages = roles.iter().map(|role| Message::new(role.clone(), "-"));
            let probe = Conversation {
                messages: messages.collect(),
                tools: Some(tools.clone()),
                ..Conversation::default()
            };
            if let Ok(text) = self.render(&probe, Timestamp::UNIX_EPOCH) {
                has_rendered = true;
                if text.contains(PROBE) {
                    return true;
                }
            }
        }
        !has_rendered && self.mentions("tools")
    }

    /// The source text of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The format in which the model writes tool calls; `None` if its template does not print tools.
    pub const fn calls(&self) -> Option<&CallSyntax> {
        self.calls.as_ref()
    }

    /// The form in which the model marks its thoughts; `None` if its template has none.
    pub const fn thoughts(&self) -> Option<&'static Form> {
        self.thoughts
    }

    /// The ids of the text that begins a tool call, for prompts that do not end with it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn opener(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, EncodeError> {
        let opener = self.calls.as_ref().map_or("", CallSyntax::opener);
        self.control.encode(tokenizer, opener, usize::MAX)
    }

    /// Whether the source of the template contains `name`.
    pub fn mentions(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    /// Renders and tokenizes `conversation`. At most `max_tokens` ids are wanted, and a longer text is refused early.
    /// Templates use `now` as today's date.
    ///
    /// Only the template can write control tokens; text from the client is always tokenized as ordinary text.
    ///
    /// # Errors
    /// [`ChatError::Template`] when the template refuses the conversation, or exceeds a bound.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        now: Timestamp,
        max_tokens: usize,
    ) -> Result<Prompt, ChatError> {
        let limit = tokenizer.most_bytes(max_tokens);
        self.check_roles(conversation, now)?;
        let mut rendered = self.render_marked(conversation, now, limit)?;
        if conversation.ending == Ending::Continued {
            let end = rendered.find(guard::CUT).ok_or_else(|| {
                let problem =
                    "the chat template leaves out the last message, so it cannot be continued";
                ChatError::Template(problem.into())
            })?;
            rendered.truncate(end);
        }
        let mut thoughts = self.splitter(conversation, &rendered);
        let mut thinks = thoughts.as_ref().map(Splitter::phase) == Some(Phase::Thought);
        if let (Some(form), true, true) = (self.thoughts, conversation.closes_thought, thinks) {
            rendered += &form.closing();
            (thoughts, thinks) = (Some(form.after(&rendered)), false);
        }
        let mut opens_call = false;
        if let (Ending::Call, Some(calls), false) = (conversation.ending, &self.calls, thinks) {
            rendered += calls.opener();
            (opens_call, thoughts) = (true, None);
        }
        let ids = self.control.encode(tokenizer, &rendered, max_tokens)?;
        Ok(Prompt {
            ids,
            thoughts,
            opens_call,
        })
    }

    /// Returns a splitter for the answer to `rendered`, if the answer may have a thought.
    fn splitter(&self, conversation: &Conversation, rendered: &str) -> Option<Splitter> {
        let form = self.thoughts?;
        let is_on = form.is_default || {
            let mut variables = conversation.variables.iter();
            variables.any(|(name, value)| name == form.switch && value.is_true())
        };
        // If the last message is continued, the prompt ends with text of the client, which may look like a tag.
        let is_own = conversation.ending != Ending::Continued;
        (is_on && is_own).then(|| form.after(rendered))
    }

    /// Refuses roles that the template does not print, because the model would not see their messages. Each role is
    /// tested with a small conversation.
    fn check_roles(&self, conversation: &Conversation, now: Timestamp) -> Result<(), ChatError> {
        let roles = conversation.messages.iter().map(|message| &message.role);
        let others: BTreeSet<&str> = roles
            .filter_map(|role| match role {
                Role::Other(name) => Some(name.as_str()),
                _ => None,
            })
            .collect();
        if others.len() > MAX_OTHER_ROLES {
            let problem = format!("it is given more than {MAX_OTHER_ROLES} roles of its own");
            return Err(ChatError::Template(problem));
        }
        for role in others {
            let message = Message::new(Role::Other(role.to_owned()), PROBE);
            let probe = Conversation {
                messages: vec![Message::new(Role::User, "-"), message],
                ..Conversation::default()
            };
            if !self.render(&probe, now)?.contains(PROBE) {
                let problem = format!("it leaves out messages of the role '{role}'");
                return Err(ChatError::Template(problem));
            }
        }
        Ok(())
    }

    /// Renders the conversation to the text that the ids stand for, as Jinja in Python would.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode`].
    pub fn render(&self, conversation: &Conversation, now: Timestamp) -> Result<String, ChatError> {
        let marked = self.render_marked(conversation, now, usize::MAX)?;
        Ok(guard::unmark(&marked).into_owned())
    }

    fn render_marked(
        &self,
        conversation: &Conversation,
        now: Timestamp,
        limit: usize,
    ) -> Result<String, ChatError> {
        let continued = conversation.ending == Ending::Continued;
        let last = conversation.messages.len().saturating_sub(1);
        let messages = conversation.messages.iter().enumerate();
        let messages: Vec<Value> = messages
            .map(|(at, message)| self.message(message, continued && at == last))
            .collect();
        let guarded = |value: &Option<Value>| {
            let value = value.as_ref().map(|value| self.control.guard_value(value));
            value.unwrap_or(Value::from(()))
        };
        let variables = conversation.variables.iter();
        let variables =
            variables.map(|(name, value)| (name.as_str(), self.control.guard_value(value)));
        let strftime = move |format: &str| python::strftime(now, format);
        let ours = context! {
            messages,
            tools => guarded(&conversation.tools),
            documents => guarded(&conversation.documents),
            add_generation_prompt => matches!(conversation.ending, Ending::Answer | Ending::Call),
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            strftime_now => Value::from_function(strftime),
            ..Value::from_pairs(variables)
        };
        let template = self.environment.get_template("chat").map_err(refused)?;
        let mut output = Bounded {
            bytes: Vec::new(),
            limit,
        };
        if let Err(problem) = template.render_captured_to(ours, &mut output) {
            let attempted = output.bytes.len();
            return Err(if attempted > limit {
                let bytes = attempted;
                EncodeError::TooLong { bytes, limit }.into()
            } else {
                refused(problem)
            });
        }
        String::from_utf8(output.bytes).map_err(|problem| ChatError::Template(problem.to_string()))
    }

    /// Converts a message to the variables of the template, with guard marks in the client's text.
    fn message(&self, message: &Message, is_continued: bool) -> Value {
        let role = match &message.role {
            Role::Developer if self.mentions("developer") => "developer",
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Other(name) => name,
        };
        let guard = |text: &str| self.control.guard(text).into_owned();
        let mut fields: Vec<(&str, Value)> = vec![("role", guard(role).into())];
        let (thought, mut content) = match message.role {
            Role::Assistant => self.thought_and_answer(message),
            _ => (None, guard(&message.content)),
        };
        if let Some(thought) = thought {
            let name = match self.mentions(REASONING) {
                true => REASONING,
                false => "reasoning",
            };
            fields.push((name, thought.into()));
        }
        if !message.calls.is_empty() {
            match &self.calls {
                // If the template has no variable for calls, they are written into the content in the model's format.
                Some(syntax) if !self.mentions("tool_calls") => {
                    content += &syntax.write(&message.calls, guard);
                }
                _ => fields.push(("tool_calls", self.calls_value(&message.calls))),
            }
        }
        if is_continued {
            content += guard::CUT;
        }
        fields.push(("content", content.into()));
        if let Some(name) = &message.name {
            fields.push(("name", guard(name).into()));
        }
        if let Some(id) = &message.call_id {
            fields.push(("tool_call_id", guard(id).into()));
        }
        Value::from_pairs(fields)
    }

    /// The assistant's thought and text, with guard marks. Many clients send the thought back at the beginning of the
    /// text; the tags around it then count as the model's own.
    fn thought_and_answer(&self, message: &Message) -> (Option<String>, String) {
        let guard = |text: &str| self.control.guard(text).into_owned();
        let names = [REASONING, "message.reasoning", "['reasoning']"];
        let reads_thoughts = names.iter().any(|name| self.mentions(name));
        let given = message.reasoning.as_ref().filter(|_| reads_thoughts);
        if let Some(thought) = given {
            return (Some(guard(thought)), guard(&message.content));
        }
        let form = self.thoughts.filter(|form| form.is_default);
        match form.and_then(|form| form.split_off(&message.content)) {
            None => (None, guard(&message.content)),
            Some(parts) if reads_thoughts => (Some(guard(parts.thought)), guard(parts.answer)),
            Some(parts) => {
                let [open, thought, close, answer] = parts.whole;
                let text = open.to_owned() + &guard(thought) + close + &guard(answer);
                (None, text)
            }
        }
    }

    fn calls_value(&self, calls: &[ToolCall]) -> Value {
        let call = |call: &ToolCall| {
            // Templates format the arguments themselves, so valid JSON is passed as a value.
            let arguments: Value = serde_json::from_str(call.arguments())
                .unwrap_or_else(|_no_json| Value::from(call.arguments()));
            let function = Value::from_pairs([
                ("name", Value::from(call.name.as_str())),
                ("arguments", arguments),
            ]);
            let call = Value::from_pairs([
                ("id", Value::from(call.id.as_str())),
                ("type", Value::from("function")),
                ("function", function),
            ]);
            self.control.guard_value(&call)
        };
        calls.iter().map(call).collect()
    }
}

/// The error message of the template, or of the engine that runs it, shortened so that it fits a response.
fn refused(problem: minijinja::Error) -> ChatError {
    let text = match (problem.kind(), problem.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too many steps".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => problem.to_string(),
    };
    let text = text.chars().take(MAX_COMPLAINT);
    ChatError::Template(text.map(|c| if c.is_control() { ' ' } else { c }).collect())
}

/// The output of a template, up to a limit of its length.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > self.limit {
            return Err(io::Error::other("the text is too long"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
