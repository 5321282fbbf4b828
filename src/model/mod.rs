//! Granite in the words of its `config.json`: configuration, weights, forward pass, KV cache and the f32 reference.

mod attention;
pub mod calibrate;
pub mod config;
pub mod evaluate;
pub mod granite;
mod kv_cache;
pub mod linear;
pub mod packed;
mod parts;
mod quantized;
pub mod reference;
mod rotary;
pub mod shapes;
pub mod smooth;
mod tensors;
pub mod weight_error;
pub mod weights;

pub use config::ModelConfig;
pub use granite::Granite;
pub use tensors::elements;

use crate::error::{Error, Result};
use crate::int8::kernels;
use crate::int8::scheme::Scheme;
use crate::sources::{Checkpoint, Tensors};

/// Tokens per KV page. One attention tile is one page, so paging costs nothing (64 keys fill four vectors of 16).
pub const PAGE_TOKENS: usize = 64;

/// A run of consecutive tokens of one sequence in a step: a chunk of a prompt, or one decoding token.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The token ids to run; never empty.
    pub tokens: &'a [u32],
    /// The position of `tokens[0]` in its sequence; the KV pages already hold everything before it.
    pub start: usize,
    /// The sequence's KV pages in order; page `i` holds positions `64·i .. 64·(i+1)`. Covers `start + tokens.len()`.
    pub pages: &'a [u32],
    /// How many of the span's last tokens want the logits that follow them: 0 in the middle of a prompt, 1 to choose the
    /// next token, more to check guessed tokens or to score a prompt. At most `tokens.len()`.
    pub logit_rows: usize,
}

/// What the engine needs of a model: one step over spans of any number of sequences.
///
/// The result of a span does not depend, to the bit, on which other spans share the step nor on how its sequence
/// was cut into spans.
pub trait Forward: Send {
    /// Number of logits per row.
    fn vocab_size(&self) -> usize;

    /// The longest sequence, prompt and completion together, that can be run.
    fn context_length(&self) -> usize;

    /// How many KV pages exist; ids in [`Span::pages`] are below this.
    fn page_count(&self) -> usize;

    /// Bytes of one KV page over all layers.
    fn page_bytes(&self) -> usize;

    /// Runs the spans and returns `[Σ logit_rows][vocab]`, in the order of spans and of their tokens.
    ///
    /// Spans of one sequence may share a step if each starts where the one before ends; pages are shared by sequences
    /// only where both do no more than read them.
    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32];
}

/// Bytes of the loaded weights, counted from the tensors as they are in memory.
#[derive(Debug, Clone, Default)]
pub struct WeightMemory {
    /// `(component, dtype, bytes)`, for instance `("mlp", "int8", 1_610_612_736)`.
    pub parts: Vec<(&'static str, &'static str, u64)>,
    /// Values in the checkpoint's tensors, once each: what a float copy would hold.
    pub elements: u64,
}

impl WeightMemory {
    /// Bytes of everything loaded.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|part| part.2).sum()
    }
}

/// How to load a model.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Compute threads.
    pub threads: usize,
    /// Bytes for the KV cache.
    pub kv_bytes: u64,
    /// The longest sequence, if shorter than the model's own limit.
    pub context: Option<usize>,
    /// Where the weights of a packed model lie.
    pub weights: Placement,
}

/// Where the weights of a packed model lie while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Placement {
    /// In the file, mapped: ready at once, and shared with every process that serves the same file.
    #[default]
    Mmap,
    /// In memory of this process, on huge pages where the system has them.
    Copy,
}

/// What a model takes, known from its configuration before anything is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of the packed weights.
    pub weights: u64,
    /// Bytes of one KV page over all layers.
    pub kv_page: u64,
    /// Bytes that each row of a step takes while it runs: logits twice, and what passes between the matrices.
    pub step_row: u64,
}

/// What a model of this shape will take.
pub fn footprint(config: &ModelConfig) -> Footprint {
    Footprint {
        weights: tensors::packed_bytes(config),
        kv_page: kv_cache::KvCache::page_bytes(config) as u64,
        step_row: 4
            * (2 * config.vocab_size + 8 * config.hidden_size + 3 * config.intermediate_size)
                as u64,
    }
}

/// What `checkpoint`, whose configuration is `config`, will take.
pub fn footprint_of(checkpoint: &Checkpoint, config: &ModelConfig) -> Footprint {
    let footprint = footprint(config);
    match &checkpoint.packed {
        // It may hold more scales than the default scheme has.
        Some(packed) => Footprint {
            weights: packed.stored_bytes(),
            ..footprint
        },
        None => footprint,
    }
}

/// Reads, quantizes and packs a checkpoint, or takes in a packed one. `progress` hears of weights done and weights in all.
///
/// # Errors
/// [`Error::BadModel`] for anything wrong with the checkpoint, [`Error::Config`] if the KV cache cannot hold a page.
pub fn load(
    checkpoint: &Checkpoint,
    settings: &Settings,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Granite> {
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    let (context, page_count) = limits(&config, settings)?;
    let (kernel, mut pool) = (kernels::best(), kernels::pool::Pool::new(settings.threads)?);
    let weights = match &checkpoint.packed {
        Some(packed) => packed::load(&config, packed, settings.weights, &mut pool, progress)?,
        None => weights::load(
            &config,
            checkpoint.tensors.as_ref(),
            &Scheme::default(),
            kernel,
            &mut pool,
            progress,
        )?,
    };
    Granite::new(config, weights, page_count, context, kernel, pool)
}

/// A model of the given shape with random codes: as fast as a real one, and its text is noise.
///
/// # Errors
/// [`Error::Config`] if the KV cache cannot hold a page.
pub fn random(config: ModelConfig, settings: &Settings) -> Result<Granite> {
    let (context, page_count) = limits(&config, settings)?;
    let (kernel, mut pool) = (kernels::best(), kernels::pool::Pool::new(settings.threads)?);
    let weights = weights::random(&config, &mut pool)?;
    Granite::new(config, weights, page_count, context, kernel, pool)
}

/// The longest sequence and the number of KV pages.
fn limits(config: &ModelConfig, settings: &Settings) -> Result<(usize, usize)> {
    let page_bytes = footprint(config).kv_page;
    let page_count = usize::try_from(settings.kv_bytes / page_bytes).unwrap_or(usize::MAX);
    if page_count == 0 {
        let wanted = settings.kv_bytes;
        return Err(Error::Config(format!(
            "a KV cache of {wanted} bytes is too small: one page takes {page_bytes}"
        )));
    }
    let context = settings
        .context
        .unwrap_or(config.max_positions)
        .min(config.max_positions);
    Ok((context.min(page_count * PAGE_TOKENS), page_count))
}
