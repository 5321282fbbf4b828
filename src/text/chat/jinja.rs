//! Sets up the engine that runs templates, so that it behaves like Jinja in transformers and stays within bounds.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, escape_formatter};

use super::fuel::{self, pay};
use super::guard;
use super::methods::{self, lines};
use super::python;
use super::source;

/// The most instructions of the template engine for one conversation, where 64 bytes of produced text count as one.
/// Granite's templates take about 60 per message. This is enough for the ten thousand messages that a body can hold,
/// and limits the text to 64 MiB. A template that needs more is in an endless loop.
const FUEL: u64 = 1_000_000;
/// The deepest recursion of macros. Templates of models do not use recursion at all.
const MAX_RECURSION: usize = 50;

/// The engine's own filter `format`, under a name that a template cannot write.
const ENGINES_FORMAT: &str = "engine's format";

/// The most bytes of a template, because the engine counts lines and columns in sixteen bits. Templates of models have
/// at most half of that.
const MAX_TEMPLATE_BYTES: usize = u16::MAX as usize;
/// The most slices in a template; published ones have a few. The engine evaluates slices lazily, so that each one in a chain
/// of them slows down every later step: ten thousand took a minute.
const MAX_SLICES: usize = 200;

/// The stack for compiling a template. The engine's compiler recurses for every operator in a row, and for every `elif`, with
/// some kilobytes each, and the longest template can have five thousand of those. Unused stack takes no memory.
const COMPILER_STACK_BYTES: usize = 256 << 20;

/// Returns an environment in which `template` is compiled under the name `chat`.
///
/// # Errors
/// The problem with the template, in one line.
pub fn environment(template: &str) -> Result<Environment<'static>, String> {
    check_length(template)?;
    let mut environment = Environment::new();
    // The same settings as in transformers.
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|problem| problem.to_string())?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_name| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|output, state, value| {
        fuel::walk(state, value)?;
        escape_formatter(output, state, &python::with_floats(value))
    });
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("indent", indent);
    environment.add_filter("join", join);
    environment.add_filter("string", string);
    // This filter writes its whole output before it is paid for, and no template of a model uses it.
    environment.remove_filter("pprint");
    environment.add_filter(ENGINES_FORMAT, minijinja::filters::format);
    environment.add_filter("format", format);
    environment.add_filter(source::FORMAT, percent);
    environment.add_filter(source::KEPT, fuel::kept);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_function("raise_exception", raise_exception);
    let prepared = source::prepare(template)?;
    check_length(&prepared)?;
    compile(environment, prepared)
}

/// Compiles the template on a thread with enough stack.
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
    if slices(template) > MAX_SLICES {
        return Err(format!("it has more than {MAX_SLICES} slices"));
    }
    Ok(())
}

/// An upper bound on the slices in a template, such as `[1:]`: pairs of brackets with a colon and nothing nested in them.
fn slices(template: &str) -> usize {
    let after_brackets = template.split('[').skip(1);
    let is_slice = |rest: &&str| {
        let inside = rest.split(['{', '}', '\'', '"']).next().unwrap_or_default();
        inside
            .split_once(']')
            .is_some_and(|(inside, _)| inside.contains(':'))
    };
    after_brackets.filter(is_slice).count()
}

/// Templates call this to refuse a conversation, for example if its roles do not alternate.
fn raise_exception(message: &str) -> Result<Value, Error> {
    let message = guard::unmark(message).into_owned();
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Jinja's filter `indent`: unlike the engine's, it keeps a line feed at the end of the text.
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

/// The filter `join`. The text is paid for while it grows, because a list may contain one long text many times.
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
    fuel::join(state, &between, &items)
}

/// The filter `string`, paid for while the text grows.
fn string(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => Ok(value),
        _ => fuel::join(state, "", &Value::from(vec![value])).map(Value::from),
    }
}

/// Python's `text % values`, where `values` is one value or a tuple.
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

/// The engine's `format`. The result is paid for before it is created.
fn paid_format(state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
    if let [text, values @ ..] = args {
        fuel::pay_for_fields(state, text.as_str().unwrap_or_default(), '%', values)?;
    }
    state.apply_filter(ENGINES_FORMAT, args)
}

/// The test `iterable`: everything over which the engine iterates, except `none`.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The test `sequence`: values with a length and items, which in Python include strings and mappings.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined
    )
}
