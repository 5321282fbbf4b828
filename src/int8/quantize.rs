//! Quantizes float rows into the codes, scales and zero points of one panel.

use super::compensate::Factor;
use super::kernels::Kernel;
use super::scheme::{Granularity, Mapping, Range, Scheme};
use super::{BLOCK_BYTES, CODE_MAX, GROUP, PANEL, ZERO_POINT};

/// A smaller scale becomes zero, because its inverse would not be finite.
const SMALLEST_SCALE: f32 = 1e-38;

/// The percentages of the whole range that [`Range::Mse`] tries. With eight bits the best one is seldom below 80: a
/// narrower range rounds more finely, but soon loses more by clipping.
const SHARES: std::ops::RangeInclusive<u8> = 80..=100;

/// How the codes of a panel's column map to weights: `w = scale · (q − zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Map {
    /// The difference between weights of adjacent codes; 0 if all weights are 0.
    pub scale: f32,
    /// The code of weight 0.
    pub zero_point: u8,
}

/// The error that rounding made in weights.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Sum of the squared weights.
    pub signal: f64,
    /// Sum of the squared errors.
    pub noise: f64,
    /// The largest error.
    pub largest: f32,
}

/// The outputs for one panel.
pub struct PanelMut<'a> {
    /// `[k/4][64][4]`.
    pub codes: &'a mut [u8],
    /// `[64]`.
    pub column_scales: &'a mut [f32],
    /// `[groups][64]`, empty unless groups have scales of their own.
    pub group_scales: &'a mut [f32],
    /// `[groups][64]`, empty if all zero points are 128.
    pub zero_points: &'a mut [u8],
}

impl Loss {
    /// Signal-to-quantization-noise ratio in decibels; infinite if there is no error.
    pub fn sqnr_db(&self) -> f64 {
        10.0 * (self.signal / self.noise).log10()
    }

    /// The error of `rounded` against `values`.
    fn between(values: &[f32], rounded: &[f32]) -> Self {
        let mut loss = Self::default();
        for (value, rounded) in values.iter().zip(rounded) {
            let error = value - rounded;
            loss.signal += f64::from(value * value);
            loss.noise += f64::from(error * error);
            loss.largest = loss.largest.max(error.abs());
        }
        loss
    }

    /// Both losses together.
    pub fn and(self, other: Self) -> Self {
        Self {
            signal: self.signal + other.signal,
            noise: self.noise + other.noise,
            largest: self.largest.max(other.largest),
        }
    }
}

/// Rotates rows of `depth` values in place, group by group.
pub fn rotate(kernel: Kernel, scheme: &Scheme, rows: &mut [f32], depth: usize) {
    for row in rows.chunks_exact_mut(depth) {
        row.chunks_mut(GROUP)
            .for_each(|group| kernel.rotate(scheme.rotation, group));
    }
}

/// The smallest and the largest weight that the codes should cover, over rows that have been rotated. Symmetric ranges
/// are as wide below zero as above, and every range contains zero.
pub fn reach(scheme: &Scheme, rows: &[f32], depth: usize) -> (f32, f32) {
    let widest = |a: (f32, f32), b: (f32, f32)| (a.0.min(b.0), a.1.max(b.1));
    rows.chunks_exact(depth)
        .map(|row| reach_of(scheme, row))
        .fold((0.0, 0.0), widest)
}

/// The map whose codes cover `low` to `high`.
pub fn map(mapping: Mapping, (low, high): (f32, f32)) -> Map {
    let steps = match mapping {
        Mapping::Symmetric => 2.0 * CODE_MAX,
        Mapping::Affine => 255.0,
    };
    // The division comes before the subtraction, so that the largest floats do not overflow.
    let scale = high / steps - low / steps;
    if scale < SMALLEST_SCALE {
        return Map {
            scale: 0.0,
            zero_point: ZERO_POINT as u8,
        };
    }
    let zero_point = match mapping {
        Mapping::Symmetric => ZERO_POINT as u8,
        // The range contains zero, so this is in 0…255 except for rounding errors, and `as` saturates.
        Mapping::Affine => (-low / scale).round_ties_even() as u8,
    };
    Map { scale, zero_point }
}

/// Quantizes 64 rows of rotated floats (`[64][depth]`) into one panel. `whole` is the map of all weights if the
/// granularity is the tensor; `factors`, if not empty, has one factor per group to compensate rounding errors.
pub fn quantize_panel(
    scheme: &Scheme,
    factors: &[Factor],
    whole: Option<Map>,
    rows: &[f32],
    out: &mut PanelMut<'_>,
) -> Loss {
    let depth = rows.len() / PANEL;
    let mut of_channels = [None; PANEL];
    for (column, row) in rows.chunks_exact(depth).enumerate() {
        let of_channel = match scheme.granularity {
            Granularity::Tensor => whole,
            Granularity::Channel => Some(map(scheme.mapping, reach_of(scheme, row))),
            Granularity::Group => None,
        };
        // A column of zeros is padding, or equivalent to it.
        let is_zero = row.iter().all(|&value| value == 0.0);
        out.column_scales[column] = match of_channel {
            _ if is_zero => 0.0,
            Some(map) => map.scale,
            None => 1.0,
        };
        of_channels[column] = of_channel;
    }
    let mut loss = Loss::default();
    let mut codes = [ZERO_POINT as u8; GROUP];
    // Group by group, so that the codes of a block stay in the first-level cache while its columns are filled in.
    for (group, block) in out.codes.chunks_mut(BLOCK_BYTES).enumerate() {
        let len = GROUP.min(depth - group * GROUP);
        for (column, of_channel) in of_channels.iter().enumerate() {
            let values = &rows[column * depth + group * GROUP..][..len];
            let map = of_channel.unwrap_or_else(|| map(scheme.mapping, reach_of(scheme, values)));
            let place = group * PANEL + column;
            if let Some(scale) = out.group_scales.get_mut(place) {
                *scale = map.scale;
            }
            if let Some(zero_point) = out.zero_points.get_mut(place) {
                *zero_point = map.zero_point;
            }
            loss = loss.and(match factors.get(group) {
                None => round(scheme.mapping, map, values, &mut codes),
                Some(factor) => {
                    let mut rounded = [0.0; GROUP];
                    let rounded = &mut rounded[..len];
                    rounded.copy_from_slice(values);
                    factor.round(rounded, |index, value| {
                        let (code, rounded) = nearest(scheme.mapping, map, value);
                        codes[index] = code;
                        rounded
                    });
                    Loss::between(values, rounded)
                }
            });
            // Padding in the last K-step is multiplied with activations that are 0; its codes are always 128.
            codes[len..].fill(ZERO_POINT as u8);
            for (step, four) in block.chunks_exact_mut(PANEL * 4).zip(codes.chunks_exact(4)) {
                step[column * 4..][..4].copy_from_slice(four);
            }
        }
    }
    loss
}

/// The lowest and highest code of a mapping.
const fn codes(mapping: Mapping) -> (f32, f32) {
    match mapping {
        Mapping::Symmetric => (ZERO_POINT as f32 - CODE_MAX, ZERO_POINT as f32 + CODE_MAX),
        Mapping::Affine => (0.0, 255.0),
    }
}

/// The nearest code and the weight it stands for.
#[inline]
fn nearest(mapping: Mapping, map: Map, value: f32) -> (u8, f32) {
    let (lowest, highest) = codes(mapping);
    let inverse = if map.scale == 0.0 {
        0.0
    } else {
        1.0 / map.scale
    };
    let zero = f32::from(map.zero_point);
    let code = ((value * inverse).round_ties_even() + zero).clamp(lowest, highest);
    (code as u8, (code - zero) * map.scale)
}

/// Rounds every value to the nearest code.
fn round(mapping: Mapping, map: Map, values: &[f32], out: &mut [u8; GROUP]) -> Loss {
    let mut loss = Loss::default();
    // For the sums of one group f32 is precise enough, and it vectorizes.
    let (mut signal, mut noise) = (0.0, 0.0);
    for (&value, out) in values.iter().zip(out) {
        let (code, rounded) = nearest(mapping, map, value);
        *out = code;
        let error = value - rounded;
        signal += value * value;
        noise += error * error;
        loss.largest = loss.largest.max(error.abs());
    }
    (loss.signal, loss.noise) = (f64::from(signal), f64::from(noise));
    loss
}

/// The squared error that [`round`] makes.
fn noise(mapping: Mapping, map: Map, values: &[f32]) -> f64 {
    let errors = values
        .iter()
        .map(|&value| value - nearest(mapping, map, value).1);
    errors.map(|error| f64::from(error * error)).sum()
}

/// The [`reach`] of values that share a map.
fn reach_of(scheme: &Scheme, values: &[f32]) -> (f32, f32) {
    let whole = match scheme.range {
        Range::Absmax | Range::Mse => values.iter().fold((0.0f32, 0.0f32), |(low, high), &v| {
            (low.min(v), high.max(v))
        }),
        Range::Percentile(share) => percentile(scheme.mapping, share, values),
    };
    let whole = match scheme.mapping {
        Mapping::Symmetric => {
            let widest = whole.1.max(-whole.0);
            (-widest, widest)
        }
        Mapping::Affine => whole,
    };
    if scheme.range != Range::Mse {
        return whole;
    }
    let part = |share: u8| {
        let share = f32::from(share) / 100.0;
        (whole.0 * share, whole.1 * share)
    };
    let noise = |share: &u8| noise(scheme.mapping, map(scheme.mapping, part(*share)), values);
    // Among equal errors take the widest range, which clips least.
    let best = SHARES.rev().min_by(|a, b| noise(a).total_cmp(&noise(b)));
    part(best.unwrap_or(100))
}

/// The range that holds `share` percent of the values. If symmetric, it holds the smallest magnitudes; if affine, the
/// same number of values lies outside on either side.
fn percentile(mapping: Mapping, share: f32, values: &[f32]) -> (f32, f32) {
    let mut sorted = values.to_vec();
    let at = |sorted: &mut [f32], share: f32| {
        let index = (share / 100.0 * (sorted.len() - 1) as f32).round() as usize;
        *sorted.select_nth_unstable_by(index, f32::total_cmp).1
    };
    match mapping {
        Mapping::Symmetric => {
            sorted.iter_mut().for_each(|value| *value = value.abs());
            let most = at(&mut sorted, share);
            (-most, most)
        }
        Mapping::Affine => {
            let outside = (100.0 - share) / 2.0;
            let low = at(&mut sorted, outside).min(0.0);
            (low, at(&mut sorted, 100.0 - outside).max(0.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAPPINGS: [Mapping; 2] = [Mapping::Symmetric, Mapping::Affine];

    fn values() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            4 => -1.0f32..1.0, 1 => Just(0.0), 1 => -100.0f32..100.0, 1 => 0.0f32..1e-30, 1 => -1e37f32..3e38
        ];
        prop::collection::vec(value, 1..GROUP)
    }

    fn scheme(mapping: Mapping, range: Range) -> Scheme {
        Scheme {
            mapping,
            range,
            ..Scheme::default()
        }
    }

    proptest! {
        #[test]
        fn no_value_is_further_from_its_code_than_half_a_step(values in values()) {
            for mapping in MAPPINGS {
                let reach = reach_of(&scheme(mapping, Range::Absmax), &values);
                let map = map(mapping, reach);
                prop_assert!(map.scale.is_finite());
                // An affine zero point is rounded too, which can push the last code inside the range by half a step.
                let most = if mapping == Mapping::Affine { 1.0 } else { 0.5 };
                for &value in &values {
                    let (_, rounded) = nearest(mapping, map, value);
                    let limit = most * map.scale * (1.0 + 1e-4) + SMALLEST_SCALE * CODE_MAX;
                    prop_assert!((value - rounded).abs() <= limit, "{} {} {:?}", value, rounded, map);
                }
                prop_assert_eq!(nearest(mapping, map, 0.0).1, 0.0);
            }
        }

        #[test]
        fn the_mse_range_is_never_noisier_than_the_whole(values in prop::collection::vec(-2.0f32..3.0, 1..GROUP)) {
            for mapping in MAPPINGS {
                let noise_of = |range| {
                    let reach = reach_of(&scheme(mapping, range), &values);
                    noise(mapping, map(mapping, reach), &values)
                };
                prop_assert!(noise_of(Range::Mse) <= noise_of(Range::Absmax));
            }
        }
    }

    #[test]
    fn a_percentile_leaves_outliers_outside() {
        let mut values: Vec<f32> = (0..=200).map(|i| i as f32 / 100.0 - 1.0).collect();
        values.push(50.0);
        let reach = |mapping| reach_of(&scheme(mapping, Range::Percentile(99.0)), &values);
        assert_eq!(reach(Mapping::Symmetric), (-1.0, 1.0));
        let (low, high) = reach(Mapping::Affine);
        assert!((-1.0..-0.98).contains(&low) && high <= 1.0, "{low} {high}");
    }

    #[test]
    fn affine_codes_use_the_whole_range_of_a_lopsided_column() {
        let values = [0.0, 0.5, 1.0];
        let step = |mapping| map(mapping, reach_of(&scheme(mapping, Range::Absmax), &values));
        let (affine, symmetric) = (step(Mapping::Affine), step(Mapping::Symmetric));
        assert_eq!((affine.zero_point, symmetric.zero_point), (0, 128));
        assert!(affine.scale < 0.51 * symmetric.scale);
    }
}
