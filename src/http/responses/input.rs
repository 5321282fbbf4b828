//! The input of a request: a text or a list of items → the messages of a conversation.

use serde_json::value::RawValue;

use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, MAX_REPEATED, TextOrObjects, invalid};
use crate::text::chat::{Message, Role, ToolCall};

const PARAM: &str = "input";
const ITEMS: &str = "a text or a list of at least one item";
const CONTENT: &str = "a text or a list of parts";
/// The texts of a list of parts are joined as those of chat completions are.
const SEPARATOR: &str = "\n";

/// Takes `instructions` and `input`.
///
/// # Errors
/// The first item or part that is invalid, or that this model cannot read.
pub fn take(fields: &mut Fields<'_>) -> Result<Vec<Message>, ApiError> {
    let mut conversation = Items::default();
    let instructions: Option<String> = fields.take("instructions", "a text")?;
    if let Some(text) = instructions {
        conversation.add(Message::new(Role::System, &text));
    }
    let input = fields.text_or_objects(PARAM, ITEMS)?;
    match input.ok_or(ApiError::Missing { param: PARAM })? {
        TextOrObjects::Text(text) => conversation.add(Message::new(Role::User, &text)),
        TextOrObjects::Objects(items) if items.is_empty() => return Err(invalid(PARAM, ITEMS)),
        TextOrObjects::Objects(items) => {
            for (at, item) in items.into_iter().enumerate() {
                let read = conversation.read(item);
                read.map_err(|problem| problem.inside(&format!("{PARAM}[{at}]")))?;
            }
        }
    }
    Ok(conversation.messages)
}

/// The conversation so far. The assistant's items beside each other, such as a thought and a call, are one message.
#[derive(Default)]
struct Items {
    messages: Vec<Message>,
    /// Whether the next item of the assistant may belong to the last message.
    is_open: bool,
}

impl Items {
    fn add(&mut self, message: Message) {
        self.is_open = message.role == Role::Assistant;
        self.messages.push(message);
    }

    /// The assistant's last message if it is open and `belongs` to it, or else a new one.
    fn assistant(&mut self, belongs: impl Fn(&Message) -> bool) -> &mut Message {
        let is_last = self.is_open && self.messages.last().is_some_and(belongs);
        if !is_last {
            self.add(Message::new(Role::Assistant, ""));
        }
        self.messages.last_mut().expect("one was added")
    }

    fn read(&mut self, mut item: Fields<'_>) -> Result<(), ApiError> {
        const KIND: &str = "the type of an item";
        let kind: Option<String> = item.take("type", KIND)?;
        match kind.as_deref() {
            None | Some("message") => self.message(&mut item),
            Some("reasoning") => self.thought(&mut item),
            Some("function_call") => {
                let call = ToolCall {
                    id: text(&mut item, "call_id")?,
                    name: text(&mut item, "name")?,
                    arguments: text(&mut item, "arguments")?,
                };
                self.assistant(|_| true).calls.push(call);
                Ok(())
            }
            Some("function_call_output") => {
                let id = text(&mut item, "call_id")?;
                let mut result = Message::new(Role::Tool, &content(&mut item, "output")?);
                result.call_id = Some(id);
                self.add(result);
                Ok(())
            }
            Some(other) => Err(unread(other)),
        }
    }

    fn message(&mut self, item: &mut Fields<'_>) -> Result<(), ApiError> {
        const ROLES: &str = "user, assistant, system or developer";
        let role = match text(item, "role")?.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" => Role::System,
            "developer" => Role::Developer,
            _ => return Err(invalid("role", ROLES)),
        };
        let content = content(item, "content")?;
        if role != Role::Assistant {
            self.add(Message::new(role, &content));
            return Ok(());
        }
        let is_part = |last: &Message| last.content.is_empty() || !last.calls.is_empty();
        append(&mut self.assistant(is_part).content, &content);
        Ok(())
    }

    /// Reads a thought. One that is encrypted is left out: only its provider can read it.
    fn thought(&mut self, item: &mut Fields<'_>) -> Result<(), ApiError> {
        let mut read = |param| match item.take::<&RawValue>(param, CONTENT)? {
            None => Ok(String::new()),
            Some(parts) => parts_text(parts, param),
        };
        let (content, summary) = (read("content")?, read("summary")?);
        let thought = match content.is_empty() {
            true => summary,
            false => content,
        };
        if thought.trim().is_empty() {
            return Ok(());
        }
        let is_part = |last: &Message| last.content.is_empty() && last.calls.is_empty();
        let message = self.assistant(is_part);
        append(message.reasoning.get_or_insert_default(), &thought);
        Ok(())
    }
}

/// Appends `more` to a text, on a line of its own.
fn append(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push_str(SEPARATOR);
    }
    text.push_str(more);
}

/// The text of a field that is a text or a list of parts.
fn content(item: &mut Fields<'_>, param: &'static str) -> Result<String, ApiError> {
    let content: &RawValue = item
        .take(param, CONTENT)?
        .ok_or(ApiError::Missing { param })?;
    match content.get().starts_with('"') {
        true => serde_json::from_str(content.get()).map_err(|_problem| invalid(param, CONTENT)),
        false => parts_text(content, param),
    }
}

/// The text of a list of parts.
fn parts_text(parts: &RawValue, param: &'static str) -> Result<String, ApiError> {
    let parts: Vec<&RawValue> =
        serde_json::from_str(parts.get()).map_err(|_problem| invalid(param, CONTENT))?;
    let mut texts = Vec::with_capacity(parts.len());
    for (at, part) in parts.into_iter().enumerate() {
        let read = || {
            let mut part = Fields::of_object(part, "", "an object")?;
            match text(&mut part, "type")?.as_str() {
                "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text" => {
                    text(&mut part, "text")
                }
                "refusal" => text(&mut part, "refusal"),
                other => Err(unread(other)),
            }
        };
        texts.push(read().map_err(|problem| problem.inside(&format!("{param}[{at}]")))?);
    }
    Ok(texts.join(SEPARATOR))
}

fn text(fields: &mut Fields<'_>, param: &'static str) -> Result<String, ApiError> {
    fields
        .take(param, "a text")?
        .ok_or(ApiError::Missing { param })
}

/// The error for an item or a part that the model cannot read, such as an image.
fn unread(kind: &str) -> ApiError {
    let shown: String = kind.chars().take(MAX_REPEATED).collect();
    invalid(
        "type",
        format!("one that this server reads, which '{shown}' is not"),
    )
}
