//! One side of the comparison, in a process of its own: loads the model in one format, runs a prompt and decoding steps,
//! and prints what that took.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::energy::Meter;
use crate::config;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::packed::{Measured, Placement};
use crate::model::{self, Forward, Granite, ModelConfig, PAGE_TOKENS, Span};
use crate::sources::{self, Reference};
use crate::study::evaluate::median;
use crate::study::reference::{Arithmetic, Reference as FloatModel};

/// The name of the hidden command.
pub const COMMAND: &str = "measure-format";

/// The arguments of the hidden command.
#[derive(Debug, clap::Args)]
pub struct Args {
    reference: Reference,
    #[arg(value_enum)]
    format: Format,
    #[arg(long)]
    prompt: usize,
    #[arg(long)]
    steps: usize,
    #[arg(long, value_parser = config::thread_count)]
    threads: Option<usize>,
}

/// What a side computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The served path.
    Int8,
    /// The reference.
    F32,
}

/// What the process prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Printed {
    /// The model's name.
    pub model: String,
    /// The instruction set, of the int8 side.
    pub kernel: String,
    /// What it took.
    pub measured: Measured,
}

/// A loaded model, in either format.
enum Side {
    Int8(Box<Granite>),
    F32(Box<FloatModel>),
}

/// Measures and prints a [`Printed`].
///
/// # Errors
/// The errors of loading and running the model, and [`Error::Unavailable`] where the system does not say what a process
/// uses.
pub fn run(args: &Args, sources: &sources::Settings) -> Result<()> {
    let began = Instant::now();
    let checkpoint = sources::open(&args.reference, sources)?;
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    let threads = config::threads(args.threads);
    let mut side = match args.format {
        Format::Int8 => {
            let longest = args.prompt + args.steps;
            let settings = model::Settings {
                threads,
                slots: 1,
                snapshots: 0,
                kv_bytes: longest.div_ceil(PAGE_TOKENS) as u64 * model::footprint(&config).kv_page,
                context: None,
                weights: Placement::default(),
            };
            Side::Int8(Box::new(model::load(
                &checkpoint,
                &settings,
                &mut |_, _| (),
            )?))
        }
        Format::F32 => {
            let tensors = checkpoint.tensors()?;
            Side::F32(Box::new(FloatModel::load(
                &config,
                tensors,
                Arithmetic::F32,
            )?))
        }
    };
    let ready = began.elapsed();
    let model = checkpoint.name.clone();
    // A server does not keep what only loading needs, such as the float file that was quantized.
    drop(checkpoint);

    let vocab = config.vocab_size as u64;
    // Spread, so that the embedding is not read from the cache.
    let ids: Vec<u32> = (0..(args.prompt + args.steps) as u64)
        .map(|i| (i * 7919 % vocab) as u32)
        .collect();
    let energy = Meter::start();
    let timed = Instant::now();
    side.prefill(&ids[..args.prompt])?;
    let prefill = timed.elapsed().as_secs_f64();
    let mut steps = Vec::new();
    for position in args.prompt..args.prompt + args.steps {
        let timed = Instant::now();
        side.decode(&ids[..=position])?;
        steps.push(timed.elapsed().as_secs_f64());
    }
    steps.sort_by(f64::total_cmp);
    let joules = energy.as_ref().and_then(Meter::joules);

    let unknown = || Error::Unavailable("this system does not say what a process uses".to_owned());
    let resident = memory::resident().ok_or_else(unknown)?;
    let peak = memory::peak().ok_or_else(unknown)?;
    let all = resident.anon + resident.file + resident.shmem;
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let printed = Printed {
        model,
        kernel: match &side {
            Side::Int8(granite) => granite.kernel().name().to_owned(),
            Side::F32(_) => "candle".to_owned(),
        },
        measured: Measured {
            resident_bytes: all,
            resident_file_bytes: resident.file,
            // The kernel's peak is exact only to a few pages on each processor.
            peak_bytes: peak.max(all),
            ready_seconds: ready.as_secs_f64(),
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            prefill_tokens_per_second: args.prompt as f64 / prefill,
            decode_tokens_per_second: 1.0 / median(&steps),
            joules_per_token: joules.map(|joules| joules / (args.prompt + args.steps) as f64),
        },
    };
    let text = serde_json::to_string(&printed).map_err(|e| Error::Internal(e.to_string()))?;
    println!("{text}");
    Ok(())
}

impl Side {
    /// Computes a prompt up to its last token's logits.
    fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        match self {
            Self::Int8(granite) => step(granite, ids, 0),
            Self::F32(float) => float.next_logits(ids).map(drop)?,
        }
        Ok(())
    }

    /// Computes the last of `ids`, which follow each other.
    fn decode(&mut self, ids: &[u32]) -> Result<()> {
        let last = ids.len() - 1;
        match self {
            Self::Int8(granite) => step(granite, &ids[last..], last),
            // The reference keeps no keys and values. It runs the one token without those before it: every weight is
            // read once, and attention to earlier tokens comes for free.
            Self::F32(float) => float.next_logits(&ids[last..]).map(drop)?,
        }
        Ok(())
    }
}

/// Runs tokens of the one sequence from position `start` on.
fn step(granite: &mut Granite, tokens: &[u32], start: usize) {
    let end = start + tokens.len();
    let pages: Vec<u32> = (0..end.div_ceil(PAGE_TOKENS) as u32).collect();
    granite.forward(&[Span {
        tokens,
        start,
        pages: &pages,
        slot: 0,
        certain: usize::MAX,
        restore: None,
        saves: &[],
        logit_rows: 1,
    }]);
}
