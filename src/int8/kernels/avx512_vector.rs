//! The vector functions whose values the compiler does not keep in registers, written by hand for AVX-512. Each gives
//! the same bits as its portable form in [`super::vector`], which documents what it computes.

use std::arch::x86_64::*;

use super::super::{CODE_MAX, GROUP, PANEL};
use super::vector::{self, Functions};
use super::{SoftmaxTile, math, softmax};

/// All functions of the instruction set.
pub(super) const FUNCTIONS: Functions = Functions {
    rotate_block,
    quantize_rotated,
    add_squares,
    softmax_tile,
    add_weighted,
    ..vector::AVX512
};

/// [`Functions::rotate_block`] with rows of sixteen values in registers. The butterflies inside a row, which the
/// compiler turns into loads and stores, are a permutation and a multiply-add with ±1 here. `a − b` and `fma(b, −1, a)`
/// give the same bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn rotate_block(values: &mut [f32]) {
    match values.len() {
        256 => rotate_rows::<16>(values),
        128 => rotate_rows::<8>(values),
        64 => rotate_rows::<4>(values),
        32 => rotate_rows::<2>(values),
        16 => rotate_rows::<1>(values),
        _ => vector::rotate_block(values),
    }
}

/// Rotates `ROWS` rows of sixteen values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn rotate_rows<const ROWS: usize>(values: &mut [f32]) {
    assert_eq!(values.len(), 16 * ROWS);
    let pointer = values.as_mut_ptr();
    // SAFETY: the CPU has the features, and there are sixteen values for each row, by the assertion.
    unsafe {
        let rows = rotated::<ROWS>(pointer);
        for (i, row) in rows.into_iter().enumerate() {
            _mm512_storeu_ps(pointer.add(16 * i), row);
        }
    }
}

/// `ROWS` rows of sixteen values from `pointer` on, rotated.
///
/// # Safety
/// The values exist, and the CPU has AVX-512. There is no `#[target_feature]` here, because it cannot be combined with
/// `#[inline(always)]`, and a call that is not inlined would spill the rows.
#[inline(always)]
unsafe fn rotated<const ROWS: usize>(pointer: *const f32) -> [__m512; ROWS] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut rows = [_mm512_setzero_ps(); ROWS];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_ps(pointer.add(16 * i));
        }
        let mut half = 1;
        while half < ROWS {
            for i in 0..ROWS {
                if i & half == 0 {
                    let (a, b) = (rows[i], rows[i + half]);
                    rows[i] = _mm512_add_ps(a, b);
                    rows[i + half] = _mm512_sub_ps(a, b);
                }
            }
            half *= 2;
        }
        // The sign of a value in its own butterfly: minus in the upper half of each pair.
        let (plus, minus) = (_mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
        let norm = _mm512_set1_ps(math::rotation_norm(16 * ROWS));
        for row in &mut rows {
            let mut r = *row;
            let other = _mm512_permute_ps::<0b10_11_00_01>(r);
            r = _mm512_fmadd_ps(r, _mm512_mask_blend_ps(0xaaaa, plus, minus), other);
            let other = _mm512_permute_ps::<0b01_00_11_10>(r);
            r = _mm512_fmadd_ps(r, _mm512_mask_blend_ps(0xcccc, plus, minus), other);
            let other = _mm512_shuffle_f32x4::<0b10_11_00_01>(r, r);
            r = _mm512_fmadd_ps(r, _mm512_mask_blend_ps(0xf0f0, plus, minus), other);
            let other = _mm512_shuffle_f32x4::<0b01_00_11_10>(r, r);
            r = _mm512_fmadd_ps(r, _mm512_mask_blend_ps(0xff00, plus, minus), other);
            *row = _mm512_mul_ps(r, norm);
        }
        rows
    }
}

/// [`vector::quantize`] after [`rotate_block`]; the group stays in registers in between.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn quantize_rotated(values: &mut [f32; GROUP], codes: &mut [i8; GROUP]) -> (f32, i32) {
    // SAFETY: the CPU has the features, and a group is sixteen rows.
    let rows: [__m512; GROUP / 16] = unsafe { rotated(values.as_ptr()) };
    // The magnitudes of floats are ordered like their bits.
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let largest = rows.iter().fold(_mm512_setzero_si512(), |most, &row| {
        _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(row), magnitude))
    });
    let largest = f32::from_bits(_mm512_reduce_max_epi32(largest) as u32);
    if largest < math::LEAST {
        codes.fill(0);
        return (0.0, 0);
    }
    let inverse = _mm512_set1_ps(CODE_MAX / largest);
    let round = _mm512_set1_ps(math::ROUND);
    let mut sums = _mm512_setzero_si512();
    for (row, codes) in rows.into_iter().zip(codes.chunks_exact_mut(16)) {
        let bits = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(row, inverse), round));
        // The code is the lowest byte.
        sums = _mm512_add_epi32(sums, _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(bits)));
        // SAFETY: the chunk is sixteen codes long.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(bits)) }
    }
    (largest / CODE_MAX, _mm512_reduce_add_epi32(sums))
}

/// [`vector::add_squares`]: the sums of a row stay in a register, and rows do not depend on each other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn add_squares(values: &[f32], sums: &mut [[f32; 16]]) {
    for (row, sums) in values.chunks_exact(PANEL).zip(sums) {
        // SAFETY: a row is four times sixteen values, and there are sixteen sums.
        unsafe {
            let mut sum = _mm512_loadu_ps(sums.as_ptr());
            for j in 0..PANEL / 16 {
                let chunk = _mm512_loadu_ps(row.as_ptr().add(16 * j));
                sum = _mm512_fmadd_ps(chunk, chunk, sum);
            }
            _mm512_storeu_ps(sums.as_mut_ptr(), sum);
        }
    }
}

/// [`softmax::softmax_tile`] with all scores of a query in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn softmax_tile(tile: &mut SoftmaxTile<'_>) {
    let SoftmaxTile {
        scores,
        valid,
        value_scales,
        maxima,
        totals,
        rescales,
        codes,
        scales,
        sums,
    } = tile;
    let masks: [__mmask16; LINES] =
        std::array::from_fn(|j| ((1u32 << valid.saturating_sub(16 * j).min(16)) - 1) as __mmask16);
    for (scores, largest) in scores.chunks_exact(PANEL).zip(&mut **rescales) {
        let mut most = _mm512_set1_ps(f32::NEG_INFINITY);
        for (j, mask) in masks.into_iter().enumerate() {
            // SAFETY: a chunk is four times sixteen scores.
            let scores = unsafe { _mm512_loadu_ps(scores.as_ptr().add(16 * j)) };
            // If a score is NaN, the instruction returns its second operand, as the portable comparison does.
            most = _mm512_mask_max_ps(most, mask, scores, most);
        }
        *largest = _mm512_reduce_max_ps(most);
    }
    softmax::raise_maxima(maxima, totals, rescales);
    // SAFETY: there are four times sixteen scales.
    let value_scales: [__m512; LINES] =
        std::array::from_fn(|j| unsafe { _mm512_loadu_ps(value_scales.as_ptr().add(16 * j)) });
    let queries = (maxima.iter().zip(&mut **totals)).zip(&mut **scales);
    for (scores, ((maximum, total), largest)) in scores.chunks_exact_mut(PANEL).zip(queries) {
        let shift = _mm512_set1_ps(*maximum);
        let (mut sums, mut most) = (_mm512_setzero_ps(), _mm512_setzero_si512());
        for j in 0..LINES {
            // SAFETY: as for the loads above.
            unsafe {
                let at = scores.as_mut_ptr().add(16 * j);
                let score = _mm512_mask_loadu_ps(_mm512_set1_ps(f32::NEG_INFINITY), masks[j], at);
                let power = exp2(_mm512_sub_ps(score, shift));
                sums = _mm512_add_ps(sums, power);
                let weight = _mm512_maskz_mul_ps(masks[j], power, value_scales[j]);
                most = _mm512_max_epi32(most, _mm512_castps_si512(weight));
                _mm512_storeu_ps(at, weight);
            }
        }
        // This adds halves pairwise, in the order of `math::tree_sum`.
        *total += _mm512_reduce_add_ps(sums);
        *largest = f32::from_bits(_mm512_reduce_max_epi32(most) as u32);
    }
    let round = _mm512_set1_ps(softmax::ROUND_WEIGHT);
    let queries = scales.iter_mut().zip(&mut **sums);
    let tiles = scores
        .chunks_exact(PANEL)
        .zip(codes.chunks_exact_mut(PANEL));
    for ((weights, codes), (scale, sum)) in tiles.zip(queries) {
        let inverse = _mm512_set1_ps(softmax::inverse_and_scale(scale));
        let mut total = _mm512_setzero_si512();
        for j in 0..LINES {
            // SAFETY: there are 64 weights and codes.
            unsafe {
                let weight = _mm512_loadu_ps(weights.as_ptr().add(16 * j));
                // The code is the lowest byte.
                let bits = _mm512_castps_si512(_mm512_fmadd_ps(weight, inverse, round));
                let code = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(bits));
                total = _mm512_add_epi32(total, code);
                _mm_storeu_si128(
                    codes.as_mut_ptr().add(16 * j).cast(),
                    _mm512_cvtepi32_epi8(bits),
                );
            }
        }
        *sum = _mm512_reduce_add_epi32(total);
    }
}

/// Vectors of sixteen in a panel.
const LINES: usize = PANEL / 16;

/// [`softmax::exp2`] of sixteen values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn exp2(x: __m512) -> __m512 {
    let round = _mm512_set1_ps(math::ROUND);
    // Returns the second operand if a value is NaN.
    let bounded = _mm512_max_ps(_mm512_set1_ps(softmax::EXP2_LEAST), x);
    let shifted = _mm512_add_ps(bounded, round);
    let r = _mm512_sub_ps(bounded, _mm512_sub_ps(shifted, round));
    let first = _mm512_set1_ps(softmax::EXP2_COEFFICIENTS[0]);
    let p = (softmax::EXP2_COEFFICIENTS[1..].iter()).fold(first, |p, &coefficient| {
        _mm512_fmadd_ps(r, p, _mm512_set1_ps(coefficient))
    });
    let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    let power = _mm512_add_epi32(power, _mm512_set1_epi32(127 << 23));
    _mm512_mul_ps(p, _mm512_castsi512_ps(power))
}

/// [`vector::add_weighted`]: the sums of four rows stay in registers over all 64 values, and each load of values serves
/// four rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn add_weighted(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let width = values.len() / PANEL;
    if !width.is_multiple_of(16) {
        return vector::add_weighted(weights, values, out);
    }
    let rows = weights.len() / PANEL;
    assert!(out.len() >= rows * width);
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(4);
        let (weights, out) = (
            weights[row * PANEL..].as_ptr(),
            out[row * width..].as_mut_ptr(),
        );
        for column in (0..width).step_by(16) {
            // SAFETY: `count` rows are left, and sixteen columns; the lengths were compared above.
            unsafe {
                let (values, out) = (values.as_ptr().add(column), out.add(column));
                match count {
                    4 => add_weighted_rows::<4>(weights, values, width, out),
                    3 => add_weighted_rows::<3>(weights, values, width, out),
                    2 => add_weighted_rows::<2>(weights, values, width, out),
                    _ => add_weighted_rows::<1>(weights, values, width, out),
                }
            }
        }
        row += count;
    }
}

/// Sixteen columns of `R` rows.
///
/// # Safety
/// `weights` has `R · 64` values, and there are sixteen values from `values` on in each of 64 rows of `width`, and from
/// `out` on in each of `R`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn add_weighted_rows<const R: usize>(
    weights: *const f32,
    values: *const f32,
    width: usize,
    out: *mut f32,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sums: [__m512; R] = std::array::from_fn(|r| _mm512_loadu_ps(out.add(r * width)));
        for t in 0..PANEL {
            let values = _mm512_loadu_ps(values.add(t * width));
            for (r, sum) in sums.iter_mut().enumerate() {
                let weight = _mm512_set1_ps(*weights.add(r * PANEL + t));
                *sum = _mm512_fmadd_ps(weight, values, *sum);
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(out.add(r * width), sum);
        }
    }
}
