//! The quantized queries of a step, by KV head.

use crate::int8::floats::bytes;
use crate::int8::kernels::pool::PerUnit;

/// Quantized queries, `[kv_head][row][heads per kv_head]`.
#[derive(Default)]
pub struct QueryBuffers {
    /// `[head_dim]` per query.
    codes: Vec<i8>,
    /// One per query, with the softmax scale folded in.
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// The queries that share a KV head, `[row][heads per kv_head]`.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub sums: &'a [i32],
}

/// The queries that share a KV head, to be filled.
pub struct QueriesMut<'a> {
    pub codes: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [i32],
}

impl QueryBuffers {
    /// Bytes of the buffers.
    pub const fn bytes(&self) -> usize {
        bytes(&self.codes) + bytes(&self.scales) + bytes(&self.sums)
    }

    /// Makes room for `count` queries of `dim` values.
    pub fn set_len(&mut self, count: usize, dim: usize) {
        self.codes.resize(count * dim, 0);
        self.scales.resize(count, 0.0);
        self.sums.resize(count, 0);
    }

    /// The queries as parts with one unit per KV head, which has `heads` of them.
    pub fn by_kv_head(&mut self, heads: usize, dim: usize) -> QueryParts<'_> {
        (
            PerUnit::new(&mut self.codes, heads * dim),
            PerUnit::new(&mut self.scales, heads),
            PerUnit::new(&mut self.sums, heads),
        )
    }

    /// The queries of one KV head.
    pub fn of_kv_head(&self, kv_head: usize, heads: usize, dim: usize) -> Queries<'_> {
        Queries {
            codes: &self.codes[kv_head * heads * dim..][..heads * dim],
            scales: &self.scales[kv_head * heads..][..heads],
            sums: &self.sums[kv_head * heads..][..heads],
        }
    }
}

/// The parts of [`QueryBuffers::by_kv_head`].
pub type QueryParts<'a> = (PerUnit<'a, i8>, PerUnit<'a, f32>, PerUnit<'a, i32>);

impl<'a> QueriesMut<'a> {
    /// Splits a thread's share into the queries of each of its KV heads: `heads` queries over all rows, of `dim`
    /// values.
    pub fn split(
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

    pub const fn as_queries(&self) -> Queries<'_> {
        Queries {
            codes: self.codes,
            scales: self.scales,
            sums: self.sums,
        }
    }
}
