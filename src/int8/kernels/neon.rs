//! NEON as every 64-bit ARM CPU has it, for CPUs without a dot product (Cortex-A72, Graviton 1): `smull` multiplies in
//! 16 bits, where two products of |w| ≤ 128 and |a| ≤ 127 have room.

use std::arch::aarch64::*;

use super::super::PANEL;
use super::neon_tile::{finish, prefetch, signed, tile_128};
use super::{Candidate, Kernel, Tile, neon_vector, peak, scan_blocks};

/// This kernel. It needs no feature.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "neon",
        tile,
        vector: neon_vector::FUNCTIONS,
        recurrence: scan_blocks::NEON,
        limits: peak::NEON,
    },
    features: Vec::new,
};

tile_128!("neon", shapes: [(1, 4), (2, 4), (3, 4), (4, 2), (5, 2), (6, 2)]);

/// `prepare` subtracts 128 from the codes, so the sums need no correction.
#[inline]
#[target_feature(enable = "neon")]
fn start(_sum: i32) -> i32 {
    0
}

#[inline]
#[target_feature(enable = "neon")]
fn prepare(weights: uint8x16_t) -> int8x16_t {
    signed(weights)
}

#[inline]
#[target_feature(enable = "neon")]
fn dot<const LANE: i32>(sums: int32x4_t, weights: int8x16_t, rows: int8x16_t) -> int32x4_t {
    let row = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(rows)));
    let low = vmull_s8(vget_low_s8(weights), vget_low_s8(row));
    let high = vmull_high_s8(weights, row);
    // A pair of products is at most 2 · 128 · 127 = 32,512.
    vpadalq_s16(sums, vpaddq_s16(low, high))
}
