//! What a template pays for with its fuel besides the engine's instructions: texts before they are made, and the items of
//! values before they are written or kept.

use std::fmt::{self, Write as _};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::python;

/// The deepest nesting of lists that are written as text or kept.
const MAX_NESTING: usize = 50;

/// Consumes the fuel for all items of `value` and, recursively, for their items. It must be called before they are
/// written: a list that repeats another one has as many items as it claims, and the code that writes it does not stop
/// when the fuel is used up.
///
/// # Errors
/// When there is not enough fuel, or lists are nested more than [`MAX_NESTING`] deep.
pub fn walk(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    visit(state, value, MAX_NESTING, &|_| Ok(()))
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
            true => {
                let problem = "a namespace cannot keep a namespace";
                Err(Error::new(ErrorKind::InvalidOperation, problem))
            }
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
        walk(state, &item)?;
        let between = if at > 0 { between } else { "" };
        let item = python::with_floats(&item);
        write!(joined, "{between}{item}").map_err(|fmt::Error| too_much())?;
    }
    Ok(joined.text)
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

/// There is not enough fuel.
fn too_much() -> Error {
    Error::from(ErrorKind::OutOfFuel)
}
