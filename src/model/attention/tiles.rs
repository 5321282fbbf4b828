//! The softmax of queries and their weighted values, a page at a time.

use std::ops::Range;

use crate::int8::PANEL;
use crate::int8::floats::Floats;
use crate::int8::kernels::{Block, Kernel, Rows, SoftmaxTile, WEIGHT_MIDDLE};
use crate::model::forward::PAGE_TOKENS;

/// Keys and values are not prefetched: processors do so in time by themselves, and on Zen 4 decoding behind a context that
/// is in memory took twice as long where they were asked for it as well.
pub const NOTHING_AHEAD: &[u8] = &[];

/// The softmax of some heads over the tiles so far, and the buffers for one tile.
///
/// The codes have one row more than there are heads: the last one is all [`WEIGHT_MIDDLE`], and its product with the values
/// is what the products of all other rows lack. Both are whole numbers below 2²⁴, so their sum is exact, and the stale values
/// of tokens that are not there, whose weight is 0, leave no trace in it.
pub struct Tiles<'a> {
    /// `[heads][64]`: the scores of a tile.
    pub scores: &'a mut [f32],
    /// `[dim/64][heads][64]`: the sums of weighted values so far.
    sums: &'a mut [f32],
    /// `[heads + 1][64]`: the products of codes and values of a tile.
    products: &'a mut [f32],
    /// `[heads + 1][64]`: the weights of a tile.
    codes: &'a mut [i8],
    /// `[heads + 1]`.
    code_sums: &'a mut [i32],
    /// `[heads + 1]`, all 1.
    ones: &'a mut [f32],
    /// One per head, as are those below.
    code_scales: &'a mut [f32],
    maxima: &'a mut [f32],
    pub totals: &'a mut [f32],
    rescales: &'a mut [f32],
}

impl<'a> Tiles<'a> {
    /// Before the first tile.
    pub fn new(scratch: &'a mut Floats, heads: usize, dim: usize) -> Self {
        let (panels, rows) = (dim.div_ceil(PANEL), heads + 1);
        let codes = rows * PANEL / size_of::<f32>();
        let lines = (heads + heads * panels + rows) * PANEL + codes;
        let scratch = scratch.set_len(lines + 2 * rows + 4 * heads);
        // The buffers of whole cache lines come first, so that they stay aligned.
        let (scores, rest) = scratch.split_at_mut(heads * PANEL);
        let (sums, rest) = rest.split_at_mut(heads * PANEL * panels);
        let (products, rest) = rest.split_at_mut(rows * PANEL);
        let (codes, rest) = rest.split_at_mut(codes);
        let (code_sums, rest) = rest.split_at_mut(rows);
        let (ones, rest) = rest.split_at_mut(rows);
        let (code_scales, rest) = rest.split_at_mut(heads);
        let (maxima, rest) = rest.split_at_mut(heads);
        let (totals, rescales) = rest.split_at_mut(heads);
        let codes: &mut [i8] = bytemuck::cast_slice_mut(codes);
        let code_sums: &mut [i32] = bytemuck::cast_slice_mut(code_sums);
        codes[heads * PANEL..].fill(WEIGHT_MIDDLE);
        code_sums[heads] = i32::from(WEIGHT_MIDDLE) * PANEL as i32;
        ones.fill(1.0);
        sums.fill(0.0);
        maxima.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        Self {
            scores,
            sums,
            products,
            codes,
            code_sums,
            ones,
            code_scales,
            maxima,
            totals,
            rescales,
        }
    }

    /// Turns the scores of `heads` into weights; all of them attend to the tile's first `valid` tokens.
    pub fn softmax(
        &mut self,
        kernel: Kernel,
        heads: Range<usize>,
        valid: usize,
        value_scales: &[f32; PANEL],
    ) {
        let tokens = heads.start * PANEL..heads.end * PANEL;
        kernel.softmax_tile(&mut SoftmaxTile {
            scores: &mut self.scores[tokens.clone()],
            valid,
            value_scales,
            maxima: &mut self.maxima[heads.clone()],
            totals: &mut self.totals[heads.clone()],
            rescales: &mut self.rescales[heads.clone()],
            codes: &mut self.codes[tokens],
            scales: &mut self.code_scales[heads.clone()],
            sums: &mut self.code_sums[heads],
        });
    }

    /// Adds the tile's weighted values to the sums of the heads from `from` on.
    pub fn add_values(&mut self, kernel: Kernel, from: usize, values: &[u8]) {
        const BLOCK: usize = PAGE_TOKENS * PANEL;
        let heads = self.rescales.len();
        let weights = Rows {
            codes: &self.codes[from * PANEL..],
            stride: PANEL,
            scales: &self.ones[from..],
            sums: &self.code_sums[from..],
        };
        let products = &mut self.products[from * PANEL..];
        let panels = self.sums.chunks_exact_mut(heads * PANEL);
        for (sums, values) in panels.zip(values.chunks_exact(BLOCK)) {
            let values = Block {
                codes: values,
                zero_points: None,
                scales: None,
                ahead: NOTHING_AHEAD,
            };
            kernel.tile(values, weights, products, false);
            let (products, middle) = products.split_at((heads - from) * PANEL);
            let middle = middle.try_into().expect("64 products");
            let (sums, scales) = (&mut sums[from * PANEL..], &self.code_scales[from..]);
            kernel.add_products(sums, products, middle, scales, &self.rescales[from..]);
        }
    }

    /// Copies the sums of head `head` to `out`.
    pub fn copy_output(&self, head: usize, out: &mut [f32]) {
        let panels = self.sums.chunks_exact(self.rescales.len() * PANEL);
        for (sums, out) in panels.zip(out.chunks_mut(PANEL)) {
            out.copy_from_slice(&sums[head * PANEL..][..out.len()]);
        }
    }
}
