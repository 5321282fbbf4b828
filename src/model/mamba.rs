//! The Mamba-2 mixer (Dao and Gu, 2024): a convolution over four rows, then a linear recurrence whose decay depends on
//! the input, gated and normed. All of it is f32 between two int8 products.
//!
//! The recurrence is computed row by row, so the result does not depend on how a sequence is cut into spans. Threads
//! divide the channels; the rows of a sequence follow each other on one thread.

use super::config;
use super::norm::Normed;
use super::state::{LayerStates, Places, WINDOW};
use super::step::Step;
use super::weights::Mamba;
use crate::int8::PANEL;
use crate::int8::activations::Activations;
use crate::int8::compute::Compute;
use crate::int8::floats::Floats;
use crate::int8::kernels::pool::{PerThread, PerUnit};
use crate::int8::kernels::{Kernel, Scan};
use crate::int8::matmul::Panels;

/// The buffers of the mixer, kept between layers and steps.
pub struct Buffers {
    /// The product of the first matrix: gates, channels, inputs and outputs of the state, time steps.
    projected: Floats,
    /// The gated outputs, normed and quantized.
    normed: Normed,
}

impl Buffers {
    /// Creates buffers for `inner` channels.
    pub fn new(inner: usize) -> Self {
        Self {
            projected: Floats::default(),
            normed: Normed::new(inner),
        }
    }
}

/// The mixer of a layer: `residual += output · norm(gated(recurrence(convolution(input_matrix · input))))`.
pub fn mamba(
    step: &Step<'_>,
    compute: &mut Compute,
    weights: &Mamba,
    states: &mut LayerStates,
    input: &Activations,
    buffers: &mut Buffers,
    residual: &mut Floats,
) {
    let shape = states.shape();
    let (rows, inner) = (step.rows.len(), shape.inner());
    let Buffers { projected, normed } = buffers;
    projected.set_len(weights.input.panels() * rows * PANEL);
    compute.multiply(&weights.input, input, projected);
    let (gates, rest) = projected.split_at_mut(inner * rows);
    let (convolved, steps) = rest.split_at_mut(shape.convolved() * rows);
    convolve(step, compute, weights, states, convolved);
    let (channels, rest) = convolved.split_at_mut(inner * rows);
    let (inputs, outputs) = rest.split_at(shape.state_size * rows);
    let scanned = Scanned {
        step,
        shape,
        weights,
        gates: Panels::new(gates, rows),
        inputs,
        outputs,
        steps: Panels::new(steps, rows),
    };
    scanned.scan(compute, states, channels);
    let (epsilon, rotation) = (step.config.rms_norm_eps, weights.output.rotation());
    let channels = Panels::new(channels, rows);
    normed.fill(compute, channels, &weights.norm, epsilon, rotation);
    compute.multiply_add(&weights.output, &normed.rows, residual);
}

/// Replaces the convolved channels, `[panels][rows][64]`, by `silu(convolution + bias)`.
fn convolve(
    step: &Step<'_>,
    compute: &mut Compute,
    weights: &Mamba,
    states: &mut LayerStates,
    channels: &mut [f32],
) {
    let (kernel, panel_len) = (compute.kernel, step.rows.len() * PANEL);
    let panels = channels.len() / panel_len;
    let slots = states.slots();
    let parts = (PerUnit::new(channels, panel_len), states.windows());
    let (taps, _) = weights
        .taps
        .as_chunks::<{ config::CONVOLUTION_TAPS * PANEL }>();
    let (biases, _) = weights.convolution_bias.as_chunks::<PANEL>();
    (compute.pool).run(panels, parts, |_, range, (channels, mut windows)| {
        let mut copy = [0.0; WINDOW * PANEL];
        for (panel, channels) in range.zip(channels.chunks_exact_mut(panel_len)) {
            let mut rest = channels;
            for span in step.spans {
                let (rows, others) = rest.split_at_mut(span.tokens.len() * PANEL);
                let places = Places::of(span, slots);
                places.run(&mut windows, panel, &mut copy, |range, window| {
                    let rows = &mut rows[range.start * PANEL..range.end * PANEL];
                    kernel.conv_silu(window, rows, &taps[panel], &biases[panel]);
                });
                rest = others;
            }
        }
    });
}

/// What the recurrence reads.
struct Scanned<'a> {
    step: &'a Step<'a>,
    shape: config::Mamba,
    weights: &'a Mamba,
    gates: Panels<'a>,
    /// What each row writes to the states and reads from them, `[state_size/64][rows][64]` each.
    inputs: &'a [f32],
    outputs: &'a [f32],
    steps: Panels<'a>,
}

impl Scanned<'_> {
    /// Replaces the channels, `[panels][rows][64]`, by their gated outputs.
    fn scan(&self, compute: &mut Compute, states: &mut LayerStates, channels: &mut [f32]) {
        let (kernel, panel_len) = (compute.kernel, self.step.rows.len() * PANEL);
        let panels = channels.len() / panel_len;
        let spans = self.step.spans;
        let slots = states.slots();
        let parts = (
            PerUnit::new(channels, panel_len),
            states.states(),
            PerThread::new(&mut compute.scratch),
        );
        let state_len = PANEL * self.shape.state_size;
        let longest = spans.iter().map(|span| span.tokens.len()).max();
        let longest = longest.unwrap_or(0);
        let pool = &mut compute.pool;
        pool.run(
            panels,
            parts,
            |_, range, (channels, mut states, scratch)| {
                let scratch = scratch.set_len(state_len + 2 * longest);
                let (copy, scratch) = scratch.split_at_mut(state_len);
                for (panel, channels) in range.zip(channels.chunks_exact_mut(panel_len)) {
                    let (mut first, mut rest) = (0, channels);
                    for span in spans {
                        let (rows, others) = rest.split_at_mut(span.tokens.len() * PANEL);
                        let places = Places::of(span, slots);
                        places.run(&mut states, panel, copy, |range, state| {
                            let rows = &mut rows[range.start * PANEL..range.end * PANEL];
                            self.scan_panel(
                                kernel,
                                panel,
                                first + range.start,
                                state,
                                rows,
                                scratch,
                            );
                        });
                        kernel.gate(rows, self.gates.stretch(panel, first, span.tokens.len()));
                        first += span.tokens.len();
                        rest = others;
                    }
                }
            },
        );
    }

    /// Runs the heads of panel `panel` over consecutive rows of a span, which begin at row `first` of the step.
    fn scan_panel(
        &self,
        kernel: Kernel,
        panel: usize,
        first: usize,
        state: &mut [f32],
        rows: &mut [f32],
        scratch: &mut [f32],
    ) {
        let config::Mamba {
            head_dim,
            state_size,
            ..
        } = self.shape;
        let width = head_dim.min(PANEL);
        let count = rows.len() / PANEL;
        let (steps, decays) = scratch[..2 * count].split_at_mut(count);
        for (index, state) in state.chunks_exact_mut(width * state_size).enumerate() {
            let head = (panel * PANEL + index * width) / head_dim;
            for (row, step) in steps.iter_mut().enumerate() {
                *step = self.steps.row(head / PANEL, first + row)[head % PANEL];
            }
            let weights = self.weights;
            kernel.discretize(steps, decays, weights.step_bias[head], weights.rate[head]);
            kernel.scan(Scan {
                state,
                width,
                x: &mut rows[index * width..],
                b: &self.inputs[first * PANEL..],
                c: &self.outputs[first * PANEL..],
                panel_stride: self.step.rows.len() * PANEL,
                steps,
                decays,
                skip: weights.skip[head],
            });
        }
    }
}
