//! The tile for 512-bit registers, shared by instruction sets that differ only in the instructions that multiply four
//! codes with four codes.

use std::arch::x86_64::*;

use super::super::{PANEL, ZERO_POINT};
use super::Tile;

/// The CPU features of every kernel with these registers, and whether this CPU has them.
pub(super) fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        // Used by the vector functions, not by the tile.
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("fma", is_x86_feature_detected!("fma")),
    ]
}

/// Unrolled K-steps: their loads can be interleaved, and the prefetches are spread over them.
pub(super) const UNROLLED: usize = 4;

/// Cache lines of weights in a K-step.
pub(super) const LINES: usize = 4;

/// Defines a kernel's function `tile` from its features and three functions of its own, all `#[inline(always)]`:
/// `start(sum) -> i32`, the initial value of the accumulators for a row whose codes add up to `sum`;
/// `prepare(weights)`, done once for all rows; and `dot(sums, prepared, row)`, which adds sixteen sums of four products
/// each.
///
/// `rows` are the numbers of rows in a pass, from 2 up to the largest one whose accumulators, four for each row, fit in
/// 32 registers with the operands of `dot`. Up to so many rows, which have to fit in one pass, are limited by memory alone and
/// prefetch as [`Tile::near`] or [`Tile::unassisted`] says.
macro_rules! tile_512 {
    ($features:literal, rows: [$($rows:literal),+], $few:ident: $few_rows:literal) => {
        const ROWS_MAX: usize = {
            let rows = [$($rows),+];
            rows[rows.len() - 1]
        };

        /// # Safety
        /// `tile` was checked by [`Kernel::tile`], and the CPU has [`features`].
        #[target_feature(enable = $features)]
        unsafe fn tile(t: &Tile) {
            let t = &if t.rows <= $few_rows { t.$few() } else { *t };
            // Divide the rows into passes as evenly as possible: 8 rows are 4 + 4, not 6 + 2.
            let blocks = t.rows.div_ceil(ROWS_MAX);
            let (size, larger) = (t.rows / blocks, t.rows % blocks);
            // Each pass over the weights prefetches a part of `ahead`, the same number of lines in each unrolled round,
            // and all passes together prefetch the whole of it. This spreads the memory traffic evenly over the
            // arithmetic.
            let rounds = (t.steps / UNROLLED).max(1);
            let lines = (t.ahead_len / 64).div_ceil(rounds);
            let (mut first, mut asked) = (0, 0);
            for block in 0..blocks {
                let rows = size + usize::from(block < larger);
                let ahead = t.ahead.wrapping_add(64 * asked * rounds);
                // SAFETY: rows `first .. first + rows` are within the tile; the caller guarantees the features.
                asked += unsafe {
                    match (lines * (block + 1)).div_ceil(blocks).saturating_sub(asked) {
                        0 => some_rows::<0>(t, first, rows, ahead),
                        1..=2 => some_rows::<2>(t, first, rows, ahead),
                        3..=4 => some_rows::<4>(t, first, rows, ahead),
                        5..=8 => some_rows::<8>(t, first, rows, ahead),
                        _ => some_rows::<16>(t, first, rows, ahead),
                    }
                };
                first += rows;
            }
        }

        /// Multiplies rows `first .. first + rows` and prefetches `ASKED` lines from `ahead` on in each unrolled round;
        /// returns `ASKED`.
        ///
        /// # Safety
        /// Those rows, at most [`ROWS_MAX`], exist in the checked tile.
        #[target_feature(enable = $features)]
        unsafe fn some_rows<const ASKED: usize>(
            t: &Tile,
            first: usize,
            rows: usize,
            ahead: *const u8,
        ) -> usize {
            // SAFETY: guaranteed by the caller.
            unsafe {
                match rows {
                    1 => one_row::<ASKED>(t, first, ahead),
                    $($rows => rows_block::<$rows, ASKED>(t, first, ahead),)+
                    _ => unreachable!("passes are as large as ROWS_MAX"),
                }
            }
            ASKED
        }

        /// Multiplies rows `first .. first + R`, with four accumulators per row.
        ///
        /// # Safety
        /// Those rows exist in the checked tile.
        #[target_feature(enable = $features)]
        unsafe fn rows_block<const R: usize, const ASKED: usize>(
            t: &Tile,
            first: usize,
            mut ahead: *const u8,
        ) {
            // SAFETY: `Tile` guarantees the lengths of weights, codes, sums and out.
            unsafe {
                let codes = t.codes.add(first * t.stride);
                let mut sums: [[__m512i; LINES]; R] = std::array::from_fn(|r| {
                    [_mm512_set1_epi32(start(*t.sums.add(first + r))); LINES]
                });
                let rounds = t.steps / UNROLLED;
                for round in 0..rounds {
                    for i in 0..UNROLLED {
                        ask::<ASKED>(ahead, i);
                        add_step(t, round * UNROLLED + i, codes, &mut sums);
                    }
                    ahead = ahead.wrapping_add(64 * ASKED);
                }
                for step in rounds * UNROLLED..t.steps {
                    add_step(t, step, codes, &mut sums);
                }
                for (r, row) in sums.into_iter().enumerate() {
                    finish(t, first + r, row);
                }
            }
        }

        /// Adds the products of one K-step for the rows whose codes begin at `codes`.
        ///
        /// # Safety
        /// The K-step and the rows exist in the checked tile, and the CPU has [`features`]. There is no
        /// `#[target_feature]` here, for the reason given at [`finish`].
        #[inline(always)]
        unsafe fn add_step<const R: usize>(
            t: &Tile,
            step: usize,
            codes: *const i8,
            sums: &mut [[__m512i; LINES]; R],
        ) {
            // SAFETY: guaranteed by the caller.
            unsafe {
                let line = t.weights.add(step * PANEL * 4);
                let weights: [_; LINES] =
                    std::array::from_fn(|j| prepare(_mm512_loadu_si512(line.add(64 * j).cast())));
                for (r, row) in sums.iter_mut().enumerate() {
                    let four = codes.add(r * t.stride + 4 * step).cast::<i32>();
                    let four = _mm512_set1_epi32(four.read_unaligned());
                    for j in 0..LINES {
                        row[j] = dot(row[j], weights[j], four);
                    }
                }
            }
        }

        /// Multiplies one row with two sets of accumulators, for even and odd K-steps: with only four accumulators each
        /// instruction would wait for an earlier one.
        ///
        /// # Safety
        /// Row `first` exists in the checked tile.
        #[target_feature(enable = $features)]
        unsafe fn one_row<const ASKED: usize>(t: &Tile, first: usize, mut ahead: *const u8) {
            // SAFETY: as in `rows_block`.
            unsafe {
                let codes = t.codes.add(first * t.stride);
                let mut even = [[_mm512_set1_epi32(start(*t.sums.add(first))); LINES]];
                let mut odd = [[_mm512_setzero_si512(); LINES]];
                let rounds = t.steps / UNROLLED;
                for round in 0..rounds {
                    for i in 0..UNROLLED {
                        ask::<ASKED>(ahead, i);
                        let sums = if i % 2 == 0 { &mut even } else { &mut odd };
                        add_step(t, round * UNROLLED + i, codes, sums);
                    }
                    ahead = ahead.wrapping_add(64 * ASKED);
                }
                for step in rounds * UNROLLED..t.steps {
                    add_step(t, step, codes, &mut even);
                }
                let ([even], [odd]) = (even, odd);
                finish(
                    t,
                    first,
                    std::array::from_fn(|j| _mm512_add_epi32(even[j], odd[j])),
                );
            }
        }
    };
}
pub(super) use tile_512;

/// Prefetches the `i`th part of `ASKED` lines from `ahead` on into the second-level cache. The first level is better used
/// for the current group, whose passes read it again: with 8 rows of a 2B model on Zen 4 a step takes 22 to 39 % longer
/// if the lines go there.
#[inline(always)]
pub(super) fn ask<const ASKED: usize>(ahead: *const u8, i: usize) {
    for line in ASKED * i / UNROLLED..ASKED * (i + 1) / UNROLLED {
        // SAFETY: a prefetch needs no valid address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64 * line).cast()) }
    }
}

/// Adds a row's sums to the output: corrects them where zero points differ from 128, converts them to floats and scales
/// them.
///
/// # Safety
/// Row `row` exists in the checked tile, and the CPU has [`features`]. There is no `#[target_feature]` here, because it
/// cannot be combined with `#[inline(always)]`, and a call that is not inlined would spill the accumulators.
#[inline(always)]
pub(super) unsafe fn finish(t: &Tile, row: usize, sums: [__m512i; 4]) {
    // SAFETY: `Tile` guarantees one scale, one sum and 64 outputs per row, and 64 values behind pointers that are not
    // null.
    unsafe {
        let row_scale = _mm512_set1_ps(*t.scales.add(row));
        let out = t.out.add(row * PANEL);
        for (j, mut sum) in sums.into_iter().enumerate() {
            if !t.zero_points.is_null() {
                let zero_points = _mm_loadu_si128(t.zero_points.add(16 * j).cast());
                let difference = _mm512_sub_epi32(
                    _mm512_set1_epi32(ZERO_POINT),
                    _mm512_cvtepu8_epi32(zero_points),
                );
                let row_sum = _mm512_set1_epi32(*t.sums.add(row));
                sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(difference, row_sum));
            }
            let scale = if t.column_scales.is_null() {
                row_scale
            } else {
                _mm512_mul_ps(row_scale, _mm512_loadu_ps(t.column_scales.add(16 * j)))
            };
            let slot = out.add(16 * j);
            let before = if t.accumulate {
                _mm512_loadu_ps(slot)
            } else {
                _mm512_setzero_ps()
            };
            _mm512_storeu_ps(
                slot,
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, before),
            );
        }
    }
}
