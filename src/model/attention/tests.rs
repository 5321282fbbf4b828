use super::*;
use crate::int8::kernels::{available, best};
use crate::model::config::ModelConfig;
use crate::model::forward::Span;
use crate::model::shapes;

/// Three pages, the last one not full.
const TOKENS: usize = 150;
const PAGES: [u32; 3] = [2, 0, 3];
const HEADS: usize = 3;

/// One KV head over a sequence, with three query heads in every row.
struct Sequence {
    config: ModelConfig,
    keys: Vec<u8>,
    values: Vec<u8>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    /// `[tokens][heads][dim]`.
    query_codes: Vec<i8>,
    query_scales: Vec<f32>,
    query_sums: Vec<i32>,
    /// `[tokens][dim]`, as they are stored.
    key_codes: Vec<i8>,
    value_codes: Vec<i8>,
}

/// Numbers without a pattern between −1 and 1.
fn numbers(seed: usize, count: usize) -> Vec<f32> {
    let number = |i: usize| {
        let mixed = ((seed << 32) + i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32
    };
    (0..count)
        .map(|i| number(i) / (1 << 23) as f32 - 1.0)
        .collect()
}

impl Sequence {
    fn new(dim: usize) -> Self {
        let config = ModelConfig {
            num_heads: HEADS,
            num_kv_heads: 1,
            head_dim: dim,
            ..shapes::named("granite-3.3-2b").unwrap()
        };
        let room = 4 * PAGE_TOKENS;
        // What no token of the sequence has written must not matter.
        let mut sequence = Self {
            config,
            keys: vec![0xff; room * dim],
            values: vec![0xff; room * dim.next_multiple_of(PANEL)],
            key_scales: vec![f32::NAN; room],
            value_scales: vec![f32::NAN; room],
            query_codes: vec![0; TOKENS * HEADS * dim],
            query_scales: vec![0.0; TOKENS * HEADS],
            query_sums: vec![0; TOKENS * HEADS],
            key_codes: vec![0; TOKENS * dim],
            value_codes: vec![0; TOKENS * dim],
        };
        let queries = numbers(1, TOKENS * HEADS * dim);
        let codes = sequence.query_codes.chunks_exact_mut(dim);
        for (query, (values, codes)) in queries.chunks_exact(dim).zip(codes).enumerate() {
            let (scale, sum) = best().quantize(values, codes);
            // Some queries see all tokens nearly alike, some only a few.
            sequence.query_scales[query] = scale * [0.1, 1.0, 4.0][query % HEADS];
            sequence.query_sums[query] = sum;
        }
        let buffers = (
            &mut sequence.keys[..],
            &mut sequence.values[..],
            &mut sequence.key_scales[..],
            &mut sequence.value_scales[..],
        );
        let mut head = HeadMut::split(1, dim, buffers).next().unwrap();
        let (keys, values) = (numbers(2, TOKENS * dim), numbers(3, TOKENS * dim));
        for token in 0..TOKENS {
            let own = token * dim..(token + 1) * dim;
            let (key, value) = (
                &mut sequence.key_codes[own.clone()],
                &mut sequence.value_codes[own.clone()],
            );
            let (key_scale, _) = best().quantize(&keys[own.clone()], key);
            let (value_scale, _) = best().quantize(&values[own], value);
            let page = PAGES[token / PAGE_TOKENS];
            head.store(
                page,
                token % PAGE_TOKENS,
                (key, key_scale),
                (value, value_scale),
            );
        }
        sequence
    }

    /// The outputs of rows `rows`, computed in one step.
    fn attend(&self, kernel: Kernel, rows: Range<usize>) -> Vec<f32> {
        let dim = self.config.head_dim;
        let tokens = vec![0; rows.len()];
        let span = Span {
            tokens: &tokens,
            start: rows.start,
            pages: &PAGES,
            slot: 0,
            certain: usize::MAX,
            restore: None,
            saves: &[],
            logit_rows: 0,
        };
        let positions: Vec<Row> = (rows.clone())
            .map(|position| Row { span: 0, position })
            .collect();
        let step = Step {
            config: &self.config,
            spans: &[span],
            rows: &positions,
            rotary: None,
        };
        let heads = rows.start * HEADS..rows.end * HEADS;
        let queries = Queries {
            codes: &self.query_codes[heads.start * dim..heads.end * dim],
            scales: &self.query_scales[heads.clone()],
            sums: &self.query_sums[heads],
        };
        let mut copies = (
            self.keys.clone(),
            self.values.clone(),
            self.key_scales.clone(),
            self.value_scales.clone(),
        );
        let (keys, values, key_scales, value_scales) = &mut copies;
        let head = HeadMut::split(1, dim, (keys, values, key_scales, value_scales));
        let head = head.last().unwrap();
        let mut out = vec![9.0; rows.len() * HEADS * dim];
        let (mut scratch, count) = (Floats::default(), rows.len());
        attend(
            &step,
            kernel,
            0..count,
            queries,
            head.as_head(),
            &mut scratch,
            &mut out,
        );
        out
    }

    /// The output of head `head` of row `row` in f64 from the same codes, and how far rounding the weights of each page
    /// to 254 steps of its largest one may lead away from it.
    fn expected(&self, row: usize, head: usize) -> Vec<(f64, f64)> {
        let dim = self.config.head_dim;
        let query = row * HEADS + head;
        let place =
            |token: usize| PAGES[token / PAGE_TOKENS] as usize * PAGE_TOKENS + token % PAGE_TOKENS;
        let code = |codes: &[i8], vector: usize, d: usize| f64::from(codes[vector * dim + d]);
        let score = |token: usize| {
            let product = (0..dim)
                .map(|d| code(&self.query_codes, query, d) * code(&self.key_codes, token, d))
                .sum::<f64>();
            let scale =
                f64::from(self.query_scales[query]) * f64::from(self.key_scales[place(token)]);
            product * scale
        };
        let scores: Vec<f64> = (0..=row).map(score).collect();
        let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = scores
            .iter()
            .map(|score| (score - maximum).exp2())
            .collect();
        let total: f64 = powers.iter().sum();
        let weight =
            |token: usize| powers[token] / total * f64::from(self.value_scales[place(token)]);
        (0..dim)
            .map(|d| {
                let (mut sum, mut slack) = (0.0, 0.0);
                for page in 0..=row / PAGE_TOKENS {
                    let tokens = page * PAGE_TOKENS..(row + 1).min((page + 1) * PAGE_TOKENS);
                    let largest = tokens.clone().map(weight).fold(0.0, f64::max);
                    for token in tokens {
                        let value = code(&self.value_codes, token, d);
                        sum += weight(token) * value;
                        slack += largest / 508.0 * value.abs();
                    }
                }
                (sum, slack)
            })
            .collect()
    }
}

#[test]
fn attention_is_a_softmax_over_values_of_any_width() {
    for dim in [4, 20, 64, 96, 128, 256] {
        let sequence = Sequence::new(dim);
        let found = sequence.attend(best(), 0..TOKENS);
        for row in [0, 1, 62, 63, 64, 127, 128, TOKENS - 1] {
            for head in 0..HEADS {
                let found = &found[(row * HEADS + head) * dim..][..dim];
                for (found, (expected, slack)) in found.iter().zip(sequence.expected(row, head)) {
                    let difference = (f64::from(*found) - expected).abs();
                    assert!(
                        difference <= 1.01 * slack + 1e-5,
                        "{dim} wide, row {row}, head {head}: {found} is not {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_later_tokens_have_stored_leaves_no_trace() {
    for dim in [20, 64, 128] {
        let sequence = Sequence::new(dim);
        for rows in [0..1, 0..40, 60..65, 100..130] {
            // Every byte behind the rows is another one.
            let mut other = Sequence::new(dim);
            let width = dim.next_multiple_of(PANEL);
            for token in rows.end..PAGES.len() * PAGE_TOKENS {
                let (page, slot) = (PAGES[token / PAGE_TOKENS] as usize, token % PAGE_TOKENS);
                for step in 0..dim / 4 {
                    let at = page * PAGE_TOKENS * dim + (step * PAGE_TOKENS + slot) * 4;
                    other.keys[at..at + 4].fill(7);
                }
                for column in 0..width {
                    let block = page * width + column / PANEL * PANEL;
                    let at = block * PAGE_TOKENS + (slot / 4 * PANEL + column % PANEL) * 4;
                    other.values[at + slot % 4] = 250;
                }
                other.key_scales[page * PAGE_TOKENS + slot] = f32::NAN;
                other.value_scales[page * PAGE_TOKENS + slot] = f32::INFINITY;
            }
            for kernel in available() {
                let bits = |sequence: &Sequence| -> Vec<u32> {
                    let out = sequence.attend(kernel, rows.clone());
                    out.into_iter().map(f32::to_bits).collect()
                };
                assert_eq!(bits(&sequence), bits(&other), "{kernel:?}, {dim} wide");
            }
        }
    }
}

#[test]
fn rows_have_the_same_bits_together_alone_and_with_every_kernel() {
    for dim in [20, 64, 128] {
        let sequence = Sequence::new(dim);
        let bits =
            |values: Vec<f32>| -> Vec<u32> { values.into_iter().map(f32::to_bits).collect() };
        let together = bits(sequence.attend(best(), 0..TOKENS));
        for kernel in available() {
            for first in [0, 1, 7, 64, 100] {
                let rows = bits(sequence.attend(kernel, first..TOKENS));
                assert_eq!(
                    rows,
                    together[first * HEADS * dim..],
                    "{kernel:?}, {dim} wide"
                );
            }
            for row in [0, 5, 63, 64, 65, TOKENS - 1] {
                let alone = bits(sequence.attend(kernel, row..row + 1));
                let beside = &together[row * HEADS * dim..][..HEADS * dim];
                assert_eq!(alone, beside, "{kernel:?}, {dim} wide, row {row}");
            }
        }
    }
}
