//! The vector functions between matrix multiplications, each written once in portable code.
//!
//! Every body is inlined into one wrapper per instruction set, so the compiler vectorizes it with that set's registers.
//! Sums run over fixed sixteen-lane trees and multiply-adds are always fused, so all sets compute the same bits.

use super::super::{CODE_MAX, GROUP, PANEL};
use super::SoftmaxTile;
use super::math::{LEAST, ROUND, rotation_norm, silu};
use super::softmax::softmax_tile;

for_each_instruction_set! {
    rotate_block(values: &mut [f32]);
    quantize_rotated(values: &mut [f32; GROUP], codes: &mut [i8; GROUP]) -> (f32, i32);
    rotate_strided(values: &mut [f32]);
    apply_rotary(head: &mut [f32], table: &[f32]);
    quantize(values: &[f32], codes: &mut [i8]) -> (f32, i32);
    add_squares(values: &[f32], sums: &mut [[f32; 16]]);
    normalize(values: &[f32], factor: f32, weights: &[f32], out: &mut [f32]);
    scale(values: &mut [f32], factor: f32);
    scale_columns(out: &mut [f32], scales: &[f32; PANEL]);
    add_scaled_columns(target: &mut [f32], sums: &[f32], scales: &[f32; PANEL]);
    add_products(out: &mut [f32], products: &[f32], middle: &[f32; PANEL], scales: &[f32], rescales: &[f32]);
    swiglu(sums: &[f32; PANEL], scales: &[f32; PANEL], out: &mut [f32; PANEL / 2]);
    softmax_tile(tile: &mut SoftmaxTile<'_>);
    add_weighted(weights: &[f32], values: &[f32], out: &mut [f32]);
}

/// Quantizes to −127…127 with `scale = max |x| / 127`, rounding half to even; returns the scale and the sum of codes.
///
/// If all values are below [`LEAST`], they count as zero. A value that is not finite gives a scale that is not finite,
/// so that it does not go unnoticed.
#[inline(always)]
fn quantize(values: &[f32], codes: &mut [i8]) -> (f32, i32) {
    // The magnitudes of floats are ordered like their bits, and an integer maximum vectorizes.
    let largest = values
        .iter()
        .fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    if largest < LEAST {
        codes.fill(0);
        return (0.0, 0);
    }
    let inverse = CODE_MAX / largest;
    let mut sum = 0;
    for (code, value) in codes.iter_mut().zip(values) {
        // Adding 1.5 · 2²³ leaves the rounded integer in the low bits of the mantissa.
        *code = (value * inverse + ROUND).to_bits() as i8;
        sum += i32::from(*code);
    }
    (largest / CODE_MAX, sum)
}

/// Rotates a whole group by [`rotate_block`], then quantizes it; `values` are unspecified afterwards.
#[inline(always)]
fn quantize_rotated(values: &mut [f32; GROUP], codes: &mut [i8; GROUP]) -> (f32, i32) {
    rotate_block(values);
    quantize(values, codes)
}

/// The orthonormal Hadamard rotation of a power of two of values, up to a group; it is its own inverse. It computes
/// butterflies between rows of sixteen values, then inside each row.
#[inline(always)]
pub(super) fn rotate_block(values: &mut [f32]) {
    butterflies(values, &[16, 32, 64, 128, 1, 2, 4, 8]);
    scale(values, rotation_norm(values.len()));
}

/// Computes only the butterflies between rows of sixteen values, which need no permutation; blocks of up to sixteen
/// values are not changed.
#[inline(always)]
fn rotate_strided(values: &mut [f32]) {
    butterflies(values, &[16, 32, 64, 128]);
    scale(values, rotation_norm(values.len().div_ceil(16)));
}

/// Replaces values `half` apart by their sum and difference, for each `half` that is shorter than the block.
#[inline(always)]
fn butterflies(values: &mut [f32], halves: &[usize]) {
    for &half in halves {
        if half >= values.len() {
            continue;
        }
        for pair in values.chunks_exact_mut(2 * half) {
            let (left, right) = pair.split_at_mut(half);
            for (a, b) in left.iter_mut().zip(right) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
    }
}

/// Rotary embedding of a head by a table of cosines, then sines: `[a, b] → [a·cos − b·sin, b·cos + a·sin]` by halves.
#[inline(always)]
fn apply_rotary(head: &mut [f32], table: &[f32]) {
    let (first, second) = head.split_at_mut(table.len() / 2);
    let (cosines, sines) = table.split_at(table.len() / 2);
    for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
    }
}

#[inline(always)]
fn add_squares(values: &[f32], sums: &mut [[f32; 16]]) {
    for (row, sums) in values.chunks_exact(PANEL).zip(sums) {
        for chunk in row.chunks_exact(16) {
            for lane in 0..16 {
                sums[lane] = chunk[lane].mul_add(chunk[lane], sums[lane]);
            }
        }
    }
}

#[inline(always)]
fn normalize(values: &[f32], factor: f32, weights: &[f32], out: &mut [f32]) {
    for ((out, value), weight) in out.iter_mut().zip(values).zip(weights) {
        *out = *value * factor * weight;
    }
}

#[inline(always)]
fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

#[inline(always)]
fn scale_columns(out: &mut [f32], scales: &[f32; PANEL]) {
    for row in out.chunks_exact_mut(PANEL) {
        for (value, scale) in row.iter_mut().zip(scales) {
            *value *= scale;
        }
    }
}

#[inline(always)]
fn add_scaled_columns(target: &mut [f32], sums: &[f32], scales: &[f32; PANEL]) {
    for (row, sums) in target.chunks_exact_mut(PANEL).zip(sums.chunks_exact(PANEL)) {
        for column in 0..PANEL {
            row[column] = sums[column].mul_add(scales[column], row[column]);
        }
    }
}

#[inline(always)]
fn add_products(
    out: &mut [f32],
    products: &[f32],
    middle: &[f32; PANEL],
    scales: &[f32],
    rescales: &[f32],
) {
    let rows = out
        .chunks_exact_mut(PANEL)
        .zip(products.chunks_exact(PANEL));
    for ((out, products), (scale, rescale)) in rows.zip(scales.iter().zip(rescales)) {
        for column in 0..PANEL {
            let product = products[column] + middle[column];
            out[column] = product.mul_add(*scale, out[column] * rescale);
        }
    }
}

#[inline(always)]
fn swiglu(sums: &[f32; PANEL], scales: &[f32; PANEL], out: &mut [f32; PANEL / 2]) {
    for i in 0..PANEL / 2 {
        let gate = sums[i] * scales[i];
        let up = sums[i + PANEL / 2] * scales[i + PANEL / 2];
        out[i] = silu(gate) * up;
    }
}

#[inline(always)]
pub(super) fn add_weighted(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let width = values.len() / PANEL;
    let rows = weights.len() / PANEL;
    let mut row = 0;
    // Four rows share each load of the values; their sums stay in registers over all 64 of them.
    while row < rows {
        let count = (rows - row).min(4);
        let (weights, out) = (&weights[row * PANEL..], &mut out[row * width..]);
        match count {
            4 => add_weighted_rows::<4>(weights, values, width, out),
            3 => add_weighted_rows::<3>(weights, values, width, out),
            2 => add_weighted_rows::<2>(weights, values, width, out),
            _ => add_weighted_rows::<1>(weights, values, width, out),
        }
        row += count;
    }
}

#[inline(always)]
fn add_weighted_rows<const R: usize>(
    weights: &[f32],
    values: &[f32],
    width: usize,
    out: &mut [f32],
) {
    let whole = width - width % 16;
    for column in (0..whole).step_by(16) {
        let mut sums = [[0.0f32; 16]; R];
        for (row, sum) in sums.iter_mut().enumerate() {
            sum.copy_from_slice(&out[row * width + column..][..16]);
        }
        for t in 0..PANEL {
            let values: &[f32; 16] = values[t * width + column..][..16]
                .try_into()
                .expect("16 values");
            for (row, sum) in sums.iter_mut().enumerate() {
                let weight = weights[row * PANEL + t];
                for lane in 0..16 {
                    sum[lane] = weight.mul_add(values[lane], sum[lane]);
                }
            }
        }
        for (row, sum) in sums.iter().enumerate() {
            out[row * width + column..][..16].copy_from_slice(sum);
        }
    }
    for column in whole..width {
        for row in 0..R {
            let sum = &mut out[row * width + column];
            for t in 0..PANEL {
                *sum = weights[row * PANEL + t].mul_add(values[t * width + column], *sum);
            }
        }
    }
}
