//! Converts arguments that a model wrote as plain text to JSON, according to the tool's schema.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The most schemas that are examined for one argument, including those behind references. No real argument has so many
/// alternatives.
const MAX_SCHEMAS: usize = 200;
/// The most schemas and values that are examined for all arguments of a request together: schemas of a request can refer
/// to the same long list from every argument.
const MAX_WORK: usize = 50_000;
/// The longest reference that is followed, in bytes. Following one takes time in proportion to its length.
const MAX_REFERENCE: usize = 1024;
/// Up to this magnitude, 64-bit floats represent every integer exactly.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// The types of the arguments of each tool in a request.
#[derive(Debug, Default)]
pub struct Tools(BTreeMap<String, BTreeMap<String, Kinds>>);

/// The types that an argument may have. If none is set, the schema does not restrict the type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    null: bool,
    integer: bool,
    number: bool,
    boolean: bool,
    object: bool,
    array: bool,
    string: bool,
    /// The schema has a reference without a target, so any type is possible.
    unknown: bool,
}

impl Tools {
    /// Collects the tools from their names and the schemas of their arguments.
    pub fn new<'a>(tools: impl IntoIterator<Item = (&'a str, Option<&'a Value>)>) -> Self {
        let mut left = MAX_WORK;
        let mut kinds = |schema: Option<&Value>| {
            let properties = schema.and_then(|schema| properties(schema, schema, 0));
            let properties = properties.into_iter().flatten();
            let kinds = properties.map(|(key, property)| {
                let root = schema.unwrap_or(property);
                (key.clone(), Kinds::within(property, root, &mut left))
            });
            kinds.collect()
        };
        let tools = tools.into_iter();
        Self(
            tools
                .map(|(name, schema)| (name.to_owned(), kinds(schema)))
                .collect(),
        )
    }

    /// Whether a tool with this name exists.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether `key` can be an argument of `tool`. If the tool declares no arguments, any key can be.
    pub fn may_have(&self, tool: &str, key: &str) -> bool {
        let properties = self.0.get(tool);
        properties.is_none_or(|properties| properties.is_empty() || properties.contains_key(key))
    }

    /// The types that the argument `key` of `tool` may have.
    pub fn kinds(&self, tool: &str, key: &str) -> Kinds {
        let properties = self.0.get(tool);
        let kinds = properties.and_then(|properties| properties.get(key));
        kinds.copied().unwrap_or_default()
    }
}

/// Returns the properties of a schema. They may be behind references within the document `root`; `depth` references
/// have been followed so far.
pub fn properties<'a>(
    schema: &'a Value,
    root: &'a Value,
    depth: usize,
) -> Option<&'a Map<String, Value>> {
    if let Some(properties) = schema.get("properties") {
        return properties.as_object();
    }
    let target = target(schema, root).filter(|_| depth < MAX_SCHEMAS)?;
    properties(target, root, depth + 1)
}

/// Returns the schema within `root` to which the reference of `schema` points.
fn target<'a>(schema: &Value, root: &'a Value) -> Option<&'a Value> {
    let reference = schema.get("$ref")?.as_str()?;
    if reference.len() > MAX_REFERENCE {
        return None;
    }
    root.pointer(reference.strip_prefix('#')?)
}

impl Kinds {
    /// Returns the types that `schema`, a part of the document `root`, allows.
    pub fn of(schema: &Value, root: &Value) -> Self {
        let mut left = MAX_WORK;
        Self::within(schema, root, &mut left)
    }

    /// As [`Self::of`]. Takes the schemas and values that are examined off `left`; when nothing is left, any type is
    /// possible.
    fn within(schema: &Value, root: &Value, left: &mut usize) -> Self {
        let mut kinds = Self::default();
        let mut waiting = vec![schema];
        for _ in 0..MAX_SCHEMAS {
            let Some(schema) = waiting.pop() else { break };
            if *left == 0 {
                kinds.unknown = true;
                break;
            }
            *left -= 1;
            kinds.add(schema, left);
            if schema.get("$ref").is_some() {
                match target(schema, root) {
                    Some(target) => waiting.push(target),
                    None => kinds.unknown = true,
                }
            }
            for several in ["anyOf", "oneOf", "allOf"] {
                let several = schema.get(several).and_then(Value::as_array);
                let several = several.into_iter().flatten();
                let several = several.take(MAX_SCHEMAS.min(*left));
                waiting.extend(several.inspect(|_| *left -= 1));
            }
        }
        kinds
    }

    /// Adds the types that one schema itself allows, without its references and alternatives.
    fn add(&mut self, schema: &Value, left: &mut usize) {
        match schema.get("type") {
            Some(Value::String(name)) => self.add_type(name),
            Some(Value::Array(names)) => {
                let names = names.iter().take(MAX_SCHEMAS).filter_map(Value::as_str);
                names.for_each(|name| self.add_type(name));
            }
            _ => {}
        }
        // Some schemas leave out the type if other keywords imply it.
        self.object |= schema.get("properties").is_some();
        self.array |= schema.get("items").is_some();
        let values = schema.get("enum").and_then(Value::as_array);
        let values = values.map_or(&[][..], |values| &values[..values.len().min(*left)]);
        *left -= values.len();
        for value in values.iter().chain(schema.get("const")) {
            match value {
                Value::Null => self.null = true,
                Value::Bool(_) => self.boolean = true,
                Value::Number(number) if number.is_f64() => self.number = true,
                Value::Number(_) => self.integer = true,
                Value::String(_) => self.string = true,
                Value::Array(_) => self.array = true,
                Value::Object(_) => self.object = true,
            }
        }
    }

    /// Adds a type by its name in JSON Schema, or by another name that clients use for it.
    fn add_type(&mut self, name: &str) {
        match name {
            "null" => self.null = true,
            "integer" | "int" | "int32" | "int64" | "long" => self.integer = true,
            "number" | "float" | "double" => self.number = true,
            "boolean" | "bool" => self.boolean = true,
            "object" | "dict" | "map" => self.object = true,
            "array" | "list" | "tuple" => self.array = true,
            "string" | "str" | "text" => self.string = true,
            _ => {}
        }
    }

    /// Whether the value is always a string, whatever it looks like. This includes values of unknown type.
    pub const fn is_text(self) -> bool {
        let Self {
            null,
            integer,
            number,
            boolean,
            object,
            array,
            string: _,
            unknown,
        } = self;
        !(null || integer || number || boolean || object || array || unknown)
    }

    /// Whether the value may be a string.
    pub const fn may_be_text(self) -> bool {
        self.string || self.is_text()
    }

    /// Converts `text` to JSON, as the first matching type in the order that vLLM uses.
    pub fn json(self, text: &str) -> String {
        if self.is_text() {
            return quoted(text);
        }
        let word = text.trim();
        let is = |name: &str| word.eq_ignore_ascii_case(name);
        // Earlier messages in the prompt show values in Python's notation, so the model may write `None`.
        if self.null && (is("null") || is("none") && !self.string) {
            return "null".into();
        }
        if let Some(integer) = integer(word).filter(|_| self.integer || self.number) {
            return integer;
        }
        if let Some(number) = number(word).filter(|_| self.number) {
            return number;
        }
        if self.boolean && (is("true") || word == "1") {
            return "true".into();
        }
        if self.boolean && (is("false") || word == "0") {
            return "false".into();
        }
        let json = serde_json::from_str::<&RawValue>(word).ok();
        let json = json.map(RawValue::get);
        let starts = |first: char| json.filter(|json| json.starts_with(first));
        if let Some(object) = starts('{').filter(|_| self.object) {
            return object.to_owned();
        }
        if let Some(array) = starts('[').filter(|_| self.array) {
            return array.to_owned();
        }
        match json.filter(|_| !self.string) {
            Some(json) => json.to_owned(),
            None => quoted(text),
        }
    }
}

/// Parses a whole number in any notation, such as `3.0`.
fn integer(text: &str) -> Option<String> {
    if let Ok(integer) = text.parse::<i128>() {
        return Some(integer.to_string());
    }
    let float = finite(text)?;
    (float.fract() == 0.0 && float.abs() <= MAX_EXACT).then(|| (float as i64).to_string())
}

fn number(text: &str) -> Option<String> {
    let number = serde_json::Number::from_f64(finite(text)?)?;
    Some(number.to_string())
}

/// Parses a number that consists of digits. Rust's own parser also accepts words such as `inf`.
fn finite(text: &str) -> Option<f64> {
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    let is_number = text.chars().all(is_number);
    let float: f64 = text.parse().ok().filter(|_| is_number)?;
    float.is_finite().then_some(float)
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_and_alternatives_are_followed() {
        let tool = json!({
            "$ref": "#/$defs/Arguments",
            "$defs": {
                "Arguments": {"properties": {"a": {"$ref": "#/$defs/A"}, "b": {"$ref": "#/nowhere"}, "c": {"items": {}}}},
                "A": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "integer"}, {"type": "null"}]},
            },
        });
        let tools = Tools::new([("f", Some(&tool)), ("g", None)]);
        assert_eq!(tools.kinds("f", "a").json("None"), "null");
        assert_eq!(tools.kinds("f", "a").json(" 7 "), "7");
        assert_eq!(tools.kinds("f", "b").json("[1"), "\"[1\"");
        assert_eq!(tools.kinds("f", "b").json("[1]"), "[1]");
        assert_eq!(tools.kinds("f", "c").json("[1]"), "[1]");
        assert_eq!(tools.kinds("f", "z").json("7"), "\"7\"");
        assert!(tools.has("g") && tools.may_have("g", "any") && !tools.may_have("f", "z"));
    }

    #[test]
    fn no_schema_takes_long() {
        let many = 20_000;
        let values: Vec<usize> = (0..many).collect();
        let alternatives: Vec<Value> = (0..many).map(|_| json!({"$ref": "#/$defs/A"})).collect();
        let long = format!("#/{}", "a/".repeat(100_000));
        for shared in [
            json!({"enum": values}),
            json!({"anyOf": alternatives.clone(), "oneOf": alternatives}),
            json!({"$ref": "#/$defs/A"}),
            json!({"$ref": long}),
            json!({"type": vec!["string"; many]}),
        ] {
            let properties = (0..many).map(|at| (at.to_string(), json!({"$ref": "#/$defs/A"})));
            let properties: Map<String, Value> = properties.collect();
            let tool = json!({"properties": properties, "$defs": {"A": shared}});
            let start = std::time::Instant::now();
            Tools::new([("f", Some(&tool))]);
            // Some ten milliseconds. Without limits it would be minutes.
            assert!(start.elapsed().as_secs() < 10);
        }
    }
}
