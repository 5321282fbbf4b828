//! How long the most recent steps took, to distinguish a slow step from one that hangs.

use std::collections::VecDeque;
use std::time::Duration;

/// Number of steps kept: a few seconds with a large model, several answers with a small one.
const REMEMBERED: usize = 64;

/// While nothing is measured, a step that was given up counts if it ran for so long: twice this is more than what the first
/// step may take, which on a slow machine may be too little.
const LONG: Duration = Duration::from_secs(10);

/// The most recent steps, as rows and duration.
#[derive(Debug, Default)]
pub(super) struct RecentSteps(VecDeque<(usize, Duration)>);

impl RecentSteps {
    /// Records the duration of a step of `rows` rows.
    pub fn observe(&mut self, rows: usize, took: Duration) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((rows, took));
    }

    /// Records a step that was given up after `took`. It would have taken longer, so it only counts if that is already more than
    /// expected.
    pub fn observe_part(&mut self, rows: usize, took: Duration) {
        if took > self.longest(rows).unwrap_or(LONG) {
            self.observe(rows, took);
        }
    }

    /// The longest that a step of `rows` rows should take: the longest recent duration, and for more rows than any
    /// recent step had, the largest step's duration scaled in proportion, since rows get cheaper in larger steps.
    /// `None` if nothing was measured yet.
    pub fn longest(&self, rows: usize) -> Option<Duration> {
        let longest = self.0.iter().map(|&(_, took)| took).max()?;
        let &(most_rows, took) = self.0.iter().max()?;
        let in_proportion = took.mul_f64(rows as f64 / most_rows.max(1) as f64);
        Some(longest.max(in_proportion))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_rows_than_ever_may_take_longer_in_proportion() {
        let milliseconds = Duration::from_millis;
        let mut steps = RecentSteps::default();
        assert_eq!(steps.longest(1), None);
        steps.observe(1, milliseconds(60));
        steps.observe(4, milliseconds(50));
        assert_eq!(steps.longest(1), Some(milliseconds(60)));
        assert_eq!(steps.longest(128), Some(milliseconds(1600)));
        for _ in 0..REMEMBERED {
            steps.observe(128, milliseconds(300));
        }
        assert_eq!(steps.longest(128), Some(milliseconds(300)));
    }
    #[test]
    fn a_step_that_was_given_up_early_does_not_make_others_look_slow() {
        let milliseconds = Duration::from_millis;
        let mut steps = RecentSteps::default();
        steps.observe_part(512, milliseconds(40));
        assert_eq!(steps.longest(512), None, "nothing is known");
        let mut slow = RecentSteps::default();
        slow.observe_part(512, milliseconds(15_100));
        assert_eq!(slow.longest(512), Some(milliseconds(15_100)));
        steps.observe(16, milliseconds(500));
        steps.observe_part(512, milliseconds(40));
        assert_eq!(steps.longest(512), Some(milliseconds(16_000)));
        steps.observe_part(512, milliseconds(20_000));
        assert_eq!(steps.longest(512), Some(milliseconds(20_000)));
    }
}
