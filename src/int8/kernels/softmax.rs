//! The softmax of attention, a tile at a time, in portable code. It is one of the functions of [`super::vector`].

use super::super::PANEL;
use super::math::{LEAST, ROUND, tree_sum};

/// What is taken from the weights of a softmax, so that their codes are −127…127 like all others.
pub const WEIGHT_MIDDLE: i8 = 127;

/// The softmax of queries over 64 tokens, and where it goes: the operands of [`super::Kernel::softmax_tile`].
pub struct SoftmaxTile<'a> {
    /// `[queries][64]`, with the factor log₂ e of the base in them; unspecified afterwards.
    pub scores: &'a mut [f32],
    /// Tokens that the queries attend to.
    pub valid: usize,
    /// The scale of each token's values.
    pub value_scales: &'a [f32; PANEL],
    /// The largest score of each query so far.
    pub maxima: &'a mut [f32],
    /// The sum of each query's weights so far, relative to its maximum.
    pub totals: &'a mut [f32],
    /// The factor for what each query has accumulated before this tile.
    pub rescales: &'a mut [f32],
    /// The weights less [`WEIGHT_MIDDLE`], `[queries][64]`.
    pub codes: &'a mut [i8],
    /// One per query.
    pub scales: &'a mut [f32],
    /// The sum of each query's codes.
    pub sums: &'a mut [i32],
}

/// One tile of online softmax for each query of `tile`; [`super::Kernel::softmax_tile`] says what it computes.
///
/// It is done in passes over all queries, because what a pass does for one query does not wait for another.
#[inline(always)]
pub(super) fn softmax_tile(tile: &mut SoftmaxTile<'_>) {
    let SoftmaxTile {
        scores,
        valid,
        value_scales,
        maxima,
        totals,
        rescales,
        codes,
        scales,
        sums,
    } = tile;
    for (scores, largest) in scores.chunks_exact_mut(PANEL).zip(&mut **rescales) {
        scores[*valid..].fill(f32::NEG_INFINITY);
        *largest = largest_score(scores);
    }
    raise_maxima(maxima, totals, rescales);
    let queries = (maxima.iter().zip(&mut **totals)).zip(&mut **scales);
    for (scores, ((maximum, total), largest)) in scores.chunks_exact_mut(PANEL).zip(queries) {
        *total += exponentials(scores, *maximum, value_scales);
        // The scales of tokens that are not there may be anything.
        scores[*valid..].fill(0.0);
        *largest = largest_weight(scores);
    }
    let queries = scales.iter_mut().zip(&mut **sums);
    let tiles = scores
        .chunks_exact(PANEL)
        .zip(codes.chunks_exact_mut(PANEL));
    for ((weights, codes), (scale, sum)) in tiles.zip(queries) {
        let inverse = inverse_and_scale(scale);
        *sum = 0;
        for (code, weight) in codes.iter_mut().zip(weights) {
            *code = weight.mul_add(inverse, ROUND_WEIGHT).to_bits() as i8;
            *sum += i32::from(*code);
        }
    }
}

/// The largest of 64 scores, which is not NaN.
#[inline(always)]
fn largest_score(scores: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; 16];
    for chunk in scores.chunks_exact(16) {
        for lane in 0..16 {
            largest[lane] = if chunk[lane] > largest[lane] {
                chunk[lane]
            } else {
                largest[lane]
            };
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            if largest[i + half] > largest[i] {
                largest[i] = largest[i + half];
            }
        }
    }
    largest[0]
}

/// Raises the maxima to the largest scores of a tile, which are in `rescales`, and multiplies the totals by the factors
/// that this makes necessary, which replace them.
#[inline(always)]
pub(super) fn raise_maxima(maxima: &mut [f32], totals: &mut [f32], rescales: &mut [f32]) {
    for ((maximum, total), rescale) in maxima.iter_mut().zip(totals).zip(rescales) {
        let before = *maximum;
        // The sum has no sign if it is zero: which of two zeros is larger is not defined.
        *maximum = if *rescale > before { *rescale } else { before } + 0.0;
        *rescale = exp2(before - *maximum);
        *total *= *rescale;
    }
}

/// Replaces 64 scores by `2^(score − maximum) · scale`; returns the sum of the powers.
#[inline(always)]
fn exponentials(scores: &mut [f32], maximum: f32, scales: &[f32; PANEL]) -> f32 {
    let mut sums = [0.0; 16];
    for (chunk, scales) in scores.chunks_exact_mut(16).zip(scales.chunks_exact(16)) {
        for lane in 0..16 {
            let power = exp2(chunk[lane] - maximum);
            sums[lane] += power;
            chunk[lane] = power * scales[lane];
        }
    }
    tree_sum(&sums)
}

/// The largest of 64 weights. None is negative, and such floats are ordered like their bits.
#[inline(always)]
fn largest_weight(weights: &[f32]) -> f32 {
    let largest = weights
        .iter()
        .fold(0, |most, weight| most.max(weight.to_bits() as i32));
    f32::from_bits(largest as u32)
}

/// Replaces the largest weight of a query by the scale of its codes; returns the factor from weights to codes.
#[inline(always)]
pub(super) fn inverse_and_scale(largest: &mut f32) -> f32 {
    if *largest < LEAST {
        *largest = 0.0;
        return 0.0;
    }
    let inverse = WEIGHT_MAX / *largest;
    *largest *= 1.0 / WEIGHT_MAX;
    inverse
}

/// The largest weight of a query in units of its scale: the largest code, and what has been taken from it.
const WEIGHT_MAX: f32 = 2.0 * WEIGHT_MIDDLE as f32;
/// Adding this rounds like [`ROUND`] and takes [`WEIGHT_MIDDLE`] away.
pub(super) const ROUND_WEIGHT: f32 = ROUND - WEIGHT_MIDDLE as f32;

/// [`exp2`] clamps its argument to this: a weight of 2⁻¹⁰⁰ changes no sum, and its product with the scale of a value is a
/// normal float, with which every CPU computes at full speed.
pub(super) const EXP2_LEAST: f32 = -100.0;
/// (ln 2)ᵏ/k! from 5 down to 0.
pub(super) const EXP2_COEFFICIENTS: [f32; 6] = [
    1.333_355_8e-3,
    9.618_129e-3,
    5.550_411e-2,
    2.402_265e-1,
    std::f32::consts::LN_2,
    1.0,
];

/// 2ˣ for x up to 0, to 3·10⁻⁶; below −100, which includes −∞, it is 2⁻¹⁰⁰.
///
/// Splits x into n + r with |r| ≤ 1/2 and evaluates the Taylor polynomial of degree 5 in r. Its remainder (r·ln 2)⁶/6!
/// is below 2.5·10⁻⁶, a thousandth of the error of rounding a weight to 254 steps.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    let bounded = if EXP2_LEAST > x { EXP2_LEAST } else { x };
    let shifted = bounded + ROUND;
    let r = bounded - (shifted - ROUND);
    let [first, rest @ ..] = EXP2_COEFFICIENTS;
    let p = rest
        .into_iter()
        .fold(first, |p, coefficient| r.mul_add(p, coefficient));
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    p * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_as_close_as_it_says() {
        let worst = (0..=990)
            .map(|i| i as f32 / -10.0 - 0.013)
            .map(|x| ((f64::from(exp2(x)) / f64::from(x).exp2()) - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(worst < 3e-6, "relative error {worst}");
        assert_eq!(exp2(f32::NEG_INFINITY), 2.0f32.powi(-100));
        assert_eq!(exp2(0.0), 1.0);
        assert!(exp2(f32::NAN).is_nan());
    }
}
