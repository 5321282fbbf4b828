//! Folds the constants of a model into its weights, so that they cost nothing at run time.

use super::blueprint::{MatrixPart, NormPart};
use super::weights::Source;
use crate::int8::matrix::Matrix;

/// A source of weights that folds the constants into the matrices and norms of another source.
pub struct Folded<'a, S>(pub &'a mut S);

impl<'p, S> Source<&'p MatrixPart, &'p NormPart> for Folded<'_, S>
where
    S: Source<&'p MatrixPart, &'p NormPart, Matrix = Matrix, Norm = Vec<f32>>,
{
    type Matrix = Matrix;
    type Norm = Vec<f32>;
    type Error = S::Error;

    fn matrix(&mut self, part: &'p MatrixPart) -> Result<Matrix, S::Error> {
        let mut matrix = self.0.matrix(part)?;
        matrix.fold(part.factor);
        Ok(matrix)
    }

    fn norm(&mut self, part: &'p NormPart) -> Result<Vec<f32>, S::Error> {
        let mut weights = self.0.norm(part)?;
        weights
            .iter_mut()
            .for_each(|weight| *weight /= part.divisor);
        Ok(weights)
    }
}
