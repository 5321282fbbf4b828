//! Weights of the right shapes with random codes, and vectors of ones: as fast as real weights.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::blueprint::{Blueprint, Component, MatrixPart, VectorPart};
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

impl Source<&MatrixPart, &VectorPart> for Random<'_> {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, part: &MatrixPart) -> Result<Matrix> {
        Matrix::random(part.columns.padded_count(), part.depth, self.pool)
    }

    fn vector(&mut self, part: &VectorPart) -> Result<Vec<f32>> {
        let value = match part.component {
            // Different experts for different tokens, as in a trained model.
            Component::Router => {
                let mut random = SmallRng::seed_from_u64(part.len() as u64);
                return Ok((0..part.len())
                    .map(|_| random.random_range(-1.0..1.0))
                    .collect());
            }
            // Rates are negative: a state decays.
            _ if part.logarithm.is_some() => -1.0,
            _ => 1.0,
        };
        Ok(vec![value; part.len()])
    }
}
