//! The float weights of a checkpoint and how linear layers multiply by them.

use candle_core::{D, Device, Tensor};

use super::tensors::check_shape;
use crate::error::{Error, Result};
use crate::sources::Tensors;

/// How a linear layer computes `x·Wᵀ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// Weights and activations as they are.
    F32,
    /// Weights, embedding and activations rounded to llama.cpp's Q8_0, whose product of two rows quantizes both.
    Q8_0,
}

/// A matrix `[out, in]` and how to multiply by it.
pub struct Linear {
    weight: Tensor,
    arithmetic: Arithmetic,
}

impl Linear {
    /// `weight` has been rounded as `arithmetic` says.
    pub fn new(weight: Tensor, arithmetic: Arithmetic) -> Self {
        Self { weight, arithmetic }
    }

    /// `x` `[len, in]` to `[len, out]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
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
pub struct Weights<'a> {
    /// The checkpoint's.
    pub tensors: &'a dyn Tensors,
    /// What they are rounded to.
    pub arithmetic: Arithmetic,
}

impl Weights<'_> {
    /// Reads a linear layer.
    ///
    /// # Errors
    /// [`Error::BadModel`] if the tensor is absent, has another shape, or holds a value that is not finite.
    pub fn linear(&self, name: &str, out: usize, input: usize) -> Result<Linear> {
        let weight = self.matrix(name, out, input)?;
        Ok(Linear::new(weight, self.arithmetic))
    }

    /// Reads a matrix, rounded.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        let mut values = self.read(name, &[rows, columns])?;
        if self.arithmetic == Arithmetic::Q8_0 {
            round_to_q8_0(&mut values, columns);
        }
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).map_err(internal)
    }

    /// Reads a vector.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        let values = self.read(name, &[len])?;
        Tensor::from_vec(values, len, &Device::Cpu).map_err(internal)
    }

    /// Allocates only once the file is known to hold a tensor of this shape.
    fn read(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        check_shape(self.tensors, name, expected)?;
        let rows = if expected.len() == 1 { 1 } else { expected[0] };
        let mut values = vec![0.0; expected.iter().product()];
        self.tensors.read_rows(name, 0..rows, &mut values)?;
        Ok(values)
    }
}

/// Replaces each value of rows of `columns` values by what is left of it in Q8_0: blocks of 32 with one f16 scale.
///
/// As llama.cpp's reference quantizer does it, codes come from the scale before it is rounded to f16, and halves round
/// away from zero. A row's tail shorter than 32 is a block of its own.
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

/// Shapes are checked before a tensor operation sees them and callers check ids, so its failure is a defect.
pub fn internal(error: candle_core::Error) -> Error {
    Error::Internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q8_0_rounds_as_the_reference_quantizer_does() {
        // A block of its own for each row, scaled by its largest value: 127 steps of 1/64 are exact in f16.
        let mut values = [[127.0 / 64.0, 0.5 / 64.0, -0.5 / 64.0, 0.49 / 64.0]; 2].concat();
        round_to_q8_0(&mut values, 4);
        // Halves go away from zero.
        let row = [127.0 / 64.0, 1.0 / 64.0, -1.0 / 64.0, 0.0];
        assert_eq!(values, [row, row].concat());

        // The code comes from the scale as computed, the value from the scale as stored.
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
