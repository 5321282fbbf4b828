//! AVX-512 with VNNI: `vpdpbusd` multiplies 64 unsigned weights with 64 signed activations and adds groups of four.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::{PANEL, ZERO_POINT};
use super::{Candidate, Kernel, Tile, peak, vector};

/// Rows in a register tile: 6 rows × 4 vectors are 24 accumulators; with 4 weight vectors and a broadcast 29 of 32
/// registers, and each accumulator rests 12 cycles between uses, more than the instruction's latency.
const ROWS_MAX: usize = 6;

/// How far ahead of its use a weight line is asked for: the next group of the panel, so that the passes over this group,
/// one per block of rows, can share the asking for the next.
pub(super) const PREFETCH_BYTES: usize = 16_384;

/// Lines of a step of weights.
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
        vector: vector::Functions {
            rotate_block,
            ..vector::AVX512
        },
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
    let mut first = 0;
    for block in 0..blocks {
        let rows = size + usize::from(block < larger);
        // Each pass asks for its share of the next group's lines, the first passes for more if they are uneven.
        let lines = (LINES * block).div_ceil(blocks)..(LINES * (block + 1)).div_ceil(blocks);
        // SAFETY: rows `first .. first + rows` are within the tile; the features are the caller's promise.
        unsafe {
            match rows {
                1 => one_row(t, first),
                2 => rows_block::<2>(t, first, lines),
                3 => rows_block::<3>(t, first, lines),
                4 => rows_block::<4>(t, first, lines),
                5 => rows_block::<5>(t, first, lines),
                _ => rows_block::<6>(t, first, lines),
            }
        }
        first += rows;
    }
}

/// Asks for lines `lines` of the step that lies [`PREFETCH_BYTES`] after `line`.
#[inline(always)]
fn prefetch(line: *const u8, lines: &Range<usize>) {
    for j in lines.clone() {
        // SAFETY: a prefetch needs no valid address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.wrapping_add(PREFETCH_BYTES + 64 * j).cast()) }
    }
}

/// Rows `first .. first + R`: four accumulators per row.
///
/// # Safety
/// Those rows exist in the checked tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn rows_block<const R: usize>(t: &Tile, first: usize, ahead: Range<usize>) {
    // SAFETY: `Tile` promises the lengths of weights and codes; prefetching needs no valid address.
    unsafe {
        let codes = t.codes.add(first * t.stride);
        let mut sums = [[_mm512_setzero_si512(); 4]; R];
        for (r, row) in sums.iter_mut().enumerate() {
            *row = [_mm512_set1_epi32(-ZERO_POINT * *t.sums.add(first + r)); 4];
            // The partial sums are wanted at the end of this pass, and with many rows they come from the second level.
            for j in 0..4 {
                let slot = t.out.add((first + r) * PANEL + 16 * j);
                _mm_prefetch::<_MM_HINT_T0>(slot.cast());
            }
        }
        for step in 0..t.steps {
            let line = t.weights.add(step * PANEL * 4);
            let weights: [__m512i; 4] =
                std::array::from_fn(|j| _mm512_loadu_si512(line.add(64 * j).cast()));
            prefetch(line, &ahead);
            for (r, row) in sums.iter_mut().enumerate() {
                let four = _mm512_set1_epi32(
                    codes
                        .add(r * t.stride + 4 * step)
                        .cast::<i32>()
                        .read_unaligned(),
                );
                for j in 0..4 {
                    row[j] = _mm512_dpbusd_epi32(row[j], weights[j], four);
                }
            }
        }
        for (r, row) in sums.into_iter().enumerate() {
            finish(t, first + r, row);
        }
    }
}

/// One row: two sets of accumulators for even and odd steps, since four alone would wait for each other.
///
/// # Safety
/// Row `first` exists in the checked tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn one_row(t: &Tile, first: usize) {
    // SAFETY: as in `rows_block`.
    unsafe {
        let codes = t.codes.add(first * t.stride);
        let mut even = [_mm512_set1_epi32(-ZERO_POINT * *t.sums.add(first)); 4];
        let mut odd = [_mm512_setzero_si512(); 4];
        for step in 0..t.steps {
            let line = t.weights.add(step * PANEL * 4);
            let four = _mm512_set1_epi32(codes.add(4 * step).cast::<i32>().read_unaligned());
            let sums = if step % 2 == 0 { &mut even } else { &mut odd };
            prefetch(line, &(0..LINES));
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_dpbusd_epi32(*sum, _mm512_loadu_si512(line.add(64 * j).cast()), four);
            }
        }
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
/// Row `row` exists in the checked tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
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

/// [`vector::Functions::rotate_block`] with rows of sixteen in registers: the butterflies inside a row, which the compiler
/// makes of loads and stores, are a permutation and a multiply-add with ±1 here. `a − b` and `fma(b, −1, a)` are the same
/// bits.
///
/// # Safety
/// The CPU has [`features`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn rotate_block(values: &mut [f32]) {
    match values.len() {
        256 => rotate_rows::<16>(values),
        128 => rotate_rows::<8>(values),
        64 => rotate_rows::<4>(values),
        32 => rotate_rows::<2>(values),
        16 => rotate_rows::<1>(values),
        _ => vector::rotate_block(values),
    }
}

/// The rotation of `ROWS` rows of sixteen values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
fn rotate_rows<const ROWS: usize>(values: &mut [f32]) {
    assert_eq!(values.len(), 16 * ROWS);
    let pointer = values.as_mut_ptr();
    // SAFETY: sixteen values for each row, by the assertion.
    let mut rows: [__m512; ROWS] =
        std::array::from_fn(|i| unsafe { _mm512_loadu_ps(pointer.add(16 * i)) });
    for half in [1, 2, 4, 8] {
        if half >= ROWS {
            break;
        }
        for i in (0..ROWS).filter(|i| i & half == 0) {
            let (a, b) = (rows[i], rows[i + half]);
            (rows[i], rows[i + half]) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
        }
    }
    // The sign of a value's own part: minus in the upper half of each pair.
    let sign = |upper: u16| _mm512_mask_blend_ps(upper, _mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
    let norm = _mm512_set1_ps(vector::rotation_norm(values.len()));
    for (i, row) in rows.into_iter().enumerate() {
        let row = _mm512_fmadd_ps(row, sign(0xaaaa), _mm512_permute_ps::<0b10_11_00_01>(row));
        let row = _mm512_fmadd_ps(row, sign(0xcccc), _mm512_permute_ps::<0b01_00_11_10>(row));
        let row = _mm512_fmadd_ps(
            row,
            sign(0xf0f0),
            _mm512_shuffle_f32x4::<0b10_11_00_01>(row, row),
        );
        let row = _mm512_fmadd_ps(
            row,
            sign(0xff00),
            _mm512_shuffle_f32x4::<0b01_00_11_10>(row, row),
        );
        // SAFETY: as for the loads.
        unsafe { _mm512_storeu_ps(pointer.add(16 * i), _mm512_mul_ps(row, norm)) }
    }
}
