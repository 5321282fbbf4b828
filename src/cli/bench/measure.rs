//! The timed work: prompts and decoding steps, with the limits measured in between.

use std::time::{Duration, Instant};

use super::given::{Given, Watch};
use super::limits::{Limits, Meter, median};
use crate::cli::progress::Progress;
use crate::engine;
use crate::error::Result;
use crate::model::{Forward, Granite, PAGE_TOKENS, Span};

/// Tokens of every stream before its decoding is timed, where nothing else is asked for: a page, so that attention has
/// something to read.
pub const STREAM_CONTEXT: usize = PAGE_TOKENS;

/// Time between two measurements of the limits: several times what one takes, and less than the seconds for which a host's memory
/// keeps its speed.
const BETWEEN_LIMITS: Duration = Duration::from_millis(100);

/// What to measure.
pub struct Plan {
    pub prompts: Vec<usize>,
    pub context: usize,
    pub batches: Vec<usize>,
    pub runs: usize,
    pub steps: usize,
}

/// Medians over the prompts and steps that were timed, and the limits that go with them, see [`beside`].
pub struct Results {
    pub limits: Limits,
    pub prefill: Vec<Prefill>,
    pub decode: Vec<Decode>,
    /// The processor time that the threads got, if the system reports it.
    pub given: Option<Given>,
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
    /// Tokens of each stream before the first step.
    pub context: usize,
    /// Bytes that a step moves: weights, states, and the keys and values of the context.
    pub bytes: u64,
    pub limits: Limits,
}

impl Plan {
    /// The longest sequence.
    pub fn longest(&self) -> usize {
        self.longest_prompt().max(self.context + self.steps)
    }

    fn longest_prompt(&self) -> usize {
        self.prompts.iter().max().copied().unwrap_or(1)
    }

    /// The most sequences at once.
    pub fn sequences(&self) -> usize {
        self.batches.iter().max().copied().unwrap_or(1)
    }

    /// KV pages that the largest measurement needs.
    pub fn pages(&self) -> usize {
        (self.sequences() * self.stream_pages()).max(self.longest_prompt().div_ceil(PAGE_TOKENS))
    }

    fn stream_pages(&self) -> usize {
        (self.context + self.steps).div_ceil(PAGE_TOKENS)
    }
}

/// Runs the plan and shows its progress.
///
/// # Errors
/// [`crate::error::Error::Config`] if there is not enough memory.
pub fn run(model: &mut Granite, plan: &Plan, mut progress: Progress) -> Result<Results> {
    let total = (plan.runs * (plan.prompts.len() + plan.batches.len() * plan.steps)) as u64;
    let meter = Meter::new()?;
    let mut watch = Watch::default();
    let mut all = Vec::new();
    prefill(model, PAGE_TOKENS.min(plan.longest_prompt()));
    let mut before = meter.measure(model.kernel(), model.pool());
    let mut done = 0;
    // Some prompts or steps, each with the limits right before and after them.
    let mut sample = |model: &mut Granite, timed: &mut dyn FnMut(&mut Granite) -> Vec<Duration>| {
        let times = timed(model);
        let after = meter.measure(model.kernel(), model.pool());
        all.push(after);
        done += times.len() as u64;
        progress.show(done, total);
        let limits = before.mean(after);
        before = after;
        let times = times.into_iter().map(|time| time.as_secs_f64());
        times.map(|time| (time, limits)).collect::<Vec<_>>()
    };

    let mut prompts = Vec::new();
    watch.during(|| {
        for &tokens in &plan.prompts {
            let samples: Vec<_> = (0..plan.runs)
                .flat_map(|_| sample(model, &mut |model| vec![prefill(model, tokens)]))
                .collect();
            prompts.push(Prefill {
                tokens,
                seconds: seconds(&samples),
                limits: beside(&samples),
            });
        }
    });

    model.fill_cache();
    let mut decode = Vec::new();
    watch.during(|| {
        for &streams in &plan.batches {
            let mut samples = Vec::new();
            for _ in 0..plan.runs {
                let mut indices = 0..plan.steps;
                while !indices.is_empty() {
                    samples.extend(sample(model, &mut |model| {
                        let (began, mut times) = (Instant::now(), Vec::new());
                        while began.elapsed() < BETWEEN_LIMITS
                            && let Some(index) = indices.next()
                        {
                            times.push(step(model, plan, streams, index));
                        }
                        times
                    }));
                }
            }
            decode.push(Decode {
                streams,
                step_seconds: seconds(&samples),
                context: plan.context,
                bytes: model.bytes_of_last_step(streams)
                    + cached_bytes(model, streams * plan.context),
                limits: beside(&samples),
            });
        }
    });
    progress.finish();
    let cpus = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let cpus = cpus.lines().filter(|line| line.starts_with("cpu")).count();
    Ok(Results {
        limits: medians(&all),
        prefill: prompts,
        decode,
        // The first line is the sum of the others.
        given: watch.given(model.threads(), cpus.saturating_sub(1)),
    })
}

/// Bytes of the keys and values of `tokens` tokens.
fn cached_bytes(model: &Granite, tokens: usize) -> u64 {
    (model.page_bytes() / PAGE_TOKENS * tokens) as u64
}

fn seconds(samples: &[(f64, Limits)]) -> f64 {
    median(samples.iter().map(|sample| sample.0))
}

/// The limits beside the median time: a share that is computed with both is the median of the samples' own shares. Some
/// hosts' memory changes its speed every few seconds, and medians of each would be of different moments.
fn beside(samples: &[(f64, Limits)]) -> Limits {
    let time = seconds(samples);
    let paired = |limit: fn(&Limits) -> f64| {
        let done = samples
            .iter()
            .map(|(seconds, limits)| seconds * limit(limits));
        median(done) / time
    };
    Limits {
        read: paired(|limits| limits.read),
        int8: paired(|limits| limits.int8),
        f32: paired(|limits| limits.f32),
    }
}

fn medians(limits: &[Limits]) -> Limits {
    Limits {
        read: median(limits.iter().map(|limits| limits.read)),
        int8: median(limits.iter().map(|limits| limits.int8)),
        f32: median(limits.iter().map(|limits| limits.f32)),
    }
}

/// Some ids, spread so that the embedding is not read from the cache.
fn ids(model: &Granite, count: usize) -> Vec<u32> {
    let vocab = model.vocab_size() as u64;
    (0..count as u64)
        .map(|i| (i * 7919 % vocab) as u32)
        .collect()
}

/// Times one prompt of `tokens` ids up to its logits, in steps of as many rows as the server takes.
fn prefill(model: &mut Granite, tokens: usize) -> Duration {
    let step = engine::Settings::default().step_tokens;
    let ids = ids(model, tokens);
    let pages: Vec<u32> = (0..tokens.div_ceil(PAGE_TOKENS) as u32).collect();
    let timer = Instant::now();
    for start in (0..tokens).step_by(step) {
        let end = tokens.min(start + step);
        model.forward(&[Span {
            tokens: &ids[start..end],
            start,
            pages: &pages,
            slot: 0,
            certain: usize::MAX,
            restore: None,
            saves: &[],
            logit_rows: usize::from(end == tokens),
        }]);
    }
    timer.elapsed()
}

/// Times step `index` of `streams` sequences.
fn step(model: &mut Granite, plan: &Plan, streams: usize, index: usize) -> Duration {
    let each = plan.stream_pages() as u32;
    let pages: Vec<Vec<u32>> = (0..streams as u32)
        .map(|i| (i * each..(i + 1) * each).collect())
        .collect();
    let tokens = ids(model, streams);
    let spans: Vec<Span<'_>> = pages
        .iter()
        .zip(tokens.chunks(1))
        .zip(0..)
        .map(|((pages, tokens), slot)| Span {
            tokens,
            start: plan.context + index,
            pages,
            slot,
            certain: usize::MAX,
            restore: None,
            saves: &[],
            logit_rows: 1,
        })
        .collect();
    let start = Instant::now();
    model.forward(&spans);
    start.elapsed()
}
