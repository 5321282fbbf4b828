//! Weights of the right shapes with random codes and norms of ones: as fast as real weights.

use super::blueprint::{Blueprint, MatrixPart, NormPart};
use super::fold::Folded;
use super::weights::{Source, Weights};
use crate::error::{Error, Result};
use crate::int8::kernels::pool::Pool;
use crate::int8::matrix::Matrix;

/// Creates the weights.
///
/// # Errors
/// [`Error::Config`] if there is not enough memory.
pub fn load(blueprint: &Blueprint, pool: &mut Pool) -> Result<Weights> {
    blueprint.make(&mut Folded(&mut Random { pool }))
}

struct Random<'a> {
    pool: &'a mut Pool,
}

impl Source<&MatrixPart, &NormPart> for Random<'_> {
    type Matrix = Matrix;
    type Norm = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, part: &MatrixPart) -> Result<Matrix> {
        Matrix::random(part.columns.padded_count(), part.depth, self.pool)
    }

    fn norm(&mut self, part: &NormPart) -> Result<Vec<f32>> {
        Ok(vec![1.0; part.len])
    }
}
