//! Weights from a float checkpoint.

use super::blueprint::{Blueprint, MatrixPart, VectorPart};
use super::config::ModelConfig;
use super::fold::Folded;
use super::tensors::{check_shapes, read_vector};
use super::weights::{Source, Weights};
use crate::error::{Error, Result};
use crate::int8::compensate::Factor;
use crate::int8::compute::Compute;
use crate::int8::matrix::{CodeRows, Matrix};
use crate::int8::quantize::Loss;
use crate::int8::rotation::Rotation;
use crate::int8::scheme::{Mapping, Scheme};
use crate::sources::Tensors;

/// Reads, rotates and quantizes every tensor, one panel at a time on each thread, so the whole float model is never in
/// memory. Codes of a checkpoint that is int8 already are kept as they are. `progress` gets the number of values done
/// and of all values.
///
/// # Errors
/// [`Error::BadModel`] for a tensor that is missing, has the wrong shape, has values that are not finite, or is not
/// part of the model.
pub fn load(
    config: &ModelConfig,
    blueprint: &Blueprint,
    tensors: &dyn Tensors,
    scheme: &Scheme,
    compute: &mut Compute,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Weights> {
    check_shapes(config, blueprint, tensors)?;
    let mut quantizer = Quantizer::new(blueprint, tensors, scheme, compute, progress);
    blueprint.make(&mut Folded(&mut quantizer))
}

/// Makes the parts of a model from a checkpoint that has passed `check_shapes`.
pub struct Quantizer<'a> {
    tensors: &'a dyn Tensors,
    scheme: &'a Scheme,
    compute: &'a mut Compute,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    total: u64,
}

impl<'a> Quantizer<'a> {
    /// Creates a quantizer for the parts of `blueprint`; `progress` gets the number of values done and of all values.
    pub fn new(
        blueprint: &Blueprint,
        tensors: &'a dyn Tensors,
        scheme: &'a Scheme,
        compute: &'a mut Compute,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        Self {
            tensors,
            scheme,
            compute,
            progress,
            done: 0,
            total: blueprint.elements(),
        }
    }

    /// The kernel and the threads in use.
    pub const fn compute(&mut self) -> &mut Compute {
        self.compute
    }

    /// Makes the matrix and measures the rounding loss, which is zero if the checkpoint has codes already. `factors`,
    /// if not empty, compensate rounding errors.
    ///
    /// # Errors
    /// [`Error::BadModel`] if a weight is not finite.
    pub fn quantize(&mut self, part: &MatrixPart, factors: &[Factor]) -> Result<(Matrix, Loss)> {
        let MatrixPart { columns, depth, .. } = part;
        let (tensors, count) = (self.tensors, columns.padded_count());
        let scheme = scheme_of(part, tensors, self.scheme)?;
        let packed = if columns.have_codes(tensors)? {
            let zero_points = scheme.mapping == Mapping::Affine;
            let fill = |panel, out: CodeRows<'_>| columns.read_codes(tensors, *depth, panel, out);
            let pool = &mut self.compute.pool;
            let matrix = Matrix::from_codes(count, *depth, zero_points, pool, fill)?;
            (matrix, Loss::default())
        } else {
            let fill = |panel, out: &mut [f32]| columns.read(tensors, *depth, panel, out);
            Matrix::pack(count, *depth, &scheme, factors, self.compute, fill)?
        };
        self.done += (columns.count() * depth) as u64;
        (self.progress)(self.done, self.total);
        Ok(packed)
    }
}

/// The scheme of a part: `asked`, or the scheme of its codes if the checkpoint has codes already.
///
/// # Errors
/// [`Error::BadModel`] if only some of the part's tensors are codes.
pub(crate) fn scheme_of(
    part: &MatrixPart,
    tensors: &dyn Tensors,
    asked: &Scheme,
) -> Result<Scheme> {
    if !part.columns.have_codes(tensors)? {
        return Ok(*asked);
    }
    let mut names = part.columns.tensors();
    Ok(Scheme {
        mapping: match names.any(|(name, _)| tensors.has_zero_points(name)) {
            true => Mapping::Affine,
            false => Mapping::Symmetric,
        },
        rotation: Rotation::None,
        ..Scheme::default()
    })
}

impl Source<&MatrixPart, &VectorPart> for Quantizer<'_> {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, part: &MatrixPart) -> Result<Matrix> {
        Ok(self.quantize(part, &[])?.0)
    }

    fn vector(&mut self, part: &VectorPart) -> Result<Vec<f32>> {
        read_vector(part, self.tensors)
    }
}
