//! Folders whose matrices are already int8. Codes and scales are used bit for bit, whatever method produced them.
//!
//! | | codes | scales | zero points |
//! |---|---|---|---|
//! | compressed-tensors `int-quantized` | `X.weight` I8 `[n, k]` | `X.weight_scale` `[n, 1]`, or `[1]` for all rows | `X.weight_zero_point` I8, where not symmetric |
//! | LLM.int8 (bitsandbytes) | `X.weight` I8 `[n, k]` | `X.SCB` `[n]`, the largest weight of a row: 127 times its scale | none |
//!
//! A weight is `scale · (code − zero point)`. Activations are quantized as for every other model, by token and group;
//! LLM.int8's own 16-bit computation of outlier columns is not followed, because its result for one request depends on
//! the others in the batch.

mod method;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use super::Tensors;
use super::floats::all_finite;
use super::safetensors::{Raw, Shards, ValueType};
use crate::error::{Error, Result};
use crate::int8::matrix::CodeRows;

pub use method::Method;

/// Added to the signed codes and zero points of files.
const SIGN: u8 = 0x80;

/// The tensors of a folder, some of them matrices of codes.
pub struct Quantized {
    shards: Shards,
    method: Method,
    /// For each matrix of codes, by name: how its codes map to weights.
    matrices: BTreeMap<String, Mapping>,
}

/// The tensors that map a matrix's codes to weights. Each has one value per row, or one for all rows.
struct Mapping {
    scales: String,
    /// The divisor of the stored scales.
    divisor: f32,
    /// `None` where all zero points are 0.
    zero_points: Option<String>,
}

impl Quantized {
    /// Finds the scales of every matrix of codes and checks them.
    ///
    /// # Errors
    /// [`Error::BadModel`] naming the tensor that is missing, misshapen, or not a number.
    pub fn new(shards: Shards, method: Method) -> Result<Self> {
        let mut matrices = BTreeMap::new();
        for name in shards.names() {
            let raw = shards.raw(&name).expect("a name of its own");
            if raw.values != ValueType::I8 || companion_of(&name).is_some() {
                continue;
            }
            let bad = |problem: &str| Error::bad_model(shards.file(&name), &name, problem);
            let Some(module) = name.strip_suffix(".weight") else {
                return Err(bad("holds codes, but is not called weight"));
            };
            // Without columns a matrix could claim any number of rows.
            let &[rows @ 1..=usize::MAX, 1..=usize::MAX] = raw.shape else {
                return Err(bad("holds codes, which must be a matrix"));
            };
            let mapping = Mapping::read(&shards, method, module, rows)?;
            matrices.insert(name, mapping);
        }
        let quantized = Self {
            shards,
            method,
            matrices,
        };
        quantized.check_companions()?;
        Ok(quantized)
    }

    /// Refuses scales without a matrix of codes, which would silently be ignored.
    fn check_companions(&self) -> Result<()> {
        for name in self.shards.names() {
            let Some(module) = companion_of(&name) else {
                continue;
            };
            let matrix = format!("{module}.weight");
            if !self.matrices.contains_key(&matrix) {
                let problem = format!("belongs to {matrix}, which holds no int8 codes");
                return Err(Error::bad_model(self.shards.file(&name), &name, problem));
            }
        }
        Ok(())
    }

    fn mapping(&self, name: &str) -> Option<(&Mapping, Raw<'_>)> {
        Some((self.matrices.get(name)?, self.shards.raw(name)?))
    }
}

const SCALE: &str = ".weight_scale";
const ZERO_POINT: &str = ".weight_zero_point";
const ROW_MAXIMUM: &str = ".SCB";
const ROW_FORMAT: &str = ".weight_format";

/// The module to whose codes the tensor `name` belongs.
fn companion_of(name: &str) -> Option<&str> {
    let suffixes = [SCALE, ZERO_POINT, ROW_MAXIMUM, ROW_FORMAT];
    suffixes.iter().find_map(|suffix| name.strip_suffix(suffix))
}

impl Mapping {
    /// Finds and checks the tensors for the matrix of `module`, which has `rows` rows.
    fn read(shards: &Shards, method: Method, module: &str, rows: usize) -> Result<Self> {
        let named = |suffix: &str| format!("{module}{suffix}");
        let mapping = match method {
            Method::CompressedTensors { symmetric } => {
                let zero_points = named(ZERO_POINT);
                let needed = !symmetric || shards.raw(&zero_points).is_some();
                Self {
                    scales: named(SCALE),
                    divisor: 1.0,
                    zero_points: needed.then_some(zero_points),
                }
            }
            Method::LlmInt8 => {
                check_row_format(shards, &named(ROW_FORMAT))?;
                Self {
                    scales: named(ROW_MAXIMUM),
                    divisor: 127.0,
                    zero_points: None,
                }
            }
        };
        check_scales(shards, &mapping.scales, rows)?;
        if let Some(name) = &mapping.zero_points {
            check_zero_points(shards, name, rows)?;
        }
        Ok(mapping)
    }

    /// The scale and the zero point of row `row`, ready for use.
    fn of_row(&self, shards: &Shards, row: usize) -> (f32, i8) {
        let checked = "checked when the folder was opened";
        let raw = shards.raw(&self.scales).expect(checked);
        let ValueType::Float(float) = raw.values else {
            unreachable!("{checked}");
        };
        let mut scale = [0.0];
        float.widen(value_of_row(&raw, row, float.bytes()), &mut scale);
        let zero_point = self.zero_points.as_ref().map_or(0, |name| {
            let raw = shards.raw(name).expect(checked);
            value_of_row(&raw, row, 1)[0].cast_signed()
        });
        (scale[0] / self.divisor, zero_point)
    }
}

/// The `size` bytes of the value for row `row`.
fn value_of_row<'a>(raw: &Raw<'a>, row: usize, size: usize) -> &'a [u8] {
    let row = if raw.bytes.len() == size { 0 } else { row };
    &raw.bytes[row * size..][..size]
}

/// The tensor `name`, which must be there.
fn required<'a>(shards: &'a Shards, name: &str) -> Result<Raw<'a>> {
    let missing = "is missing: the codes beside it mean nothing without it";
    shards
        .raw(name)
        .ok_or_else(|| Error::bad_model(shards.file(name), name, missing))
}

/// Refuses scales that are negative or not finite.
fn check_scales(shards: &Shards, name: &str, rows: usize) -> Result<()> {
    let raw = required(shards, name)?;
    let bad = |problem: String| Error::bad_model(shards.file(name), name, problem);
    let ValueType::Float(float) = raw.values else {
        return Err(bad("holds integers, expected BF16, F16 or F32".into()));
    };
    check_count(shards, name, &raw, rows)?;
    for (row, bytes) in raw.bytes.chunks_exact(float.bytes()).enumerate() {
        let mut scale = [0.0f32];
        float.widen(bytes, &mut scale);
        // A code is at most 255 steps from its zero point.
        if scale[0] < 0.0 || !(scale[0] * 255.0).is_finite() {
            let expected = "expected a finite number that is not negative";
            return Err(bad(format!("row {row} is {}, {expected}", scale[0])));
        }
    }
    Ok(())
}

fn check_zero_points(shards: &Shards, name: &str, rows: usize) -> Result<()> {
    let raw = required(shards, name)?;
    if raw.values != ValueType::I8 {
        let problem = "expected I8, as the codes are";
        return Err(Error::bad_model(shards.file(name), name, problem));
    }
    check_count(shards, name, &raw, rows)
}

/// Refuses a tensor that has neither one value per row nor one for all `rows` rows.
fn check_count(shards: &Shards, name: &str, raw: &Raw<'_>, rows: usize) -> Result<()> {
    match *raw.shape {
        [] | [1] | [1, 1] => Ok(()),
        [count] | [count, 1] if count == rows => Ok(()),
        _ => {
            let problem = format!(
                "has shape {:?}, expected one value for each of {rows} rows",
                raw.shape
            );
            Err(Error::bad_model(shards.file(name), name, problem))
        }
    }
}

/// bitsandbytes can lay codes out for a GPU's registers; 0 is plain rows.
fn check_row_format(shards: &Shards, name: &str) -> Result<()> {
    match shards.raw(name) {
        Some(raw) if raw.values != ValueType::U8 || raw.bytes != [0] => {
            let problem = "must be a single 0: only codes in plain rows can be read";
            Err(Error::bad_model(shards.file(name), name, problem))
        }
        _ => Ok(()),
    }
}

impl Tensors for Quantized {
    fn file(&self, name: &str) -> PathBuf {
        self.shards.file(name)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shards.shape(name)
    }

    fn dtype(&self, name: &str) -> Option<&'static str> {
        self.shards.dtype(name)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let Some((mapping, raw)) = self.mapping(name) else {
            return self.shards.read_rows(name, rows, out);
        };
        let file = self.file(name);
        let k = super::check_rows(&file, name, raw.shape, &rows, out.len())?;
        for (row, out) in rows.zip(out.chunks_exact_mut(k)) {
            let (scale, zero_point) = mapping.of_row(&self.shards, row);
            for (value, code) in out.iter_mut().zip(&raw.bytes[row * k..]) {
                *value = (i32::from(code.cast_signed()) - i32::from(zero_point)) as f32 * scale;
            }
        }
        debug_assert!(all_finite(out), "scales have been checked");
        Ok(())
    }

    fn has_codes(&self, name: &str) -> bool {
        self.matrices.contains_key(name)
    }

    fn has_zero_points(&self, name: &str) -> bool {
        let mapping = self.matrices.get(name);
        mapping.is_some_and(|mapping| mapping.zero_points.is_some())
    }

    fn read_codes(&self, name: &str, rows: Range<usize>, out: CodeRows<'_>) -> Result<()> {
        let Some((mapping, raw)) = self.mapping(name) else {
            return Err(Error::Internal(format!("{name} is not stored as codes")));
        };
        let file = self.file(name);
        let k = super::check_rows(&file, name, raw.shape, &rows, out.codes.len())?;
        let codes = &raw.bytes[rows.start * k..rows.end * k];
        for (target, code) in out.codes.iter_mut().zip(codes) {
            *target = code ^ SIGN;
        }
        let targets = out.scales.iter_mut().zip(out.zero_points);
        for (row, (scale, zero_point)) in rows.zip(targets) {
            let (stored_scale, stored_point) = mapping.of_row(&self.shards, row);
            *scale = stored_scale;
            *zero_point = stored_point.cast_unsigned() ^ SIGN;
        }
        Ok(())
    }

    fn quantization(&self) -> Option<&'static str> {
        Some(self.method.name())
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.shards.names();
        names.retain(|name| companion_of(name).is_none());
        names
    }

    fn stored_bytes(&self) -> u64 {
        self.shards.stored_bytes()
    }
}
