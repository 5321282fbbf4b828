//! Grouped-query attention over int8 pages: queries and keys rotated and quantized per head, online softmax.
//!
//! Tiles are pages, aligned at position 0 and taken in ascending order, and a query's arithmetic is the same whether it
//! runs alone or in a block, so neither batching nor chunking changes a bit.

use std::ops::Range;

use super::kv_cache::{HeadMut, LayerCache};
use super::{ModelConfig, PAGE_TOKENS, Span};
use crate::int8::PANEL;
use crate::int8::kernels::pool::{PerThread, PerUnit, Pool};
use crate::int8::kernels::{Block, Kernel, Rows, Values};
use crate::int8::matmul::sized;
use crate::int8::rotation::Rotation;

/// Wider heads are refused by the configuration.
pub const HEAD_DIM_MAX: usize = 256;

/// Consecutive rows of one sequence that share each load of the keys; with four query heads to a key head they make 32
/// rows of a tile, beyond which the scores (8 KiB) would crowd the first-level cache.
const BLOCK_ROWS: usize = 8;

/// Where a row of the step belongs.
#[derive(Clone, Copy)]
pub struct Place {
    /// Index of its span.
    pub span: usize,
    /// Position in its sequence.
    pub position: usize,
}

/// Quantized queries: `codes` is `[kv_head][row][heads per kv_head][head_dim]`.
#[derive(Default)]
pub struct Queries {
    codes: Vec<i8>,
    /// The softmax scale is folded in.
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// The constants of a step that the functions below share.
pub struct Step<'a> {
    pub kernel: Kernel,
    pub config: &'a ModelConfig,
    pub spans: &'a [Span<'a>],
    pub places: &'a [Place],
}

impl Step<'_> {
    const fn heads_per_kv_head(&self) -> usize {
        self.config.num_heads / self.config.num_kv_heads
    }
}

/// Rotates and quantizes the step's queries, and stores its keys and values in the cache.
///
/// `qkv` is panel-major `[panels][rows][64]`; `tables` is `[rows][head_dim]` of [`super::rotary::Rotary::fill`].
pub fn prepare(
    step: &Step<'_>,
    pool: &mut Pool,
    qkv: &[f32],
    tables: &[f32],
    queries: &mut Queries,
    cache: &mut LayerCache,
) {
    let (rows, dim, group) = (
        step.places.len(),
        step.config.head_dim,
        step.heads_per_kv_head(),
    );
    let (heads, kv_heads) = (step.config.num_heads, step.config.num_kv_heads);
    queries.codes.resize(kv_heads * rows * group * dim, 0);
    queries.scales.resize(kv_heads * rows * group, 0.0);
    queries.sums.resize(kv_heads * rows * group, 0);
    let parts = (
        PerUnit::new(&mut queries.codes, rows * group * dim),
        PerUnit::new(&mut queries.scales, rows * group),
        PerUnit::new(&mut queries.sums, rows * group),
        cache.by_head(),
    );
    pool.run(kv_heads, parts, |_, range, (codes, scales, sums, cache)| {
        let mut values = [0.0; HEAD_DIM_MAX];
        let values = &mut values[..dim];
        let (mut key_codes, mut value_codes) = ([0; HEAD_DIM_MAX], [0; HEAD_DIM_MAX]);
        let (key_codes, value_codes) = (&mut key_codes[..dim], &mut value_codes[..dim]);
        let mut targets = codes.chunks_exact_mut(dim).zip(scales).zip(sums);
        for (kv_head, mut pages) in range.clone().zip(HeadMut::split(range.len(), dim, cache)) {
            for (row, place) in step.places.iter().enumerate() {
                let table = &tables[row * dim..][..dim];
                for head in kv_head * group..(kv_head + 1) * group {
                    let ((codes, scale), sum) = targets.next().expect("one target per query head");
                    gather(qkv, rows, row, head * dim, values);
                    step.kernel.apply_rotary(values, table);
                    step.kernel.rotate(Rotation::Full, values);
                    (*scale, *sum) = step.kernel.quantize(values, codes);
                    *scale *= step.config.attention_multiplier;
                }
                gather(qkv, rows, row, (heads + kv_head) * dim, values);
                step.kernel.apply_rotary(values, table);
                step.kernel.rotate(Rotation::Full, values);
                let (key_scale, _) = step.kernel.quantize(values, key_codes);
                gather(qkv, rows, row, (heads + kv_heads + kv_head) * dim, values);
                let (value_scale, _) = step.kernel.quantize(values, value_codes);
                let page = step.spans[place.span].pages[place.position / PAGE_TOKENS];
                let slot = place.position % PAGE_TOKENS;
                pages.store(
                    page,
                    slot,
                    (key_codes, key_scale),
                    (value_codes, value_scale),
                );
            }
        }
    });
}

/// Attends from every row of the step to all positions up to its own; `out` is `[kv_head][row][heads per kv_head · dim]`.
pub fn attend(
    step: &Step<'_>,
    pool: &mut Pool,
    queries: &Queries,
    cache: &LayerCache,
    scratch: &mut [Vec<f32>],
    out: &mut [f32],
) {
    let (rows, width) = (
        step.places.len(),
        step.heads_per_kv_head() * step.config.head_dim,
    );
    let parts = (PerUnit::new(out, width), PerThread::new(scratch));
    pool.run(
        step.config.num_kv_heads * rows,
        parts,
        |_, range, (mut out, scratch)| {
            let mut item = range.start;
            while item < range.end {
                let (kv_head, row) = (item / rows, item % rows);
                let most = BLOCK_ROWS.min(range.end - item).min(rows - row);
                let span = step.places[row].span;
                let block = step.places[row..row + most]
                    .iter()
                    .take_while(|place| place.span == span)
                    .count();
                let (target, rest) = out.split_at_mut(block * width);
                attend_block(
                    step,
                    kv_head,
                    row..row + block,
                    queries,
                    cache,
                    scratch,
                    target,
                );
                out = rest;
                item += block;
            }
        },
    );
}

/// Attends from consecutive rows of one span to one key head; `out` is `[rows][heads per kv_head][dim]`.
fn attend_block(
    step: &Step<'_>,
    kv_head: usize,
    rows: Range<usize>,
    queries: &Queries,
    cache: &LayerCache,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (dim, group, kernel) = (step.config.head_dim, step.heads_per_kv_head(), step.kernel);
    let Place {
        span,
        position: first,
    } = step.places[rows.start];
    let heads = rows.len() * group;
    let first_head = (kv_head * step.places.len() + rows.start) * group;
    let scratch = sized(scratch, heads * (PANEL + 3) + PAGE_TOKENS * dim);
    let (scores, rest) = scratch.split_at_mut(heads * PANEL);
    let (maxima, rest) = rest.split_at_mut(heads);
    let (totals, rest) = rest.split_at_mut(heads);
    let (rescales, floats) = rest.split_at_mut(heads);
    let floats = &mut floats[..PAGE_TOKENS * dim];
    maxima.fill(f32::NEG_INFINITY);
    totals.fill(0.0);
    out.fill(0.0);
    let last = first + rows.len() - 1;
    for tile in 0..=last / PAGE_TOKENS {
        let page = cache.page(kv_head, step.spans[span].pages[tile]);
        let start = tile * PAGE_TOKENS;
        // Rows before the tile's first position see none of it.
        let skipped = start.saturating_sub(first);
        let (from, scores) = (
            skipped * group,
            &mut scores[..heads * PANEL - skipped * group * PANEL],
        );
        let asked = first_head + from..first_head + heads;
        let asked = Rows {
            codes: &queries.codes[asked.start * dim..asked.end * dim],
            stride: dim,
            scales: &queries.scales[asked.clone()],
            sums: &queries.sums[asked],
        };
        // One row reads the values once anyway; several share the work of widening them.
        let values = if rows.len() > 1 {
            kernel.widen(page.values, floats);
            Values::Floats(floats)
        } else {
            Values::Codes(page.values)
        };
        kernel.tile(Block::symmetric(page.keys), asked, scores, false);
        kernel.scale_columns(scores, page.key_scales);
        for (row, scores) in scores.chunks_exact_mut(group * PANEL).enumerate() {
            let valid = (first + skipped + row + 1 - start).min(PAGE_TOKENS);
            let heads = from + row * group..from + (row + 1) * group;
            for (head, scores) in heads.clone().zip(scores.chunks_exact_mut(PANEL)) {
                let scores = scores.try_into().expect("64 scores");
                rescales[head] =
                    kernel.softmax_tile(scores, valid, &mut maxima[head], &mut totals[head]);
            }
            kernel.scale_columns(scores, page.value_scales);
            let out = &mut out[heads.start * dim..heads.end * dim];
            kernel.weighted_values(scores, &rescales[heads], values, valid, out);
        }
    }
    for (head, total) in out.chunks_exact_mut(dim).zip(totals) {
        let inverse = 1.0 / *total;
        head.iter_mut().for_each(|value| *value *= inverse);
    }
}

/// Copies columns `column .. column + out.len()` of a panel-major row.
pub fn gather(panels: &[f32], rows: usize, row: usize, column: usize, out: &mut [f32]) {
    let mut done = 0;
    while done < out.len() {
        let (panel, lane) = ((column + done) / PANEL, (column + done) % PANEL);
        let count = (PANEL - lane).min(out.len() - done);
        out[done..done + count]
            .copy_from_slice(&panels[(panel * rows + row) * PANEL + lane..][..count]);
        done += count;
    }
}
