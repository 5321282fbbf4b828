//! Reads texts from the terminal: several lines, keys that edit, and the texts that were typed before, also in earlier
//! conversations.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustyline::completion::Completer;
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Cmd, Helper, KeyCode, KeyEvent, Modifiers};

use crate::error::{Error, Result};

/// What stands before a text.
const PROMPT: &str = ">>> ";
/// What a text of several lines stands between.
const QUOTES: &str = "\"\"\"";
/// Entries of the history that are kept: months of use.
const MOST_ENTRIES: usize = 1000;
/// Bytes of its longest entry: pages of text are kept somewhere else.
const MOST_BYTES: usize = 4096;

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// A text or a command.
    Text(String),
    /// Nothing but spaces.
    Nothing,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// Reads texts from the terminal.
pub struct Editor {
    lines: rustyline::Editor<Lines, FileHistory>,
    /// Where the history is kept, if it can be.
    history: Option<PathBuf>,
}

impl Editor {
    /// Reads from standard input, with the history of earlier conversations.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no terminal to read from.
    pub fn new() -> Result<Self> {
        Self::with_history(history_file(|name| {
            std::env::var_os(name).map(PathBuf::from)
        }))
    }

    fn with_history(mut history: Option<PathBuf>) -> Result<Self> {
        let mut lines = rustyline::Editor::new().map_err(failed)?;
        lines.set_helper(Some(Lines));
        lines.set_max_history_size(MOST_ENTRIES).map_err(failed)?;
        // A text that begins with a space is for nobody's eyes, as in shells.
        lines.set_history_ignore_space(true);
        lines.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        if let Some(file) = &history
            && let Err(problem) = open_history(&mut lines, file)
        {
            tracing::warn!(file = %file.display(), %problem, "texts are not kept for later conversations");
            history = None;
        }
        Ok(Self { lines, history })
    }

    /// Waits for a text.
    ///
    /// # Errors
    /// [`Error::Io`] if the terminal fails.
    pub fn read(&mut self) -> Result<Typed> {
        let line = match self.lines.readline(PROMPT) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => return Ok(Typed::Interrupt),
            Err(ReadlineError::Eof) => return Ok(Typed::End),
            // Bytes that are no text.
            Err(ReadlineError::Io(problem)) if problem.kind() == io::ErrorKind::InvalidData => {
                return Ok(Typed::Nothing);
            }
            Err(problem) => return Err(failed(problem)),
        };
        let text = unquoted(&line);
        if text.is_empty() {
            return Ok(Typed::Nothing);
        }
        self.keep(&line);
        Ok(Typed::Text(text))
    }

    /// Adds to the history. What is no longer possible is no reason not to chat.
    fn keep(&mut self, line: &str) {
        let is_new =
            line.len() <= MOST_BYTES && self.lines.add_history_entry(line).unwrap_or(false);
        if let (true, Some(file)) = (is_new, &self.history) {
            let _not_kept = self.lines.append_history(file);
        }
    }
}

fn failed(problem: ReadlineError) -> Error {
    let problem = match problem {
        ReadlineError::Io(problem) => problem,
        other => io::Error::other(other),
    };
    Error::io(Path::new("terminal"), problem)
}

/// The file of the history by the rules of XDG: state that should outlive the session, but is no setting.
fn history_file(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME");
    let state = state.or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.map(|state| state.join("microgranite/history"))
}

/// Reads the history, in a folder that only its owner can read.
fn open_history(
    lines: &mut rustyline::Editor<Lines, FileHistory>,
    file: &Path,
) -> rustyline::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    match lines.load_history(file) {
        Err(ReadlineError::Io(problem)) if problem.kind() == io::ErrorKind::NotFound => {
            lines.save_history(file)
        }
        loaded => loaded,
    }
}

/// Tells which texts go on in another line.
struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_open(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Helper for Lines {}

impl Completer for Lines {
    type Candidate = String;
}

impl Hinter for Lines {
    type Hint = String;
}

impl Highlighter for Lines {}

/// Whether more lines belong to `text`.
fn is_open(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(rest) => !rest.trim_end().ends_with(QUOTES),
        None => text.ends_with('\\'),
    }
}

/// The text without what makes it one of several lines.
fn unquoted(line: &str) -> String {
    let text = line.trim();
    let inner = text.strip_prefix(QUOTES);
    let inner = inner.and_then(|text| text.strip_suffix(QUOTES));
    match inner {
        Some(inner) => inner.trim().to_owned(),
        None => text.replace("\\\n", "\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustyline::history::History;

    use super::*;

    #[test]
    fn the_history_is_in_the_state_folder_and_its_owner_s_alone() {
        let home = tempfile::tempdir().unwrap();
        let at = |state: Option<PathBuf>| {
            let lookup = |name: &str| match name {
                "XDG_STATE_HOME" => state.clone(),
                _ => Some(home.path().to_owned()),
            };
            history_file(lookup).unwrap()
        };
        assert_eq!(at(Some("/s".into())), Path::new("/s/microgranite/history"));
        let kept = at(Some("relative".into()));
        assert_eq!(kept, home.path().join(".local/state/microgranite/history"));
        assert_eq!(history_file(|_| None), None);

        let mut editor = Editor::with_history(Some(kept.clone())).unwrap();
        for text in ["one", "two\nlines", "two\nlines", " secret", ""] {
            editor.keep(text);
        }
        editor.keep(&"x".repeat(MOST_BYTES + 1));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&kept), 0o600);
        assert_eq!(mode(kept.parent().unwrap()), 0o700);
        let again = Editor::with_history(Some(kept)).unwrap();
        let entries: Vec<&String> = again.lines.history().iter().collect();
        assert_eq!(entries, ["one", "two\nlines"]);
    }

    #[test]
    fn a_history_that_cannot_be_kept_or_read_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let damaged = folder.path().join("history");
        std::fs::write(&damaged, b"\xff\xfe\n").unwrap();
        for file in [damaged.clone(), "/proc/no/history".into()] {
            let mut editor = Editor::with_history(Some(file)).unwrap();
            editor.keep("one");
            assert_eq!(editor.lines.history().len(), 1);
        }
        assert_eq!(std::fs::read(&damaged).unwrap(), b"\xff\xfe\n");
        // A long one is cut.
        let long = folder.path().join("long");
        let mut editor = Editor::with_history(Some(long.clone())).unwrap();
        for n in 0..=MOST_ENTRIES {
            editor.lines.add_history_entry(n.to_string()).unwrap();
        }
        editor.keep("last");
        let text = std::fs::read_to_string(&long).unwrap();
        assert!(text.ends_with("\nlast\n"), "{text:?}");
        assert!(text.lines().count() <= MOST_ENTRIES + 1, "{text:?}");
    }

    #[test]
    fn quotes_and_backslashes_let_a_text_have_several_lines() {
        for (typed, text) in [
            ("one line", Some("one line")),
            ("\"\"\"", None),
            ("\"\"\"one\ntwo", None),
            ("\"\"\"one\ntwo\n\"\"\"", Some("one\ntwo")),
            ("  \"\"\"one\"\"\" ", Some("one")),
            ("one\\", None),
            ("one\\\ntwo", Some("one\ntwo")),
            ("\"\"\"\"\"\"", Some("")),
            ("say \"\"\"", Some("say \"\"\"")),
        ] {
            let whole = (!is_open(typed)).then(|| unquoted(typed));
            assert_eq!(whole.as_deref(), text, "{typed:?}");
        }
    }
}
