//! Keys and values of all sequences in 64-token pages, int8 with one scale per token and head.

use std::ops::Range;

use super::config::{MixerKind, ModelConfig};
use super::forward::PAGE_TOKENS;
use super::lazy::Lazy;
use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::int8::kernels::pool::PerUnit;
use crate::int8::{PANEL, ZERO_POINT};
use crate::memory::maps::Addresses;

/// The pages of all layers with attention.
pub struct KvCache {
    layers: Vec<LayerCache>,
    page_count: usize,
}

/// The pages of one layer, head by head, so that threads can fill different heads at the same time.
pub struct LayerCache {
    pages: usize,
    head_dim: usize,
    /// `[kv_head][page][head_dim/4][64 tokens][4]`, unsigned: a key page is a weight block whose columns are tokens.
    keys: Lazy<u8>,
    /// `[kv_head][page][head_dim/64][16][64][4 tokens]`, unsigned: 64 dimensions of a page of values are a weight block
    /// whose depth is tokens. The last block is filled up with unused columns.
    values: Lazy<u8>,
    /// `[kv_head][page][64]`.
    key_scales: Lazy<f32>,
    value_scales: Lazy<f32>,
}

/// One head of one layer, to be appended to.
pub struct HeadMut<'a> {
    head_dim: usize,
    keys: &'a mut [u8],
    values: &'a mut [u8],
    key_scales: &'a mut [f32],
    value_scales: &'a mut [f32],
}

/// One head of one layer, to be read.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    head_dim: usize,
    keys: &'a [u8],
    values: &'a [u8],
    key_scales: &'a [f32],
    value_scales: &'a [f32],
}

/// One page of one head.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    /// `[head_dim/4][64 tokens][4]`.
    pub keys: &'a [u8],
    /// `[head_dim/64][16][64][4 tokens]`.
    pub values: &'a [u8],
    /// One per token.
    pub key_scales: &'a [f32; PAGE_TOKENS],
    /// One per token.
    pub value_scales: &'a [f32; PAGE_TOKENS],
}

/// The parts of [`LayerCache::by_head`].
pub type HeadParts<'a> = (
    PerUnit<'a, u8>,
    PerUnit<'a, u8>,
    PerUnit<'a, f32>,
    PerUnit<'a, f32>,
);

impl KvCache {
    /// Bytes of one page over all layers and heads.
    pub fn page_bytes(config: &ModelConfig) -> usize {
        let scales = 2 * size_of::<f32>();
        Self::page_tokens(config) * (config.head_dim + value_bytes(config.head_dim) + scales)
    }

    /// Keys and values in one page over all layers and heads, number by number.
    pub fn page_values(config: &ModelConfig) -> usize {
        Self::page_tokens(config) * 2 * config.head_dim
    }

    /// Tokens in one page, counted once for every layer and head.
    fn page_tokens(config: &ModelConfig) -> usize {
        config.layers_with(MixerKind::Attention) * config.num_kv_heads * PAGE_TOKENS
    }

    /// Reserves `page_count` pages. The system allocates the memory when pages are first written.
    ///
    /// # Errors
    /// [`Error::Config`] if the system cannot provide the address space.
    pub fn new(config: &ModelConfig, page_count: usize) -> Result<Self> {
        let tokens = config.num_kv_heads * page_count * PAGE_TOKENS;
        let layer = |_| {
            Ok(LayerCache {
                pages: page_count,
                head_dim: config.head_dim,
                keys: Lazy::in_small_pages(tokens * config.head_dim)?,
                values: Lazy::in_small_pages(tokens * value_bytes(config.head_dim))?,
                key_scales: Lazy::in_small_pages(tokens)?,
                value_scales: Lazy::in_small_pages(tokens)?,
            })
        };
        let layers = (0..config.layers_with(MixerKind::Attention))
            .map(layer)
            .collect::<std::io::Result<_>>();
        let layers = layers.map_err(|problem| {
            let page = Self::page_bytes(config) as u64;
            let (size, page) = (ByteSize(page * page_count as u64), ByteSize(page));
            Error::Config(format!(
                "no memory for a KV cache of {size} ({page_count} pages of {page}): {problem}"
            ))
        })?;
        Ok(Self { layers, page_count })
    }

    /// Fills every page with arbitrary numbers, so that attention can be timed without running prompts.
    pub fn fill(&mut self) {
        for layer in &mut self.layers {
            layer.keys.fill(129);
            layer.values.fill(129);
            layer.key_scales.fill(1e-3);
            layer.value_scales.fill(1e-3);
        }
    }

    /// Where the pages are.
    pub fn addresses(&self) -> Vec<Addresses> {
        let of_layer = |layer: &LayerCache| {
            [
                layer.keys.addresses(),
                layer.values.addresses(),
                layer.key_scales.addresses(),
                layer.value_scales.addresses(),
            ]
        };
        self.layers.iter().flat_map(of_layer).collect()
    }

    /// Number of pages.
    pub const fn page_count(&self) -> usize {
        self.page_count
    }

    /// The layer with attention that `index` others come before.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }
}

impl LayerCache {
    /// The pages as parts with one unit per KV head.
    pub fn by_head(&mut self) -> HeadParts<'_> {
        let tokens = self.pages * PAGE_TOKENS;
        (
            PerUnit::new(&mut self.keys, tokens * self.head_dim),
            PerUnit::new(&mut self.values, tokens * value_bytes(self.head_dim)),
            PerUnit::new(&mut self.key_scales, tokens),
            PerUnit::new(&mut self.value_scales, tokens),
        )
    }

    /// Head `head`.
    pub fn head(&self, head: usize) -> Head<'_> {
        let tokens = self.pages * PAGE_TOKENS;
        let scales = head * tokens..(head + 1) * tokens;
        Head {
            head_dim: self.head_dim,
            keys: &self.keys[times(&scales, self.head_dim)],
            values: &self.values[times(&scales, value_bytes(self.head_dim))],
            key_scales: &self.key_scales[scales.clone()],
            value_scales: &self.value_scales[scales],
        }
    }
}

impl<'a> Head<'a> {
    /// Page `page`.
    #[inline]
    pub fn page(&self, page: u32) -> Page<'a> {
        let scales = page as usize * PAGE_TOKENS..(page as usize + 1) * PAGE_TOKENS;
        let of_page = |all: &'a [f32]| all[scales.clone()].try_into().expect("a page of scales");
        Page {
            keys: &self.keys[times(&scales, self.head_dim)],
            values: &self.values[times(&scales, value_bytes(self.head_dim))],
            key_scales: of_page(self.key_scales),
            value_scales: of_page(self.value_scales),
        }
    }
}

impl<'a> HeadMut<'a> {
    /// Splits a share of [`LayerCache::by_head`] into heads.
    pub fn split(
        heads: usize,
        head_dim: usize,
        (keys, values, key_scales, value_scales): (
            &'a mut [u8],
            &'a mut [u8],
            &'a mut [f32],
            &'a mut [f32],
        ),
    ) -> impl Iterator<Item = Self> {
        let tokens = key_scales.len() / heads;
        let codes = keys
            .chunks_exact_mut(tokens * head_dim)
            .zip(values.chunks_exact_mut(tokens * value_bytes(head_dim)));
        let scales = key_scales
            .chunks_exact_mut(tokens)
            .zip(value_scales.chunks_exact_mut(tokens));
        codes
            .zip(scales)
            .map(move |((keys, values), (key_scales, value_scales))| Self {
                head_dim,
                keys,
                values,
                key_scales,
                value_scales,
            })
    }

    /// The same head, to be read.
    pub const fn as_head(&self) -> Head<'_> {
        Head {
            head_dim: self.head_dim,
            keys: self.keys,
            values: self.values,
            key_scales: self.key_scales,
            value_scales: self.value_scales,
        }
    }

    /// Stores the quantized key and value of token `slot` of page `page`.
    pub fn store(&mut self, page: u32, slot: usize, key: (&[i8], f32), value: (&[i8], f32)) {
        let first = page as usize * PAGE_TOKENS;
        let keys = &mut self.keys[first * self.head_dim..][..PAGE_TOKENS * self.head_dim];
        for (step, four) in key.0.chunks_exact(4).enumerate() {
            let target = &mut keys[(step * PAGE_TOKENS + slot) * 4..][..4];
            for (target, code) in target.iter_mut().zip(four) {
                *target = unsigned(*code);
            }
        }
        let bytes = value_bytes(self.head_dim);
        let values = &mut self.values[first * bytes..][..PAGE_TOKENS * bytes];
        let blocks = values.chunks_exact_mut(PAGE_TOKENS * PANEL);
        for (block, codes) in blocks.zip(value.0.chunks(PANEL)) {
            let step = &mut block[slot / 4 * PANEL * 4..][..PANEL * 4];
            for (target, code) in step.chunks_exact_mut(4).zip(codes) {
                target[slot % 4] = unsigned(*code);
            }
        }
        self.key_scales[first + slot] = key.1;
        self.value_scales[first + slot] = value.1;
    }
}

/// Bytes that the value of a token takes in one head: whole panels.
const fn value_bytes(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PANEL)
}

/// A range of things as a range of their bytes.
const fn times(range: &Range<usize>, bytes: usize) -> Range<usize> {
    range.start * bytes..range.end * bytes
}

/// A code as blocks of weights hold it.
const fn unsigned(code: i8) -> u8 {
    (code as i32 + ZERO_POINT) as u8
}
