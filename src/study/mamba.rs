//! The Mamba-2 mixer of the f32 reference, row by row.

use candle_core::{Device, Tensor};

use super::functions::{Look, rms_norm};
use super::linear::{FloatWeights, Linear};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::model::blueprint::{Input, MatrixPart, VectorPart};
use crate::model::weights;

/// The weights of the mixer.
pub struct Mamba {
    input: Linear,
    /// `[convolved][taps]`.
    taps: Vec<Vec<f32>>,
    convolution_bias: Vec<f32>,
    rate: Vec<f32>,
    skip: Vec<f32>,
    step_bias: Vec<f32>,
    norm: Tensor,
    output: Linear,
}

impl Mamba {
    /// Reads the weights.
    ///
    /// # Errors
    /// As [`FloatWeights::linear`].
    pub fn load(
        weights: &FloatWeights<'_>,
        parts: &weights::Mamba<MatrixPart, VectorPart>,
    ) -> Result<Self> {
        let values = |part| weights.values(part);
        let (_, width) = parts.taps.rows();
        let taps = values(&parts.taps)?;
        Ok(Self {
            input: weights.linear(&parts.input)?,
            taps: taps.chunks_exact(width).map(<[f32]>::to_vec).collect(),
            convolution_bias: values(&parts.convolution_bias)?,
            rate: values(&parts.rate)?,
            skip: values(&parts.skip)?,
            step_bias: values(&parts.step_bias)?,
            norm: weights.vector(&parts.norm)?,
            output: weights.linear(&parts.output)?,
        })
    }

    /// The mixer's output for `h` `[len, hidden]`, from an empty state.
    pub fn forward(
        &self,
        config: &ModelConfig,
        h: &Tensor,
        look: &mut Look<'_>,
    ) -> candle_core::Result<Tensor> {
        let (heads, inner) = (self.rate.len(), self.norm.elem_count());
        let (head_dim, convolved) = (inner / heads, self.taps.len());
        let state_size = (convolved - inner) / 2;
        let projected: Vec<Vec<f32>> = self.input.forward(h)?.to_vec2()?;
        let mut state = vec![0.0f32; inner * state_size];
        let mut gated = Vec::with_capacity(projected.len() * inner);
        for row in 0..projected.len() {
            let (gates, rest) = projected[row].split_at(inner);
            let steps = &rest[convolved..];
            // Rows before the first count as zeros.
            let convolve = |channel: usize| {
                let taps = self.taps[channel].iter().rev().zip((0..=row).rev());
                let sum: f32 = taps
                    .map(|(tap, row)| tap * projected[row][inner + channel])
                    .sum();
                silu(sum + self.convolution_bias[channel])
            };
            let values: Vec<f32> = (0..convolved).map(convolve).collect();
            let (channels, rest) = values.split_at(inner);
            let (inputs, outputs) = rest.split_at(state_size);
            for (channel, state) in state.chunks_exact_mut(state_size).enumerate() {
                let head = channel / head_dim;
                let step = softplus(steps[head] + self.step_bias[head]);
                let decay = (self.rate[head] * step).exp();
                let x = channels[channel];
                let mut y = 0.0;
                for ((state, input), output) in state.iter_mut().zip(inputs).zip(outputs) {
                    *state = *state * decay + step * x * input;
                    y += *state * output;
                }
                gated.push((y + self.skip[head] * x) * silu(gates[channel]));
            }
        }
        let gated = Tensor::from_vec(gated, (projected.len(), inner), &Device::Cpu)?;
        let normed = rms_norm(config, &gated, &self.norm)?;
        look(Input::Output, &normed)?;
        self.output.forward(&normed)
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `log(1 + eˣ)`, also where eˣ is far below the precision of 1.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
