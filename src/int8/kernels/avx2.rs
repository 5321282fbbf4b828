//! AVX2 without VNNI: `vpmaddubsw` adds pairs of products in 16 bits.
//!
//! The instruction takes one unsigned and one signed operand and saturates beyond 32,767, so the sign of the weight is
//! moved to the activation: with `w = q − 128`, `|w| ≤ 128` and `|a| ≤ 127` a pair is at most 2 · 128 · 127 = 32,512.

use std::arch::x86_64::*;

use super::super::{PANEL, ZERO_POINT};
use super::ymm::tile_256;
use super::{Candidate, Kernel, Tile, avx2_vector, peak, scan_blocks};

/// The CPU features this kernel needs, and whether this CPU has them.
fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
    ]
}

/// This kernel and the features it needs.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "avx2",
        tile,
        vector: avx2_vector::FUNCTIONS,
        recurrence: scan_blocks::AVX2,
        limits: peak::AVX2,
    },
    features,
};

// Measured with the weights in the first-level cache, relative to the rate of the instructions in registers: one row
// 87 %, 2 × 2 90 %, 3 × 2 93 %, 4 × 1 and more 98 %. Preparing weights once for two vectors takes registers that are
// better used for rows.
tile_256!("avx2,fma", shapes: [(1, 8), (2, 2), (3, 2), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1)]);

/// `prepare` subtracts 128 from the codes, so the sums need no correction.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn start(_sum: i32) -> i32 {
    0
}

/// `|q − 128|` and `q − 128`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn prepare(weights: __m256i) -> (__m256i, __m256i) {
    let signed = _mm256_xor_si256(weights, _mm256_set1_epi8(ZERO_POINT as u8 as i8));
    (_mm256_abs_epi8(signed), signed)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn dot(sums: __m256i, (magnitude, signed): (__m256i, __m256i), row: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(row, signed));
    _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}
