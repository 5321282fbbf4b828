//! `response_format` and `structured_outputs`: what an answer must be.

use serde_json::value::RawValue;

use super::error_body::ApiError;
use super::fields::{Fields, invalid};
use crate::text::Grammar;

/// Alternatives in `structured_outputs.choice`.
const MAX_CHOICES: usize = 1024;

/// Takes both fields; returns the grammar and the field that has it.
///
/// # Errors
/// When a field is not one of the documented forms, or both are there.
pub fn grammar(fields: &mut Fields<'_>) -> Result<Option<(&'static str, Grammar)>, ApiError> {
    let format = response_format(fields)?;
    let outputs = structured_outputs(fields)?;
    if format.is_some() && outputs.is_some() {
        let expected = "left out where 'response_format' is given";
        return Err(invalid("structured_outputs", expected));
    }
    Ok(format
        .map(|grammar| ("response_format", grammar))
        .or(outputs.map(|grammar| ("structured_outputs", grammar))))
}

/// OpenAI's field.
fn response_format(fields: &mut Fields<'_>) -> Result<Option<Grammar>, ApiError> {
    const PARAM: &str = "response_format";
    const EXPECTED: &str = "an object whose 'type' is 'text', 'json_object', or 'json_schema' beside {\"json_schema\": {\"schema\": …}}";
    let refused = |_| invalid(PARAM, EXPECTED);
    let Some(mut format) = fields.object(PARAM, EXPECTED)? else {
        return Ok(None);
    };
    let kind: String = format
        .take("type", "")
        .map_err(refused)?
        .ok_or_else(|| invalid(PARAM, EXPECTED))?;
    let grammar = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Grammar::JsonObject),
        "json_schema" => {
            let holder = format.object("json_schema", "").map_err(refused)?;
            let mut holder = holder.ok_or_else(|| invalid(PARAM, EXPECTED))?;
            let schema: Option<&RawValue> = holder.take("schema", "").map_err(refused)?;
            let schema = schema.ok_or_else(|| invalid(PARAM, EXPECTED))?;
            // These name the schema for the model; it is enforced here whatever they say.
            for name in ["name", "description", "strict"] {
                let _: Option<&RawValue> = holder.take(name, "").map_err(refused)?;
            }
            fields.ignore_rest("response_format.json_schema", holder);
            Some(Grammar::JsonSchema(schema.get().to_owned()))
        }
        _ => return Err(invalid(PARAM, EXPECTED)),
    };
    fields.ignore_rest(PARAM, format);
    Ok(grammar)
}

/// vLLM's field.
fn structured_outputs(fields: &mut Fields<'_>) -> Result<Option<Grammar>, ApiError> {
    const PARAM: &str = "structured_outputs";
    const EXPECTED: &str = "an object with one of 'json' (a schema), 'json_object' (true), 'regex', 'choice' (a list of strings) or 'grammar' (Lark)";
    let refused = |_| invalid(PARAM, EXPECTED);
    let Some(mut outputs) = fields.object(PARAM, EXPECTED)? else {
        return Ok(None);
    };
    let mut given = Vec::new();
    if let Some(schema) = outputs.take::<&RawValue>("json", "").map_err(refused)? {
        // A schema may come as an object or as its text.
        let text = serde_json::from_str(schema.get());
        given.push(Grammar::JsonSchema(
            text.unwrap_or_else(|_| schema.get().to_owned()),
        ));
    }
    if let Some(regex) = outputs.take("regex", "").map_err(refused)? {
        given.push(Grammar::Regex(regex));
    }
    if let Some(lark) = outputs.take("grammar", "").map_err(refused)? {
        given.push(Grammar::Lark(lark));
    }
    if let Some(choices) = outputs.take::<Vec<String>>("choice", "").map_err(refused)? {
        if choices.is_empty() || choices.len() > MAX_CHOICES || choices.contains(&String::new()) {
            let expected =
                format!("an object whose 'choice' is 1 to {MAX_CHOICES} non-empty strings");
            return Err(invalid(PARAM, expected));
        }
        given.push(Grammar::Choice(choices));
    }
    if outputs.take("json_object", "").map_err(refused)? == Some(true) {
        given.push(Grammar::JsonObject);
    }
    fields.ignore_rest(PARAM, outputs);
    match given.len() {
        1 => Ok(given.pop()),
        _ => Err(invalid(PARAM, EXPECTED)),
    }
}
