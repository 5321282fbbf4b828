//! The feed-forward layers of the f32 reference: one for all tokens, and mixtures of experts.

use candle_core::{Device, Tensor};

use super::functions::{Look, softmax};
use super::linear::{FloatWeights, Linear};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::blueprint::{Input, MatrixPart, VectorPart};
use crate::model::weights;

/// `down · (silu(gate · x) · (up · x))`.
pub struct SwiGlu {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl SwiGlu {
    /// Reads the weights.
    ///
    /// # Errors
    /// As [`FloatWeights::linear`].
    pub fn load(weights: &FloatWeights<'_>, parts: &weights::SwiGlu<MatrixPart>) -> Result<Self> {
        let [gate, up] = weights.linears(&parts.gate_up)?;
        let down = weights.linear(&parts.down)?;
        Ok(Self { gate, up, down })
    }

    /// SwiGLU of `h` `[len, hidden]`; the gated values are called `gated` when `look` gets them.
    pub fn forward(
        &self,
        h: &Tensor,
        gated: Input,
        look: &mut Look<'_>,
    ) -> candle_core::Result<Tensor> {
        let values = (self.gate.forward(h)?.silu()? * self.up.forward(h)?)?;
        look(gated, &values)?;
        self.down.forward(&values)
    }
}

/// A mixture of experts.
pub struct Experts {
    /// The layer that every token passes.
    shared: Option<SwiGlu>,
    /// `[experts, hidden]`, never rounded.
    router: Tensor,
    experts: Vec<SwiGlu>,
}

impl Experts {
    /// Reads the weights.
    ///
    /// # Errors
    /// As [`FloatWeights::linear`].
    pub fn load(
        weights: &FloatWeights<'_>,
        parts: &weights::Experts<MatrixPart, VectorPart>,
    ) -> Result<Self> {
        let shared = parts.shared.as_ref();
        let shared = shared.map(|parts| SwiGlu::load(weights, parts));
        let weights::SwiGlu { gate_up, down } = &parts.experts;
        let mut halves = weights.all_linears(gate_up)?.into_iter();
        let downs = weights.all_linears(down)?.into_iter();
        let expert = |down| match (halves.next(), halves.next()) {
            (Some(gate), Some(up)) => Ok(SwiGlu { gate, up, down }),
            _ => Err(Error::Internal("fewer gates than experts".into())),
        };
        Ok(Self {
            shared: shared.transpose()?,
            router: weights.vector(&parts.router)?,
            experts: downs.map(expert).collect::<Result<_>>()?,
        })
    }

    /// The sum of what each row's experts make of it, and of the shared layer.
    pub fn forward(
        &self,
        config: &ModelConfig,
        h: &Tensor,
        look: &mut Look<'_>,
    ) -> candle_core::Result<Tensor> {
        let mut sum = match &self.shared {
            Some(shared) => shared.forward(h, Input::Down, look)?,
            None => h.zeros_like()?,
        };
        let taken = config.experts.map_or(0, |experts| experts.taken);
        let logits: Vec<Vec<f32>> = h.matmul(&self.router.t()?)?.to_vec2()?;
        // The rows of each expert, with the expert's weight in each.
        let mut rows = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (row, logits) in (0u32..).zip(&logits) {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            // Stable: of equal outputs the one with the lower index comes first.
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            order.truncate(taken);
            let chosen: Vec<f32> = order.iter().map(|expert| logits[*expert]).collect();
            let chosen = Tensor::from_vec(chosen, (1, taken), &Device::Cpu)?;
            let weights: Vec<f32> = softmax(&chosen)?.flatten_all()?.to_vec1()?;
            for (expert, weight) in order.into_iter().zip(weights) {
                rows[expert].0.push(row);
                rows[expert].1.push(weight);
            }
        }
        for (expert, (rows, weights)) in self.experts.iter().zip(rows) {
            if rows.is_empty() {
                continue;
            }
            let count = rows.len();
            let rows = Tensor::from_vec(rows, count, &Device::Cpu)?;
            let weights = Tensor::from_vec(weights, (count, 1), &Device::Cpu)?;
            let own = h.index_select(&rows, 0)?;
            let out = expert.forward(&own, Input::ExpertsDown, look)?;
            sum = sum.index_add(&rows, &out.broadcast_mul(&weights)?, 0)?;
        }
        Ok(sum)
    }
}
