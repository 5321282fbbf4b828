//! Grouped-query attention over int8 pages: queries and keys rotated and quantized per head, online softmax.
//!
//! Tiles are pages, aligned at position 0 and taken in ascending order, and a query's arithmetic is the same whether it
//! runs alone or in a block, so neither batching nor chunking changes a bit.

use std::ops::Range;

use super::kv_cache::{Head, HeadMut, LayerCache};
use super::quantized::{quantize, quantize_attended};
use super::{ModelConfig, PAGE_TOKENS, Span};
use crate::int8::activations::{Activations, groups_of};
use crate::int8::floats::Floats;
use crate::int8::kernels::pool::{PerThread, PerUnit, Pool};
use crate::int8::kernels::{Block, Kernel, Rows, Values};
use crate::int8::rotation::Rotation;
use crate::int8::{GROUP, PANEL};

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

/// The buffers of an attention, kept between layers and steps.
#[derive(Default)]
pub struct Buffers {
    /// Quantized queries, `[kv_head][row][heads per kv_head][head_dim]`.
    codes: Vec<i8>,
    /// One per query head, with the softmax scale folded in.
    scales: Vec<f32>,
    sums: Vec<i32>,
    /// What was attended to, `[kv_head][row][heads per kv_head · head_dim]`.
    attended: Floats,
}

/// The queries that share a key head, `[row][heads per kv_head]`.
#[derive(Clone, Copy)]
struct Queries<'a> {
    codes: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
}

/// The same, to be filled.
struct QueriesMut<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl<'a> QueriesMut<'a> {
    /// A thread's share as the queries of each of its key heads: `heads` for all rows, of `dim` values.
    fn split(
        heads: usize,
        dim: usize,
        (codes, scales, sums): (&'a mut [i8], &'a mut [f32], &'a mut [i32]),
    ) -> impl Iterator<Item = Self> {
        codes
            .chunks_exact_mut(heads * dim)
            .zip(scales.chunks_exact_mut(heads))
            .zip(sums.chunks_exact_mut(heads))
            .map(|((codes, scales), sums)| Self {
                codes,
                scales,
                sums,
            })
    }

    const fn as_queries(&self) -> Queries<'_> {
        Queries {
            codes: self.codes,
            scales: self.scales,
            sums: self.sums,
        }
    }
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

    /// Values of the query heads that share a key head.
    pub const fn width(&self) -> usize {
        self.heads_per_kv_head() * self.config.head_dim
    }
}

/// The attention of a block: rotates and quantizes queries, stores keys and values in the cache, attends from every row to
/// all positions up to its own, and quantizes what comes out, rotated by `rotation`.
///
/// `qkv` is panel-major `[panels][rows][64]`; `tables` is `[rows][head_dim]` of [`super::rotary::Rotary::fill`].
#[expect(
    clippy::too_many_arguments,
    reason = "what goes in and out of one phase"
)]
pub fn attention(
    step: &Step<'_>,
    pool: &mut Pool,
    qkv: &[f32],
    tables: &[f32],
    cache: &mut LayerCache,
    rotation: Rotation,
    buffers: &mut Buffers,
    scratch: &mut [Floats],
    out: &mut Activations,
) {
    let (rows, dim, width) = (step.places.len(), step.config.head_dim, step.width());
    let (kv_heads, heads) = (step.config.num_kv_heads, rows * step.heads_per_kv_head());
    let Buffers {
        codes,
        scales,
        sums,
        attended,
    } = buffers;
    codes.resize(kv_heads * heads * dim, 0);
    scales.resize(kv_heads * heads, 0.0);
    sums.resize(kv_heads * heads, 0);
    attended.set_len(kv_heads * rows * width);
    out.set_rows(rows);
    let queries = (
        PerUnit::new(codes, heads * dim),
        PerUnit::new(scales, heads),
        PerUnit::new(sums, heads),
    );
    let pages = cache.by_head();
    // Where every thread has as many key heads as the others, and their outputs are whole groups, nothing that a thread
    // makes is wanted by another before the end.
    if kv_heads.is_multiple_of(pool.active()) && width.is_multiple_of(GROUP) {
        let attended = PerUnit::new(attended, rows * width);
        let out = out.by_groups(width / GROUP);
        let parts = ((queries, pages), attended, out, PerThread::new(scratch));
        pool.run(kv_heads, parts, |_, range, parts| {
            let ((queries, pages), attended, out, scratch) = parts;
            let mut groups = groups_of(rows, out);
            let heads = QueriesMut::split(heads, dim, queries)
                .zip(HeadMut::split(range.len(), dim, pages))
                .zip(attended.chunks_exact_mut(rows * width));
            for (kv_head, ((mut queries, mut pages), attended)) in range.zip(heads) {
                prepare(step, kv_head, qkv, tables, &mut queries, &mut pages);
                let (queries, pages) = (queries.as_queries(), pages.as_head());
                attend(step, 0..rows, queries, pages, scratch, attended);
                for (offset, group) in (0..width).step_by(GROUP).zip(&mut groups) {
                    quantize(step.kernel, rotation, GROUP, group, |row, values| {
                        values.copy_from_slice(&attended[row * width + offset..][..GROUP])
                    });
                }
            }
        });
        return;
    }
    pool.run(kv_heads, (queries, pages), |_, range, (queries, pages)| {
        let heads = QueriesMut::split(heads, dim, queries);
        let heads = heads.zip(HeadMut::split(range.len(), dim, pages));
        for (kv_head, (mut queries, mut pages)) in range.zip(heads) {
            prepare(step, kv_head, qkv, tables, &mut queries, &mut pages);
        }
    });
    let (codes, scales, sums, cache) = (&*codes, &*scales, &*sums, &*cache);
    let parts = (PerUnit::new(attended, width), PerThread::new(scratch));
    pool.run(kv_heads * rows, parts, |_, range, (mut out, scratch)| {
        // A stretch of rows of all key heads: the end of one head's, the whole of others', the beginning of another's.
        for kv_head in range.start / rows..range.end.div_ceil(rows) {
            let first = kv_head * rows;
            let own = range.start.max(first) - first..range.end.min(first + rows) - first;
            let queries = Queries {
                codes: &codes[kv_head * heads * dim..][..heads * dim],
                scales: &scales[kv_head * heads..][..heads],
                sums: &sums[kv_head * heads..][..heads],
            };
            let (target, rest) = out.split_at_mut(own.len() * width);
            attend(step, own, queries, cache.head(kv_head), scratch, target);
            out = rest;
        }
    });
    quantize_attended(step, pool, attended, rotation, out);
}

/// Rotates and quantizes the queries of the heads that share a key head, and stores its keys and values.
fn prepare(
    step: &Step<'_>,
    kv_head: usize,
    qkv: &[f32],
    tables: &[f32],
    queries: &mut QueriesMut<'_>,
    pages: &mut HeadMut<'_>,
) {
    let (rows, dim, group) = (
        step.places.len(),
        step.config.head_dim,
        step.heads_per_kv_head(),
    );
    let (heads, kv_heads) = (step.config.num_heads, step.config.num_kv_heads);
    let mut values = [0.0; HEAD_DIM_MAX];
    let values = &mut values[..dim];
    let (mut key_codes, mut value_codes) = ([0; HEAD_DIM_MAX], [0; HEAD_DIM_MAX]);
    let (key_codes, value_codes) = (&mut key_codes[..dim], &mut value_codes[..dim]);
    let QueriesMut {
        codes,
        scales,
        sums,
    } = queries;
    let mut targets = codes
        .chunks_exact_mut(dim)
        .zip(&mut **scales)
        .zip(&mut **sums);
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
        let (key, value) = ((&*key_codes, key_scale), (&*value_codes, value_scale));
        pages.store(page, slot, key, value);
    }
}

/// Attends from rows `rows` of the step to one key head; `out` is `[rows][heads per kv_head · dim]`.
fn attend(
    step: &Step<'_>,
    rows: Range<usize>,
    queries: Queries<'_>,
    cache: Head<'_>,
    scratch: &mut Floats,
    mut out: &mut [f32],
) {
    let mut row = rows.start;
    while row < rows.end {
        let span = step.places[row].span;
        let block = step.places[row..rows.end.min(row + BLOCK_ROWS)]
            .iter()
            .take_while(|place| place.span == span)
            .count();
        let (target, rest) = out.split_at_mut(block * step.width());
        attend_block(step, row..row + block, queries, cache, scratch, target);
        out = rest;
        row += block;
    }
}

/// Attends from consecutive rows of one span to one key head; `out` is `[rows][heads per kv_head][dim]`.
fn attend_block(
    step: &Step<'_>,
    rows: Range<usize>,
    queries: Queries<'_>,
    cache: Head<'_>,
    scratch: &mut Floats,
    out: &mut [f32],
) {
    let (dim, group, kernel) = (step.config.head_dim, step.heads_per_kv_head(), step.kernel);
    let Place {
        span,
        position: first,
    } = step.places[rows.start];
    let heads = rows.len() * group;
    let first_head = rows.start * group;
    let scratch = scratch.set_len(heads * (PANEL + 3) + PAGE_TOKENS * dim);
    // The whole lines first.
    let (scores, rest) = scratch.split_at_mut(heads * PANEL);
    let (floats, rest) = rest.split_at_mut(PAGE_TOKENS * dim);
    let (maxima, rest) = rest.split_at_mut(heads);
    let (totals, rescales) = rest.split_at_mut(heads);
    maxima.fill(f32::NEG_INFINITY);
    totals.fill(0.0);
    out.fill(0.0);
    let last = first + rows.len() - 1;
    for tile in 0..=last / PAGE_TOKENS {
        let page = cache.page(step.spans[span].pages[tile]);
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
        let keys = Block {
            codes: page.keys,
            zero_points: None,
            scales: None,
            ahead: bytemuck::cast_slice(page.values),
        };
        kernel.tile(keys, asked, scores, false);
        // One row reads the values once anyway; several share the work of widening them.
        let values = if rows.len() > 1 {
            kernel.widen(page.values, floats);
            Values::Floats(floats)
        } else {
            Values::Codes(page.values)
        };
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
        kernel.scale(head, 1.0 / *total);
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
