//! How many rows of prompts a step has: many, so that prompts are computed quickly, and few enough that nobody waits long
//! for the end of the step.

use super::step_times::{Beyond, StepTimes};

/// Fraction of the allowed slowdown that prompts may use: estimates lag behind the cost of a growing prompt, and a
/// stream is judged by its slowest step.
const SLOWDOWN_SHARE: f64 = 0.8;
/// The most seconds for a step with prompts by measured times, if somebody waits besides the prompt. Whoever leaves keeps
/// its place until the end of the step: a place is free within a quarter of a second after its client has left, of which
/// noticing that takes 80 ms, and some steps take longer than measured. With a 2B model on two cores this is some 20 rows,
/// of which each costs a tenth more than in the largest step.
const LONGEST: f64 = 0.12;
/// How many times as long as one of [`LEAST_ROWS`] such a step may take: four times as many rows in proportion, so reading
/// the weights is a small part of it. A small model answers a short prompt in milliseconds, also beside long ones.
const FACTOR: f64 = 4.0;
/// The least limit in seconds, many times what a step of the smallest model costs beside its rows.
const SHORTEST: f64 = 0.005;
/// Rows that such a step may have in any case: up to about here reading the weights takes longer than computing with
/// them, so fewer rows would make prompts slower and steps no shorter.
const LEAST_ROWS: usize = 16;

/// How many prompt rows join a step that also decodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PromptRows {
    /// This many, whatever they cost. Makes steps predictable, for tests.
    Fixed(usize),
    /// As many as keep the step within this many times its duration without them, and short, as far as measurements tell.
    /// At least 1.
    Slowdown(f64),
}

impl PromptRows {
    /// How many prompt rows may join the next step if it also decodes, and how many it may have if it does not.
    /// `running` generations have a place, their next step has `decoding` rows without prompts, and a step has at most
    /// `most` rows.
    pub fn of_step(
        self,
        times: &StepTimes,
        running: usize,
        decoding: usize,
        most: usize,
    ) -> (usize, usize) {
        let factor = match self {
            Self::Fixed(rows) => return (rows, most),
            Self::Slowdown(factor) => factor,
        };
        match decoding {
            // A prompt that is alone keeps nobody waiting: when its client leaves, its step is given up.
            0 if running == 1 => (most, most),
            0 => {
                let alone = short(times, LEAST_ROWS, most);
                (alone, alone)
            }
            _ => {
                let free = most.saturating_sub(decoding);
                let even = times.rows_within(factor * SLOWDOWN_SHARE, decoding, free);
                let short = short(times, decoding + LEAST_ROWS, most);
                (even.min(short.saturating_sub(decoding)).max(1), most)
            }
        }
    }
}

/// The rows of a step for which nobody waits long: from `least` to `most`.
fn short(times: &StepTimes, least: usize, most: usize) -> usize {
    let of_least = times.seconds(LEAST_ROWS, Beyond::Proportional);
    let limit = (FACTOR * of_least.unwrap_or_default()).clamp(SHORTEST, LONGEST);
    times.rows_in(limit, least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of prompts beside `decoding` others, once steps of all sizes were measured on a machine that reads the
    /// weights in `weights` seconds and takes `row` more for each row beyond sixteen.
    fn beside(decoding: usize, weights: f64, row: f64) -> usize {
        let mut times = StepTimes::new(128);
        for rows in 1..=128 {
            times.observe(rows, weights + row * rows.saturating_sub(16) as f64);
        }
        PromptRows::Slowdown(3.0)
            .of_step(&times, 8, decoding, 128)
            .0
    }

    #[test]
    fn a_step_beside_streams_is_short_for_every_model() {
        // A model of 2B parameters: 120 ms have 16 + 20 / 3.1 rows, of which four decode, but sixteen are computed anyway.
        assert_eq!(beside(4, 0.1, 0.0031), 18);
        assert_eq!(beside(16, 0.1, 0.0031), 16);
        // One of 0.3B: three times as long as streams alone is shorter than four times as long.
        assert_eq!(beside(4, 0.018, 0.0005), 62);
        // A tiny one, whose longest step takes less than 5 ms: only what streams allow counts.
        assert_eq!(beside(4, 0.0005, 0.00001), 82);
        // One of 8B: reading the weights takes longer than a step should.
        assert_eq!(beside(4, 0.3, 0.012), 16);
    }

    #[test]
    fn whoever_is_alone_gets_all_rows_and_several_prompts_a_short_step() {
        let mut times = StepTimes::new(128);
        for rows in 1..=128 {
            times.observe(rows, 0.001 * rows as f64);
        }
        let rule = PromptRows::Slowdown(3.0);
        assert_eq!(rule.of_step(&times, 1, 0, 128), (128, 128));
        // Four times the 16 ms of sixteen rows.
        assert_eq!(rule.of_step(&times, 2, 0, 128), (64, 64));
        assert_eq!(PromptRows::Fixed(3).of_step(&times, 2, 0, 128), (3, 128));
        let nothing = StepTimes::new(128);
        assert_eq!(rule.of_step(&nothing, 2, 0, 128), (16, 16));
        assert_eq!(rule.of_step(&nothing, 2, 128, 128), (1, 128));
    }
}
