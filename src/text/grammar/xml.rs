//! The grammar of a tool call in tags: the text after `<tool_call>` and a line feed when a call is forced.
//!
//! Arguments come in the order of the schema; required ones must be present. A value of type string may be any text up
//! to its closing tag, or one of the texts that the schema lists. All other values are JSON that is valid by the
//! schema. `forms` finds out which of these a value may be.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::forms::{Forms, MAX_WORK};
use super::options::with_options;
use crate::text::values::properties;

/// The most bytes of the generated grammar. It repeats schemas if several arguments refer to the same definitions.
const MAX_LARK: usize = 1 << 20;
/// The tags that may end a value.
const TAGS: [&str; 3] = ["</parameter>", "<parameter=", "</function>"];
/// The most references from the schema of a tool to the one that lists its properties.
const MAX_REFERENCES: usize = 100;
/// Keywords that are not enforced for the arguments as a whole.
const UNENFORCED: [&str; 8] = [
    "allOf",
    "anyOf",
    "oneOf",
    "patternProperties",
    "minProperties",
    "maxProperties",
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
    let root = json!({"$defs": definitions});
    let mut schemas = tools.iter().map(|(_, schema)| schema).chain([&root]);
    if let Some(text) = schemas.find_map(tagged) {
        return Err(format!("{text:?} cannot be part of a call in tags"));
    }
    let mut rules = String::new();
    let mut left = MAX_WORK;
    for (at, (name, schema)) in tools.iter().enumerate() {
        let mut arguments = String::new();
        let object = Object::of(schema, &root, unenforced);
        for (which, (key, property)) in object.properties.into_iter().flatten().enumerate() {
            if key.contains(['>', '<', '\n']) {
                return Err(format!("an argument cannot be called {key:?} in tags"));
            }
            let rule = format!("a{at}_{which}");
            let is_required = object.required.contains(&&**key);
            let forms = Forms::of(property, &root, &mut left)?;
            if forms.allows_nothing() {
                if is_required {
                    return Err(format!("the required argument {key:?} allows no value"));
                }
                continue;
            }
            write_argument(&mut rules, &rule, key, &forms, &root);
            unenforced.extend(forms.unenforced);
            let optional = if is_required { "" } else { "?" };
            let _ = write!(arguments, " {rule}{optional}");
            if rules.len() > MAX_LARK {
                return Err("its schemas are too long together".to_owned());
            }
        }
        if object.has_others {
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

/// What the schema of a tool says about its arguments.
struct Object<'a> {
    properties: Option<&'a Map<String, Value>>,
    required: Vec<&'a str>,
    /// Whether there may be arguments that are not listed.
    has_others: bool,
}

impl<'a> Object<'a> {
    /// Follows references up to the schema that lists the properties. Keywords that are not enforced are added to
    /// `unenforced`.
    fn of(schema: &'a Value, root: &'a Value, unenforced: &mut Vec<&'static str>) -> Self {
        let mut object = Self {
            properties: properties(schema, root, 0),
            required: Vec::new(),
            has_others: true,
        };
        let mut next = Some(schema);
        for _ in 0..MAX_REFERENCES {
            let Some(schema) = next.take() else { break };
            unenforced.extend(UNENFORCED.iter().filter(|name| schema.get(name).is_some()));
            let required = schema.get("required").and_then(Value::as_array);
            let required = required.into_iter().flatten().filter_map(Value::as_str);
            object.required.extend(required);
            match schema.get("additionalProperties") {
                None | Some(Value::Bool(true)) => {}
                Some(Value::Bool(false)) => object.has_others = false,
                Some(_) if object.properties.is_some() => {}
                Some(_) => unenforced.push("additionalProperties"),
            }
            let reference = schema.get("$ref").and_then(Value::as_str);
            if reference.is_some() && schema.get("properties").is_some() {
                unenforced.push("$ref");
            } else if let Some(reference) = reference {
                next = root.pointer(reference.trim_start_matches('#'));
            }
        }
        if next.is_some() {
            unenforced.push("$ref");
        }
        object.has_others &= object.properties.is_none();
        let is_listed = |name: &&str| {
            let properties = object.properties;
            properties.is_some_and(|properties| properties.contains_key(*name))
        };
        if !object.required.iter().all(is_listed) {
            unenforced.push("required");
        }
        object
    }
}

/// Adds the rule for an argument.
fn write_argument(rules: &mut String, rule: &str, key: &str, forms: &Forms, root: &Value) {
    let start = quoted(&format!("<parameter={key}>\n"));
    if forms.is_free {
        let _ = writeln!(rules, "{rule}: {start} text");
        return;
    }
    let mut values: Vec<String> = forms.texts.iter().map(|text| quoted(text)).collect();
    let json = match &*forms.others {
        [] => None,
        [one] => Some(schema(one, root)),
        several => Some(schema(&json!({"anyOf": several}), root)),
    };
    if let Some(json) = json {
        let _ = writeln!(rules, "{rule}_v: %json {json}");
        values.push(format!("{rule}_v"));
    }
    let end = quoted("\n</parameter>\n");
    let _ = writeln!(rules, "{rule}: {start} ({}) {end}", values.join(" | "));
}

/// A text in `schema` that contains a tag, with which a value could end early.
fn tagged(schema: &Value) -> Option<&str> {
    let has_tag = |text: &str| TAGS.iter().any(|tag| text.contains(tag));
    match schema {
        Value::String(text) => Some(&**text).filter(|text| has_tag(text)),
        Value::Array(values) => values.iter().find_map(tagged),
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let key = Some(&**key).filter(|key| has_tag(key));
            key.or_else(|| tagged(value))
        }),
        _ => None,
    }
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
