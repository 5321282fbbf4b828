//! The tensors of a GGUF file, presented as those of a Hugging Face checkpoint: by their names, in their shapes, with
//! their rows in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde_json::Value;

use super::format::Format;
use super::header::TensorInfo;
use crate::error::{Error, Result};
use crate::sources::floats::all_finite;
use crate::sources::mapped::Mapped;
use crate::sources::names::{self, TensorName, in_gguf};
use crate::sources::{Tensors, check_rows, not_finite};

/// The tensors of a model by their Hugging Face names.
pub struct GgufTensors {
    /// The files of the model; never empty.
    maps: Vec<Mapped>,
    tensors: BTreeMap<String, Presented>,
}

/// A Hugging Face tensor: the rows of one tensor of the file, or of several that take turns.
pub struct Presented {
    shape: Vec<usize>,
    /// Tensors of the same shape; never empty.
    pieces: Vec<Piece>,
    /// How many rows of one piece come before those of the next: of gate and up all rows, of experts those of one.
    turn: usize,
    /// The width of a head, for Q and K, whose rows are stored in a different order.
    permuted_heads: Option<usize>,
}

/// A tensor as it is stored.
struct Piece {
    format: Format,
    /// The file that has these bytes.
    file: usize,
    bytes: Range<usize>,
}

/// Gives every tensor of a model's files its place in a Hugging Face tensor, and refuses those that a model of this
/// configuration does not have.
///
/// # Errors
/// [`Error::BadModel`] naming the file and its tensor.
pub fn present(
    maps: &[Mapped],
    tensors: Vec<TensorInfo<'_>>,
    config: &Value,
) -> Result<BTreeMap<String, Presented>> {
    let mut left: BTreeMap<&str, TensorInfo<'_>> =
        tensors.into_iter().map(|info| (info.name, info)).collect();
    let mut presented = BTreeMap::new();
    for (tensor, layer) in possible(config) {
        let mut infos = Vec::new();
        let mut missing = None;
        for name in tensor.pieces_in_gguf(layer) {
            match left.remove(name.as_str()) {
                Some(info) => infos.push(info),
                None => missing = Some(name),
            }
        }
        match (&infos[..], missing) {
            // Whether a tensor may be absent is checked with the shapes of all.
            ([], _) => continue,
            ([there, ..], Some(name)) => {
                let problem = format!("is missing, but there is {}", there.name);
                return Err(Error::bad_model(maps[there.part].path(), name, problem));
            }
            _ => {}
        }
        let joined = Presented::join(maps, tensor, infos, config)?;
        presented.insert(tensor.in_layer(layer), joined);
    }
    match left.first_key_value() {
        Some((name, info)) => {
            let file = maps[info.part].path();
            Err(Error::bad_model(file, name, refusal(name, config)))
        }
        None => Ok(presented),
    }
}

fn size(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap_or_default() as usize
}

fn has_mamba(config: &Value, layer: usize) -> bool {
    config["layer_types"][layer] == "mamba"
}

/// The tensors that a model of this configuration can have, each with its layer.
fn possible(config: &Value) -> impl Iterator<Item = (TensorName, usize)> + '_ {
    let experts = size(config, "num_local_experts");
    let feed_forward = match (experts, config.get("shared_intermediate_size")) {
        (0, None) => in_gguf::DENSE,
        (0, Some(_)) => in_gguf::DENSE_OF_HYBRID,
        _ => in_gguf::EXPERTS,
    };
    let of_layer = move |layer| {
        let mixer = match has_mamba(config, layer) {
            true => in_gguf::MAMBA,
            false => in_gguf::ATTENTION,
        };
        let tensors = [in_gguf::NORMS, mixer, feed_forward].into_iter().flatten();
        tensors.map(move |tensor| (*tensor, layer))
    };
    let of_model = in_gguf::MODEL.iter().map(|tensor| (*tensor, 0));
    of_model.chain((0..size(config, "num_hidden_layers")).flat_map(of_layer))
}

/// Why a tensor that a model of this configuration does not have is refused.
fn refusal(name: &str, config: &Value) -> String {
    let layers = size(config, "num_hidden_layers");
    let in_layer = name.strip_prefix("blk.");
    let in_layer = in_layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    let is_any = |signs: &[&str]| signs.iter().any(|sign| name.contains(sign));
    let reason = match in_layer {
        _ if name == "rope_freqs.weight" => "scaled rotary frequencies are not supported",
        Some(layer) if layer >= layers => "is not a tensor of a model with this number of layers",
        Some(_)
            if is_any(&["_exps.", "_shexp.", "gate_inp."])
                && size(config, "num_local_experts") == 0 =>
        {
            "belongs to experts, but the metadata has none"
        }
        Some(layer) if is_any(&[".ssm_"]) && !has_mamba(config, layer) => {
            "belongs to a Mamba-2 layer, but by the metadata this layer has attention"
        }
        Some(layer) if is_any(&[".attn_"]) && has_mamba(config, layer) => {
            "belongs to attention, but by the metadata this is a Mamba-2 layer"
        }
        _ if name.ends_with(".bias") => "biases are not supported",
        _ => "is not a tensor of a Granite or Llama",
    };
    reason.into()
}

impl Presented {
    /// Makes a tensor of the rows of those that hold it in the files; there is at least one.
    fn join(
        maps: &[Mapped],
        tensor: TensorName,
        infos: Vec<TensorInfo<'_>>,
        config: &Value,
    ) -> Result<Self> {
        let bad = |info: &TensorInfo<'_>, problem: String| {
            Err(Error::bad_model(maps[info.part].path(), info.name, problem))
        };
        let TensorInfo { name, shape, .. } = &infos[0];
        for other in &infos[1..] {
            if shape.len() < 2 || other.shape != *shape {
                let problem = format!("has shape {:?}, but {name} has {shape:?}", other.shape);
                return bad(other, problem);
            }
        }
        let heads = match tensor {
            names::QUERY => Some("num_attention_heads"),
            names::KEY => Some("num_key_value_heads"),
            _ => None,
        };
        let head_dim = size(config, "head_dim");
        if let Some(heads) = heads {
            // Rows are moved within heads, so there must be whole heads.
            let rows = size(config, heads) * head_dim;
            if shape.len() != 2 || shape[0] != rows {
                let problem = format!("has shape {shape:?}; {heads} and head_dim make {rows} rows");
                return bad(&infos[0], problem);
            }
        }
        let mut shape = hugging_face_shape(tensor, shape);
        let turn = match shape.as_mut_slice() {
            [.., rows, _] if infos.len() > 1 => {
                let turn = *rows;
                *rows *= infos.len();
                turn
            }
            [rows @ .., _] => rows.iter().product(),
            [] => 1,
        };
        let piece = |info: TensorInfo<'_>| Piece {
            format: info.format,
            file: info.part,
            bytes: info.bytes,
        };
        Ok(Self {
            shape,
            pieces: infos.into_iter().map(piece).collect(),
            turn,
            permuted_heads: heads.map(|_| head_dim),
        })
    }

    /// The piece that holds a row, and the row's position in it.
    fn find(&self, row: usize) -> (&Piece, usize) {
        let (turn, in_turn) = (row / self.turn, row % self.turn);
        let (round, piece) = (turn / self.pieces.len(), turn % self.pieces.len());
        let row = round * self.turn + in_turn;
        let at = self
            .permuted_heads
            .map_or(row, |head_dim| row_in_file(row, head_dim));
        (&self.pieces[piece], at)
    }
}

/// The shape in a checkpoint of Hugging Face of a tensor that has `shape` in the file. Only dimensions of 1 differ.
fn hugging_face_shape(tensor: TensorName, shape: &[usize]) -> Vec<usize> {
    match (tensor, shape) {
        (names::MAMBA_CONVOLUTION, &[channels, taps]) => vec![channels, 1, taps],
        (names::MAMBA_RATE | names::MAMBA_SKIP | names::MAMBA_NORM, &[len, 1] | &[1, len]) => {
            vec![len]
        }
        _ => shape.to_vec(),
    }
}

impl GgufTensors {
    /// The tensors that were found in the files.
    pub const fn new(maps: Vec<Mapped>, tensors: BTreeMap<String, Presented>) -> Self {
        Self { maps, tensors }
    }
}

impl Tensors for GgufTensors {
    fn file(&self, name: &str) -> PathBuf {
        let piece = self.tensors.get(name).map(|tensor| &tensor.pieces[0]);
        self.maps[piece.map_or(0, |piece| piece.file)].path().into()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensors.get(name)?.shape.clone())
    }

    fn dtype(&self, name: &str) -> Option<&'static str> {
        let (first, others) = self.tensors.get(name)?.pieces.split_first()?;
        match others.iter().all(|piece| piece.format == first.format) {
            true => Some(first.format.name()),
            false => Some("mixed"),
        }
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let missing = || Error::bad_model(self.file(name), name, "there is no such tensor");
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        let k = check_rows(&self.file(name), name, &tensor.shape, &rows, out.len())?;
        // One row at a time, so that reading a whole matrix does not take a second copy of it.
        for (row, values) in rows.clone().zip(out.chunks_exact_mut(k)) {
            let (piece, at) = tensor.find(row);
            let map = &self.maps[piece.file];
            let row_bytes = piece.format.row_bytes(k);
            let bytes = &map[piece.bytes.clone()][at * row_bytes..][..row_bytes];
            piece.format.dequantize(bytes, values);
            if !all_finite(values) {
                return Err(not_finite(map.path(), name, row, k, values));
            }
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn stored_bytes(&self) -> u64 {
        let pieces = self.tensors.values().flat_map(|tensor| &tensor.pieces);
        pieces.map(|piece| piece.bytes.len() as u64).sum()
    }
}

/// The position in the file of a row of Q or K.
///
/// Hugging Face rotates value `j` of a head with value `j + head_dim/2`; llama.cpp rotates neighbours, so its converter
/// interleaves the two halves of every head, also where nothing is rotated. Only whole rows move, so this works on
/// quantized rows too.
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
