//! The tools that the model may call, and the choice among them.

use minijinja::Value;
use serde_json::value::RawValue;

use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, MAX_REPEATED, invalid};

/// The most tools in one request. OpenAI's limit.
pub const MAX_TOOLS: usize = 128;
/// The most characters of a tool's name. OpenAI's limit.
pub const MAX_TOOL_NAME: usize = 64;
/// The most levels of objects and lists in a tool's schema. The parser of JSON has a limit of 128 for a whole tool.
const MAX_SCHEMA_NESTING: usize = 100;

/// A tool that the model may call.
#[derive(Debug, Clone)]
pub struct Tool {
    /// Letters, digits, `_`, `-` and `.`, at most [`MAX_TOOL_NAME`] of them.
    pub name: String,
    /// JSON schema of the arguments.
    pub parameters: Option<serde_json::Value>,
}

/// Which of the tools may or must be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The model decides.
    Auto,
    /// None. The prompt does not have them.
    None,
    /// One of them must be called.
    Any,
    /// The tool of this name must be called.
    Named(String),
}

/// Tools, and their definitions in the form that templates print.
pub type Given = (Vec<Tool>, Option<Value>);

/// Takes `tools` in the form of chat completions. Templates print the definitions as the client sent them.
///
/// # Errors
/// When one is invalid.
pub fn take(fields: &mut Fields<'_>) -> Result<Given, ApiError> {
    let expected = format!(
        "a list of at most {MAX_TOOLS} of {{\"type\": \"function\", \"function\": {{\"name\", \"description\", \"parameters\"}}}}"
    );
    let given: Vec<&RawValue> = fields.take(PARAM, &expected)?.unwrap_or_default();
    each(given, &expected, "function.name", |json| {
        let mut tool = Fields::of_object(json, "", TOOL)?;
        let kind: Option<String> = tool.take("type", "\"function\"")?;
        if kind.as_deref() != Some("function") {
            return Err(invalid("type", "\"function\""));
        }
        let function = tool.object("function", "an object")?;
        let mut function = function.ok_or_else(|| invalid("function", "an object"))?;
        let read = read(&mut function, "parameters");
        let (tool, _) = read.map_err(|problem| problem.inside("function"))?;
        let definition = serde_json::from_str(json.get());
        let definition =
            definition.map_err(|_too_deep| invalid("", "of at most 120 nested levels"))?;
        Ok((tool, definition))
    })
}

/// Takes `tools` in the flat form of other APIs: objects with a `name`, a `description` and the schema of the arguments
/// in the field `schema`. Tools that run on the provider's side are refused: those whose type is not `is_kind`.
///
/// # Errors
/// When one is invalid.
pub fn take_flat(
    fields: &mut Fields<'_>,
    schema: &'static str,
    is_kind: impl Fn(Option<&str>) -> bool,
) -> Result<Given, ApiError> {
    let expected =
        format!("a list of at most {MAX_TOOLS} of {{\"name\", \"description\", \"{schema}\"}}");
    let given: Vec<&RawValue> = fields.take(PARAM, &expected)?.unwrap_or_default();
    each(given, &expected, "name", |json| {
        let mut tool = Fields::of_object(json, "", "an object")?;
        let kind: Option<String> = tool.take("type", "a text")?;
        if !is_kind(kind.as_deref()) {
            let kind = kind.unwrap_or_default();
            let kind: String = kind.chars().take(MAX_REPEATED).collect();
            let expected = format!("that of a tool which you run: this server runs no '{kind}'");
            return Err(invalid("type", expected));
        }
        let (tool, function) = read(&mut tool, schema)?;
        let kind = ("type", Value::from("function"));
        let definition = Value::from_pairs([kind, ("function", function)]);
        Ok((tool, definition))
    })
}

const PARAM: &str = "tools";
const TOOL: &str =
    "{\"type\": \"function\", \"function\": {\"name\", \"description\", \"parameters\"}}";
const NAME: &str = "a name of 1 to 64 letters, digits, '_', '-' or '.'";
const SCHEMA: &str = "a JSON schema, which is an object of at most 100 nested levels";

/// Reads each tool. Errors name the tool by its position; `name` is the field with its name.
fn each(
    given: Vec<&RawValue>,
    expected: &str,
    name: &'static str,
    read: impl Fn(&RawValue) -> Result<(Tool, Value), ApiError>,
) -> Result<Given, ApiError> {
    if given.len() > MAX_TOOLS {
        return Err(invalid(PARAM, expected));
    }
    let (mut tools, mut definitions) = (Vec::<Tool>::new(), Vec::<Value>::new());
    for (at, json) in given.into_iter().enumerate() {
        let refused = |problem: ApiError| problem.inside(&format!("{PARAM}[{at}]"));
        let (tool, definition) = read(json).map_err(refused)?;
        if let Some(other) = tools.iter().position(|other| other.name == tool.name) {
            let expected = format!("another name than that of {PARAM}[{other}]");
            return Err(refused(invalid(name, expected)));
        }
        tools.push(tool);
        definitions.push(definition);
    }
    let definitions = (!tools.is_empty()).then(|| Value::from(definitions));
    Ok((tools, definitions))
}

/// Reads the name, the description and the schema of a tool. Returns them also as a function that templates print.
fn read(fields: &mut Fields<'_>, schema: &'static str) -> Result<(Tool, Value), ApiError> {
    let name: Option<String> = fields.take("name", NAME)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let name =
        name.filter(|name| (1..=MAX_TOOL_NAME).contains(&name.len()) && name.bytes().all(is_plain));
    let name = name.ok_or_else(|| invalid("name", NAME))?;
    let mut function = vec![("name", Value::from(name.as_str()))];
    let description: Option<String> = fields.take("description", "a text")?;
    function.extend(description.map(|text| ("description", Value::from(text))));
    let refused = || invalid(schema, SCHEMA);
    let parameters: Option<&RawValue> = fields.take(schema, SCHEMA)?;
    let parameters = parameters.map(|json| {
        let parsed: serde_json::Value = serde_json::from_str(json.get()).ok()?;
        let is_schema = parsed.is_object() && is_nested_within(&parsed, MAX_SCHEMA_NESTING);
        // In the order of the client's text.
        function.push(("parameters", serde_json::from_str(json.get()).ok()?));
        is_schema.then_some(parsed)
    });
    let parameters = match parameters {
        Some(parsed) => Some(parsed.ok_or_else(refused)?),
        None => None,
    };
    Ok((Tool { name, parameters }, Value::from_pairs(function)))
}

/// Whether objects and lists are nested in `value` at most `levels` deep.
fn is_nested_within(value: &serde_json::Value, levels: usize) -> bool {
    let mut inner: Box<dyn Iterator<Item = &serde_json::Value>> = match value {
        serde_json::Value::Array(list) => Box::new(list.iter()),
        serde_json::Value::Object(object) => Box::new(object.values()),
        _ => return true,
    };
    levels > 0 && inner.all(|value| is_nested_within(value, levels - 1))
}

/// Returns the tools that may be called, and whether the answer must be a call; `None` if a call is forced and there is
/// no such tool.
pub fn choose(mut tools: Vec<Tool>, choice: &Choice) -> Option<(Vec<Tool>, bool)> {
    let must_call = match choice {
        Choice::Auto => false,
        Choice::None => {
            tools.clear();
            false
        }
        Choice::Any => true,
        Choice::Named(name) => {
            tools.retain(|tool| tool.name == *name);
            true
        }
    };
    (!must_call || !tools.is_empty()).then_some((tools, must_call))
}
