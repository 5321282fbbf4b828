//! The kernels, one file per instruction set. Outside the memory map this is the only folder with `unsafe`, for two
//! reasons: functions that need a CPU feature (a [`Kernel`] exists only if its features were detected) and pointers
//! whose ranges the safe methods of [`Kernel`] have checked.
//!
//! A new instruction set needs a file with its tile and a line in `choice.rs`, its vector functions in `vector.rs` and
//! `recurrence.rs`, and its peak rates in `peak.rs`. The dispatcher, the tests and the benchmark read that list.
#![expect(
    unsafe_code,
    reason = "kernels are the one place for it; every block says who guarantees what"
)]

#[macro_use]
mod instruction_sets;

mod choice;
mod math;
mod peak;
mod recurrence;
mod scalar;
mod softmax;
mod vector;

#[cfg(target_arch = "x86_64")]
mod amx_int8;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_vector;
#[cfg(target_arch = "x86_64")]
mod avx512_bw;
#[cfg(target_arch = "x86_64")]
mod avx512_vector;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dotprod;
#[cfg(target_arch = "aarch64")]
mod neon_i8mm;
#[cfg(target_arch = "aarch64")]
mod neon_tile;
#[cfg(target_arch = "aarch64")]
mod neon_vector;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod scan_blocks;
#[cfg(target_arch = "x86_64")]
mod ymm;
#[cfg(target_arch = "x86_64")]
mod zmm;

#[cfg(test)]
mod contract;

mod cores;
mod crew;
mod parts;
pub mod pool;
mod shares;

pub use choice::{available, best, choose, survey};
pub(crate) use math::{LN_2_HIGH, LN_2_LOW, ROUND, exp, tree_sum};
pub use recurrence::Scan;
pub use softmax::{SoftmaxTile, WEIGHT_MIDDLE};

use std::ptr;

use choice::Candidate;

use super::rotation::Rotation;
use super::{GROUP, PANEL};

/// One group of one panel of weights, `w ≈ scale · (q − zero_point)`.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// `q`: `[steps][64 columns][4 of K]`.
    pub codes: &'a [u8],
    /// One per column; `None` if all are 128.
    pub zero_points: Option<&'a [u8; PANEL]>,
    /// One per column, if groups have scales of their own besides those of the whole columns.
    pub scales: Option<&'a [f32; PANEL]>,
    /// The bytes that the caller reads next; they are prefetched while this block is multiplied. Changes no result.
    pub ahead: &'a [u8],
}

/// Rows of quantized activations for one group: what a tile multiplies with.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Codes, row `r` at `r · stride`.
    pub codes: &'a [i8],
    /// Distance between rows.
    pub stride: usize,
    /// One scale per row.
    pub scales: &'a [f32],
    /// The sum of each row's codes over the group.
    pub sums: &'a [i32],
}

/// A checked tile: pointers that a kernel may use without checking them again.
///
/// Guaranteed by [`Kernel::tile`]: `weights` holds `steps · 256` bytes; for each of `rows` rows `codes + r · stride`
/// holds `4 · steps` bytes; `scales`, `sums` hold `rows` values and `out` holds `rows · 64`; `zero_points` and
/// `column_scales` are null or hold 64 values. `ahead` and `ahead_len` are not guaranteed to be valid memory: they may
/// only be prefetched.
#[derive(Clone, Copy)]
struct Tile {
    weights: *const u8,
    steps: usize,
    zero_points: *const u8,
    column_scales: *const f32,
    codes: *const i8,
    stride: usize,
    scales: *const f32,
    sums: *const i32,
    rows: usize,
    out: *mut f32,
    /// Whether `out` holds partial sums to add to.
    accumulate: bool,
    ahead: *const u8,
    ahead_len: usize,
}

/// How far before their use [`Tile::near`] prefetches weights. On Zen 4, 2 to 3 KiB were the best of 1 to 16 KiB.
#[cfg(target_arch = "x86_64")]
const NEAR_BYTES: usize = 2048;

/// How a few rows prefetch, which take less time to compute than their weights to transfer. There the processor's own
/// prefetcher runs just ahead, and prefetches of the block behind get in its way. Shares of what memory gives, with one row of
/// a 2B model on two cores of Zen 4:
///
/// | | near | unassisted | the block behind |
/// |---|---|---|---|
/// | AVX-512 with VNNI | 96 % | 90 % | 91 % |
/// | AVX-512 without | 96 % | 99 % | 89 % |
/// | AVX2 | 83 % | 95 % | 84 % |
#[cfg(target_arch = "x86_64")]
impl Tile {
    /// Prefetches this tile's weights shortly before their use, and the beginning of what follows them in memory.
    fn near(&self) -> Self {
        Self {
            ahead: self.weights.wrapping_add(NEAR_BYTES),
            ahead_len: self.steps * PANEL * 4,
            ..*self
        }
    }

    /// Prefetches nothing.
    fn unassisted(&self) -> Self {
        Self {
            ahead_len: 0,
            ..*self
        }
    }
}

/// One instruction set: its name and its functions. A value of this type proves that this CPU has the instruction set.
#[derive(Clone, Copy)]
pub struct Kernel {
    name: &'static str,
    tile: unsafe fn(&Tile),
    vector: vector::Functions,
    recurrence: recurrence::Functions,
    limits: peak::Limits,
}

impl Kernel {
    /// The name used in logs, metrics and `system_fingerprint`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Multiplies `rows` with a block of 64 weight columns: `out[r][c] = fma(Σ_k (q − z[c])·a, scale[r]·s[c], out[r][c])`,
    /// from zero if not `accumulate`.
    ///
    /// Each row has as many codes as the block is deep; `out` is `[rows][64]`.
    #[inline]
    pub fn tile(&self, weights: Block<'_>, rows: Rows<'_>, out: &mut [f32], accumulate: bool) {
        const STEP: usize = PANEL * 4;
        let steps = weights.codes.len() / STEP;
        let count = rows.scales.len();
        assert!(
            weights.codes.len() == steps * STEP
                && rows.sums.len() == count
                && out.len() == count * PANEL
        );
        if count == 0 {
            return;
        }
        // Checked arithmetic: a product that wraps around would let pointers run past the end.
        let needed = (count - 1)
            .checked_mul(rows.stride)
            .and_then(|start| start.checked_add(4 * steps));
        assert!(
            needed.is_some_and(|needed| rows.codes.len() >= needed),
            "rows are shorter than the weights"
        );
        let tile = Tile {
            weights: weights.codes.as_ptr(),
            steps,
            zero_points: weights.zero_points.map_or(ptr::null(), |z| z.as_ptr()),
            column_scales: weights.scales.map_or(ptr::null(), |s| s.as_ptr()),
            codes: rows.codes.as_ptr(),
            stride: rows.stride,
            scales: rows.scales.as_ptr(),
            sums: rows.sums.as_ptr(),
            rows: count,
            out: out.as_mut_ptr(),
            accumulate,
            ahead: weights.ahead.as_ptr(),
            ahead_len: weights.ahead.len(),
        };
        // SAFETY: the lengths were checked above, and `self` proves the CPU features.
        unsafe { (self.tile)(&tile) }
    }

    /// Does `iterations` rounds of int8 arithmetic in registers; returns the number of operations.
    pub fn int8_arithmetic(&self, iterations: u64) -> u64 {
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.limits.int8)(iterations) }
    }

    /// Does `iterations` rounds of f32 arithmetic in registers; returns the number of operations.
    pub fn f32_arithmetic(&self, iterations: u64) -> u64 {
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.limits.f32)(iterations) }
    }

    /// Reads `data` once; returns the number of bytes.
    pub fn read(&self, data: &[u8]) -> u64 {
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.limits.read)(data) }
    }

    /// Rotates `len` values of a group and quantizes them: codes, scale and the sum of the codes. Values from `len` on
    /// must be zero, and `values` are unspecified afterwards. An all-zero group has scale 0.
    #[inline]
    pub fn quantize_group(
        &self,
        rotation: Rotation,
        values: &mut [f32; GROUP],
        len: usize,
        codes: &mut [i8; GROUP],
    ) -> (f32, i32) {
        if rotation == Rotation::Full && len == GROUP {
            // SAFETY: `self` proves the CPU features.
            return unsafe { (self.vector.quantize_rotated)(values, codes) };
        }
        self.rotate(rotation, &mut values[..len]);
        self.quantize(values, codes)
    }

    /// Rotates `values`, at most a group, in place by orthonormal Hadamard matrices. The rotation is its own inverse.
    #[inline]
    pub fn rotate(&self, rotation: Rotation, values: &mut [f32]) {
        let (rotate, largest) = match rotation {
            Rotation::None => return,
            Rotation::Full => (self.vector.rotate_block, GROUP),
            Rotation::Blocks64 => (self.vector.rotate_block, 64),
            Rotation::Strided => (self.vector.rotate_strided, GROUP),
        };
        let mut rest = values;
        while !rest.is_empty() {
            let (block, tail) = rest.split_at_mut((1 << rest.len().ilog2()).min(largest));
            // SAFETY: `self` proves the CPU features.
            unsafe { rotate(block) }
            rest = tail;
        }
    }

    /// Rotates a head by position, in place: `table` holds as many cosines and sines as the head has values.
    #[inline]
    pub fn apply_rotary(&self, head: &mut [f32], table: &[f32]) {
        assert_eq!(head.len(), table.len());
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.apply_rotary)(head, table) }
    }

    /// Quantizes values to −127…127 without rotating them; returns the scale and the sum of the codes.
    #[inline]
    pub fn quantize(&self, values: &[f32], codes: &mut [i8]) -> (f32, i32) {
        assert_eq!(values.len(), codes.len());
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.quantize)(values, codes) }
    }

    /// Adds the squares of rows of 64 values to sixteen partial sums for each row, value `i` to sum `i mod 16`.
    #[inline]
    pub fn add_squares(&self, values: &[f32], sums: &mut [[f32; 16]]) {
        assert_eq!(values.len(), sums.len() * PANEL);
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.add_squares)(values, sums) }
    }

    /// `out = values · factor · weights`, from left to right: what follows the root mean square in a norm.
    #[inline]
    pub fn normalize(&self, values: &[f32], factor: f32, weights: &[f32], out: &mut [f32]) {
        assert!(values.len() == out.len() && weights.len() == out.len());
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.normalize)(values, factor, weights, out) }
    }

    /// `values *= factor`.
    #[inline]
    pub fn scale(&self, values: &mut [f32], factor: f32) {
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.scale)(values, factor) }
    }

    /// `out[r][c] *= scales[c]` for rows of 64.
    #[inline]
    pub fn scale_columns(&self, out: &mut [f32], scales: &[f32; PANEL]) {
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.scale_columns)(out, scales) }
    }

    /// `target[r][c] = fma(sums[r][c], scales[c], target[r][c])` for rows of 64: the residual addition.
    #[inline]
    pub fn add_scaled_columns(&self, target: &mut [f32], sums: &[f32], scales: &[f32; PANEL]) {
        assert_eq!(target.len(), sums.len());
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.add_scaled_columns)(target, sums, scales) }
    }

    /// `out[r][c] = fma(products[r][c] + middle[c], scales[r], out[r][c] · rescales[r])` for rows of 64.
    #[inline]
    pub fn add_products(
        &self,
        out: &mut [f32],
        products: &[f32],
        middle: &[f32; PANEL],
        scales: &[f32],
        rescales: &[f32],
    ) {
        let rows = scales.len();
        assert!(rescales.len() == rows && products.len() == rows * PANEL);
        assert_eq!(out.len(), products.len());
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.add_products)(out, products, middle, scales, rescales) }
    }

    /// `out = silu(gate · scale) · (up · scale)` over a panel row of 32 gate and 32 up sums.
    #[inline]
    pub fn swiglu(&self, sums: &[f32; PANEL], scales: &[f32; PANEL], out: &mut [f32; PANEL / 2]) {
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.swiglu)(sums, scales, out) }
    }

    /// One tile of online softmax for each query of `tile`, to base 2; only the first `valid` of its 64 scores are used.
    ///
    /// Raises `maxima` where a score is larger, and adds the tile's `2^(score − maximum)` to `totals`; `rescales` are the
    /// factors for everything that was accumulated before. The weights of the values are codes with a scale for each query
    /// and tile: `2^(score − maximum) · value_scale ≈ scale · (code + 127)`, 0 from `valid` on. So a tile of values is
    /// multiplied like any other block of codes, with one more row of codes that are all [`WEIGHT_MIDDLE`]: no weight is
    /// negative, and all 254 steps serve.
    #[inline]
    pub fn softmax_tile(&self, tile: &mut SoftmaxTile<'_>) {
        let queries = tile.maxima.len();
        assert!(tile.valid <= PANEL);
        assert!(tile.scores.len() == queries * PANEL && tile.codes.len() == queries * PANEL);
        assert!(tile.totals.len() == queries && tile.rescales.len() == queries);
        assert!(tile.scales.len() == queries && tile.sums.len() == queries);
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.softmax_tile)(tile) }
    }

    /// `out[r][..] += Σ_t weights[r][t] · values[t][..]` with t ascending; `weights` is `[rows][64]`, `values`
    /// `[64][width]`, `out` `[rows][width]`.
    #[inline]
    pub fn add_weighted(&self, weights: &[f32], values: &[f32], out: &mut [f32]) {
        assert!(weights.len().is_multiple_of(PANEL) && values.len().is_multiple_of(PANEL));
        assert_eq!(out.len(), weights.len() / PANEL * (values.len() / PANEL));
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.vector.add_weighted)(weights, values, out) }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
