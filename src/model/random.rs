//! Weights of the right shapes with random codes and unit norms: as fast as real ones.

use super::blueprint::{Blueprint, MatrixPart, NormPart};
use super::fold::Folded;
use super::weights::{Source, Weights};
use crate::error::{Error, Result};
use crate::int8::kernels::pool::Pool;
use crate::int8::matrix::Matrix;

/// Makes the weights.
///
/// # Errors
/// [`Error::Config`] if there is no memory for them.
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
