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
pub struct Pace {
    pub steps: usize,
    /// The peak learning rate, reached after a tenth of the steps; from there it falls linearly to zero.
    pub learning_rate: f64,
}

/// Steps between two lines of progress.
const STEPS_PER_LINE: usize = 50;

/// Trains all weights of `model` in place, on sequences that `seed` chooses. Prints progress on standard error.
pub fn train(
    what: &str,
    model: &Granite,
    texts: &Texts,
    pace: Pace,
    seed: u64,
    arithmetic: Arithmetic,
) -> Result<()> {
    let Pace {
        steps,
        learning_rate,
    } = pace;
    let mut random = Pcg64::seed_from_u64(seed);
    let weights = model.weights().values().cloned().collect();
    let mut optimizer = AdamW::new(
        weights,
        ParamsAdamW {
            weight_decay: 0.0,
            ..ParamsAdamW::default()
        },
    )?;
    let warmup = steps.div_ceil(10);
    for step in 0..steps {
        let rising = (step + 1) as f64 / warmup as f64;
        let falling = (steps - step) as f64 / (steps - warmup).max(1) as f64;
        optimizer.set_learning_rate(learning_rate * rising.min(falling));
        let (ids, next) = texts.batch(&mut random)?;
        let loss = cross_entropy(&model.logits(&ids, arithmetic)?, &next)?;
        optimizer.backward_step(&loss)?;
        let done = step + 1;
        if done % STEPS_PER_LINE == 0 {
            let loss: f32 = loss.to_scalar()?;
            eprintln!("{what}: step {done} of {steps}, loss {loss:.3}");
        }
    }
    Ok(())
}
