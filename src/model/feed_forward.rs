//! A feed-forward layer that all tokens pass.

use super::weights::SwiGlu;
use crate::int8::activations::Activations;
use crate::int8::compute::Compute;
use crate::int8::floats::Floats;
use crate::int8::matmul::GateUp;

/// The buffers of a feed-forward layer, kept between layers and steps.
pub struct Buffers {
    /// The gated values, quantized.
    pub gated: Activations,
}

impl Buffers {
    /// Bytes of the buffers.
    pub const fn bytes(&self) -> usize {
        self.gated.bytes()
    }

    /// Creates buffers for `width` gated values.
    pub fn new(width: usize) -> Self {
        Self {
            gated: Activations::new(0, width),
        }
    }
}

impl SwiGlu {
    /// The first product of the layer.
    pub fn gate_up<'a>(&'a self, input: &'a Activations) -> GateUp<'a> {
        GateUp {
            matrix: &self.gate_up,
            input,
            rotation: self.down.rotation(),
        }
    }
}

/// `residual += down · (silu(gate · input) · (up · input))`.
pub fn feed_forward(
    compute: &mut Compute,
    weights: &SwiGlu,
    input: &Activations,
    buffers: &mut Buffers,
    residual: &mut Floats,
) {
    compute.multiply_swiglu(weights.gate_up(input), &mut buffers.gated);
    compute.multiply_add(&weights.down, &buffers.gated, residual);
}
