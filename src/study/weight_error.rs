//! The rounding errors of the weights, tensor by tensor.

use serde::Serialize;

use crate::error::Result;
use crate::int8::GROUP;
use crate::int8::compute::Compute;
use crate::int8::kernels::pool::{PerThread, PerUnit};
use crate::int8::matrix::Matrix;
use crate::model::Granite;
use crate::model::blueprint::MatrixPart;
use crate::model::tensors::{check_shape, stored_shape};
use crate::sources::Tensors;

/// How much a packed tensor differs from the checkpoint's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorError {
    /// The tensor's name in the checkpoint.
    pub tensor: String,
    /// The layer that it belongs to; `None` for the vocabulary.
    #[serde(skip)]
    pub layer: Option<usize>,
    /// Root mean square of the error over that of the weights: 0.01 is one percent.
    pub relative_error: f64,
    /// The same as a signal-to-quantization-noise ratio in decibels; `None` if there is no error.
    pub sqnr_db: Option<f64>,
    /// The largest error of a weight.
    pub largest_error: f64,
}

/// The sums and the largest error of one row.
#[derive(Debug, Clone, Copy, Default)]
struct RowError {
    signal: f64,
    noise: f64,
    largest: f64,
}

/// A tensor of the checkpoint and the packed matrix that holds it.
struct Packed<'a> {
    tensor: &'a str,
    rows: usize,
    part: &'a MatrixPart,
    matrix: &'a Matrix,
}

/// The error of every matrix of `granite` against `tensors`, the checkpoint from which it was packed; worst first.
/// `progress` gets the number of tensors done and of all tensors.
///
/// # Errors
/// [`crate::error::Error::BadModel`] if a tensor cannot be read.
pub fn measure(
    granite: &mut Granite,
    tensors: &dyn Tensors,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<TensorError>> {
    let (blueprint, weights, compute) = granite.parts();
    let mut packed = Vec::new();
    for (part, matrix) in blueprint.loaded(weights) {
        let all = part.columns.tensors();
        packed.extend(all.map(|(tensor, rows)| Packed {
            tensor,
            rows,
            part,
            matrix,
        }));
    }
    // The vocabulary comes first, because it is the largest.
    packed.sort_by_key(|packed| packed.part.layer);
    let total = packed.len() as u64;
    let mut errors = Vec::with_capacity(packed.len());
    for (done, packed) in packed.into_iter().enumerate() {
        errors.push(tensor_error(packed, tensors, compute)?);
        progress(done as u64 + 1, total);
    }
    errors.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error));
    Ok(errors)
}

fn tensor_error(
    packed: Packed<'_>,
    tensors: &dyn Tensors,
    compute: &mut Compute,
) -> Result<TensorError> {
    let Packed {
        tensor,
        rows,
        part,
        matrix,
    } = packed;
    let (Compute { kernel, pool, .. }, depth) = (compute, matrix.depth());
    check_shape(tensors, tensor, &stored_shape(part, rows))?;
    let mut errors = vec![RowError::default(); rows];
    let mut threads: Vec<(Vec<f32>, Result<()>)> = (0..pool.threads())
        .map(|_| (vec![0.0; 2 * depth], Ok(())))
        .collect();
    let parts = (PerUnit::new(&mut errors, 1), PerThread::new(&mut threads));
    pool.run(rows, parts, |_, range, (errors, (buffer, outcome))| {
        let (stored, packed) = buffer.split_at_mut(depth);
        *outcome = range.zip(errors).try_for_each(|(row, error)| {
            tensors.read_rows(tensor, row..row + 1, stored)?;
            let column = part
                .columns
                .column(tensor, row)
                .expect("every row is packed");
            for (group, out) in packed.chunks_mut(GROUP).enumerate() {
                matrix.dequantize_group(*kernel, column, group, out);
            }
            for (stored, packed) in stored.iter().zip(&*packed) {
                let difference = f64::from(packed / part.factor) - f64::from(*stored);
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
        tensor: tensor.to_owned(),
        layer: part.layer,
        relative_error: if noise == 0.0 {
            0.0
        } else {
            (noise / signal).sqrt()
        },
        sqnr_db: (noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
        largest_error: errors.iter().fold(0.0, |most, row| row.largest.max(most)),
    })
}
