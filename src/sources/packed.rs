//! A packed folder: a model that was quantized before, with its weights in the layout that the kernels read.
//!
//! It looks like a Hugging Face folder, with [`WEIGHTS`] instead of `model.safetensors`, and [`QUANTIZATION`], which
//! records how it was made. The weights are used directly from the memory map; only the header is parsed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::Dtype;
use serde_json::Value;

use super::mapped::Mapped;
use super::read_json;
use super::safetensors::read_header;
use crate::error::{Error, Result};

/// The file with the weights. Only a packed folder has one.
pub const WEIGHTS: &str = "model.int8.safetensors";

/// The file that records how the weights were made.
pub const QUANTIZATION: &str = "quantization.json";

/// The weights of a packed folder, and the record of how they were made.
#[derive(Clone)]
pub struct Packed {
    file: Arc<Mapped>,
    tensors: Arc<BTreeMap<String, Stored>>,
    /// The path of `quantization.json`.
    pub quantization_file: PathBuf,
    /// The content of `quantization.json`.
    pub quantization: Value,
}

/// The type, shape and position of one tensor.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    /// In the file; the length matches the shape.
    bytes: Range<usize>,
}

/// Whether the folder at `path` is a packed folder.
pub(crate) fn is_packed(path: &Path) -> bool {
    path.join(WEIGHTS).exists() || path.join(QUANTIZATION).exists()
}

impl Packed {
    /// The folder.
    pub fn folder(&self) -> &Path {
        self.quantization_file.parent().unwrap_or(Path::new("."))
    }

    /// Opens the folder at `path`; checks the weights' header and that the weights end where the file ends.
    ///
    /// # Errors
    /// [`Error::NotFound`] when one of the two files is missing, [`Error::BadModel`] for an inconsistent header.
    pub fn open(path: &Path) -> Result<Self> {
        let quantization_file = path.join(QUANTIZATION);
        let quantization = read_json(&quantization_file)?;
        let weights = path.join(WEIGHTS);
        let file = Mapped::open(&weights)?;
        let (data_start, infos) = read_header(&file)?;
        let mut tensors = BTreeMap::new();
        for (name, info) in infos {
            if !matches!(info.dtype, Dtype::U8 | Dtype::F32) {
                let problem = format!("is {:?}; packed weights are U8 and F32", info.dtype);
                return Err(Error::bad_model(&weights, name, problem));
            }
            let stored = Stored {
                dtype: info.dtype,
                shape: info.shape,
                bytes: data_start + info.data_offsets.0..data_start + info.data_offsets.1,
            };
            tensors.insert(name, stored);
        }
        Ok(Self {
            file: Arc::new(file),
            tensors: Arc::new(tensors),
            quantization_file,
            quantization,
        })
    }

    /// The mapped file.
    pub const fn file(&self) -> &Arc<Mapped> {
        &self.file
    }

    /// The position of the tensor `name` in the file, if there is one. It must have this type and shape.
    ///
    /// # Errors
    /// [`Error::BadModel`] if it is not.
    pub fn find(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Option<Range<usize>>> {
        match self.tensors.get(name) {
            None => Ok(None),
            Some(found) if found.dtype == dtype && found.shape == shape => {
                Ok(Some(found.bytes.clone()))
            }
            Some(found) => {
                let problem = format!(
                    "is {:?} {:?}, but the configuration asks for {dtype:?} {shape:?}",
                    found.dtype, found.shape
                );
                Err(Error::bad_model(self.file.path(), name, problem))
            }
        }
    }

    /// Like [`Packed::find`], for a tensor that must be there.
    ///
    /// # Errors
    /// [`Error::BadModel`] if it is not.
    pub fn get(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Range<usize>> {
        let problem =
            || format!("is missing; the configuration asks for a tensor of {dtype:?} {shape:?}");
        self.find(name, dtype, shape)?
            .ok_or_else(|| Error::bad_model(self.file.path(), name, problem()))
    }

    /// The bytes of the tensor `name`, if there is one.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let stored = self.tensors.get(name)?;
        Some(&self.file[stored.bytes.clone()])
    }

    /// Every tensor's name, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// How the tensor `name` is stored, if there is one: `u8` or `f32`.
    pub fn dtype(&self, name: &str) -> Option<&'static str> {
        Some(match self.tensors.get(name)?.dtype {
            Dtype::U8 => "u8",
            _ => "f32",
        })
    }

    /// Bytes the tensors take in the file.
    pub fn stored_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes.len() as u64).sum()
    }
}
