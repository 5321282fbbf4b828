//! The numbers and small functions that the vector functions of every instruction set share.

/// The smallest magnitude that gets a scale: the reciprocal of a smaller one would overflow.
pub(super) const LEAST: f32 = 1e-36;

/// Sums sixteen lanes pairwise: 16 → 8 → 4 → 2 → 1.
#[inline(always)]
pub fn tree_sum(lanes: &[f32; 16]) -> f32 {
    let mut sums = *lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

/// 1.5 · 2²³: adding and subtracting it rounds to the nearest integer.
pub const ROUND: f32 = 12_582_912.0;
/// [`exp`] clamps its argument to this: there it uses 2¹²⁷, the largest power of two that a float holds.
pub(super) const EXP_MOST: f32 = 88.0;
/// Below this [`exp`] is exactly 0.
pub(super) const EXP_LEAST: f32 = -87.0;
/// The high part of ln 2, short enough that its product with an exponent is exact.
pub const LN_2_HIGH: f32 = 0.693_359_4;
/// The low part of ln 2.
pub const LN_2_LOW: f32 = -2.121_944_4e-4;
/// 1/k! from 7 down to 0.
pub(super) const EXP_COEFFICIENTS: [f32; 8] = [
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// eˣ to about one unit in the last place, for x up to 88; exactly 0 below −87, which includes −∞.
///
/// Splits x into n·ln 2 + r with |r| ≤ ln 2 / 2 and evaluates the Taylor polynomial of degree 7 in r: its remainder
/// r⁸/8! is below 6·10⁻⁹, a tenth of a unit in the last place.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let bounded = if x > EXP_MOST { EXP_MOST } else { x };
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, bounded));
    let [first, rest @ ..] = EXP_COEFFICIENTS;
    let p = rest
        .into_iter()
        .fold(first, |p, coefficient| r.mul_add(p, coefficient));
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < EXP_LEAST { 0.0 } else { p * power }
}

/// The factor that makes a Hadamard matrix of this size orthonormal: 1/√len.
#[inline(always)]
pub(super) fn rotation_norm(len: usize) -> f32 {
    (1.0 / (len as f64).sqrt()) as f32
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let worst = (-870..=880)
            .map(|i| i as f32 / 10.0 + 0.013)
            .filter(|x| (-87.0..88.0).contains(x))
            .map(|x| ((f64::from(exp(x)) / f64::from(x).exp()) - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(
            worst < 2.0 * f64::from(f32::EPSILON),
            "relative error {worst}"
        );
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
