//! Prompt-lookup speculation: guesses that the text continues as it did before.
//!
//! Answers that quote their prompt or repeat themselves contain runs of tokens that are already there. So the last few
//! tokens are looked up in the sequence itself, the tokens that followed them there are computed as *drafts* behind the
//! last token in the same step, and each draft that equals the token chosen anyway saves a step. The tokens are the
//! same with or without drafts, since the logits of a row do not depend on what shares its step.
//!
//! A draft costs a row. Whether it is worth it depends on what rows cost on this machine, which [`StepTimes`] measures,
//! and on how often this sequence's recent guesses were right. Guesses are scored even when they are not run as drafts,
//! so the acceptance rate is known before any row is spent on them.

use super::step_times::{Beyond, StepTimes};

/// The shortest match that counts: with two tokens, common pairs of words would cause too many wrong guesses.
const SHORTEST_MATCH: usize = 3;
/// The longest match that is compared. The longest one wins, and a run of sixteen tokens hardly ever occurs twice.
const LONGEST_MATCH: usize = 16;
/// How far back the search goes, in tokens: this takes some microseconds.
const LOOK_BACK: usize = 16_384;
/// Weight of the newest outcome in the acceptance rate: it adapts within a few guesses.
const NEWEST_SHARE: f64 = 0.2;
/// The acceptance rate of a sequence before its first guess.
const UNKNOWN: f64 = 0.5;

/// Finds the last tokens earlier in `tokens` and returns the index of what followed them: of the longest match, and the
/// latest of equally long ones. Copying from there may run into the drafts themselves, as for a text that repeats
/// itself.
pub fn lookup(tokens: &[u32]) -> Option<usize> {
    let mut best = None;
    let mut longest = SHORTEST_MATCH - 1;
    for end in (tokens.len().saturating_sub(LOOK_BACK)..tokens.len()).rev() {
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
        let same = pairs
            .take(LONGEST_MATCH)
            .take_while(|(a, b)| a == b)
            .count();
        if same > longest {
            (best, longest) = (Some(end), same);
            if same == LONGEST_MATCH {
                break;
            }
        }
    }
    best
}

/// How often a sequence's recent guesses were right: a running mean.
#[derive(Debug)]
pub struct Acceptance(f64);

impl Default for Acceptance {
    fn default() -> Self {
        Self(UNKNOWN)
    }
}

impl Acceptance {
    /// Records that of `guessed` consecutive guesses the first `accepted` were right.
    pub fn observe(&mut self, guessed: usize, accepted: usize) {
        for _ in 0..accepted {
            self.0 += NEWEST_SHARE * (1.0 - self.0);
        }
        // Guesses behind the first wrong one say nothing.
        if accepted < guessed {
            self.0 -= NEWEST_SHARE * self.0;
        }
    }

    /// The expected number of right ones among `drafts` drafts.
    fn expected(&self, drafts: usize) -> f64 {
        (1..=drafts as i32).map(|count| self.0.powi(count)).sum()
    }
}

/// The next step while drafts are added to it, one sequence after another.
#[derive(Debug)]
pub struct DraftBudget<'a> {
    times: &'a StepTimes,
    rows: usize,
    most_rows: usize,
    /// The expected number of tokens that the step produces.
    tokens: f64,
}

impl<'a> DraftBudget<'a> {
    /// A step in which `rows` sequences decode and that has room for `most_rows` rows.
    pub const fn new(times: &'a StepTimes, rows: usize, most_rows: usize) -> Self {
        Self {
            times,
            rows,
            most_rows,
            tokens: rows as f64,
        }
    }

    /// The number of drafts, at most `most`, that maximises the expected tokens per second.
    pub fn drafts(&self, acceptance: &Acceptance, most: usize) -> usize {
        let rate = |drafts: usize| {
            let seconds = self.times.seconds(self.rows + drafts, Beyond::Same)?;
            Some((self.tokens + acceptance.expected(drafts)) / seconds)
        };
        let most = most.min(self.most_rows.saturating_sub(self.rows));
        let Some(without) = rate(0) else {
            return 0;
        };
        let better = (1..=most).filter_map(|drafts| Some((drafts, rate(drafts)?)));
        let best = better.fold(
            (0, without),
            |best, next| if next.1 > best.1 { next } else { best },
        );
        best.0
    }

    /// Adds `drafts` drafts of a sequence to the step.
    pub fn add(&mut self, acceptance: &Acceptance, drafts: usize) {
        self.rows += drafts;
        self.tokens += acceptance.expected(drafts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_is_found_and_of_equals_the_latest() {
        assert_eq!(lookup(&[]), None);
        assert_eq!(lookup(&[1, 2, 3]), None);
        assert_eq!(lookup(&[1, 2, 9, 4, 1, 2]), None, "two are too few");
        assert_eq!(lookup(&[1, 2, 3, 9, 1, 2, 3]), Some(3));
        assert_eq!(
            lookup(&[1, 2, 3, 8, 1, 2, 3, 9, 1, 2, 3]),
            Some(7),
            "the latest"
        );
        assert_eq!(
            lookup(&[0, 1, 2, 3, 8, 1, 2, 3, 9, 0, 1, 2, 3]),
            Some(4),
            "the longest"
        );
        assert_eq!(
            lookup(&[7, 7, 7, 7, 7]),
            Some(4),
            "the drafts themselves go on"
        );
        let mut long: Vec<u32> = (0..LOOK_BACK as u32 + 10).collect();
        long.extend([0, 1, 2]);
        assert_eq!(lookup(&long), None, "too far back");
    }

    /// One row takes 10 ms, and each further one `more`.
    fn times(more: f64) -> StepTimes {
        let mut times = StepTimes::new(64);
        times.observe(1, 0.010);
        times.observe(64, 0.010 + 63.0 * more);
        times
    }

    fn drafts(more: f64, acceptance: &Acceptance, rows: usize) -> usize {
        DraftBudget::new(&times(more), rows, 64).drafts(acceptance, 10)
    }

    #[test]
    fn the_dearer_rows_are_the_fewer_drafts_are_worth_it() {
        let unknown = Acceptance::default();
        assert_eq!(drafts(0.0, &unknown, 1), 10);
        assert_eq!(drafts(0.001, &unknown, 1), 2);
        assert_eq!(drafts(0.006, &unknown, 1), 0);
        let mut good = Acceptance::default();
        good.observe(20, 20);
        assert_eq!(drafts(0.001, &good, 1), 10);
        // A draft delays the fifteen other sequences too, so it must gain much more.
        assert!(drafts(0.005, &good, 15) > 5);
        assert_eq!(drafts(0.005, &unknown, 15), 0);
    }

    #[test]
    fn with_nothing_measured_there_are_no_drafts_and_unmeasured_rows_are_tried() {
        let mut times = StepTimes::new(64);
        let unknown = Acceptance::default();
        assert_eq!(DraftBudget::new(&times, 1, 64).drafts(&unknown, 10), 0);
        times.observe(1, 0.010);
        assert_eq!(DraftBudget::new(&times, 1, 64).drafts(&unknown, 10), 10);
        assert_eq!(
            DraftBudget::new(&times, 1, 4).drafts(&unknown, 10),
            3,
            "the step is full"
        );
    }

    #[test]
    fn guesses_are_run_again_soon_after_they_have_become_right() {
        let mut acceptance = Acceptance::default();
        for _ in 0..100 {
            acceptance.observe(1, 0);
        }
        assert_eq!(drafts(0.002, &acceptance, 1), 0);
        let mut steps = 0;
        while drafts(0.002, &acceptance, 1) == 0 {
            acceptance.observe(1, 1);
            steps += 1;
        }
        assert!((1..10).contains(&steps), "{steps} steps");
    }
}
