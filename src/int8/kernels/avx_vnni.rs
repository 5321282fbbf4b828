//! AVX-VNNI: `vpdpbusd` on 256-bit registers, for CPUs that have this instruction without AVX-512.

use std::arch::x86_64::*;

use super::super::{PANEL, ZERO_POINT};
use super::ymm::tile_256;
use super::{Candidate, Kernel, Tile, avx2_vector, peak, scan_blocks};

/// The CPU features this kernel needs, and whether this CPU has them.
fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
    ]
}

/// This kernel and the features it needs.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "avx-vnni",
        tile,
        vector: avx2_vector::FUNCTIONS,
        recurrence: scan_blocks::AVX2,
        limits: peak::AVX_VNNI,
    },
    features,
};

tile_256!("avx2,fma,avxvnni", shapes: [(1, 8), (2, 4), (3, 4), (4, 2), (5, 2), (6, 2)]);

/// The instruction takes unsigned codes `q = w + 128`, so the sums come out too large by 128 times the sum of the row;
/// the accumulators start at minus that.
#[inline]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn start(sum: i32) -> i32 {
    -ZERO_POINT * sum
}

#[inline]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn prepare(weights: __m256i) -> __m256i {
    weights
}

#[inline]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn dot(sums: __m256i, weights: __m256i, row: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sums, weights, row)
}
