//! A feed-forward layer that all tokens pass.

use super::weights::SwiGlu;
use crate::int8::activations::Activations;
use crate::int8::compute::Compute;
use crate::int8::floats::Floats;

/// The buffers of a feed-forward layer, kept between layers and steps.
pub struct Buffers {
    /// The gated values, quantized.
    gated: Activations,
}

impl Buffers {
    /// Creates buffers for `width` gated values.
    pub fn new(width: usize) -> Self {
        Self {
            gated: Activations::new(0, width),
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
    let SwiGlu { gate_up, down } = weights;
    compute.multiply_swiglu(gate_up, input, down.rotation(), &mut buffers.gated);
    compute.multiply_add(down, &buffers.gated, residual);
}
