//! How long new generations will wait, and whether the queue has room for them.
//!
//! Pure: what waits and runs goes in, by flow, with the measured rates.

use std::time::Duration;

use super::request::Flow;
use super::scheduler::Load;

/// What may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Generations.
    pub requests: usize,
    /// Tokens of their prompts.
    pub tokens: usize,
    /// How long the first token of a new generation may take by the forecast.
    pub first_token: Option<Duration>,
}

/// New generations of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newcomers {
    pub flow: Flow,
    pub count: usize,
    /// Tokens of all their prompts.
    pub tokens: usize,
    /// Tokens of those that would wait.
    pub waiting_tokens: usize,
}

/// What waits and runs, and how fast.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    pub loads: &'a [Load],
    /// Slots that nobody who waits will take.
    pub places: usize,
    pub max_batch: usize,
    /// Seconds until a slot becomes free, while somebody waits for one.
    pub seconds_per_place: f64,
    /// Tokens of prompts that are computed in a second; `None` before any was measured.
    pub prefill_rate: Option<f64>,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum NoRoom {
    /// Too many generations would wait.
    Requests,
    /// The prompts of those that wait would have too many tokens.
    Tokens,
    /// The flow has as much of the queue as one flow may have.
    Share,
    /// The first token would come so many seconds too late.
    Late(f64),
}

impl Situation<'_> {
    /// How many of the newcomers would wait for a slot.
    pub fn waiting(&self, newcomers: Newcomers) -> usize {
        (self.total(|load| load.waiting) + newcomers.count)
            .saturating_sub(self.places)
            .min(newcomers.count)
    }

    /// Whether the newcomers may wait.
    pub fn check(&self, newcomers: Newcomers, bounds: Bounds) -> Result<(), NoRoom> {
        let waiting = self.waiting(newcomers);
        if waiting > 0 {
            // Those who fit the free slots do not wait.
            let all = self.total(|load| load.waiting);
            let others = (all + newcomers.count - waiting).saturating_sub(self.places);
            if others + waiting > bounds.requests {
                return Err(NoRoom::Requests);
            }
            let tokens = match others {
                0 => 0,
                _ => self.total(|load| load.waiting_tokens),
            };
            // A prompt that is longer than the bound may wait if nobody else does.
            let is_over = |waiting, own, taken: usize| {
                waiting > 0
                    && own + newcomers.waiting_tokens > bounds.tokens - taken.min(bounds.tokens)
            };
            if is_over(others, 0, tokens) {
                return Err(NoRoom::Tokens);
            }
            if newcomers.flow.id != Flow::SHARED.id {
                // A flow leaves as much room as it takes: one alone gets half of the queue, two get a third each.
                let own = self.of(newcomers.flow);
                let (count, own_tokens) = own.map_or((0, 0), |own| {
                    (own.waiting.saturating_sub(self.places), own.waiting_tokens)
                });
                let is_too_many = count > 0 && count + waiting > bounds.requests - others;
                if is_too_many || is_over(count, own_tokens, tokens) {
                    return Err(NoRoom::Share);
                }
            }
        }
        match (bounds.first_token, self.first_token(newcomers)) {
            (Some(bound), Some(seconds)) if seconds > bound.as_secs_f64() => {
                Err(NoRoom::Late(seconds - bound.as_secs_f64()))
            }
            _ => Ok(()),
        }
    }

    /// In how many seconds all that wait, and the newcomers, are likely to have a slot. While no slot has become free yet, as
    /// after a sudden rush, this is the time that the prompts before them take.
    pub fn until_begun(&self, newcomers: Newcomers) -> f64 {
        let waiting = self.total(|load| load.waiting) + newcomers.count;
        let ahead = waiting.saturating_sub(self.places);
        let prompts = self.total(Load::backlog) as f64;
        let prompts = self.prefill_rate.map_or(0.0, |rate| prompts / rate);
        (ahead as f64 * self.seconds_per_place).max(prompts)
    }

    /// In how many seconds the first token of the last newcomer is likely to come. `None` if nothing is in its way, so that
    /// waiting longer would not help, or nothing was measured.
    pub fn first_token(&self, newcomers: Newcomers) -> Option<f64> {
        let rate = self.prefill_rate?;
        let all = self.total(Load::backlog);
        let waiting = self.total(|load| load.waiting) + newcomers.count;
        let ahead = waiting.saturating_sub(self.places);
        if all == 0 && ahead == 0 {
            return None;
        }
        let (tokens, per_place) = (newcomers.tokens as f64, self.seconds_per_place);
        let after_all = self.until_begun(newcomers) + tokens / rate;
        // A flow waits for no more than its own backlog, at its share of the rate.
        let own = self.of(newcomers.flow);
        let others = self
            .loads
            .iter()
            .filter(|load| load.flow.id != newcomers.flow.id);
        let weights: f64 = others.map(|load| load.flow.weight).sum();
        let slowdown = (weights + newcomers.flow.weight) / newcomers.flow.weight;
        let (own_backlog, own_count) =
            own.map_or((0, 0), |own| (own.backlog(), own.waiting + own.running));
        let share = (self.max_batch as f64 / slowdown).floor();
        let own_ahead = ((own_count + newcomers.count) as f64 - share).max(0.0);
        let own_wait = (own_ahead * per_place).max(own_backlog as f64 / rate) * slowdown;
        Some(after_all.min(own_wait + slowdown * tokens / rate))
    }

    fn of(&self, flow: Flow) -> Option<&Load> {
        self.loads.iter().find(|load| load.flow.id == flow.id)
    }

    fn total(&self, of: impl Fn(&Load) -> usize) -> usize {
        self.loads.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn flow(id: u64) -> Flow {
        Flow { id, weight: 1.0 }
    }

    const fn load(id: u64, waiting: usize, waiting_tokens: usize, running: usize) -> Load {
        Load {
            flow: flow(id),
            waiting,
            waiting_tokens,
            running,
            prefill_tokens: 0,
        }
    }

    const fn newcomers(id: u64, count: usize, tokens: usize) -> Newcomers {
        Newcomers {
            flow: flow(id),
            count,
            tokens,
            waiting_tokens: tokens,
        }
    }

    fn full(loads: &[Load]) -> Situation<'_> {
        Situation {
            loads,
            places: 0,
            max_batch: 4,
            seconds_per_place: 2.0,
            prefill_rate: Some(100.0),
        }
    }

    const BOUNDS: Bounds = Bounds {
        requests: 8,
        tokens: 1000,
        first_token: None,
    };

    #[test]
    fn the_queue_is_bounded_in_requests_and_in_tokens() {
        let loads = [load(0, 7, 700, 4)];
        let check = |count, tokens| full(&loads).check(newcomers(0, count, tokens), BOUNDS);
        assert_eq!(check(1, 300), Ok(()));
        assert_eq!(check(1, 301), Err(NoRoom::Tokens));
        assert_eq!(check(2, 2), Err(NoRoom::Requests));
        let nobody = [load(0, 0, 0, 4)];
        let long = full(&nobody).check(newcomers(0, 1, 50_000), BOUNDS);
        assert_eq!(long, Ok(()), "alone it may be longer than the bound");
        let free = Situation {
            places: 4,
            ..full(&[])
        };
        assert_eq!(free.check(newcomers(0, 4, 50_000), BOUNDS), Ok(()));
        assert_eq!(
            free.check(newcomers(0, 13, 13), BOUNDS),
            Err(NoRoom::Requests)
        );
    }

    #[test]
    fn one_of_several_flows_cannot_fill_the_queue() {
        let flooding = [load(1, 4, 400, 4)];
        let check = |id| full(&flooding).check(newcomers(id, 1, 10), BOUNDS);
        assert_eq!(check(1), Err(NoRoom::Share), "half of it");
        assert_eq!(check(2), Ok(()));
        let long = [load(1, 2, 600, 4)];
        let check = |id| full(&long).check(newcomers(id, 1, 400), BOUNDS);
        assert_eq!(check(1), Err(NoRoom::Share), "more than half of the tokens");
        assert_eq!(check(2), Ok(()));
    }

    #[test]
    fn a_rush_is_told_to_come_back_when_its_prompts_are_computed_though_no_slot_became_free_yet() {
        let loads = [load(0, 128, 8_000, 0)];
        let rush = Situation {
            seconds_per_place: 0.0,
            ..full(&loads)
        };
        let one = newcomers(0, 1, 64);
        assert_eq!(rush.until_begun(one), 80.0);
        let unknown = Situation {
            prefill_rate: None,
            ..rush
        };
        assert_eq!(unknown.until_begun(one), 0.0, "nothing is known yet");
        assert_eq!(full(&loads).until_begun(one), 258.0, "slots are slower");
    }

    #[test]
    fn the_first_token_waits_for_slots_or_for_prompts_whichever_takes_longer() {
        let seconds =
            |situation: Situation<'_>, id, tokens| situation.first_token(newcomers(id, 1, tokens));
        let loads = [load(0, 2, 100, 4)];
        assert_eq!(seconds(full(&loads), 0, 100), Some(3.0 * 2.0 + 1.0));
        let long = [load(0, 2, 5000, 4)];
        assert_eq!(seconds(full(&long), 0, 100), Some(51.0));
        let idle = Situation {
            places: 4,
            ..full(&[])
        };
        assert_eq!(seconds(idle, 0, 100_000), None, "waiting would not help");
        let unknown = Situation {
            prefill_rate: None,
            ..full(&long)
        };
        assert_eq!(seconds(unknown, 0, 100), None);

        // Another flow's backlog only halves the rate.
        assert_eq!(seconds(full(&[load(1, 2, 5000, 4)]), 2, 100), Some(2.0));
        let bounds = Bounds {
            first_token: Some(Duration::from_secs(1)),
            ..BOUNDS
        };
        let one = newcomers(0, 1, 100);
        assert_eq!(full(&loads).check(one, bounds), Err(NoRoom::Late(6.0)));
    }
}
