//! Conversations → the text that a model was trained on, and answers → text and tool calls.
//!
//! - [`ChatTemplate`]: the model's own Jinja template, run within bounds.
//! - [`guard`]: what clients write stays text, whatever it looks like.
//! - [`calls`]: tool calls in answers; their thoughts are [`super::thoughts`].
//! - `jinja`, with `source`, `methods` and `python`: runs templates as transformers does, and what they expect of Python.

pub mod calls;
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
use guard::ControlTokens;

/// Roles that a conversation has beside OpenAI's: as many as it may have documents, which some clients number.
const MAX_OTHER_ROLES: usize = 128;
/// A text that no template has of its own.
const PROBE: &str = "qZ7probe";
/// What templates call a thought.
const REASONING: &str = "reasoning_content";
/// Characters of a template's own complaint that a client gets to read.
const MAX_COMPLAINT: usize = 300;

/// A model's chat template, compiled, and the tokens it writes.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    control: ControlTokens,
    calls: Option<CallSyntax>,
    thoughts: Option<&'static Form>,
    /// What templates call `bos_token` and `eos_token`.
    bos: String,
    eos: String,
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// OpenAI's newer name for instructions: the system, for templates that do not know it.
    Developer,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
    /// One that only the template knows, such as Granite's `document`.
    Other(String),
}

/// One turn of a conversation, as the client wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; parts of text are lines of it.
    pub content: String,
    /// What the assistant thought before, if it is not in the text.
    pub reasoning: Option<String>,
    /// Who exactly speaks, or which tool.
    pub name: Option<String>,
    /// The calls that the assistant made.
    pub calls: Vec<ToolCall>,
    /// The call that a tool answers.
    pub call_id: Option<String>,
}

/// A call of a tool by the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Tells calls of one answer apart.
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object, as text. Empty is an empty object.
    pub arguments: String,
}

impl Message {
    /// A message that is nothing but text.
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
    /// The arguments, of which there may be none.
    fn arguments(&self) -> &str {
        match self.arguments.trim() {
            "" => "{}",
            _ => &self.arguments,
        }
    }
}

/// All that a template is given. The values are as the client sent them.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// Definitions of tools, in OpenAI's shape.
    pub tools: Option<Value>,
    /// Documents to ground answers in.
    pub documents: Option<Value>,
    /// Further variables of the template, such as `thinking`; none of [`RESERVED`].
    pub variables: Vec<(String, Value)>,
    /// How the rendered text ends.
    pub ending: Ending,
}

/// How a rendered conversation ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// With the header of the assistant's turn.
    #[default]
    Answer,
    /// With the start of a tool call, which the model has to complete.
    Call,
    /// After the last message, as if it had ended.
    Closed,
    /// In the middle of the last message, which the model goes on with.
    Continued,
}

/// What a conversation becomes for the model.
#[derive(Debug)]
pub struct Prompt {
    /// The ids of the rendered text.
    pub ids: Vec<u32>,
    /// Where the answer is with its thoughts, if the model may have any.
    pub thoughts: Option<Splitter>,
    /// Whether the text ends with the start of a call.
    pub opens_call: bool,
}

/// Variables that are not the client's to set.
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

/// Why a conversation has no ids.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template does not take such a conversation; the text says why.
    #[error("{0}")]
    Template(String),
    /// The rendered text has no ids.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the tokens that begin and end a text, where the model has them.
    ///
    /// # Errors
    /// What is wrong with the template, in one line.
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

    /// Whether the template prints tools: a small conversation tells. One that cannot be rendered is taken at its word.
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

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How the model writes tool calls; `None` when its template has no tools.
    pub const fn calls(&self) -> Option<&CallSyntax> {
        self.calls.as_ref()
    }

    /// How the model marks its thoughts; `None` when its template knows none.
    pub const fn thoughts(&self) -> Option<&'static Form> {
        self.thoughts
    }

    /// The ids of what begins a call, where the model has to write that itself.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn opener(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, EncodeError> {
        let opener = self.calls.as_ref().map_or("", CallSyntax::opener);
        self.control.encode(tokenizer, opener, usize::MAX)
    }

    /// Whether the template does something with the variable `name`.
    pub fn mentions(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    /// The ids of `conversation`, at most `max_tokens` of which are wanted, and what they end with. `now` is what templates
    /// take for today.
    ///
    /// Control tokens come from the template alone: what the client wrote is text, whatever it looks like.
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
        let thinks = thoughts.as_ref().map(Splitter::phase) == Some(Phase::Thought);
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

    /// What tells the thought and the answer apart that follow `rendered`, if there may be a thought.
    fn splitter(&self, conversation: &Conversation, rendered: &str) -> Option<Splitter> {
        let form = self.thoughts?;
        let is_on = form.is_default || {
            let mut variables = conversation.variables.iter();
            variables.any(|(name, value)| name == form.switch && value.is_true())
        };
        // A client's own text may end with anything.
        let is_own = conversation.ending != Ending::Continued;
        (is_on && is_own).then(|| form.after(rendered))
    }

    /// Refuses roles that the template does not print: the model would not see the message. A small conversation tells.
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

    /// The text that the ids stand for, as Jinja in Python would render it.
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

    /// A message in the words of the template, what the client wrote marked.
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
                // Templates that know no calls get them as the model writes them.
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

    /// What the assistant thought and said, marked. Many clients send a thought back as it came, in front of the text;
    /// the tags are then the model's own.
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
            // Templates format arguments themselves, so they get the object where it is one.
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

/// The template's complaint, or the engine's about the template, short enough for an answer.
fn refused(problem: minijinja::Error) -> ChatError {
    let text = match (problem.kind(), problem.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too many steps".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => problem.to_string(),
    };
    let text = text.chars().take(MAX_COMPLAINT);
    ChatError::Template(text.map(|c| if c.is_control() { ' ' } else { c }).collect())
}

/// What a template has written, up to a limit.
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
