//! Reads metadata values and tensor descriptions from untrusted bytes.

use std::path::Path;

use super::format::Format;
use crate::error::{Error, Result};

/// ggml's own limit.
const MAX_DIMENSIONS: u32 = 4;

/// A metadata value. Integers and floats are widened, since files choose different widths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Integer(i128),
    Float(f64),
    Flag(bool),
    Text(&'a str),
    Array(Array<'a>),
}

/// An array that has been validated: `bytes` holds exactly `len` well-formed elements of type `kind`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Array<'a> {
    /// The value type of every element.
    pub kind: u32,
    /// The number of elements.
    pub len: u64,
    bytes: &'a [u8],
}

/// Name, shape, format and offset of a tensor, not yet checked against the file.
pub type Described<'a> = (&'a str, Vec<usize>, Format, u64);

/// The value type of texts.
pub const TEXT: u32 = 8;
/// The value type of arrays; all others but texts are numbers of a fixed width.
const ARRAY: u32 = 9;

/// Bytes of a value of a fixed-width type.
const fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl<'a> Array<'a> {
    /// Starts at the first element.
    pub const fn cursor(&self, file: &'a Path) -> Cursor<'a> {
        Cursor::new(file, self.bytes)
    }
}

/// A position in untrusted bytes. Errors name `field`.
pub struct Cursor<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first of `bytes`, which are part of `file`.
    pub const fn new(file: &'a Path, bytes: &'a [u8]) -> Self {
        Self { file, bytes, at: 0 }
    }

    /// The number of bytes read.
    pub const fn position(&self) -> u64 {
        self.at as u64
    }

    const fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Checks that `count` items of at least `size` bytes can still follow.
    pub fn room_for(&self, count: u64, size: u64, field: &str) -> Result<()> {
        if count
            .checked_mul(size)
            .is_some_and(|bytes| bytes <= self.left())
        {
            return Ok(());
        }
        let problem = format!(
            "claims {count}, but only {} bytes of the file are left",
            self.left()
        );
        Err(Error::bad_model(self.file, field, problem))
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: u64, field: &str) -> Result<&'a [u8]> {
        self.room_for(count, 1, field)?;
        let start = self.at;
        self.at += count as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, field)?);
        Ok(array)
    }

    /// The next number of 32 bits.
    pub fn u32(&mut self, field: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// The next number of 64 bits.
    pub fn u64(&mut self, field: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// The next length and as many bytes of UTF-8.
    pub fn text(&mut self, field: &str) -> Result<&'a str> {
        let length = self.u64(field)?;
        let bytes = self.take(length, field)?;
        std::str::from_utf8(bytes).map_err(|e| Error::bad_model(self.file, field, e))
    }

    /// The next value of type `kind`.
    pub fn value(&mut self, kind: u32, key: &str) -> Result<Value<'a>> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Integer(self.u32(key)?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(shortest(f32::from_le_bytes(self.array(key)?))),
            7 => match self.array(key)? {
                [flag @ (0 | 1)] => Value::Flag(flag == 1),
                [other] => {
                    let problem = format!("{other} is neither true (1) nor false (0)");
                    return Err(Error::bad_model(self.file, key, problem));
                }
            },
            TEXT => Value::Text(self.text(key)?),
            ARRAY => Value::Array(self.list(key)?),
            10 => Value::Integer(self.u64(key)?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array(key)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => {
                let problem = format!("has the unknown value type {kind}");
                return Err(Error::bad_model(self.file, key, problem));
            }
        })
    }

    /// Validates an array. Arrays of arrays are refused: no model uses them, and this way nothing recurses.
    fn list(&mut self, key: &str) -> Result<Array<'a>> {
        let kind = self.u32(key)?;
        let len = self.u64(key)?;
        let start = self.at;
        match width(kind) {
            Some(width) => {
                self.room_for(len, width, key)?;
                self.take(len * width, key)?;
            }
            None if kind == TEXT => {
                self.room_for(len, 8, key)?;
                for _ in 0..len {
                    self.text(key)?;
                }
            }
            None => {
                let problem = format!("is a list of the unsupported value type {kind}");
                return Err(Error::bad_model(self.file, key, problem));
            }
        }
        let bytes = &self.bytes[start..self.at];
        Ok(Array { kind, len, bytes })
    }

    /// The next tensor description.
    pub fn tensor(&mut self, field: &str) -> Result<Described<'a>> {
        let name = self.text(field)?;
        let file = self.file;
        let bad = |problem: String| Err(Error::bad_model(file, name, problem));
        let dimensions = self.u32(name)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return bad(format!(
                "has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}"
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            match usize::try_from(self.u64(name)?) {
                Ok(n) if n > 0 => shape.push(n),
                _ => return bad("has a dimension of zero, or one beyond memory".into()),
            }
        }
        // GGUF writes the fastest-moving dimension first.
        shape.reverse();
        let kind = self.u32(name)?;
        let Some(format) = Format::from_ggml(kind) else {
            return bad(Format::refusal(kind));
        };
        Ok((name, shape, format, self.u64(name)?))
    }
}

/// The f64 with the same shortest decimal form: a file that stores 0.22 as f32 means 0.22, not 0.2199999988079071.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| value.into())
}
