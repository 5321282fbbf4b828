//! The grammar of a tool call in tags: the text after `<tool_call>` and a line feed when a call is forced.
//!
//! Arguments come in the order of the schema; required ones must be present. A value of type string may be any text up
//! to its closing tag, or one of the texts that the schema lists. All other values are JSON that is valid by the
//! schema.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::options::with_options;
use crate::text::values::{Kinds, properties};

/// The most bytes of the generated grammar. It repeats schemas if several arguments refer to the same definitions.
const MAX_LARK: usize = 1 << 20;

/// Keywords for strings that are not enforced for a value in a tag.
const UNENFORCED: [&str; 6] = [
    "pattern",
    "minLength",
    "maxLength",
    "format",
    "enum",
    "const",
];

/// The grammar of a call of one of `tools`, each given as its name and the converted schema of its arguments.
/// References point to `definitions`. Keywords that are not enforced are added to `unenforced`.
///
/// # Errors
/// A message for the author of the schemas.
pub fn lark(
    tools: &[(&str, Value)],
    definitions: Option<&Value>,
    unenforced: &mut Vec<&'static str>,
) -> Result<String, String> {
    let mut rules = String::new();
    let root = json!({"$defs": definitions});
    for (at, (name, schema)) in tools.iter().enumerate() {
        let mut arguments = String::new();
        let known = properties(schema, &root, 0);
        let required = schema.get("required").and_then(Value::as_array);
        let is_required = |key: &str| {
            let mut required = required.into_iter().flatten();
            required.any(|name| name == key)
        };
        for (which, (key, property)) in known.into_iter().flatten().enumerate() {
            if key.contains(['>', '<', '\n']) {
                return Err(format!("an argument cannot be called {key:?} in tags"));
            }
            let rule = format!("a{at}_{which}");
            let is_free = write_argument(&mut rules, &rule, key, property, &root);
            let broken = UNENFORCED.into_iter();
            unenforced.extend(broken.filter(|name| is_free && property.get(name).is_some()));
            let optional = if is_required(key) { "" } else { "?" };
            let _ = write!(arguments, " {rule}{optional}");
            if rules.len() > MAX_LARK {
                return Err("its schemas are too long together".to_owned());
            }
        }
        if known.is_none() {
            arguments += " other*";
        }
        let start = quoted(&format!("<function={name}>\n"));
        let end = quoted("</function>\n</tool_call>");
        let _ = writeln!(rules, "c{at}: {start}{arguments} {end}");
    }
    let calls: Vec<String> = (0..tools.len()).map(|at| format!("c{at}")).collect();
    Ok(format!("start: {}\n{rules}{REST}", calls.join(" | ")))
}

/// Rules for a text up to its closing tag, and for an argument that the schema does not list.
const REST: &str = r#"text[lazy]: /(?s:.*)\n<\/parameter>\n/
other: "<parameter=" KEY ">\n" text
KEY: /[^<>\n]{1,64}/
"#;

/// Adds the rule for an argument. Returns whether its value may be any text.
fn write_argument(
    rules: &mut String,
    rule: &str,
    key: &str,
    property: &Value,
    root: &Value,
) -> bool {
    let start = quoted(&format!("<parameter={key}>\n"));
    let end = quoted("\n</parameter>\n");
    let value = match texts(property) {
        Some(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            format!("({}) {end}", texts.join(" | "))
        }
        None if Kinds::of(property, root).may_be_text() => "text".to_owned(),
        None => {
            let _ = writeln!(rules, "{rule}_v: %json {}", schema(property, root));
            format!("{rule}_v {end}")
        }
    };
    let _ = writeln!(rules, "{rule}: {start} {value}");
    value == "text"
}

/// The texts that a value is limited to, if the schema lists them.
fn texts(property: &Value) -> Option<Vec<&str>> {
    let only = property.get("const").map(std::slice::from_ref);
    let several = property.get("enum").and_then(Value::as_array);
    let values = only.or(several.map(Vec::as_slice))?;
    let texts = values.iter().map(Value::as_str);
    let texts: Option<Vec<&str>> = texts.collect();
    texts.filter(|texts| !texts.is_empty())
}

/// `property` as a self-contained schema.
fn schema(property: &Value, root: &Value) -> Value {
    let mut fields = match property {
        Value::Object(fields) => fields.clone(),
        _ => Map::new(),
    };
    if property.to_string().contains("\"$ref\"") {
        fields.insert("$defs".to_owned(), root["$defs"].clone());
    }
    with_options(Value::Object(fields), None)
}

/// Lark writes strings as JSON does.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
