//! Parses the header of a GGUF file: untrusted bytes, read without allocating more than what has been seen.
//!
//! Strings and arrays stay in the file; every count and length is compared with the number of bytes left before it is
//! used. (candle's own reader copies arrays into 32 bytes per element and lets later keys replace earlier ones.)

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

use super::cursor::{Cursor, Described, TEXT, Value};
use super::format::Format;
use crate::error::{Error, Result};

/// Where tensor data starts and how it is aligned, unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Key length, value type, and one byte of value.
const SMALLEST_ENTRY: u64 = 8 + 4 + 1;
/// Name length, number of dimensions, one dimension, type, and offset.
const SMALLEST_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;
/// The largest number of metadata entries, and of tensors: an entry takes more memory here than in the file, and the
/// deepest model has a few thousand tensors.
pub const MOST: u64 = 1 << 16;

/// A checked header that borrows from the file.
#[derive(Debug)]
pub struct Header<'a> {
    file: &'a Path,
    values: BTreeMap<&'a str, Value<'a>>,
    /// Every tensor, in the file's order.
    pub tensors: Vec<TensorInfo<'a>>,
}

/// One tensor as described by the header; its bytes are inside the file.
#[derive(Debug)]
pub struct TensorInfo<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// Rows first, as everywhere except in GGUF.
    pub shape: Vec<usize>,
    /// How values are stored.
    pub format: Format,
    /// The byte range in the file.
    pub bytes: Range<usize>,
    /// The file that it is in, of a model in several parts: from 0 on.
    pub part: usize,
}

impl<'a> Header<'a> {
    /// Reads the header of `bytes`, the whole of `file`.
    ///
    /// # Errors
    /// [`Error::BadModel`] naming the key or tensor.
    pub fn read(file: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor::new(file, bytes);
        if cursor.take(4, "magic")? != b"GGUF" {
            return Err(Error::bad_model(file, "magic", "this is not a GGUF file"));
        }
        let version = cursor.u32("version")?;
        if !matches!(version, 2 | 3) {
            let hint = if version.swap_bytes() <= 3 {
                " (the file is big-endian)"
            } else {
                ""
            };
            let problem = format!("{version} is not supported, only 2 and 3{hint}");
            return Err(Error::bad_model(file, "version", problem));
        }
        let tensor_count = cursor.u64("tensor count")?;
        let entry_count = cursor.u64("metadata count")?;
        cursor.room_for(entry_count, SMALLEST_ENTRY, "metadata count")?;
        cursor.room_for(tensor_count, SMALLEST_TENSOR, "tensor count")?;
        for (count, field) in [
            (entry_count, "metadata count"),
            (tensor_count, "tensor count"),
        ] {
            if count > MOST {
                let problem = format!("{count} is more than the {MOST} we accept");
                return Err(Error::bad_model(file, field, problem));
            }
        }

        let mut header = Self {
            file,
            values: BTreeMap::new(),
            tensors: Vec::new(),
        };
        for i in 0..entry_count {
            let key = cursor.text(&format!("metadata entry {i}"))?;
            let kind = cursor.u32(key)?;
            let value = cursor.value(kind, key)?;
            // Some files repeat a key with the same value; with different values there is no right reading.
            if header
                .values
                .insert(key, value)
                .is_some_and(|earlier| earlier != value)
            {
                return Err(Error::bad_model(
                    file,
                    key,
                    "appears twice with different values",
                ));
            }
        }
        let mut names = HashSet::new();
        let mut described = Vec::new();
        for i in 0..tensor_count {
            let tensor = cursor.tensor(&format!("tensor {i}"))?;
            if !names.insert(tensor.0) {
                return Err(Error::bad_model(file, tensor.0, "appears twice"));
            }
            described.push(tensor);
        }
        header.place(described, cursor.position(), bytes.len() as u64)?;
        Ok(header)
    }

    /// Turns offsets into byte ranges and checks that these are aligned, inside the file and disjoint.
    fn place(
        &mut self,
        described: Vec<Described<'a>>,
        header_end: u64,
        file_end: u64,
    ) -> Result<()> {
        let alignment = match self.count("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            // The specification requires a multiple of 8. That also keeps every block at an even address.
            Some(n) if n > 0 && n % 8 == 0 => n as u64,
            Some(n) => {
                let problem = format!("{n} is not a multiple of 8");
                return Err(Error::bad_model(self.file, "general.alignment", problem));
            }
        };
        let data_start = header_end.checked_next_multiple_of(alignment);
        for (name, shape, format, offset) in described {
            let bad = |problem: String| Err(Error::bad_model(self.file, name, problem));
            if offset % alignment != 0 {
                return bad(format!(
                    "starts at {offset}, which is not a multiple of {alignment}"
                ));
            }
            let Some(size) = format.bytes_for(&shape) else {
                let (name, block) = (format.name(), format.block_values());
                return bad(format!(
                    "rows of {name} hold a multiple of {block} values, shape {shape:?} does not fit"
                ));
            };
            let start = data_start.and_then(|data_start| data_start.checked_add(offset));
            let end = start.and_then(|start| start.checked_add(size));
            match (start, end) {
                (Some(start), Some(end)) if end <= file_end => self.tensors.push(TensorInfo {
                    name,
                    shape,
                    format,
                    bytes: start as usize..end as usize,
                    part: 0,
                }),
                _ => {
                    return bad(format!(
                        "takes {size} bytes at offset {offset}, past the end of the file; is it cut off?"
                    ));
                }
            }
        }
        let mut by_start: Vec<&TensorInfo<'_>> = self.tensors.iter().collect();
        by_start.sort_by_key(|tensor| tensor.bytes.start);
        for pair in by_start.windows(2) {
            if pair[0].bytes.end > pair[1].bytes.start {
                let problem = format!("overlaps {}", pair[0].name);
                return Err(Error::bad_model(self.file, pair[1].name, problem));
            }
        }
        Ok(())
    }

    /// The error for a missing key.
    pub fn missing(&self, key: &str) -> Error {
        Error::bad_model(self.file, key, "is missing")
    }

    fn wrong_type(&self, key: &str, expected: &str) -> Error {
        Error::bad_model(self.file, key, format!("must be {expected}"))
    }

    /// A text, if `key` is present.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong_type(key, "a text")),
        }
    }

    /// A non-negative number that fits 32 bits, as every count, size and token id does.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Integer(n)) if (0..1 << 32).contains(n) => Ok(Some(*n as usize)),
            Some(_) => Err(self.wrong_type(key, "a whole number below 2^32")),
        }
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(n)) if n.is_finite() => Ok(Some(*n)),
            Some(Value::Integer(n)) => Ok(Some(*n as f64)),
            Some(_) => Err(self.wrong_type(key, "a finite number")),
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong_type(key, "true or false")),
        }
    }

    /// A count that may also be given once per layer, if all layers agree.
    pub fn count_in_every_layer(&self, key: &str) -> Result<Option<usize>> {
        if !matches!(self.values.get(key), Some(Value::Array(_))) {
            return self.count(key);
        }
        let counts = self.counts(key)?.unwrap_or_default();
        match counts.split_first() {
            Some((first, rest)) if rest.iter().all(|n| n == first) => Ok(Some(*first as usize)),
            _ => Err(self.wrong_type(key, "the same in every layer")),
        }
    }

    /// A count for each of `layers` layers, given once for all or as a list. `layers` is bounded by the file.
    pub fn count_by_layer(&self, key: &str, layers: usize) -> Result<Option<Vec<usize>>> {
        if !matches!(self.values.get(key), Some(Value::Array(_))) {
            return Ok(self.count(key)?.map(|count| vec![count; layers]));
        }
        let counts = self.counts(key)?.unwrap_or_default();
        if counts.len() != layers {
            let problem = format!("has {} entries for {layers} layers", counts.len());
            return Err(Error::bad_model(self.file, key, problem));
        }
        Ok(Some(counts.into_iter().map(|n| n as usize).collect()))
    }

    /// A list of whole numbers below 2^32.
    pub fn counts(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let Some(Value::Array(array)) = self.values.get(key) else {
            let present = self.values.contains_key(key);
            return if present {
                Err(self.wrong_type(key, "a list"))
            } else {
                Ok(None)
            };
        };
        let mut cursor = array.cursor(self.file);
        let mut counts = Vec::new();
        for _ in 0..array.len {
            match cursor.value(array.kind, key)? {
                Value::Integer(n) if (0..1 << 32).contains(&n) => counts.push(n as u32),
                _ => return Err(self.wrong_type(key, "a list of whole numbers below 2^32")),
            }
        }
        Ok(Some(counts))
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.kind == TEXT => {
                let mut cursor = array.cursor(self.file);
                (0..array.len)
                    .map(|_| cursor.text(key))
                    .collect::<Result<_>>()
                    .map(Some)
            }
            Some(_) => Err(self.wrong_type(key, "a list of texts")),
        }
    }
}
