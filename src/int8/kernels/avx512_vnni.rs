//! AVX-512 with VNNI: `vpdpbusd` multiplies 64 unsigned weights with 64 signed activations and adds every four
//! neighbouring products to an int32 sum.

use std::arch::x86_64::*;

use super::super::{PANEL, ZERO_POINT};
use super::zmm::{LINES, UNROLLED, ask, finish, tile_512};
use super::{Candidate, Kernel, Tile, avx512_vector, peak, scan_blocks, zmm};

/// The CPU features this kernel needs, and whether this CPU has them.
fn features() -> Vec<(&'static str, bool)> {
    let mut features = zmm::features();
    features.push(("avx512vnni", is_x86_feature_detected!("avx512vnni")));
    features
}

/// This kernel and the features it needs.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "avx512-vnni",
        tile,
        vector: avx512_vector::FUNCTIONS,
        recurrence: scan_blocks::AVX512,
        limits: peak::AVX512,
    },
    features,
};

// 6 rows × 4 vectors are 24 accumulators; with 4 weight vectors and a broadcast they take 29 of 32 registers. Each
// accumulator is used every 12 cycles, which is more than the instruction's latency.
tile_512!("avx512f,avx512bw,avx512vl,avx512vnni,fma", rows: [2, 3, 4, 5, 6], near: 4);

/// The instruction takes unsigned codes `q = w + 128`, so the sums come out too large by 128 times the sum of the row;
/// the accumulators start at minus that.
#[inline(always)]
fn start(sum: i32) -> i32 {
    -ZERO_POINT * sum
}

#[inline(always)]
fn prepare(weights: __m512i) -> __m512i {
    weights
}

/// # Safety
/// The CPU has [`features`].
#[inline(always)]
unsafe fn dot(sums: __m512i, weights: __m512i, row: __m512i) -> __m512i {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm512_dpbusd_epi32(sums, weights, row) }
}
