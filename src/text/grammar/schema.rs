//! JSON schemas of clients → schemas in the compiler's form.
//!
//! References are resolved here and point into one flat list of definitions, so that a schema can be put inside another
//! one without changing its meaning. Keywords that the compiler cannot enforce are left out and reported. An object
//! that lists its properties has no others, unless the schema allows them.

use std::collections::BTreeSet;
use std::ptr;

use serde_json::{Map, Number, Value, json};

use super::references::Document;
use super::regex;

/// The most schemas within a schema, including those that references repeat. The largest in use have a few thousand.
const MAX_NODES: usize = 20_000;
/// The most targets of references. The compiler follows a chain of them recursively.
const MAX_DEFINITIONS: usize = 1_000;
/// The largest bound of a number. With larger bounds, the compiler's search for the next power of ten overflows.
const MAX_BOUND: f64 = 1e17;
/// The largest `multipleOf`. Larger divisors overflow in the compiler.
const MAX_DIVISOR: f64 = 1e6;

/// Keywords that hold a schema, a list of schemas, or an object of schemas.
const ONE: [&str; 3] = ["additionalProperties", "additionalItems", "items"];
const LIST: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const NAMED: [&str; 2] = ["properties", "patternProperties"];
/// Other keywords that the compiler enforces.
const VALUES: [&str; 17] = [
    "type",
    "enum",
    "const",
    "required",
    "minProperties",
    "maxProperties",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "multipleOf",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
];
/// The keywords among these whose values are counts.
const COUNTS: [&str; 6] = [
    "minProperties",
    "maxProperties",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
];
/// The keywords among these whose values are bounds of a number.
const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
/// Keywords of the standard that constrain values but cannot be enforced.
const UNENFORCED: [&str; 14] = [
    "not",
    "if",
    "dependentSchemas",
    "dependentRequired",
    "dependencies",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
    "$dynamicRef",
    "$recursiveRef",
];
/// Formats for which the compiler has a pattern. All others are annotations, as in the standard.
const FORMATS: [&str; 11] = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "unknown",
];
/// Keywords that describe the properties of an object.
const SHAPE: [&str; 4] = [
    "properties",
    "patternProperties",
    "additionalProperties",
    "unevaluatedProperties",
];

/// Converts schemas for the compiler, and collects their definitions and the keywords that are not enforced.
#[derive(Default)]
pub struct Schemas {
    drops_bounds: bool,
    definitions: Vec<Value>,
    nodes: usize,
    unenforced: BTreeSet<&'static str>,
}

impl Schemas {
    /// No schemas yet. With `drops_bounds`, bounds of numbers are left out, for schemas whose bounds the compiler
    /// cannot express.
    pub fn new(drops_bounds: bool) -> Self {
        Self {
            drops_bounds,
            ..Self::default()
        }
    }

    /// Converts a document to the compiler's form. Its references point to the definitions that [`Self::finish`] adds.
    ///
    /// # Errors
    /// A message for the author of the schema.
    pub fn add(&mut self, root: &Value) -> Result<Value, String> {
        let mut document = Document::new(root);
        let schema = self.convert(&mut document, root, false)?;
        // A list instead of recursion, because a chain of references may be long.
        while let Some((target, is_open, index)) = document.pending.pop() {
            self.definitions[index] = self.convert(&mut document, target, is_open)?;
        }
        Ok(schema)
    }

    /// As [`Self::add`], for the arguments of a tool, which are an object even if the schema does not say so.
    ///
    /// # Errors
    /// As [`Self::add`], and when the schema does not allow an object.
    pub fn add_object(&mut self, root: &Value) -> Result<Value, String> {
        let mut schema = match self.add(root)? {
            Value::Bool(true) => json!({}),
            schema => schema,
        };
        let fields = schema.as_object_mut().ok_or("it allows nothing")?;
        let is_object = match fields.get("type") {
            None => true,
            Some(Value::Array(types)) => types.iter().any(|kind| kind == "object"),
            Some(kind) => kind == "object",
        };
        if !is_object {
            return Err("it describes no object".to_owned());
        }
        fields.insert("type".to_owned(), json!("object"));
        Ok(schema)
    }

    /// The schema with all definitions, and the keywords that are not enforced.
    pub fn finish(self, mut schema: Value) -> (Value, Vec<&'static str>) {
        if let Some(fields) = schema.as_object_mut()
            && !self.definitions.is_empty()
        {
            let numbered = self.definitions.into_iter().enumerate();
            let numbered = numbered.map(|(index, value)| (index.to_string(), value));
            let definitions = Value::Object(numbered.collect());
            fields.insert("$defs".to_owned(), definitions);
        }
        (schema, self.unenforced.into_iter().collect())
    }

    /// Converts a schema. The recursion is as deep as the nesting of the text, which the JSON parser limits to 128.
    fn convert<'a>(
        &mut self,
        document: &mut Document<'a>,
        schema: &'a Value,
        is_open: bool,
    ) -> Result<Value, String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("it has more than {MAX_NODES} schemas in it"));
        }
        let fields = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(fields) => fields,
            _ => return Err("a schema is an object, true or false".to_owned()),
        };
        let composition = Composition::of(fields, is_open);
        let mut converted = Map::new();
        for (keyword, value) in fields {
            if let Some(value) = self.keyword(document, keyword, value, &composition)? {
                converted.insert(keyword.clone(), value);
            }
        }
        if composition.closes {
            close(&mut converted);
        }
        if !counts_of_properties_are_enforced(&converted) {
            for name in ["minProperties", "maxProperties"] {
                if converted.shift_remove(name).is_some() {
                    self.unenforced.insert(name);
                }
            }
        }
        Ok(Value::Object(converted))
    }

    /// The value of a keyword in the compiler's form; `None` if the keyword is left out.
    fn keyword<'a>(
        &mut self,
        document: &mut Document<'a>,
        keyword: &str,
        value: &'a Value,
        composition: &Composition,
    ) -> Result<Option<Value>, String> {
        Ok(Some(match value {
            reference if keyword == "$ref" => {
                let target = document.resolve(reference)?;
                self.reference(document, target, composition.opens_parts)?
            }
            Value::Object(named) if NAMED.contains(&keyword) => {
                if keyword == "patternProperties" {
                    named.keys().try_for_each(|pattern| regex::check(pattern))?;
                }
                let convert = |(name, part): (&String, &'a Value)| {
                    Ok((name.clone(), self.convert(document, part, false)?))
                };
                let named = named.iter().map(convert);
                Value::Object(named.collect::<Result<_, String>>()?)
            }
            Value::Array(list) if LIST.contains(&keyword) => {
                let in_place = matches!(keyword, "allOf" | "anyOf" | "oneOf");
                let is_open = in_place && composition.opens_parts;
                let list = list.iter();
                let list = list.map(|part| self.convert(document, part, is_open));
                Value::Array(list.collect::<Result<_, String>>()?)
            }
            part if ONE.contains(&keyword) => self.convert(document, part, false)?,
            _ if NAMED.contains(&keyword) || LIST.contains(&keyword) => {
                return Err(format!("'{keyword}' is of the wrong type"));
            }
            value => return self.plain(keyword, value, composition),
        }))
    }

    /// As [`Self::keyword`], for keywords that do not hold a schema.
    fn plain(
        &mut self,
        keyword: &str,
        value: &Value,
        composition: &Composition,
    ) -> Result<Option<Value>, String> {
        let Some(name) = VALUES.iter().find(|known| **known == keyword) else {
            self.note(keyword, value, composition);
            return Ok(None);
        };
        if let ("pattern", Value::String(pattern)) = (*name, value) {
            regex::check(pattern)?;
        }
        let enforced = match (*name, value) {
            ("format", Value::String(format)) if !FORMATS.contains(&format.as_str()) => None,
            ("multipleOf", Value::Number(number)) => divisor(number),
            ("const" | "enum", value) if !is_exact(value) => None,
            (name, bound) if BOUNDS.contains(&name) && (self.drops_bounds || !is_exact(bound)) => {
                None
            }
            (name, Value::Number(number)) if COUNTS.contains(&name) => Some(whole(number)),
            (_, value) => Some(value.clone()),
        };
        if enforced.is_none() {
            self.unenforced.insert(name);
        }
        Ok(enforced)
    }

    /// A reference to a definition. A new definition is converted later.
    fn reference<'a>(
        &mut self,
        document: &mut Document<'a>,
        target: &'a Value,
        is_open: bool,
    ) -> Result<Value, String> {
        // Its address identifies a value of the document.
        let key = (ptr::from_ref(target).addr(), is_open);
        let index = match document.targets.get(&key) {
            Some(&index) => index,
            None => {
                let index = self.definitions.len();
                if index == MAX_DEFINITIONS {
                    return Err(format!("it refers to more than {MAX_DEFINITIONS} schemas"));
                }
                self.definitions.push(Value::Null);
                document.targets.insert(key, index);
                document.pending.push((target, is_open, index));
                index
            }
        };
        Ok(Value::String(format!("#/$defs/{index}")))
    }

    /// Records a keyword that constrains values but is not enforced. Unknown keywords are annotations.
    fn note(&mut self, keyword: &str, value: &Value, composition: &Composition) {
        let constrains = match keyword {
            "uniqueItems" => value == &Value::Bool(true),
            "unevaluatedProperties" => value == &Value::Bool(false) && !composition.closes,
            _ => true,
        };
        if let Some(name) = UNENFORCED.iter().find(|known| **known == keyword)
            && constrains
        {
            self.unenforced.insert(name);
        }
    }
}

/// How a schema is composed of others that apply to the same value.
struct Composition {
    /// Whether it gets `additionalProperties: false`.
    closes: bool,
    /// Whether its parts must allow the properties of the other parts.
    opens_parts: bool,
}

impl Composition {
    fn of(fields: &Map<String, Value>, is_open: bool) -> Self {
        let has_shape = SHAPE.iter().any(|name| fields.contains_key(*name));
        let parts = |name: &str| fields.get(name).and_then(Value::as_array);
        let all_of = parts("allOf").map_or(0, Vec::len);
        let groups = usize::from(parts("anyOf").is_some())
            + usize::from(parts("oneOf").is_some())
            + usize::from(fields.contains_key("$ref"));
        // Some parts add no properties of their own, for example those that only list required ones.
        let part_has_shape = fields.contains_key("$ref")
            || ["allOf", "anyOf", "oneOf"].iter().any(|name| {
                parts(name).is_some_and(|parts| {
                    parts.iter().any(|part| {
                        ["$ref", "allOf", "anyOf", "oneOf"]
                            .iter()
                            .chain(&SHAPE)
                            .any(|name| part.get(*name).is_some())
                    })
                })
            });
        Self {
            closes: !is_open
                && !part_has_shape
                && fields.get("properties").is_some_and(Value::is_object)
                && !fields.contains_key("additionalProperties"),
            opens_parts: is_open || has_shape || all_of + groups > 1,
        }
    }
}

/// Forbids an object all properties except those that it lists or requires.
fn close(fields: &mut Map<String, Value>) {
    let required = fields.get("required").and_then(Value::as_array).cloned();
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        for name in required.iter().flatten().filter_map(Value::as_str) {
            if !properties.contains_key(name) {
                properties.insert(name.to_owned(), Value::Bool(true));
            }
        }
    }
    fields.insert("additionalProperties".to_owned(), Value::Bool(false));
}

/// Whether the compiler can enforce limits on the number of an object's properties: only if no property is optional, or
/// if the object is closed and the limits mean at most or at least one of its optional properties.
fn counts_of_properties_are_enforced(fields: &Map<String, Value>) -> bool {
    let required: Vec<&Value> = match fields.get("required") {
        Some(Value::Array(names)) => names.iter().collect(),
        _ => Vec::new(),
    };
    let properties = fields.get("properties").and_then(Value::as_object);
    let is_required = |name: &String| required.iter().any(|required| *required == name);
    if properties.is_none_or(|properties| properties.keys().all(is_required)) {
        return true;
    }
    let one_more = required.len() as u64 + 1;
    let count = |name: &str| fields.get(name).and_then(Value::as_u64);
    fields.get("additionalProperties") == Some(&Value::Bool(false))
        && !fields.contains_key("patternProperties")
        && count("minProperties").is_none_or(|least| least <= one_more)
        && count("maxProperties").is_none_or(|most| most == one_more)
}

/// Whether all numbers in the value are exact as `f64`, which the compiler uses for numbers.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            let float = number.as_f64();
            let is_in_range = float.is_none_or(|float| float.abs() <= MAX_BOUND);
            let is_itself =
                |whole: i64| float == Some(whole as f64) && whole as f64 as i64 == whole;
            is_in_range && number.as_i64().is_none_or(is_itself)
        }
        Value::Array(values) => values.iter().all(is_exact),
        Value::Object(fields) => fields.values().all(is_exact),
        _ => true,
    }
}

/// A count, which may be written as `3.0`, in the compiler's form.
fn whole(number: &Number) -> Value {
    match number.as_f64() {
        // This limit is beyond the length of any text or list.
        Some(float) if float.fract() == 0.0 && (0.0..=MAX_BOUND).contains(&float) => {
            Value::from(float as u64)
        }
        _ => Value::Number(number.clone()),
    }
}

/// A divisor for which the compiler can compute remainders exactly; `None` if there is none.
fn divisor(number: &Number) -> Option<Value> {
    let divisor = number.as_f64()?.abs();
    let millionths = (divisor * 1e6).round();
    let is_decimal = (millionths / 1e6 - divisor).abs() <= f64::EPSILON * divisor;
    if !is_decimal || !(1.0..=MAX_DIVISOR * 1e6).contains(&millionths) {
        return None;
    }
    // The compiler finds the digits by multiplying by ten until the result is whole. The float nearest to 0.07 never
    // becomes whole that way, but one of its neighbours does. No case has been found in which only floats further away
    // do.
    let (below, above) = (divisor.next_down(), divisor.next_up());
    let near = [divisor, below, above, below.next_down(), above.next_up()];
    let found = near.into_iter().find(|&near| {
        let (mut digits, mut places) = (near, 0);
        while digits.fract() != 0.0 && places < 6 {
            digits *= 10.0;
            places += 1;
        }
        digits <= f64::from(u32::MAX) && digits * 10_f64.powi(6 - places) == millionths
    });
    found.map(Value::from)
}
