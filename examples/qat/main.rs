//! Quantization-aware training: the loss of int8 with and without training for it.
//!
//! A small Granite learns to predict the next character. Then it is trained further for the same number of steps in two
//! ways: in f32, and with the rounding of every linear layer in the graph. Both are quantized with the same settings
//! and run on the serving kernels. README.md beside this folder has the results and their meaning.
//!
//! | file | what it holds |
//! |---|---|
//! | `experiment.rs` | one seed from random weights to losses |
//! | `text.rs`, `model.rs`, `train.rs` | the task, the model with gradients, the loop |
//! | `fake_quant.rs` | rounding to eight bits with a gradient |
//! | `int8.rs` | the trained weights on the serving kernels |
//! | `export.rs` | a trained model as a checkpoint |

mod experiment;
mod export;
mod fake_quant;
mod int8;
mod model;
mod text;
mod train;

use std::path::PathBuf;
use std::thread;

use clap::Parser;

use experiment::{Comparison, Outcome, Result, SCHEMES, run};
use text::Texts;

/// Train a small Granite, train it further with and without int8 rounding, and compare both at int8.
#[derive(Parser)]
struct Args {
    /// Number of repetitions, each from different random weights. They run side by side.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,

    /// Write the models of the first seed to this folder, `float` and `qat` (for a scale per tensor, no rotation) as
    /// checkpoints, and the held-out text.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(folder) = &args.export {
        // Fails before the training if the folder cannot be written.
        std::fs::create_dir_all(folder).map_err(|e| microgranite::error::Error::io(folder, e))?;
    }
    let texts = Texts::new();
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let start = |seed| {
            let texts = &texts;
            scope.spawn(move || run(texts, seed))
        };
        let running: Vec<_> = (0..args.seeds).map(start).collect();
        let finished = running
            .into_iter()
            .map(|seed| seed.join().expect("a seed that panics has said why"));
        finished.collect::<Result<_>>()
    })?;
    report(&outcomes);
    if let Some(folder) = &args.export {
        export::export(&outcomes[0].float, &folder.join("float"))?;
        export::export(&outcomes[0].comparisons[0].qat, &folder.join("qat"))?;
        std::fs::write(folder.join("held-out.txt"), texts.held_out_text())?;
    }
    Ok(())
}

fn report(outcomes: &[Outcome]) {
    println!(
        "nats per character of held-out text, mean ± standard deviation of {} seeds",
        outcomes.len()
    );
    println!();
    let line = |name: &str, of: &dyn Fn(&Outcome) -> f64| {
        println!("{name:<44} {}", spread(outcomes.iter().map(of)));
    };
    line("f32, trained", &|outcome| outcome.trained);
    line("what the default int8 costs it", &|outcome| {
        outcome.trained_int8 - outcome.trained
    });
    line("f32 with outlier weights, trained on", &|outcome| {
        outcome.float_loss
    });
    println!();
    println!(
        "{:<44} {:>17}  {:>17}  {:>17}  QAT better",
        "what int8 costs the latter", "PTQ", "QAT", "PTQ − QAT"
    );
    for (index, scheme) in SCHEMES.iter().enumerate() {
        let of = |value: &dyn Fn(&Outcome, &Comparison) -> f64| {
            let values = outcomes
                .iter()
                .map(|outcome| value(outcome, &outcome.comparisons[index]));
            spread(values)
        };
        let better = outcomes.iter().filter(|outcome| {
            let Comparison {
                ptq_loss, qat_loss, ..
            } = outcome.comparisons[index];
            qat_loss < ptq_loss
        });
        println!(
            "{:<44} {}  {}  {}  {} of {}",
            scheme.to_string(),
            of(&|outcome, comparison| comparison.ptq_loss - outcome.float_loss),
            of(&|outcome, comparison| comparison.qat_loss - outcome.float_loss),
            of(&|_, comparison| comparison.ptq_loss - comparison.qat_loss),
            better.count(),
            outcomes.len()
        );
    }
}

/// Mean and sample standard deviation.
fn spread(values: impl Iterator<Item = f64>) -> String {
    let values: Vec<f64> = values.collect();
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
    format!("{mean:>8.4} ± {deviation:.4}")
}
