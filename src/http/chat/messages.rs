//! Parses and checks the conversation in a request: messages, tools and documents, in the form that templates need.

use std::collections::BTreeMap;

use minijinja::Value;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::tools::{self, Tool};
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::text::chat::{Conversation, Message, RESERVED, Role, ToolCall};

/// The most documents in one request: more than any context can hold.
pub const MAX_DOCUMENTS: usize = 128;
/// The most characters of a role that OpenAI's API does not have. `document 1` is a long one.
pub const MAX_ROLE: usize = 64;

/// Takes the conversation from the fields of a request, for chat completions and `/tokenize`.
///
/// # Errors
/// The first field that is absent or invalid.
pub fn take(fields: &mut Fields<'_>) -> Result<(Conversation, Vec<Tool>), ApiError> {
    let messages = messages(fields)?;
    let (tools, definitions) = tools::take(fields)?;
    let conversation = Conversation {
        messages,
        tools: definitions,
        documents: documents(fields)?,
        variables: variables(fields)?,
        ..Conversation::default()
    };
    Ok((conversation, tools))
}

fn messages(fields: &mut Fields<'_>) -> Result<Vec<Message>, ApiError> {
    const PARAM: &str = "messages";
    const EXPECTED: &str = "a list of at least one message, each an object";
    let messages: Vec<BTreeMap<String, &RawValue>> = fields
        .take(PARAM, EXPECTED)?
        .ok_or(ApiError::Missing { param: PARAM })?;
    if messages.is_empty() {
        return Err(invalid(PARAM, EXPECTED));
    }
    let mut checked = Vec::with_capacity(messages.len());
    for (at, message) in messages.into_iter().enumerate() {
        let message = self::message(&message);
        checked.push(message.map_err(|problem| refused(at, problem))?);
    }
    Ok(checked)
}

/// A field of a message, and the value that was expected.
pub type Problem = (&'static str, &'static str);

/// The error for a field of message `at`.
pub fn refused(at: usize, (field, expected): Problem) -> ApiError {
    let expected = format!("well-formed: '{field}' of message {at} must be {expected}");
    invalid("messages", expected)
}

fn message(fields: &BTreeMap<String, &RawValue>) -> Result<Message, Problem> {
    let role = role(field(fields, "role", ROLES)?)?;
    let calls = match role {
        Role::Assistant => calls(fields)?,
        _ => Vec::new(),
    };
    let content = match field::<&RawValue>(fields, "content", CONTENT)? {
        Some(content) => content_text(content.get())?,
        // An assistant's message may have only tool calls, and the result of a tool may be empty.
        None if matches!(role, Role::Assistant | Role::Tool) => String::new(),
        None => return Err(("content", CONTENT)),
    };
    // Servers differ in which of these two names they send, so clients send back either.
    let reasoning = match role {
        Role::Assistant => {
            let first: Option<String> = field(fields, "reasoning_content", "a text")?;
            let second: Option<String> = field(fields, "reasoning", "a text")?;
            let given = first.or(second);
            given.filter(|thought| !thought.trim().is_empty())
        }
        _ => None,
    };
    Ok(Message {
        role,
        content,
        reasoning,
        calls,
        name: field(fields, "name", "a text")?,
        call_id: field(fields, "tool_call_id", "a text")?,
    })
}

const ROLES: &str = "system, developer, user, assistant, tool, or another of at most 64 letters, digits, spaces, '_', '-' and '.' that the model's chat template prints";
const CONTENT: &str =
    "a text or a list of {\"type\": \"text\", \"text\": …}; this model reads nothing else";

/// Parses a role. Templates decide about roles that OpenAI's API does not have, such as Granite's `document` and
/// `control`.
fn role(name: Option<String>) -> Result<Role, Problem> {
    let name = name.ok_or(("role", ROLES))?;
    Ok(match name.as_str() {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => {
            // These characters cannot form a special token.
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b" _-.".contains(&byte);
            if !(1..=MAX_ROLE).contains(&other.len()) || !other.bytes().all(is_plain) {
                return Err(("role", ROLES));
            }
            Role::Other(name)
        }
    })
}

fn content_text(json: &str) -> Result<String, Problem> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Part {
        Bare(String),
        /// Not an enum tagged by `type`: serde would also accept a number as the tag.
        Typed {
            r#type: String,
            text: Option<String>,
            refusal: Option<String>,
        },
    }
    if let Ok(text) = serde_json::from_str(json) {
        return Ok(text);
    }
    let problem = ("content", CONTENT);
    let parts: Vec<Part> = serde_json::from_str(json).map_err(|_problem| problem)?;
    let texts = parts.into_iter().map(|part| match part {
        Part::Bare(text) => Ok(text),
        // The types that OpenAI's APIs have for text.
        Part::Typed {
            r#type,
            text,
            refusal,
        } => match r#type.as_str() {
            "text" | "input_text" | "output_text" => text.ok_or(problem),
            "refusal" => refusal.ok_or(problem),
            _ => Err(problem),
        },
    });
    let texts = texts.collect::<Result<Vec<String>, Problem>>()?;
    // The separator that Granite 4's template uses.
    Ok(texts.join("\n"))
}

/// The refusal of a message's calls.
pub const REFUSED_CALLS: Problem = (
    "tool_calls",
    "a list of {\"id\", \"type\": \"function\", \"function\": {\"name\", \"arguments\"}}, the arguments a JSON object or its text",
);

fn calls(fields: &BTreeMap<String, &RawValue>) -> Result<Vec<ToolCall>, Problem> {
    #[derive(Deserialize)]
    struct Call<'a> {
        #[serde(default)]
        id: Option<String>,
        #[serde(default)]
        r#type: Option<String>,
        #[serde(borrow)]
        function: Function<'a>,
    }
    #[derive(Deserialize)]
    struct Function<'a> {
        name: String,
        #[serde(borrow, default)]
        arguments: Option<&'a RawValue>,
    }
    let calls: Option<&RawValue> = field(fields, REFUSED_CALLS.0, REFUSED_CALLS.1)?;
    let Some(calls) = calls else {
        return Ok(Vec::new());
    };
    let calls: Vec<Call<'_>> =
        serde_json::from_str(calls.get()).map_err(|_problem| REFUSED_CALLS)?;
    let call = |call: Call<'_>| {
        if call.r#type.is_some_and(|kind| kind != "function") {
            return Err(REFUSED_CALLS);
        }
        // Clients send arguments back in the form in which they received them: an object, its JSON as a string, or
        // nothing.
        let arguments = match call.function.arguments.map(RawValue::get) {
            None => String::new(),
            Some(object) if object.starts_with('{') => object.to_owned(),
            Some(text) => serde_json::from_str(text).map_err(|_problem| REFUSED_CALLS)?,
        };
        Ok(ToolCall {
            id: call.id.unwrap_or_default(),
            name: call.function.name,
            arguments,
        })
    };
    calls.into_iter().map(call).collect()
}

fn field<'a, T: Deserialize<'a>>(
    fields: &BTreeMap<String, &'a RawValue>,
    name: &'static str,
    expected: &'static str,
) -> Result<Option<T>, Problem> {
    match fields.get(name) {
        None => Ok(None),
        Some(raw) => serde_json::from_str(raw.get()).map_err(|_problem| (name, expected)),
    }
}

fn documents(fields: &mut Fields<'_>) -> Result<Option<Value>, ApiError> {
    let expected = format!(
        "a list of at most {MAX_DOCUMENTS} objects, such as {{\"doc_id\": \"1\", \"text\": …}}"
    );
    let refused = || invalid("documents", &*expected);
    let Some(raw) = fields.take::<&RawValue>("documents", &expected)? else {
        return Ok(None);
    };
    let documents: Vec<BTreeMap<String, Value>> =
        serde_json::from_str(raw.get()).map_err(|_problem| refused())?;
    match documents.len() {
        0 => Ok(None),
        1..=MAX_DOCUMENTS => {
            let in_order = serde_json::from_str(raw.get()).map_err(|_problem| refused())?;
            Ok(Some(in_order))
        }
        _ => Err(refused()),
    }
}

/// Takes `chat_template_kwargs`, variables that only the template understands.
fn variables(fields: &mut Fields<'_>) -> Result<Vec<(String, Value)>, ApiError> {
    let expected = format!(
        "an object without {}",
        RESERVED.map(|name| format!("'{name}'")).join(", ")
    );
    let variables: Option<BTreeMap<String, Value>> =
        fields.take("chat_template_kwargs", &expected)?;
    let variables: Vec<(String, Value)> = variables.unwrap_or_default().into_iter().collect();
    if variables
        .iter()
        .any(|(name, _)| RESERVED.contains(&name.as_str()))
    {
        return Err(invalid("chat_template_kwargs", expected));
    }
    Ok(variables)
}
