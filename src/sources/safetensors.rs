//! The weights of a Hugging Face folder: one `.safetensors` file or several.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorInfo};
use safetensors::{SafeTensorError, SafeTensors};

use super::Tensors;
use super::floats::{FloatType, all_finite};
use super::forms::Form;
use super::mapped::Mapped;
use crate::error::{Error, Result};

/// The longest header that is parsed. A 2B model's is 40 kB; the format itself allows 100 MB of JSON, which costs
/// several times that to parse before anything is known about the file.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Every tensor of one or more safetensors files, by name.
pub struct Shards {
    /// The file to name in errors about an absent tensor: the index, or the only file.
    index: PathBuf,
    files: Vec<Mapped>,
    tensors: BTreeMap<String, Stored>,
    /// Whether integer tensors are accepted, because the configuration tells what they mean.
    integers: bool,
}

/// The type of a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// Weights.
    Float(FloatType),
    /// Codes of weights.
    I8,
    /// Information about codes.
    U8,
}

/// A tensor's bytes as stored.
pub struct Raw<'a> {
    pub values: ValueType,
    pub shape: &'a [usize],
    /// Exactly the values of `shape`, little-endian.
    pub bytes: &'a [u8],
}

/// The type, shape and position of one tensor.
struct Stored {
    /// Position in `Shards::files`.
    file: usize,
    values: ValueType,
    shape: Vec<usize>,
    /// Byte range in the file; holds exactly the values of `shape`.
    bytes: Range<usize>,
}

impl Shards {
    /// Opens the single file `path`. `integers` tells whether integer tensors are accepted.
    ///
    /// # Errors
    /// [`Error::BadModel`], naming the file and tensor, for any inconsistency.
    pub fn open(path: &Path, integers: bool) -> Result<Self> {
        let mut shards = Self::empty(path, integers);
        shards.add(path)?;
        Ok(shards)
    }

    /// Opens every file that the index at `path` (`model.safetensors.index.json`) names. Only the tensors it lists are kept.
    ///
    /// # Errors
    /// [`Error::BadModel`] or [`Error::NotFound`], also when the index and its files disagree.
    pub fn open_index(path: &Path, integers: bool) -> Result<Self> {
        let weight_map = read_index(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let names = distinct(&weight_map);

        let mut shards = Self::empty(path, integers);
        for name in &names {
            let file = folder.join(name);
            if !file.exists() {
                let problem = format!("names the file {name}, which is not in the folder");
                return Err(Error::bad_model(path, "weight_map", problem));
            }
            shards.add(&file)?;
        }
        for (tensor, file) in &weight_map {
            let found = shards.tensors.get(tensor).map(|stored| names[stored.file]);
            if found != Some(file) {
                let problem = format!("is listed in {file}, which does not hold it");
                return Err(Error::bad_model(path, tensor, problem));
            }
        }
        shards
            .tensors
            .retain(|name, _| weight_map.contains_key(name));
        Ok(shards)
    }

    fn empty(index: &Path, integers: bool) -> Self {
        Self {
            index: index.into(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            integers,
        }
    }

    /// Maps one more file and adds its tensors.
    fn add(&mut self, path: &Path) -> Result<()> {
        let file = Mapped::open(path)?;
        let (data_start, infos) = read_header(&file)?;
        for (name, info) in infos {
            let values = match info.dtype {
                Dtype::BF16 => ValueType::Float(FloatType::BF16),
                Dtype::F16 => ValueType::Float(FloatType::F16),
                Dtype::F32 => ValueType::Float(FloatType::F32),
                Dtype::I8 if self.integers => ValueType::I8,
                Dtype::U8 if self.integers => ValueType::U8,
                other => {
                    let mut problem = format!("is {other:?}; weights must be BF16, F16 or F32");
                    if let Some(form) = Form::by_type(&format!("{other:?}")) {
                        problem = format!("is {other:?}: {}", form.problem());
                    }
                    return Err(Error::bad_model(path, name, problem));
                }
            };
            // The header check has shown that these are inside the file.
            let bytes = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            let stored = Stored {
                file: self.files.len(),
                values,
                shape: info.shape,
                bytes,
            };
            if let Some(other) = self.tensors.insert(name.clone(), stored) {
                let other = self.files[other.file].path().display();
                return Err(Error::bad_model(path, name, format!("is also in {other}")));
            }
        }
        file.read_ahead();
        self.files.push(file);
        Ok(())
    }

    fn get(&self, name: &str) -> Result<&Stored> {
        let missing = || Error::bad_model(&self.index, name, "there is no such tensor");
        self.tensors.get(name).ok_or_else(missing)
    }

    /// The bytes of the tensor `name` as stored, or `None` if there is no such tensor.
    pub fn raw(&self, name: &str) -> Option<Raw<'_>> {
        let stored = self.tensors.get(name)?;
        Some(Raw {
            values: stored.values,
            shape: &stored.shape,
            bytes: &self.files[stored.file][stored.bytes.clone()],
        })
    }
}

impl Tensors for Shards {
    fn file(&self, name: &str) -> PathBuf {
        match self.tensors.get(name) {
            Some(stored) => self.files[stored.file].path().into(),
            None => self.index.clone(),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensors.get(name)?.shape.clone())
    }

    fn dtype(&self, name: &str) -> Option<&'static str> {
        Some(match self.tensors.get(name)?.values {
            ValueType::Float(float) => float.name(),
            ValueType::I8 => "int8",
            ValueType::U8 => "u8",
        })
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let stored = self.get(name)?;
        let file = &self.files[stored.file];
        let k = super::check_rows(file.path(), name, &stored.shape, &rows, out.len())?;
        let ValueType::Float(float) = stored.values else {
            let problem = format!("{name} was read as numbers, but holds codes");
            return Err(Error::Internal(problem));
        };
        let row_bytes = k * float.bytes();
        let bytes = &file[stored.bytes.clone()][rows.start * row_bytes..rows.end * row_bytes];
        float.widen(bytes, out);
        if !all_finite(out) {
            return Err(super::not_finite(file.path(), name, rows.start, k, out));
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn stored_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes.len() as u64).sum()
    }
}

/// Parses and checks the header of one file: the position of the data, and every tensor's type, shape and offsets.
///
/// The `safetensors` crate guarantees that the tensors cover the data exactly, without holes or overlaps, and that each
/// takes the bytes its shape and type need.
pub fn read_header(file: &Mapped) -> Result<(usize, Vec<(String, TensorInfo)>)> {
    let bad = |field: &str, problem: String| Error::bad_model(file.path(), field, problem);
    let Some(length) = file.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
        return Err(bad("header", "the file is too short to have one".into()));
    };
    if length > MAX_HEADER_BYTES {
        let problem = format!("claims {length} bytes, more than the {MAX_HEADER_BYTES} we accept");
        return Err(bad("header", problem));
    }
    if length > file.len() as u64 - 8 {
        let problem = format!("claims {length} bytes of a file of {}", file.len());
        return Err(bad("header", problem));
    }
    let (length, metadata) = SafeTensors::read_metadata(file).map_err(|error| {
        let (field, problem) = explain(&file[8..8 + length as usize], &error);
        bad(&field, problem)
    })?;
    let infos = metadata.tensors().into_iter();
    Ok((
        8 + length,
        infos.map(|(name, info)| (name, info.clone())).collect(),
    ))
}

/// Finds the tensor that the crate's check rejected, because its error does not always name it.
fn explain(header: &[u8], error: &SafeTensorError) -> (String, String) {
    let problem = error.to_string();
    let Ok(entries) = serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(header) else {
        return ("header".into(), problem);
    };
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let info = match serde_json::from_value::<TensorInfo>(entry) {
            Ok(info) => info,
            Err(error) => return (name, error.to_string()),
        };
        let values = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let bits = values.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let (start, end) = info.data_offsets;
        let held = end
            .checked_sub(start)
            .and_then(|bytes| bytes.checked_mul(8));
        if bits.is_none() || bits != held {
            let TensorInfo { dtype, shape, .. } = info;
            let problem =
                format!("shape {shape:?} of {dtype:?} does not take bytes {start}..{end}");
            return (name, problem);
        }
    }
    match error {
        SafeTensorError::InvalidOffset(name) => (
            name.clone(),
            "leaves a hole or overlaps another tensor".into(),
        ),
        SafeTensorError::MetadataIncompleteBuffer => (
            "data".into(),
            "the tensors do not end where the file ends; is it cut off?".into(),
        ),
        _ => ("header".into(), problem),
    }
}

/// The files that the index at `path` lists, each once.
pub fn shard_names(path: &Path) -> Result<Vec<String>> {
    let weight_map = read_index(path)?;
    Ok(distinct(&weight_map).into_iter().cloned().collect())
}

/// The file names of a weight map in order, each once.
fn distinct(weight_map: &HashMap<String, String>) -> Vec<&String> {
    let names: BTreeSet<&String> = weight_map.values().collect();
    names.into_iter().collect()
}

/// Reads the `weight_map` of an index, from tensor names to file names. Rejects file names that could leave the folder.
fn read_index(path: &Path) -> Result<HashMap<String, String>> {
    let json = super::read_json(path)?;
    let Some(map) = json.get("weight_map").and_then(|map| map.as_object()) else {
        return Err(Error::bad_model(
            path,
            "weight_map",
            "missing, or not an object",
        ));
    };
    if map.is_empty() {
        return Err(Error::bad_model(path, "weight_map", "lists no tensors"));
    }
    let mut weight_map = HashMap::with_capacity(map.len());
    for (tensor, file) in map {
        let is_plain =
            |name: &&str| name.ends_with(".safetensors") && !name.contains(['/', '\\', '\0']);
        let Some(file) = file.as_str().filter(is_plain) else {
            let problem = format!("{file} is not the name of a .safetensors file beside the index");
            return Err(Error::bad_model(path, tensor, problem));
        };
        weight_map.insert(tensor.clone(), file.to_owned());
    }
    Ok(weight_map)
}
