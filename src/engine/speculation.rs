//! Prompt-lookup speculation: guess that the text goes on as it did before.
//!
//! Answers that quote their prompt, or repeat themselves, say again what is already there. So the last few tokens are
//! looked up in the sequence itself, what followed them there is run as *drafts* behind the last token in the same step,
//! and each draft that turns out to be the token chosen anyway saves a step. The tokens are the same with or without
//! drafts, since the logits of a row do not depend on what shares its step.
//!
//! A draft costs a row. Whether that is worth it depends on what rows cost on this machine, which [`StepTimes`] measures,
//! and on how often this sequence's guesses were right of late. A guess that is not run costs nothing and is right or
//! wrong all the same, so the rate is known before a row is spent on it.

use super::step_times::{Beyond, StepTimes};

/// Tokens that have to be the same as the last ones before what follows them is taken for a guess: with two, common
/// pairs of words make too many wrong ones.
const SHORTEST_MATCH: usize = 3;
/// Tokens compared at most. Of several places the one with the longest match is taken, and sixteen tokens hardly ever
/// stand at two.
const LONGEST_MATCH: usize = 16;
/// How far back the search goes, in tokens: some microseconds.
const LOOK_BACK: usize = 16_384;
/// Share of the newest outcome in the acceptance rate: a few right or wrong guesses turn it.
const NEWEST_SHARE: f64 = 0.2;
/// The acceptance rate of a sequence of which nothing is known.
const UNKNOWN: f64 = 0.5;

/// Where in `tokens` the text stands that followed the last tokens when they came up before: the longest match, and of
/// equals the latest. What is read from there on may run into the drafts themselves, as for a text that repeats itself.
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

/// How often a sequence's guesses were right of late.
#[derive(Debug)]
pub struct Acceptance(f64);

impl Default for Acceptance {
    fn default() -> Self {
        Self(UNKNOWN)
    }
}

impl Acceptance {
    /// Of `guessed` guesses in a row the first `accepted` were right.
    pub fn observe(&mut self, guessed: usize, accepted: usize) {
        for _ in 0..accepted {
            self.0 += NEWEST_SHARE * (1.0 - self.0);
        }
        // What follows the first wrong one says nothing.
        if accepted < guessed {
            self.0 -= NEWEST_SHARE * self.0;
        }
    }

    /// How many of `drafts` drafts are likely to be right.
    fn expected(&self, drafts: usize) -> f64 {
        (1..=drafts as i32).map(|count| self.0.powi(count)).sum()
    }
}

/// The next step while drafts are added to it, one sequence after the other.
#[derive(Debug)]
pub struct Bet<'a> {
    times: &'a StepTimes,
    rows: usize,
    most_rows: usize,
    /// Tokens that the step is likely to give.
    tokens: f64,
}

impl<'a> Bet<'a> {
    /// A step in which `rows` sequences decode and that has room for `most_rows` rows.
    pub const fn new(times: &'a StepTimes, rows: usize, most_rows: usize) -> Self {
        Self {
            times,
            rows,
            most_rows,
            tokens: rows as f64,
        }
    }

    /// How many drafts, of at most `most`, make the most tokens per second likely.
    pub fn drafts(&self, acceptance: &Acceptance, most: usize) -> usize {
        let rate = |drafts: usize| {
            let seconds = self.times.seconds(self.rows + drafts, Beyond::Same)?;
            Some((self.tokens + acceptance.expected(drafts)) / seconds)
        };
        let most = most.min(self.most_rows - self.rows);
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
        Bet::new(&times(more), rows, 64).drafts(acceptance, 10)
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
        // Beside fifteen others a draft must be worth a fifteenth of a step, which all of them wait for.
        assert!(drafts(0.005, &good, 15) > 5);
        assert_eq!(drafts(0.005, &unknown, 15), 0);
    }

    #[test]
    fn with_nothing_measured_there_are_no_drafts_and_unmeasured_rows_are_tried() {
        let mut times = StepTimes::new(64);
        let unknown = Acceptance::default();
        assert_eq!(Bet::new(&times, 1, 64).drafts(&unknown, 10), 0);
        times.observe(1, 0.010);
        assert_eq!(Bet::new(&times, 1, 64).drafts(&unknown, 10), 10);
        assert_eq!(
            Bet::new(&times, 1, 4).drafts(&unknown, 10),
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
