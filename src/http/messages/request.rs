//! Translates requests of Anthropic's API into requests of chat completions.

use serde_json::value::RawValue;

use super::conversation;
use crate::http::access::user_id;
use crate::http::chat::request::ChatRequest;
use crate::http::chat::thinking::{self, MOST_BUDGET, ThinkingRequest};
use crate::http::chat::tools::{self, Choice};
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::generate::length::MaxTokens;
use crate::http::generate::output::OutputRequest;
use crate::http::generate::request::{GenerationRequest, Own, stop};
use crate::http::generate::structured::FromField;
use crate::http::limits::Limits;
use crate::text::Grammar;
use crate::text::chat::Conversation;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An answer, whose most tokens must be given.
    Answer,
    /// The number of tokens of the prompt.
    Count,
}

/// Fields of Anthropic's API that would change the answer in a way that this server does not support.
pub const UNSUPPORTED: [(&str, &str); 2] = [
    ("container", "this server runs no code"),
    ("context_management", "shorten the messages yourself"),
];

/// Reads and checks a request body.
///
/// # Errors
/// The first field that is absent, of the wrong type, out of range or not supported.
pub fn parse(body: &[u8], limits: &Limits, purpose: Purpose) -> Result<ChatRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut request = take(&mut fields, limits, purpose)?;
    request.common.ignored = fields.finish(limits.strict)?;
    Ok(request)
}

/// Takes every field of the API.
///
/// # Errors
/// As [`parse`].
pub fn take(
    f: &mut Fields<'_>,
    limits: &Limits,
    purpose: Purpose,
) -> Result<ChatRequest, ApiError> {
    let (messages, ending) = conversation::take(f)?;
    let is_own = |kind: Option<&str>| matches!(kind, None | Some("custom"));
    let (tools, definitions) = tools::take_flat(f, "input_schema", is_own)?;
    let (choice, parallel_calls) = tool_choice(f)?;
    let (tools, must_call) = tools::choose(tools, &choice)
        .ok_or_else(|| invalid("tool_choice", "one of 'tools', if it forces a call"))?;
    const MAX: &str = "max_tokens";
    let count = f.count(MAX, 1..=limits.tokens)?;
    if count.is_none() && purpose == Purpose::Answer {
        return Err(ApiError::Missing { param: MAX });
    }
    let max_tokens = MaxTokens { count, field: MAX };
    let (effort, grammar) = output(f)?;
    let thinking = thinking(f, count, effort)?;
    let stop = stop(f, "stop_sequences", limits)?;
    let is_stream = f.flag("stream")?;
    let own = Own {
        n: 1,
        max_tokens,
        stop,
        grammar,
        output: OutputRequest::only_text(is_stream, None),
        repeated_bytes: 0,
    };
    let mut common = GenerationRequest::with(f, limits, own)?;
    max_tokens.check_least(common.min_tokens, count.unwrap_or(usize::MAX))?;
    common.user = user(f)?;
    take_unused(f)?;
    for (param, neutral) in UNSUPPORTED {
        if f.take::<&RawValue>(param, neutral)?.is_some() {
            return Err(ApiError::Unsupported { param, neutral });
        }
    }
    let none = "this server calls no tools itself: only an empty list is accepted";
    f.only("mcp_servers", none, |servers: &Vec<&RawValue>| {
        servers.is_empty()
    })?;
    let mut request = ChatRequest {
        conversation: Conversation {
            messages,
            tools: definitions,
            ending,
            ..Conversation::default()
        },
        conversation_field: "messages",
        tools,
        must_call,
        parallel_calls,
        thinking,
        echo: String::new(),
        common,
    };
    request.settle()?;
    Ok(request)
}

/// Takes `tool_choice`. Returns the choice, and whether the answer may have several calls.
fn tool_choice(f: &mut Fields<'_>) -> Result<(Choice, bool), ApiError> {
    const PARAM: &str = "tool_choice";
    const EXPECTED: &str = "an object whose 'type' is auto, any, none, or tool beside a 'name'";
    let refused = |_| invalid(PARAM, EXPECTED);
    let Some(mut given) = f.object(PARAM, EXPECTED)? else {
        return Ok((Choice::Auto, true));
    };
    let kind: Option<String> = given.take("type", "").map_err(refused)?;
    let name: Option<String> = given.take("name", "").map_err(refused)?;
    let choice = match (kind.as_deref(), name) {
        (Some("auto"), None) => Choice::Auto,
        (Some("any"), None) => Choice::Any,
        (Some("none"), None) => Choice::None,
        (Some("tool"), Some(name)) => Choice::Named(name),
        _ => return Err(invalid(PARAM, EXPECTED)),
    };
    let is_single = given.flag("disable_parallel_tool_use").map_err(refused)?;
    f.ignore_rest(PARAM, given);
    Ok((choice, !is_single))
}

/// Takes `output_config`, and the older name of its format. Returns the effort and the grammar.
fn output(f: &mut Fields<'_>) -> Result<(Option<&'static str>, Option<FromField>), ApiError> {
    const PARAM: &str = "output_config";
    const OLD: &str = "output_format";
    const EXPECTED: &str = "an object with 'effort' or 'format'";
    let mut effort = None;
    let mut grammar = None;
    if let Some(mut config) = f.object(PARAM, EXPECTED)? {
        effort = thinking::effort(&mut config, "effort", "output_config.effort")?;
        let given = config
            .object("format", FORMAT)
            .map_err(|_| invalid(PARAM, FORMAT))?;
        grammar = format(f, PARAM, given)?;
        f.ignore_rest(PARAM, config);
    }
    let given = f.object(OLD, FORMAT)?;
    let old = format(f, OLD, given)?;
    if grammar.is_some() && old.is_some() {
        return Err(invalid(OLD, "left out where 'output_config' has a format"));
    }
    Ok((effort, grammar.or(old)))
}

const FORMAT: &str = "an object with a format {\"type\": \"json_schema\", \"schema\": …}";

fn format(
    f: &mut Fields<'_>,
    param: &'static str,
    given: Option<Fields<'_>>,
) -> Result<Option<FromField>, ApiError> {
    let refused = || invalid(param, FORMAT);
    let Some(mut given) = given else {
        return Ok(None);
    };
    let kind: Option<String> = given.take("type", "").map_err(|_| refused())?;
    let schema: Option<&RawValue> = given.take("schema", "").map_err(|_| refused())?;
    let schema = schema.filter(|_| kind.as_deref() == Some("json_schema"));
    let schema = schema.ok_or_else(refused)?;
    let grammar = Grammar::JsonSchema(schema.get().to_owned());
    for name in given.names() {
        f.ignore(format!("{param}.format.{name}"));
    }
    Ok(Some((param, grammar)))
}

/// Takes `thinking`. Without it, the model thinks only if the server's defaults say so.
fn thinking(
    f: &mut Fields<'_>,
    max_tokens: Option<usize>,
    effort: Option<&'static str>,
) -> Result<ThinkingRequest, ApiError> {
    const PARAM: &str = "thinking";
    const EXPECTED: &str = "an object whose 'type' is enabled beside 'budget_tokens' of at least 1 and less than 'max_tokens', or adaptive, or disabled";
    const DISPLAY: &str = "an object whose 'display' is summarized or omitted";
    let refused = || invalid(PARAM, EXPECTED);
    let Some(mut given) = f.object(PARAM, EXPECTED)? else {
        if effort.is_some() {
            f.ignore("output_config.effort");
        }
        return Ok(ThinkingRequest {
            is_off_by_default: true,
            ..ThinkingRequest::default()
        });
    };
    let kind: Option<String> = given.take("type", "").map_err(|_| refused())?;
    let budget = given
        .count("budget_tokens", 1..=MOST_BUDGET)
        .map_err(|_| refused())?;
    let display: Option<String> = given
        .take("display", "")
        .map_err(|_| invalid(PARAM, DISPLAY))?;
    let is_included = match display.as_deref() {
        None | Some("summarized") => true,
        Some("omitted") => false,
        Some(_) => return Err(invalid(PARAM, DISPLAY)),
    };
    f.ignore_rest(PARAM, given);
    let is_on = match (kind.as_deref(), budget) {
        (Some("enabled"), Some(budget)) if max_tokens.is_none_or(|most| budget < most) => true,
        (Some("adaptive"), None) => true,
        (Some("disabled"), None) => false,
        _ => return Err(refused()),
    };
    let effort = effort.filter(|_| is_on);
    Ok(ThinkingRequest {
        effort,
        is_on: Some(is_on),
        budget,
        is_included,
        given: if is_on { vec![PARAM] } else { Vec::new() },
        ..ThinkingRequest::default()
    })
}

/// Takes `metadata`, whose `user_id` names the end user.
fn user(f: &mut Fields<'_>) -> Result<Option<u64>, ApiError> {
    let metadata = f.object("metadata", "an object")?;
    let user = metadata.as_ref().and_then(|given| given.json("user_id"));
    Ok(user.map(|user| user_id(user.get())))
}

/// Takes fields that clients send but that have no effect here.
fn take_unused(f: &mut Fields<'_>) -> Result<(), ApiError> {
    // There is one tier.
    let _: Option<String> = f.take("service_tier", "a text")?;
    // Prefixes of prompts are cached without being asked.
    let _ = f.object("cache_control", "an object")?;
    Ok(())
}
