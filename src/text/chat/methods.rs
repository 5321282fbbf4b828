//! Methods of Python's strings, lists and dictionaries that templates call, and that the engine lacks or implements
//! differently.
//!
//! The result of a method is paid for with the template's fuel before it is created, so that its size is bounded.

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::fuel::{join, pay, pay_for_fields};

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

fn invalid(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}
