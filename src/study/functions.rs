//! Functions that several parts of the f32 reference apply.

use candle_core::{D, Tensor};

use crate::model::ModelConfig;
use crate::model::blueprint::Input;

/// Receives the input of a linear layer, `[len, in]`.
pub type Look<'a> = dyn FnMut(Input, &Tensor) -> candle_core::Result<()> + 'a;

/// `x / √(mean(x²) + ε) · weight`, row by row.
pub fn rms_norm(config: &ModelConfig, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let rms = (mean_square + f64::from(config.rms_norm_eps))?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(weight)
}

/// Over the last dimension.
pub fn softmax(scores: &Tensor) -> candle_core::Result<Tensor> {
    let exp = scores
        .broadcast_sub(&scores.max_keepdim(D::Minus1)?)?
        .exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}
