//! The rotation for NEON by hand; the compiler turns butterflies inside a register into loads and stores. The other
//! vector functions are the portable ones, since every CPU of this architecture has the instructions that the compiler
//! vectorizes them with.

use std::arch::aarch64::*;

use super::super::{CODE_MAX, GROUP};
use super::math;
use super::vector::{self, Functions};

/// All functions of the instruction set.
pub(super) const FUNCTIONS: Functions = Functions {
    rotate_block,
    quantize_rotated,
    ..vector::PORTABLE
};

/// [`vector::rotate_block`] with the same operations in the same order: `a + b`, `a − b` and a multiply-add with ±1 all
/// round once. Butterflies between rows of sixteen values run down columns of four, with a whole column in registers;
/// then each row is finished in four registers.
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

/// Rotates a whole group by [`rotate_block`], then quantizes it; `values` are unspecified afterwards.
fn quantize_rotated(values: &mut [f32; GROUP], codes: &mut [i8; GROUP]) -> (f32, i32) {
    rotate_block(values);
    quantize_group(values, codes)
}

/// Rotates `ROWS` rows of sixteen values.
fn rotate_rows<const ROWS: usize>(values: &mut [f32]) {
    assert_eq!(values.len(), 16 * ROWS);
    let norm = math::rotation_norm(values.len());
    let start = values.as_mut_ptr();
    // SAFETY: all indices are below `16 · ROWS`, by the assertion.
    unsafe {
        for column in (0..16).step_by(4) {
            let slot = |row: usize| start.add(16 * row + column);
            let mut rows: [float32x4_t; ROWS] = std::array::from_fn(|row| vld1q_f32(slot(row)));
            let mut half = 1;
            while half < ROWS {
                for pair in rows.chunks_exact_mut(2 * half) {
                    let (left, right) = pair.split_at_mut(half);
                    for (a, b) in left.iter_mut().zip(right) {
                        (*a, *b) = (vaddq_f32(*a, *b), vsubq_f32(*a, *b));
                    }
                }
                half *= 2;
            }
            for (row, values) in rows.into_iter().enumerate() {
                vst1q_f32(slot(row), values);
            }
        }
        for row in 0..ROWS {
            let slot = |j: usize| start.add(16 * row + 4 * j);
            let [a, b, c, d] = std::array::from_fn(|j| inside(vld1q_f32(slot(j))));
            let (a, b) = (vaddq_f32(a, b), vsubq_f32(a, b));
            let (c, d) = (vaddq_f32(c, d), vsubq_f32(c, d));
            let four = [
                vaddq_f32(a, c),
                vaddq_f32(b, d),
                vsubq_f32(a, c),
                vsubq_f32(b, d),
            ];
            for (j, values) in four.into_iter().enumerate() {
                vst1q_f32(slot(j), vmulq_n_f32(values, norm));
            }
        }
    }
}

/// The butterflies between neighbours, then between values two apart: each lane adds its partner to itself, or itself
/// negated to its partner.
#[inline(always)]
fn inside(values: float32x4_t) -> float32x4_t {
    const NEIGHBOURS: [f32; 4] = [1.0, -1.0, 1.0, -1.0];
    const HALVES: [f32; 4] = [1.0, 1.0, -1.0, -1.0];
    // SAFETY: every CPU of this architecture has the registers, and the arrays hold four values.
    unsafe {
        let values = vfmaq_f32(vrev64q_f32(values), values, vld1q_f32(NEIGHBOURS.as_ptr()));
        let partners = vextq_f32::<2>(values, values);
        vfmaq_f32(partners, values, vld1q_f32(HALVES.as_ptr()))
    }
}

/// [`Functions::quantize`] of a group.
fn quantize_group(values: &[f32; GROUP], codes: &mut [i8; GROUP]) -> (f32, i32) {
    // SAFETY: all indices are below the length of a group.
    unsafe {
        let from = values.as_ptr();
        let mut most = [vdupq_n_u32(0); 4];
        for i in (0..GROUP).step_by(16) {
            for (j, most) in most.iter_mut().enumerate() {
                let magnitude = vabsq_f32(vld1q_f32(from.add(i + 4 * j)));
                // The magnitudes of floats are ordered like their bits, which holds for NaN as well.
                *most = vmaxq_u32(*most, vreinterpretq_u32_f32(magnitude));
            }
        }
        let [a, b, c, d] = most;
        let largest = f32::from_bits(vmaxvq_u32(vmaxq_u32(vmaxq_u32(a, b), vmaxq_u32(c, d))));
        if largest < math::LEAST {
            codes.fill(0);
            return (0.0, 0);
        }
        let inverse = CODE_MAX / largest;
        let round = vdupq_n_f32(math::ROUND);
        let mut sum = vdupq_n_s32(0);
        for i in (0..GROUP).step_by(16) {
            // The rounded integers are in the low bits of the mantissas.
            let [a, b, c, d] = std::array::from_fn(|j| {
                let product = vmulq_n_f32(vld1q_f32(from.add(i + 4 * j)), inverse);
                vreinterpretq_u16_f32(vaddq_f32(product, round))
            });
            let low = vreinterpretq_u8_u16(vuzp1q_u16(a, b));
            let high = vreinterpretq_u8_u16(vuzp1q_u16(c, d));
            let sixteen = vreinterpretq_s8_u8(vuzp1q_u8(low, high));
            vst1q_s8(codes.as_mut_ptr().add(i), sixteen);
            sum = vpadalq_s16(sum, vpaddlq_s8(sixteen));
        }
        (largest / CODE_MAX, vaddvq_s32(sum))
    }
}
