//! The forward pass, top to bottom.

use super::attention::{self, Place, Step, attention};
use super::kv_cache::KvCache;
use super::quantized::{PANELS_PER_GROUP, quantize_normed};
use super::rotary::Rotary;
use super::weights::{Layer, Weights};
use super::{Forward, ModelConfig, PAGE_TOKENS, Span, WeightMemory};
use crate::error::Result;
use crate::int8::activations::Activations;
use crate::int8::floats::Floats;
use crate::int8::kernels::Kernel;
use crate::int8::kernels::pool::{PerUnit, Pool};
use crate::int8::{GROUP, PANEL, matmul};

/// A loaded model: weights, KV cache, compute threads and the buffers of a step.
pub struct Granite {
    config: ModelConfig,
    weights: Weights,
    memory: WeightMemory,
    cache: KvCache,
    rotary: Rotary,
    context: usize,
    kernel: Kernel,
    pool: Pool,
    work: Workspace,
}

/// The buffers of a step, kept between steps. Float rows are panel-major, `[panels][rows][64]`.
struct Workspace {
    places: Vec<Place>,
    /// `[rows][head_dim]`: cosines and sines.
    tables: Vec<f32>,
    /// The residual stream.
    residual: Floats,
    /// The residual rows that want logits.
    last: Floats,
    inverse_rms: Vec<f32>,
    normed: Activations,
    qkv: Floats,
    attention: attention::Buffers,
    attended: Activations,
    gated: Activations,
    logit_panels: Floats,
    logits: Vec<f32>,
    /// One buffer per thread.
    scratch: Vec<Floats>,
}

impl Granite {
    /// Puts a model together; `page_count` KV pages are reserved and `context` bounds every sequence.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] if there is no memory for the pages.
    pub fn new(
        config: ModelConfig,
        weights: Weights,
        page_count: usize,
        context: usize,
        kernel: Kernel,
        pool: Pool,
    ) -> Result<Self> {
        let work = Workspace {
            places: Vec::new(),
            tables: Vec::new(),
            residual: Floats::default(),
            last: Floats::default(),
            inverse_rms: Vec::new(),
            normed: Activations::new(0, config.hidden_size),
            qkv: Floats::default(),
            attention: attention::Buffers::default(),
            attended: Activations::new(0, config.num_heads * config.head_dim),
            gated: Activations::new(0, config.intermediate_size),
            logit_panels: Floats::default(),
            logits: Vec::new(),
            scratch: vec![Floats::default(); pool.threads()],
        };
        Ok(Self {
            memory: weights.memory(super::tensors::elements(&config)),
            cache: KvCache::new(&config, page_count)?,
            rotary: Rotary::new(config.head_dim, config.rope_theta),
            config,
            weights,
            context,
            kernel,
            pool,
            work,
        })
    }

    /// The model's shape and constants.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the weights take.
    pub const fn memory(&self) -> &WeightMemory {
        &self.memory
    }

    /// The weights.
    pub const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The compute threads themselves, for measuring what they can do at most.
    pub const fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Fills the KV cache with noise, so that steps far into a sequence can be timed without the steps before.
    pub fn fill_cache(&mut self) {
        self.cache.fill();
    }

    /// The logits after every id, `[ids.len()][vocab]`, from one step on the cache's first pages.
    pub fn logits(&mut self, ids: &[u32]) -> &[f32] {
        let pages: Vec<u32> = (0..ids.len().div_ceil(PAGE_TOKENS) as u32).collect();
        let span = Span {
            tokens: ids,
            start: 0,
            pages: &pages,
            logit_rows: ids.len(),
        };
        self.forward(&[span])
    }

    /// The kernel in use.
    pub const fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The compute threads, the engine's own included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
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

    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32] {
        let Self {
            config,
            weights,
            cache,
            rotary,
            kernel,
            pool,
            work,
            ..
        } = self;
        let (kernel, dim) = (*kernel, config.head_dim);
        work.places.clear();
        for (span, tokens) in spans.iter().enumerate() {
            let positions = tokens.start..tokens.start + tokens.tokens.len();
            work.places
                .extend(positions.map(|position| Place { span, position }));
        }
        let rows = work.places.len();
        work.tables.resize(rows * dim, 0.0);
        for (place, table) in work.places.iter().zip(work.tables.chunks_exact_mut(dim)) {
            rotary.fill(place.position, table);
        }
        let places = std::mem::take(&mut work.places);
        let step = Step {
            kernel,
            config,
            spans,
            places: &places,
        };

        embed(&step, pool, weights, &mut work.residual);
        for (index, layer) in weights.layers.iter().enumerate() {
            block(&step, pool, layer, cache.layer(index), work);
        }
        head(&step, pool, weights, work);
        work.places = places;
        let wanted: usize = spans.iter().map(|span| span.logit_rows).sum();
        &self.work.logits[..wanted * self.config.vocab_size]
    }
}

/// `x = E[ids] · embedding_multiplier`.
fn embed(step: &Step<'_>, pool: &mut Pool, weights: &Weights, residual: &mut Floats) {
    let (rows, hidden) = (step.places.len(), step.config.hidden_size);
    let groups = hidden.div_ceil(GROUP);
    // Whole groups are filled; what lies past the last real panel is never read.
    residual.set_len(groups * PANELS_PER_GROUP * rows * PANEL);
    pool.run(
        groups,
        PerUnit::new(residual, PANELS_PER_GROUP * rows * PANEL),
        |_, range, out| {
            for (group, out) in range.zip(out.chunks_exact_mut(PANELS_PER_GROUP * rows * PANEL)) {
                let tokens = step.spans.iter().flat_map(|span| span.tokens);
                for (row, &token) in tokens.enumerate() {
                    let mut values = [0.0; GROUP];
                    let width = GROUP.min(hidden - group * GROUP);
                    weights.embedding.dequantize_group(
                        step.kernel,
                        token as usize,
                        group,
                        &mut values[..width],
                    );
                    values
                        .iter_mut()
                        .for_each(|value| *value *= step.config.embedding_multiplier);
                    for (panel, values) in values.chunks_exact(PANEL).enumerate() {
                        out[(panel * rows + row) * PANEL..][..PANEL].copy_from_slice(values);
                    }
                }
            }
        },
    );
}

/// One transformer block on the residual stream.
fn block(
    step: &Step<'_>,
    pool: &mut Pool,
    layer: &Layer,
    cache: &mut super::kv_cache::LayerCache,
    work: &mut Workspace,
) {
    let (kernel, rows) = (step.kernel, step.places.len());
    let Workspace {
        residual,
        inverse_rms,
        normed,
        scratch,
        ..
    } = work;

    quantize_normed(
        step,
        pool,
        rows,
        residual,
        &layer.attention_norm,
        layer.qkv.rotation(),
        inverse_rms,
        normed,
    );
    work.qkv.set_len(layer.qkv.panels() * rows * PANEL);
    matmul::multiply(kernel, pool, &layer.qkv, normed, &mut work.qkv);
    attention(
        step,
        pool,
        &work.qkv,
        &work.tables,
        cache,
        layer.output.rotation(),
        &mut work.attention,
        scratch,
        &mut work.attended,
    );
    matmul::multiply_add(
        kernel,
        pool,
        &layer.output,
        &work.attended,
        scratch,
        residual,
    );

    quantize_normed(
        step,
        pool,
        rows,
        residual,
        &layer.feed_forward_norm,
        layer.gate_up.rotation(),
        inverse_rms,
        normed,
    );
    matmul::multiply_swiglu(
        kernel,
        pool,
        &layer.gate_up,
        normed,
        layer.down.rotation(),
        scratch,
        &mut work.gated,
    );
    matmul::multiply_add(kernel, pool, &layer.down, &work.gated, scratch, residual);
}

/// The logits of the rows that want them, `[rows][vocab]`.
fn head(step: &Step<'_>, pool: &mut Pool, weights: &Weights, work: &mut Workspace) {
    let (kernel, config, rows) = (step.kernel, step.config, step.places.len());
    let count: usize = step.spans.iter().map(|span| span.logit_rows).sum();
    if count == 0 {
        return;
    }
    let panels = config.hidden_size.div_ceil(PANEL);
    work.last.set_len(panels * count * PANEL);
    let wanted = step.spans.iter().scan(0, |end, span| {
        *end += span.tokens.len();
        Some(*end - span.logit_rows..*end)
    });
    for (index, row) in wanted.flatten().enumerate() {
        for panel in 0..panels {
            let source = &work.residual[(panel * rows + row) * PANEL..][..PANEL];
            work.last[(panel * count + index) * PANEL..][..PANEL].copy_from_slice(source);
        }
    }
    let matrix = weights.head.as_ref().unwrap_or(&weights.embedding);
    quantize_normed(
        step,
        pool,
        count,
        &work.last,
        &weights.final_norm,
        matrix.rotation(),
        &mut work.inverse_rms,
        &mut work.normed,
    );
    work.logit_panels.set_len(matrix.panels() * count * PANEL);
    matmul::multiply(kernel, pool, matrix, &work.normed, &mut work.logit_panels);
    let vocab_size = config.vocab_size;
    work.logits.resize(count * vocab_size, 0.0);
    let (panels, logits) = (
        &work.logit_panels,
        PerUnit::new(&mut work.logits, vocab_size),
    );
    pool.run(count, logits, |_, range, out| {
        for (row, logits) in range.zip(out.chunks_exact_mut(vocab_size)) {
            attention::gather(panels, count, row, 0, logits);
        }
    });
}
