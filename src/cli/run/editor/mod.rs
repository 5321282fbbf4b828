//! Edits a text on the terminal: keys come in, and the text is drawn again after each.
//!
//! The crates that do this change the features of half of all other dependencies, and bring up to twenty of their own.

mod draw;
mod history;
mod keys;
mod line;

use std::io::{self, BufReader, Read, Stdin, Write};
use std::path::{Path, PathBuf};

use rustix::termios::{self, OptionalActions, SpecialCodeIndex, Termios};

use crate::error::{Error, Result};
use draw::Drawing;
use history::History;
use keys::{Key, Keys};
use line::Line;

/// What a text of several lines stands between.
const QUOTES: &str = "\"\"\"";
/// Lets the terminal mark what is pasted, so that its line breaks do not submit the text.
const MARK_PASTES: &str = "\u{1b}[?2004h";
const MARK_PASTES_NO_MORE: &str = "\u{1b}[?2004l";

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
    keys: Keys<BufReader<Stdin>>,
    history: History,
}

impl Editor {
    /// Reads from standard input, with the history of earlier conversations.
    pub fn new() -> Self {
        let file = history::file(|name| std::env::var_os(name).map(PathBuf::from));
        Self {
            keys: Keys::new(BufReader::new(io::stdin())),
            history: History::open(file),
        }
    }

    /// Waits for a text.
    ///
    /// # Errors
    /// [`Error::Io`] if the terminal fails.
    pub fn read(&mut self) -> Result<Typed> {
        let raw = Raw::enter().map_err(failed)?;
        let columns = || {
            let size = termios::tcgetwinsize(io::stdout());
            size.map_or(0, |size| usize::from(size.ws_col))
        };
        let typed = edit(
            &mut self.keys,
            &mut self.history,
            io::stdout().lock(),
            columns,
        );
        drop(raw);
        let typed = typed.map_err(failed)?;
        let Some(line) = typed else {
            return Ok(Typed::End);
        };
        let Some(line) = line else {
            return Ok(Typed::Interrupt);
        };
        let text = unquoted(&line);
        if text.is_empty() {
            return Ok(Typed::Nothing);
        }
        self.history.add(line);
        Ok(Typed::Text(text))
    }
}

fn failed(problem: io::Error) -> Error {
    Error::io(Path::new("terminal"), problem)
}

/// Reads keys until a text is complete. `None` is the end, and `Some(None)` an interrupt.
fn edit<R: Read>(
    keys: &mut Keys<R>,
    history: &mut History,
    mut out: impl Write,
    columns: impl Fn() -> usize,
) -> io::Result<Option<Option<String>>> {
    let (mut line, mut drawing) = (Line::default(), Drawing::default());
    out.write_all(MARK_PASTES.as_bytes())?;
    let ended = loop {
        drawing.draw(&mut out, &line, columns())?;
        let Some(key) = keys.next()? else {
            break None;
        };
        match key {
            Key::Enter if !is_open(line.text()) => break Some(Some(line.text().to_owned())),
            Key::Enter => line.insert("\n"),
            Key::Interrupt => break Some(None),
            // Only where there is nothing to delete.
            Key::EndOfInput if line.text().is_empty() => break None,
            Key::Up => history.older(&mut line),
            Key::Down => history.newer(&mut line),
            Key::ClearScreen => {
                out.write_all(b"\x1b[H\x1b[2J")?;
                drawing = Drawing::default();
            }
            key => line.press(key),
        }
    };
    history.leave();
    line.press(Key::ToEnd);
    drawing.draw(&mut out, &line, columns())?;
    out.write_all(MARK_PASTES_NO_MORE.as_bytes())?;
    out.write_all(b"\r\n")?;
    out.flush()?;
    Ok(ended)
}

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

/// The terminal gives every key at once and shows none, until this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        // What was typed while an answer came is kept.
        termios::tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _gone = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of these bytes, one text after the other.
    fn typed(history: &mut History, bytes: &str) -> Vec<Option<Option<String>>> {
        let mut keys = Keys::new(bytes.as_bytes());
        let mut all = Vec::new();
        loop {
            let one = edit(&mut keys, history, Vec::new(), || 80).unwrap();
            if let Some(Some(text)) = &one {
                history.add(text.clone());
            }
            let is_over = one.is_none();
            all.push(one);
            if is_over {
                return all;
            }
        }
    }

    fn text(text: &str) -> Option<Option<String>> {
        Some(Some(text.to_owned()))
    }

    #[test]
    fn keys_edit_the_text() {
        let mut history = History::open(None);
        for (keys, expected) in [
            ("abc\r", "abc"),
            ("ac\u{1b}[Db\r", "abc"),
            ("bc\u{1b}[Ha\r", "abc"),
            ("abx\u{7f}c\r", "abc"),
            ("one two\u{17}three\r", "one three"),
            ("one two\u{1}\u{b}new\r", "new"),
            ("one two\u{15}new\r", "new"),
            ("ab\u{1b}[D\u{1b}[3~c\r", "ac"),
            ("ab\u{1b}[D\u{4}c\r", "ac"),
            ("two\u{1b}bone \u{5}!\r", "one two!"),
            // A letter of two code points is one for people.
            ("e\u{301}x\u{7f}\u{7f}y\r", "y"),
            ("grüße\u{7f}\u{7f}\u{7f}ün\r", "grün"),
            ("a\u{1b}[200~b\rc\nd\u{1b}[201~e\r", "ab\nc\nde"),
            ("\u{1b}[5~\u{1b}[1;2P\u{1b}Oxa\u{0}\u{7}b\r", "ab"),
            ("\"\"\"a\rb\"\"\"\r", "\"\"\"a\nb\"\"\""),
            ("a\\\rb\r", "a\\\nb"),
        ] {
            let found = typed(&mut history, keys);
            assert_eq!(found[0], text(expected), "{keys:?}");
        }
        assert_eq!(
            typed(&mut history, "ab\u{3}c\u{4}\r\u{4}"),
            [Some(None), text("c"), None]
        );
        // Bytes that are no text do no harm.
        let mut keys = Keys::new(&b"a\xff\xc3b\xe2\x82\r"[..]);
        let found = edit(&mut keys, &mut history, Vec::new(), || 0).unwrap();
        assert_eq!(found, text("ab"));
    }

    #[test]
    fn older_texts_come_back_and_what_is_being_typed_is_kept() {
        let mut history = History::open(None);
        let up = "\u{1b}[A";
        let down = "\u{1b}[B";
        typed(&mut history, "one\rtwo\rtwo\r hidden\r");
        let keys = format!("dra{up}{up}{up}!\rx{up}{down}y\r{up}{up}{down}{down}\r");
        let found = typed(&mut history, &keys);
        assert_eq!(found, [text("one!"), text("xy"), text(""), None]);
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
