//! Runs the trained weights on the serving kernels.

use std::ops::Range;
use std::path::PathBuf;

use candle_core::Tensor;
use microgranite::error::{Error, Result};
use microgranite::int8::compute::Compute;
use microgranite::int8::scheme::Scheme;
use microgranite::model::{Forward, Granite as Served, PAGE_TOKENS, Span, blueprint, quantizer};
use microgranite::sources::Tensors;

use crate::model::Granite;
use crate::text::CONTEXT;

/// A model in memory as a source of tensors to quantize.
struct InMemory<'a>(&'a Granite);

impl InMemory<'_> {
    fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.0.weights().get(name).map(|var| var.as_tensor())
    }
}

impl Tensors for InMemory<'_> {
    fn file(&self, _: &str) -> PathBuf {
        "memory".into()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensor(name).map(|tensor| tensor.dims().to_vec())
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let read = || {
            let tensor = self.tensor(name).expect("a tensor of the model");
            let rows = match tensor.rank() {
                1 => tensor.clone(),
                _ => tensor.narrow(0, rows.start, rows.len())?,
            };
            rows.flatten_all()?.to_vec1::<f32>()
        };
        let values = read().map_err(|e| Error::Internal(e.to_string()))?;
        out.copy_from_slice(&values);
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.0.weights().keys().cloned().collect()
    }

    fn stored_bytes(&self) -> u64 {
        let counts = self.0.weights().values().map(|var| var.elem_count());
        (counts.sum::<usize>() * size_of::<f32>()) as u64
    }
}

/// Packs the weights as `microgranite quantize --rounding nearest` does and sets the model up as `serve` does.
pub fn quantize(model: &Granite, scheme: &Scheme) -> Result<Served> {
    let (config, mut compute) = (model.config.clone(), Compute::new(1)?);
    let weights = quantizer::load(
        &config,
        &blueprint(&config),
        &InMemory(model),
        scheme,
        &mut compute,
        &mut |_, _| (),
    )?;
    let pages = CONTEXT.div_ceil(PAGE_TOKENS);
    Served::new(config, weights, pages, [1, 0], CONTEXT, compute)
}

/// The logits after every token of a sequence that starts at position 0: `[ids.len()][vocab]`.
pub fn logits<'a>(model: &'a mut Served, ids: &[u32]) -> &'a [f32] {
    let span = Span {
        tokens: ids,
        start: 0,
        pages: &[0],
        slot: 0,
        certain: usize::MAX,
        restore: None,
        saves: &[],
        logit_rows: ids.len(),
    };
    model.forward(&[span])
}

#[cfg(test)]
mod tests {
    use microgranite::int8::rotation::Rotation;
    use microgranite::int8::scheme::Granularity;

    use super::*;
    use crate::model::Arithmetic;
    use crate::text::Texts;

    #[test]
    fn fake_quantized_logits_are_those_of_the_served_model() {
        let texts = Texts::new();
        let ids = texts.held_out().next().unwrap();
        let model = Granite::new(4).unwrap();
        // Outliers, so that eight bits have a measurable loss.
        model.move_into_weights(&[5, 40], 32.0).unwrap();
        let scheme = Scheme {
            granularity: Granularity::Tensor,
            rotation: Rotation::None,
            ..Scheme::default()
        };
        let float = model.logits_of(ids, Arithmetic::Float).unwrap();
        let fake = Arithmetic::FakeQuantized(scheme);
        let fake = model.logits_of(ids, fake).unwrap();
        let mut served = quantize(&model, &scheme).unwrap();
        let served = logits(&mut served, ids);
        let distance = |other: &[f32]| {
            let squares = served.iter().zip(other).map(|(a, b)| (a - b).powi(2));
            squares.sum::<f32>().sqrt()
        };
        // The remaining difference is the KV cache, which is int8 only in the served model.
        let (from_fake, from_float) = (distance(&fake), distance(&float));
        assert!(
            from_fake < 0.4 * from_float,
            "{from_fake} against {from_float}"
        );
    }
}
