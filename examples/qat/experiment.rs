//! One seed: train in f32, then train on either in f32 or with rounding in the graph, and serve both at eight bits.

use std::error::Error;

use microgranite::int8::rotation::Rotation;
use microgranite::int8::scheme::{Granularity, Mapping, Range, Scheme};
use microgranite::study::evaluate::log_softmax;

use crate::int8;
use crate::model::{Arithmetic, Granite};
use crate::text::Texts;
use crate::train::{Pace, train};

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Training from random weights: long enough to spell common words, but stopped while the held-out loss still falls.
const TRAINING: Pace = Pace {
    steps: 400,
    learning_rate: 1e-2,
};

/// Further training, the same for both ways.
const TUNING: Pace = Pace {
    steps: 150,
    learning_rate: 2e-3,
};

/// How many times larger the outlier weights are. In published models some channels of activations are tens of times
/// larger than the rest; smoothing moves that into the weights.
const OUTLIER: f32 = 64.0;

/// The outlier channels: two of 64.
const OUTLIER_CHANNELS: [usize; 2] = [5, 40];

/// The settings that are compared, from the coarsest to the default.
pub const SCHEMES: [Scheme; 3] = [
    scheme(Granularity::Tensor, Rotation::None),
    scheme(Granularity::Channel, Rotation::None),
    scheme(Granularity::Channel, Rotation::Full),
];

const fn scheme(granularity: Granularity, rotation: Rotation) -> Scheme {
    Scheme {
        mapping: Mapping::Symmetric,
        granularity,
        range: Range::Absmax,
        rotation,
    }
}

/// The results of one seed. Losses are in nats per character of the held-out text.
pub struct Outcome {
    /// In f32 after the first training.
    pub trained: f64,
    /// The same weights at eight bits with the default scheme, before there are outliers.
    pub trained_int8: f64,
    /// The model with outliers, trained on in f32.
    pub float: Granite,
    /// Its loss in f32.
    pub float_loss: f64,
    /// One result per scheme.
    pub comparisons: Vec<Comparison>,
}

/// Losses at eight bits after the same number of steps.
pub struct Comparison {
    /// Further trained in f32, then quantized: post-training quantization.
    pub ptq_loss: f64,
    /// Further trained with rounding in the graph, then quantized.
    pub qat_loss: f64,
    /// The weights of the latter.
    pub qat: Granite,
}

/// Runs the whole experiment for one seed.
pub fn run(texts: &Texts, seed: u64) -> Result<Outcome> {
    let model = Granite::new(seed)?;
    let what = |way: &str| format!("seed {seed}, {way}");
    let first = what("f32 from random weights");
    train(&first, &model, texts, TRAINING, seed, Arithmetic::Float)?;
    let trained = float_loss(texts, &model)?;
    let trained_int8 = int8_loss(texts, &model, &Scheme::default())?;

    model.move_into_weights(&OUTLIER_CHANNELS, OUTLIER)?;
    let tune = |arithmetic| -> Result<Granite> {
        let copy = model.copy()?;
        // A different order of the text than before, the same for every copy.
        let way = match arithmetic {
            Arithmetic::Float => "with outliers in f32".into(),
            Arithmetic::FakeQuantized(scheme) => format!("with rounding, {scheme}"),
        };
        train(&what(&way), &copy, texts, TUNING, !seed, arithmetic)?;
        Ok(copy)
    };
    let float = tune(Arithmetic::Float)?;
    let compare = |scheme: &Scheme| -> Result<Comparison> {
        let qat = tune(Arithmetic::FakeQuantized(*scheme))?;
        Ok(Comparison {
            ptq_loss: int8_loss(texts, &float, scheme)?,
            qat_loss: int8_loss(texts, &qat, scheme)?,
            qat,
        })
    };
    let comparisons = SCHEMES.iter().map(compare).collect::<Result<_>>()?;
    let float_loss = float_loss(texts, &float)?;
    Ok(Outcome {
        trained,
        trained_int8,
        float,
        float_loss,
        comparisons,
    })
}

/// The loss in f32.
fn float_loss(texts: &Texts, model: &Granite) -> Result<f64> {
    held_out_loss(texts, |ids| Ok(model.logits_of(ids, Arithmetic::Float)?))
}

/// The loss on the serving kernels.
fn int8_loss(texts: &Texts, model: &Granite, scheme: &Scheme) -> Result<f64> {
    let mut served = int8::quantize(model, scheme)?;
    held_out_loss(texts, |ids| Ok(int8::logits(&mut served, ids).to_vec()))
}

/// Mean negative log-likelihood of each character of a held-out sequence but the first.
fn held_out_loss(texts: &Texts, mut logits: impl FnMut(&[u32]) -> Result<Vec<f32>>) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for ids in texts.held_out() {
        let logits = logits(ids)?;
        let rows = logits.chunks_exact(logits.len() / ids.len());
        for (row, next) in rows.zip(&ids[1..]) {
            sum -= log_softmax(row)[*next as usize];
            count += 1;
        }
    }
    Ok(sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_few_steps_int8_loses_less_than_half_with_rounding_in_the_graph() {
        let texts = Texts::new();
        let model = Granite::new(0).unwrap();
        let untrained = float_loss(&texts, &model).unwrap();
        let pace = |steps, pace| Pace { steps, ..pace };
        let training = pace(24, TRAINING);
        train("f32", &model, &texts, training, 0, Arithmetic::Float).unwrap();
        // A barely trained model needs larger outliers for a measurable loss.
        let factor = 4.0 * OUTLIER;
        model.move_into_weights(&OUTLIER_CHANNELS, factor).unwrap();
        let tuned = |arithmetic| {
            let copy = model.copy().unwrap();
            train("tuning", &copy, &texts, pace(12, TUNING), 1, arithmetic).unwrap();
            copy
        };
        let scheme = SCHEMES[0];
        let (float, qat) = (
            tuned(Arithmetic::Float),
            tuned(Arithmetic::FakeQuantized(scheme)),
        );
        let trained = float_loss(&texts, &float).unwrap();
        let ptq_cost = int8_loss(&texts, &float, &scheme).unwrap() - trained;
        let qat_cost = int8_loss(&texts, &qat, &scheme).unwrap() - trained;
        assert!(trained < untrained - 1.0, "{trained} after {untrained}");
        assert!(qat_cost < 0.5 * ptq_cost, "{qat_cost} against {ptq_cost}");
    }
}
