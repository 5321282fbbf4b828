//! AVX-512 with VNNI: `vpdpbusd` multiplies 64 unsigned weights with 64 signed activations and adds groups of four.

use std::arch::x86_64::*;

use super::super::{PANEL, ZERO_POINT};
use super::{Candidate, Kernel, Tile, avx512_vector, peak};

/// Rows in a register tile: 6 rows × 4 vectors are 24 accumulators; with 4 weight vectors and a broadcast 29 of 32
/// registers, and each accumulator rests 12 cycles between uses, more than the instruction's latency.
const ROWS_MAX: usize = 6;

/// Steps that are unrolled: their loads find room between each other, and what is asked for ahead is spread over them.
const UNROLLED: usize = 4;

/// Cache lines of a step of weights.
const LINES: usize = 4;

/// The CPU features this kernel needs and whether they are there.
fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        // For the vector functions beside the tile.
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("fma", is_x86_feature_detected!("fma")),
    ]
}

/// This kernel and what it needs.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "avx512-vnni",
        tile,
        vector: avx512_vector::FUNCTIONS,
        limits: peak::AVX512,
    },
    features,
};

/// # Safety
/// `tile` was checked by [`Kernel::tile`], and the CPU has [`features`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn tile(t: &Tile) {
    // Blocks of rows as even as can be: 8 rows are 4 + 4, not 6 + 2.
    let blocks = t.rows.div_ceil(ROWS_MAX);
    let (size, larger) = (t.rows / blocks, t.rows % blocks);
    // Each pass over the weights asks for a stretch of what comes next, so many lines in each unrolled round, and the
    // passes together for all of it: then memory is as busy as the arithmetic lets it be.
    let rounds = (t.steps / UNROLLED).max(1);
    let lines = (t.ahead_len / 64).div_ceil(rounds);
    let (mut first, mut asked) = (0, 0);
    for block in 0..blocks {
        let rows = size + usize::from(block < larger);
        let ahead = t.ahead.wrapping_add(64 * asked * rounds);
        // SAFETY: rows `first .. first + rows` are within the tile; the features are the caller's promise.
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

/// Rows `first .. first + rows`, asking for `ASKED` lines from `ahead` on in each unrolled round; returns `ASKED`.
///
/// # Safety
/// Those rows, at most [`ROWS_MAX`], exist in the checked tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn some_rows<const ASKED: usize>(
    t: &Tile,
    first: usize,
    rows: usize,
    ahead: *const u8,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => one_row::<ASKED>(t, first, ahead),
            2 => rows_block::<2, ASKED>(t, first, ahead),
            3 => rows_block::<3, ASKED>(t, first, ahead),
            4 => rows_block::<4, ASKED>(t, first, ahead),
            5 => rows_block::<5, ASKED>(t, first, ahead),
            _ => rows_block::<6, ASKED>(t, first, ahead),
        }
    }
    ASKED
}

/// Asks for the `i`th part of `ASKED` lines from `ahead` on: into the first level, since they are wanted within a
/// microsecond and the group at hand leaves room for them. A first level of 32 KiB is full then, and what it loses is still
/// in the second.
#[inline(always)]
fn ask<const ASKED: usize>(ahead: *const u8, i: usize) {
    for line in ASKED * i / UNROLLED..ASKED * (i + 1) / UNROLLED {
        // SAFETY: asking needs no valid address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast()) }
    }
}

/// Rows `first .. first + R`: four accumulators per row.
///
/// # Safety
/// Those rows exist in the checked tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn rows_block<const R: usize, const ASKED: usize>(
    t: &Tile,
    first: usize,
    mut ahead: *const u8,
) {
    // SAFETY: `Tile` promises the lengths of weights, codes, sums and out.
    unsafe {
        let codes = t.codes.add(first * t.stride);
        let mut sums: [[__m512i; LINES]; R] = std::array::from_fn(|r| {
            [_mm512_set1_epi32(-ZERO_POINT * *t.sums.add(first + r)); LINES]
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

/// Adds a step of the rows whose codes begin at `codes`.
///
/// # Safety
/// The step and the rows exist in the checked tile, and the CPU has [`features`]; declared as [`finish`] is.
#[inline(always)]
unsafe fn add_step<const R: usize>(
    t: &Tile,
    step: usize,
    codes: *const i8,
    sums: &mut [[__m512i; LINES]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let line = t.weights.add(step * PANEL * 4);
        let weights: [__m512i; LINES] =
            std::array::from_fn(|j| _mm512_loadu_si512(line.add(64 * j).cast()));
        for (r, row) in sums.iter_mut().enumerate() {
            let four = codes.add(r * t.stride + 4 * step).cast::<i32>();
            let four = _mm512_set1_epi32(four.read_unaligned());
            for j in 0..LINES {
                row[j] = _mm512_dpbusd_epi32(row[j], weights[j], four);
            }
        }
    }
}

/// One row: two sets of accumulators for even and odd steps, since four alone would wait for each other.
///
/// # Safety
/// Row `first` exists in the checked tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn one_row<const ASKED: usize>(t: &Tile, first: usize, mut ahead: *const u8) {
    // SAFETY: as in `rows_block`.
    unsafe {
        let codes = t.codes.add(first * t.stride);
        let mut even = [[_mm512_set1_epi32(-ZERO_POINT * *t.sums.add(first)); LINES]];
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

/// Converts a row's sums, which are right for zero points of 128, and adds them, scaled, to the output.
///
/// # Safety
/// Row `row` exists in the checked tile, and the CPU has [`features`]. Not declared as such a function, which could not be
/// made part of its callers always: a call would take the sums through memory.
#[inline(always)]
unsafe fn finish(t: &Tile, row: usize, sums: [__m512i; 4]) {
    // SAFETY: `Tile` promises one scale, one sum and 64 outputs per row, and 64 values behind pointers that are not null.
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
