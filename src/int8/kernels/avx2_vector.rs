//! The vector functions whose values the compiler does not keep in registers, written by hand for AVX2. Each gives the
//! same bits as its portable form in [`super::softmax`], which documents what it computes.

use std::arch::x86_64::*;

use super::super::PANEL;
use super::vector::{self, Functions};
use super::{SoftmaxTile, math, softmax};

/// All functions of the instruction set.
pub(super) const FUNCTIONS: Functions = Functions {
    softmax_tile,
    ..vector::AVX2
};

/// [`softmax::softmax_tile`] with sums and maxima in registers; two of them hold the sixteen lanes of the portable form.
#[target_feature(enable = "avx2,fma")]
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
    for (scores, largest) in scores.chunks_exact_mut(PANEL).zip(&mut **rescales) {
        scores[*valid..].fill(f32::NEG_INFINITY);
        let mut most = [_mm256_set1_ps(f32::NEG_INFINITY); 2];
        for chunk in scores.chunks_exact(16) {
            for (most, half) in most.iter_mut().zip(chunk.chunks_exact(8)) {
                // SAFETY: the half is eight scores long. If a score is NaN, the instruction returns its second operand,
                // as the portable comparison does.
                *most = unsafe { _mm256_max_ps(_mm256_loadu_ps(half.as_ptr()), *most) };
            }
        }
        *largest = across(most, |a, b| _mm256_max_ps(a, b), |a, b| _mm_max_ps(a, b));
    }
    softmax::raise_maxima(maxima, totals, rescales);
    let queries = (maxima.iter().zip(&mut **totals)).zip(&mut **scales);
    for (scores, ((maximum, total), largest)) in scores.chunks_exact_mut(PANEL).zip(queries) {
        let shift = _mm256_set1_ps(*maximum);
        let (mut sums, mut most) = ([_mm256_setzero_ps(); 2], _mm256_setzero_ps());
        let chunks = scores
            .chunks_exact_mut(16)
            .zip(value_scales.chunks_exact(16));
        for (at, (chunk, scales)) in chunks.enumerate() {
            let halves = (chunk.chunks_exact_mut(8)).zip(scales.chunks_exact(8));
            for (half, (scores, scales)) in halves.enumerate() {
                // SAFETY: both are eight floats long.
                let (score, scale) = unsafe {
                    let score = _mm256_loadu_ps(scores.as_ptr());
                    (score, _mm256_loadu_ps(scales.as_ptr()))
                };
                let power = exp2(_mm256_sub_ps(score, shift));
                sums[half] = _mm256_add_ps(sums[half], power);
                let there = valid.saturating_sub(16 * at + 8 * half).min(8);
                let weight = _mm256_and_ps(_mm256_mul_ps(power, scale), first(there));
                // No weight is negative; the larger one of two floats has the larger bits.
                let (bits, before) = (_mm256_castps_si256(weight), _mm256_castps_si256(most));
                most = _mm256_castsi256_ps(_mm256_max_epi32(bits, before));
                // SAFETY: as for the loads.
                unsafe { _mm256_storeu_ps(scores.as_mut_ptr(), weight) }
            }
        }
        // This adds halves pairwise, in the order of `math::tree_sum`.
        *total += across(sums, |a, b| _mm256_add_ps(a, b), |a, b| _mm_add_ps(a, b));
        *largest = across(
            [most, most],
            |a, _| a,
            |a, b| _mm_castsi128_ps(_mm_max_epi32(_mm_castps_si128(a), _mm_castps_si128(b))),
        );
    }
    let round = _mm256_set1_ps(softmax::ROUND_WEIGHT);
    let queries = scales.iter_mut().zip(&mut **sums);
    let tiles = scores
        .chunks_exact(PANEL)
        .zip(codes.chunks_exact_mut(PANEL));
    for ((weights, codes), (scale, sum)) in tiles.zip(queries) {
        let inverse = _mm256_set1_ps(softmax::inverse_and_scale(scale));
        let code = |weights: &[f32]| {
            // SAFETY: eight weights.
            let weight = unsafe { _mm256_loadu_ps(weights.as_ptr()) };
            let bits = _mm256_castps_si256(_mm256_fmadd_ps(weight, inverse, round));
            // The code is the lowest byte.
            _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(bits))
        };
        let mut total = _mm256_setzero_si256();
        for (weights, codes) in weights.chunks_exact(32).zip(codes.chunks_exact_mut(32)) {
            let [a, b, c, d] = std::array::from_fn(|i| code(&weights[8 * i..8 * i + 8]));
            // The codes are bytes, so neither pack saturates. Both work inside the halves of a register, which
            // leaves groups of four in the order a, b, c, d, a, b, c, d.
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(bytes, order);
            total = _mm256_add_epi32(
                total,
                _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d)),
            );
            // SAFETY: 32 codes.
            unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes) }
        }
        let halves = _mm_add_epi32(
            _mm256_castsi256_si128(total),
            _mm256_extracti128_si256::<1>(total),
        );
        let pairs = _mm_add_epi32(halves, _mm_shuffle_epi32::<0b00_00_11_10>(halves));
        *sum = _mm_cvtsi128_si32(_mm_add_epi32(
            pairs,
            _mm_shuffle_epi32::<0b00_00_00_01>(pairs),
        ));
    }
}

/// Combines sixteen lanes pairwise: 16 → 8 → 4 → 2 → 1.
#[inline(always)]
fn across(
    [low, high]: [__m256; 2],
    eight: impl Fn(__m256, __m256) -> __m256,
    four: impl Fn(__m128, __m128) -> __m128,
) -> f32 {
    // SAFETY: called where the CPU has the features only.
    unsafe {
        let lanes = eight(low, high);
        let lanes = four(
            _mm256_castps256_ps128(lanes),
            _mm256_extractf128_ps::<1>(lanes),
        );
        let lanes = four(lanes, _mm_movehl_ps(lanes, lanes));
        _mm_cvtss_f32(four(lanes, _mm_movehdup_ps(lanes)))
    }
}

/// All bits in the first `count` of eight lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn first(count: usize) -> __m256 {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes))
}

/// [`softmax::exp2`] of eight values.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp2(x: __m256) -> __m256 {
    let round = _mm256_set1_ps(math::ROUND);
    // Returns the second operand if a value is NaN.
    let bounded = _mm256_max_ps(_mm256_set1_ps(softmax::EXP2_LEAST), x);
    let shifted = _mm256_add_ps(bounded, round);
    let r = _mm256_sub_ps(bounded, _mm256_sub_ps(shifted, round));
    let first = _mm256_set1_ps(softmax::EXP2_COEFFICIENTS[0]);
    let p = (softmax::EXP2_COEFFICIENTS[1..].iter()).fold(first, |p, &coefficient| {
        _mm256_fmadd_ps(r, p, _mm256_set1_ps(coefficient))
    });
    let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
    let power = _mm256_add_epi32(power, _mm256_set1_epi32(127 << 23));
    _mm256_mul_ps(p, _mm256_castsi256_ps(power))
}
