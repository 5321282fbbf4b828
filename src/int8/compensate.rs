//! Rounding with compensation of its own errors.
//!
//! The weights of a column are rounded one after the other, and the error of each is compensated in the weights that
//! are still to be rounded, as far as their inputs are correlated: the method of Optimal Brain Quantization in the form
//! of GPTQ (Frantar et al., 2022), here within each group of K, in the rotated weights. It needs the second moments of
//! the rotated activations, and costs nothing at run time.

use super::GROUP;

/// Added to the diagonal, as a fraction of its mean, so that inputs that calibration never saw still have weight.
const DAMPING: f64 = 0.01;

/// How the rounding errors in one group of K are spread over the later weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    len: usize,
    /// `[len][len]`: row `k` holds, from column `k + 1` on, the factor by which an error of weight `k` is subtracted
    /// from each later weight.
    spread: Vec<f32>,
}

impl Factor {
    /// Computes the factor from the second moments `[len][len]` of a group's inputs, `Σ x·xᵀ` over any number of rows.
    ///
    /// If all inputs are zero, the factor rounds to the nearest.
    ///
    /// # Panics
    /// If `moments` is not a square of at most a group.
    pub fn new(moments: &[f32], len: usize) -> Self {
        assert!(len <= GROUP && moments.len() == len * len, "moments");
        let mut a: Vec<f64> = moments.iter().map(|&value| f64::from(value)).collect();
        let mean = (0..len).map(|k| a[k * len + k]).sum::<f64>() / len as f64;
        for k in 0..len {
            a[k * len + k] += if mean > 0.0 { DAMPING * mean } else { 1.0 };
        }
        // Let A = L·Lᵀ and A⁻¹ = Uᵀ·U with U upper triangular. Row k of `spread` is row k of U divided by its diagonal
        // value.
        let lower = cholesky(&a, len);
        let inverse = inverse_of_lower(&lower, len);
        // A⁻¹ = (L⁻¹)ᵀ·L⁻¹; only its lower triangle is needed.
        let mut inverse_of_a = vec![0.0; len * len];
        for inverse in inverse.chunks_exact(len) {
            for (row, sums) in inverse_of_a.chunks_exact_mut(len).enumerate() {
                add_scaled(&mut sums[..=row], inverse[row], &inverse[..=row]);
            }
        }
        let upper_transposed = cholesky(&inverse_of_a, len);
        let mut spread = vec![0.0; len * len];
        for k in 0..len {
            let diagonal = upper_transposed[k * len + k];
            for later in k + 1..len {
                spread[k * len + later] = (upper_transposed[later * len + k] / diagonal) as f32;
            }
        }
        Self { len, spread }
    }

    /// Rounds `values` from front to back: `round(index, value)` returns the rounded value.
    ///
    /// # Panics
    /// If `values` has another length than the moments.
    pub fn round(&self, values: &mut [f32], mut round: impl FnMut(usize, f32) -> f32) {
        assert_eq!(values.len(), self.len, "values");
        for (index, spread) in self.spread.chunks_exact(self.len).enumerate() {
            let (value, later) = values[index..]
                .split_first_mut()
                .expect("index is below the length");
            let rounded = round(index, *value);
            let error = *value - rounded;
            *value = rounded;
            for (later, share) in later.iter_mut().zip(&spread[index + 1..]) {
                *later -= error * share;
            }
        }
    }
}

/// The lower triangle L with `L·Lᵀ = a`, for a positive definite `a` `[len][len]`.
fn cholesky(a: &[f64], len: usize) -> Vec<f64> {
    let mut lower = vec![0.0; len * len];
    for row in 0..len {
        for column in 0..=row {
            let (above, here) = lower.split_at(row * len);
            let other = if column == row {
                here
            } else {
                &above[column * len..]
            };
            let sum: f64 = (here[..column].iter().zip(&other[..column]))
                .map(|(a, b)| a * b)
                .sum();
            let rest = a[row * len + column] - sum;
            lower[row * len + column] = if row == column {
                // Damping keeps this above zero, except for rounding errors.
                rest.max(f64::MIN_POSITIVE).sqrt()
            } else {
                rest / lower[column * len + column]
            };
        }
    }
    lower
}

/// The inverse of a lower triangular matrix, which is lower triangular, too.
fn inverse_of_lower(lower: &[f64], len: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; len * len];
    for row in 0..len {
        let (above, here) = inverse.split_at_mut(row * len);
        let (weights, diagonal) = (&lower[row * len..][..row], lower[row * len + row]);
        for ((k, above), weight) in above.chunks_exact(len).enumerate().zip(weights) {
            add_scaled(&mut here[..=k], -weight / diagonal, &above[..=k]);
        }
        here[row] = 1.0 / diagonal;
    }
    inverse
}

/// `sums += factor · values`.
fn add_scaled(sums: &mut [f64], factor: f64, values: &[f64]) {
    let both = sums.iter_mut().zip(values);
    both.for_each(|(sum, value)| *sum += factor * value);
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Correlated inputs: each is close to its neighbour, `[count][len]`.
    fn inputs(len: usize, count: usize) -> Vec<f32> {
        let mut random = rand_pcg::Pcg64::seed_from_u64(5);
        let mut rows = Vec::new();
        for _ in 0..count {
            let mut last = 0.0f32;
            for _ in 0..len {
                last = 0.9 * last + random.random_range(-1.0..1.0f32);
                rows.push(last);
            }
        }
        rows
    }

    fn moments(inputs: &[f32], len: usize) -> Vec<f32> {
        let mut moments = vec![0.0; len * len];
        for row in inputs.chunks_exact(len) {
            for (a, moments) in row.iter().zip(moments.chunks_exact_mut(len)) {
                for (b, moment) in row.iter().zip(moments) {
                    *moment += a * b;
                }
            }
        }
        moments
    }

    #[test]
    fn products_lose_less_than_with_rounding_to_the_nearest() {
        let (len, step) = (96, 0.05);
        let inputs = inputs(len, 400);
        let factor = Factor::new(&moments(&inputs, len), len);
        let mut random = rand_pcg::Pcg64::seed_from_u64(6);
        let weights: Vec<f32> = (0..len).map(|_| random.random_range(-1.0..1.0)).collect();
        let nearest = |value: f32| (value / step).round() * step;
        let loss = |rounded: &[f32]| {
            let product = |row: &[f32]| {
                let terms = row.iter().zip(weights.iter().zip(rounded));
                terms.map(|(x, (w, r))| f64::from(x * (w - r))).sum::<f64>()
            };
            inputs
                .chunks_exact(len)
                .map(|row| product(row).powi(2))
                .sum::<f64>()
        };
        let plain: Vec<f32> = weights.iter().copied().map(nearest).collect();
        let mut compensated = weights.clone();
        factor.round(&mut compensated, |_, value| nearest(value));
        let (before, after) = (loss(&plain), loss(&compensated));
        assert!(after < 0.5 * before, "{after} after {before}");
        let on_the_grid = |value: &f32| (value / step - (value / step).round()).abs() < 1e-4;
        assert!(compensated.iter().all(on_the_grid));
    }

    #[test]
    fn independent_or_absent_inputs_round_to_the_nearest() {
        let mut identity = vec![0.0; 16];
        (0..4).for_each(|k| identity[k * 5] = 3.0);
        for moments in [identity, vec![0.0; 16]] {
            let mut values = [0.4, 0.6, -1.4, 2.5];
            Factor::new(&moments, 4).round(&mut values, |_, value| value.round());
            assert_eq!(values, [0.0, 1.0, -1.0, 3.0]);
        }
    }
}
