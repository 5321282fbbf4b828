//! The vector functions between matrix multiplications, each written once in portable code.
//!
//! Every body is inlined into one wrapper per instruction set, so the compiler vectorizes it with that set's registers.
//! Sums run over fixed sixteen-lane trees and multiply-adds are always fused, so all sets compute the same bits.

use super::super::{CODE_MAX, GROUP, PANEL};

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
    swiglu(sums: &[f32; PANEL], scales: &[f32; PANEL], out: &mut [f32; PANEL / 2]);
    softmax_tile(scores: &mut [f32; PANEL], valid: usize, maximum: &mut f32, total: &mut f32) -> f32;
    weighted_codes(weights: &[f32], rescale: &[f32], values: &[i8], valid: usize, out: &mut [f32]);
    weighted_floats(weights: &[f32], rescale: &[f32], values: &[f32], valid: usize, out: &mut [f32]);
    widen(values: &[i8], out: &mut [f32]);
}

/// The smallest magnitude that gets a scale: the reciprocal of a smaller one would overflow.
pub(super) const LEAST: f32 = 1e-36;

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

/// The factor that makes a Hadamard matrix of this size orthonormal: 1/√len.
#[inline(always)]
pub(super) fn rotation_norm(len: usize) -> f32 {
    (1.0 / (len as f64).sqrt()) as f32
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
fn swiglu(sums: &[f32; PANEL], scales: &[f32; PANEL], out: &mut [f32; PANEL / 2]) {
    for i in 0..PANEL / 2 {
        let gate = sums[i] * scales[i];
        let up = sums[i + PANEL / 2] * scales[i + PANEL / 2];
        out[i] = silu(gate) * up;
    }
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// One tile of online softmax over 64 scores; only the first `valid` are used.
///
/// Turns the scores into `exp(score − maximum)`, zero from `valid` on; raises `maximum` to the tile's maximum if that
/// is larger, and adds the tile to `total`. Returns the factor by which everything accumulated before must be
/// multiplied.
#[inline(always)]
pub(super) fn softmax_tile(
    scores: &mut [f32; PANEL],
    valid: usize,
    maximum: &mut f32,
    total: &mut f32,
) -> f32 {
    for (i, score) in scores.iter_mut().enumerate() {
        *score = if i < valid { *score } else { f32::NEG_INFINITY };
    }
    let mut largest = [f32::NEG_INFINITY; 16];
    for chunk in scores.chunks_exact(16) {
        for lane in 0..16 {
            largest[lane] = if chunk[lane] > largest[lane] {
                chunk[lane]
            } else {
                largest[lane]
            };
        }
    }
    let before = *maximum;
    *maximum = largest
        .iter()
        .fold(before, |max, &v| if v > max { v } else { max });
    let rescale = exp(before - *maximum);
    let mut sums = [0.0; 16];
    for chunk in scores.chunks_exact_mut(16) {
        for lane in 0..16 {
            chunk[lane] = exp(chunk[lane] - *maximum);
            sums[lane] += chunk[lane];
        }
    }
    *total = total.mul_add(rescale, tree_sum(&sums));
    rescale
}

#[inline(always)]
pub(super) fn weighted_values<V: Copy + Into<f32>>(
    weights: &[f32],
    rescale: &[f32],
    values: &[V],
    valid: usize,
    out: &mut [f32],
) {
    let dim = values.len() / PANEL;
    let mut head = 0;
    // Four heads share each load of the values; their sums stay in registers over the whole tile.
    while head < rescale.len() {
        let heads = (rescale.len() - head).min(4);
        let weights = &weights[head * PANEL..];
        let rescale = &rescale[head..];
        let out = &mut out[head * dim..];
        match heads {
            4 => weighted_values_of::<4, V>(weights, rescale, values, dim, valid, out),
            3 => weighted_values_of::<3, V>(weights, rescale, values, dim, valid, out),
            2 => weighted_values_of::<2, V>(weights, rescale, values, dim, valid, out),
            _ => weighted_values_of::<1, V>(weights, rescale, values, dim, valid, out),
        }
        head += heads;
    }
}

#[inline(always)]
fn weighted_values_of<const H: usize, V: Copy + Into<f32>>(
    weights: &[f32],
    rescale: &[f32],
    values: &[V],
    dim: usize,
    valid: usize,
    out: &mut [f32],
) {
    let whole = dim - dim % 16;
    for column in (0..whole).step_by(16) {
        let mut sums = [[0.0f32; 16]; H];
        for (head, sum) in sums.iter_mut().enumerate() {
            for lane in 0..16 {
                sum[lane] = out[head * dim + column + lane] * rescale[head];
            }
        }
        for token in 0..valid {
            let row: &[V; 16] = values[token * dim + column..][..16]
                .try_into()
                .expect("16 values");
            for (head, sum) in sums.iter_mut().enumerate() {
                let weight = weights[head * PANEL + token];
                for lane in 0..16 {
                    sum[lane] = weight.mul_add(row[lane].into(), sum[lane]);
                }
            }
        }
        for (head, sum) in sums.iter().enumerate() {
            out[head * dim + column..][..16].copy_from_slice(sum);
        }
    }
    for column in whole..dim {
        for head in 0..H {
            let mut sum = out[head * dim + column] * rescale[head];
            for token in 0..valid {
                sum =
                    weights[head * PANEL + token].mul_add(values[token * dim + column].into(), sum);
            }
            out[head * dim + column] = sum;
        }
    }
}

/// [`weighted_values`] for values as they are stored.
#[inline(always)]
fn weighted_codes(weights: &[f32], rescale: &[f32], values: &[i8], valid: usize, out: &mut [f32]) {
    weighted_values(weights, rescale, values, valid, out);
}

/// [`weighted_values`] for values that are already floats.
#[inline(always)]
fn weighted_floats(
    weights: &[f32],
    rescale: &[f32],
    values: &[f32],
    valid: usize,
    out: &mut [f32],
) {
    weighted_values(weights, rescale, values, valid, out);
}

#[inline(always)]
fn widen(values: &[i8], out: &mut [f32]) {
    for (wide, value) in out.iter_mut().zip(values) {
        *wide = f32::from(*value);
    }
}

/// Sums sixteen lanes pairwise: 16 → 8 → 4 → 2 → 1.
#[inline(always)]
pub fn tree_sum(lanes: &[f32; 16]) -> f32 {
    let mut sums = *lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

/// 1.5 · 2²³: adding and subtracting it rounds to the nearest integer.
pub const ROUND: f32 = 12_582_912.0;
/// [`exp`] clamps its argument to this: there it uses 2¹²⁷, the largest power of two that a float holds.
pub(super) const EXP_MOST: f32 = 88.0;
/// Below this [`exp`] is exactly 0.
pub(super) const EXP_LEAST: f32 = -87.0;
/// The high part of ln 2, short enough that its product with an exponent is exact.
pub const LN_2_HIGH: f32 = 0.693_359_4;
/// The low part of ln 2.
pub const LN_2_LOW: f32 = -2.121_944_4e-4;
/// 1/k! from 7 down to 0.
pub(super) const EXP_COEFFICIENTS: [f32; 8] = [
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// eˣ to about one unit in the last place, for x up to 88; exactly 0 below −87, which includes −∞.
///
/// Splits x into n·ln 2 + r with |r| ≤ ln 2 / 2 and evaluates the Taylor polynomial of degree 7 in r: its remainder
/// r⁸/8! is below 6·10⁻⁹, a tenth of a unit in the last place.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let bounded = if x > EXP_MOST { EXP_MOST } else { x };
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, bounded));
    let [first, rest @ ..] = EXP_COEFFICIENTS;
    let p = rest
        .into_iter()
        .fold(first, |p, coefficient| r.mul_add(p, coefficient));
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < EXP_LEAST { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let worst = (-870..=880)
            .map(|i| i as f32 / 10.0 + 0.013)
            .filter(|x| (-87.0..88.0).contains(x))
            .map(|x| ((f64::from(exp(x)) / f64::from(x).exp()) - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(
            worst < 2.0 * f64::from(f32::EPSILON),
            "relative error {worst}"
        );
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
