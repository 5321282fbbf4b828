//! `bench --quick`: what published shapes would give on this machine, from a few layers of each.
//!
//! All layers of a shape cost the same, but for the four with attention among the 40 of a hybrid, of which there is one
//! among the few that are measured. So some layers are measured, together with the head, and the rest is arithmetic.

use std::fmt;

use serde::Serialize;

use super::given::Given;
use super::limits::{Limits, Meter};
use super::machine::Machine;
use super::measure::{self, Plan};
use crate::cli::progress::Progress;
use crate::config::ByteSize;
use crate::error::Result;
use crate::int8::compute::Compute;
use crate::int8::kernels;
use crate::memory;
use crate::model::{self, MixerKind, ModelConfig, shapes};

/// One shape of each kind that people run, from small to large.
const SHAPES: [&str; 4] = [
    "granite-3.3-2b",
    "granite-4.1-3b",
    "granite-4.1-8b",
    "granite-4.0-h-tiny",
];

/// Streams that are decoded at once, besides a single one.
const STREAMS: usize = 8;

/// Bytes of weights to measure: more than a last-level cache holds, so that they come from memory.
const WEIGHTS: u64 = 512 << 20;

/// Time that a prompt of some layers may take; three are timed of each shape.
const PROMPT_SECONDS: f64 = 0.4;

/// Memory that a server takes besides weights, at least.
const BESIDES: u64 = 256 << 20;

/// The machine and what it would give.
#[derive(Debug, Serialize)]
pub struct Outlook {
    #[serde(flatten)]
    machine: Machine,
    isa: &'static str,
    threads: usize,
    memory_bytes: Option<u64>,
    read_gb_s: f64,
    int8_tops: f64,
    /// The processor time that the threads got, least over the shapes.
    undisturbed: Option<bool>,
    shapes: Vec<Estimate>,
    notes: Vec<String>,
}

/// What one shape would give.
#[derive(Debug, Serialize)]
struct Estimate {
    shape: &'static str,
    weight_bytes: u64,
    /// Whether the machine has memory for it.
    fits: bool,
    prompt_tok_s: f64,
    time_to_first_token_512_s: f64,
    one_stream_tok_s: f64,
    eight_streams_tok_s: f64,
}

/// Measures for about ten seconds.
///
/// # Errors
/// [`crate::error::Error::Config`] if there is not enough memory for half a gigabyte of weights.
pub fn run(threads: usize, bar: bool) -> Result<Outlook> {
    let machine = Machine::this();
    let kernel = kernels::best();
    let limits = {
        let mut compute = Compute::new(threads)?;
        Meter::new()?.measure(kernel, &mut compute.pool)
    };
    let memory_bytes = memory::limit().map(|limit| limit.bytes);
    let mut progress = Progress::new("measuring", bar);
    let mut shapes = Vec::new();
    let mut given: Vec<Given> = Vec::new();
    for (index, shape) in SHAPES.into_iter().enumerate() {
        progress.show(index as u64, SHAPES.len() as u64);
        let (estimate, got) = estimate(shape, threads, limits, memory_bytes)?;
        shapes.push(estimate);
        given.extend(got);
    }
    progress.finish();
    let measured = given.len() == SHAPES.len();
    Ok(Outlook {
        notes: machine.notes(kernel.name(), threads, limits.read),
        machine,
        isa: kernel.name(),
        threads,
        memory_bytes,
        read_gb_s: limits.read / 1e9,
        int8_tops: limits.int8 / 1e12,
        undisturbed: measured.then(|| given.iter().all(Given::is_undisturbed)),
        shapes,
    })
}

fn estimate(
    shape: &'static str,
    threads: usize,
    limits: Limits,
    memory_bytes: Option<u64>,
) -> Result<(Estimate, Option<Given>)> {
    let config = shapes::named(shape).expect("a published shape");
    let whole = model::footprint(&config).weights;
    let part = Part::of(&config, limits);
    let plan = Plan {
        prompts: vec![part.tokens],
        context: measure::STREAM_CONTEXT,
        batches: vec![1, STREAMS],
        runs: 3,
        steps: 4,
    };
    let settings = model::Settings {
        threads,
        slots: plan.sequences(),
        snapshots: 0,
        kv_bytes: plan.pages() as u64 * model::footprint(&part.config).kv_page,
        context: None,
        weights: model::Placement::default(),
    };
    super::check_room(model::footprint(&part.config), &plan)?;
    let mut model = model::random(part.config.clone(), &settings)?;
    // The shapes are the progress that is shown.
    let results = measure::run(&mut model, &plan, Progress::new("measuring", false))?;
    let all = |seconds: f64, rows: usize, limits: Limits| {
        part.all_layers(seconds, part.head_seconds(rows, limits))
    };
    let [prefill] = &results.prefill[..] else {
        unreachable!("the plan has one prompt");
    };
    let prompt = all(prefill.seconds, 1, prefill.limits);
    let prompt_tok_s = prefill.tokens as f64 / prompt;
    let [one, many] = &results.decode[..] else {
        unreachable!("the plan has two batches");
    };
    let one_stream = all(one.step_seconds, 1, one.limits);
    let eight_streams = all(many.step_seconds, STREAMS, many.limits);
    let estimate = Estimate {
        shape,
        weight_bytes: whole,
        fits: memory_bytes.is_none_or(|bytes| whole + BESIDES <= bytes),
        prompt_tok_s,
        time_to_first_token_512_s: 512.0 / prompt_tok_s,
        one_stream_tok_s: 1.0 / one_stream,
        eight_streams_tok_s: STREAMS as f64 / eight_streams,
    };
    Ok((estimate, results.given))
}

/// Some layers of a model, and the prompt to measure them with.
struct Part {
    config: ModelConfig,
    /// Layers of the whole model.
    layers: usize,
    /// Tokens of the prompt.
    tokens: usize,
    /// Int8 products of the head for a row.
    head: f64,
}

impl Part {
    /// As many layers as are more than a cache holds, but fewer layers and tokens where the machine is slow.
    fn of(config: &ModelConfig, limits: Limits) -> Self {
        let with = |layers: usize| {
            let mut mixers = config.mixers[..layers].to_vec();
            // Every model has a layer with attention, and so pages.
            if !mixers.contains(&MixerKind::Attention) {
                mixers[layers - 1] = MixerKind::Attention;
            }
            ModelConfig {
                mixers,
                ..config.clone()
            }
        };
        let layers = config.num_layers();
        let head = (config.vocab_size * config.hidden_size) as u64;
        let layer =
            (model::footprint(&with(2)).weights - model::footprint(&with(1)).weights).max(1);
        let most = (WEIGHTS.div_ceil(layer) as usize).clamp(1, layers);
        // Of experts, each token takes a few only; this counts all and errs towards less work.
        let seconds = |layers: usize, tokens: usize| {
            2.0 * (layer * layers as u64) as f64 * tokens as f64 / limits.int8
        };
        let tokens = [128, 32, 8]
            .into_iter()
            .find(|tokens| seconds(1, *tokens) <= PROMPT_SECONDS)
            .unwrap_or(8);
        let count = (1..=most)
            .rev()
            .find(|count| seconds(*count, tokens) <= PROMPT_SECONDS)
            .unwrap_or(1);
        Self {
            config: with(count),
            layers,
            tokens,
            head: head as f64,
        }
    }

    /// The time that the head takes for the logits of `rows` rows: its bytes are read once.
    fn head_seconds(&self, rows: usize, limits: Limits) -> f64 {
        (self.head / limits.read).max(2.0 * self.head * rows as f64 / limits.int8)
    }

    /// The time of all layers and the head, where some layers and the head took `seconds`.
    fn all_layers(&self, seconds: f64, head: f64) -> f64 {
        let head = head.min(seconds);
        head + (seconds - head) * self.layers as f64 / self.config.num_layers() as f64
    }
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.machine.cpu.as_deref().unwrap_or("processor");
        let memory = self
            .memory_bytes
            .map_or("unknown".into(), |bytes| ByteSize(bytes).to_string());
        writeln!(
            f,
            "machine    {cpu}: {} threads with {}, {memory} of memory",
            self.threads, self.isa
        )?;
        writeln!(
            f,
            "limits     memory reads {:.1} GB/s, int8 computes {:.2} TOPS",
            self.read_gb_s, self.int8_tops
        )?;
        if self.undisturbed == Some(false) {
            writeln!(
                f,
                "warning    the machine was busy: it can do better than this"
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "                     weights   prompt tokens/s   512 tokens take   1 stream tokens/s   8 streams tokens/s"
        )?;
        for shape in &self.shapes {
            writeln!(
                f,
                "{:<18} {:>9} {:>17.0} {:>15.1} s {:>19.1} {:>20.0}{}",
                shape.shape,
                ByteSize(shape.weight_bytes).to_string(),
                shape.prompt_tok_s,
                shape.time_to_first_token_512_s,
                shape.one_stream_tok_s,
                shape.eight_streams_tok_s,
                if shape.fits {
                    ""
                } else {
                    "   does not fit in memory"
                }
            )?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        for note in &self.notes {
            writeln!(f, "note       {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Limits = Limits {
        read: 50e9,
        int8: 2e12,
        f32: 5e11,
    };

    #[test]
    fn a_fast_machine_measures_more_than_its_cache_and_a_slow_one_little() {
        for shape in SHAPES {
            let config = shapes::named(shape).unwrap();
            let part = Part::of(&config, FAST);
            let weights = model::footprint(&part.config).weights;
            assert!(
                weights >= WEIGHTS && part.config.num_layers() < 12,
                "{shape}"
            );
            assert_eq!(part.tokens, 128, "{shape}");
            let slow = Limits { int8: 1e9, ..FAST };
            let part = Part::of(&config, slow);
            assert_eq!((part.config.num_layers(), part.tokens), (1, 8), "{shape}");
        }
    }

    #[test]
    fn the_head_is_counted_once_and_the_layers_as_often_as_they_are_there() {
        let config = shapes::named("granite-3.3-2b").unwrap();
        let part = Part::of(&config, FAST);
        let layers = part.config.num_layers() as f64;
        let head = part.head_seconds(1, FAST);
        assert_eq!(head, 49_159.0 * 2048.0 / 50e9);
        let seconds = part.all_layers(head + layers * 0.001, head);
        assert!((seconds - (head + 0.040)).abs() < 1e-9, "{seconds}");
        // A head that cannot have taken this long leaves no time for layers.
        assert_eq!(part.all_layers(head / 2.0, head), head / 2.0);
    }
}
