//! Thoughts and text on the terminal.

use std::io::{self, Write};
use std::path::Path;

use anstream::AutoStream;
use anstyle::{Effects, Style};

use super::answer::Part;
use crate::error::{Error, Result};
use crate::logging::has_colors;

const DIM: Style = Style::new().effects(Effects::DIMMED);

/// What was printed last of the present answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Thought,
    Text,
}

/// The terminal.
pub struct Screen<W = AutoStream<io::Stdout>> {
    out: W,
    /// Whether thoughts can be told from text by how they look; otherwise a heading says which is which.
    has_styles: bool,
    last: Last,
    ends_line: bool,
}

impl Screen {
    /// Standard output. Styles are left out if it or the user, with `NO_COLOR`, wants none.
    pub fn new() -> Self {
        let has_styles = has_colors(&io::stdout());
        Self::on(anstream::stdout(), has_styles)
    }
}

impl<W: Write> Screen<W> {
    const fn on(out: W, has_styles: bool) -> Self {
        Self {
            out,
            has_styles,
            last: Last::Nothing,
            ends_line: true,
        }
    }

    /// Prints a line that is not the model's.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be printed.
    pub fn note(&mut self, text: &str) -> Result<()> {
        self.put(text, true)?;
        self.put("\n", false)?;
        self.flush()
    }

    /// Prints a part of an answer.
    ///
    /// # Errors
    /// The same.
    pub fn show(&mut self, part: &Part) -> Result<()> {
        let (text, now) = match part {
            Part::Thought(text) => (text, Last::Thought),
            Part::Text(text) => (text, Last::Text),
            Part::Finish(_) | Part::Usage { .. } => return Ok(()),
        };
        if self.last != now {
            match (self.last, now) {
                (Last::Nothing, Last::Text) => {}
                (before, _) => {
                    if before != Last::Nothing {
                        self.end_line()?;
                        self.put("\n", false)?;
                    }
                    if !self.has_styles {
                        let heading = match now {
                            Last::Text => "Answer:\n",
                            _ => "Thoughts:\n",
                        };
                        self.put(heading, false)?;
                    }
                }
            }
            self.last = now;
        }
        self.put(&printable(text), now == Last::Thought)?;
        self.flush()
    }

    /// Ends an answer, and leaves a line empty below it.
    ///
    /// # Errors
    /// The same.
    pub fn end_answer(&mut self) -> Result<()> {
        self.last = Last::Nothing;
        self.end_line()?;
        self.put("\n", false)?;
        self.flush()
    }

    fn end_line(&mut self) -> Result<()> {
        match self.ends_line {
            true => Ok(()),
            false => self.put("\n", false),
        }
    }

    fn put(&mut self, text: &str, is_dim: bool) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.ends_line = text.ends_with('\n');
        let written = match is_dim {
            true => write!(self.out, "{DIM}{text}{DIM:#}"),
            false => write!(self.out, "{text}"),
        };
        written.map_err(failed)
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(failed)
    }
}

fn failed(problem: io::Error) -> Error {
    Error::io(Path::new("standard output"), problem)
}

/// The text without control characters: a model may write any, and some of them make a terminal do things.
fn printable(text: &str) -> String {
    let is_shown = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(is_shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(parts: &[Part], has_styles: bool) -> String {
        let mut screen = Screen::on(Vec::new(), has_styles);
        for part in parts {
            screen.show(part).unwrap();
        }
        screen.end_answer().unwrap();
        String::from_utf8(screen.out).unwrap()
    }

    #[test]
    fn thoughts_are_dim_or_have_a_heading() {
        let answer = [
            Part::Thought("Say ".into()),
            Part::Thought("hi.".into()),
            Part::Text("Hi!".into()),
        ];
        let dim = "\u{1b}[2mSay \u{1b}[0m\u{1b}[2mhi.\u{1b}[0m\n\nHi!\n\n";
        assert_eq!(shown(&answer, true), dim);
        let plain = strip(&shown(&answer, false));
        assert_eq!(plain, "Thoughts:\nSay hi.\n\nAnswer:\nHi!\n\n");
        assert_eq!(shown(&answer[2..], false), "Hi!\n\n");
    }

    fn strip(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_model_cannot_command_the_terminal() {
        let text = "a\u{1b}]0;title\u{7}b\u{9b}2Jc\r\n\td";
        assert_eq!(
            shown(&[Part::Text(text.into())], true),
            "a]0;titleb2Jc\n\td\n\n"
        );
    }
}
