//! Training, in f32 or with rounding in the graph.

use candle_core::Result;
use candle_nn::loss::cross_entropy;
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use rand::SeedableRng;
use rand_pcg::Pcg64;

use crate::model::{Arithmetic, Granite};
use crate::text::Texts;

/// How long to train and how fast.
#[derive(Clone, Copy)]
pub struct Schedule {
    pub steps: usize,
    /// The highest learning rate, reached after a tenth of the steps; from there it falls to nothing on a line.
    pub learning_rate: f64,
    /// Chooses the sequences.
    pub seed: u64,
}

/// Trains all weights of `model` in place; the mean loss of the last tenth of the steps.
pub fn train(
    model: &Granite,
    texts: &Texts,
    schedule: Schedule,
    arithmetic: Arithmetic,
) -> Result<f32> {
    let Schedule {
        steps,
        learning_rate,
        seed,
    } = schedule;
    let mut random = Pcg64::seed_from_u64(seed);
    let vars = model.weights().values().cloned().collect();
    let mut optimizer = AdamW::new(
        vars,
        ParamsAdamW {
            weight_decay: 0.0,
            ..ParamsAdamW::default()
        },
    )?;
    let warmup = steps.div_ceil(10);
    let mut last = Vec::new();
    for step in 0..steps {
        let rising = (step + 1) as f64 / warmup as f64;
        let falling = (steps - step) as f64 / (steps - warmup).max(1) as f64;
        optimizer.set_learning_rate(learning_rate * rising.min(falling).min(1.0));
        let (ids, next) = texts.batch(&mut random)?;
        let loss = cross_entropy(&model.logits(&ids, arithmetic)?, &next)?;
        optimizer.backward_step(&loss)?;
        if steps - step <= warmup {
            last.push(loss.to_scalar::<f32>()?);
        }
    }
    Ok(last.iter().sum::<f32>() / last.len() as f32)
}
