//! The timed work: prompts and decoding steps, with the limits measured in between.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::limits::{Limits, Meter, median};
use crate::error::Result;
use crate::model::{Forward, Granite, PAGE_TOKENS, Span};

/// Tokens that every stream holds when its decoding is timed: a page, so that attention has something to read.
const STREAM_PROMPT: usize = PAGE_TOKENS;

/// What to measure.
pub struct Plan {
    pub prompt: usize,
    pub batches: Vec<usize>,
    pub runs: usize,
    pub steps: usize,
}

/// Medians over the runs; the limits beside each are medians of measurements taken between those very runs.
pub struct Results {
    pub limits: Limits,
    pub prefill: Prefill,
    pub decode: Vec<Decode>,
}

/// One prompt.
pub struct Prefill {
    pub tokens: usize,
    pub seconds: f64,
    pub limits: Limits,
}

/// Steps of several streams.
pub struct Decode {
    pub streams: usize,
    pub step_seconds: f64,
    pub limits: Limits,
}

impl Plan {
    /// The longest sequence.
    pub fn longest(&self) -> usize {
        self.prompt.max(STREAM_PROMPT + self.steps)
    }

    /// KV pages that the largest measurement needs.
    pub fn pages(&self) -> usize {
        let streams = self.batches.iter().max().copied().unwrap_or(1);
        (streams * self.stream_pages()).max(self.prompt.div_ceil(PAGE_TOKENS))
    }

    fn stream_pages(&self) -> usize {
        (STREAM_PROMPT + self.steps).div_ceil(PAGE_TOKENS)
    }
}

/// Runs the plan behind a progress bar on standard error.
///
/// # Errors
/// [`crate::error::Error::Config`] if there is no memory to measure.
pub fn run(model: &mut Granite, plan: &Plan) -> Result<Results> {
    let bar = ProgressBar::new((plan.runs * (1 + plan.batches.len())) as u64);
    bar.set_style(
        ProgressStyle::with_template("{msg:28} {wide_bar} {pos}/{len}").expect("a valid template"),
    );
    let meter = Meter::new()?;
    let mut all = Vec::new();
    let mut sample = |model: &mut Granite, bar: &ProgressBar| {
        bar.inc(1);
        let limits = meter.measure(model.kernel(), model.pool());
        all.push(limits);
        limits
    };

    bar.set_message(format!("prefill of {} tokens", plan.prompt));
    prefill(model, plan.prompt.min(PAGE_TOKENS));
    let runs: Vec<_> = (0..plan.runs)
        .map(|_| (prefill(model, plan.prompt), sample(model, &bar)))
        .collect();
    let prefill = Prefill {
        tokens: plan.prompt,
        seconds: time(&runs),
        limits: limits(&runs),
    };

    model.fill_cache();
    let mut decode = Vec::new();
    for &streams in &plan.batches {
        bar.set_message(format!("decode of {streams} streams"));
        let runs: Vec<_> = (0..plan.runs)
            .map(|_| (steps(model, plan, streams), sample(model, &bar)))
            .collect();
        decode.push(Decode {
            streams,
            step_seconds: time(&runs),
            limits: limits(&runs),
        });
    }
    bar.finish_and_clear();
    Ok(Results {
        limits: medians(&all),
        prefill,
        decode,
    })
}

fn time(runs: &[(Duration, Limits)]) -> f64 {
    median(runs.iter().map(|run| run.0.as_secs_f64()))
}

fn limits(runs: &[(Duration, Limits)]) -> Limits {
    medians(&runs.iter().map(|run| run.1).collect::<Vec<_>>())
}

fn medians(limits: &[Limits]) -> Limits {
    Limits {
        read: median(limits.iter().map(|limits| limits.read)),
        int8: median(limits.iter().map(|limits| limits.int8)),
        f32: median(limits.iter().map(|limits| limits.f32)),
    }
}

/// Some ids, all different enough that the embedding is not read from cache.
fn ids(model: &Granite, count: usize) -> Vec<u32> {
    let vocab = model.vocab_size() as u64;
    (0..count as u64)
        .map(|i| (i * 7919 % vocab) as u32)
        .collect()
}

/// Times one prompt of `tokens` ids up to its logits.
fn prefill(model: &mut Granite, tokens: usize) -> Duration {
    let ids = ids(model, tokens);
    let pages: Vec<u32> = (0..tokens.div_ceil(PAGE_TOKENS) as u32).collect();
    let start = Instant::now();
    model.forward(&[Span {
        tokens: &ids,
        start: 0,
        pages: &pages,
        logit_rows: 1,
    }]);
    start.elapsed()
}

/// Times the decoding steps of `streams` sequences; returns the median step.
fn steps(model: &mut Granite, plan: &Plan, streams: usize) -> Duration {
    let each = plan.stream_pages() as u32;
    let pages: Vec<Vec<u32>> = (0..streams as u32)
        .map(|i| (i * each..(i + 1) * each).collect())
        .collect();
    let tokens = ids(model, streams);
    let step = |model: &mut Granite, index: usize| {
        let spans: Vec<Span<'_>> = pages
            .iter()
            .zip(tokens.chunks(1))
            .map(|(pages, tokens)| Span {
                tokens,
                start: STREAM_PROMPT + index,
                pages,
                logit_rows: 1,
            })
            .collect();
        let start = Instant::now();
        model.forward(&spans);
        start.elapsed().as_secs_f64()
    };
    Duration::from_secs_f64(median((0..plan.steps).map(|index| step(model, index))))
}
