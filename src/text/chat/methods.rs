//! Methods of Python's strings, lists and dictionaries that templates call, and that the engine lacks or implements
//! differently.
//!
//! The result of a method is paid for with the template's fuel before it is created, so that its size is bounded.

use std::fmt::{self, Write as _};

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::python;

/// Methods that change a value. The sandbox in which transformers runs templates refuses them too.
const CHANGING: [&str; 12] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "add",
];

/// The engine calls this for every method that a value does not have itself.
pub fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => text_method(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Iterable => list_method(state, value, method, args)?,
        ValueKind::Map if method == "copy" => {
            let () = from_args(args)?;
            // Values are immutable, so the value serves as its own copy.
            Some(value.clone())
        }
        _ => None,
    };
    if let Some(own) = own {
        return Ok(own);
    }
    let is_container = matches!(value.kind(), ValueKind::Seq | ValueKind::Map);
    if is_container && CHANGING.contains(&method) {
        let kind = if value.kind() == ValueKind::Map {
            "dict"
        } else {
            "list"
        };
        return Err(invalid(format!(
            "access to attribute '{method}' of '{kind}' object is unsafe: templates cannot change values"
        )));
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

fn list_method(
    state: &State<'_, '_>,
    list: &Value,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => {
            let () = from_args(args)?;
            list.clone()
        }
        "index" => {
            let (wanted, start, end): (&Value, Option<usize>, Option<usize>) = from_args(args)?;
            let items = list.try_iter()?.enumerate();
            let end = end.unwrap_or(usize::MAX);
            for (at, item) in items.take(end).skip(start.unwrap_or(0)) {
                state.consume_fuel(1)?;
                if item == *wanted {
                    return Ok(Some(Value::from(at)));
                }
            }
            return Err(invalid(format!("{wanted} is not in list")));
        }
        _ => return Ok(None),
    }))
}

fn text_method(
    state: &State<'_, '_>,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "split" | "rsplit" => split(text, method == "rsplit", args)?,
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            partition(text, method == "rpartition", separator)?
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let fill = missing(state, text, width, '0')?;
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            let sign = &text[..text.len() - digits.len()];
            Value::from(format!("{sign}{}{digits}", "0".repeat(fill)))
        }
        "center" | "ljust" | "rjust" => pad(state, text, method, args)?,
        "find" | "index" | "rfind" | "rindex" => {
            let at = find(text, method.starts_with('r'), args)?;
            match at {
                Some(at) => Value::from(at),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(invalid("substring not found".to_owned())),
            }
        }
        "splitlines" => {
            let (keeps_ends,): (Option<bool>,) = from_args(args)?;
            let lines = lines(text).map(|(line, whole)| match keeps_ends {
                Some(true) => whole,
                _ => line,
            });
            lines.map(Value::from).collect()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let mut swapped = String::with_capacity(text.len());
            for character in text.chars() {
                match character.is_uppercase() {
                    true => swapped.extend(character.to_lowercase()),
                    false => swapped.extend(character.to_uppercase()),
                }
            }
            Value::from(swapped)
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            Value::from(join(state, text, items)?)
        }
        "format" => {
            pay_for_fields(state, text, '{', args)?;
            return Ok(None);
        }
        _ => return Ok(None),
    }))
}

/// Joins all `items` into one text, separated by `between`.
///
/// # Errors
/// When the items cannot be iterated, or there is not enough fuel for the text.
pub fn join(state: &State<'_, '_>, between: &str, items: &Value) -> Result<String, Error> {
    let mut joined = Paid {
        state,
        text: String::new(),
    };
    for (at, item) in items.try_iter()?.enumerate() {
        state.consume_fuel(1)?;
        walk(state, &item, MAX_NESTING)?;
        let between = if at > 0 { between } else { "" };
        let item = python::with_floats(&item);
        write!(joined, "{between}{item}").map_err(|fmt::Error| too_much())?;
    }
    Ok(joined.text)
}

/// The deepest nesting of lists that are written as text.
pub const MAX_NESTING: usize = 50;

/// Consumes the fuel for all items of `value` and, recursively, for their items. It must be called before they are
/// written: a list that repeats another one has as many items as it claims, and the code that writes it does not stop
/// when the fuel is used up.
///
/// # Errors
/// When there is not enough fuel, or lists are nested more than `depth` deep.
pub fn walk(state: &State<'_, '_>, value: &Value, depth: usize) -> Result<(), Error> {
    visit(state, value, depth, &|_| Ok(()))
}

/// Returns what a namespace may keep. A namespace in it is refused, because it could be the one that keeps it, and the engine
/// writes and compares values without end then, until the stack overflows.
///
/// # Errors
/// When a namespace is in it, there is not enough fuel for its items, or they are nested too deeply.
pub fn kept(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    let namespace = minijinja::functions::namespace(None)?;
    let type_of = |value: &Value| value.as_object().map(|object| object.type_name());
    visit(
        state,
        &value,
        MAX_NESTING,
        &|item| match type_of(item) == type_of(&namespace) {
            true => Err(invalid("a namespace cannot keep a namespace".to_owned())),
            false => Ok(()),
        },
    )?;
    Ok(value)
}

/// Looks at `value` and, recursively, at its items, and consumes the fuel for them.
fn visit(
    state: &State<'_, '_>,
    value: &Value,
    depth: usize,
    look: &impl Fn(&Value) -> Result<(), Error>,
) -> Result<(), Error> {
    if value.as_object().is_none() {
        return Ok(());
    }
    look(value)?;
    let Ok(items) = value.try_iter() else {
        return Ok(());
    };
    let depth = depth.checked_sub(1).ok_or_else(too_much)?;
    for item in items {
        state.consume_fuel(1)?;
        visit(state, &item, depth, look)?;
        if let (ValueKind::Map, Ok(value)) = (value.kind(), value.get_item(&item)) {
            visit(state, &value, depth, look)?;
        }
    }
    Ok(())
}

/// Python's `split` and `rsplit`: at a separator or, without one, at any white space; at most `maxsplit` times.
fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        Some(separator) => Some(separator),
        None => named.get("sep")?,
    };
    let most = match most {
        Some(most) => Some(most),
        None => named.get("maxsplit")?,
    };
    named.assert_all_used()?;
    // A negative number means no limit.
    let pieces = most.and_then(|most| usize::try_from(most).ok());
    let pieces = pieces.map_or(usize::MAX, |most| most.saturating_add(1));
    let separator = separator.filter(|separator| !separator.is_none());
    let mut parts: Vec<&str> = match &separator {
        None => words(text, from_right, pieces),
        Some(separator) => match separator.as_str() {
            None | Some("") => return Err(invalid("empty separator".to_owned())),
            Some(separator) if from_right => text.rsplitn(pieces, separator).collect(),
            Some(separator) => text.splitn(pieces, separator).collect(),
        },
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits `text` into at most `most` words, of which the last has all the remaining text. From the right, the words are
/// in reverse order.
fn words(text: &str, from_right: bool, most: usize) -> Vec<&str> {
    let trim = |text: &str| -> usize {
        match from_right {
            true => text.trim_end().len(),
            false => text.trim_start().len(),
        }
    };
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        let kept = trim(rest);
        rest = match from_right {
            true => &rest[..kept],
            false => &rest[rest.len() - kept..],
        };
        if rest.is_empty() {
            return words;
        }
        if words.len() + 1 == most {
            words.push(rest);
            return words;
        }
        let (word, after) = if from_right {
            let (after, word) = rest.rsplit_once(char::is_whitespace).unwrap_or(("", rest));
            (word, after)
        } else {
            rest.split_once(char::is_whitespace).unwrap_or((rest, ""))
        };
        words.push(word);
        rest = after;
    }
}

fn partition(text: &str, from_right: bool, separator: &str) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(invalid("empty separator".to_owned()));
    }
    let found = match from_right {
        true => text.rsplit_once(separator),
        false => text.split_once(separator),
    };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(minijinja::value::Tuple::from(
        parts.map(Value::from),
    )))
}

fn pad(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let mut fill = fill.unwrap_or(" ").chars();
    let (Some(fill), None) = (fill.next(), fill.next()) else {
        return Err(invalid(
            "the fill character must be one character".to_owned(),
        ));
    };
    let missing = missing(state, text, width, fill)?;
    let before = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Python's rounding for `center`: if the padding is odd, the extra character is on the left if the width is odd
        // too.
        _ => missing / 2 + (missing & width.unsigned_abs() as usize & 1),
    };
    let repeat = |count: usize| fill.to_string().repeat(count);
    Ok(Value::from(format!(
        "{}{text}{}",
        repeat(before),
        repeat(missing - before)
    )))
}

/// The number of characters that `text` lacks to have this `width`. They are paid for.
fn missing(state: &State<'_, '_>, text: &str, width: i64, fill: char) -> Result<usize, Error> {
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    pay(state, missing.saturating_mul(fill.len_utf8()))?;
    Ok(missing)
}

/// Finds a text between two positions, which may count from the end. All positions count characters.
fn find(text: &str, from_right: bool, args: &[Value]) -> Result<Option<usize>, Error> {
    let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let count = text.chars().count();
    let place = |place: i64| match usize::try_from(place) {
        Ok(place) => place,
        Err(_negative) => count.saturating_sub(place.unsigned_abs() as usize),
    };
    let (start, end) = (start.map_or(0, place), end.map_or(count, place).min(count));
    if start > end {
        return Ok(None);
    }
    let byte = |place: usize| {
        text.char_indices()
            .nth(place)
            .map_or(text.len(), |(at, _)| at)
    };
    let within = &text[byte(start)..byte(end)];
    let found = match from_right {
        true => within.rfind(wanted),
        false => within.find(wanted),
    };
    Ok(found.map(|at| start + within[..at].chars().count()))
}

/// Splits a text into lines as Python does: each without and with its end, which is not always a line feed.
pub fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = rest.find(ends).unwrap_or(rest.len());
        let after = &rest[length..];
        let end = match after.starts_with("\r\n") {
            true => 2,
            false => after.chars().next().map_or(0, char::len_utf8),
        };
        let (whole, next) = rest.split_at(length + end);
        rest = next;
        Some((&whole[..length], whole))
    })
}

/// Capitalises words as Python does: a word begins after any character that is not a letter, including an apostrophe.
fn title(text: &str) -> String {
    let mut is_inside = false;
    let mut titled = String::with_capacity(text.len());
    for character in text.chars() {
        match is_inside {
            true => titled.extend(character.to_lowercase()),
            false => titled.extend(character.to_uppercase()),
        }
        is_inside = character.is_alphabetic();
    }
    titled
}

/// Consumes the fuel for a format whose fields begin with `mark`, each of which may be filled with any of `values`.
///
/// # Errors
/// When there is not enough fuel.
pub fn pay_for_fields(
    state: &State<'_, '_>,
    format: &str,
    mark: char,
    values: &[Value],
) -> Result<(), Error> {
    let mut longest = LONGEST_NUMBER;
    for value in values {
        longest = longest.max(match value.as_str() {
            Some(text) => text.len(),
            None if value.as_object().is_none() => 0,
            // Joining pays for the text while it is written, because a list may repeat another one endlessly.
            None => join(state, "", &Value::from(vec![value.clone()]))?.len(),
        });
    }
    let fields = format.matches(mark).count();
    pay(
        state,
        fields
            .saturating_mul(longest)
            .saturating_add(widths(format)),
    )
}

/// The most bytes of a number as text, without the digits that a precision adds: the largest float has 309 digits.
const LONGEST_NUMBER: usize = 320;

/// An upper bound on the widths and precisions in a format: the sum of all its numbers.
fn widths(format: &str) -> usize {
    let numbers = format.split(|c: char| !c.is_ascii_digit());
    let numbers = numbers.filter(|digits| !digits.is_empty());
    numbers.fold(0, |sum, digits| {
        sum.saturating_add(digits.parse().unwrap_or(usize::MAX))
    })
}

/// Consumes the fuel for `bytes` bytes of text, at the price of the engine.
///
/// # Errors
/// When there is not enough fuel.
pub fn pay(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    match bytes / BYTES_PER_FUEL {
        0 => Ok(()),
        fuel => state.consume_fuel(fuel as u64),
    }
}

/// The bytes of text that the engine produces for one unit of fuel.
const BYTES_PER_FUEL: usize = 64;

/// A text that is paid for while it is written.
struct Paid<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    text: String,
}

impl fmt::Write for Paid<'_, '_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let before = self.text.len() / BYTES_PER_FUEL;
        let after = (self.text.len() + text.len()) / BYTES_PER_FUEL;
        pay(self.state, (after - before) * BYTES_PER_FUEL).map_err(|_empty| fmt::Error)?;
        self.text += text;
        Ok(())
    }
}

fn too_much() -> Error {
    Error::from(ErrorKind::OutOfFuel)
}

fn invalid(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}
