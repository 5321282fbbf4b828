//! A GGUF file: configuration, tokenizer and weights in one, or in several parts.

mod config;
mod cursor;
mod format;
mod header;
mod pre_tokenizer;
mod split;
mod tokenizer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer;

use super::floats::all_finite;
use super::generation::GenerationDefaults;
use super::mapped::Mapped;
use super::names::{self, TensorName};
use super::parts::Part;
use super::{Checkpoint, Tensors};
use crate::error::{Error, Result};
use format::Format;
use header::{Header, TensorInfo};

/// Opens the file at `path`. If it is one part of a model, all parts must be beside it.
///
/// # Errors
/// [`Error::NotFound`] when it or another part is missing, [`Error::BadModel`] naming the metadata key or tensor when it is
/// inconsistent.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let maps = split::open(path)?;
    let header = split::read(&maps)?;
    let path = maps.first().map_or(path, Mapped::path).to_owned();
    let path = path.as_path();
    let config = config::translate(path, &header)?;
    let tokenizer = tokenizer::build(path, &header)?;
    let eos_token_ids = config::eos_token_ids(&header)?;
    let generation = GenerationDefaults::of_gguf(path, |key| header.number(key))?;
    let chat_template = header.text("tokenizer.chat_template")?.map(str::to_owned);
    let tensors = rename(&maps, header.tensors, &config)?;
    maps.iter().for_each(Mapped::read_ahead);
    Ok(Checkpoint {
        name: name(path),
        config_file: path.into(),
        config,
        eos_token_ids,
        generation,
        tokenizer,
        chat_template,
        tensors: Box::new(GgufTensors { maps, tensors }),
        packed: None,
    })
}

/// The file's name without its extension, and without the numbers of a part.
fn name(path: &Path) -> String {
    let whole = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Part::of(&whole).map_or(stem.into_owned(), |part| part.model.to_owned())
}

/// Reads only the tokenizer of the file at `path`, which need not contain a model.
///
/// # Errors
/// As for [`open`].
pub fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    let map = Mapped::open(path)?;
    tokenizer::build(path, &Header::read(path, &map)?)
}

/// The tensors of a model by their Hugging Face names.
struct GgufTensors {
    /// The files of the model; never empty.
    maps: Vec<Mapped>,
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    format: Format,
    shape: Vec<usize>,
    bytes: Range<usize>,
    /// The file that has these bytes.
    part: usize,
    /// The width of a head, for Q and K, whose rows are stored in a different order.
    permuted_heads: Option<usize>,
}

/// Gives every tensor its Hugging Face name, and refuses tensors that a dense Granite or Llama does not have.
fn rename(
    maps: &[Mapped],
    tensors: Vec<TensorInfo<'_>>,
    config: &Value,
) -> Result<BTreeMap<String, Stored>> {
    let size = |key: &str| config[key].as_u64().unwrap_or_default() as usize;
    let (layers, head_dim) = (size("num_hidden_layers"), size("head_dim"));
    let mut renamed = BTreeMap::new();
    for tensor in tensors {
        let file = maps[tensor.part].path();
        let bad = |problem: String| Err(Error::bad_model(file, tensor.name, problem));
        let Some((name, heads_key)) = hugging_face_name(tensor.name, layers) else {
            return bad(refusal(tensor.name));
        };
        let permuted_heads = heads_key.map(|_| head_dim);
        if let Some(key) = heads_key {
            // Rows are moved within heads, so there must be whole heads.
            let rows = size(key) * head_dim;
            if tensor.shape.len() != 2 || tensor.shape[0] != rows {
                let shape = &tensor.shape;
                return bad(format!(
                    "has shape {shape:?}; {key} and head_dim make {rows} rows"
                ));
            }
        }
        let TensorInfo {
            format,
            shape,
            bytes,
            part,
            ..
        } = tensor;
        let stored = Stored {
            format,
            shape,
            bytes,
            part,
            permuted_heads,
        };
        renamed.insert(name, stored);
    }
    Ok(renamed)
}

/// The Hugging Face name of a tensor and, for Q and K, the configuration key that counts its heads.
fn hugging_face_name(name: &str, layers: usize) -> Option<(String, Option<&'static str>)> {
    let (tensor, layer) = TensorName::from_gguf(name)?;
    if layer.is_some_and(|layer| layer >= layers) {
        return None;
    }
    let heads = match tensor {
        names::QUERY => Some("num_attention_heads"),
        names::KEY => Some("num_key_value_heads"),
        _ => None,
    };
    Some((tensor.in_layer(layer.unwrap_or(0)), heads))
}

/// Why a tensor without a Hugging Face name is refused.
fn refusal(name: &str) -> String {
    let reason = match name {
        _ if name == "rope_freqs.weight" => "scaled rotary frequencies are not supported",
        _ if name.ends_with(".bias") => "biases are not supported",
        _ if name.contains("_exps") || name.contains("gate_inp") => "experts are not supported",
        _ if name.contains(".ssm_") => "Mamba layers are not supported",
        _ => "not a tensor of a dense Granite or Llama with this number of layers",
    };
    reason.into()
}

impl GgufTensors {
    fn get(&self, name: &str) -> Result<(&Stored, &Mapped)> {
        let missing = || Error::bad_model(self.file(name), name, "there is no such tensor");
        let stored = self.tensors.get(name).ok_or_else(missing)?;
        Ok((stored, &self.maps[stored.part]))
    }
}

impl Tensors for GgufTensors {
    fn file(&self, name: &str) -> PathBuf {
        let part = self.tensors.get(name).map_or(0, |stored| stored.part);
        self.maps[part].path().into()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensors.get(name)?.shape.clone())
    }

    fn dtype(&self, name: &str) -> Option<&'static str> {
        Some(self.tensors.get(name)?.format.name())
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (stored, map) = self.get(name)?;
        let file = map.path();
        let k = super::check_rows(file, name, &stored.shape, &rows, out.len())?;
        let bytes = &map[stored.bytes.clone()];
        let row_bytes = stored.format.row_bytes(k);
        // One row at a time, so that reading a whole matrix does not take a second copy of it.
        for (row, values) in rows.clone().zip(out.chunks_exact_mut(k)) {
            let at = stored
                .permuted_heads
                .map_or(row, |head_dim| row_in_file(row, head_dim));
            stored
                .format
                .dequantize(&bytes[at * row_bytes..][..row_bytes], values);
        }
        if !all_finite(out) {
            return Err(super::not_finite(file, name, rows.start, k, out));
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

/// The position in the file of a row of Q or K.
///
/// Hugging Face rotates value `j` of a head with value `j + head_dim/2`; llama.cpp rotates neighbours, so its converter
/// interleaves the two halves of every head. Only whole rows move, so this works on quantized rows too.
const fn row_in_file(row: usize, head_dim: usize) -> usize {
    let (head, in_head) = (row / head_dim, row % head_dim);
    let (half, j) = (in_head / (head_dim / 2), in_head % (head_dim / 2));
    head * head_dim + 2 * j + half
}

#[cfg(test)]
mod tests {
    use super::row_in_file;

    #[test]
    fn the_halves_of_every_head_are_interleaved_in_the_file() {
        let places: Vec<usize> = (0..12).map(|row| row_in_file(row, 6)).collect();
        assert_eq!(places, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
