//! The memory and the operations of a model, summed over the parts of its blueprint.

use std::collections::BTreeMap;

use super::blueprint::{Blueprint, Component, Input, MatrixPart};
use super::weights::Weights;
use crate::int8::PANEL;
use crate::int8::matrix::Matrix;

/// Bytes of the loaded weights, counted from the matrices and norms in memory.
#[derive(Debug, Clone, Default)]
pub struct WeightMemory {
    /// One entry per component and number type: codes and scales are separate.
    pub parts: Vec<PartMemory>,
    /// Number of values in the checkpoint's tensors: what a float copy would hold.
    pub elements: u64,
}

/// Bytes of one number type in one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartMemory {
    /// Such as `feed_forward`.
    pub component: &'static str,
    /// Such as `int8`.
    pub dtype: &'static str,
    /// Bytes in memory, including padding.
    pub bytes: u64,
}

/// Int8 multiplications and additions of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    /// Operations in the layers, for each row of a step.
    pub per_row: u64,
    /// Operations in the head, for each row that needs logits.
    pub per_logit_row: u64,
}

const fn vector_bytes(len: usize) -> u64 {
    (len * size_of::<f32>()) as u64
}

/// The share of a matrix that a row is multiplied with.
fn share(part: &MatrixPart) -> f64 {
    part.experts
        .map_or(1.0, |experts| experts.taken as f64 / experts.count as f64)
}

impl WeightMemory {
    /// Bytes of everything loaded.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

impl Blueprint {
    /// Values in the checkpoint's tensors.
    pub fn elements(&self) -> u64 {
        let matrices = self.matrices().into_iter();
        let matrices = matrices.map(|part| part.columns.count() as u64 * part.depth as u64);
        let vectors = self.vectors().into_iter();
        matrices.sum::<u64>() + vectors.map(|part| part.len() as u64).sum::<u64>()
    }

    /// Bytes that the packed weights take with one scale per column, including padding.
    pub fn packed_bytes(&self) -> u64 {
        let bytes = |part: &MatrixPart| {
            let column = part.depth.next_multiple_of(4) + size_of::<f32>();
            part.columns.padded_count().next_multiple_of(PANEL) as u64 * column as u64
        };
        let matrices: u64 = self.matrices().into_iter().map(bytes).sum();
        let vectors = self.vectors().into_iter();
        matrices
            + vectors
                .map(|part| vector_bytes(part.loaded_len()))
                .sum::<u64>()
    }

    /// Bytes that the weights take at least: one byte per value of a matrix and one scale per column, without padding.
    pub fn least_bytes(&self) -> u64 {
        let bytes = |part: &MatrixPart| part.columns.count() as u64 * (part.depth as u64 + 4);
        let matrices: u64 = self.matrices().into_iter().map(bytes).sum();
        let vectors = self.vectors().into_iter();
        matrices + vectors.map(|part| vector_bytes(part.len())).sum::<u64>()
    }

    /// Int8 operations of a step.
    pub fn operations(&self) -> Operations {
        let sum = |of_head: bool| {
            let parts = self.matrices().into_iter();
            parts
                .filter(|part| {
                    part.input
                        .is_some_and(|input| (input == Input::Head) == of_head)
                })
                .map(|part| 2.0 * (part.columns.padded_count() * part.depth) as f64 * share(part))
                .sum::<f64>() as u64
        };
        Operations {
            per_row: sum(false),
            per_logit_row: sum(true),
        }
    }

    /// Bytes of weights that a decoding step reads: every matrix once, but of each layer's experts only `experts` on
    /// average; the embedding counts only if it is also the head.
    pub fn bytes_per_step(&self, weights: &Weights, experts: f64) -> u64 {
        let loaded = self.loaded(weights);
        let read = loaded.filter(|(part, _)| part.input.is_some());
        let share = |part: &MatrixPart| part.experts.map_or(1.0, |all| experts / all.count as f64);
        let read = read.map(|(part, matrix)| matrix.bytes().total() as f64 * share(part));
        let routers = self.vectors().into_iter().zip(weights.vectors());
        let routers = routers.filter(|(part, _)| part.component == Component::Router);
        let routers: u64 = routers.map(|(_, router)| vector_bytes(router.len())).sum();
        read.sum::<f64>() as u64 + routers
    }

    /// Bytes in memory, by component.
    pub fn memory(&self, weights: &Weights) -> WeightMemory {
        let mut components = BTreeMap::new();
        for (part, matrix) in self.loaded(weights) {
            let bytes = matrix.bytes();
            let all: &mut (u64, u64) = components.entry(part.component).or_default();
            *all = (all.0 + bytes.codes, all.1 + bytes.scales);
        }
        let part = |component, dtype, bytes| PartMemory {
            component,
            dtype,
            bytes,
        };
        for (part, vector) in self.vectors().into_iter().zip(weights.vectors()) {
            let all: &mut (u64, u64) = components.entry(part.component).or_default();
            all.1 += vector_bytes(vector.len());
        }
        let parts = (components.into_iter()).flat_map(|(component, (codes, scales))| {
            let name = component.name();
            [part(name, "int8", codes), part(name, "f32", scales)]
        });
        let parts = parts.filter(|part| part.bytes > 0).collect();
        WeightMemory {
            parts,
            elements: self.elements(),
        }
    }

    /// Every matrix with its description.
    pub fn loaded<'a>(
        &'a self,
        weights: &'a Weights,
    ) -> impl Iterator<Item = (&'a MatrixPart, &'a Matrix)> {
        self.matrices().into_iter().zip(weights.matrices())
    }
}

#[cfg(test)]
mod tests {
    use crate::int8::kernels::pool::Pool;
    use crate::model::blueprint::blueprint;
    use crate::model::config::{MixerKind, ModelConfig};
    use crate::model::{random, shapes};

    #[test]
    fn a_loaded_model_takes_what_its_blueprint_foretells() {
        for tied in [true, false] {
            let config = ModelConfig {
                mixers: vec![MixerKind::Attention; 2],
                hidden_size: 300,
                num_heads: 3,
                num_kv_heads: 1,
                head_dim: 36,
                // Neither whole panels nor whole groups.
                intermediate_size: 150,
                vocab_size: 70,
                tie_word_embeddings: tied,
                ..shapes::named("granite-3.3-2b").expect("a published shape")
            };
            let blueprint = blueprint(&config);
            let weights = random::load(&blueprint, &mut Pool::new(1).unwrap()).unwrap();
            let memory = blueprint.memory(&weights);
            assert_eq!(memory.total(), blueprint.packed_bytes());
            // The last norm is all ones, over the constant that divides the logits.
            assert_eq!(weights.final_norm, [1.0 / config.logits_scaling; 300]);
            let norms = memory.parts.last().expect("norms");
            let embedding = 300 * 128 + 4 * 128;
            let read = memory.total() - norms.bytes - if tied { 0 } else { embedding };
            assert_eq!(blueprint.bytes_per_step(&weights, 0.0), read);
        }
    }
}
