//! The tensors that a checkpoint must hold, derived from the blueprint.

use std::collections::HashSet;

use super::blueprint::{Blueprint, MatrixPart, NormPart};
use super::config::ModelConfig;
use crate::error::{Error, Result};
use crate::sources::{Tensors, names};

/// Every tensor that the parts are read from, with its shape. The tensors of the vocabulary come first, the norms last.
fn expected(blueprint: &Blueprint) -> Vec<(&str, Vec<usize>)> {
    let of_matrix = |part: &&'_ MatrixPart| part.layer.is_none();
    let (mut vocabulary, layers): (Vec<_>, Vec<_>) =
        blueprint.matrices().into_iter().partition(of_matrix);
    vocabulary.extend(layers);
    let shapes = vocabulary.into_iter().flat_map(|part: &MatrixPart| {
        let tensors = part.columns.tensors();
        tensors.map(|(name, rows)| (name, vec![rows, part.depth]))
    });
    let norms = blueprint.norms().into_iter();
    let norms = norms.map(|part: &NormPart| (part.name.as_str(), vec![part.len]));
    shapes.chain(norms).collect()
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
    let expected = expected(blueprint);
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
