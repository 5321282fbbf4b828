//! Quantization-aware training.

mod export;
mod fake_quant;
mod int8;
mod model;
mod text;
mod train;

use std::error::Error;
use std::time::Instant;

use microgranite::int8::rotation::Rotation;
use microgranite::int8::scheme::{Granularity, Scheme};
use microgranite::model::evaluate::log_softmax;

use model::{Arithmetic, Granite};
use text::Texts;
use train::{Schedule, train};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn loss_of(texts: &Texts, mut logits: impl FnMut(&[u32]) -> Result<Vec<f32>>) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for ids in texts.held_out() {
        let logits = logits(ids)?;
        let width = logits.len() / ids.len();
        for (row, next) in logits.chunks_exact(width).zip(&ids[1..]) {
            sum -= log_softmax(row)[*next as usize];
            count += 1;
        }
    }
    Ok(sum / f64::from(count))
}

fn graph_loss(texts: &Texts, model: &Granite, arithmetic: Arithmetic) -> Result<f64> {
    loss_of(texts, |ids| Ok(model.logits_of(ids, arithmetic)?))
}

fn int8_loss(texts: &Texts, model: &Granite, scheme: &Scheme) -> Result<f64> {
    let mut served = int8::quantize(model, scheme)?;
    loss_of(texts, |ids| Ok(int8::logits(&mut served, ids).to_vec()))
}

fn main() -> Result<()> {
    let texts = Texts::new();
    let var =
        |name: &str, default: f64| std::env::var(name).map_or(default, |v| v.parse().unwrap());
    let steps = var("STEPS", 600.0) as usize;
    let more = var("MORE", 200.0) as usize;
    let lr = var("LR", 5e-3);
    let tune = var("TUNE", 5e-4);
    for seed in 0..var("SEEDS", 1.0) as u64 {
        let model = Granite::new(seed)?;
        let start = Instant::now();
        let schedule = Schedule {
            steps,
            learning_rate: lr,
            seed,
        };
        let loss = train(&model, &texts, schedule, Arithmetic::Float)?;
        println!("seed {seed}: float {loss:.4} {:?}", start.elapsed());
        println!(
            "  held out {:.4}",
            graph_loss(&texts, &model, Arithmetic::Float)?
        );
        for (factor, tune) in [(32.0, tune), (1.0 / 32.0, tune)] {
            let model = model.copy()?;
            model.scale_channels(&[5, 40], factor as f32)?;
            println!("factor {factor}");
            let schedule = Schedule {
                steps: more,
                learning_rate: tune,
                seed: seed + 1000,
            };
            let control = model.copy()?;
            let start = Instant::now();
            train(&control, &texts, schedule, Arithmetic::Float)?;
            let float = graph_loss(&texts, &control, Arithmetic::Float)?;
            println!("  control {float:.4} {:?}", start.elapsed());
            for (granularity, rotation) in [
                (Granularity::Channel, Rotation::Full),
                (Granularity::Channel, Rotation::None),
                (Granularity::Tensor, Rotation::Full),
                (Granularity::Tensor, Rotation::None),
            ] {
                let scheme = Scheme {
                    granularity,
                    rotation,
                    ..Scheme::default()
                };
                let ptq = int8_loss(&texts, &control, &scheme)?;
                let fake = graph_loss(&texts, &control, Arithmetic::FakeQuantized(scheme))?;
                println!(
                    "  {scheme}: ptq {ptq:.4} ({:+.4}) fake {:+.4}",
                    ptq - float,
                    fake - float
                );
                if rotation == Rotation::None {
                    let start = Instant::now();
                    let tuned = model.copy()?;
                    train(&tuned, &texts, schedule, Arithmetic::FakeQuantized(scheme))?;
                    let qat = int8_loss(&texts, &tuned, &scheme)?;
                    let own = graph_loss(&texts, &tuned, Arithmetic::Float)?;
                    println!(
                        "      qat {qat:.4} ({:+.4}), own float {own:.4} {:?}",
                        qat - float,
                        start.elapsed()
                    );
                }
            }
        }
    }
    Ok(())
}
