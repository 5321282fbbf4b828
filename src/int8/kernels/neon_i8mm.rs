//! NEON with the matrix product of ARMv8.6 (Neoverse V1, N2, V2): `usmmla` multiplies two columns of eight unsigned
//! weights with two rows of eight signed activations, twice the work of a dot product.
//!
//! It takes eight of K at once where the weights are stored by four, so two K-steps are interleaved: on the way where
//! there are few rows, and once for all rows, into a copy of the block, where there are many.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;
use std::mem::MaybeUninit;

use super::super::{BLOCK_BYTES, GROUP, PANEL, ZERO_POINT};
use super::neon_tile::{finish, prefetch, usmmla};
use super::{Candidate, Kernel, Tile, neon_vector, peak, scan_blocks};

/// Pairs of rows in a register tile over interleaved weights: 6 · 4 accumulators, 4 weights and a pair of codes take 29
/// of 32 registers.
const PAIRS_MAX: usize = 6;

/// Pairs of rows where the weights are interleaved on the way, which takes registers too.
const PAIRS_MAX_ON_THE_WAY: usize = 4;

/// Columns of a pass: four registers of two.
const PASS: usize = 8;

/// From this number of rows on the weights are interleaved once for all rows. By LLVM's model of Neoverse V1 that takes
/// as long as 8 rows lose by interleaving on the way; a margin pays for the cache that the copy occupies.
const COPIED_FROM: usize = 24;

/// The CPU features this kernel needs, and whether this CPU has them.
fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("dotprod", is_aarch64_feature_detected!("dotprod")),
        ("i8mm", is_aarch64_feature_detected!("i8mm")),
    ]
}

/// This kernel and the features it needs.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "neon-i8mm",
        tile,
        vector: neon_vector::FUNCTIONS,
        recurrence: scan_blocks::NEON,
        limits: peak::NEON_I8MM,
    },
    features,
};

/// A row that is alone: `usdot` multiplies sixteen unsigned weights with four signed activations.
mod one_row {
    use super::super::neon_tile::tile_128;
    use super::*;

    tile_128!("neon,dotprod,i8mm", shapes: [(1, 16)]);

    /// The weights are `q = w + 128`, so the sums come out too large by 128 times the sum of the row.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn start(sum: i32) -> i32 {
        -ZERO_POINT * sum
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn prepare(weights: uint8x16_t) -> uint8x16_t {
        weights
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn dot<const LANE: i32>(
        mut sums: int32x4_t,
        weights: uint8x16_t,
        rows: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: the instruction works on registers alone, and the CPU has the feature. The intrinsic is not stable.
        unsafe {
            std::arch::asm!(
                "usdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{lane}]",
                inout(vreg) sums, in(vreg) weights, in(vreg) rows, lane = const LANE,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sums
    }
}

/// # Safety
/// `tile` was checked by [`Kernel::tile`], and the CPU has [`features`].
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn tile(t: &Tile) {
    if t.rows == 1 {
        // SAFETY: guaranteed by the caller.
        return unsafe { one_row::tile(t) };
    }
    assert!(t.steps <= GROUP / 4, "a tile is at most one group deep");
    let mut copy = MaybeUninit::<[u8; BLOCK_BYTES]>::uninit();
    let weights = if t.rows >= COPIED_FROM {
        let to: *mut u8 = copy.as_mut_ptr().cast();
        // SAFETY: a block has room for all K-steps of a group.
        unsafe { interleave(t, to) }
        Weights::Interleaved(to)
    } else {
        Weights::Stored
    };
    let most = match weights {
        Weights::Stored => PAIRS_MAX_ON_THE_WAY,
        Weights::Interleaved(_) => PAIRS_MAX,
    };
    let pairs = t.rows.div_ceil(2);
    let blocks = pairs.div_ceil(most);
    let (size, larger) = (pairs / blocks, pairs % blocks);
    let lines = t.ahead_len / 64;
    let mut first = 0;
    for block in 0..blocks {
        let pairs = size + usize::from(block < larger);
        for line in (lines * block) / blocks..(lines * (block + 1)) / blocks {
            prefetch(t.ahead.wrapping_add(64 * line));
        }
        // SAFETY: the pairs from `first` on are within the tile, but for a row that may be missing in the last one.
        unsafe {
            match pairs {
                1 => pairs_block::<1>(t, first, weights),
                2 => pairs_block::<2>(t, first, weights),
                3 => pairs_block::<3>(t, first, weights),
                4 => pairs_block::<4>(t, first, weights),
                5 => pairs_block::<5>(t, first, weights),
                _ => pairs_block::<6>(t, first, weights),
            }
        }
        first += 2 * pairs;
    }
}

/// Where the weights of a tile are read.
#[derive(Clone, Copy)]
enum Weights {
    /// As they are stored, interleaved on the way.
    Stored,
    /// In a copy made by [`interleave`].
    Interleaved(*const u8),
}

/// The weights of eight columns from `column` on for the K-steps `2 · pair` and `2 · pair + 1`, two columns of eight of
/// K in each register. Without the second step, zeros are in its place.
///
/// # Safety
/// The steps exist in the checked tile, the second one only if `whole`.
#[inline(always)]
unsafe fn weights_of(t: &Tile, pair: usize, column: usize, whole: bool) -> [uint8x16_t; 4] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let even = t.weights.add((2 * pair * PANEL + column) * 4);
        let load = |from: *const u8| vreinterpretq_u32_u8(vld1q_u8(from));
        let (a, b) = (load(even), load(even.add(16)));
        let (c, d) = if whole {
            let odd = even.add(PANEL * 4);
            (load(odd), load(odd.add(16)))
        } else {
            (vdupq_n_u32(0), vdupq_n_u32(0))
        };
        [
            vzip1q_u32(a, c),
            vzip2q_u32(a, c),
            vzip1q_u32(b, d),
            vzip2q_u32(b, d),
        ]
        .map(|weights| vreinterpretq_u8_u32(weights))
    }
}

/// Copies the weights in the order in which the passes read them: `[8 passes][pairs of K-steps][4 registers]`.
///
/// # Safety
/// The tile was checked, and `to` has room for a block.
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn interleave(t: &Tile, to: *mut u8) {
    let pairs = t.steps / 2;
    for pass in 0..PANEL / PASS {
        for pair in 0..pairs {
            // SAFETY: `8 · pairs · 64` bytes are at most a block.
            unsafe {
                let at = to.add((pass * pairs + pair) * 64);
                let four = weights_of(t, pair, PASS * pass, true);
                for (j, weights) in four.into_iter().enumerate() {
                    vst1q_u8(at.add(16 * j), weights);
                }
            }
        }
    }
}

/// Multiplies rows `first .. first + 2 · P`, of which the last one may be missing, in passes of eight columns.
///
/// # Safety
/// The other rows exist in the checked tile.
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn pairs_block<const P: usize>(t: &Tile, first: usize, weights: Weights) {
    // Two rows side by side, eight codes of each: `[pairs of K-steps][P][2 rows][8]`. What is missing stays 0.
    let mut codes = [[[0i8; 16]; P]; GROUP / 8];
    let rows = (t.rows - first).min(2 * P);
    let whole = t.steps / 2;
    // SAFETY: `Tile` guarantees `4 · steps` codes and a sum for every row.
    unsafe {
        for row in 0..rows {
            let from = t.codes.add((first + row) * t.stride);
            for (pair, codes) in codes.iter_mut().enumerate().take(whole) {
                let to = codes[row / 2].as_mut_ptr().add(row % 2 * 8);
                vst1_s8(to, vld1_s8(from.add(8 * pair)));
            }
            if t.steps % 2 == 1 {
                let to = codes[whole][row / 2].as_mut_ptr().add(row % 2 * 8);
                to.copy_from_nonoverlapping(from.add(8 * whole), 4);
            }
        }
        let starts: [int32x4_t; P] = std::array::from_fn(|p| {
            let start = |row: usize| match row < rows {
                true => -ZERO_POINT * *t.sums.add(first + row),
                false => 0,
            };
            let (even, odd) = (start(2 * p), start(2 * p + 1));
            vld1q_s32([even, odd, even, odd].as_ptr())
        });
        for pass in 0..PANEL / PASS {
            let column = PASS * pass;
            let mut sums = starts.map(|start| [start; 4]);
            match weights {
                Weights::Stored => {
                    for pair in 0..whole {
                        add_pair(&codes[pair], weights_of(t, pair, column, true), &mut sums);
                    }
                }
                Weights::Interleaved(copy) => {
                    let copy = copy.add(pass * whole * 64);
                    for pair in 0..whole {
                        let at = copy.add(pair * 64);
                        let four = std::array::from_fn(|j| vld1q_u8(at.add(16 * j)));
                        add_pair(&codes[pair], four, &mut sums);
                    }
                }
            }
            if t.steps % 2 == 1 {
                let last = weights_of(t, whole, column, false);
                add_pair(&codes[whole], last, &mut sums);
            }
            // A register holds two columns of an even row and of an odd one: `[c0r0, c0r1, c1r0, c1r1]`.
            for (p, [a, b, c, d]) in sums.into_iter().enumerate() {
                let row = first + 2 * p;
                finish(t, row, column, [vuzp1q_s32(a, b), vuzp1q_s32(c, d)]);
                if 2 * p + 1 < rows {
                    finish(t, row + 1, column, [vuzp2q_s32(a, b), vuzp2q_s32(c, d)]);
                }
            }
        }
    }
}

/// Adds the products of two K-steps.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn add_pair<const P: usize>(
    codes: &[[i8; 16]; P],
    weights: [uint8x16_t; 4],
    sums: &mut [[int32x4_t; 4]; P],
) {
    for (codes, sums) in codes.iter().zip(sums) {
        // SAFETY: sixteen codes.
        let codes = unsafe { vld1q_s8(codes.as_ptr()) };
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum = usmmla(*sum, weights, codes);
        }
    }
}
