//! AVX-512 without VNNI (Skylake-SP): the arithmetic of AVX2 in registers twice as wide.
//!
//! `vpmaddubsw` saturates beyond 32,767, so the sign of the weight is moved to the activation, as in [`super::avx2`].
//! There is no instruction for that at this width; the signs are in a mask register, and a masked subtraction from zero
//! does it.

use std::arch::x86_64::*;

use super::super::{PANEL, ZERO_POINT};
use super::zmm::{LINES, UNROLLED, ask, features, finish, tile_512};
use super::{Candidate, Kernel, Tile, avx512_vector, peak, scan_blocks};

/// This kernel and the features it needs.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "avx512-bw",
        tile,
        vector: avx512_vector::FUNCTIONS,
        recurrence: scan_blocks::AVX512,
        limits: peak::AVX512_BW,
    },
    features,
};

// 5 rows × 4 vectors are 20 accumulators; with 4 magnitudes, a broadcast, a zero, ones and what `dot` needs on the way
// they take 30 of 32 registers.
tile_512!("avx512f,avx512bw,avx512vl,fma", rows: [2, 3, 4, 5], unassisted: 1);

/// `prepare` subtracts 128 from the codes, so the sums need no correction.
#[inline(always)]
fn start(_sum: i32) -> i32 {
    0
}

/// `|q − 128|`, and where `q − 128` is negative.
///
/// # Safety
/// The CPU has [`features`].
#[inline(always)]
unsafe fn prepare(weights: __m512i) -> (__m512i, __mmask64) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let signed = _mm512_xor_si512(weights, _mm512_set1_epi8(ZERO_POINT as u8 as i8));
        (_mm512_abs_epi8(signed), _mm512_movepi8_mask(signed))
    }
}

/// # Safety
/// The CPU has [`features`].
#[inline(always)]
unsafe fn dot(sums: __m512i, (magnitude, negative): (__m512i, __mmask64), row: __m512i) -> __m512i {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let row = _mm512_mask_sub_epi8(row, negative, _mm512_setzero_si512(), row);
        let pairs = _mm512_maddubs_epi16(magnitude, row);
        _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    }
}
