//! Parts of which the schemas are built.

use serde_json::{Value, json};

use crate::http::limits::Limits;
use crate::http::values::Range;

/// A reference to a schema of the document.
pub fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

/// The field `model`.
pub fn model() -> Value {
    optional(
        "string",
        json!({"description": "The served name, if given."}),
    )
}

/// The id of a token.
pub fn id() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
}

/// The most tokens of an answer.
pub fn tokens(limits: &Limits, least: usize, description: &str) -> Value {
    let most = (limits.tokens as u64).min(u64::from(u32::MAX));
    optional(
        "integer",
        json!({"minimum": least, "maximum": most, "description": description}),
    )
}

/// A boolean that may be absent.
pub fn flag(description: &str) -> Value {
    optional("boolean", json!({"description": description}))
}

/// The schema keywords for a range. Whole numbers are written without a decimal point.
pub fn within(range: Range) -> Value {
    let number = |value: f64| match value.fract() {
        0.0 => json!(value as i64),
        _ => json!(value),
    };
    let least = match range.excludes_least {
        true => "exclusiveMinimum",
        false => "minimum",
    };
    json!({least: number(range.least), "maximum": number(range.most)})
}

/// A schema that also allows `null`, which is the same as absent.
pub fn optional(kind: &str, mut schema: Value) -> Value {
    schema["type"] = json!([kind, "null"]);
    schema
}

/// Adds the properties of `from` to those of `into`.
pub fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

/// An object that has exactly these properties, or at least those that are added later.
pub fn object(properties: Value) -> Value {
    let names: Vec<String> = properties
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect();
    json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
}
