//! Draws a text with its cursor, over as many rows as it takes.

use std::io::{self, Write};

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use super::line::Line;

/// What stands before the first line of a text.
const PROMPT: &str = ">>> ";
/// What stands before the others.
const MORE: &str = "... ";
/// The width of terminals that do not say it.
const USUAL_COLUMNS: usize = 80;
/// Fewer would have no room for a letter behind the prompt.
const LEAST_COLUMNS: usize = 8;

/// Where the drawn text is, so that the next one replaces it.
#[derive(Debug, Default)]
pub struct Drawing {
    /// Rows from its first one to the cursor.
    rows: usize,
}

impl Drawing {
    /// Draws `line` in place of what was drawn before.
    ///
    /// # Errors
    /// When writing fails.
    pub fn draw(&mut self, out: &mut impl Write, line: &Line, columns: usize) -> io::Result<()> {
        let columns = match columns {
            0 => USUAL_COLUMNS,
            columns => columns.max(LEAST_COLUMNS),
        };
        let (row, column) = place(line.before(), columns);
        let (last_row, _) = place(line.text(), columns);
        let mut picture = String::new();
        if self.rows > 0 {
            picture += &format!("\x1b[{}A", self.rows);
        }
        picture += "\r\x1b[J";
        picture += &paint(line.text(), columns);
        if last_row > row {
            picture += &format!("\x1b[{}A", last_row - row);
        }
        picture += "\r";
        if column > 0 {
            picture += &format!("\x1b[{column}C");
        }
        self.rows = row;
        out.write_all(picture.as_bytes())?;
        out.flush()
    }
}

/// A letter as it is drawn, and its columns.
fn drawn(letter: &str) -> (&str, usize) {
    match letter {
        "\t" => (" ", 1),
        letter => (letter, letter.width()),
    }
}

/// The row and column behind `text`.
fn place(text: &str, columns: usize) -> (usize, usize) {
    let (mut row, mut column) = (0, PROMPT.len());
    for letter in text.graphemes(true) {
        if letter == "\n" {
            (row, column) = (row + 1, MORE.len());
            continue;
        }
        let (_, width) = drawn(letter);
        if column + width > columns {
            (row, column) = (row + 1, 0);
        }
        column += width;
        if column == columns {
            (row, column) = (row + 1, 0);
        }
    }
    (row, column)
}

/// The text with its prompts. Every row is ended here, because terminals differ in what they do behind the last column.
fn paint(text: &str, columns: usize) -> String {
    let (mut picture, mut column) = (PROMPT.to_owned(), PROMPT.len());
    for letter in text.graphemes(true) {
        if letter == "\n" {
            picture += "\r\n";
            picture += MORE;
            column = MORE.len();
            continue;
        }
        let (letter, width) = drawn(letter);
        if column + width > columns {
            picture += "\r\n";
            column = 0;
        }
        picture += letter;
        column += width;
        if column == columns {
            picture += "\r\n";
            column = 0;
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_painted_ends_where_the_cursor_is_said_to_be() {
        for (text, columns, at) in [
            ("", 80, (0, 4)),
            ("abc", 80, (0, 7)),
            ("abcdef", 10, (1, 0)),
            ("abcdefg", 10, (1, 1)),
            ("a\nb", 10, (1, 5)),
            ("abcdef\nb", 10, (2, 5)),
            // Two columns each; the last one does not fit the row.
            ("abcd漢字", 9, (1, 4)),
            ("e\u{301}", 80, (0, 5)),
        ] {
            assert_eq!(place(text, columns), at, "{text:?}");
            let picture = paint(text, columns);
            let (rows, last) = (picture.matches('\n').count(), picture.rsplit("\r\n").next());
            assert_eq!((rows, last.unwrap().width()), at, "{picture:?}");
        }
    }

    #[test]
    fn a_drawing_replaces_the_one_before() {
        let (mut drawing, mut out, mut line) = (Drawing::default(), Vec::new(), Line::default());
        line.set("one\ntwo".to_owned());
        drawing.draw(&mut out, &line, 80).unwrap();
        line.set("x".to_owned());
        drawing.draw(&mut out, &line, 80).unwrap();
        let expected = "\r\x1b[J>>> one\r\n... two\r\x1b[7C\x1b[1A\r\x1b[J>>> x\r\x1b[5C";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
