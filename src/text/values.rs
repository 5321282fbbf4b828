//! Converts arguments that a model wrote as plain text to JSON, according to the tool's schema.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The most schemas that are examined for one argument, including those behind references. No real argument has so many
/// alternatives.
const MAX_SCHEMAS: usize = 200;
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
        let kinds = |schema: Option<&Value>| {
            let properties = schema.and_then(|schema| properties(schema, schema, 0));
            let properties = properties.into_iter().flatten();
            let kinds = properties.map(|(key, property)| {
                let root = schema.unwrap_or(property);
                (key.clone(), Kinds::of(property, root))
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
    root.pointer(reference.strip_prefix('#')?)
}

impl Kinds {
    /// Returns the types that `schema`, a part of the document `root`, allows.
    pub fn of(schema: &Value, root: &Value) -> Self {
        let mut kinds = Self::default();
        let mut waiting = vec![schema];
        for _ in 0..MAX_SCHEMAS {
            let Some(schema) = waiting.pop() else { break };
            kinds.add(schema);
            if schema.get("$ref").is_some() {
                match target(schema, root) {
                    Some(target) => waiting.push(target),
                    None => kinds.unknown = true,
                }
            }
            for several in ["anyOf", "oneOf", "allOf"] {
                let several = schema.get(several).and_then(Value::as_array);
                let several = several.into_iter().flatten();
                waiting.extend(several.take(MAX_SCHEMAS));
            }
        }
        kinds
    }

    /// Adds the types that one schema itself allows, without its references and alternatives.
    fn add(&mut self, schema: &Value) {
        match schema.get("type") {
            Some(Value::String(name)) => self.add_type(name),
            Some(Value::Array(names)) => {
                let names = names.iter().filter_map(Value::as_str);
                names.for_each(|name| self.add_type(name));
            }
            _ => {}
        }
        // Some schemas leave out the type if other keywords imply it.
        self.object |= schema.get("properties").is_some();
        self.array |= schema.get("items").is_some();
        let values = schema.get("enum").and_then(Value::as_array);
        for value in values.into_iter().flatten().chain(schema.get("const")) {
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
