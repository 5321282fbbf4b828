//! Folds the constants of a model into its weights, so that they cost nothing at run time, and turns small float
//! matrices into the order in which they are read.

use super::blueprint::{MatrixPart, ROUTER_LANES, VectorPart};
use super::weights::{FeedForward, Layer, Source};
use crate::int8::matrix::Matrix;

/// A source of weights that transposes vectors and folds the constants into the matrices and norms of another source.
pub struct Folded<'a, S>(pub &'a mut S);

impl<'p, S> Source<&'p MatrixPart, &'p VectorPart> for Folded<'_, S>
where
    S: Source<&'p MatrixPart, &'p VectorPart, Matrix = Matrix, Vector = Vec<f32>>,
{
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Error = S::Error;

    fn matrix(&mut self, part: &'p MatrixPart) -> Result<Matrix, S::Error> {
        let mut matrix = self.0.matrix(part)?;
        matrix.fold(part.factor);
        Ok(matrix)
    }

    fn vector(&mut self, part: &'p VectorPart) -> Result<Vec<f32>, S::Error> {
        let mut weights = self.0.vector(part)?;
        weights
            .iter_mut()
            .for_each(|weight| *weight /= part.divisor);
        match part.lanes {
            Some(lanes) => Ok(transposed(part, lanes, &weights)),
            None => Ok(weights),
        }
    }
}

/// The matrix with its rows transposed in blocks of `lanes`: `[rows/lanes][width][lanes]`.
fn transposed(part: &VectorPart, lanes: usize, values: &[f32]) -> Vec<f32> {
    let (_, width) = part.rows();
    let mut out = vec![0.0; part.loaded_len()];
    for (row, values) in values.chunks_exact(width).enumerate() {
        let block = &mut out[row / lanes * lanes * width..][..lanes * width];
        for (column, value) in values.iter().enumerate() {
            block[column * lanes + row % lanes] = *value;
        }
    }
    out
}

/// Multiplies the router's weights by those of the norm before it, so that it can read the residual stream itself: a
/// row's outputs then lack only the factor of its root mean square.
pub fn fold_norm_into_router(layer: &mut Layer) {
    let FeedForward::Experts(experts) = &mut layer.feed_forward else {
        return;
    };
    for block in (experts.router).chunks_exact_mut(layer.feed_forward_norm.len() * ROUTER_LANES) {
        let rows = block.chunks_exact_mut(ROUTER_LANES);
        for (row, norm) in rows.zip(&layer.feed_forward_norm) {
            row.iter_mut().for_each(|weight| *weight *= norm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::blueprint::Component;

    #[test]
    fn rows_are_transposed_in_blocks_and_the_last_one_is_padded() {
        let part = VectorPart {
            name: String::new(),
            shape: vec![3, 1, 2],
            logarithm: None,
            lanes: Some(2),
            divisor: 1.0,
            component: Component::Router,
        };
        let out = transposed(&part, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(out, [1.0, 3.0, 2.0, 4.0, 5.0, 0.0, 6.0, 0.0]);
    }
}
