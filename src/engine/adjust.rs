//! Changes to the logits before a token is chosen: penalties, biases, bans and constraints.
//!
//! Each generation has its own state, which changes only when a token is accepted, so the choice depends only on the
//! tokens before it. Each token's logit is changed independently of all others.

use std::collections::BTreeMap;

use super::request::{Constraint, Generation, Sampling, Turn};
use super::sampler::EXCLUDED;

/// One generation's adjustments.
#[derive(Debug)]
pub(super) struct Adjustments {
    /// For each token of the prompt and the output, how often it is in the output; kept only if there are penalties.
    seen: BTreeMap<u32, u32>,
    min_tokens: usize,
    constraint: Option<Box<dyn Constraint>>,
    /// Whether the constraint allows the text to end here.
    may_end: bool,
}

/// The constraint exceeded its work limit.
#[derive(Debug)]
pub(super) struct Undecided;

impl Adjustments {
    /// The adjustments that `generation` requests; `None` if it requests none.
    pub fn new(generation: &mut Generation) -> Option<Self> {
        let sampling = &generation.sampling;
        let has_penalty = sampling.has_penalty();
        let is_needed = has_penalty
            || generation.min_tokens > 0
            || generation.constraint.is_some()
            || !sampling.logit_bias.is_empty()
            || !sampling.allowed_ids.is_empty()
            || !sampling.banned_sequences.is_empty();
        let prompt = generation.prompt.iter().filter(|_| has_penalty);
        is_needed.then(|| Self {
            seen: prompt.map(|&token| (token, 0)).collect(),
            min_tokens: generation.min_tokens,
            constraint: generation.constraint.take(),
            may_end: true,
        })
    }

    /// Changes the logits for the token that follows `tokens`; the first `prompt_len` tokens are the prompt.
    pub fn apply(
        &mut self,
        logits: &mut [f32],
        sampling: &Sampling,
        stop_ids: &[u32],
        tokens: &[u32],
        prompt_len: usize,
    ) -> Result<(), Undecided> {
        match self.constraint.as_ref().map(|constraint| constraint.turn()) {
            None | Some(Turn::Forced(_)) => {}
            Some(Turn::Masked) => self.mask(logits, stop_ids)?,
            Some(Turn::Free { may_end }) => {
                self.may_end = may_end;
                if !may_end {
                    self.exclude_stops(logits, stop_ids);
                }
            }
        }
        if !sampling.allowed_ids.is_empty() {
            keep_only(logits, &sampling.allowed_ids);
        }
        for banned in &sampling.banned_sequences {
            let (last, before) = banned.split_last().expect("none is empty");
            if tokens[prompt_len..].ends_with(before) {
                exclude(logits, *last);
            }
        }
        if tokens.len() - prompt_len < self.min_tokens {
            self.exclude_stops(logits, stop_ids);
        }
        for &(id, bias) in &sampling.logit_bias {
            change(logits, id, |logit| logit + bias);
        }
        if sampling.has_penalty() {
            for (&id, &count) in &self.seen {
                change(logits, id, |logit| sampling.penalize(logit, count));
            }
        }
        Ok(())
    }

    fn exclude_stops(&self, logits: &mut [f32], stop_ids: &[u32]) {
        let stop_ids = stop_ids.iter().filter(|id| self.heeds(**id));
        stop_ids.for_each(|&id| exclude(logits, id));
    }

    /// Whether the stop id ends the text here.
    pub fn heeds(&self, stop: u32) -> bool {
        let constraint = self.constraint.as_ref();
        constraint.is_none_or(|constraint| constraint.heeds(stop))
    }

    /// The token that comes next by the constraint, whatever else is asked for.
    pub fn forced(&self) -> Option<u32> {
        match self.constraint.as_ref()?.turn() {
            Turn::Forced(token) => Some(token),
            Turn::Masked | Turn::Free { .. } => None,
        }
    }

    /// Excludes all that the constraint does not allow.
    fn mask(&mut self, logits: &mut [f32], stop_ids: &[u32]) -> Result<(), Undecided> {
        let Some(constraint) = &mut self.constraint else {
            return Ok(());
        };
        let allowed = constraint.allowed().ok_or(Undecided)?;
        // For a model without an end-of-text token, grammars use an id right behind the last logit.
        let mut ends = stop_ids.iter().copied().chain([logits.len() as u32]);
        self.may_end = ends.any(|id| {
            let word = allowed.get(id as usize / 32);
            word.is_some_and(|word| word >> (id % 32) & 1 == 1)
        });
        let words = allowed.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            // Most words exclude or allow all of their 32 ids.
            if word == 0 {
                logits.fill(EXCLUDED);
            } else if word != u32::MAX {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = EXCLUDED;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the constraint forbids the text to end here. If then no token is left, the other settings contradict the
    /// constraint.
    pub const fn must_go_on(&self) -> bool {
        self.constraint.is_some() && !self.may_end
    }

    /// Records a token of the output. Returns whether the constraint is fulfilled and nothing may follow.
    pub fn accept(&mut self, token: u32, sampling: &Sampling) -> bool {
        if sampling.has_penalty() {
            *self.seen.entry(token).or_insert(0) += 1;
        }
        let constraint = self.constraint.as_mut();
        constraint.is_some_and(|constraint| constraint.accept(token))
    }
}

impl Sampling {
    fn has_penalty(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// The penalised logit of a token that is in the prompt, or `count` times in the output.
    fn penalize(&self, logit: f32, count: u32) -> f32 {
        let repeated = if logit > 0.0 {
            logit / self.repetition_penalty
        } else {
            logit * self.repetition_penalty
        };
        let present = if count > 0 {
            self.presence_penalty
        } else {
            0.0
        };
        repeated - self.frequency_penalty * count as f32 - present
    }
}

/// Changes the logit of an id that may still be chosen.
fn change(logits: &mut [f32], id: u32, change: impl FnOnce(f32) -> f32) {
    // Ids are checked against the vocabulary before they come here; the prompt's always are.
    if let Some(logit) = logits.get_mut(id as usize)
        && *logit != EXCLUDED
    {
        *logit = change(*logit);
    }
}

fn exclude(logits: &mut [f32], id: u32) {
    change(logits, id, |_| EXCLUDED);
}

/// Excludes all ids but those of `kept`, which are in ascending order.
fn keep_only(logits: &mut [f32], kept: &[u32]) {
    let mut start = 0;
    for &id in kept {
        let end = (id as usize).min(logits.len());
        logits[start.min(end)..end].fill(EXCLUDED);
        start = end + 1;
    }
    if let Some(rest) = logits.get_mut(start..) {
        rest.fill(EXCLUDED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The logits after `output`, which followed the prompt `[0, 1]`.
    fn adjusted(sampling: Sampling, min_tokens: usize, output: &[u32]) -> Vec<f32> {
        let mut generation = Generation {
            prompt: vec![0, 1],
            min_tokens,
            sampling,
            ..Generation::default()
        };
        let mut tokens = generation.prompt.clone();
        let mut logits = vec![2.0, -2.0, 1.0, -1.0, 0.5];
        if let Some(mut adjustments) = Adjustments::new(&mut generation) {
            let sampling = &generation.sampling;
            for &token in output {
                adjustments.accept(token, sampling);
                tokens.push(token);
            }
            let applied = adjustments.apply(&mut logits, sampling, &[4], &tokens, 2);
            applied.expect("no constraint");
        }
        logits
    }

    #[test]
    fn penalties_mean_what_vllm_means() {
        let repetition = Sampling {
            repetition_penalty: 2.0,
            ..Sampling::default()
        };
        assert_eq!(
            adjusted(repetition, 0, &[3]),
            [1.0, -4.0, 1.0, -2.0, 0.5],
            "prompt and output, away from likely on either side of zero"
        );
        let counted = Sampling {
            frequency_penalty: 0.25,
            presence_penalty: 0.5,
            ..Sampling::default()
        };
        assert_eq!(
            adjusted(counted, 0, &[2, 2, 3]),
            [2.0, -2.0, 0.0, -1.75, 0.5],
            "the output alone, once for being there and once for each time"
        );
        let all = Sampling {
            repetition_penalty: 2.0,
            frequency_penalty: 1.0,
            presence_penalty: -0.5,
            logit_bias: vec![(2, 3.0), (9, 1.0)],
            ..Sampling::default()
        };
        assert_eq!(
            adjusted(all, 0, &[2]),
            [1.0, -4.0, 1.5, -1.0, 0.5],
            "bias first, then repetition, then the two that subtract"
        );
    }

    #[test]
    fn bans_exclude_and_no_bias_brings_back() {
        let x = EXCLUDED;
        let allowed = Sampling {
            allowed_ids: vec![1, 3],
            logit_bias: vec![(0, 100.0), (3, 1.0)],
            ..Sampling::default()
        };
        assert_eq!(adjusted(allowed, 0, &[]), [x, -2.0, x, 0.0, x]);
        let banned = Sampling {
            banned_sequences: vec![vec![2], vec![3, 2, 1], vec![2, 3]],
            ..Sampling::default()
        };
        assert_eq!(adjusted(banned.clone(), 0, &[]), [2.0, -2.0, x, -1.0, 0.5]);
        assert_eq!(
            adjusted(banned, 0, &[3, 2]),
            [2.0, x, x, x, 0.5],
            "where the rest stands before"
        );
        let plain = Sampling::default();
        assert_eq!(adjusted(plain.clone(), 2, &[3])[4], x, "one of two");
        assert_eq!(adjusted(plain, 2, &[3, 3])[4], 0.5, "two of two");
    }
}
