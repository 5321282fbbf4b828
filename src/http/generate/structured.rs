//! The fields that constrain an answer: `response_format`, `structured_outputs`, and older names that clients still
//! send.
//!
//! A field that constrains the answer is enforced or refused. None is ignored, because the client would take free text
//! for constrained text.

use serde_json::value::RawValue;

use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, MAX_REPEATED, invalid};
use crate::text::Grammar;

/// Alternatives in `structured_outputs.choice`.
pub const MAX_CHOICES: usize = 1024;

/// A grammar and the field that has it.
pub type FromField = (&'static str, Grammar);

/// Takes all fields that constrain the answer; returns the grammar and the field that has it. `own` comes from the
/// API's own field.
///
/// # Errors
/// When a field is not one of the documented forms, or there is more than one.
pub fn grammar(
    fields: &mut Fields<'_>,
    own: Option<FromField>,
) -> Result<Option<FromField>, ApiError> {
    let given = [
        ("response_format", response_format(fields)?),
        ("structured_outputs", structured_outputs(fields)?),
        ("guided_json", schema(fields, "guided_json")?),
        (
            "guided_regex",
            fields.take("guided_regex", "a string")?.map(Grammar::Regex),
        ),
        ("guided_choice", choice(fields, "guided_choice")?),
        ("guided_grammar", lark(fields, "guided_grammar")?),
        ("grammar", lark(fields, "grammar")?),
        ("json_schema", schema(fields, "json_schema")?),
    ];
    const SPACING: &str = "JSON has one space after commas and colons here, so leave it out";
    fields.only("guided_whitespace_pattern", SPACING, |_: &&RawValue| false)?;
    // This names the library that enforces the grammar, not the grammar.
    if fields
        .take::<&RawValue>("guided_decoding_backend", "a string")?
        .is_some()
    {
        fields.ignore("guided_decoding_backend");
    }
    let given = given.into_iter();
    let given = given.filter_map(|(param, grammar)| Some((param, grammar?)));
    let mut given = own.into_iter().chain(given);
    let first = given.next();
    match (&first, given.next()) {
        (Some((first, _)), Some((second, _))) => Err(invalid(
            second,
            format!("left out where '{first}' is given"),
        )),
        _ => Ok(first),
    }
}

/// Takes OpenAI's field. Some clients send the schema beside the type.
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
    let beside: Option<&RawValue> = format.take("schema", "").map_err(refused)?;
    let beside = beside.map(|schema| Grammar::JsonSchema(schema.get().to_owned()));
    let holder = format.object("json_schema", "").map_err(refused)?;
    let grammar = match (kind.as_str(), holder, beside) {
        ("text", None, None) => None,
        ("json_object", None, beside) => Some(beside.unwrap_or(Grammar::JsonObject)),
        ("json_schema", None, Some(beside)) => Some(beside),
        ("json_schema", Some(mut holder), None) => {
            let schema: Option<&RawValue> = holder.take("schema", "").map_err(refused)?;
            let schema = schema.ok_or_else(|| invalid(PARAM, EXPECTED))?;
            // These describe the schema to the model. The schema is enforced here in any case.
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

/// Takes vLLM's field.
fn structured_outputs(fields: &mut Fields<'_>) -> Result<Option<Grammar>, ApiError> {
    const PARAM: &str = "structured_outputs";
    const EXPECTED: &str = "an object with one of 'json' (a schema), 'json_object' (true), 'regex', 'choice' (a list of strings) or 'grammar' (Lark)";
    let refused = |_| invalid(PARAM, EXPECTED);
    let Some(mut outputs) = fields.object(PARAM, EXPECTED)? else {
        return Ok(None);
    };
    let any: bool = outputs
        .take("json_object", "")
        .map_err(refused)?
        .unwrap_or(false);
    let regex: Option<String> = outputs.take("regex", "").map_err(refused)?;
    let given = [
        schema(&mut outputs, "json").map_err(refused)?,
        regex.map(Grammar::Regex),
        lark(&mut outputs, "grammar").map_err(refused)?,
        choice(&mut outputs, "choice").map_err(|_| {
            let expected =
                format!("an object whose 'choice' is 1 to {MAX_CHOICES} non-empty strings");
            invalid(PARAM, expected)
        })?,
        any.then_some(Grammar::JsonObject),
    ];
    // Accepted and unused, because they request what is always so: no white space but single spaces, and no properties
    // but those that are listed.
    for name in [
        "disable_any_whitespace",
        "disable_additional_properties",
        "disable_fallback",
    ] {
        let _: Option<bool> = outputs.take(name, "").map_err(refused)?;
    }
    if let Some(name) = outputs.names().next() {
        let shown: String = name.chars().take(MAX_REPEATED).collect();
        return Err(invalid(
            PARAM,
            format!("{EXPECTED}; '{shown}' cannot be enforced"),
        ));
    }
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(grammar), None) => Ok(Some(grammar)),
        _ => Err(invalid(PARAM, EXPECTED)),
    }
}

/// Takes a schema, which may be an object or its JSON text.
fn schema(fields: &mut Fields<'_>, param: &'static str) -> Result<Option<Grammar>, ApiError> {
    let schema = fields.take::<&RawValue>(param, "a JSON schema")?;
    Ok(schema.map(|schema| {
        let text = serde_json::from_str(schema.get());
        Grammar::JsonSchema(text.unwrap_or_else(|_| schema.get().to_owned()))
    }))
}

fn choice(fields: &mut Fields<'_>, param: &'static str) -> Result<Option<Grammar>, ApiError> {
    let expected = format!("a list of 1 to {MAX_CHOICES} non-empty strings");
    let Some(choices) = fields.take::<Vec<String>>(param, &expected)? else {
        return Ok(None);
    };
    if choices.is_empty() || choices.len() > MAX_CHOICES || choices.contains(&String::new()) {
        return Err(invalid(param, expected));
    }
    Ok(Some(Grammar::Choice(choices)))
}

fn lark(fields: &mut Fields<'_>, param: &'static str) -> Result<Option<Grammar>, ApiError> {
    let lark = fields.take(param, "a grammar in Lark")?;
    Ok(lark.map(Grammar::Lark))
}
