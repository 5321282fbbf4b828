//! The phases of a forward pass, top to bottom, and the buffers that they share.

use super::attention::{self, attention};
use super::config::{Mamba, ModelConfig};
use super::experts;
use super::feed_forward::{self, feed_forward};
use super::kv_cache::LayerCache;
use super::mamba::{self, mamba};
use super::norm::{Normed, PANELS_PER_GROUP};
use super::state::LayerStates;
use super::step::{Row, Step};
use super::weights::{FeedForward, Layer, Mixer, Weights};
use crate::int8::compute::Compute;
use crate::int8::floats::{Floats, bytes};
use crate::int8::kernels::pool::PerUnit;
use crate::int8::matmul::Panels;
use crate::int8::{GROUP, PANEL};

/// What a layer's mixer keeps of every sequence.
pub enum MixerState<'a> {
    /// Keys and values, in pages.
    Pages(&'a mut LayerCache),
    /// States of fixed size.
    States(LayerStates<'a>),
}

/// The buffers of a step, kept between steps. Float rows are panel-major, `[panels][rows][64]`.
pub struct Workspace {
    /// The token positions of the step.
    pub rows: Vec<Row>,
    /// `[rows][head_dim]`: cosines and sines; empty if attention knows no positions.
    pub rotary: Vec<f32>,
    /// The residual stream.
    pub residual: Floats,
    /// The rows of the residual stream that need logits.
    last: Floats,
    normed: Normed,
    attention: attention::Buffers,
    mamba: mamba::Buffers,
    feed_forward: feed_forward::Buffers,
    /// Those of a mixture of experts.
    pub experts: Option<experts::Buffers>,
    logit_panels: Floats,
    /// `[rows that need them][vocab]`.
    pub logits: Vec<f32>,
}

impl Workspace {
    /// Empty buffers for a model of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        Self {
            rows: Vec::new(),
            rotary: Vec::new(),
            residual: Floats::default(),
            last: Floats::default(),
            normed: Normed::new(config.hidden_size),
            attention: attention::Buffers::new(config.num_heads * config.head_dim),
            mamba: mamba::Buffers::new(config.mamba.map_or(0, Mamba::inner)),
            feed_forward: feed_forward::Buffers::new(config.intermediate_size),
            experts: experts::Buffers::new(config),
            logit_panels: Floats::default(),
            logits: Vec::new(),
        }
    }

    /// The memory that they take.
    pub fn bytes(&self) -> usize {
        bytes(&self.rows)
            + bytes(&self.rotary)
            + self.residual.bytes()
            + self.last.bytes()
            + self.normed.bytes()
            + self.attention.bytes()
            + self.mamba.bytes()
            + self.feed_forward.bytes()
            + self.experts.as_ref().map_or(0, experts::Buffers::bytes)
            + self.logit_panels.bytes()
            + bytes(&self.logits)
    }
}

/// `x = E[ids] · embedding_multiplier`.
pub fn embed(step: &Step<'_>, compute: &mut Compute, weights: &Weights, residual: &mut Floats) {
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

/// Applies the mixer of a layer to the residual stream.
pub fn mix(
    step: &Step<'_>,
    compute: &mut Compute,
    layer: &Layer,
    state: MixerState<'_>,
    work: &mut Workspace,
) {
    let Workspace {
        residual, normed, ..
    } = work;
    let rotation = match &layer.mixer {
        Mixer::Attention(weights) => weights.qkv.rotation(),
        Mixer::Mamba(weights) => weights.input.rotation(),
    };
    let (x, epsilon) = (
        Panels::new(residual, step.rows.len()),
        step.config.rms_norm_eps,
    );
    normed.fill(compute, x, &layer.mixer_norm, epsilon, rotation);
    let input = &normed.rows;
    match (&layer.mixer, state) {
        (Mixer::Attention(weights), MixerState::Pages(cache)) => {
            let buffers = &mut work.attention;
            attention(step, compute, weights, cache, input, buffers, residual);
        }
        (Mixer::Mamba(weights), MixerState::States(mut states)) => {
            let buffers = &mut work.mamba;
            mamba(
                step,
                compute,
                weights,
                &mut states,
                input,
                buffers,
                residual,
            );
        }
        _ => unreachable!("every layer has the state of its kind"),
    }
}

/// Applies the feed-forward part of a layer to the residual stream.
pub fn process(step: &Step<'_>, compute: &mut Compute, layer: &Layer, work: &mut Workspace) {
    let Workspace {
        residual,
        normed,
        feed_forward: buffers,
        experts: expert_buffers,
        ..
    } = work;
    let (rows, epsilon, norm) = (
        step.rows.len(),
        step.config.rms_norm_eps,
        &layer.feed_forward_norm,
    );
    let experts = match &layer.feed_forward {
        FeedForward::Dense(dense) => {
            let x = Panels::new(residual, rows);
            normed.fill(compute, x, norm, epsilon, dense.gate_up.rotation());
            return feed_forward(compute, dense, &normed.rows, buffers, residual);
        }
        FeedForward::Experts(experts) => experts,
    };
    let (Some(shape), Some(expert_buffers)) = (step.config.experts, expert_buffers) else {
        unreachable!("experts have a shape and buffers");
    };
    let x = Panels::new(residual, rows);
    let rotation = experts.experts.gate_up.rotation();
    expert_buffers.route(shape, compute, &experts.router, x, epsilon);
    normed.fill(compute, x, norm, epsilon, rotation);
    expert_buffers.gather(compute, &normed.rows);
    let shared = experts.shared.as_ref();
    // Only codes that a checkpoint had already can be rotated in another way.
    if let Some(shared) = shared
        && shared.gate_up.rotation() != rotation
    {
        normed.fill(compute, x, norm, epsilon, shared.gate_up.rotation());
    }
    let shared = shared.map(|shared| (shared, &normed.rows, &mut buffers.gated));
    expert_buffers.add(shape, compute, &experts.experts, shared, residual, rows);
}

/// The logits of the rows that need them, `[rows][vocab]`.
pub fn head(step: &Step<'_>, compute: &mut Compute, weights: &Weights, work: &mut Workspace) {
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
