//! Logits → token: greedy, or temperature, min-p, top-k and top-p, in this order.
//!
//! The order is vLLM's, so that a request means the same to both. It matters in one respect: top-p counts the
//! probability mass of the tokens that min-p and top-k have kept.
//!
//! Token `i` of a generation depends only on the seed, on `i` and on its logits: each generation has its own random
//! generator and draws once per token, sums are added in a fixed order, ties are broken by id, and `exp` is our own,
//! since the system's may differ in its last bit from one machine to the next.

use std::cmp::Ordering;

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};

use super::request::{Sampling, Score};
use crate::int8::kernels::{LN_2_HIGH, LN_2_LOW, ROUND};

/// The logit of a token that may not be chosen. It is finite, so that the code below needs no special case: next to any
/// logit of a model its probability is zero.
pub(crate) const EXCLUDED: f32 = f32::MIN;

/// Logits handled together: enough for vector registers, few enough that searching one block costs nothing.
const BLOCK: usize = 64;
/// Independent sums within a block: two registers of eight.
const LANES: usize = 16;
/// Candidates that top-p considers first. Most nuclei are smaller; a larger one takes another pass over the logits.
const NUCLEUS_GUESS: usize = 128;

/// Scratch memory for choosing tokens; holds no state between calls.
#[derive(Debug, Default)]
pub struct Sampler {
    /// One weight per token id, relative to the most likely one.
    weights: Vec<f32>,
    /// The sum of each block of `weights`.
    block_sums: Vec<f64>,
    /// The most likely tokens, best first, as logit and id.
    best: Vec<(f32, u32)>,
    /// A copy of a row of logits, to be adjusted.
    adjusted: Vec<f32>,
}

/// A generation's random generator; it draws once per token.
pub fn generator(seed: u64) -> Pcg64 {
    Pcg64::seed_from_u64(seed)
}

impl Sampler {
    /// Chooses a token, or `None` if any logit is infinite or not a number.
    pub fn sample(
        &mut self,
        logits: &[f32],
        sampling: &Sampling,
        generator: &mut Pcg64,
    ) -> Option<u32> {
        let (greedy, max) = argmax(logits)?;
        if sampling.temperature == 0.0 {
            return Some(greedy);
        }
        // The upper 53 bits make a double in [0, 1).
        let uniform = (generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        // Copied to locals: through `&sampling` the compiler must assume aliasing with `weights` and does not
        // vectorise.
        let (temperature, min_p) = (sampling.temperature, sampling.min_p);
        let weight = move |logit: f32| {
            let weight = exp((logit - max) / temperature);
            if weight < min_p { 0.0 } else { weight }
        };
        let top_k = match sampling.top_k {
            0 => logits.len(),
            k => k.min(logits.len()),
        };
        Some(if top_k < logits.len() {
            self.keep_best(logits, top_k);
            let total = self.mass_of_best(weight);
            self.keep_nucleus(sampling.top_p, total, weight);
            self.draw_from_best(uniform, weight)
        } else if sampling.top_p < 1.0 {
            let total = self.weigh_all(logits, weight);
            let mut guess = NUCLEUS_GUESS;
            self.keep_best(logits, guess);
            while !self.keep_nucleus(sampling.top_p, total, weight) && guess < logits.len() {
                guess *= 8;
                self.keep_best(logits, guess);
            }
            self.draw_from_best(uniform, weight)
        } else {
            let total = self.weigh_all(logits, weight);
            self.draw_from_all(uniform * total).unwrap_or(greedy)
        })
    }

    /// Like [`Self::sample`], after `adjust` has changed a copy of the logits. `Ok(None)` if every token is
    /// [`EXCLUDED`].
    ///
    /// # Errors
    /// Those of `adjust`, and `not_finite` if any of the original logits is infinite or not a number.
    pub(crate) fn sample_adjusted<E>(
        &mut self,
        logits: &[f32],
        sampling: &Sampling,
        generator: &mut Pcg64,
        not_finite: E,
        adjust: impl FnOnce(&mut [f32]) -> Result<(), E>,
    ) -> Result<Option<u32>, E> {
        if argmax(logits).is_none() {
            return Err(not_finite);
        }
        let mut adjusted = std::mem::take(&mut self.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        let token = adjust(&mut adjusted).map(|()| {
            self.sample(&adjusted, sampling, generator)
                .filter(|&token| adjusted[token as usize] != EXCLUDED)
        });
        self.adjusted = adjusted;
        token
    }

    /// The log-probabilities of `token` and of the `top` most likely ones, or of `ids` if there are any; `None` if any
    /// logit is infinite or not a number.
    ///
    /// Depends on the logits alone: the sum is added in the order of ids, so the same row gives the same bits.
    pub fn score(&mut self, logits: &[f32], token: u32, top: usize, ids: &[u32]) -> Option<Score> {
        let (_, max) = argmax(logits)?;
        let log_total = self.weigh_all(logits, |logit| exp(logit - max)).ln();
        let log_probability = |logit: f32| (f64::from(logit - max) - log_total) as f32;
        self.best.clear();
        if !ids.is_empty() {
            self.best.extend(
                ids.iter()
                    .filter_map(|&id| Some((*logits.get(id as usize)?, id))),
            );
            self.best.sort_unstable_by(more_likely);
        } else if top > 0 {
            self.keep_best(logits, top.min(logits.len()));
        }
        let own = *logits.get(token as usize)?;
        let best = self.best.iter();
        Some(Score {
            token: (token, log_probability(own)),
            rank: 1 + logits.iter().filter(|&&logit| logit > own).count(),
            top: best
                .map(|&(logit, id)| (id, log_probability(logit)))
                .collect(),
        })
    }

    /// Weighs every token and returns the sum.
    fn weigh_all(&mut self, logits: &[f32], weight: impl Fn(f32) -> f32) -> f64 {
        self.weights.clear();
        self.weights
            .extend(logits.iter().map(|&logit| weight(logit)));
        self.block_sums.clear();
        self.block_sums
            .extend(self.weights.chunks(BLOCK).map(block_sum));
        self.block_sums.iter().sum()
    }

    /// The token at which the running sum of all weights passes `point`.
    fn draw_from_all(&self, point: f64) -> Option<u32> {
        let mut sum = 0.0;
        let block = self.block_sums.iter().position(|block_sum| {
            let passes = sum + block_sum > point;
            sum += if passes { 0.0 } else { *block_sum };
            passes
        })?;
        let start = block * BLOCK;
        let end = self.weights.len().min(start + BLOCK);
        let mut last = None;
        for (id, &weight) in (start..end).zip(&self.weights[start..end]) {
            if weight > 0.0 {
                last = u32::try_from(id).ok();
                sum += f64::from(weight);
                if sum > point {
                    break;
                }
            }
        }
        // The order of addition within the block differs from `block_sum`'s, so rounding may leave the sum just short
        // of `point` at the end.
        last
    }

    /// Fills `best` with the `count` most likely tokens, most likely first; ties by lower id.
    fn keep_best(&mut self, logits: &[f32], count: usize) {
        let best = &mut self.best;
        best.clear();
        // No token at or below the floor can be among the best: `count` others are at least as likely, with lower ids.
        let mut floor = f32::NEG_INFINITY;
        for (id, &logit) in (0..).zip(logits) {
            if logit > floor {
                best.push((logit, id));
                if best.len() == 2 * count {
                    best.select_nth_unstable_by(count - 1, more_likely);
                    best.truncate(count);
                    floor = best[count - 1].0;
                }
            }
        }
        best.sort_unstable_by(more_likely);
        best.truncate(count);
    }

    /// The sum of the weights of `best`, in order.
    fn mass_of_best(&self, weight: impl Fn(f32) -> f32) -> f64 {
        self.best.iter().map(|best| f64::from(weight(best.0))).sum()
    }

    /// Truncates `best` to the shortest beginning with at least the share `top_p` of `total`; returns whether `best`
    /// reaches it.
    fn keep_nucleus(&mut self, top_p: f32, total: f64, weight: impl Fn(f32) -> f32) -> bool {
        let target = f64::from(top_p) * total;
        let mut mass = 0.0;
        let reached = self.best.iter().position(|best| {
            mass += f64::from(weight(best.0));
            mass >= target
        });
        if let Some(last) = reached {
            self.best.truncate(last + 1);
        }
        reached.is_some()
    }

    /// The token of `best` at which the running sum of weights passes the share `uniform` of their mass.
    fn draw_from_best(&self, uniform: f64, weight: impl Fn(f32) -> f32) -> u32 {
        let point = uniform * self.mass_of_best(&weight);
        let mut sum = 0.0;
        let drawn = self.best.iter().find(|best| {
            sum += f64::from(weight(best.0));
            sum > point
        });
        // Always found: `uniform` is below one and the mass was added up in the same order.
        drawn.unwrap_or(&self.best[0]).1
    }
}

/// Orders the more likely token first; ties by lower id.
fn more_likely(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    let by_logit = b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal);
    by_logit.then(a.1.cmp(&b.1))
}

/// The lowest id among the largest logits, and that logit; `None` if any logit is not finite, or there is none.
fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    let mut max = f32::NEG_INFINITY;
    let mut found = None;
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let (vectors, rest) = values.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        // A value times zero is zero, unless the value is infinite or not a number.
        let mut zeros = [0.0; LANES];
        for values in vectors {
            for lane in 0..LANES {
                let value = values[lane];
                lanes[lane] = if value > lanes[lane] {
                    value
                } else {
                    lanes[lane]
                };
                zeros[lane] += value * 0.0;
            }
        }
        if !(zeros.iter().chain(rest)).all(|value| value.is_finite()) {
            return None;
        }
        let block_max = lanes.iter().chain(rest).copied().fold(max, f32::max);
        if block_max > max {
            max = block_max;
            let offset = values.iter().position(|&value| value == max)?;
            found = u32::try_from(block * BLOCK + offset).ok();
        }
    }
    Some((found?, max))
}

/// The sum of a block, always in the same order: each lane, then the lanes in turn, then the values that do not fill a
/// vector.
fn block_sum(weights: &[f32]) -> f64 {
    let (vectors, rest) = weights.as_chunks::<LANES>();
    let mut lanes = [0.0_f64; LANES];
    for weights in vectors {
        for lane in 0..LANES {
            lanes[lane] += f64::from(weights[lane]);
        }
    }
    let rest = rest.iter().map(|&weight| f64::from(weight));
    lanes.into_iter().chain(rest).sum()
}

/// eˣ for x ≤ 0 to 3·10⁻⁷ relative, the same bits on every machine; zero below −87, where f32 runs out of exponents.
fn exp(x: f32) -> f32 {
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let exponent = shifted - ROUND;
    let r = x - exponent * LN_2_HIGH - exponent * LN_2_LOW;
    // Taylor to the sixth power: |r| is at most ln 2 / 2, so the rest is below 1.2·10⁻⁷.
    let fraction = 1.0
        + r * (1.0
            + r * (1.0 / 2.0
                + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))))));
    let power_of_two = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    // A mask, not a branch, so that the compiler can compute several at once.
    let mask = u32::from(x >= -87.0).wrapping_neg();
    f32::from_bits((fraction * power_of_two).to_bits() & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_ends_in_zero() {
        for step in 0..=870_000 {
            let x = -(step as f32) / 10_000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn the_greedy_token_is_the_lowest_id_of_the_largest() {
        for len in [1, 15, 16, 17, 63, 64, 65, 1000] {
            for at in 0..len {
                let mut logits = vec![-1.0; len];
                logits[at] = 2.0;
                *logits.last_mut().unwrap() = 2.0;
                assert_eq!(argmax(&logits), Some((at as u32, 2.0)));
            }
        }
        assert_eq!(argmax(&[-0.0, 0.0]), Some((0, -0.0)));
        assert_eq!(argmax(&[f32::MIN; 3]), Some((0, f32::MIN)));
    }

    #[test]
    fn a_logit_that_is_not_finite_is_no_choice() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..130 {
                let mut logits = vec![0.5; 130];
                logits[at] = bad;
                assert_eq!(argmax(&logits), None, "{bad} at {at}");
            }
        }
    }

    #[test]
    fn scores_are_the_logarithm_of_the_softmax() {
        let mut source = generator(5);
        let mut logits: Vec<f32> = (0..1000)
            .map(|_| (source.next_u64() % 1000) as f32 / 50.0)
            .collect();
        logits[7] = -300.0;
        let exact = |id: usize| {
            let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            f64::from(logits[id]) - total.ln()
        };
        let mut sampler = Sampler::default();
        for token in [0, 7, 999] {
            let score = sampler.score(&logits, token, 3, &[]).unwrap();
            assert_eq!((score.token.0, score.top.len()), (token, 3));
            assert_eq!(score.top[0].0, argmax(&logits).unwrap().0);
            for (id, log_probability) in score.top.iter().chain([&score.token]) {
                let error = f64::from(*log_probability) - exact(*id as usize);
                assert!(
                    error.abs() < 1e-6 * exact(*id as usize).abs(),
                    "{id}: {error}"
                );
            }
        }
        assert_eq!(sampler.score(&[0.0], 0, 5, &[]).unwrap().top, [(0, 0.0)]);
        assert!(sampler.score(&[0.0, f32::NAN], 0, 0, &[]).is_none());
    }

    #[test]
    fn a_score_has_the_rank_and_the_ids_that_were_asked_for() {
        let mut sampler = Sampler::default();
        let score = sampler.score(&[1.0, 3.0, 2.0, 2.0], 3, 1, &[]).unwrap();
        assert_eq!((score.rank, score.top.len()), (2, 1));
        let score = sampler.score(&[1.0, 3.0, 2.0, 2.0], 0, 1, &[3, 0, 2]);
        let score = score.unwrap();
        assert_eq!(score.rank, 4);
        let ids: Vec<u32> = score.top.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [2, 3, 0], "most likely first, of equals the lower id");
        assert_eq!(score.top[2], score.token);
    }

    #[test]
    fn what_is_excluded_is_never_chosen_however_one_samples() {
        let mut sampler = Sampler::default();
        let greedy = Sampling::default();
        let warm = Sampling {
            temperature: 2.0,
            ..greedy.clone()
        };
        let cold = Sampling {
            temperature: 1e-3,
            ..greedy.clone()
        };
        let top_k = Sampling {
            top_k: 3,
            ..warm.clone()
        };
        let nucleus = Sampling {
            top_p: 0.999,
            ..warm.clone()
        };
        for sampling in [greedy, warm, cold, top_k, nucleus] {
            let mut source = generator(1);
            for _ in 0..200 {
                let mut choose = |kept: Option<usize>| {
                    sampler.sample_adjusted(
                        &[1.0, -80.0, 3.0, 3.5],
                        &sampling,
                        &mut source,
                        (),
                        |logits| {
                            for (id, logit) in logits.iter_mut().enumerate() {
                                if Some(id) != kept {
                                    *logit = EXCLUDED;
                                }
                            }
                            Ok(())
                        },
                    )
                };
                assert_eq!(choose(Some(1)), Ok(Some(1)), "{sampling:?}");
                assert_eq!(choose(None), Ok(None), "{sampling:?}");
            }
        }
    }

    #[test]
    fn the_best_are_what_a_full_sort_gives() {
        let mut source = generator(3);
        // Few distinct values, so that ties matter.
        let logits: Vec<f32> = (0..3000).map(|_| (source.next_u64() % 50) as f32).collect();
        let mut sorted: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        sorted.sort_by(more_likely);
        let mut sampler = Sampler::default();
        for count in [1, 2, 59, 60, 61, 1499, 1500, 2999, 3000] {
            sampler.keep_best(&logits, count);
            assert_eq!(sampler.best, sorted[..count]);
        }
    }
}
