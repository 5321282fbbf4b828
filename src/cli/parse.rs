//! Turns arguments and environment variables into [`Cli`], or into one line that says what is wrong.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, FromArgMatches};

use super::Cli;
use crate::logging::has_colors;

/// The prefix of all environment variables of this program.
const PREFIX: &str = "MICROGRANITE_";

/// `build.rs` reads this one. It may still be set when the program runs, as in CI.
const BUILD: &str = "MICROGRANITE_BUILD";

/// Why no command runs.
#[derive(Debug)]
pub enum Ending {
    /// Help or version text for standard output.
    Shown(String),
    /// A usage error for standard error.
    BadUsage(String),
}

/// Parses `arguments`, the first of which is the program's name, and `variables`.
///
/// # Errors
/// The [`Ending`] for `--help`, `--version` and every usage error.
pub fn parse(
    arguments: &[OsString],
    variables: &BTreeMap<OsString, OsString>,
) -> Result<Cli, Ending> {
    let command = without_empty(Cli::command(), variables);
    check_names(&command, variables).map_err(Ending::BadUsage)?;
    command
        .clone()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| ending(&error, &command, arguments, variables))
}

/// An empty variable counts as unset: manifests and compose files often leave them empty.
fn without_empty(command: Command, variables: &BTreeMap<OsString, OsString>) -> Command {
    let is_empty = |arg: &Arg| {
        let value = arg.get_env().and_then(|name| variables.get(name));
        value.is_some_and(|value| value.is_empty())
    };
    command
        .mut_args(|arg| match is_empty(&arg) {
            true => arg.env(None::<&'static str>),
            false => arg,
        })
        .mut_subcommands(|command| without_empty(command, variables))
}

/// The arguments of all commands.
fn all_arguments(command: &Command) -> Vec<&Arg> {
    let of_others = command.get_subcommands().flat_map(all_arguments);
    command.get_arguments().chain(of_others).collect()
}

/// The environment variables of all commands.
fn known(command: &Command) -> Vec<&OsStr> {
    let arguments = all_arguments(command).into_iter();
    arguments.filter_map(Arg::get_env).collect()
}

/// Refuses unknown variables with our prefix: a misspelt one would otherwise be ignored silently.
fn check_names(command: &Command, variables: &BTreeMap<OsString, OsString>) -> Result<(), String> {
    let known = known(command);
    for (name, value) in variables {
        let (Some(text), Some(value)) = (name.to_str(), value.to_str()) else {
            continue;
        };
        let is_ours = text.starts_with(PREFIX) && text != BUILD && !value.is_empty();
        if !is_ours || known.contains(&name.as_os_str()) || is_service_link(text, value) {
            continue;
        }
        let nearest = known
            .iter()
            .filter_map(|known| known.to_str())
            .min_by_key(|known| strsim::damerau_levenshtein(known, text));
        return Err(format!(
            "{text} is no variable of this program; the nearest is {}",
            nearest.unwrap_or_default()
        ));
    }
    Ok(())
}

/// Whether Kubernetes created this variable for a Service whose name begins with our prefix: `…_SERVICE_HOST`,
/// `…_SERVICE_PORT`, `…_SERVICE_PORT_HTTP`, `…_PORT=tcp://…`, `…_PORT_8080_TCP_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_port = |text: &str| {
        let mut words = text.split('_');
        let number = words.next().unwrap_or_default();
        number.bytes().all(|byte| byte.is_ascii_digit())
            && matches!(words.next(), Some("TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && value.contains("://")
        || name
            .split_once("_PORT_")
            .is_some_and(|(_, port)| is_port(port))
}

fn ending(
    error: &clap::Error,
    command: &Command,
    arguments: &[OsString],
    variables: &BTreeMap<OsString, OsString>,
) -> Ending {
    let styled = error.render();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Ending::Shown(match has_colors(&std::io::stdout()) {
                true => styled.ansi().to_string(),
                false => styled.to_string(),
            })
        }
        ErrorKind::InvalidUtf8 => Ending::BadUsage(not_text(command, arguments, variables)),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Ending::BadUsage(styled.to_string()),
        _ => {
            let line = one_line(&styled.to_string());
            Ending::BadUsage(
                match variable_at_fault(error, command, arguments, variables) {
                    Some(name) => format!("{name}: {line}"),
                    None => line,
                },
            )
        }
    }
}

/// Names the variable or argument that is not UTF-8, which clap does not do. Names of files may be any bytes.
fn not_text(
    command: &Command,
    arguments: &[OsString],
    variables: &BTreeMap<OsString, OsString>,
) -> String {
    let is_file = |arg: &Arg| arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
    let is_text = |name: &OsStr| variables.get(name).is_none_or(|v| v.to_str().is_some());
    let mut others = all_arguments(command)
        .into_iter()
        .filter(|arg| !is_file(arg));
    let variable = others.find_map(|arg| arg.get_env().filter(|name| !is_text(name)));
    let typed = arguments
        .iter()
        .find(|argument| argument.to_str().is_none());
    match (variable, typed) {
        (Some(name), _) => format!("{}: its value is not text in UTF-8", name.to_string_lossy()),
        (None, Some(argument)) => format!("'{}' is not text in UTF-8", argument.to_string_lossy()),
        (None, None) => "an argument is not text in UTF-8".to_owned(),
    }
}

/// clap's message without the usage, in one line.
fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        let part = part.strip_prefix("tip: ").unwrap_or(part);
        if !line.is_empty() {
            line += if line.ends_with(':') { " " } else { "; " };
        }
        line += part;
    }
    line
}

/// The environment variable that a bad value came from, if it was not an argument.
fn variable_at_fault(
    error: &clap::Error,
    command: &Command,
    arguments: &[OsString],
    variables: &BTreeMap<OsString, OsString>,
) -> Option<String> {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    // clap writes it as `--threads <N>`.
    let flag = flag.split([' ', '=']).next()?;
    let long = flag.strip_prefix("--")?;
    let is_typed = arguments.iter().any(|argument| {
        let text = argument.to_string_lossy();
        text.strip_prefix(flag)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    });
    let subcommands = command.get_subcommands().flat_map(Command::get_arguments);
    let name = command
        .get_arguments()
        .chain(subcommands)
        .find(|arg| arg.get_long() == Some(long))?
        .get_env()?;
    (!is_typed && variables.contains_key(name)).then(|| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str) -> Result<(), String> {
        let variables = BTreeMap::from([(name.into(), value.into())]);
        check_names(&Cli::command(), &variables)
    }

    #[test]
    fn a_misspelt_variable_is_refused_with_the_nearest_name() {
        for (name, nearest) in [
            ("MICROGRANITE_TREADS", "MICROGRANITE_THREADS"),
            ("MICROGRANITE_KVCACHE", "MICROGRANITE_KV_CACHE"),
            ("MICROGRANITE_LOGFORMAT", "MICROGRANITE_LOG_FORMAT"),
        ] {
            let problem = check(name, "2").unwrap_err();
            assert!(
                problem.starts_with(name) && problem.ends_with(nearest),
                "{problem}"
            );
            assert_eq!(check(name, ""), Ok(()), "what is empty is not set");
        }
        assert_eq!(check("MICROGRANITE_THREADS", "many"), Ok(()));
        assert_eq!(check("OTHER_TREADS", "2"), Ok(()));
        assert_eq!(check("MICROGRANITE_BUILD", "4334d21d5be3"), Ok(()));
    }

    #[test]
    fn what_kubernetes_sets_for_a_service_of_our_name_is_no_misspelling() {
        for (name, value) in [
            ("MICROGRANITE_SERVICE_HOST", "10.0.0.7"),
            ("MICROGRANITE_SERVICE_PORT", "8080"),
            ("MICROGRANITE_SERVICE_PORT_HTTP", "8080"),
            ("MICROGRANITE_PORT", "tcp://10.0.0.7:8080"),
            ("MICROGRANITE_PORT_8080_TCP", "tcp://10.0.0.7:8080"),
            ("MICROGRANITE_PORT_8080_TCP_ADDR", "10.0.0.7"),
            ("MICROGRANITE_CANARY_SERVICE_HOST", "10.0.0.7"),
        ] {
            assert_eq!(check(name, value), Ok(()), "{name}");
        }
        assert!(check("MICROGRANITE_PORT", "8080").is_err());
    }

    #[test]
    fn what_is_not_text_is_named_and_names_of_files_may_be_anything() {
        use std::os::unix::ffi::OsStrExt;
        let bytes = OsStr::from_bytes(b"\xff");
        let of = |arguments: &[&OsStr], name: &str| {
            let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
            let file = ("MICROGRANITE_CHAT_TEMPLATE".into(), bytes.into());
            let variables = BTreeMap::from([file, (name.into(), bytes.into())]);
            not_text(&Cli::command(), &arguments, &variables)
        };
        let serve = ["microgranite".as_ref(), "serve".as_ref()];
        for name in [
            "MICROGRANITE_THREADS",
            "MICROGRANITE_LOG",
            "MICROGRANITE_MODEL",
        ] {
            let text = of(&serve, name);
            assert_eq!(text, format!("{name}: its value is not text in UTF-8"));
        }
        let typed = [&serve[..], &["--threads".as_ref(), bytes]].concat();
        let text = of(&typed, "MICROGRANITE_API_KEY_FILE");
        assert_eq!(text, "'\u{fffd}' is not text in UTF-8");
    }

    #[test]
    fn what_clap_says_becomes_one_line() {
        let typed = |arguments: &[&str], variables: &[(&str, &str)]| {
            let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
            let set = variables
                .iter()
                .map(|(name, value)| (name.into(), value.into()));
            match parse(&arguments, &set.collect()) {
                Err(Ending::BadUsage(text)) => text,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            typed(&["microgranite", "serve", "--treads", "2"], &[]),
            "unexpected argument '--treads' found; a similar argument exists: '--threads'"
        );
        assert_eq!(
            typed(&["microgranite", "quantize", "demo"], &[]),
            "the following required arguments were not provided: --output <DIR>"
        );
    }
}
