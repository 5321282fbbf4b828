//! The messages of a request: lists of blocks → the messages of a conversation.

use serde_json::value::RawValue;

use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, MAX_REPEATED, TextOrObjects, invalid};
use crate::text::chat::{Ending, Message, Role, ToolCall};

/// The texts of a list of blocks are joined as those of chat completions are.
const SEPARATOR: &str = "\n";
const BLOCKS: &str = "a text or a list of blocks";

/// Takes `system` and `messages`. If the last message is the assistant's, the answer continues it.
///
/// # Errors
/// The first message or block that is invalid, or that this model cannot read.
pub fn take(fields: &mut Fields<'_>) -> Result<(Vec<Message>, Ending), ApiError> {
    const PARAM: &str = "messages";
    const EXPECTED: &str = "a list of at least one message, each an object";
    let mut messages = Vec::new();
    if let Some(system) = system(fields)? {
        messages.push(Message::new(Role::System, &system));
    }
    let given = fields
        .objects(PARAM, EXPECTED)?
        .ok_or(ApiError::Missing { param: PARAM })?;
    if given.is_empty() {
        return Err(invalid(PARAM, EXPECTED));
    }
    for (at, message) in given.into_iter().enumerate() {
        let read = self::message(message, &mut messages);
        read.map_err(|problem| problem.inside(&format!("{PARAM}[{at}]")))?;
    }
    let ending = match messages.last() {
        Some(last) if last.role == Role::Assistant => {
            if !last.calls.is_empty() {
                let expected = "a list that ends with the results of the calls in its last message";
                return Err(invalid(PARAM, expected));
            }
            Ending::Continued
        }
        _ => Ending::Answer,
    };
    Ok((messages, ending))
}

fn system(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    const PARAM: &str = "system";
    Ok(match fields.text_or_objects(PARAM, BLOCKS)? {
        None => None,
        Some(TextOrObjects::Text(text)) => Some(text),
        Some(TextOrObjects::Objects(blocks)) => Some(texts(PARAM, blocks)?),
    })
}

/// The text of blocks that are all texts, from the field `param`.
fn texts(param: &'static str, blocks: Vec<Fields<'_>>) -> Result<String, ApiError> {
    let mut joined = Vec::with_capacity(blocks.len());
    for (at, mut block) in blocks.into_iter().enumerate() {
        let mut take = || match kind(&mut block)?.as_str() {
            "text" => text(&mut block, "text"),
            other => Err(unread(other)),
        };
        joined.push(take().map_err(|problem| problem.inside(&format!("{param}[{at}]")))?);
    }
    Ok(joined.join(SEPARATOR))
}

/// Appends a message of the request. A user's message becomes several if it has results of tools.
fn message(mut fields: Fields<'_>, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    const ROLES: &str = "\"user\", \"assistant\" or \"system\"";
    const PARAM: &str = "content";
    let role: Option<String> = fields.take("role", ROLES)?;
    let role = match role.as_deref() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        Some(_) => return Err(invalid("role", ROLES)),
        None => return Err(ApiError::Missing { param: "role" }),
    };
    let content = fields
        .text_or_objects(PARAM, BLOCKS)?
        .ok_or(ApiError::Missing { param: PARAM })?;
    let blocks = match content {
        TextOrObjects::Text(text) => {
            messages.push(Message::new(role, &text));
            return Ok(());
        }
        TextOrObjects::Objects(blocks) => blocks,
    };
    match role {
        Role::Assistant => messages.push(assistant(blocks)?),
        Role::User => user(blocks, messages)?,
        role => messages.push(Message::new(role, &texts(PARAM, blocks)?)),
    }
    Ok(())
}

fn assistant(blocks: Vec<Fields<'_>>) -> Result<Message, ApiError> {
    let mut message = Message::new(Role::Assistant, "");
    let (mut said, mut thoughts) = (Vec::new(), Vec::new());
    for (at, mut block) in blocks.into_iter().enumerate() {
        let mut take = || {
            match kind(&mut block)?.as_str() {
                "text" => said.push(text(&mut block, "text")?),
                "thinking" => thoughts.push(text(&mut block, "thinking")?),
                // Only the provider that encrypted it can read it.
                "redacted_thinking" => {}
                "tool_use" => message.calls.push(call(&mut block)?),
                other => return Err(unread(other)),
            }
            Ok(())
        };
        take().map_err(|problem| problem.inside(&format!("content[{at}]")))?;
    }
    message.content = said.join(SEPARATOR);
    let thought = thoughts.join(SEPARATOR);
    message.reasoning = (!thought.trim().is_empty()).then_some(thought);
    Ok(message)
}

fn call(block: &mut Fields<'_>) -> Result<ToolCall, ApiError> {
    const INPUT: &str = "an object of at most 120 nested levels";
    let id = text(block, "id")?;
    let name = text(block, "name")?;
    let input: &RawValue = block
        .take("input", INPUT)?
        .ok_or(ApiError::Missing { param: "input" })?;
    if !input.get().starts_with('{') {
        return Err(invalid("input", INPUT));
    }
    let call = ToolCall {
        id,
        name,
        arguments: input.get().to_owned(),
    };
    // Templates need the value.
    match call.has_object() {
        true => Ok(call),
        false => Err(invalid("input", INPUT)),
    }
}

/// Appends what the user says and the results of tools, in their order.
fn user(blocks: Vec<Fields<'_>>, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let mut said: Vec<String> = Vec::new();
    let has_none = blocks.is_empty();
    for (at, mut block) in blocks.into_iter().enumerate() {
        let mut take = || {
            match kind(&mut block)?.as_str() {
                "text" => said.push(text(&mut block, "text")?),
                "tool_result" => {
                    if !said.is_empty() {
                        messages.push(Message::new(Role::User, &said.join(SEPARATOR)));
                        said.clear();
                    }
                    messages.push(result(&mut block)?);
                }
                other => return Err(unread(other)),
            }
            Ok(())
        };
        take().map_err(|problem| problem.inside(&format!("content[{at}]")))?;
    }
    if has_none || !said.is_empty() {
        messages.push(Message::new(Role::User, &said.join(SEPARATOR)));
    }
    Ok(())
}

fn result(block: &mut Fields<'_>) -> Result<Message, ApiError> {
    const PARAM: &str = "content";
    let id = text(block, "tool_use_id")?;
    // A failed call has the error in its content, where the model reads it.
    let _: Option<bool> = block.take("is_error", "true or false")?;
    let content = match block.text_or_objects(PARAM, BLOCKS)? {
        None => String::new(),
        Some(TextOrObjects::Text(text)) => text,
        Some(TextOrObjects::Objects(blocks)) => texts(PARAM, blocks)?,
    };
    let mut message = Message::new(Role::Tool, &content);
    message.call_id = Some(id);
    Ok(message)
}

fn kind(block: &mut Fields<'_>) -> Result<String, ApiError> {
    text(block, "type")
}

fn text(block: &mut Fields<'_>, param: &'static str) -> Result<String, ApiError> {
    block
        .take(param, "a text")?
        .ok_or(ApiError::Missing { param })
}

/// The error for a block that the model cannot read, such as an image.
fn unread(kind: &str) -> ApiError {
    let shown: String = kind.chars().take(MAX_REPEATED).collect();
    let expected =
        format!("one that may stand here and that this model reads, which '{shown}' is not");
    invalid("type", expected)
}
