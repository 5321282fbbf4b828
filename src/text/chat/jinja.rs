//! The engine that runs templates, set up to do as Jinja does under transformers, and within bounds.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, escape_formatter};

use super::guard;
use super::methods::{self, lines, pay};
use super::python;
use super::source;

/// Instructions of the template engine for one conversation, and 64 bytes of what they make count as one. Granite's
/// templates take about 60 for a message, so this is enough for the ten thousand messages that fit a body, and no more
/// than 64 MiB; past it a template is looping.
const FUEL: u64 = 1_000_000;
/// Macros that call themselves. Templates of models do not recurse at all.
const MAX_RECURSION: usize = 50;

/// The engine's own filter `format`, under a name that no template can write.
const ENGINES_FORMAT: &str = "engine's format";

/// Bytes of a template: the engine counts lines and columns in sixteen bits. Those of models have at most half of it.
const MAX_TEMPLATE_BYTES: usize = u16::MAX as usize;

/// Stack for compiling a template. The engine's compiler calls itself for every operator in a row, of which the longest
/// template has thirty thousand, at some kilobytes each. What is not used takes no memory.
const COMPILER_STACK_BYTES: usize = 256 << 20;

/// An environment whose template `chat` is `template`.
///
/// # Errors
/// What is wrong with the template, in one line.
pub fn environment(template: &str) -> Result<Environment<'static>, String> {
    check_length(template)?;
    let mut environment = Environment::new();
    // As transformers sets up Jinja.
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|problem| problem.to_string())?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_name| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|output, state, value| {
        methods::walk(state, value, methods::MAX_NESTING)?;
        escape_formatter(output, state, &python::with_floats(value))
    });
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("indent", indent);
    environment.add_filter("join", join);
    environment.add_filter("string", string);
    // It would write whatever is asked for before it is paid, and no template of a model has it.
    environment.remove_filter("pprint");
    environment.add_filter(ENGINES_FORMAT, minijinja::filters::format);
    environment.add_filter("format", format);
    environment.add_filter(source::FORMAT, percent);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_function("raise_exception", raise_exception);
    let prepared = source::prepare(template);
    check_length(&prepared)?;
    compile(environment, prepared)
}

/// Adds the template on a thread with enough stack, and gives the environment back.
fn compile(
    mut environment: Environment<'static>,
    template: String,
) -> Result<Environment<'static>, String> {
    let compiling = std::thread::Builder::new()
        .name("template".into())
        .stack_size(COMPILER_STACK_BYTES)
        .spawn(move || {
            let compiled = environment.add_template_owned("chat", template);
            compiled.map_err(|problem| problem.to_string())?;
            Ok(environment)
        });
    let compiling = compiling.map_err(|problem| format!("no thread to compile it: {problem}"))?;
    let compiled = compiling.join();
    compiled.map_err(|_panic| "it cannot be compiled".to_owned())?
}

fn check_length(template: &str) -> Result<(), String> {
    if template.len() > MAX_TEMPLATE_BYTES {
        return Err(format!("it is longer than {MAX_TEMPLATE_BYTES} bytes"));
    }
    Ok(())
}

/// How templates refuse a conversation, such as one whose roles do not alternate.
fn raise_exception(message: &str) -> Result<Value, Error> {
    let message = guard::unmark(message).into_owned();
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The filter `indent` as Jinja has it: a line feed at the end of the text stays there.
fn indent(state: &State<'_, '_>, text: &str, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Options = (Option<Value>, Option<bool>, Option<bool>, Kwargs);
    let args = args.into_values();
    let (width, first, blank, named): Options = from_args(&args)?;
    let option = |given: Option<bool>, name: &str| -> Result<bool, Error> {
        Ok(given.or(named.get(name)?).unwrap_or(false))
    };
    let (first, blank) = (option(first, "first")?, option(blank, "blank")?);
    let width = match width {
        Some(width) => Some(width),
        None => named.get("width")?,
    };
    named.assert_all_used()?;
    let spaces = |count: usize| -> Result<String, Error> {
        pay(state, count)?;
        Ok(" ".repeat(count))
    };
    let margin = match &width {
        None => spaces(4)?,
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => spaces(width.as_usize().unwrap_or(0))?,
        },
    };
    let text = format!("{text}\n");
    let count = lines(&text).count();
    pay(state, count.saturating_mul(margin.len()))?;
    let mut indented = String::with_capacity(text.len() + count * margin.len());
    for (at, (line, _)) in lines(&text).enumerate() {
        if at > 0 {
            indented.push('\n');
        }
        if if at == 0 {
            first
        } else {
            blank || !line.is_empty()
        } {
            indented += &margin;
        }
        indented += line;
    }
    Ok(indented)
}

/// The filter `join`, paid for while it grows: a list may hold one long text many times.
fn join(
    state: &mut State<'_, '_>,
    items: Value,
    args: Rest<ValueOrKwargs>,
) -> Result<String, Error> {
    let args = args.into_values();
    let (between, attribute, named): (Option<Value>, Option<Value>, Kwargs) = from_args(&args)?;
    let between = match between {
        Some(between) => Some(between),
        None => named.get("d")?,
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => named.get("attribute")?,
    };
    named.assert_all_used()?;
    let items = match attribute {
        None => items,
        Some(attribute) => {
            let named: Kwargs = [("attribute", attribute)].into_iter().collect();
            state.apply_filter("map", &[items, named.into()])?
        }
    };
    let between = between.map_or(String::new(), |between| between.to_string());
    methods::join(state, &between, &items)
}

/// The filter `string`, paid for in the same way.
fn string(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => Ok(value),
        _ => methods::join(state, "", &Value::from(vec![value])).map(Value::from),
    }
}

/// Python's `text % values`: one value, or a tuple of them.
fn percent(state: &mut State<'_, '_>, text: Value, values: Value) -> Result<Value, Error> {
    let mut args = vec![text];
    match values.downcast_object_ref::<Tuple>() {
        Some(tuple) => args.extend(tuple.iter().cloned()),
        None => args.push(values),
    }
    paid_format(state, &args)
}

/// The filter `format`.
fn format(
    state: &mut State<'_, '_>,
    text: Value,
    values: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let mut args = vec![text];
    args.extend(values.into_values());
    paid_format(state, &args)
}

/// The engine's `format` of a text and what goes into it, paid for before it is made.
fn paid_format(state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
    if let [text, values @ ..] = args {
        methods::pay_for_fields(state, text.as_str().unwrap_or_default(), '%', values)?;
    }
    state.apply_filter(ENGINES_FORMAT, args)
}

/// The test `iterable`: all that the engine iterates over, except for nothing.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The test `sequence`: what has a length and items, as texts and mappings do in Python.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined
    )
}
