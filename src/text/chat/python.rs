//! Features of Python that chat templates use: `tojson` with the output of `json.dumps`, floats in the notation of
//! `str`, and dates as written by `strftime`.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::value::{Kwargs, Object, ObjectRepr, Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// The deepest nesting of values in JSON: deeper than any schema, and few enough levels for the stack.
const MAX_DEPTH: usize = 200;

/// The bytes of JSON that one unit of fuel pays for. The engine charges one unit for 64 bytes of any text, but escaping
/// a text takes several times as long as copying it, and each `tojson` in a chain doubles the length.
const JSON_BYTES_PER_FUEL: usize = 8;

/// The filter `tojson` as transformers defines it: `json.dumps` with its options, without escapes for HTML.
pub fn tojson(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<String, Error> {
    let fuel = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    let json = write_json(value, options, usize::try_from(fuel).unwrap_or(usize::MAX))?;
    match json.len() / JSON_BYTES_PER_FUEL {
        0 => {}
        used => state.consume_fuel(used as u64)?,
    }
    Ok(json)
}

/// Writes `value` as JSON, with at most as many bytes as `fuel` pays for.
fn write_json(value: &Value, options: Kwargs, fuel: usize) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(indent.as_usize().unwrap_or(0).min(16)),
        }),
    };
    let between: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match between.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        // As in Python, a line does not end with a space.
        _ if indent.is_some() => (",".into(), ": ".into()),
        _ => (", ".into(), ": ".into()),
    };
    let mut json = Json {
        text: String::new(),
        limit: fuel.saturating_mul(JSON_BYTES_PER_FUEL),
        indent,
        item,
        key,
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    json.value(value, 0)?;
    Ok(json.text)
}

/// The function `strftime_now` at the moment `now`, in UTC, which is the time zone in most containers.
pub fn strftime(now: Timestamp, format: &str) -> Result<String, Error> {
    let now = now.to_zoned_datetime(TimeZone::UTC);
    strtime::format(format, &now)
        .map_err(|problem| Error::new(ErrorKind::InvalidOperation, problem.to_string()))
}

struct Json {
    text: String,
    /// The most bytes of the text.
    limit: usize,
    /// The indentation of each level; without it, everything is on one line.
    indent: Option<String>,
    /// The separator between items.
    item: String,
    /// The separator between a key and its value.
    key: String,
    /// Whether characters beyond ASCII are written as escapes.
    ascii: bool,
    sort_keys: bool,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            let problem = "a value is nested too deeply for tojson";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        self.check_room(0)?;
        match value.kind() {
            ValueKind::None => self.text += "null",
            ValueKind::Bool => self.text += if value.is_true() { "true" } else { "false" },
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.items(['[', ']'], items, depth)?;
            }
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    pairs.push((Some(key.to_string()), item));
                }
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.items(['{', '}'], pairs, depth)?;
            }
            kind => {
                let problem = format!("{kind} cannot be written as JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
        Ok(())
    }

    fn items(
        &mut self,
        [open, close]: [char; 2],
        items: Vec<(Option<String>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        self.text.push(open);
        let is_empty = items.is_empty();
        for (at, (key, item)) in items.into_iter().enumerate() {
            if at > 0 {
                self.text += &self.item;
            }
            self.line(depth + 1)?;
            if let Some(key) = key {
                self.string(&key);
                self.text += &self.key;
            }
            self.value(&item, depth + 1)?;
        }
        if !is_empty {
            self.line(depth)?;
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            self.check_room(indent.len().saturating_mul(depth))?;
            self.text.push('\n');
            self.text += &indent.repeat(depth);
        }
        Ok(())
    }

    /// Checks that `more` bytes can still be written. The JSON of a text is not checked in advance, because it is never
    /// much longer than the text.
    fn check_room(&self, more: usize) -> Result<(), Error> {
        if self.text.len().saturating_add(more) > self.limit {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        let text = match f64::try_from(value.clone()) {
            Ok(float) if !value.is_integer() => float_repr(float),
            _ => value.to_string(),
        };
        self.text += &text;
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text += "\\\"",
                '\\' => self.text += "\\\\",
                '\n' => self.text += "\\n",
                '\r' => self.text += "\\r",
                '\t' => self.text += "\\t",
                '\u{8}' => self.text += "\\b",
                '\u{c}' => self.text += "\\f",
                '\0'..' ' => self.escape(character as u16),
                '\u{7f}'.. if self.ascii => {
                    let mut units = [0; 2];
                    for unit in character.encode_utf16(&mut units) {
                        self.escape(*unit);
                    }
                }
                _ => self.text.push(character),
            }
        }
        self.text.push('"');
    }

    fn escape(&mut self, unit: u16) {
        write!(self.text, "\\u{unit:04x}").expect("writing to a string cannot fail");
    }
}

/// Replaces the floats in `value`, including those of its items, by text as Python's `str` writes it, because the
/// engine writes them without an exponent. It must be called after [`super::fuel::walk`] has bounded the value.
pub fn with_floats(value: &Value) -> Value {
    match float(value) {
        Some(float) => Value::from(float_text(float)),
        None if has_floats(value) => with_float_items(value),
        None => value.clone(),
    }
}

/// Returns `value` as a float, if the engine would write it differently from Python.
fn float(value: &Value) -> Option<f64> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let float = f64::try_from(value.clone()).ok()?;
    (value.to_string() != float_text(float)).then_some(float)
}

fn has_floats(value: &Value) -> bool {
    let is_list = value.kind() == ValueKind::Seq;
    if !(is_list || value.kind() == ValueKind::Map) {
        return false;
    }
    let mut items = value.try_iter().into_iter().flatten();
    items.any(|item| {
        let item = match is_list {
            true => item,
            false => value.get_item(&item).unwrap_or_default(),
        };
        float(&item).is_some() || has_floats(&item)
    })
}

/// Replaces the floats in a list or dictionary.
fn with_float_items(value: &Value) -> Value {
    let item = |item: Value| match float(&item) {
        Some(float) => Value::from_object(Written(float_text(float))),
        None if has_floats(&item) => with_float_items(&item),
        None => item,
    };
    let Ok(items) = value.try_iter() else {
        return value.clone();
    };
    if value.kind() == ValueKind::Map {
        let pairs = items.map(|key| {
            let found = value.get_item(&key).unwrap_or_default();
            (key, item(found))
        });
        return Value::from_pairs(pairs);
    }
    match value.downcast_object_ref::<Tuple>() {
        Some(_) => Value::from(Tuple::from(items.map(item).collect::<Vec<Value>>())),
        None => items.map(item).collect(),
    }
}

/// The text of a number. A plain string would be printed with quotes among the items of a list.
#[derive(Debug)]
struct Written(String);

impl Object for Written {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes a float as Python's `str` does; JSON differs only in infinities and NaN.
fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    match value.is_infinite() {
        true => value.to_string(),
        false => float_repr(value),
    }
}

/// Writes a float as Python's `repr` does: the shortest digits that parse to the same value, with an exponent below
/// 1e-4 and from 1e16.
fn float_repr(value: f64) -> String {
    if !value.is_finite() {
        return match value {
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            _ => "NaN".into(),
        };
    }
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        return format!("{value:?}");
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_look_as_in_python() {
        for (value, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (123_456_789.25, "123456789.25"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.25e300, "1.25e+300"),
        ] {
            assert_eq!(float_repr(value), text);
        }
    }

    #[test]
    fn json_looks_as_in_python() {
        let value: Value =
            serde_json::from_str(r#"{"z": [1, 2.5, "é\n\u0001\u007f"], "a": {}, "n": null}"#)
                .unwrap();
        let with = |options: &[(&str, Value)]| {
            let options = options.iter().map(|(k, v)| (*k, v.clone()));
            write_json(&value, Kwargs::from_iter(options), 100).unwrap()
        };
        assert_eq!(
            with(&[]),
            "{\"z\": [1, 2.5, \"é\\n\\u0001\u{7f}\"], \"a\": {}, \"n\": null}"
        );
        assert_eq!(
            with(&[("indent", Value::from(2)), ("sort_keys", Value::from(true))]),
            "{\n  \"a\": {},\n  \"n\": null,\n  \"z\": [\n    1,\n    2.5,\n    \"é\\n\\u0001\u{7f}\"\n  ]\n}"
        );
        assert!(with(&[("ensure_ascii", Value::from(true))]).contains("\\u00e9\\n\\u0001\\u007f"));
    }

    #[test]
    fn dates_are_those_of_the_given_moment() {
        let moment: Timestamp = "2026-02-03T23:59:59Z".parse().unwrap();
        assert_eq!(strftime(moment, "%B %d, %Y").unwrap(), "February 03, 2026");
        assert!(strftime(moment, "%").is_err());
    }
}
