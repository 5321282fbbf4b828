//! The checkpoint's tensor names and shapes in one table, and which of their rows make which packed columns.

use std::ops::Range;

use super::ModelConfig;
use super::config::Architecture;
use crate::error::{Error, Result};
use crate::int8::PANEL;
use crate::sources::{CodeRows, Tensors};

pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const HEAD: &str = "lm_head.weight";
pub const FINAL_NORM: &str = "model.norm.weight";

/// Rows `first ..` of a tensor.
#[derive(Clone)]
pub struct Rows {
    name: String,
    first: usize,
    count: usize,
}

/// Rows of a tensor that are neighbouring columns of a panel.
struct Piece<'a> {
    tensor: &'a str,
    rows: Range<usize>,
    /// The first of those columns.
    at: usize,
}

/// Which tensor rows make the columns of a packed matrix.
pub enum Columns {
    /// One after the other.
    Stacked(Vec<Rows>),
    /// 32 of the first and 32 of the second to a panel.
    Interleaved(Rows, Rows),
}

/// Where gate, up and down are found: three tensors, or a fused pair in the hybrid architecture.
pub fn feed_forward_rows(config: &ModelConfig, name: &dyn Fn(&str) -> String) -> (Columns, Rows) {
    let (width, hidden) = (config.intermediate_size, config.hidden_size);
    match config.architecture {
        Architecture::Granite | Architecture::Llama => (
            Columns::Interleaved(
                Rows::all(name("mlp.gate_proj"), width),
                Rows::all(name("mlp.up_proj"), width),
            ),
            Rows::all(name("mlp.down_proj"), hidden),
        ),
        Architecture::GraniteHybridDense => {
            let gate = Rows::all(name("shared_mlp.input_linear"), width);
            let up = Rows {
                first: width,
                ..gate.clone()
            };
            (
                Columns::Interleaved(gate, up),
                Rows::all(name("shared_mlp.output_linear"), hidden),
            )
        }
    }
}

/// Every tensor of the architecture with its shape.
fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    );
    let mut list = vec![
        (EMBEDDING.to_owned(), vec![config.vocab_size, hidden]),
        (FINAL_NORM.to_owned(), vec![hidden]),
    ];
    if !config.tie_word_embeddings {
        list.push((HEAD.to_owned(), vec![config.vocab_size, hidden]));
    }
    let feed_forward: &[(&str, Vec<usize>)] = match config.architecture {
        Architecture::Granite | Architecture::Llama => &[
            ("mlp.gate_proj", vec![width, hidden]),
            ("mlp.up_proj", vec![width, hidden]),
            ("mlp.down_proj", vec![hidden, width]),
        ],
        Architecture::GraniteHybridDense => &[
            ("shared_mlp.input_linear", vec![2 * width, hidden]),
            ("shared_mlp.output_linear", vec![hidden, width]),
        ],
    };
    for layer in 0..config.num_layers {
        let attention = [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
        ];
        let all = attention.iter().chain(feed_forward);
        list.extend(
            all.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape.clone())),
        );
    }
    list
}

/// Refuses a tensor that is missing or has another shape than the configuration says.
pub fn check_shape(tensors: &dyn Tensors, name: &str, expected: &[usize]) -> Result<()> {
    let problem = match tensors.shape(name) {
        Some(found) if found == expected => return Ok(()),
        Some(found) => format!("has shape {found:?}, but the configuration asks for {expected:?}"),
        None => format!("is missing; the configuration asks for a tensor of shape {expected:?}"),
    };
    Err(Error::bad_model(tensors.file(name), name, problem))
}

/// Refuses a checkpoint that lacks a tensor, has one of another shape, or has one that this architecture does not use
/// (a bias that we would silently drop would make wrong text).
pub fn check_shapes(config: &ModelConfig, tensors: &dyn Tensors) -> Result<()> {
    let expected = expected(config);
    for (name, shape) in &expected {
        check_shape(tensors, name, shape)?;
    }
    let known: std::collections::HashSet<&str> =
        expected.iter().map(|(name, _)| name.as_str()).collect();
    // Some exporters write the tied head a second time, and old ones the rotary frequencies; both are derived data.
    let derived = |name: &str| name == HEAD || name.ends_with(".rotary_emb.inv_freq");
    match tensors
        .names()
        .iter()
        .find(|name| !known.contains(name.as_str()) && !derived(name))
    {
        Some(name) => {
            let problem = format!(
                "is not part of {:?}, so its effect would be lost",
                config.architecture
            );
            Err(Error::bad_model(tensors.file(name), name, problem))
        }
        None => Ok(()),
    }
}

/// Values in the checkpoint's tensors.
pub fn elements(config: &ModelConfig) -> u64 {
    expected(config)
        .iter()
        .map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>())
        .sum()
}

/// Bytes the weights will take once packed, padding and scales included; a few columns more than the truth, because
/// matrices that are stacked share their padding.
pub fn packed_bytes(config: &ModelConfig) -> u64 {
    let bytes = |shape: &[usize]| match *shape {
        [columns, depth] => {
            let column = depth.next_multiple_of(4) + size_of::<f32>();
            columns.next_multiple_of(PANEL) as u64 * column as u64
        }
        _ => shape.iter().map(|&n| n as u64).product::<u64>() * size_of::<f32>() as u64,
    };
    expected(config).iter().map(|(_, shape)| bytes(shape)).sum()
}

impl Rows {
    pub fn all(name: impl Into<String>, count: usize) -> Self {
        Self {
            name: name.into(),
            first: 0,
            count,
        }
    }

    /// Rows `from .. from + count` of these, as many as there are, for the columns of a panel from `at` on.
    fn piece(&self, from: usize, count: usize, at: usize) -> Piece<'_> {
        let count = count.min(self.count - from);
        let first = self.first + from;
        Piece {
            tensor: &self.name,
            rows: first..first + count,
            at,
        }
    }
}

impl Columns {
    pub fn whole(name: &str, count: usize) -> Self {
        Self::Stacked(vec![Rows::all(name, count)])
    }

    /// Columns of the packed matrix that hold weights.
    pub fn count(&self) -> usize {
        match self {
            Self::Stacked(list) => list.iter().map(|rows| rows.count).sum(),
            Self::Interleaved(gate, up) => gate.count + up.count,
        }
    }

    /// Columns of the packed matrix. Interleaved halves are padded apart, so their last panel is whole.
    pub fn padded_count(&self) -> usize {
        match self {
            Self::Stacked(_) => self.count(),
            Self::Interleaved(gate, _) => gate.count.div_ceil(PANEL / 2) * PANEL,
        }
    }

    /// Reads the rows of panel `panel` to `out`, `[64][depth]`.
    pub fn read(
        &self,
        tensors: &dyn Tensors,
        depth: usize,
        panel: usize,
        out: &mut [f32],
    ) -> Result<()> {
        self.pieces(panel).into_iter().try_for_each(|piece| {
            let Piece { tensor, rows, at } = piece;
            let out = &mut out[at * depth..][..rows.len() * depth];
            tensors.read_rows(tensor, rows, out)
        })
    }

    /// Reads the codes of panel `panel` to `out`, 64 rows of `depth`.
    pub fn read_codes(
        &self,
        tensors: &dyn Tensors,
        depth: usize,
        panel: usize,
        out: CodeRows<'_>,
    ) -> Result<()> {
        self.pieces(panel).into_iter().try_for_each(|piece| {
            let Piece { tensor, rows, at } = piece;
            let count = rows.len();
            let out = CodeRows {
                codes: &mut out.codes[at * depth..][..count * depth],
                scales: &mut out.scales[at..][..count],
                zero_points: &mut out.zero_points[at..][..count],
            };
            tensors.read_codes(tensor, rows, out)
        })
    }

    /// Whether these rows are stored as codes.
    ///
    /// # Errors
    /// [`Error::BadModel`] if some tensors are and others are not: one matrix has one arithmetic.
    pub fn have_codes(&self, tensors: &dyn Tensors) -> Result<bool> {
        let (coded, plain): (Vec<&str>, Vec<&str>) =
            self.tensors().partition(|name| tensors.has_codes(name));
        match (coded.first(), plain.first()) {
            (Some(coded), Some(plain)) => {
                let problem = format!("must be int8, as {coded} is, which it is multiplied with");
                Err(Error::bad_model(tensors.file(plain), plain, problem))
            }
            (coded, _) => Ok(coded.is_some()),
        }
    }

    /// The tensors that the columns are rows of.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        let rows = match self {
            Self::Stacked(list) => list.iter().collect(),
            Self::Interleaved(gate, up) => vec![gate, up],
        };
        rows.into_iter().map(|rows: &Rows| rows.name.as_str())
    }

    /// Which rows make the columns of panel `panel`.
    fn pieces(&self, panel: usize) -> Vec<Piece<'_>> {
        const HALF: usize = PANEL / 2;
        match self {
            Self::Interleaved(gate, up) => vec![
                gate.piece(panel * HALF, HALF, 0),
                up.piece(panel * HALF, HALF, HALF),
            ],
            Self::Stacked(list) => {
                let (mut pieces, mut before, mut filled) = (Vec::new(), 0, 0);
                for rows in list {
                    let next = panel * PANEL + filled;
                    if filled < PANEL && next < before + rows.count {
                        let piece = rows.piece(next - before, PANEL - filled, filled);
                        filled += piece.rows.len();
                        pieces.push(piece);
                    }
                    before += rows.count;
                }
                pieces
            }
        }
    }
}
