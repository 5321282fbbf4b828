//! Mixtures of experts: a router chooses a few feed-forward layers for each token.

use std::ops::Range;

use super::blueprint::ROUTER_LANES;
use super::config::{self, ModelConfig};
use super::norm;
use super::weights::SwiGlu;
use crate::int8::PANEL;
use crate::int8::activations::Activations;
use crate::int8::compute::Compute;
use crate::int8::floats::{Floats, bytes};
use crate::int8::kernels::exp;
use crate::int8::kernels::pool::PerUnit;
use crate::int8::matmul::Panels;
use crate::int8::routed::{RoutedRows, Routes};

/// Rows whose router outputs one thread computes together: enough that the router's weights are read from memory once
/// for several rows, and few enough that the rows of a prompt are divided evenly.
const ROUTER_ROWS: usize = 32;

/// From this many rows on, the threads divide the choice of experts. A row takes half a microsecond.
const SHARED_CHOICE_ROWS: usize = 8;

/// The buffers of the experts, kept between layers and steps.
pub struct Buffers {
    /// `[experts/16][rows][16]`, the rows padded to whole blocks.
    logits: Vec<f32>,
    inverse_rms: Vec<f32>,
    /// The experts that each row takes, and the weight of each: `[rows][taken]`.
    taken: Vec<u32>,
    weights: Vec<f32>,
    routes: Routes,
    input: RoutedRows,
    gated: RoutedRows,
    /// Experts that some row has taken, summed over the layers of the last step.
    pub read: usize,
}

impl Buffers {
    /// Bytes of the buffers.
    pub const fn bytes(&self) -> usize {
        bytes(&self.logits)
            + bytes(&self.inverse_rms)
            + bytes(&self.taken)
            + bytes(&self.weights)
            + self.routes.bytes()
            + self.input.bytes()
            + self.gated.bytes()
    }

    /// Creates buffers for a model of this shape, or `None` if it has no experts.
    pub fn new(config: &ModelConfig) -> Option<Self> {
        let experts = config.experts?;
        Some(Self {
            logits: Vec::new(),
            inverse_rms: Vec::new(),
            taken: Vec::new(),
            weights: Vec::new(),
            routes: Routes::default(),
            input: RoutedRows::new(config.hidden_size),
            gated: RoutedRows::new(experts.width),
            read: 0,
        })
    }

    /// Chooses the experts of every row of the residual stream `x`. `router` has the norm's weights folded in.
    pub fn route(
        &mut self,
        shape: config::Experts,
        compute: &mut Compute,
        router: &[f32],
        x: Panels<'_>,
        epsilon: f32,
    ) {
        let (rows, taken) = (x.rows(), shape.taken);
        let hidden = router.len() / shape.count.next_multiple_of(ROUTER_LANES);
        self.router_outputs(compute, router, hidden, x);
        self.inverse_rms.resize(rows, 0.0);
        self.taken.resize(rows * taken, 0);
        self.weights.resize(rows * taken, 0.0);
        let (kernel, logits) = (compute.kernel, &self.logits);
        let padded = rows.next_multiple_of(ROUTER_ROWS);
        let parts = (
            PerUnit::new(&mut self.inverse_rms, 1),
            PerUnit::new(&mut self.taken, taken),
            PerUnit::new(&mut self.weights, taken),
        );
        let choose =
            |_: usize, range: Range<usize>, parts: (&mut [f32], &mut [u32], &mut [f32])| {
                let (inverse_rms, experts, weights) = parts;
                norm::inverse_rms(kernel, x, hidden, epsilon, range.start, inverse_rms);
                let rows = experts
                    .chunks_exact_mut(taken)
                    .zip(weights.chunks_exact_mut(taken));
                for ((row, (experts, weights)), factor) in range.zip(rows).zip(inverse_rms) {
                    let logit = |expert: usize| {
                        let (block, lane) = (expert / ROUTER_LANES, expert % ROUTER_LANES);
                        logits[(block * padded + row) * ROUTER_LANES + lane]
                    };
                    largest((0..shape.count).map(logit), experts, weights);
                    softmax(weights, *factor);
                }
            };
        if rows < SHARED_CHOICE_ROWS {
            compute.pool.run_alone(rows, parts, choose);
        } else {
            compute.pool.run(rows, parts, choose);
        }
        self.routes
            .sort(shape.count, taken, &self.taken, &self.weights);
    }

    /// The products of the router with the residual stream, before they are divided by the root mean square.
    fn router_outputs(
        &mut self,
        compute: &mut Compute,
        router: &[f32],
        hidden: usize,
        x: Panels<'_>,
    ) {
        let rows = x.rows();
        let row_blocks = rows.div_ceil(ROUTER_ROWS);
        let block_len = ROUTER_ROWS * ROUTER_LANES;
        let lanes = router.len() / (hidden * ROUTER_LANES);
        self.logits.resize(lanes * row_blocks * block_len, 0.0);
        let kernel = compute.kernel;
        let parts = PerUnit::new(&mut self.logits, block_len);
        (compute.pool).run(lanes * row_blocks, parts, |_, range, out| {
            for (unit, out) in range.zip(out.chunks_exact_mut(block_len)) {
                let (lane, first) = (unit / row_blocks, unit % row_blocks * ROUTER_ROWS);
                let count = ROUTER_ROWS.min(rows - first);
                let out = &mut out[..count * ROUTER_LANES];
                out.fill(0.0);
                let weights = &router[lane * hidden * ROUTER_LANES..][..hidden * ROUTER_LANES];
                for (panel, weights) in weights.chunks_exact(PANEL * ROUTER_LANES).enumerate() {
                    // Here the rows weight the router's values.
                    kernel.add_weighted(x.stretch(panel, first, count), weights, out);
                }
            }
        });
    }

    /// Gives each row of the normed residual stream to the experts that were chosen for it.
    pub fn gather(&mut self, compute: &mut Compute, normed: &Activations) {
        self.read += self.routes.experts();
        compute.gather(&self.routes, normed, &mut self.input);
    }

    /// Adds what the chosen experts make of their rows to the `rows` rows of the residual stream, and what `shared`, if
    /// there is one, makes of all rows: a layer, its input and a buffer for its gated values.
    pub fn add(
        &mut self,
        shape: config::Experts,
        compute: &mut Compute,
        experts: &SwiGlu,
        mut shared: Option<(&SwiGlu, &Activations, &mut Activations)>,
        residual: &mut Floats,
        rows: usize,
    ) {
        let SwiGlu { gate_up, down } = experts;
        let Self {
            routes,
            input,
            gated,
            ..
        } = self;
        let (count, rotation) = (shape.count, down.rotation());
        let first =
            (shared.as_mut()).map(|(layer, input, gated)| (layer.gate_up(input), &mut **gated));
        compute.multiply_swiglu_routed(gate_up, count, routes, input, rotation, gated, first);
        let second = shared
            .as_ref()
            .map(|(layer, _, gated)| (&layer.down, &**gated));
        compute.multiply_add_routed(down, count, routes, gated, residual, rows, second);
    }
}

/// Finds the largest of `values`: fills `indices` and `found` with as many as they hold, the largest first. Of equal
/// values the one with the lower index counts as larger. Values that are not numbers count as the smallest.
fn largest(values: impl Iterator<Item = f32>, indices: &mut [u32], found: &mut [f32]) {
    let most = indices.len();
    let mut count = 0;
    for (index, value) in values.enumerate() {
        let value = if value.is_nan() {
            f32::NEG_INFINITY
        } else {
            value
        };
        let place = (0..count).rev().take_while(|at| found[*at] < value).last();
        let place = place.unwrap_or(count);
        if place == most {
            continue;
        }
        count = (count + 1).min(most);
        indices.copy_within(place..count - 1, place + 1);
        found.copy_within(place..count - 1, place + 1);
        (indices[place], found[place]) = (index as u32, value);
    }
}

/// Turns descending `logits`, each times `factor`, into weights that sum to 1.
fn softmax(logits: &mut [f32], factor: f32) {
    let largest = logits[0] * factor;
    let mut total = 0.0;
    for logit in &mut *logits {
        *logit = exp(*logit * factor - largest);
        total += *logit;
    }
    logits.iter_mut().for_each(|weight| *weight /= total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_found_in_order_and_ties_go_to_the_lower_index() {
        let (mut indices, mut found) = ([0; 3], [0.0; 3]);
        let values = [1.0, 5.0, f32::NAN, 5.0, 7.0, 5.0, -1.0];
        largest(values.into_iter(), &mut indices, &mut found);
        assert_eq!((indices, found), ([4, 1, 3], [7.0, 5.0, 5.0]));
        largest([f32::NAN; 4].into_iter(), &mut indices, &mut found);
        assert_eq!(indices, [0, 1, 2]);
    }

    #[test]
    fn weights_are_the_softmax_of_the_chosen() {
        let mut weights = [2.0, 1.0];
        softmax(&mut weights, 0.5);
        let expected = 1.0 / (1.0 + (-0.5f32).exp());
        assert!((weights[0] - expected).abs() < 1e-6);
        assert!((weights[0] + weights[1] - 1.0).abs() < 1e-6);
    }
}
