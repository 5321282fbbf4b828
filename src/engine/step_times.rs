//! Step times by number of rows, measured while the engine runs.
//!
//! They cannot be known beforehand: up to some number of rows a step takes as long as reading the weights, beyond it
//! each row costs its arithmetic, and where that limit lies depends on the model, the instruction set and the machine's
//! memory. Four decisions rest on these times: how many prompt rows may join a step that decodes, how many a step without
//! decoding may have, how many drafts are worth their rows, and which requests would wait too long. None of them changes any
//! output.

/// Weight of the newest measurement in an estimate: it adapts within about ten steps, and a single outlier moves it
/// little.
const NEWEST_SHARE: f64 = 0.25;
/// A measurement is clamped to this many times the previous estimate, or, for the first one of its row count, the
/// estimate of fewer rows scaled in proportion: a step may be interrupted for long.
const MOST_GROWTH: f64 = 2.0;
/// A measurement of more rows than the current step has is forgotten after this many steps, so that row counts that
/// were expensive once, when the machine was busy, are tried again. A trial costs one step in this many.
const FORGET_AFTER: u64 = 512;

/// Running estimates of step times.
#[derive(Debug)]
pub struct StepTimes {
    /// By number of rows.
    estimates: Vec<Option<Estimate>>,
    /// Steps seen.
    steps: u64,
    /// Rows and seconds of steps in which prompts wanted more rows than they got, older ones counting less.
    busy: (f64, f64),
}

#[derive(Debug, Clone, Copy)]
struct Estimate {
    seconds: f64,
    /// The step that was measured last.
    step: u64,
}

impl StepTimes {
    /// No measurements yet; steps have at most `most_rows` rows.
    pub fn new(most_rows: usize) -> Self {
        Self {
            estimates: vec![None; most_rows + 1],
            steps: 0,
            busy: (0.0, 0.0),
        }
    }

    /// Records that a step of `rows` rows took `seconds`.
    pub fn observe(&mut self, rows: usize, seconds: f64) {
        self.steps += 1;
        let step = self.steps;
        let fewer = self.estimates[..=rows].iter().enumerate().rev();
        let fewer = fewer.filter(|(rows, _)| *rows > 0).find_map(measured);
        let most = fewer.map_or(f64::INFINITY, |(fewer, estimate)| {
            MOST_GROWTH * estimate * rows as f64 / fewer
        });
        let newest = seconds.min(most);
        let (upto, beyond) = self.estimates.split_at_mut(rows + 1);
        let seconds = match &upto[rows] {
            None => newest,
            Some(old) => old.seconds + NEWEST_SHARE * (newest - old.seconds),
        };
        upto[rows] = Some(Estimate { seconds, step });
        for (more, estimate) in (rows + 1..).zip(beyond) {
            if let Some(old) = estimate {
                // One step of more rows takes no longer than several of so few. What said otherwise was measured while the
                // machine was slower, as when the first steps read the weights from a disk.
                old.seconds = old.seconds.min(seconds * more as f64 / rows as f64);
                if step - old.step > FORGET_AFTER {
                    *estimate = None;
                }
            }
        }
    }

    /// The likely duration of a step of `rows` rows. Interpolates linearly between measured row counts. Above the
    /// largest one `beyond` extrapolates. Below the smallest one the result is a lower bound: its time minus the
    /// missing rows, each at the largest step's average cost per row. `None` if nothing was measured yet.
    pub fn seconds(&self, rows: usize, beyond: Beyond) -> Option<f64> {
        let (upto, above) = self.estimates.split_at(self.estimates.len().min(rows + 1));
        let below = upto.iter().enumerate().rev().find_map(measured);
        let mut above = (upto.len()..self.estimates.len())
            .zip(above)
            .filter_map(measured);
        let (above, largest) = (above.next(), above.next_back());
        let rows = rows as f64;
        Some(match (below, above) {
            (Some((r0, t0)), _) if r0 == rows => t0,
            (Some((r0, t0)), Some((r1, t1))) => t0 + (t1 - t0) * (rows - r0) / (r1 - r0),
            (Some((r0, t0)), None) => match beyond {
                Beyond::Same => t0,
                Beyond::Proportional => t0 * rows / r0,
            },
            // Not in proportion to the rows: the weights are read once, for one row as for many.
            (None, Some((r1, t1))) => {
                let (r2, t2) = largest.unwrap_or((r1, t1));
                (t1 - (r1 - rows) * t2 / r2).max(t1 * rows / r1)
            }
            (None, None) => return None,
        })
    }

    /// Records that a step of `seconds` had `rows` rows of prompts that wanted more.
    pub fn observe_prompts(&mut self, rows: usize, seconds: f64) {
        let kept = 1.0 - NEWEST_SHARE;
        self.busy = (
            self.busy.0 * kept + rows as f64,
            self.busy.1 * kept + seconds,
        );
    }

    /// Tokens of prompts that are computed in a second when there are enough of them: as measured, or else as the largest
    /// step so far lets expect. `None` if nothing was measured yet.
    pub fn prefill_rate(&self) -> Option<f64> {
        if self.busy.1 > 0.0 {
            return Some(self.busy.0 / self.busy.1);
        }
        let all = self.estimates.iter().enumerate().rev();
        let (rows, seconds) = all.filter(|(rows, _)| *rows > 0).find_map(measured)?;
        Some(rows / seconds.max(f64::MIN_POSITIVE))
    }

    /// The largest number of rows, at most `most`, of a step that is likely to take at most `limit` seconds. At least
    /// `least`, also before anything was measured.
    pub fn rows_in(&self, limit: f64, least: usize, most: usize) -> usize {
        let fits = |&rows: &usize| {
            let seconds = self.seconds(rows, Beyond::Proportional);
            seconds.is_some_and(|seconds| seconds <= limit)
        };
        let rows = (1..=most).rev().find(fits).unwrap_or(0);
        rows.max(least).min(most)
    }

    /// The largest number of rows, at most `most`, that can join a step of `rows` rows so that it is likely to take at
    /// most `slowdown` times as long. At least one: prompts must make progress, and measuring one more row tells what
    /// two more may cost.
    pub fn rows_within(&self, slowdown: f64, rows: usize, most: usize) -> usize {
        let seconds = |rows| self.seconds(rows, Beyond::Proportional);
        let Some(alone) = seconds(rows) else {
            return 1;
        };
        let fits =
            |&more: &usize| seconds(rows + more).is_some_and(|with| with <= slowdown * alone);
        // From above: where steps take less than a millisecond, one that was interrupted makes its row count look expensive,
        // and larger ones tell that it is not.
        (1..=most).rev().find(fits).unwrap_or(1)
    }
}

/// The row count and its estimate in seconds, if it was measured.
fn measured((rows, estimate): (usize, &Option<Estimate>)) -> Option<(f64, f64)> {
    Some((rows as f64, (*estimate)?.seconds))
}

/// How to extrapolate beyond the largest measured number of rows.
#[derive(Debug, Clone, Copy)]
pub enum Beyond {
    /// Further rows cost nothing. Optimistic, so that they are tried.
    Same,
    /// Every row costs the same. Pessimistic, to be on the safe side.
    Proportional,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose steps take 10 ms up to 8 rows, then 1 ms more for each.
    fn take(times: &mut StepTimes, rows: usize) {
        times.observe(rows, 0.010 + 0.001 * rows.saturating_sub(8) as f64);
    }

    /// How many rows may join `decoding` others in each of six steps, one after the other.
    fn raised(times: &mut StepTimes, decoding: usize) -> [usize; 6] {
        [(); 6].map(|()| {
            let rows = times.rows_within(2.45, decoding, 100);
            take(times, decoding + rows);
            rows
        })
    }

    fn same(found: Option<f64>, expected: f64) {
        let found = found.expect("an estimate");
        assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
    }

    #[test]
    fn times_between_two_measurements_lie_in_proportion_between_them() {
        let mut times = StepTimes::new(128);
        assert_eq!(times.seconds(3, Beyond::Same), None);
        take(&mut times, 4);
        take(&mut times, 16);
        same(times.seconds(4, Beyond::Same), 0.010);
        same(times.seconds(10, Beyond::Same), 0.014);
        // Two rows less than four, of which each costs 18 ms / 16 at most.
        same(times.seconds(2, Beyond::Same), 0.010 - 2.0 * 0.018 / 16.0);
        same(times.seconds(32, Beyond::Same), 0.018);
        same(times.seconds(32, Beyond::Proportional), 0.036);
        same(times.seconds(500, Beyond::Same), 0.018);
    }

    #[test]
    fn estimates_follow_what_lasts_and_not_what_happens_once() {
        let mut times = StepTimes::new(8);
        take(&mut times, 1);
        times.observe(1, 5.0);
        same(times.seconds(1, Beyond::Same), 0.0125);
        for _ in 0..40 {
            times.observe(1, 0.030);
        }
        let seconds = times.seconds(1, Beyond::Same).expect("measured");
        assert!((0.0299..0.0301).contains(&seconds), "{seconds}");
        // The first of its kind: four rows cannot take much longer than four times one row.
        times.observe(4, 5.0);
        let seconds = times.seconds(4, Beyond::Same).expect("measured");
        assert!(seconds < 0.25, "{seconds}");
    }

    #[test]
    fn rows_are_raised_step_by_step_to_the_limit_and_never_past_it() {
        let mut times = StepTimes::new(128);
        assert_eq!(times.rows_within(2.45, 1, 100), 1, "nothing is known");
        take(&mut times, 1);
        let raised = raised(&mut times, 1);
        // 24.5 ms are 22 rows; until they are measured, each row might cost as much as the average so far.
        assert_eq!(raised, [1, 3, 8, 19, 21, 21]);
        assert_eq!(times.rows_within(2.45, 1, 5), 5, "no more than there are");
        assert_eq!(times.rows_within(1.0, 1, 100), 3, "rows that cost nothing");
        assert_eq!(times.rows_within(0.1, 1, 100), 1, "prompts move");
    }

    #[test]
    fn a_step_that_was_interrupted_does_not_hold_back_larger_ones() {
        let mut times = StepTimes::new(128);
        for rows in [4, 8, 12, 16, 20] {
            take(&mut times, rows);
        }
        let (beside, alone) = (times.rows_within(2.2, 4, 100), times.rows_in(0.022, 1, 128));
        assert_eq!((beside, alone), (16, 20));
        for _ in 0..4 {
            times.observe(8, 1.0);
        }
        let eight = times.seconds(8, Beyond::Same).expect("measured");
        assert!(eight > 0.022, "{eight}: more than twenty rows take");
        assert_eq!(
            (times.rows_within(2.2, 4, 100), times.rows_in(0.022, 1, 128)),
            (16, 20)
        );
    }

    #[test]
    fn a_first_step_that_read_the_weights_from_a_disk_holds_back_none_of_the_next() {
        let mut times = StepTimes::new(128);
        times.observe(8, 5.0);
        take(&mut times, 1);
        take(&mut times, 4);
        let raised = raised(&mut times, 4);
        // 24.5 ms are 22 rows, of which four decode.
        assert_eq!(raised, [5, 16, 18, 18, 18, 18]);
    }

    #[test]
    fn a_step_has_as_many_rows_as_its_time_allows_and_never_too_few() {
        let mut times = StepTimes::new(128);
        assert_eq!(times.rows_in(0.05, 16, 128), 16, "nothing is known");
        let mut raised = Vec::new();
        for _ in 0..4 {
            let rows = times.rows_in(0.05, 16, 128);
            take(&mut times, rows);
            raised.push(rows);
        }
        // 50 ms are 48 rows; until they are measured, each row might cost as much as the average so far.
        assert_eq!(raised, [16, 44, 47, 47]);
        assert_eq!(times.rows_in(0.001, 16, 128), 16);
        assert_eq!(times.rows_in(0.05, 16, 8), 8);
    }

    #[test]
    fn the_rate_of_prompts_is_that_of_steps_that_had_enough_of_them() {
        let mut times = StepTimes::new(128);
        assert_eq!(times.prefill_rate(), None);
        times.observe(4, 0.02);
        times.observe(100, 0.5);
        same(times.prefill_rate(), 200.0);
        times.observe_prompts(30, 0.1);
        times.observe_prompts(30, 0.1);
        same(times.prefill_rate(), 300.0);
        for _ in 0..50 {
            times.observe_prompts(5, 0.1);
        }
        let rate = times.prefill_rate().expect("measured");
        assert!((49.9..50.1).contains(&rate), "{rate}");
    }

    #[test]
    fn a_prompt_that_came_first_does_not_make_the_first_stream_look_cheap() {
        let mut times = StepTimes::new(128);
        // A whole prompt without decoding rows; then its own decoding, beside which one prompt row is tried.
        take(&mut times, 128);
        assert_eq!(times.rows_within(2.45, 1, 100), 1);
        take(&mut times, 2);
        // At least 10 − 130/128 ms, and in proportion between 2 and 128 rows 2.45 times that is 14 rows.
        let alone = times.seconds(1, Beyond::Proportional).expect("measured");
        assert!((0.0089..0.0090).contains(&alone), "{alone}");
        assert_eq!(times.rows_within(2.45, 1, 100), 13);
    }

    #[test]
    fn what_has_not_been_tried_for_long_is_forgotten_unless_it_is_the_smaller_step() {
        let mut times = StepTimes::new(128);
        take(&mut times, 16);
        take(&mut times, 2);
        for _ in 1..FORGET_AFTER {
            take(&mut times, 4);
        }
        same(times.seconds(16, Beyond::Same), 0.018);
        take(&mut times, 4);
        same(times.seconds(16, Beyond::Same), 0.010);
        same(times.seconds(2, Beyond::Proportional), 0.010);
    }
}
