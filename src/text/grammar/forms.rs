//! The forms that a value may have in a tag: any text, one of several texts, or JSON.

use serde_json::{Value, json};

use crate::text::values::Kinds;

/// The most schemas and values that are examined for all arguments of a request together. Arguments can refer to the
/// same long list.
pub const MAX_WORK: usize = 50_000;
/// The deepest nesting of alternatives and references that is followed. Real schemas nest a few.
const MAX_DEPTH: usize = 100;

/// Keywords that a text without limits, or one of several texts, may violate.
const UNENFORCED: [&str; 26] = [
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "enum",
    "const",
    "pattern",
    "minLength",
    "maxLength",
    "format",
    "multipleOf",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "items",
    "prefixItems",
    "additionalItems",
    "minItems",
    "maxItems",
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "minProperties",
    "maxProperties",
];

/// The forms of a value. If there are none at all, the schema allows nothing.
#[derive(Default)]
pub struct Forms<'a> {
    /// Whether any text is allowed.
    pub is_free: bool,
    /// Strings, written as they are.
    pub texts: Vec<&'a str>,
    /// Schemas of values that are written as JSON.
    pub others: Vec<Value>,
    /// Keywords that are not enforced.
    pub unenforced: Vec<&'static str>,
    /// The targets of the references that led to the current schema.
    path: Vec<&'a str>,
}

impl<'a> Forms<'a> {
    /// The forms of values that `schema`, a converted part of `root`, allows. Takes the schemas and values that are
    /// examined off `left`.
    ///
    /// # Errors
    /// A message for the author of the schema, when nothing is left.
    pub fn of(schema: &'a Value, root: &'a Value, left: &mut usize) -> Result<Self, String> {
        let mut forms = Self::default();
        let kinds = Kinds::of(schema, root);
        if !kinds.may_be_text() {
            forms.others.push(schema.clone());
            return Ok(forms);
        }
        forms.add(schema, root, left, 0)?;
        let is_itself = |text: &&str| {
            let quoted = Value::from(*text).to_string();
            kinds.json(text) == quoted
        };
        if forms.is_free {
            // A text that looks like JSON becomes JSON, which need not be valid by these schemas.
            let is_null = |other: &&Value| {
                let only = other.get("const").is_some_and(Value::is_null);
                only || other.get("enum") == Some(&json!([null]))
            };
            let others = forms.others.iter().filter(|other| !is_null(other));
            forms.unenforced.extend(others.flat_map(names));
        } else if !forms.texts.iter().all(is_itself) {
            // A listed text such as `1` becomes a number if the schema also allows numbers.
            forms.unenforced.push("enum");
        }
        Ok(forms)
    }

    /// Whether no value is allowed.
    pub const fn allows_nothing(&self) -> bool {
        !self.is_free && self.texts.is_empty() && self.others.is_empty()
    }

    /// Adds the forms of `schema`.
    fn add(
        &mut self,
        schema: &'a Value,
        root: &'a Value,
        left: &mut usize,
        depth: usize,
    ) -> Result<(), String> {
        take(left, 1)?;
        let fields = match schema {
            Value::Bool(false) => return Ok(()),
            Value::Object(fields) => fields,
            _ => {
                self.is_free = true;
                return Ok(());
            }
        };
        let kinds = fields.get("type");
        let kinds = kinds.map(|kinds| Kinds::of(&json!({"type": kinds}), root));
        if kinds.is_some_and(|kinds| !kinds.may_be_text()) {
            self.others.push(schema.clone());
            return Ok(());
        }
        let is_text = kinds.is_some_and(Kinds::is_text);
        let only = fields.get("const").map(std::slice::from_ref);
        let several = fields.get("enum").and_then(Value::as_array);
        if let Some(values) = only.or(several.map(Vec::as_slice)) {
            take(left, values.len())?;
            self.list(schema, values, is_text);
            return Ok(());
        }
        let mut rest = fields.iter().filter(|(name, _)| *name != "type");
        match (rest.next(), rest.next()) {
            (Some((name, value)), None) if depth < MAX_DEPTH => {
                let before = self.others.len();
                match (&**name, value) {
                    ("$ref", Value::String(reference)) => {
                        // A cycle adds no values to those of its other members.
                        if !self.path.contains(&&**reference) {
                            let target = reference.trim_start_matches('#');
                            let target = root.pointer(target).unwrap_or(&Value::Bool(true));
                            self.path.push(reference);
                            self.add(target, root, left, depth + 1)?;
                            self.path.pop();
                        }
                    }
                    ("allOf", Value::Array(parts)) if parts.len() == 1 => {
                        self.add(&parts[0], root, left, depth + 1)?;
                    }
                    ("anyOf" | "oneOf", Value::Array(parts)) => {
                        let texts = self.texts.len();
                        for part in parts {
                            self.add(part, root, left, depth + 1)?;
                        }
                        let mut texts = self.texts[texts..].to_vec();
                        texts.sort_unstable();
                        let overlaps = texts.windows(2).any(|pair| pair[0] == pair[1])
                            || self.others.len() > before + 1;
                        if name == "oneOf" && overlaps {
                            self.unenforced.push("oneOf");
                        }
                    }
                    _ => self.plain(schema, root),
                }
                if is_text {
                    self.others.truncate(before);
                } else if let Some(kinds) = fields.get("type") {
                    for other in &mut self.others[before..] {
                        *other = json!({"allOf": [{"type": kinds}, other.take()]});
                    }
                }
            }
            _ => self.plain(schema, root),
        }
        Ok(())
    }

    /// Adds listed values. `is_text` says whether only strings are allowed.
    fn list(&mut self, schema: &Value, values: &'a [Value], is_text: bool) {
        let texts = values.iter().filter_map(Value::as_str);
        self.texts.extend(texts);
        let others: Vec<&Value> = values.iter().filter(|value| !value.is_string()).collect();
        if others.len() < values.len() {
            let lists = match schema.get("const") {
                Some(_) => "const",
                None => "enum",
            };
            let names = names(schema).filter(|name| *name != lists);
            self.unenforced.extend(names);
        }
        if let Value::Object(fields) = schema
            && !others.is_empty()
            && !is_text
        {
            let mut fields = fields.clone();
            fields.shift_remove("const");
            fields.insert("enum".to_owned(), json!(others));
            self.others.push(Value::Object(fields));
        }
    }

    /// Adds a schema whose alternatives are not examined.
    fn plain(&mut self, schema: &Value, root: &Value) {
        if Kinds::of(schema, root).may_be_text() {
            self.is_free = true;
            self.unenforced.extend(names(schema));
        } else {
            self.others.push(schema.clone());
        }
    }
}

/// The keywords of a schema that constrain values.
fn names(schema: &Value) -> impl Iterator<Item = &'static str> {
    let names = UNENFORCED.iter().copied();
    names.filter(|name| schema.get(name).is_some())
}

fn take(left: &mut usize, work: usize) -> Result<(), String> {
    let rest = left.checked_sub(work);
    *left = rest.ok_or("its schemas are too long together")?;
    Ok(())
}
