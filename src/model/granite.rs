//! The forward pass, top to bottom.

use super::accounts::{Operations, WeightMemory};
use super::attention::{self, attention};
use super::blueprint::{Blueprint, blueprint};
use super::config::ModelConfig;
use super::feed_forward::{self, feed_forward};
use super::forward::{Forward, PAGE_TOKENS, Rewind, Span};
use super::kv_cache::{KvCache, LayerCache};
use super::norm::{Normed, PANELS_PER_GROUP};
use super::rotary::Rotary;
use super::step::{Row, Step};
use super::weights::{FeedForward, Layer, Mixer, SwiGlu, Weights};
use crate::error::Result;
use crate::int8::compute::Compute;
use crate::int8::floats::Floats;
use crate::int8::kernels::Kernel;
use crate::int8::kernels::pool::{PerUnit, Pool};
use crate::int8::matmul::Panels;
use crate::int8::{GROUP, PANEL};

/// A loaded model: weights, KV cache, compute threads and the buffers of a step.
pub struct Granite {
    config: ModelConfig,
    blueprint: Blueprint,
    weights: Weights,
    cache: KvCache,
    rotary: Rotary,
    context: usize,
    compute: Compute,
    work: Workspace,
}

/// The buffers of a step, kept between steps. Float rows are panel-major, `[panels][rows][64]`.
struct Workspace {
    rows: Vec<Row>,
    /// `[rows][head_dim]`: cosines and sines.
    rotary: Vec<f32>,
    /// The residual stream.
    residual: Floats,
    /// The rows of the residual stream that need logits.
    last: Floats,
    normed: Normed,
    attention: attention::Buffers,
    feed_forward: feed_forward::Buffers,
    logit_panels: Floats,
    logits: Vec<f32>,
}

impl Granite {
    /// Assembles a model. `page_count` KV pages are reserved; no sequence may be longer than `context`.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] if there is not enough memory for the pages.
    pub fn new(
        config: ModelConfig,
        weights: Weights,
        page_count: usize,
        context: usize,
        compute: Compute,
    ) -> Result<Self> {
        let work = Workspace {
            rows: Vec::new(),
            rotary: Vec::new(),
            residual: Floats::default(),
            last: Floats::default(),
            normed: Normed::new(config.hidden_size),
            attention: attention::Buffers::new(config.num_heads * config.head_dim),
            feed_forward: feed_forward::Buffers::new(config.intermediate_size),
            logit_panels: Floats::default(),
            logits: Vec::new(),
        };
        Ok(Self {
            blueprint: blueprint(&config),
            cache: KvCache::new(&config, page_count)?,
            rotary: Rotary::new(config.head_dim, config.rope_theta),
            config,
            weights,
            context,
            compute,
            work,
        })
    }

    /// The model's shape and constants.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The memory that the weights take.
    pub fn memory(&self) -> WeightMemory {
        self.blueprint.memory(&self.weights)
    }

    /// Bytes that one decoding step reads.
    pub(crate) fn bytes_per_step(&self) -> u64 {
        self.blueprint.bytes_per_step(&self.weights)
    }

    /// Int8 operations of a step.
    pub fn operations(&self) -> Operations {
        self.blueprint.operations()
    }

    /// The weights.
    pub const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The compute threads, for measuring their peak rates.
    pub const fn pool(&mut self) -> &mut Pool {
        &mut self.compute.pool
    }

    /// The description of the weights, the weights, and what computes with them.
    pub const fn parts(&mut self) -> (&Blueprint, &Weights, &mut Compute) {
        (&self.blueprint, &self.weights, &mut self.compute)
    }

    /// Fills the KV cache with arbitrary numbers, so that steps late in a sequence can be timed without running the
    /// earlier ones.
    pub(crate) fn fill_cache(&mut self) {
        self.cache.fill();
    }

    /// The logits after every id, `[ids.len()][vocab]`, from one step on the cache's first pages.
    pub fn logits(&mut self, ids: &[u32]) -> &[f32] {
        let pages: Vec<u32> = (0..ids.len().div_ceil(PAGE_TOKENS) as u32).collect();
        let span = Span {
            tokens: ids,
            start: 0,
            pages: &pages,
            slot: 0,
            logit_rows: ids.len(),
        };
        self.forward(&[span])
    }

    /// The kernel in use.
    pub const fn kernel(&self) -> Kernel {
        self.compute.kernel
    }

    /// Number of compute threads, including the engine's own.
    pub fn threads(&self) -> usize {
        self.compute.pool.threads()
    }
}

impl Forward for Granite {
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn page_count(&self) -> usize {
        self.cache.page_count()
    }

    fn page_bytes(&self) -> usize {
        KvCache::page_bytes(&self.config)
    }

    fn rewind(&self) -> Rewind {
        Rewind::Free
    }

    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32] {
        let Self {
            config,
            weights,
            cache,
            rotary,
            compute,
            work,
            ..
        } = self;
        let dim = config.head_dim;
        let (mut rows, mut tables) = (
            std::mem::take(&mut work.rows),
            std::mem::take(&mut work.rotary),
        );
        rows.clear();
        for (span, tokens) in spans.iter().enumerate() {
            let positions = tokens.start..tokens.start + tokens.tokens.len();
            rows.extend(positions.map(|position| Row { span, position }));
        }
        tables.resize(rows.len() * dim, 0.0);
        for (row, table) in rows.iter().zip(tables.chunks_exact_mut(dim)) {
            rotary.fill(row.position, table);
        }
        let step = Step {
            config,
            spans,
            rows: &rows,
            rotary: &tables,
        };

        embed(&step, compute, weights, &mut work.residual);
        for (index, layer) in weights.layers.iter().enumerate() {
            block(&step, compute, layer, cache.layer(index), work);
        }
        head(&step, compute, weights, work);
        (work.rows, work.rotary) = (rows, tables);
        let wanted: usize = spans.iter().map(|span| span.logit_rows).sum();
        &self.work.logits[..wanted * self.config.vocab_size]
    }
}

/// `x = E[ids] · embedding_multiplier`.
fn embed(step: &Step<'_>, compute: &mut Compute, weights: &Weights, residual: &mut Floats) {
    let (kernel, rows, hidden) = (compute.kernel, step.rows.len(), step.config.hidden_size);
    let groups = hidden.div_ceil(GROUP);
    // Whole groups are filled; values after the last panel are never read.
    residual.set_len(groups * PANELS_PER_GROUP * rows * PANEL);
    let parts = PerUnit::new(residual, PANELS_PER_GROUP * rows * PANEL);
    compute.pool.run(groups, parts, |_, range, out| {
        for (group, out) in range.zip(out.chunks_exact_mut(PANELS_PER_GROUP * rows * PANEL)) {
            let width = GROUP.min(hidden - group * GROUP);
            let tokens = step.spans.iter().flat_map(|span| span.tokens);
            for (row, &token) in tokens.enumerate() {
                let mut values = [0.0; GROUP];
                let embedded = &mut values[..width];
                (weights.embedding).dequantize_group(kernel, token as usize, group, embedded);
                values
                    .iter_mut()
                    .for_each(|value| *value *= step.config.embedding_multiplier);
                for (panel, values) in values.chunks_exact(PANEL).enumerate() {
                    out[(panel * rows + row) * PANEL..][..PANEL].copy_from_slice(values);
                }
            }
        }
    });
}

/// Applies one layer to the residual stream.
fn block(
    step: &Step<'_>,
    compute: &mut Compute,
    layer: &Layer,
    cache: &mut LayerCache,
    work: &mut Workspace,
) {
    let (rows, epsilon) = (step.rows.len(), step.config.rms_norm_eps);
    let Workspace {
        residual,
        normed,
        attention: attention_buffers,
        feed_forward: feed_forward_buffers,
        ..
    } = work;
    let x = Panels::new(residual, rows);
    let Mixer::Attention(weights) = &layer.mixer;
    let rotation = weights.qkv.rotation();
    normed.fill(compute, x, &layer.mixer_norm, epsilon, rotation);
    let (input, buffers) = (&normed.rows, attention_buffers);
    attention(step, compute, weights, cache, input, buffers, residual);

    let x = Panels::new(residual, rows);
    let weights = &layer.feed_forward;
    let FeedForward::Dense(SwiGlu { gate_up, .. }) = weights;
    let rotation = gate_up.rotation();
    normed.fill(compute, x, &layer.feed_forward_norm, epsilon, rotation);
    let (input, buffers) = (&normed.rows, feed_forward_buffers);
    feed_forward(compute, weights, input, buffers, residual);
}

/// The logits of the rows that need them, `[rows][vocab]`.
fn head(step: &Step<'_>, compute: &mut Compute, weights: &Weights, work: &mut Workspace) {
    let config = step.config;
    let count: usize = step.spans.iter().map(|span| span.logit_rows).sum();
    if count == 0 {
        return;
    }
    let residual = Panels::new(&work.residual, step.rows.len());
    let panels = config.hidden_size.div_ceil(PANEL);
    work.last.set_len(panels * count * PANEL);
    let wanted = step.spans.iter().scan(0, |end, span| {
        *end += span.tokens.len();
        Some(*end - span.logit_rows..*end)
    });
    for (index, row) in wanted.flatten().enumerate() {
        for panel in 0..panels {
            let target = &mut work.last[(panel * count + index) * PANEL..][..PANEL];
            target.copy_from_slice(residual.row(panel, row));
        }
    }
    let matrix = weights.head.as_ref().unwrap_or(&weights.embedding);
    let (last, rotation) = (Panels::new(&work.last, count), matrix.rotation());
    let (norm, epsilon) = (&weights.final_norm, config.rms_norm_eps);
    work.normed.fill(compute, last, norm, epsilon, rotation);
    work.logit_panels.set_len(matrix.panels() * count * PANEL);
    compute.multiply(matrix, &work.normed.rows, &mut work.logit_panels);
    let vocab_size = config.vocab_size;
    work.logits.resize(count * vocab_size, 0.0);
    let panels = Panels::new(&work.logit_panels, count);
    let logits = PerUnit::new(&mut work.logits, vocab_size);
    compute.pool.run(count, logits, |_, range, out| {
        for (row, logits) in range.zip(out.chunks_exact_mut(vocab_size)) {
            panels.gather(row, 0, logits);
        }
    });
}
