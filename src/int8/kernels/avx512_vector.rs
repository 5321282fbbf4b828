//! The vector functions whose values the compiler does not keep in registers, written by hand for AVX-512. Each gives
//! the same bits as its portable form in [`super::vector`], which documents what it computes.

use std::arch::x86_64::*;

use super::super::{CODE_MAX, GROUP, PANEL};
use super::vector::{self, Functions};

/// All functions of the instruction set.
pub(super) const FUNCTIONS: Functions = Functions {
    rotate_block,
    quantize_rotated,
    add_squares,
    softmax_tile,
    weighted_codes,
    weighted_floats,
    ..vector::AVX512
};

/// [`Functions::rotate_block`] with rows of sixteen values in registers. The butterflies inside a row, which the
/// compiler turns into loads and stores, are a permutation and a multiply-add with ±1 here. `a − b` and `fma(b, −1, a)`
/// give the same bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn rotate_block(values: &mut [f32]) {
    match values.len() {
        256 => rotate_rows::<16>(values),
        128 => rotate_rows::<8>(values),
        64 => rotate_rows::<4>(values),
        32 => rotate_rows::<2>(values),
        16 => rotate_rows::<1>(values),
        _ => vector::rotate_block(values),
    }
}

/// Rotates `ROWS` rows of sixteen values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn rotate_rows<const ROWS: usize>(values: &mut [f32]) {
    assert_eq!(values.len(), 16 * ROWS);
    let pointer = values.as_mut_ptr();
    // SAFETY: the CPU has the features, and there are sixteen values for each row, by the assertion.
    unsafe {
        let rows = rotated::<ROWS>(pointer);
        for (i, row) in rows.into_iter().enumerate() {
            _mm512_storeu_ps(pointer.add(16 * i), row);
        }
    }
}

/// `ROWS` rows of sixteen values from `pointer` on, rotated.
///
/// # Safety
/// The values exist, and the CPU has AVX-512. There is no `#[target_feature]` here, because it cannot be combined with
/// `#[inline(always)]`, and a call that is not inlined would spill the rows.
#[inline(always)]
unsafe fn rotated<const ROWS: usize>(pointer: *const f32) -> [__m512; ROWS] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut rows = [_mm512_setzero_ps(); ROWS];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_ps(pointer.add(16 * i));
        }
        let mut half = 1;
        while half < ROWS {
            for i in 0..ROWS {
                if i & half == 0 {
                    let (a, b) = (rows[i], rows[i + half]);
                    rows[i] = _mm512_add_ps(a, b);
                    rows[i + half] = _mm512_sub_ps(a, b);
                }
            }
            half *= 2;
        }
        // The sign of a value in its own butterfly: minus in the upper half of each pair.
        let (plus, minus) = (_mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
        let norm = _mm512_set1_ps(vector::rotation_norm(16 * ROWS));
        for row in &mut rows {
            let mut r = *row;
            let other = _mm512_permute_ps::<0b10_11_00_01>(r);
            r = _mm512_fmadd_ps(r, _mm512_mask_blend_ps(0xaaaa, plus, minus), other);
            let other = _mm512_permute_ps::<0b01_00_11_10>(r);
            r = _mm512_fmadd_ps(r, _mm512_mask_blend_ps(0xcccc, plus, minus), other);
            let other = _mm512_shuffle_f32x4::<0b10_11_00_01>(r, r);
            r = _mm512_fmadd_ps(r, _mm512_mask_blend_ps(0xf0f0, plus, minus), other);
            let other = _mm512_shuffle_f32x4::<0b01_00_11_10>(r, r);
            r = _mm512_fmadd_ps(r, _mm512_mask_blend_ps(0xff00, plus, minus), other);
            *row = _mm512_mul_ps(r, norm);
        }
        rows
    }
}

/// [`vector::quantize`] after [`rotate_block`]; the group stays in registers in between.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn quantize_rotated(values: &mut [f32; GROUP], codes: &mut [i8; GROUP]) -> (f32, i32) {
    // SAFETY: the CPU has the features, and a group is sixteen rows.
    let rows: [__m512; GROUP / 16] = unsafe { rotated(values.as_ptr()) };
    // The magnitudes of floats are ordered like their bits.
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let largest = rows.iter().fold(_mm512_setzero_si512(), |most, &row| {
        _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(row), magnitude))
    });
    let largest = f32::from_bits(_mm512_reduce_max_epi32(largest) as u32);
    if largest < vector::LEAST {
        codes.fill(0);
        return (0.0, 0);
    }
    let inverse = _mm512_set1_ps(CODE_MAX / largest);
    let round = _mm512_set1_ps(vector::ROUND);
    let mut sums = _mm512_setzero_si512();
    for (row, codes) in rows.into_iter().zip(codes.chunks_exact_mut(16)) {
        let bits = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(row, inverse), round));
        // The code is the lowest byte.
        sums = _mm512_add_epi32(sums, _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(bits)));
        // SAFETY: the chunk is sixteen codes long.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(bits)) }
    }
    (largest / CODE_MAX, _mm512_reduce_add_epi32(sums))
}

/// [`vector::add_squares`]: the sums of a row stay in a register, and rows do not depend on each other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn add_squares(values: &[f32], sums: &mut [[f32; 16]]) {
    for (row, sums) in values.chunks_exact(PANEL).zip(sums) {
        // SAFETY: a row is four times sixteen values, and there are sixteen sums.
        unsafe {
            let mut sum = _mm512_loadu_ps(sums.as_ptr());
            for j in 0..PANEL / 16 {
                let chunk = _mm512_loadu_ps(row.as_ptr().add(16 * j));
                sum = _mm512_fmadd_ps(chunk, chunk, sum);
            }
            _mm512_storeu_ps(sums.as_mut_ptr(), sum);
        }
    }
}

/// [`vector::softmax_tile`] with all scores in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn softmax_tile(
    scores: &mut [f32; PANEL],
    valid: usize,
    maximum: &mut f32,
    total: &mut f32,
) -> f32 {
    let pointer = scores.as_mut_ptr();
    let mut rows: [__m512; PANEL / 16] = std::array::from_fn(|j| {
        let mask = ((1u32 << valid.saturating_sub(16 * j).min(16)) - 1) as u16;
        // SAFETY: 64 scores are four times sixteen.
        let row = unsafe { _mm512_loadu_ps(pointer.add(16 * j)) };
        _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), mask, row)
    });
    // If a score is NaN, the instruction returns its second operand, as the portable comparison does.
    let largest = rows
        .iter()
        .fold(_mm512_set1_ps(f32::NEG_INFINITY), |largest, &row| {
            _mm512_max_ps(row, largest)
        });
    let largest = _mm512_reduce_max_ps(largest);
    let before = *maximum;
    *maximum = if largest > before { largest } else { before };
    let rescale = vector::exp(before - *maximum);
    let shift = _mm512_set1_ps(*maximum);
    let mut sums = _mm512_setzero_ps();
    for (j, row) in rows.iter_mut().enumerate() {
        *row = exp(_mm512_sub_ps(*row, shift));
        sums = _mm512_add_ps(sums, *row);
        // SAFETY: as for the loads.
        unsafe { _mm512_storeu_ps(pointer.add(16 * j), *row) }
    }
    // This adds halves pairwise, in the order of `vector::tree_sum`.
    *total = total.mul_add(rescale, _mm512_reduce_add_ps(sums));
    rescale
}

/// [`vector::exp`] of sixteen values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn exp(x: __m512) -> __m512 {
    let round = _mm512_set1_ps(vector::ROUND);
    // Returns the second operand if a value is NaN.
    let bounded = _mm512_min_ps(_mm512_set1_ps(vector::EXP_MOST), x);
    let shifted = _mm512_fmadd_ps(bounded, _mm512_set1_ps(std::f32::consts::LOG2_E), round);
    let n = _mm512_sub_ps(shifted, round);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(vector::LN_2_HIGH), bounded);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(vector::LN_2_LOW), r);
    let first = _mm512_set1_ps(vector::EXP_COEFFICIENTS[0]);
    let p = (vector::EXP_COEFFICIENTS[1..].iter()).fold(first, |p, &coefficient| {
        _mm512_fmadd_ps(r, p, _mm512_set1_ps(coefficient))
    });
    let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    let power = _mm512_add_epi32(power, _mm512_set1_epi32(127 << 23));
    let vanishes = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(vector::EXP_LEAST));
    let product = _mm512_mul_ps(p, _mm512_castsi512_ps(power));
    _mm512_mask_mov_ps(product, vanishes, _mm512_setzero_ps())
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn weighted_codes(weights: &[f32], rescale: &[f32], values: &[i8], valid: usize, out: &mut [f32]) {
    weighted(weights, rescale, values, valid, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn weighted_floats(
    weights: &[f32],
    rescale: &[f32],
    values: &[f32],
    valid: usize,
    out: &mut [f32],
) {
    weighted(weights, rescale, values, valid, out);
}

/// A value as it is stored in a page.
trait Stored: Copy + Into<f32> {
    /// Sixteen values from `at` on.
    ///
    /// # Safety
    /// The values exist, and the CPU has AVX-512.
    unsafe fn load(at: *const Self) -> __m512;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load(at: *const Self) -> __m512 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_loadu_ps(at) }
    }
}

impl Stored for i8 {
    #[inline(always)]
    unsafe fn load(at: *const Self) -> __m512 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }
}

/// [`vector::weighted_values`]: the sums of four heads and 64 columns take sixteen registers, so that each load of
/// values serves four heads, and each load of a weight four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn weighted<V: Stored>(
    weights: &[f32],
    rescale: &[f32],
    values: &[V],
    valid: usize,
    out: &mut [f32],
) {
    let (dim, heads) = (values.len() / PANEL, rescale.len());
    if !dim.is_multiple_of(16) {
        return vector::weighted_values(weights, rescale, values, valid, out);
    }
    assert!(valid <= PANEL && weights.len() >= heads * PANEL && out.len() >= heads * dim);
    let mut head = 0;
    while head < heads {
        let sums = Sums {
            weights: weights[head * PANEL..].as_ptr(),
            rescale: rescale[head..].as_ptr(),
            values: values.as_ptr(),
            dim,
            valid,
            out: out[head * dim..].as_mut_ptr(),
        };
        let count = (heads - head).min(4);
        // SAFETY: `count` heads are left, and the lengths were compared above.
        unsafe {
            match count {
                4 => sums.of_heads::<4>(),
                3 => sums.of_heads::<3>(),
                2 => sums.of_heads::<2>(),
                _ => sums.of_heads::<1>(),
            }
        }
        head += count;
    }
}

/// The operands for the sums of some heads over a page: `weights` is `[heads][64]`, `values` `[valid][dim]`, `out`
/// `[heads][dim]`.
struct Sums<V> {
    weights: *const f32,
    rescale: *const f32,
    values: *const V,
    dim: usize,
    valid: usize,
    out: *mut f32,
}

impl<V: Stored> Sums<V> {
    /// # Safety
    /// The pointers hold what [`Sums`] says for `H` heads, and the CPU has AVX-512.
    #[inline(always)]
    unsafe fn of_heads<const H: usize>(&self) {
        let mut column = 0;
        while column < self.dim {
            // SAFETY: guaranteed by the caller; at least this many columns are left.
            unsafe {
                if self.dim - column >= 64 {
                    self.of_columns::<H, 4>(column);
                    column += 64;
                } else {
                    self.of_columns::<H, 1>(column);
                    column += 16;
                }
            }
        }
    }

    /// # Safety
    /// As for [`Sums::of_heads`]; `16 · C` columns exist from `column` on.
    #[inline(always)]
    unsafe fn of_columns<const H: usize, const C: usize>(&self, column: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let slot = |h: usize, c: usize| self.out.add(h * self.dim + column + 16 * c);
            let mut sums = [[_mm512_setzero_ps(); C]; H];
            for (h, sums) in sums.iter_mut().enumerate() {
                let rescale = _mm512_set1_ps(*self.rescale.add(h));
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_mul_ps(_mm512_loadu_ps(slot(h, c)), rescale);
                }
            }
            for token in 0..self.valid {
                let row = self.values.add(token * self.dim + column);
                let mut values = [_mm512_setzero_ps(); C];
                for (c, value) in values.iter_mut().enumerate() {
                    *value = V::load(row.add(16 * c));
                }
                for (h, sums) in sums.iter_mut().enumerate() {
                    let weight = _mm512_set1_ps(*self.weights.add(h * PANEL + token));
                    for c in 0..C {
                        sums[c] = _mm512_fmadd_ps(weight, values[c], sums[c]);
                    }
                }
            }
            for (h, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(slot(h, c), *sum);
                }
            }
        }
    }
}
