//! The float weights of a checkpoint, and how linear layers multiply with them.

use candle_core::{D, Device, Tensor};

use crate::error::{Error, Result};
use crate::model::blueprint::{MatrixPart, VectorPart};
use crate::model::columns::Rows;
use crate::model::tensors::{check_shape, read_vector, stored_shape};
use crate::sources::Tensors;

/// How a linear layer computes `x·Wᵀ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// Weights and activations in f32, unrounded.
    F32,
    /// Weights, embedding and activations are rounded to llama.cpp's Q8_0, which quantizes both operands of a product.
    Q8_0,
}

/// A matrix `[out, in]` and the arithmetic of multiplying with it.
pub struct Linear {
    weight: Tensor,
    arithmetic: Arithmetic,
}

impl Linear {
    /// `weight` has already been rounded as `arithmetic` requires.
    pub fn new(weight: Tensor, arithmetic: Arithmetic) -> Self {
        Self { weight, arithmetic }
    }

    /// Multiplies `x` `[len, in]`; the result is `[len, out]`.
    ///
    /// # Errors
    /// The errors of the tensor operations.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let transposed = self.weight.t()?;
        match self.arithmetic {
            Arithmetic::F32 => x.matmul(&transposed),
            Arithmetic::Q8_0 => {
                let mut values = x.flatten_all()?.to_vec1()?;
                round_to_q8_0(&mut values, x.dim(D::Minus1)?);
                Tensor::from_vec(values, x.shape(), x.device())?.matmul(&transposed)
            }
        }
    }
}

/// The checkpoint's tensors, checked against the configuration as they are read.
pub struct FloatWeights<'a> {
    /// The tensors of the checkpoint.
    pub tensors: &'a dyn Tensors,
    /// How the weights are rounded.
    pub arithmetic: Arithmetic,
}

impl FloatWeights<'_> {
    /// Reads the one linear layer of a part.
    ///
    /// # Errors
    /// [`Error::BadModel`] if the tensor is missing, has another shape, or has a value that is not finite.
    pub fn linear(&self, part: &MatrixPart) -> Result<Linear> {
        let [linear] = self.linears(part)?;
        Ok(linear)
    }

    /// Reads the linear layers that make up a part.
    ///
    /// # Errors
    /// As [`FloatWeights::linear`].
    pub fn linears<const N: usize>(&self, part: &MatrixPart) -> Result<[Linear; N]> {
        let matrices = self.matrices(part)?;
        Ok(matrices.map(|weight| Linear::new(weight, self.arithmetic)))
    }

    /// Reads the matrices that make up a part, rounded.
    ///
    /// # Errors
    /// As [`FloatWeights::linear`].
    pub fn matrices<const N: usize>(&self, part: &MatrixPart) -> Result<[Tensor; N]> {
        let rows = part.columns.rows().iter();
        let matrices = rows.map(|rows| self.matrix(part, rows));
        let matrices: Vec<Tensor> = matrices.collect::<Result<_>>()?;
        matrices.try_into().map_err(|matrices: Vec<Tensor>| {
            let (name, count) = (&part.name, matrices.len());
            Error::Internal(format!("{name} is made of {count} matrices, not of {N}"))
        })
    }

    /// Reads all linear layers that make up a part.
    ///
    /// # Errors
    /// As [`FloatWeights::linear`].
    pub fn all_linears(&self, part: &MatrixPart) -> Result<Vec<Linear>> {
        let rows = part.columns.rows().iter();
        rows.map(|rows| Ok(Linear::new(self.matrix(part, rows)?, self.arithmetic)))
            .collect()
    }

    /// Reads the values of a vector.
    ///
    /// # Errors
    /// As [`FloatWeights::linear`].
    pub fn values(&self, part: &VectorPart) -> Result<Vec<f32>> {
        read_vector(part, self.tensors)
    }

    fn matrix(&self, part: &MatrixPart, rows: &Rows) -> Result<Tensor> {
        let Rows {
            tensor,
            total,
            first,
            count,
        } = rows;
        // Memory is allocated only after the check that the file has a tensor of this shape.
        check_shape(self.tensors, tensor, &stored_shape(part, *total))?;
        let depth = part.depth;
        let mut values = vec![0.0; count * depth];
        let range = *first..first + count;
        self.tensors.read_rows(tensor, range, &mut values)?;
        if self.arithmetic == Arithmetic::Q8_0 {
            round_to_q8_0(&mut values, depth);
        }
        Tensor::from_vec(values, (*count, depth), &Device::Cpu).map_err(internal)
    }

    /// Reads a vector, or a small matrix that is not quantized.
    ///
    /// # Errors
    /// As [`FloatWeights::linear`].
    pub fn vector(&self, part: &VectorPart) -> Result<Tensor> {
        let values = self.values(part)?;
        Tensor::from_vec(values, part.rows(), &Device::Cpu)
            .and_then(|tensor| match part.shape.len() {
                1 => tensor.squeeze(0),
                _ => Ok(tensor),
            })
            .map_err(internal)
    }
}

/// Rounds each value of rows of `columns` values to Q8_0: blocks of 32 with one f16 scale.
///
/// As in llama.cpp's reference quantizer, codes are computed with the scale before it is rounded to f16, and halves are
/// rounded away from zero. A row's tail shorter than 32 is a separate block.
fn round_to_q8_0(values: &mut [f32], columns: usize) {
    for block in values
        .chunks_mut(columns)
        .flat_map(|row| row.chunks_mut(32))
    {
        let largest = block
            .iter()
            .fold(0.0f32, |most, value| most.max(value.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let stored = half::f16::from_f32(scale).to_f32();
        for value in block {
            *value = (*value * inverse).round() * stored;
        }
    }
}

/// Reports the failure of a tensor operation as a defect: shapes and ids are checked before.
pub fn internal(error: candle_core::Error) -> Error {
    Error::Internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q8_0_rounds_as_the_reference_quantizer_does() {
        // Each row is a separate block, scaled by its largest value: 127 steps of 1/64 are exact in f16.
        let mut values = [[127.0 / 64.0, 0.5 / 64.0, -0.5 / 64.0, 0.49 / 64.0]; 2].concat();
        round_to_q8_0(&mut values, 4);
        // Halves are rounded away from zero.
        let row = [127.0 / 64.0, 1.0 / 64.0, -1.0 / 64.0, 0.0];
        assert_eq!(values, [row, row].concat());

        // The code is computed with the exact scale, the value with the stored scale.
        let scale = 1.0f32 / 127.0;
        let stored = half::f16::from_f32(scale).to_f32();
        assert_ne!(scale, stored);
        let mut values = [1.0, -64.4 / 127.0];
        round_to_q8_0(&mut values, 2);
        assert_eq!(values, [127.0 * stored, -64.0 * stored]);
    }

    #[test]
    fn q8_0_scales_each_block_of_32_of_a_row_by_itself() {
        let mut values = vec![1e-3; 80];
        (values[0], values[40]) = (100.0, 0.0);
        round_to_q8_0(&mut values, 40);
        assert!(values[1..32].iter().all(|&value| value == 0.0));
        // The row's last eight values are a block, and the next row starts another.
        assert!((values[32..40].iter()).all(|value| (value - 1e-3).abs() < 1e-6));
        assert!((values[41..80].iter()).all(|value| (value - 1e-3).abs() < 1e-6));

        let mut zeros = [0.0; 32];
        round_to_q8_0(&mut zeros, 32);
        assert_eq!(zeros, [0.0; 32]);
    }
}
