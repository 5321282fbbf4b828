//! How long the last steps took, to tell a step that is slow from one that does not end.

use std::collections::VecDeque;
use std::time::Duration;

/// Steps that are remembered: a few seconds of a large model's, and several answers of a small one's.
const REMEMBERED: usize = 64;

/// The last steps.
#[derive(Debug, Default)]
pub(super) struct RecentSteps(VecDeque<(usize, Duration)>);

impl RecentSteps {
    /// Notes that a step of `rows` rows took so long.
    pub fn observe(&mut self, rows: usize, took: Duration) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((rows, took));
    }

    /// What a step of `rows` rows may well take: as long as the longest, and if it has more rows than any, in proportion
    /// to the largest, since a row never costs more in a step of many. `None` if nothing was measured yet.
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
}
