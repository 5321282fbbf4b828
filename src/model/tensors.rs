//! The tensors that a checkpoint must hold, derived from the blueprint.

use std::collections::HashSet;

use super::blueprint::{Blueprint, MatrixPart, VectorPart};
use super::config::ModelConfig;
use crate::error::{Error, Result};
use crate::sources::{Tensors, names};

/// Every tensor that the parts are read from, with its shape. The tensors of the vocabulary come first, the
/// vectors last.
fn expected<'a>(blueprint: &'a Blueprint, tensors: &dyn Tensors) -> Vec<(&'a str, Vec<usize>)> {
    let of_matrix = |part: &&'_ MatrixPart| part.layer.is_none();
    let (mut vocabulary, layers): (Vec<_>, Vec<_>) =
        blueprint.matrices().into_iter().partition(of_matrix);
    vocabulary.extend(layers);
    let shapes = vocabulary.into_iter().flat_map(|part: &MatrixPart| {
        let tensors = part.columns.tensors();
        tensors.map(|(name, rows)| (name, stored_shape(part, rows)))
    });
    let vectors = blueprint.vectors().into_iter();
    let vectors = vectors.map(|part: &VectorPart| {
        let (name, _) = stored_vector(part, tensors);
        (name, part.shape.clone())
    });
    shapes.chain(vectors).collect()
}

/// The shape of a tensor that has `rows` rows of a part: experts are stored one after the other.
pub fn stored_shape(part: &MatrixPart, rows: usize) -> Vec<usize> {
    match part.experts {
        Some(experts) => vec![experts.count, rows / experts.count, part.depth],
        None => vec![rows, part.depth],
    }
}

/// The tensor that holds a part, and whether its values are logarithms of the negated ones.
fn stored_vector<'a>(part: &'a VectorPart, tensors: &dyn Tensors) -> (&'a str, bool) {
    match &part.logarithm {
        Some(logarithm) if tensors.shape(&part.name).is_none() => (logarithm, true),
        _ => (&part.name, false),
    }
}

/// Reads the floats of a part.
///
/// # Errors
/// [`Error::BadModel`] if the tensor is missing, has another shape, or has a value that is not finite, or not negative
/// where it must be.
pub fn read_vector(part: &VectorPart, tensors: &dyn Tensors) -> Result<Vec<f32>> {
    let (name, is_logarithm) = stored_vector(part, tensors);
    // Memory is allocated only after the check that the file has a tensor of this shape.
    check_shape(tensors, name, &part.shape)?;
    let mut values = vec![0.0; part.len()];
    tensors.read_rows(name, 0..part.rows().0, &mut values)?;
    for (index, value) in values.iter_mut().enumerate().filter(|_| is_logarithm) {
        let logarithm = std::mem::replace(value, -value.exp());
        if !value.is_finite() {
            let problem = format!("value {index} is {logarithm}, whose exponential is infinite");
            return Err(Error::bad_model(tensors.file(name), name, problem));
        }
    }
    if let Some(problem) = part.problem(&values) {
        return Err(Error::bad_model(tensors.file(name), name, problem));
    }
    Ok(values)
}

/// Refuses a tensor that is missing or whose shape does not match the configuration.
pub fn check_shape(tensors: &dyn Tensors, name: &str, expected: &[usize]) -> Result<()> {
    let problem = match tensors.shape(name) {
        Some(found) if found == expected => return Ok(()),
        Some(found) => format!("has shape {found:?}, but the configuration asks for {expected:?}"),
        None => format!("is missing; the configuration asks for a tensor of shape {expected:?}"),
    };
    Err(Error::bad_model(tensors.file(name), name, problem))
}

/// Refuses a checkpoint that lacks a tensor, has one of another shape, or has one that this architecture does not use
/// (ignoring a bias, for example, would give wrong text).
pub fn check_shapes(
    config: &ModelConfig,
    blueprint: &Blueprint,
    tensors: &dyn Tensors,
) -> Result<()> {
    let expected = expected(blueprint, tensors);
    for (name, shape) in &expected {
        check_shape(tensors, name, shape)?;
    }
    let known: HashSet<&str> = expected.iter().map(|(name, _)| *name).collect();
    // Some exporters write the tied head a second time, and old ones write the rotary frequencies; both can be derived.
    let head = names::HEAD.whole();
    let derived = |name: &str| name == head || name.ends_with(".rotary_emb.inv_freq");
    match tensors
        .names()
        .iter()
        .find(|name| !known.contains(name.as_str()) && !derived(name))
    {
        Some(name) => {
            let problem = format!(
                "is not part of {:?}, so its effect would be lost",
                config.architecture
            );
            Err(Error::bad_model(tensors.file(name), name, problem))
        }
        None => Ok(()),
    }
}
