//! The keys of a terminal, from the bytes that it sends.

use std::io::{self, Read};

/// A key, or what was pasted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// Text to insert.
    Text(String),
    /// Submits the text.
    Enter,
    /// Deletes the letter before the cursor.
    Backspace,
    /// Deletes the letter under the cursor.
    Delete,
    /// Deletes the word before the cursor.
    DeleteWord,
    /// Deletes everything before the cursor.
    DeleteToStart,
    /// Deletes everything behind the cursor.
    DeleteToEnd,
    /// Moves the cursor by a letter.
    Left,
    /// The same.
    Right,
    /// Moves the cursor by a word.
    WordLeft,
    /// The same.
    WordRight,
    /// Moves the cursor to the start.
    ToStart,
    /// Moves the cursor to the end.
    ToEnd,
    /// The text before in the history.
    Up,
    /// The text after it.
    Down,
    /// Ctrl-L.
    ClearScreen,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D, which deletes the letter under the cursor if there is a text.
    EndOfInput,
}

const ESCAPE: u8 = 0x1b;
/// Longer than any sequence for a key.
const MOST_PARAMETERS: usize = 16;
/// The most bytes of one paste: as many as a request may have.
const MOST_PASTED: usize = 1 << 20;
/// The end of a paste.
const PASTE_END: &[u8] = b"\x1b[201~";

/// Reads keys.
pub struct Keys<R> {
    bytes: io::Bytes<R>,
    /// A byte that was read too many.
    kept: Option<u8>,
}

impl<R: Read> Keys<R> {
    /// Reads from a terminal in raw mode, or a buffer on top of it.
    #[expect(clippy::unbuffered_bytes, reason = "keys come one by one")]
    pub fn new(from: R) -> Self {
        Self {
            bytes: from.bytes(),
            kept: None,
        }
    }

    /// The next key; `None` at the end.
    ///
    /// # Errors
    /// When reading fails.
    pub fn next(&mut self) -> io::Result<Option<Key>> {
        loop {
            let Some(byte) = self.byte()? else {
                return Ok(None);
            };
            let key = match byte {
                b'\r' | b'\n' => Some(Key::Enter),
                0x7f | 0x08 => Some(Key::Backspace),
                0x01 => Some(Key::ToStart),
                0x02 => Some(Key::Left),
                0x03 => Some(Key::Interrupt),
                0x04 => Some(Key::EndOfInput),
                0x05 => Some(Key::ToEnd),
                0x06 => Some(Key::Right),
                0x0b => Some(Key::DeleteToEnd),
                0x0c => Some(Key::ClearScreen),
                0x0e => Some(Key::Down),
                0x10 => Some(Key::Up),
                0x15 => Some(Key::DeleteToStart),
                0x17 => Some(Key::DeleteWord),
                b'\t' => Some(Key::Text("\t".to_owned())),
                ESCAPE => self.sequence()?,
                byte if byte < b' ' => None,
                byte => self.letter(byte)?.map(|letter| Key::Text(letter.into())),
            };
            if key.is_some() {
                return Ok(key);
            }
        }
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        match self.kept.take() {
            Some(byte) => Ok(Some(byte)),
            None => self.bytes.next().transpose(),
        }
    }

    /// The letter whose UTF-8 begins with `first`; `None` if it is none.
    fn letter(&mut self, first: u8) -> io::Result<Option<char>> {
        let length = match first {
            0..0x80 => 1,
            0xc2..0xe0 => 2,
            0xe0..0xf0 => 3,
            0xf0..0xf5 => 4,
            _ => return Ok(None),
        };
        let mut bytes = vec![first];
        while bytes.len() < length {
            match self.byte()? {
                Some(byte @ 0x80..0xc0) => bytes.push(byte),
                other => {
                    self.kept = other;
                    return Ok(None);
                }
            }
        }
        let text = std::str::from_utf8(&bytes).ok();
        Ok(text.and_then(|text| text.chars().next()))
    }

    /// What follows an escape character.
    fn sequence(&mut self) -> io::Result<Option<Key>> {
        match self.byte()? {
            Some(b'[') => {}
            Some(b'O') => return Ok(self.byte()?.and_then(cursor_key)),
            Some(b'b') => return Ok(Some(Key::WordLeft)),
            Some(b'f') => return Ok(Some(Key::WordRight)),
            // Alt-Enter.
            Some(b'\r' | b'\n') => return Ok(Some(Key::Text("\n".to_owned()))),
            Some(0x7f) => return Ok(Some(Key::DeleteWord)),
            _ => return Ok(None),
        }
        let mut parameters = Vec::new();
        while let Some(byte) = self.byte()? {
            match byte {
                b'0'..=b'?' if parameters.len() < MOST_PARAMETERS => parameters.push(byte),
                b'~' => {
                    return Ok(match &*parameters {
                        b"1" | b"7" => Some(Key::ToStart),
                        b"4" | b"8" => Some(Key::ToEnd),
                        b"3" => Some(Key::Delete),
                        b"200" => Some(Key::Text(self.pasted()?)),
                        _ => None,
                    });
                }
                // With Ctrl or Alt.
                b'D' if parameters.starts_with(b"1;") => return Ok(Some(Key::WordLeft)),
                b'C' if parameters.starts_with(b"1;") => return Ok(Some(Key::WordRight)),
                byte => return Ok(cursor_key(byte)),
            }
        }
        Ok(None)
    }

    /// The text up to the end of a paste, with the line breaks of texts and without other control characters.
    fn pasted(&mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        while let Some(byte) = self.byte()? {
            bytes.push(byte);
            if bytes.ends_with(PASTE_END) {
                bytes.truncate(bytes.len() - PASTE_END.len());
                break;
            }
            if bytes.len() >= MOST_PASTED {
                break;
            }
        }
        let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
        let text = text.replace('\r', "\n");
        Ok(text
            .chars()
            .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
            .collect())
    }
}

fn cursor_key(byte: u8) -> Option<Key> {
    Some(match byte {
        b'A' => Key::Up,
        b'B' => Key::Down,
        b'C' => Key::Right,
        b'D' => Key::Left,
        b'H' => Key::ToStart,
        b'F' => Key::ToEnd,
        _ => return None,
    })
}
