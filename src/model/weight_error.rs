//! What rounding did to the weights, tensor by tensor.

use serde::Serialize;

use super::Granite;
use super::config::Architecture;
use super::tensors::{EMBEDDING, HEAD};
use crate::error::{Error, Result};
use crate::int8::kernels::Kernel;
use crate::int8::kernels::pool::{PerThread, PerUnit, Pool};
use crate::int8::matrix::Matrix;
use crate::int8::{GROUP, PANEL};
use crate::sources::Tensors;

/// How far a packed tensor is from the checkpoint's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorError {
    /// The tensor's name in the checkpoint.
    pub tensor: String,
    /// Root mean square of the error over that of the weights: 0.01 is one percent.
    pub relative_error: f64,
    /// The same as a signal-to-quantization-noise ratio in decibels; `None` where nothing was lost.
    pub sqnr_db: Option<f64>,
    /// The largest error of a weight.
    pub largest_error: f64,
}

/// Sums over one row.
#[derive(Debug, Clone, Copy, Default)]
struct RowError {
    signal: f64,
    noise: f64,
    largest: f64,
}

/// Where the rows of a tensor are in a packed matrix.
struct Placed<'a> {
    tensor: String,
    matrix: &'a Matrix,
    /// Constant of the model that was folded into the matrix.
    folded: f32,
    rows: Place,
}

#[derive(Clone, Copy)]
enum Place {
    /// From this column on.
    From(usize),
    /// 32 columns of gate, then 32 of up, to each panel: gate is half 0, up half 1.
    Half(usize),
    /// Gate and up, of this many rows each, in one tensor.
    Fused(usize),
}

impl Place {
    /// The packed column of row `row`.
    fn column(&self, row: usize) -> usize {
        const HALF: usize = PANEL / 2;
        let interleaved = |half, row| row / HALF * PANEL + half * HALF + row % HALF;
        match *self {
            Self::From(first) => first + row,
            Self::Half(half) => interleaved(half, row),
            Self::Fused(width) => interleaved(row / width, row % width),
        }
    }
}

/// The error of every matrix of `granite` against `tensors`, the checkpoint that it was packed from; worst first.
/// `progress` hears of tensors done and tensors in all.
///
/// # Errors
/// [`Error::BadModel`] if a tensor cannot be read.
pub fn measure(
    granite: &mut Granite,
    tensors: &dyn Tensors,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<TensorError>> {
    // The threads are borrowed apart from the weights.
    let mut pool = Pool::new(granite.threads())?;
    let placed = placed(granite);
    let total = placed.len() as u64;
    let mut errors = Vec::with_capacity(placed.len());
    for (done, placed) in placed.into_iter().enumerate() {
        errors.push(tensor_error(placed, tensors, granite.kernel(), &mut pool)?);
        progress(done as u64 + 1, total);
    }
    errors.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error));
    Ok(errors)
}

fn placed(granite: &Granite) -> Vec<Placed<'_>> {
    let (config, weights) = (granite.config(), granite.weights());
    let whole = |tensor: &str, matrix| Placed {
        tensor: tensor.to_owned(),
        matrix,
        folded: 1.0,
        rows: Place::From(0),
    };
    let mut list = vec![whole(EMBEDDING, &weights.embedding)];
    list.extend(weights.head.as_ref().map(|head| whole(HEAD, head)));
    let queries = config.num_heads * config.head_dim;
    let keys = config.num_kv_heads * config.head_dim;
    let (gate_up, down): (&[(&str, Place)], _) = match config.architecture {
        Architecture::Granite | Architecture::Llama => (
            &[
                ("mlp.gate_proj", Place::Half(0)),
                ("mlp.up_proj", Place::Half(1)),
            ],
            "mlp.down_proj",
        ),
        Architecture::GraniteHybridDense => (
            &[(
                "shared_mlp.input_linear",
                Place::Fused(config.intermediate_size),
            )],
            "shared_mlp.output_linear",
        ),
    };
    for (index, layer) in weights.layers.iter().enumerate() {
        let mut add = |part: &str, matrix, folded, rows| {
            let tensor = format!("model.layers.{index}.{part}.weight");
            list.push(Placed {
                tensor,
                matrix,
                folded,
                rows,
            });
        };
        for (part, first) in [
            ("q_proj", 0),
            ("k_proj", queries),
            ("v_proj", queries + keys),
        ] {
            add(
                &format!("self_attn.{part}"),
                &layer.qkv,
                1.0,
                Place::From(first),
            );
        }
        let residual = config.residual_multiplier;
        add("self_attn.o_proj", &layer.output, residual, Place::From(0));
        for (part, rows) in gate_up {
            add(part, &layer.gate_up, 1.0, *rows);
        }
        add(down, &layer.down, residual, Place::From(0));
    }
    list
}

fn tensor_error(
    placed: Placed<'_>,
    tensors: &dyn Tensors,
    kernel: Kernel,
    pool: &mut Pool,
) -> Result<TensorError> {
    let Placed {
        tensor,
        matrix,
        folded,
        rows: place,
    } = placed;
    let depth = matrix.depth();
    let Some(&[rows, _]) = tensors.shape(&tensor).as_deref() else {
        return Err(Error::bad_model(
            tensors.file(&tensor),
            &tensor,
            "is not a matrix",
        ));
    };
    let mut errors = vec![RowError::default(); rows];
    let mut threads: Vec<(Vec<f32>, Result<()>)> = (0..pool.threads())
        .map(|_| (vec![0.0; 2 * depth], Ok(())))
        .collect();
    let parts = (PerUnit::new(&mut errors, 1), PerThread::new(&mut threads));
    pool.run(rows, parts, |_, range, (errors, (buffer, outcome))| {
        let (stored, packed) = buffer.split_at_mut(depth);
        *outcome = range.zip(errors).try_for_each(|(row, error)| {
            tensors.read_rows(&tensor, row..row + 1, stored)?;
            for (group, out) in packed.chunks_mut(GROUP).enumerate() {
                matrix.dequantize_group(kernel, place.column(row), group, out);
            }
            for (stored, packed) in stored.iter().zip(&*packed) {
                let difference = f64::from(packed / folded) - f64::from(*stored);
                error.signal += f64::from(*stored).powi(2);
                error.noise += difference.powi(2);
                error.largest = error.largest.max(difference.abs());
            }
            Ok(())
        });
    });
    threads.into_iter().try_for_each(|(_, outcome)| outcome)?;
    let sum = |of: fn(&RowError) -> f64| errors.iter().map(of).sum::<f64>();
    let (signal, noise) = (sum(|row| row.signal), sum(|row| row.noise));
    Ok(TensorError {
        tensor,
        relative_error: if noise == 0.0 {
            0.0
        } else {
            (noise / signal).sqrt()
        },
        sqnr_db: (noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
        largest_error: errors.iter().fold(0.0, |most, row| row.largest.max(most)),
    })
}
