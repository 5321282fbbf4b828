//! The Mamba-2 mixer (Dao and Gu, 2024): a convolution over four rows, then a linear recurrence whose decay depends on
//! the input, gated and normed. All of it is f32 between two int8 products.
//!
//! The recurrence is computed row by row, so the result does not depend on how a sequence is cut into spans. Threads
//! divide the channels; the rows of a sequence follow each other on one thread.

use super::config;
use super::forward::Span;
use super::norm::Normed;
use super::state::{LayerStates, Places, WINDOW};
use super::step::Step;
use super::weights::Mamba;
use crate::int8::PANEL;
use crate::int8::activations::Activations;
use crate::int8::compute::Compute;
use crate::int8::floats::Floats;
use crate::int8::kernels::pool::{PerThread, PerUnit, SlotUnits, Within};
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
    /// Bytes of the buffers.
    pub const fn bytes(&self) -> usize {
        self.projected.bytes() + self.normed.bytes()
    }

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
    states: &mut LayerStates<'_>,
    input: &Activations,
    buffers: &mut Buffers,
    residual: &mut Floats,
) {
    let shape = states.shape();
    let (rows, inner) = (step.rows.len(), shape.inner());
    let Buffers { projected, normed } = buffers;
    projected.set_len(weights.input.panels() * rows * PANEL);
    // All channels need the inputs and outputs of the state, so they are convolved where they are computed. A panel of
    // channels is convolved where its states are.
    let convolution = Convolution {
        kernel: compute.kernel,
        step,
        weights,
        slots: states.slots(),
    };
    let (channels, convolved) = (inner / PANEL, shape.convolved() / PANEL);
    let shared = 2 * channels..channels + convolved;
    let windows = Within::new(states.windows(channels..convolved), shared.clone());
    compute.multiply_then(
        &weights.input,
        input,
        projected,
        windows,
        |panel, rows, windows| {
            if !shared.contains(&panel) {
                return;
            }
            for (span, own) in step.spans_and_rows() {
                let rows = &mut rows[own.start * PANEL..own.end * PANEL];
                convolution.run(panel - channels, span, rows, windows, panel - shared.start);
            }
        },
    );
    let (gates, rest) = projected.split_at_mut(inner * rows);
    let (channels, rest) = rest.split_at_mut(inner * rows);
    let (inputs, rest) = rest.split_at(shape.state_size * rows);
    let (outputs, steps) = rest.split_at(shape.state_size * rows);
    let scanned = Scanned {
        convolution,
        shape,
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

/// What the convolution needs.
struct Convolution<'a> {
    kernel: Kernel,
    step: &'a Step<'a>,
    weights: &'a Mamba,
    slots: usize,
}

impl Convolution<'_> {
    /// Replaces the rows of `span` in panel `panel` of the convolved channels, `[rows][64]`, by
    /// `silu(convolution + bias)`. The window of the panel is unit `unit` of `windows`.
    fn run(
        &self,
        panel: usize,
        span: &Span<'_>,
        rows: &mut [f32],
        windows: &mut SlotUnits<'_, f32>,
        unit: usize,
    ) {
        let (taps, _) = (self.weights.taps).as_chunks::<{ config::CONVOLUTION_TAPS * PANEL }>();
        let (biases, _) = self.weights.convolution_bias.as_chunks::<PANEL>();
        let mut copy = [0.0; WINDOW * PANEL];
        let places = Places::of(span, self.slots);
        places.run(windows, unit, &mut copy, |range, window| {
            let rows = &mut rows[range.start * PANEL..range.end * PANEL];
            (self.kernel).conv_silu(window, rows, &taps[panel], &biases[panel]);
        });
    }
}

/// What the recurrence reads.
struct Scanned<'a> {
    convolution: Convolution<'a>,
    shape: config::Mamba,
    gates: Panels<'a>,
    /// What each row writes to the states and reads from them, `[state_size/64][rows][64]` each.
    inputs: &'a [f32],
    outputs: &'a [f32],
    steps: Panels<'a>,
}

impl Scanned<'_> {
    /// Replaces the channels before their convolution, `[panels][rows][64]`, by their gated outputs.
    fn scan(&self, compute: &mut Compute, states: &mut LayerStates<'_>, channels: &mut [f32]) {
        let Convolution {
            kernel,
            step,
            slots,
            ..
        } = self.convolution;
        let panel_len = step.rows.len() * PANEL;
        let panels = channels.len() / panel_len;
        let (windows, states) = states.windows_and_states();
        let scratch = PerThread::new(&mut compute.scratch);
        let parts = (PerUnit::new(channels, panel_len), windows, states);
        let state_len = PANEL * self.shape.state_size;
        let longest = step.spans.iter().map(|span| span.tokens.len()).max();
        let longest = longest.unwrap_or(0);
        (compute.pool).balance(panels, parts, scratch, |range, parts, scratch| {
            let (channels, mut windows, mut states) = parts;
            let scratch = scratch.set_len(state_len + 2 * longest);
            let (copy, scratch) = scratch.split_at_mut(state_len);
            // Panels are innermost, because the states of a span follow each other in memory.
            for (span, own) in step.spans_and_rows() {
                let places = Places::of(span, slots);
                let channels = channels.chunks_exact_mut(panel_len);
                for (panel, channels) in range.clone().zip(channels) {
                    let rows = &mut channels[own.start * PANEL..own.end * PANEL];
                    (self.convolution).run(panel, span, rows, &mut windows, panel);
                    places.run(&mut states, panel, copy, |range, state| {
                        let rows = &mut rows[range.start * PANEL..range.end * PANEL];
                        let first = own.start + range.start;
                        self.scan_panel(kernel, panel, first, state, rows, scratch);
                    });
                    kernel.gate(rows, self.gates.stretch(panel, own.start, own.len()));
                }
            }
        });
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
            let weights = self.convolution.weights;
            kernel.discretize(steps, decays, weights.step_bias[head], weights.rate[head]);
            kernel.scan(Scan {
                state,
                width,
                x: &mut rows[index * width..],
                b: &self.inputs[first * PANEL..],
                c: &self.outputs[first * PANEL..],
                panel_stride: self.convolution.step.rows.len() * PANEL,
                steps,
                decays,
                skip: weights.skip[head],
            });
        }
    }
}
