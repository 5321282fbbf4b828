//! A text with a cursor in it.

use unicode_segmentation::UnicodeSegmentation;

use super::keys::Key;

/// A text that is being edited.
#[derive(Debug, Default)]
pub struct Line {
    text: String,
    /// In bytes; always between two of what people see as letters.
    cursor: usize,
}

impl Line {
    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text before the cursor.
    pub fn before(&self) -> &str {
        &self.text[..self.cursor]
    }

    fn after(&self) -> &str {
        &self.text[self.cursor..]
    }

    /// Sets the text, with the cursor at its end.
    pub fn set(&mut self, text: String) {
        self.cursor = text.len();
        self.text = text;
    }

    /// Inserts a text at the cursor.
    pub fn insert(&mut self, text: &str) {
        self.text.insert_str(self.cursor, text);
        self.cursor += text.len();
    }

    /// Does what a key does to a text; the other keys do nothing.
    pub fn press(&mut self, key: Key) {
        match key {
            Key::Text(text) => self.insert(&text),
            Key::Left => self.cursor = self.left(),
            Key::Right => self.cursor = self.right(),
            Key::WordLeft => self.cursor = self.word_left(),
            Key::WordRight => self.cursor = self.word_right(),
            Key::ToStart => self.cursor = 0,
            Key::ToEnd => self.cursor = self.text.len(),
            Key::Backspace => self.delete(self.left(), self.cursor),
            Key::Delete | Key::EndOfInput => self.delete(self.cursor, self.right()),
            Key::DeleteWord => self.delete(self.word_left(), self.cursor),
            Key::DeleteToStart => self.delete(0, self.cursor),
            Key::DeleteToEnd => self.delete(self.cursor, self.text.len()),
            Key::Enter | Key::Up | Key::Down | Key::ClearScreen | Key::Interrupt => {}
        }
    }

    fn delete(&mut self, from: usize, to: usize) {
        self.text.drain(from..to);
        self.cursor = from;
    }

    fn left(&self) -> usize {
        let last = self.before().graphemes(true).next_back();
        self.cursor - last.map_or(0, str::len)
    }

    fn right(&self) -> usize {
        let next = self.after().graphemes(true).next();
        self.cursor + next.map_or(0, str::len)
    }

    fn word_left(&self) -> usize {
        let words = self.before().split_word_bound_indices();
        let mut words = words.rev().skip_while(|(_, word)| word.trim().is_empty());
        words.next().map_or(0, |(at, _)| at)
    }

    fn word_right(&self) -> usize {
        let words = self.after().split_word_bound_indices();
        let mut words = words.skip_while(|(_, word)| word.trim().is_empty());
        let end = words.next().map(|(at, word)| at + word.len());
        self.cursor + end.unwrap_or(self.after().len())
    }
}
