//! The tile for 128-bit registers of ARM, shared by instruction sets that differ only in the instructions that multiply
//! four codes with four codes.

use std::arch::aarch64::*;

use super::super::{PANEL, ZERO_POINT};
use super::Tile;

/// Defines a kernel's function `tile` from its features and three functions of its own: `start(sum) -> i32`, the
/// initial value of the accumulators for a row whose codes add up to `sum`; `prepare(weights)`, done once for all rows;
/// and `dot::<LANE>(sums, prepared, rows)`, which adds four sums of four products each. A register of `rows` holds the
/// codes of four K-steps of a row, and `LANE` says which of them: so no broadcast is needed.
///
/// `(rows, vectors)` are the shapes of a register tile, fewest rows first: its `rows · vectors` accumulators, `rows`
/// registers of codes and the operands of `dot` have to fit in 32 registers. A pass covers all rows of a register tile
/// and `vectors · 4` of the 64 columns.
macro_rules! tile_128 {
    ($features:literal, shapes: [$(($rows:literal, $vectors:literal)),+]) => {
        /// # Safety
        /// `tile` was checked by [`Kernel::tile`](super::Kernel::tile), and the CPU has this file's features.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn tile(t: &Tile) {
            const ROWS_MAX: usize = {
                let shapes = [$($rows),+];
                shapes[shapes.len() - 1]
            };
            // Divide the rows into register tiles as evenly as possible, as the other tiles do.
            let blocks = t.rows.div_ceil(ROWS_MAX);
            let (size, larger) = (t.rows / blocks, t.rows % blocks);
            let mut first = 0;
            for block in 0..blocks {
                let rows = size + usize::from(block < larger);
                // Each register tile prefetches its share of `ahead`: in each K-step as many bytes as a K-step of
                // weights has.
                let steps = t.ahead_len / (PANEL * 4);
                let ahead = (steps * block) / blocks..(steps * (block + 1)) / blocks;
                // SAFETY: rows `first .. first + rows` are within the tile; the caller guarantees the features.
                unsafe {
                    match rows {
                        $($rows => rows_block::<$rows, $vectors>(t, first, ahead),)+
                        _ => unreachable!("blocks are as large as the shapes"),
                    }
                }
                first += rows;
            }
        }

        /// Multiplies rows `first .. first + R` in passes of `V` vectors of four columns.
        ///
        /// # Safety
        /// Those rows exist in the checked tile.
        #[target_feature(enable = $features)]
        unsafe fn rows_block<const R: usize, const V: usize>(
            t: &Tile,
            first: usize,
            ahead: std::ops::Range<usize>,
        ) {
            for column in (0..PANEL).step_by(4 * V) {
                // SAFETY: `Tile` guarantees the lengths of weights, codes and sums.
                unsafe {
                    let codes = t.codes.add(first * t.stride);
                    let mut sums: [[int32x4_t; V]; R] =
                        std::array::from_fn(|r| [vdupq_n_s32(start(*t.sums.add(first + r))); V]);
                    let fours = t.steps / 4;
                    for four in 0..fours {
                        let rows: [int8x16_t; R] =
                            std::array::from_fn(|r| vld1q_s8(codes.add(r * t.stride + 16 * four)));
                        add_step::<0, R, V>(t, 4 * four, column, &rows, &mut sums, &ahead);
                        add_step::<1, R, V>(t, 4 * four + 1, column, &rows, &mut sums, &ahead);
                        add_step::<2, R, V>(t, 4 * four + 2, column, &rows, &mut sums, &ahead);
                        add_step::<3, R, V>(t, 4 * four + 3, column, &rows, &mut sums, &ahead);
                    }
                    for step in 4 * fours..t.steps {
                        // A whole register could reach past the last code.
                        let rows: [int8x16_t; R] = std::array::from_fn(|r| {
                            let four = codes.add(r * t.stride + 4 * step).cast::<i32>();
                            vreinterpretq_s8_s32(vdupq_n_s32(four.read_unaligned()))
                        });
                        add_step::<0, R, V>(t, step, column, &rows, &mut sums, &ahead);
                    }
                    for (r, row) in sums.into_iter().enumerate() {
                        finish(t, first + r, column, row);
                    }
                }
            }
        }

        /// Adds the products of one K-step.
        ///
        /// # Safety
        /// The K-step and the columns exist in the checked tile.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn add_step<const LANE: i32, const R: usize, const V: usize>(
            t: &Tile,
            step: usize,
            column: usize,
            rows: &[int8x16_t; R],
            sums: &mut [[int32x4_t; V]; R],
            ahead: &std::ops::Range<usize>,
        ) {
            let at = (step * PANEL + column) * 4;
            // Sixteen columns of a K-step are a cache line, which one pass prefetches.
            if column % 16 == 0 && ahead.contains(&step) {
                for j in (0..V).step_by(4) {
                    prefetch(t.ahead.wrapping_add(at + 16 * j));
                }
            }
            // SAFETY: guaranteed by the caller.
            unsafe {
                let line = t.weights.add(at);
                for j in 0..V {
                    let weights = prepare(vld1q_u8(line.add(16 * j)));
                    for r in 0..R {
                        sums[r][j] = dot::<LANE>(sums[r][j], weights, rows[r]);
                    }
                }
            }
        }
    };
}
pub(super) use tile_128;

/// Prefetches the cache line of `data`, which needs no valid address.
#[inline(always)]
pub(super) fn prefetch(data: *const u8) {
    // SAFETY: a prefetch of an address that is not mapped does nothing. The intrinsic is not stable.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) data, options(nostack, preserves_flags, readonly));
    }
}

/// `q − 128` for sixteen codes, as signed numbers: so that nothing has to be subtracted from the sums.
#[inline(always)]
pub(super) fn signed(weights: uint8x16_t) -> int8x16_t {
    // SAFETY: every CPU of this architecture has the registers.
    unsafe { vreinterpretq_s8_u8(veorq_u8(weights, vdupq_n_u8(ZERO_POINT as u8))) }
}

/// Adds the products of sixteen signed weights with the four codes in lane `LANE` of a row.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn sdot<const LANE: i32>(
    mut sums: int32x4_t,
    weights: int8x16_t,
    rows: int8x16_t,
) -> int32x4_t {
    // SAFETY: the instruction works on registers alone, and the CPU has the feature. The intrinsic is not stable.
    unsafe {
        std::arch::asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{lane}]",
            inout(vreg) sums, in(vreg) weights, in(vreg) rows, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Adds the products of two columns of eight unsigned weights with two rows of eight codes.
#[inline]
#[target_feature(enable = "neon,i8mm")]
pub(super) fn usmmla(mut sums: int32x4_t, weights: uint8x16_t, rows: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction works on registers alone, and the CPU has the feature. The intrinsic is not stable.
    unsafe {
        std::arch::asm!(
            "usmmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums, in(vreg) weights, in(vreg) rows,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Adds a row's sums to the output: corrects them where zero points differ from 128, converts them to floats and scales
/// them.
///
/// # Safety
/// Row `row` and columns `column .. column + 4 · V` exist in the checked tile.
#[inline(always)]
pub(super) unsafe fn finish<const V: usize>(
    t: &Tile,
    row: usize,
    column: usize,
    sums: [int32x4_t; V],
) {
    // SAFETY: `Tile` guarantees one scale, one sum and 64 outputs per row, and 64 values behind pointers that are not
    // null.
    unsafe {
        let row_scale = vdupq_n_f32(*t.scales.add(row));
        let out = t.out.add(row * PANEL + column);
        for (j, mut sum) in sums.into_iter().enumerate() {
            let at = column + 4 * j;
            if !t.zero_points.is_null() {
                let four = t.zero_points.add(at).cast::<u32>().read_unaligned();
                let wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
                let zero_points = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
                let difference = vsubq_s32(vdupq_n_s32(ZERO_POINT), zero_points);
                sum = vmlaq_n_s32(sum, difference, *t.sums.add(row));
            }
            let scale = if t.column_scales.is_null() {
                row_scale
            } else {
                vmulq_f32(row_scale, vld1q_f32(t.column_scales.add(at)))
            };
            let slot = out.add(4 * j);
            let before = if t.accumulate {
                vld1q_f32(slot)
            } else {
                vdupq_n_f32(0.0)
            };
            vst1q_f32(slot, vfmaq_f32(before, vcvtq_f32_s32(sum), scale));
        }
    }
}
