//! NEON with the dot product of ARMv8.4, which many CPUs of ARMv8.2 have too (Neoverse N1, Cortex-A76): `sdot`
//! multiplies sixteen signed weights with four signed activations.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use super::super::PANEL;
use super::neon_tile::{finish, prefetch, sdot, signed, tile_128};
use super::{Candidate, Kernel, Tile, neon_vector, peak, scan_blocks};

/// The CPU features this kernel needs, and whether this CPU has them.
fn features() -> Vec<(&'static str, bool)> {
    vec![("dotprod", is_aarch64_feature_detected!("dotprod"))]
}

/// This kernel and the features it needs.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "neon-dotprod",
        tile,
        vector: neon_vector::FUNCTIONS,
        recurrence: scan_blocks::NEON,
        limits: peak::NEON_DOTPROD,
    },
    features,
};

// Eight rows of two vectors are sixteen accumulators: each is used every fourth cycle on a core that starts four of
// these instructions in a cycle, which is its latency. With codes, weights and a mask they take 27 of 32 registers.
tile_128!("neon,dotprod", shapes: [(1, 16), (2, 8), (3, 4), (4, 4), (5, 4), (6, 2), (7, 2), (8, 2)]);

/// `prepare` subtracts 128 from the codes, so the sums need no correction.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn start(_sum: i32) -> i32 {
    0
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn prepare(weights: uint8x16_t) -> int8x16_t {
    signed(weights)
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const LANE: i32>(sums: int32x4_t, weights: int8x16_t, rows: int8x16_t) -> int32x4_t {
    sdot::<LANE>(sums, weights, rows)
}
