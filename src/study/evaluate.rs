//! How much accuracy another arithmetic loses: compares its logits with the reference's on the same text.

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::model::packed::Evaluation;

/// Tokens per window; each window starts again at position 0, as in llama.cpp's perplexity tool by default.
pub const WINDOW_TOKENS: usize = 512;

/// A running comparison: sums over the tokens so far.
#[derive(Debug, Default)]
pub struct Comparison {
    kl: Sample,
    /// The divergence at every token.
    kl_of_tokens: Vec<f64>,
    same_top: Sample,
    /// Negative log-probability of the text's own next token.
    nll_reference: Sample,
    nll_other: Sample,
    /// Squared change of the probability of the text's own next token.
    dp_squared: Sample,
}

impl Comparison {
    /// Adds one window: `ids` and both arithmetics' logits, `[ids.len()][vocab]`, one row after each id. The last row
    /// is not used.
    ///
    /// # Errors
    /// [`Error::Internal`] if the logits do not have that shape.
    pub fn add_window(&mut self, ids: &[u32], reference: &[f32], other: &[f32]) -> Result<()> {
        let vocab = reference.len() / ids.len();
        let shapes_agree = reference.len() == vocab * ids.len() && other.len() == reference.len();
        if !shapes_agree || ids.iter().any(|&id| id as usize >= vocab) {
            return Err(Error::Internal(format!(
                "{} and {} logits cannot be one row of a vocabulary for each of {} tokens",
                reference.len(),
                other.len(),
                ids.len()
            )));
        }
        let rows = reference.chunks(vocab).zip(other.chunks(vocab));
        for ((reference, other), &next) in rows.zip(&ids[1..]) {
            self.add_token(&log_softmax(reference), &log_softmax(other), next as usize);
        }
        Ok(())
    }

    fn add_token(&mut self, reference: &[f64], other: &[f64], next: usize) {
        let kl: f64 = (reference.iter().zip(other))
            .map(|(&p, &q)| p.exp() * (p - q))
            .sum();
        // A divergence below zero is a rounding error; NaN must stay visible, and has no sign to sort by.
        let kl = if kl.is_nan() { f64::NAN } else { kl.max(0.0) };
        self.kl.add(kl);
        self.kl_of_tokens.push(kl);
        let same_top = most_likely(reference, f64::total_cmp) == most_likely(other, f64::total_cmp);
        self.same_top.add(f64::from(same_top));
        self.nll_reference.add(-reference[next]);
        self.nll_other.add(-other[next]);
        self.dp_squared
            .add((other[next].exp() - reference[next].exp()).powi(2));
    }

    /// The figures over all windows.
    ///
    /// # Errors
    /// [`Error::Usage`] if no window had two tokens.
    pub fn finish(mut self) -> Result<Evaluation> {
        if self.kl.count == 0 {
            let problem = "the text is too short to evaluate on: it needs at least two tokens";
            return Err(Error::Usage(problem.into()));
        }
        // NaN comes last, and so stays visible as the largest.
        self.kl_of_tokens.sort_by(f64::total_cmp);
        let largest = self.kl_of_tokens.last().copied();
        // The standard error of a function of a mean is the standard error of the mean times the derivative there.
        let perplexity = self.nll_other.mean().exp();
        let perplexity_reference = self.nll_reference.mean().exp();
        let rms_dp = self.dp_squared.mean().sqrt();
        Ok(Evaluation {
            tokens: self.kl.count,
            perplexity,
            perplexity_se: perplexity * self.nll_other.standard_error(),
            perplexity_reference,
            perplexity_reference_se: perplexity_reference * self.nll_reference.standard_error(),
            kl_mean: self.kl.mean(),
            kl_mean_se: self.kl.standard_error(),
            kl_median: Some(median(&self.kl_of_tokens)),
            kl_max: largest.unwrap_or_default(),
            same_top_token: self.same_top.mean(),
            same_top_token_se: self.same_top.standard_error(),
            rms_dp,
            rms_dp_se: if rms_dp == 0.0 {
                0.0
            } else {
                self.dp_squared.standard_error() / (2.0 * rms_dp)
            },
        })
    }
}

/// The middle of ascending `values`, or the mean of the two in the middle; NaN if there are none.
pub fn median(values: &[f64]) -> f64 {
    let middle =
        &values[values.len().saturating_sub(1) / 2..values.len().min(values.len() / 2 + 1)];
    middle.iter().sum::<f64>() / middle.len() as f64
}

/// Running mean and variance (Welford's method, which does not subtract large sums from each other).
#[derive(Debug, Default)]
struct Sample {
    count: usize,
    mean: f64,
    squared_deviations: f64,
}

impl Sample {
    fn add(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squared_deviations += before * (value - self.mean);
    }

    fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard error of the mean if the values are independent; 0 for a single value, which says nothing about the
    /// spread.
    fn standard_error(&self) -> f64 {
        let degrees = self.count.saturating_sub(1).max(1) as f64;
        (self.squared_deviations / degrees / self.count.max(1) as f64).sqrt()
    }
}

/// Log-probabilities of a row of logits; in f64, because divergences near 0.001 are differences of numbers near 10.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - largest).exp())
        .sum();
    let log_sum = largest + sum.ln();
    logits
        .iter()
        .map(|&logit| f64::from(logit) - log_sum)
        .collect()
}

/// The lowest index of the largest value.
pub(crate) fn most_likely<T>(values: &[T], compare: impl Fn(&T, &T) -> Ordering) -> Option<usize> {
    (0..values.len())
        .rev()
        .max_by(|&a, &b| compare(&values[a], &values[b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares one window.
    fn compare(ids: &[u32], reference: &[f32], other: &[f32]) -> Result<Evaluation> {
        let mut comparison = Comparison::default();
        comparison.add_window(ids, reference, other)?;
        comparison.finish()
    }

    /// Logits whose softmax is exactly these probabilities.
    fn logits(probabilities: &[f64]) -> Vec<f32> {
        // The shift by 3 does not change the distribution.
        probabilities
            .iter()
            .map(|p| (p.ln() + 3.0) as f32)
            .collect()
    }

    fn close(found: f64, expected: f64) {
        // Logits are f32: 24 bits of numbers near 3.
        assert!((found - expected).abs() < 1e-6, "{found} != {expected}");
    }

    #[test]
    fn figures_of_two_tokens_are_those_worked_out_by_hand() {
        let ids = [0, 1, 0];
        let even = [0.5, 0.25, 0.25];
        let tilted = [0.25, 0.5, 0.25];
        let reference = [logits(&even), logits(&even), logits(&tilted)].concat();
        let other = [logits(&tilted), logits(&even), logits(&even)].concat();
        let found = compare(&ids, &reference, &other).unwrap();

        // First token: 0.5·ln(0.5/0.25) + 0.25·ln(0.25/0.5) = 0.25·ln 2; second token: the same distribution.
        let kl = 0.25 * 2f64.ln();
        assert_eq!(found.tokens, 2);
        close(found.kl_mean, kl / 2.0);
        close(found.kl_median.unwrap(), kl / 2.0);
        close(found.kl_max, kl);
        // Two values x and 0 have a sample standard deviation of x/√2, and their mean has a standard error of x/2.
        close(found.kl_mean_se, kl / 2.0);
        close(found.same_top_token, 0.5);
        close(found.same_top_token_se, 0.5);
        // The text's tokens are 1 and 0: probabilities 0.25 and 0.5 in the reference, 0.5 and 0.5 in the other.
        close(found.perplexity_reference, 8f64.sqrt());
        close(found.perplexity, 2.0);
        close(found.perplexity_se, 0.0);
        close(found.perplexity_reference_se, 8f64.sqrt() * 2f64.ln() / 2.0);
        close(found.rms_dp, (0.0625f64 / 2.0).sqrt());
        close(found.rms_dp_se, 0.0625 / 2.0 / (2.0 * found.rms_dp));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn an_arithmetic_does_not_differ_from_itself() {
        let row = |id: u32| [id as f32, 1.5, -2.0, 40.0];
        let ids = [1, 2, 3, 0, 2];
        let logits: Vec<f32> = ids.into_iter().flat_map(row).collect();
        let found = compare(&ids, &logits, &logits).unwrap();
        assert_eq!(found.tokens, 4);
        assert_eq!(found.kl_mean, 0.0);
        assert_eq!(found.kl_max, 0.0);
        assert_eq!(found.same_top_token, 1.0);
        assert_eq!(found.rms_dp, 0.0);
        assert_eq!(found.rms_dp_se, 0.0);
        assert_eq!(found.perplexity, found.perplexity_reference);
    }

    #[test]
    fn logits_that_are_not_numbers_stay_visible() {
        let broken = [f32::NAN, 0.0, 0.0, 0.0];
        let found = compare(&[0, 1], &[0.0; 4], &broken).unwrap();
        assert!(found.kl_mean.is_nan() && found.kl_max.is_nan() && found.perplexity.is_nan());
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let none = Comparison::default().finish();
        assert!(matches!(none, Err(Error::Usage(_))));
        let one = compare(&[1], &[0.0; 2], &[0.0; 2]);
        assert!(matches!(one, Err(Error::Usage(_))));
        for (ids, other) in [([0, 1], 2), ([0, 2], 4)] {
            let found = compare(&ids, &[0.0; 4], &vec![0.0; other]);
            assert!(matches!(found, Err(Error::Internal(_))));
        }
    }
}
