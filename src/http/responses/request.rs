//! Translates requests of the Responses API into requests of chat completions.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::input;
use crate::http::access::user_id;
use crate::http::chat::request::ChatRequest;
use crate::http::chat::thinking::ThinkingRequest;
use crate::http::chat::tools::{self, Choice};
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::generate::length::MaxTokens;
use crate::http::generate::output::OutputRequest;
use crate::http::generate::prompt::Truncation;
use crate::http::generate::request::{GenerationRequest, Own, stop};
use crate::http::generate::structured::FromField;
use crate::http::limits::Limits;
use crate::text::Grammar;
use crate::text::chat::Conversation;

/// Entries of `metadata`: OpenAI's limit.
pub const MAX_METADATA: usize = 16;
/// Characters of a name in `metadata`: OpenAI's limit.
pub const MAX_METADATA_NAME: usize = 64;
/// Characters of a value in `metadata`: OpenAI's limit.
pub const MAX_METADATA_VALUE: usize = 512;
/// Times that the response, or the events of a stream, repeat parts of the request; and once they are kept.
const REPETITIONS: usize = 4;

/// Values of `include` that add nothing here: thoughts are in the response anyway and are not encrypted, and the others
/// belong to tools and inputs that this server does not have.
pub const INCLUDED: [&str; 7] = [
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];

/// Fields of OpenAI's API that would change the answer in a way that this server does not support.
pub const UNSUPPORTED: [(&str, &str); 4] = [
    (
        "previous_response_id",
        "this server keeps no responses: send the whole conversation in 'input'",
    ),
    (
        "conversation",
        "this server keeps no conversations: send the whole one in 'input'",
    ),
    ("prompt", "send 'instructions' and 'input'"),
    ("context_management", "shorten the input yourself"),
];

/// A request.
#[derive(Debug)]
pub struct ResponsesRequest {
    /// What it asks for.
    pub chat: ChatRequest,
    /// What the response repeats of it.
    pub echo: Echo,
}

/// The parts of a request that its response repeats. JSON is repeated as the client wrote it.
#[derive(Debug, Default)]
pub struct Echo {
    /// The instructions.
    pub instructions: Option<Box<RawValue>>,
    /// The client's own notes.
    pub metadata: Option<Box<RawValue>>,
    /// The tools.
    pub tools: Option<Box<RawValue>>,
    /// The choice among them.
    pub tool_choice: Option<Box<RawValue>>,
    /// The format of the text.
    pub format: Option<Box<RawValue>>,
    /// The name of the end user.
    pub user: Option<Box<RawValue>>,
    /// The most tokens of the answer.
    pub max_output_tokens: Option<usize>,
    /// Whether the answer may have several calls.
    pub parallel_tool_calls: bool,
    /// Whether the beginning of a prompt that is too long is left out.
    pub is_truncated: bool,
}

impl ResponsesRequest {
    /// Reads and checks a request body.
    ///
    /// # Errors
    /// The first field that is absent, of the wrong type, out of range or not supported.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut request = Self::take(&mut fields, limits)?;
        request.chat.common.ignored = fields.finish(limits.strict)?;
        Ok(request)
    }

    /// Takes every field of the API.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn take(f: &mut Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let copy = |f: &Fields<'_>, name: &str| f.json(name).map(ToOwned::to_owned);
        let mut echo = Echo {
            instructions: copy(f, "instructions"),
            metadata: copy(f, "metadata"),
            tools: copy(f, "tools"),
            tool_choice: copy(f, "tool_choice"),
            user: copy(f, "user"),
            ..Echo::default()
        };
        let messages = input::take(f)?;
        let is_function = |kind: Option<&str>| kind == Some("function");
        let (tools, definitions) = tools::take_flat(f, "parameters", is_function)?;
        let choice = tool_choice(f)?;
        let (tools, must_call) = tools::choose(tools, &choice)
            .ok_or_else(|| invalid("tool_choice", "one of 'tools', if it forces a call"))?;
        let parallel_calls = f.take("parallel_tool_calls", "true or false")?;
        echo.parallel_tool_calls = parallel_calls.unwrap_or(true);
        const MAX: &str = "max_output_tokens";
        let count = f.count(MAX, 1..=limits.tokens)?;
        echo.max_output_tokens = count;
        let max_tokens = MaxTokens { count, field: MAX };
        let thinking = ThinkingRequest::take(f)?;
        let (format, grammar) = text(f)?;
        echo.format = format;
        echo.is_truncated = is_truncated(f)?;
        let truncation = echo.is_truncated.then_some(Truncation::FROM_BEGINNING);
        let stop = stop(f, "stop", limits)?;
        let is_stream = f.flag("stream")?;
        check_metadata(f)?;
        let _: Option<String> = f.take("user", "a text")?;
        let own = Own {
            n: 1,
            max_tokens,
            stop,
            grammar,
            output: OutputRequest::only_text(is_stream, truncation),
            repeated_bytes: REPETITIONS.saturating_mul(echo.bytes()),
        };
        let mut common = GenerationRequest::with(f, limits, own)?;
        // OpenAI's newer name for the end user, and the older one.
        let user = f.json("safety_identifier").or(echo.user.as_deref());
        common.user = user.map(|user| user_id(user.get()));
        max_tokens.check_least(common.min_tokens, count.unwrap_or(usize::MAX))?;
        take_unused(f)?;
        refuse(f)?;
        let mut chat = ChatRequest {
            conversation: Conversation {
                messages,
                tools: definitions,
                ..Conversation::default()
            },
            conversation_field: "input",
            tools,
            must_call,
            parallel_calls: echo.parallel_tool_calls,
            thinking,
            echo: String::new(),
            common,
        };
        chat.settle()?;
        Ok(Self { chat, echo })
    }
}

impl Echo {
    /// The bytes of JSON in it.
    fn bytes(&self) -> usize {
        let parts = [
            &self.instructions,
            &self.metadata,
            &self.tools,
            &self.tool_choice,
            &self.format,
            &self.user,
        ];
        let lengths = parts.map(|part| part.as_ref().map_or(0, |json| json.get().len()));
        lengths.iter().sum()
    }
}

/// Takes `tool_choice`.
fn tool_choice(f: &mut Fields<'_>) -> Result<Choice, ApiError> {
    const PARAM: &str = "tool_choice";
    const EXPECTED: &str = "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"name\": …} with a name of 'tools'";
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Mode(String),
        Named { r#type: String, name: String },
    }
    match f.take::<Given>(PARAM, EXPECTED)? {
        None => Ok(Choice::Auto),
        Some(Given::Mode(mode)) => match mode.as_str() {
            "auto" => Ok(Choice::Auto),
            "none" => Ok(Choice::None),
            "required" => Ok(Choice::Any),
            _ => Err(invalid(PARAM, EXPECTED)),
        },
        Some(Given::Named { r#type, name }) if r#type == "function" => Ok(Choice::Named(name)),
        Some(Given::Named { .. }) => Err(invalid(PARAM, EXPECTED)),
    }
}

/// Takes `text`. Returns its format as the client wrote it, and the grammar.
fn text(f: &mut Fields<'_>) -> Result<(Option<Box<RawValue>>, Option<FromField>), ApiError> {
    const PARAM: &str = "text";
    const FORMAT: &str = "text.format";
    const EXPECTED: &str =
        "an object whose 'type' is text, json_object, or json_schema beside a 'schema'";
    let refused = || invalid(FORMAT, EXPECTED);
    let Some(mut text) = f.object(PARAM, "an object with a 'format'")? else {
        return Ok((None, None));
    };
    let given = text.json("format").map(ToOwned::to_owned);
    let format = text
        .object("format", EXPECTED)
        .map_err(|_problem| refused())?;
    let mut grammar = None;
    if let Some(mut format) = format {
        let kind: Option<String> = format.take("type", "").map_err(|_| refused())?;
        let schema: Option<&RawValue> = format.take("schema", "").map_err(|_| refused())?;
        // These describe the schema to the model. The schema is enforced here in any case.
        for name in ["name", "description", "strict"] {
            let _: Option<&RawValue> = format.take(name, "").map_err(|_| refused())?;
        }
        grammar = match (kind.as_deref(), schema) {
            (Some("text"), None) => None,
            (Some("json_object"), None) => Some(Grammar::JsonObject),
            (Some("json_schema"), Some(schema)) => {
                Some(Grammar::JsonSchema(schema.get().to_owned()))
            }
            _ => return Err(refused()),
        };
        f.ignore_rest(FORMAT, format);
    }
    f.ignore_rest(PARAM, text);
    Ok((given, grammar.map(|grammar| (PARAM, grammar))))
}

fn is_truncated(f: &mut Fields<'_>) -> Result<bool, ApiError> {
    const PARAM: &str = "truncation";
    const EXPECTED: &str = "\"auto\" or \"disabled\"";
    match f.take::<String>(PARAM, EXPECTED)?.as_deref() {
        None | Some("disabled") => Ok(false),
        Some("auto") => Ok(true),
        Some(_) => Err(invalid(PARAM, EXPECTED)),
    }
}

fn check_metadata(f: &mut Fields<'_>) -> Result<(), ApiError> {
    const PARAM: &str = "metadata";
    let expected = format!(
        "an object of at most {MAX_METADATA} texts of at most {MAX_METADATA_VALUE} characters, with names of at most {MAX_METADATA_NAME}"
    );
    let Some(given) = f.object(PARAM, &expected)? else {
        return Ok(());
    };
    let is_short = |(name, value): &(&str, String)| {
        name.chars().count() <= MAX_METADATA_NAME && value.chars().count() <= MAX_METADATA_VALUE
    };
    let texts = given.texts().filter(|texts| texts.iter().all(is_short));
    match texts.is_some_and(|texts| texts.len() <= MAX_METADATA) {
        true => Ok(()),
        false => Err(invalid(PARAM, expected)),
    }
}

/// Takes fields that clients send but that have no effect here.
fn take_unused(f: &mut Fields<'_>) -> Result<(), ApiError> {
    // Nothing is ever stored, and the response says so.
    let _: Option<bool> = f.take("store", "true or false")?;
    for name in [
        "safety_identifier",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_retention",
    ] {
        let _: Option<String> = f.take(name, "a text")?;
    }
    // Limits calls of tools that the provider runs.
    let _ = f.count("max_tool_calls", 0..=usize::MAX)?;
    // Events are not padded.
    let _ = f.object("stream_options", "an object")?;
    let given: Option<Vec<String>> = f.take("include", INCLUDE)?;
    let is_known = |name: &String| INCLUDED.contains(&name.as_str());
    match given.unwrap_or_default().iter().all(is_known) {
        true => Ok(()),
        false => Err(invalid("include", INCLUDE)),
    }
}

const INCLUDE: &str = "a list without log-probabilities and unknown names";

/// Refuses fields that cannot be honoured.
fn refuse(f: &mut Fields<'_>) -> Result<(), ApiError> {
    let only = "this server answers at once: only false is accepted";
    f.only("background", only, |is_on: &bool| !is_on)?;
    let only = "log-probabilities are on /v1/chat/completions: only 0 is accepted";
    f.only("top_logprobs", only, |count: &u64| *count == 0)?;
    for (param, neutral) in UNSUPPORTED {
        if f.take::<&RawValue>(param, neutral)?.is_some() {
            return Err(ApiError::Unsupported { param, neutral });
        }
    }
    Ok(())
}
