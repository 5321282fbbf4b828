//! The commands of a conversation: lines that begin with a slash.

use crate::cli::serve::generation::Thinking;

/// What can be typed.
pub const HELP: &str = "\
In a conversation:
  /help              this list
  /bye               ends (as does Ctrl-D)
  /clear             forgets what was said
  /system            shows what the model is told before the conversation
  /system TEXT       tells it something else; /system - tells it nothing
  /think on|off|low  whether the model thinks before it answers; /think auto leaves it to the model
  \"\"\"                begins a text of several lines, which ends with \"\"\"; a line that ends with \\ goes on as well
  Ctrl-C             stops an answer
";

/// The names of the commands.
const NAMES: [&str; 5] = ["help", "bye", "clear", "system", "think"];
/// Typing errors in a name that are still recognised.
const MOST_ERRORS: usize = 2;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Lists the commands.
    Help,
    /// Ends the conversation.
    Bye,
    /// Forgets what was said.
    Clear,
    /// Shows what the model is told beforehand.
    ShowSystem,
    /// Sets it.
    System(Option<String>),
    /// Sets whether the model thinks.
    Think(Option<Thinking>),
}

/// The command in `text`, if it is one, or what is wrong with it. A path such as `/etc/hosts` is a text.
pub fn parse(text: &str) -> Option<Result<Command, String>> {
    let command = text.strip_prefix('/')?;
    let (name, rest) = command
        .split_once(char::is_whitespace)
        .unwrap_or((command, ""));
    if name.contains('/') {
        return None;
    }
    let rest = rest.trim();
    Some(match (name, rest) {
        ("help" | "?", "") => Ok(Command::Help),
        ("bye" | "exit" | "quit", "") => Ok(Command::Bye),
        ("clear", "") => Ok(Command::Clear),
        ("system", "") => Ok(Command::ShowSystem),
        ("system", "-") => Ok(Command::System(None)),
        ("system", text) => Ok(Command::System(Some(text.to_owned()))),
        ("think", "on") => Ok(Command::Think(Some(Thinking::On))),
        ("think", "off") => Ok(Command::Think(Some(Thinking::Off))),
        ("think", "low") => Ok(Command::Think(Some(Thinking::Low))),
        ("think", "auto") => Ok(Command::Think(None)),
        ("think", _) => Err("write /think on, /think off, /think low or /think auto".to_owned()),
        ("help" | "?" | "bye" | "exit" | "quit" | "clear", _) => {
            Err(format!("write /{name} alone"))
        }
        (name, _) => Err(unknown(name)),
    })
}

fn unknown(name: &str) -> String {
    let distance = |known: &&str| strsim::damerau_levenshtein(known, name);
    let nearest = NAMES.into_iter().min_by_key(distance);
    match nearest.filter(|known| distance(known) <= MOST_ERRORS) {
        Some(known) => format!("/{name} is no command; did you mean /{known}?"),
        None => format!("/{name} is no command; /help lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_lines_that_begin_with_a_slash() {
        let text = |text: &str| Ok(Command::System(Some(text.to_owned())));
        for (typed, command) in [
            ("/bye", Ok(Command::Bye)),
            ("/?", Ok(Command::Help)),
            ("/clear ", Ok(Command::Clear)),
            ("/system", Ok(Command::ShowSystem)),
            ("/system  Answer\nin verse. ", text("Answer\nin verse.")),
            ("/system -", Ok(Command::System(None))),
            ("/think low", Ok(Command::Think(Some(Thinking::Low)))),
            ("/think auto", Ok(Command::Think(None))),
            (
                "/clera",
                Err("/clera is no command; did you mean /clear?".to_owned()),
            ),
            (
                "/weather",
                Err("/weather is no command; /help lists them".to_owned()),
            ),
            ("/bye now", Err("write /bye alone".to_owned())),
        ] {
            assert_eq!(parse(typed), Some(command), "{typed}");
        }
        assert!(parse("/think").unwrap().is_err());
        for text in ["hello", "what is /bye?", "/etc/hosts has which lines?", ""] {
            assert_eq!(parse(text), None, "{text}");
        }
        for name in NAMES {
            assert!(HELP.contains(&format!("\n  /{name}")), "{name}");
        }
    }
}
