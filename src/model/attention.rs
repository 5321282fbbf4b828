//! Grouped-query attention over int8 pages. Queries and keys are rotated and quantized per head, and their products are
//! the scores. The softmax is computed online; its weights, with the scales of the values in them, are quantized for each
//! query and tile, so that their products with the values are sums of int8 products, too.
//!
//! Each tile is a page. Pages are aligned at position 0 and processed in ascending order, and the arithmetic of a query
//! is the same whether it runs alone or together with other rows, so neither batching nor chunking changes a bit of the
//! result.

#[cfg(test)]
mod tests;
mod tiles;

use std::ops::Range;

use super::config::HEAD_DIM_MAX;
use super::forward::PAGE_TOKENS;
use super::kv_cache::{Head, HeadMut, LayerCache};
use super::queries::{Queries, QueriesMut, QueryBuffers};
use super::step::{Row, Step};
use super::weights::Attention;
use crate::int8::activations::{Activations, groups_of};
use crate::int8::compute::Compute;
use crate::int8::floats::Floats;
use crate::int8::kernels::pool::{PerThread, PerUnit};
use crate::int8::kernels::{Block, Kernel, Rows};
use crate::int8::matmul::Panels;
use crate::int8::rotation::Rotation;
use crate::int8::{GROUP, PANEL};
use tiles::{NOTHING_AHEAD, Tiles};

/// Consecutive rows of one sequence that share each load of the keys. With four query heads per KV head they make a
/// tile of 32 rows, whose scores take 8 KiB; more would take too much of the first-level cache.
const BLOCK_ROWS: usize = 8;

/// The buffers of attention, kept between layers and steps.
pub struct Buffers {
    /// Queries, keys and values as floats: the product of the first matrix.
    qkv: Floats,
    queries: QueryBuffers,
    /// The outputs of attention, `[kv_head][row][heads per kv_head · head_dim]`.
    attended: Floats,
    /// The same outputs, quantized.
    out: Activations,
}

impl Buffers {
    /// Bytes of the buffers.
    pub const fn bytes(&self) -> usize {
        self.qkv.bytes() + self.queries.bytes() + self.attended.bytes() + self.out.bytes()
    }

    /// Creates buffers for heads of `width` values in total.
    pub fn new(width: usize) -> Self {
        Self {
            qkv: Floats::default(),
            queries: QueryBuffers::default(),
            attended: Floats::default(),
            out: Activations::new(0, width),
        }
    }
}

impl Step<'_> {
    /// Number of query heads that share a KV head.
    const fn heads_per_kv_head(&self) -> usize {
        self.config.num_heads / self.config.num_kv_heads
    }

    /// Number of values in the query heads that share a KV head.
    const fn width(&self) -> usize {
        self.heads_per_kv_head() * self.config.head_dim
    }

    /// Number of queries over all rows that share a KV head.
    const fn queries_per_kv_head(&self) -> usize {
        self.rows.len() * self.heads_per_kv_head()
    }
}

/// The attention of a layer: `residual += output · attend(qkv · input)`.
///
/// Rotates and quantizes queries, stores keys and values in the cache, computes the attention of every row over all
/// positions up to its own, and quantizes the result for the output matrix.
pub fn attention(
    step: &Step<'_>,
    compute: &mut Compute,
    weights: &Attention,
    cache: &mut LayerCache,
    input: &Activations,
    buffers: &mut Buffers,
    residual: &mut Floats,
) {
    let Attention { qkv, output } = weights;
    let (rows, kv_heads) = (step.rows.len(), step.config.num_kv_heads);
    let products = buffers.qkv.set_len(qkv.panels() * rows * PANEL);
    compute.multiply(qkv, input, products);
    let queries = kv_heads * step.queries_per_kv_head();
    buffers.queries.set_len(queries, step.config.head_dim);
    buffers.attended.set_len(kv_heads * rows * step.width());
    buffers.out.set_rows(rows);
    // If all threads have the same number of KV heads and the outputs of each are whole groups, no thread needs another
    // thread's results before the end.
    if kv_heads.is_multiple_of(compute.pool.active()) && step.width().is_multiple_of(GROUP) {
        in_one_phase(step, compute, cache, output.rotation(), buffers);
    } else {
        in_three_phases(step, compute, cache, output.rotation(), buffers);
    }
    compute.multiply_add(output, &buffers.out, residual);
}

/// Each thread processes its KV heads from the queries to the quantized output.
fn in_one_phase(
    step: &Step<'_>,
    compute: &mut Compute,
    cache: &mut LayerCache,
    rotation: Rotation,
    buffers: &mut Buffers,
) {
    let (rows, dim, width) = (step.rows.len(), step.config.head_dim, step.width());
    let (kv_heads, heads) = (step.config.num_kv_heads, step.queries_per_kv_head());
    let Buffers {
        qkv,
        queries,
        attended,
        out,
    } = buffers;
    let Compute {
        kernel,
        pool,
        scratch,
    } = compute;
    let (kernel, qkv) = (*kernel, Panels::new(qkv, rows));
    let parts = (
        (queries.by_kv_head(heads, dim), cache.by_head()),
        PerUnit::new(attended, rows * width),
        out.by_groups(width / GROUP),
        PerThread::new(scratch),
    );
    pool.run(kv_heads, parts, |_, range, parts| {
        let ((queries, pages), attended, out, scratch) = parts;
        let mut groups = groups_of(rows, out);
        let heads = QueriesMut::split(heads, dim, queries)
            .zip(HeadMut::split(range.len(), dim, pages))
            .zip(attended.chunks_exact_mut(rows * width));
        for (kv_head, ((mut queries, mut pages), attended)) in range.zip(heads) {
            prepare(step, kernel, kv_head, qkv, &mut queries, &mut pages);
            let (queries, pages) = (queries.as_queries(), pages.as_head());
            attend(step, kernel, 0..rows, queries, pages, scratch, attended);
            for (offset, group) in (0..width).step_by(GROUP).zip(&mut groups) {
                group.fill(kernel, rotation, GROUP, |row, values| {
                    values.copy_from_slice(&attended[row * width + offset..][..GROUP])
                });
            }
        }
    });
}

/// Divides queries, keys and values by KV head, then attention by KV head and row, then the output by group.
fn in_three_phases(
    step: &Step<'_>,
    compute: &mut Compute,
    cache: &mut LayerCache,
    rotation: Rotation,
    buffers: &mut Buffers,
) {
    let (rows, dim, width) = (step.rows.len(), step.config.head_dim, step.width());
    let (kv_heads, heads) = (step.config.num_kv_heads, step.queries_per_kv_head());
    let Buffers {
        qkv,
        queries,
        attended,
        out,
    } = buffers;
    let Compute {
        kernel,
        pool,
        scratch,
    } = compute;
    let (kernel, qkv) = (*kernel, Panels::new(qkv, rows));
    let parts = (queries.by_kv_head(heads, dim), cache.by_head());
    pool.run(kv_heads, parts, |_, range, (queries, pages)| {
        let heads = QueriesMut::split(heads, dim, queries);
        let heads = heads.zip(HeadMut::split(range.len(), dim, pages));
        for (kv_head, (mut queries, mut pages)) in range.zip(heads) {
            prepare(step, kernel, kv_head, qkv, &mut queries, &mut pages);
        }
    });
    let (queries, cache) = (&*queries, &*cache);
    let parts = (PerUnit::new(attended, width), PerThread::new(scratch));
    pool.run(kv_heads * rows, parts, |_, range, (mut out, scratch)| {
        // The share is a contiguous range over `[kv_heads][rows]`: the last rows of one KV head, all rows of the next
        // ones, the first rows of the last one.
        for kv_head in range.start / rows..range.end.div_ceil(rows) {
            let first = kv_head * rows;
            let own = range.start.max(first) - first..range.end.min(first + rows) - first;
            let queries = queries.of_kv_head(kv_head, heads, dim);
            let (target, rest) = out.split_at_mut(own.len() * width);
            let pages = cache.head(kv_head);
            attend(step, kernel, own, queries, pages, scratch, target);
            out = rest;
        }
    });
    let attended = &*attended;
    let groups = out.groups();
    let last = out.group_width(groups - 1);
    pool.run(groups, out.by_group(), |_, range, parts| {
        for (group, out) in range.zip(groups_of(rows, parts)) {
            let whole = if group + 1 == groups { last } else { GROUP };
            out.fill(kernel, rotation, whole, |row, values| {
                let mut done = 0;
                while done < values.len() {
                    let column = group * GROUP + done;
                    let (kv_head, offset) = (column / width, column % width);
                    let count = (width - offset).min(values.len() - done);
                    let source = &attended[(kv_head * rows + row) * width + offset..][..count];
                    values[done..done + count].copy_from_slice(source);
                    done += count;
                }
            });
        }
    });
}

/// Rotates and quantizes the queries of the heads that share a KV head, and stores its keys and values.
fn prepare(
    step: &Step<'_>,
    kernel: Kernel,
    kv_head: usize,
    qkv: Panels<'_>,
    queries: &mut QueriesMut<'_>,
    pages: &mut HeadMut<'_>,
) {
    let (dim, sharing) = (step.config.head_dim, step.heads_per_kv_head());
    let (heads, kv_heads) = (step.config.num_heads, step.config.num_kv_heads);
    // The softmax is to base 2.
    let multiplier = step.config.attention_multiplier * std::f32::consts::LOG2_E;
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
    for (index, row) in step.rows.iter().enumerate() {
        let table = step.rotary.map(|tables| &tables[index * dim..][..dim]);
        for head in kv_head * sharing..(kv_head + 1) * sharing {
            let ((codes, scale), sum) = targets.next().expect("one target per query head");
            qkv.gather(index, head * dim, values);
            if let Some(table) = table {
                kernel.apply_rotary(values, table);
            }
            kernel.rotate(Rotation::Full, values);
            (*scale, *sum) = kernel.quantize(values, codes);
            *scale *= multiplier;
        }
        qkv.gather(index, (heads + kv_head) * dim, values);
        if let Some(table) = table {
            kernel.apply_rotary(values, table);
        }
        kernel.rotate(Rotation::Full, values);
        let (key_scale, _) = kernel.quantize(values, key_codes);
        qkv.gather(index, (heads + kv_heads + kv_head) * dim, values);
        let (value_scale, _) = kernel.quantize(values, value_codes);
        let page = step.spans[row.span].pages[row.position / PAGE_TOKENS];
        let token = row.position % PAGE_TOKENS;
        let (key, value) = ((&*key_codes, key_scale), (&*value_codes, value_scale));
        pages.store(page, token, key, value);
    }
}

/// Computes the attention of rows `rows` of the step over one KV head; `out` is `[rows][heads per kv_head · dim]`.
fn attend(
    step: &Step<'_>,
    kernel: Kernel,
    rows: Range<usize>,
    queries: Queries<'_>,
    cache: Head<'_>,
    scratch: &mut Floats,
    mut out: &mut [f32],
) {
    let mut row = rows.start;
    while row < rows.end {
        let span = step.rows[row].span;
        let block = step.rows[row..rows.end.min(row + BLOCK_ROWS)]
            .iter()
            .take_while(|row| row.span == span)
            .count();
        let (target, rest) = out.split_at_mut(block * step.width());
        let block_rows = row..row + block;
        attend_block(step, kernel, block_rows, queries, cache, scratch, target);
        out = rest;
        row += block;
    }
}

/// Computes the attention of consecutive rows of one span over one KV head; `out` is `[rows][heads per kv_head][dim]`.
fn attend_block(
    step: &Step<'_>,
    kernel: Kernel,
    rows: Range<usize>,
    queries: Queries<'_>,
    cache: Head<'_>,
    scratch: &mut Floats,
    out: &mut [f32],
) {
    let (dim, sharing) = (step.config.head_dim, step.heads_per_kv_head());
    let Row {
        span,
        position: first,
    } = step.rows[rows.start];
    let heads = rows.len() * sharing;
    let first_head = rows.start * sharing;
    let mut tiles = Tiles::new(scratch, heads, dim);
    let last = first + rows.len() - 1;
    let pages = &step.spans[span].pages[..=last / PAGE_TOKENS];
    for (tile, page) in pages.iter().enumerate() {
        let page = cache.page(*page);
        let start = tile * PAGE_TOKENS;
        // Rows before the tile's first position attend to none of it.
        let skipped = start.saturating_sub(first);
        let from = skipped * sharing;
        let seeing = first_head + from..first_head + heads;
        let seeing = Rows {
            codes: &queries.codes[seeing.start * dim..seeing.end * dim],
            stride: dim,
            scales: &queries.scales[seeing.clone()],
            sums: &queries.sums[seeing],
        };
        let keys = Block {
            codes: page.keys,
            zero_points: None,
            scales: Some(page.key_scales),
            ahead: NOTHING_AHEAD,
        };
        kernel.tile(keys, seeing, &mut tiles.scores[from * PANEL..], false);
        let valid = |row: usize| (first + row + 1 - start).min(PAGE_TOKENS);
        if valid(skipped) == PAGE_TOKENS {
            tiles.softmax(kernel, from..heads, PAGE_TOKENS, page.value_scales);
        } else {
            for row in skipped..rows.len() {
                let heads = row * sharing..(row + 1) * sharing;
                tiles.softmax(kernel, heads, valid(row), page.value_scales);
            }
        }
        tiles.add_values(kernel, from, page.values);
    }
    for (head, out) in out.chunks_exact_mut(dim).enumerate() {
        tiles.copy_output(head, out);
        kernel.scale(out, 1.0 / tiles.totals[head]);
    }
}
