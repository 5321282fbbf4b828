//! AVX2 without VNNI: `vpmaddubsw` adds pairs of products in 16 bits.
//!
//! It wants one unsigned side and saturates beyond 32,767, so the weight's sign moves to the activation: with
//! `w = q − 128`, `|w| ≤ 128` and `|a| ≤ 127` a pair is at most 2 · 128 · 127 = 32,512.

use std::arch::x86_64::*;

use super::super::{PANEL, ZERO_POINT};
use super::{Candidate, Kernel, Tile, peak, vector};

/// Columns of one pass: 4 vectors of 8, so that two rows of accumulators, the weights and the temporaries fit 16 registers.
const COLUMNS: usize = 32;

/// The CPU features this kernel needs and whether they are there.
fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
    ]
}

/// This kernel and what it needs.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "avx2",
        tile,
        vector: vector::AVX2,
        limits: peak::AVX2,
    },
    features,
};

/// # Safety
/// `tile` was checked by [`Kernel::tile`], and the CPU has [`features`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(t: &Tile) {
    for half in 0..PANEL / COLUMNS {
        let mut row = 0;
        // SAFETY: the rows given are within the tile; the features are the caller's promise.
        unsafe {
            while row + 2 <= t.rows {
                rows_block::<2>(t, row, half * COLUMNS);
                row += 2;
            }
            if row < t.rows {
                rows_block::<1>(t, row, half * COLUMNS);
            }
        }
    }
}

/// Rows `first .. first + R` of columns `column .. column + 32`.
///
/// # Safety
/// Those rows and columns exist in the checked tile.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_block<const R: usize>(t: &Tile, first: usize, column: usize) {
    // SAFETY: `Tile` promises the lengths of weights, codes, scales and outputs.
    unsafe {
        let codes = t.codes.add(first * t.stride);
        let ones = _mm256_set1_epi16(1);
        let flip = _mm256_set1_epi8(ZERO_POINT as u8 as i8);
        let mut sums = [[_mm256_setzero_si256(); 4]; R];
        for step in 0..t.steps {
            let line = t.weights.add((step * PANEL + column) * 4);
            let rows: [__m256i; R] = std::array::from_fn(|r| {
                _mm256_set1_epi32(
                    codes
                        .add(r * t.stride + 4 * step)
                        .cast::<i32>()
                        .read_unaligned(),
                )
            });
            for j in 0..4 {
                let signed = _mm256_xor_si256(_mm256_loadu_si256(line.add(32 * j).cast()), flip);
                let magnitude = _mm256_abs_epi8(signed);
                for (row, sums) in rows.iter().zip(&mut sums) {
                    let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(*row, signed));
                    sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for (r, row) in sums.into_iter().enumerate() {
            let scale = _mm256_set1_ps(*t.scales.add(first + r));
            let out = t.out.add((first + r) * PANEL + column);
            for (j, sum) in row.into_iter().enumerate() {
                let slot = out.add(8 * j);
                let before = if t.accumulate {
                    _mm256_loadu_ps(slot)
                } else {
                    _mm256_setzero_ps()
                };
                _mm256_storeu_ps(
                    slot,
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, before),
                );
            }
        }
    }
}
